"""What a run would do, printed without doing it: stages, parts, sizes and work."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel

from distill_datasets.canvases.canvas import Canvas, CanvasSize
from distill_datasets.config import Part
from distill_datasets.data.account import Account
from distill_datasets.data.counts import RowCount
from distill_datasets.data.opening import HUB_ID
from distill_datasets.data.overlap import Overlap
from distill_datasets.data.source import open_source
from distill_datasets.data.stores import Discarding
from distill_datasets.errors import DataError
from distill_datasets.models.backbones import backbones_of
from distill_datasets.models.flops import WEIGHT_GRADIENT, cost
from distill_datasets.objectives.unrolled import Unrolled
from distill_datasets.pipeline.checks import check_parts, check_teaching, open_teaching
from distill_datasets.planning.costs import (
    Work,
    baseline_rows,
    costs,
    drawn_network,
    flops_in_words,
    lines,
    probe,
    squeezed_bytes,
    work_of,
)
from distill_datasets.planning.memory import footprint, in_words
from distill_datasets.planning.minutes import minutes_of
from distill_datasets.recipe import Recipe
from distill_datasets.runtime.draws import draws
from distill_datasets.runtime.precision import (
    WORTH_STEPS,
    has_compiler,
    is_compiled,
    is_lower,
)
from distill_datasets.selection.selection import privacy
from distill_datasets.stages.generator import GeneratorPart
from distill_datasets.stages.relabel import Layout
from distill_datasets.types import Shape

Lines = list[tuple[str, str]]


@dataclass(frozen=True)
class Plan:
    """Lines to print: stages, source, parts, numbers, costs stage by stage, and time."""

    stages: Lines
    parts: Lines
    numbers: Lines
    costs: Lines
    source: "SourceSummary"
    time: Lines

    def tables(self) -> dict[str, Lines]:
        """The lines by their heading."""
        tables = {
            "stages": self.stages,
            "source": list(self.source.lines()),
            "parts": self.parts,
            "sizes and work": self.numbers,
            "costs by stage": self.costs,
            "time, by a little of each": self.time,
        }
        return {title: lines for title, lines in tables.items() if lines}

    def as_json(self) -> dict[str, Any]:
        """The same for programs, the source with its numbers."""
        tables = {title: dict(lines) for title, lines in self.tables().items()}
        return tables | {"source": self.source.as_json()}


class SourceSummary(NamedTuple):
    """What is known of a source before it is read.

    `rows` counts those for training where that is known without going through them, and `counts`
    those of each class; `account` lists files where a reader does.
    """

    name: str
    revision: str | None
    shape: Shape
    rows: int | None
    counts: dict[str, RowCount] | None = None
    account: Account | None = None

    def lines(self) -> Lines:
        """Which rows are trained and tested on, and what becomes of the files."""
        lines = [(role, str(count)) for role, count in (self.counts or {}).items()]
        return lines + (
            [] if self.account is None else [("files", x) for x in self.account.lines()]
        )

    def as_json(self) -> dict[str, Any]:
        """The counts of training and test rows (null where only reading tells), and files."""
        counts = self.counts or {}
        account = self.account or Account({})
        return {
            "dataset": self.name,
            "revision": self.revision,
            "splits": {role: counts[role]._asdict() for role in counts} or None,
        } | account.as_json()


def plan(
    recipe: Recipe,
    dataset: Any = None,  # noqa: ANN401
    flops_per_second: float | None = None,
    measure: bool = False,
) -> Plan:
    """Work out what `run` would do; reads a few rows of the source and trains nothing.

    With `source.expected` nothing at all is read, and the dataset need not be there.

    Args:
        recipe: what would be run.
        dataset: the object to read instead of what `source.dataset` names.
        flops_per_second: what a GPU does, for the hours of separable objectives; None leaves
            hours out.
        measure: find that out here, in ten seconds with the first network of the recipe; what a
            window keeps in memory by each way of differentiating; and the minutes of a run, by a
            little of it.

    Raises:
        DistillError: whatever `run` would refuse before its first stage.
    """
    source = source_summary(recipe, dataset)
    shape = source.shape
    size = recipe.distill.canvas.size(shape)
    network, _ = drawn_network(recipe, shape)
    memory: Lines = []
    overlap: Lines = []
    time: Lines = []
    if measure:
        overlap = _overlap(recipe, dataset)
        flops_per_second = probe(network, shape)
        objective = recipe.distill.objective
        if isinstance(objective, Unrolled):
            memory = in_words(objective, footprint(objective, network, shape, size.examples))
        time = _time(recipe, dataset)
    work = work_of(recipe, shape, size.examples)
    return Plan(
        stages=list(_stages(recipe, source, size.examples, work)),
        parts=list(_parts(recipe, "")),
        numbers=[
            *_sizes(shape, size, recipe.distill.canvas),
            *_work_lines(recipe, work),
            *_computing(recipe),
            *memory,
            *_privacy(recipe),
            *overlap,
        ],
        costs=lines(costs(recipe, shape, source.rows), flops_per_second),
        source=source,
        time=time,
    )


def _time(recipe: Recipe, dataset: Any) -> Lines:  # noqa: ANN401
    if recipe.source.expected is not None and dataset is None:
        return []
    minutes = minutes_of(recipe, dataset)
    return [] if minutes is None else list(minutes.lines())


def _privacy(recipe: Recipe) -> Lines:
    shown = privacy(recipe.distill)
    return [] if shown is None else [("privacy", shown)]


def _overlap(recipe: Recipe, dataset: Any) -> Lines:  # noqa: ANN401
    """How many test images are in training too; all images are decoded for it, and none is kept."""
    if recipe.source.expected is not None and dataset is None:
        return []
    store = Discarding(frozenset({"train", "test"}))
    decoded = open_source(recipe.source, dataset).read(draws(recipe.seed), store=store)
    return [("overlap", Overlap(**decoded.provenance.overlap).in_words())]


def source_summary(recipe: Recipe, dataset: Any) -> SourceSummary:  # noqa: ANN401
    """Look at a few rows of the source, or at what the recipe says of it, and check all parts.

    Raises:
        DistillError: whatever `run` would refuse before its first stage.
    """
    settings = recipe.source
    if settings.expected is not None and dataset is None:
        shape = settings.expected_shape()
        check_parts(recipe, shape)
        return SourceSummary(settings.dataset, settings.revision, shape, settings.expected.rows)
    try:
        source = open_source(settings, dataset)
    except DataError as error:
        if HUB_ID.fullmatch(settings.dataset) is None:
            raise
        raise DataError(
            f"{error}; or tell plan what it looks like, for example "
            '"source.expected={classes: 1000, side: 224, rows: 1281167}"'
        ) from error
    shape, names = source.peek()
    check_parts(recipe, shape)
    check_teaching(open_teaching(recipe), shape, names)
    counts = source.counts(draws(recipe.seed))
    rows = None if counts is None else counts["train"].images
    return SourceSummary(source.name, source.revision, shape, rows, counts, source.account)


def _stages(
    recipe: Recipe, source: SourceSummary, examples: int, work: Work
) -> Iterator[tuple[str, str]]:
    shape = source.shape
    at = f" at {source.revision[:12]}" if source.revision else ""
    yield "source", f"read {source.name}{at}; {shape.k} classes"
    for backbone in backbones_of(recipe):
        yield "features", f"{backbone.title} sees every image once"
    if recipe.squeeze is not None:
        yield "squeeze", _squeezing(recipe, shape)
    if recipe.generator is not None:
        yield "generator", _generator(recipe.generator, source)
    yield "distill", f"{_steps(recipe, shape, examples)}, {flops_in_words(work.distill)}"
    if recipe.relabel is not None:
        layout = Layout(recipe.relabel, examples, 1)
        views = f"{layout.records:,} views in {layout.units:,} batches"
        yield "relabel", f"{views}; store: {recipe.relabel.store}"
    form = "PNG" if recipe.distill.objective.separable else "PNG and float"
    yield "export", f"{examples} rows of {shape.c} x {shape.h} x {shape.w} as {form}"
    yield "evaluate", _students(recipe, shape, work)
    yield "publish", recipe.publish.repo or "by `distill-datasets publish`"


def _steps(recipe: Recipe, shape: Shape, examples: int) -> str:
    section = recipe.distill
    if section.objective.separable:
        blocks = len(section.objective.blocks(shape.k, examples // shape.k))
        return f"{section.steps} steps of each of {blocks} blocks"
    return f"{section.steps} outer steps of {section.lanes} lane" + "s" * (section.lanes > 1)


def _squeezing(recipe: Recipe, shape: Shape) -> str:
    squeeze = recipe.squeeze
    assert squeeze is not None
    if squeeze.weights:
        return f"read {', '.join(squeeze.weights)}"
    flops, weights = zip(*(cost(each, shape) for each in squeeze.architectures), strict=True)
    return (
        f"{squeeze.members} networks of {squeeze.epochs} epochs, "
        f"{flops_in_words(WEIGHT_GRADIENT * max(flops))} per image; "
        f"{squeezed_bytes(squeeze, list(weights)):,} bytes"
    )


def _generator(section: GeneratorPart, source: SourceSummary) -> str:
    weights = section.weights(source.shape)
    size = (
        "weights as fetched" if weights is None else f"{weights:,} weights, {4 * weights:,} bytes"
    )
    work = None if source.rows is None else section.work(source.shape, source.rows)
    training = f"; its training {flops_in_words(work)}" if work else ""
    return f"{section.name}: {size}, not counted in the set's{training}"


def _students(recipe: Recipe, shape: Shape, work: Work) -> str:
    settings = recipe.evaluate
    text = (
        f"{settings.students} students of {work.student_steps} steps for "
        f"{', '.join(baseline_rows(recipe))}, {flops_in_words(work.student)} each"
    )
    if "full" in settings.references:
        text += f"; {settings.full_students} of {settings.full_epochs} epochs for full"
    beyond = settings.measured_beyond(relabeled=recipe.relabel is not None)
    if beyond is not None:
        marks = ", ".join(f"{steps:,}" for steps in beyond.multiples(work.student_steps))
        others = len(beyond.others(settings.network, shape))
        text += f"; {beyond.students} of {marks} steps on it and on {others} other networks"
        if beyond.rates:
            end = beyond.ladder(work.student_steps)[-1]
            text += f"; every row at {len(beyond.rates)} step sizes for up to {end:,} steps"
    return text


def _sizes(shape: Shape, size: CanvasSize, canvas: Canvas) -> Lines:
    """Of images, or of the values that are stored in their place."""
    stored = canvas.budget(shape)
    one, each = f"{shape.c} x {shape.h} x {shape.w} px", shape.c * shape.h * shape.w
    if stored is not None:
        return [
            ("one example", one),
            ("examples drawn", f"{size.examples:,}"),
            ("budget", f"{stored:,} values = {stored / (shape.k * each):.4g} per class"),
            ("rows, before PNG", f"{size.examples * each:,} bytes"),
        ]
    pixels = sum(height * width for height, width in size.originals)
    values = pixels * shape.c
    sides = ", ".join(f"{height} x {width} px" for height, width in sorted(set(size.originals)))
    return [
        ("one example", one),
        ("originals", f"{len(size.originals)} of {sides}"),
        ("budget", f"{pixels:,} px = {pixels / (shape.k * shape.h * shape.w):.4g} per class"),
        *([] if canvas.needs_generator else [("trained pixel values", f"{values:,}")]),
        ("float originals", f"{4 * values:,} bytes"),
        ("rows, before PNG", f"{size.examples * each:,} bytes"),
    ]


def _work_lines(recipe: Recipe, work: Work) -> Lines:
    # how many rows the source has shows only when it is read
    uncounted = ["the squeeze stage"] if recipe.squeeze else []
    uncounted += ["the generator"] if recipe.generator else []
    uncounted += ["the full reference"] if "full" in recipe.evaluate.references else []
    more = "".join(f" and {what}" for what in uncounted)
    network, student = flops_in_words(work.network_flops), flops_in_words(work.student_flops)
    return [
        ("network", f"{work.network_weights:,} weights, {network} per image"),
        ("student", f"{work.student_weights:,} weights, {student} per image"),
        ("work of an outer step", flops_in_words(work.outer_step)),
        ("work in all", flops_in_words(work.total) + more),
    ]


def _computing(recipe: Recipe) -> Lines:
    """What every `auto` of a precision or of a compiler stands for on this machine."""
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    lower = [path for path, key in _automatic(recipe, "") if key in PRECISIONS]
    compiled = [path for path, key in _automatic(recipe, "") if key == "compile"]
    taken = "bfloat16" if is_lower("auto", device) else "float32"
    lines = [("computed here", f"in {taken}: {', '.join(lower)}")] if lower else []
    if compiled:
        steps = recipe.distill.steps
        answer = "compiled" if is_compiled("auto", device, steps) else "not compiled"
        why = "" if has_compiler(device.type) else "; there is no compiler that torch could call"
        if device.type == "cpu" and steps < WORTH_STEPS:
            why = f"; {steps:,} steps do not pay for it"
        lines.append(("compiled here", f"{answer}: {', '.join(compiled)}{why}"))
    return lines


PRECISIONS = {"precision", "real_precision", "warm_up_precision"}
"""Keys of which `auto` asks the machine for bfloat16."""


def _automatic(section: BaseModel, prefix: str) -> Iterator[tuple[str, str]]:
    """The path and the name of every key that is `auto`."""
    for key in type(section).model_fields:
        value = getattr(section, key)
        if value == "auto":
            yield f"{prefix}{key}", key
        if isinstance(value, BaseModel):
            yield from _automatic(value, f"{prefix}{key}.")


def _parts(section: BaseModel, prefix: str) -> Iterator[tuple[str, str]]:
    """Every line of the recipe that names a part, with the class and file it resolves to."""
    for key in type(section).model_fields:
        value = getattr(section, key)
        if isinstance(value, Part):
            cls = type(value)
            yield f"{prefix}{key}: {value.name}", f"{cls.__name__}, {_file_of(cls)}"
        if isinstance(value, BaseModel):
            yield from _parts(value, f"{prefix}{key}.")


def _file_of(cls: type) -> Path:
    """The file of a class, from the folder on that its package lies in."""
    parts = Path(inspect.getfile(cls)).parts
    depth = cls.__module__.count(".") + (2 if parts[-1] == "__init__.py" else 1)
    return Path(*parts[-depth:])
