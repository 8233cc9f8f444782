"""Recipes as nobody should write them: valid, mutated and hostile, each drawn from a number."""

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from distill_datasets.files.yaml_text import from_yaml, to_yaml
from support import TESTS
from support.toy_runs import TOY

RECIPES = sorted((TESTS.parent / "recipes").rglob("*.yaml"))
Steps = tuple[str | int, ...]


class RecipeText(NamedTuple):
    """A recipe file and overrides. `kind`: how it was made."""

    kind: str
    content: bytes
    overrides: list[str]


def bomb(width: int, levels: int) -> str:
    """A list of lists by aliases: a few characters that say width ** levels values."""
    lines = ["bomb0: &b0 [" + ", ".join(["x"] * width) + "]"]
    for level in range(1, levels):
        lines.append(f"bomb{level}: &b{level} [" + ", ".join([f"*b{level - 1}"] * width) + "]")
    return "\n".join(lines) + "\n"


VALUES: list[Any] = [
    *(0, -1, 1, 2**63, -(2**63), 10**39, 10_000_000, 10**12, 0.0, -0.5, 1e300, 1e-300),
    *(True, False, None, "", "x", "null", "5", "1e999", ".inf", ".nan", "\u202eabc", "é" * 200),
    *("a" * 5000, "../" * 500, "/dev/zero", "file:///etc/passwd", "hf://a/b", "a/b/c", "~", "--"),
    *([], {}, [[]], [1, "a", None], {"name": "x"}, {"name": 5}, {"name": None}, {"": ""}),
    *({"name": "poster"}, {"name": "adam"}, {"name": "convnet", "depth": 10**7}, [0.1] * 1000),
    *({str(key): key for key in range(300)}, list(range(3000)), {"a": {"b": {"c": {"d": 1}}}}),
]
SCALARS = [
    *("!!int x", "!!timestamp 2001-01-01", "!!float .inf", "!!bool maybe", "!!binary aGk=", "! 5"),
    *("!!python/object:os.system x", "!!python/name:os.system", "!!set {1, 2}", "!!omap [a: 1]"),
    *("9" * 5000, "-" + "9" * 400, "0." + "1" * 5000, "1e999", "-.5e-999", "0x10", "010", "1:30"),
    *("[" * 3000, "{" * 3000, "[" * 41 + "]" * 41, "- " * 2000, "? " * 2000, "a: " * 50),
    *("&a [*a]", "*nowhere", "*" + "q" * 3000, "&x &y 1", "'" + "x" * 9000, '"\\ud800"', '"\\0"'),
    *("|\n  a\n b", ">-\n" + "  x\n" * 500, "@x", "`x`", "%x", "<<", "=", "2001-01-01", "~", "\t"),
    *("{a: 1, a: 2}", "{? [1] : 2}", "{{ name }}", "${HOME}", "$(reboot)", "#", "---", "..."),
    *("[red]bold[/red]", '"\\e[2J\\e[31m"', '"\\a\\b"', "\ufeff", "\x85", "\u2028", "é\u0301"),
]
TEXTS = [
    *("", "\n", "null", "5", "- a\n- b", "just words", "%YAML 3.0\n---\na: 1", "--- a\n--- b"),
    *("\x00", "\x1b[31mred", "a: b: c", "\tname: x", "<<: {name: x}", bomb(10, 9), bomb(2, 39)),
    *("&a [*a]", "? " * 3000, "[" * 100_000, "x" * 1_100_000, "a: 1\n" * 2000, "-" * 9000),
    *("".join(f"key{place}: {place}\n" for place in range(20_000)), "\ufeffname: x", "name: x\r\n"),
]


def recipe_text(seed: int) -> RecipeText:
    """The recipe of a number: a third each is valid, has mutated values, or is hostile as text."""
    rng = random.Random(seed)
    kind = ("valid", "mutated", "hostile")[seed % 3]
    sections = _sections(rng)
    if kind == "valid":
        return RecipeText(kind, to_yaml(_shuffled(sections, rng)).encode(), _seeds(rng))
    if kind == "mutated":
        for _ in range(rng.randint(1, 4)):
            rng.choice(MUTATIONS)(sections, rng)
        overrides = [f"{_key(sections, rng)}={_inline(rng)}" for _ in range(rng.choice([0, 0, 1]))]
        return RecipeText(kind, to_yaml(sections).encode(errors="surrogatepass"), overrides)
    overrides = [f"{_key(sections, rng)}={rng.choice(SCALARS)}"] if rng.random() < 0.3 else []
    return RecipeText(kind, _hostile(to_yaml(sections), rng), [*overrides, *_odd_overrides(rng)])


def _sections(rng: random.Random) -> dict[str, Any]:
    path: Path | None = rng.choice([*RECIPES, None])
    read = copy.deepcopy(TOY) if path is None else from_yaml(path.read_text(encoding="utf-8"))
    assert isinstance(read, dict)
    return read


def _shuffled(value: Any, rng: random.Random) -> Any:  # noqa: ANN401
    """The same mapping with its keys in another order."""
    if not isinstance(value, dict):
        return value
    keys = list(value)
    rng.shuffle(keys)
    return {key: _shuffled(value[key], rng) for key in keys}


def _seeds(rng: random.Random) -> list[str]:
    return [f"seed={rng.randrange(2**63)}"] if rng.random() < 0.5 else []


def _places(value: Any, above: Steps = ()) -> list[Steps]:  # noqa: ANN401
    """The paths of everything that stands inside a value."""
    if not isinstance(value, dict | list):
        return []
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    return [
        place for key, each in inner for place in [(*above, key), *_places(each, (*above, key))]
    ]


def _owner(sections: Any, place: Steps) -> Any:  # noqa: ANN401
    for key in place[:-1]:
        sections = sections[key]
    return sections


def _key(sections: dict[str, Any], rng: random.Random) -> str:
    """A path as an override has it."""
    place = rng.choice(_places(sections) or [("name",)])
    return ".".join(map(str, place)) or "name"


def _inline(rng: random.Random) -> str:
    return to_yaml({"a": rng.choice(VALUES)}).partition(":")[2].strip()


def _replaced(sections: dict[str, Any], rng: random.Random) -> None:
    if places := _places(sections):
        place = rng.choice(places)
        _owner(sections, place)[place[-1]] = copy.deepcopy(rng.choice(VALUES))


def _removed(sections: dict[str, Any], rng: random.Random) -> None:
    if places := _places(sections):
        place = rng.choice(places)
        del _owner(sections, place)[place[-1]]


def _misspelled(sections: dict[str, Any], rng: random.Random) -> None:
    if places := [place for place in _places(sections) if isinstance(place[-1], str) and place[-1]]:
        place = rng.choice(places)
        owner, name = _owner(sections, place), str(place[-1])
        at = rng.randrange(len(name))
        owner[name[:at] + rng.choice("aeiouxyz_.-") + name[at + 1 :]] = owner.pop(name)


def _scaled(sections: dict[str, Any], rng: random.Random) -> None:
    def number(place: Steps) -> bool:
        value = _owner(sections, place)[place[-1]]
        return isinstance(value, int | float) and not isinstance(value, bool)

    if places := [place for place in _places(sections) if number(place)]:
        place = rng.choice(places)
        owner = _owner(sections, place)
        owner[place[-1]] *= rng.choice([-1, 10, 1000, 10**7, 10**15, 0])


def _moved(sections: dict[str, Any], rng: random.Random) -> None:
    """Put a copy of a piece where another stood."""
    if places := _places(sections):
        source, target = rng.choice(places), rng.choice(places)
        piece = copy.deepcopy(_owner(sections, source)[source[-1]])
        _owner(sections, target)[target[-1]] = piece


MUTATIONS: list[Callable[[dict[str, Any], random.Random], None]] = [
    *(_replaced, _removed, _misspelled, _scaled, _moved),
]


def _hostile(text: str, rng: random.Random) -> bytes:
    lines = text.splitlines()
    match rng.randrange(8):
        case 0:
            return rng.choice(TEXTS).encode()
        case 1:  # a scalar that no reader should take
            place = rng.randrange(len(lines))
            lines[place] = f"{lines[place].partition(':')[0]}: {rng.choice(SCALARS)}"
            return "\n".join(lines).encode()
        case 2:
            return (bomb(rng.randint(2, 12), rng.randint(5, 30)) + text).encode()
        case 3:  # bytes that are no text
            content = bytearray(text.encode())
            for _ in range(rng.randint(1, 8)):
                content[rng.randrange(len(content))] = rng.randrange(256)
            return bytes(content)
        case 4:
            return text[: rng.randrange(len(text))].encode()
        case 5:
            rng.shuffle(lines)
            return "\n".join(lines).encode()
        case 6:  # the same anchor on every level
            return text.replace(": ", ": &a ", rng.randint(1, 5)).encode()
        case _:
            place = rng.randrange(len(text))
            return (text[:place] + rng.choice(SCALARS) + text[place:]).encode()


def _odd_overrides(rng: random.Random) -> list[str]:
    odd = [
        *("a" * 5000 + "=1", ".".join("a" * 500) + "=1", "=", "==", ".=", "seed", "seed=", "a.b.c"),
        *("seed=!!int x", "name=!!timestamp 2001-01-01", f"name={'[' * 200}", f"seed={'9' * 5000}"),
        *(
            "distill.objective.name=",
            "source=embedded:uci-digits",
            "profiles={a: 1}",
            "seed=\x1b[2J",
        ),
        *("distill.canvas.crops=[1, 2, 3]", "évaluer.pas=1", "\udcff=1", "name=\udcff", "--=--"),
    ]
    return [rng.choice(odd)] if rng.random() < 0.25 else []
