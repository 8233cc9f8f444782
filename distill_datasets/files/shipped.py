"""The recipes that ship with the package, and what their headers say.

A recipe has a name, `cifar10/podd`, which is its file below the folder of recipes. They lie inside
an installed package, and beside it in a checkout.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from distill_datasets.errors import did_you_mean

TITLES = ("What", "Run", "Cost", "Result", "Source")
"""What a header has, in this order; lines without a title go on with the one above."""
_ACCURACY = re.compile(r"(?<![\d.])\d{1,2}(?:\.\d+)?(?: \+- \d+\.\d+)? %")
_ELSEWHERE = re.compile(r"paper|authors")
"""Whose figures are not measured here."""
_PACKAGE = Path(__file__).parent.parent


class ShippedRecipe(NamedTuple):
    """A recipe that ships with the package.

    Attributes:
        name: its file below the folder of recipes, without the ending.
        path: the file.
        header: what its comment says, by the title.
    """

    name: str
    path: Path
    header: Mapping[str, str]

    @property
    def group(self) -> str:
        """The data set that it is written for; empty for the quickstart."""
        return self.name.rpartition("/")[0]

    @property
    def what(self) -> str:
        """Its subject in a sentence."""
        return self.header.get("What", "")

    @property
    def accuracy(self) -> str | None:
        """The first that its result tells, `88.5 +- 0.3 %`; None where none was measured here."""
        for sentence in self.header.get("Result", "").split(". "):
            found = _ACCURACY.search(sentence)
            if found and not _ELSEWHERE.search(sentence):
                return found[0]
        return None

    @property
    def profile(self) -> bool:
        """Whether what was measured is its profile for two cores."""
        return "with the profile" in self.header.get("Result", "").lower()


def folder() -> Path:
    """Where the recipes lie."""
    inside = _PACKAGE / "recipes"
    return inside if inside.is_dir() else _PACKAGE.parent / "recipes"


def shipped() -> list[ShippedRecipe]:
    """All of them, in the order of their names, those without a data set first."""
    root = folder()
    found = [_read(path, root) for path in root.rglob("*.yaml")]
    return sorted(found, key=lambda recipe: (recipe.group, recipe.name))


def recipe_file(asked: str | Path) -> Path:
    """The file of a recipe that is asked for by its path or by its name.

    Args:
        asked: a path; where no such file is there, `quickstart`, `cifar10/podd`, or the same as
            in a checkout, `recipes/cifar10/podd.yaml`.

    Returns:
        The path as it is where a file is there or no shipped recipe has that name.
    """
    path = Path(asked)
    if path.exists() or path.is_absolute() or ".." in path.parts:
        return path
    there = folder() / f"{_name(asked)}.yaml"
    return there if there.is_file() else path


def near(asked: str | Path) -> str:
    """The tail of an error message about a recipe that is not there."""
    return did_you_mean(_name(asked), [recipe.name for recipe in shipped()])


def _name(asked: str | Path) -> str:
    return Path(asked).as_posix().removeprefix("recipes/").removesuffix(".yaml")


def _read(path: Path, root: Path) -> ShippedRecipe:
    texts = dict[str, list[str]]()
    with path.open(encoding="utf-8") as file:
        for line in file:
            if not line.startswith("#"):
                break
            title, colon, text = line[1:].partition(":")
            if colon and title.strip() in TITLES:
                texts[title.strip()] = [text.strip()]
            elif texts:
                texts[next(reversed(texts))].append(line[1:].strip())
    name = path.relative_to(root).with_suffix("").as_posix()
    return ShippedRecipe(name, path, {title: " ".join(text) for title, text in texts.items()})
