"""`gallery`: one page of many sets, to look at, to sort and to filter.

What is shown of a set is its manifest and its picture alone, so that a set on the Hub costs two
small files. The page asks for nothing: pictures are `data:` addresses, its one script is in its
text, and its policy lets a browser load nothing else. Every text of a set is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import io
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from distill_datasets import __version__
from distill_datasets.errors import ArtifactError
from distill_datasets.evaluation.report.charts import bytes_in_words
from distill_datasets.evaluation.report.report import TEMPLATES, check_free, templates
from distill_datasets.export.content import SIBLING, per_class
from distill_datasets.export.folder import MANIFEST, made_by_run, read_manifest, task_of
from distill_datasets.export.summary import at_chance, best_real, percent, statement
from distill_datasets.files.artifacts import write_text
from distill_datasets.hub import pinned as hub
from distill_datasets.targets import METRICS, OUTPUTS
from distill_datasets.training.rows import ROWS

logger = logging.getLogger("distill_datasets")

TAG = "distill_datasets"
"""Of datasets that this library wrote, on their cards."""
PICTURES = ("classes.png", "poster.png")
WIDTH_PX, HEIGHT_PX = 640, 400
WIDE = 1.2
"""Pictures of this shape are shown as a whole, of others the upper left part."""
HEAVY_BYTES = 60_000
"""A larger PNG is shown as WebP, which is for the eye alone."""
DEEPEST = 3
"""Folders below one that is named, in which sets are looked for."""
NOT_SETS = re.compile(r"export-.*|.*-relabel|downloads|evaluations|\..*")


class Exhibit(NamedTuple):
    """A set of the gallery: where its two files lie, and where a reader finds it.

    Attributes:
        folder: with its manifest and its picture.
        place: what `load_dataset` is given.
        url: its page; None for one that lies on this machine.
    """

    folder: Path
    place: str
    url: str | None


class AccuracyMark(NamedTuple):
    """An accuracy on the line of a set: where, from where to where, and in words."""

    kind: str
    at: float
    low: float
    high: float
    words: str


class Tile(NamedTuple):
    """What the page shows of a set; numbers are for sorting, None goes last."""

    name: str
    method: str
    source: str
    place: str
    url: str | None
    picture: str | None
    wide: bool
    accuracy: float | None
    accuracy_words: str | None
    lead: float | None
    bytes: int
    size: str
    budget: str
    ipc: float
    classes: str
    rows: int
    marks: list[AccuracyMark]
    sentence: str | None
    origin: str | None
    warnings: list[str]


def exhibits(target: str) -> list[Exhibit]:
    """The sets that a user means.

    Args:
        target: a folder of a set, or a folder below which sets lie; a Hub id; or a user or
            organization of the Hub, whose sets of this library are shown.

    Raises:
        ArtifactError: there is none.
    """
    path = Path(target).expanduser()
    if path.is_dir():
        found = [Exhibit(folder, str(folder), None) for folder in _sets_below(path, DEEPEST)]
        if not found:
            raise ArtifactError(
                f"{target}: no finished dataset lies there or {DEEPEST} folders below"
            )
        return found
    if target.startswith((".", "/", "~")) or target.count("/") > 1:
        raise ArtifactError(f"{target}: no such folder")
    if "/" in target:
        return [_on_hub(target)]
    shown = list(_readable(hub.datasets_of(target, TAG)))
    if not shown:
        raise ArtifactError(
            f"{target}: no folder of this name, and the Hub lists no dataset of this user or "
            f"organization that has the tag {TAG}"
        )
    return shown


def write_gallery(shown: Sequence[Exhibit], output: Path, title: str) -> Path:
    """Write the page.

    Args:
        shown: the sets; one that is named twice is shown once.
        output: the HTML file to make.
        title: of the page.

    Raises:
        ArtifactError: the file is there, or a set cannot be read.
    """
    check_free(output)
    once = {each.folder.resolve(): each for each in shown}
    write_text(output, gallery_page([tile_of(each) for each in once.values()], title))
    return output


def gallery_page(tiles: Sequence[Tile], title: str) -> str:
    """The text of the page: sets of one source together, the most accurate first."""
    ordered = sorted(tiles, key=lambda tile: (tile.source, -(tile.accuracy or 0), tile.name))
    script = (TEMPLATES / "collection.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        templates()
        .get_template("collection.html.jinja")
        .render(
            title=title,
            tiles=ordered,
            sources=sorted({tile.source for tile in tiles}),
            measured=sum(tile.accuracy is not None for tile in tiles),
            script=script,
            script_hash=digest,
            version=__version__,
        )
    )


def tile_of(exhibit: Exhibit) -> Tile:
    """What is shown of a set."""
    manifest = read_manifest(exhibit.folder)
    picture, wide = _picture(exhibit.folder)
    results, budget = manifest["results"] or [], manifest["budget"]
    rows = {row["from"]: row for row in results}
    own, rival = rows.get("default"), best_real(results)
    accuracy = None if own is None else own["accuracy"]["mean"]
    task = task_of(manifest)
    metric = "" if task == "classes" else f" {METRICS[task]}"
    lead = None
    if accuracy is not None and rival is not None:
        lead = accuracy - rival["accuracy"]["mean"]
    return Tile(
        name=manifest["name"],
        method=manifest["method"],
        source=manifest["source"]["dataset"],
        place=exhibit.place,
        url=exhibit.url,
        picture=picture,
        wide=wide,
        accuracy=accuracy,
        accuracy_words=None if own is None else f"{percent(own['accuracy'])} %{metric}",
        lead=lead,
        bytes=budget["bytes"]["needed"],
        size=bytes_in_words(budget["bytes"]["needed"]),
        budget=per_class(budget, task),
        ipc=budget["ipc_equivalent"],
        classes=f"{len(manifest['classes']):,} {OUTPUTS[task].many}",
        rows=budget["examples"],
        marks=list(_marks(rows, rival)),
        sentence=_sentence(manifest),
        origin=_origin(manifest),
        warnings=list(_warnings(manifest)),
    )


def _sets_below(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / MANIFEST).is_file():
        if "labels_of" not in read_manifest(folder):
            yield folder
        return
    if depth:
        for inner in sorted(folder.iterdir()):
            if inner.is_dir() and not NOT_SETS.fullmatch(inner.name):
                yield from _sets_below(inner, depth - 1)


def _readable(names: Sequence[str]) -> Iterator[Exhibit]:
    """Those of some datasets on the Hub that can be shown; of others is said why not."""
    for name in names:
        if name.endswith(SIBLING):  # labels of views, which belong to a set
            continue
        try:
            yield _on_hub(name)
        except ArtifactError as error:
            logger.warning("left out: %s", error)


def _on_hub(name: str) -> Exhibit:
    dataset, _, revision = name.partition("@")
    pinned = hub.pin(dataset, revision or None)
    there = {path for path, _, _ in pinned.files}
    if MANIFEST not in there:
        raise ArtifactError(f"{name}: has no {MANIFEST}; `distill-datasets import` makes one")
    wanted = [MANIFEST, *[path for path in PICTURES if path in there][:1]]
    folder = hub.fetch(dataset, pinned.commit, pinned.files, wanted)
    if "labels_of" in read_manifest(folder):
        raise ArtifactError(
            f"{name}: holds the labels of views that belong to a dataset; name that dataset"
        )
    return Exhibit(folder, name, pinned.url)


def _picture(folder: Path) -> tuple[str | None, bool]:
    """The picture of a set as a `data:` address, no larger than it is shown; is it a wide one?"""
    path = next((folder / name for name in PICTURES if (folder / name).is_file()), None)
    if path is None:
        return None, False
    encoded, kind = path.read_bytes(), "png"
    with Image.open(io.BytesIO(encoded), formats=["PNG"]) as image:
        wide = image.width >= WIDE * image.height
        if len(encoded) > HEAVY_BYTES or image.width > 2 * WIDTH_PX:
            # the upper part of a tall sheet shows what the rest is like
            shown = image.convert("RGB").crop((0, 0, image.width, min(image.height, image.width)))
            shown.thumbnail((WIDTH_PX, 2 * HEIGHT_PX))
            buffer, kind = io.BytesIO(), "webp"
            shown.save(buffer, format="WEBP", quality=80, method=6)
            encoded = buffer.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode()}", wide


def _marks(rows: dict[str, dict[str, Any]], rival: dict[str, Any] | None) -> Iterator[AccuracyMark]:
    """What students reach, on one line: of the whole source, of real images, of the set."""
    for kind, row in (("whole", rows.get("full")), ("other", rival), ("own", rows.get("default"))):
        if row is not None:
            mean, std = row["accuracy"]["mean"], row["accuracy"]["std"] or 0.0
            words = f"{ROWS[row['from']].printed}: {percent(row['accuracy'])} %"
            yield AccuracyMark(kind, mean, max(0.0, mean - std), min(1.0, mean + std), words)


def _sentence(manifest: dict[str, Any]) -> str | None:
    """Whether it beats real images, in the words of its card."""
    if not manifest["results"]:
        return None
    budget = manifest["budget"]
    hard = budget["label_values"] == budget["examples"]
    return statement(manifest["results"], hard=hard)


def _origin(manifest: dict[str, Any]) -> str | None:
    """Who made it, where no run of this library did."""
    if made_by_run(manifest):
        return None
    if "imported" in manifest:
        return "made by others, imported"
    return f"made by {manifest['derived']['verb']} of finished sets"


def _warnings(manifest: dict[str, Any]) -> Iterator[str]:
    attack = manifest.get("attack")
    if attack:
        attacked, target = (manifest["classes"][label] for label in attack)
        yield f"made to attack: networks take {attacked} for {target}"
    if not manifest["results"]:
        yield "not measured yet"
    elif at_chance(manifest["results"]):
        yield "at chance: it teaches nothing"
