"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const list = byId("tiles");
  const tiles = [...list.children];
  const form = document.querySelector("form.bar");
  const controls = ["find", "source", "sort", "measured"].map(byId).filter(Boolean);
  const smaller = new Set(["bytes", "ipc"]);
  form.hidden = false;
  tiles.forEach((tile, place) => {
    tile.place = place;
    tile.tabIndex = -1;
  });

  const value = (control) => control.type === "checkbox" ? (control.checked ? "1" : "") : control.value;

  const compare = (key) => (one, other) => {
    if (!key) return one.place - other.place;
    if (key === "name") return one.dataset.name.localeCompare(other.dataset.name);
    const [a, b] = [one, other].map((tile) => tile.dataset[key]);
    if (a === "" || b === "") return (a === "") - (b === "") || one.place - other.place;
    return (smaller.has(key) ? a - b : b - a) || one.place - other.place;
  };

  const show = () => {
    const asked = Object.fromEntries(controls.map((control) => [control.id, value(control)]));
    const words = asked.find.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const tile of tiles) {
      const text = tile.dataset.words.toLowerCase();
      const fits = words.every((word) => text.includes(word))
        && (!asked.source || tile.dataset.source === asked.source)
        && (!asked.measured || tile.dataset.accuracy !== "");
      tile.hidden = !fits;
      shown += fits;
    }
    list.append(...[...tiles].sort(compare(asked.sort)));
    byId("count").value = shown === tiles.length ? `${shown} shown` : `${shown} of ${tiles.length}`;
    byId("nothing").hidden = shown > 0;
    const kept = Object.entries(asked).filter(([, text]) => text);
    const hash = new URLSearchParams(kept).toString();
    history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
  };

  const restore = () => {
    const kept = new URLSearchParams(location.hash.slice(1));
    for (const control of controls) {
      if (control.type === "checkbox") control.checked = kept.has(control.id);
      else if (kept.has(control.id)) control.value = kept.get(control.id);
      if (control.tagName === "SELECT" && control.selectedIndex < 0) control.selectedIndex = 0;
    }
    show();
  };

  for (const control of controls) control.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", restore);
  byId("clear").addEventListener("click", () => {
    form.reset();
    show();
    byId("find").focus();
  });

  const large = byId("large");
  list.addEventListener("click", (event) => {
    const button = event.target.closest(".picture");
    if (!button) return;
    const image = large.querySelector("img");
    image.src = button.querySelector("img").src;
    image.alt = button.querySelector("img").alt;
    large.showModal();
  });

  addEventListener("keydown", (event) => {
    if (large.open || event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.closest("input, select, pre");
    if (event.key === "/" && !typing) {
      event.preventDefault();
      byId("find").focus();
      return;
    }
    const own = event.target.closest(".tile");
    if (typing || !["ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp", "Enter"].includes(event.key)) return;
    if (event.key === "Enter") {
      if (own && event.target === own) own.querySelector(".picture, a")?.click();
      return;
    }
    const seen = [...list.children].filter((tile) => !tile.hidden);
    if (!seen.length || (!own && event.key.endsWith("Down") === false)) return;
    const columns = getComputedStyle(list).gridTemplateColumns.split(" ").length;
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns };
    const place = own ? seen.indexOf(own) + steps[event.key] : 0;
    if (place < 0 || place >= seen.length) return;
    event.preventDefault();
    seen[place].focus();
  });

  restore();
})();
