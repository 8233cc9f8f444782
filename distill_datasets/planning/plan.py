"""What a run would do, printed without doing it: stages, parts, sizes and work."""

import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from distill_datasets.config import Part
from distill_datasets.data.opening import HUB_ID
from distill_datasets.data.source import peek, resolve
from distill_datasets.errors import DataError
from distill_datasets.objectives.unrolled import Unrolled
from distill_datasets.pipeline.checks import check_parts, check_teaching
from distill_datasets.planning.costs import (
    TRAINING,
    asked_per_step,
    contestants,
    cost,
    costs,
    flops_in_words,
    lines,
    probe,
)
from distill_datasets.planning.memory import footprint, in_words
from distill_datasets.recipe import Recipe
from distill_datasets.stages.relabel import Layout
from distill_datasets.types import Shape


@dataclass(frozen=True)
class Plan:
    """Lines to print: the stages, the parts, the numbers, and the costs stage by stage."""

    stages: list[tuple[str, str]]
    parts: list[tuple[str, str]]
    numbers: list[tuple[str, str]]
    costs: list[tuple[str, str]]


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
        flops_per_second: what a GPU does, for the hours of separable objectives; None tells none.
        measure: find that out here, in ten seconds with the first network of the recipe; and what
            a window keeps in memory by each way of differentiating.

    Raises:
        DistillError: whatever `run` would refuse before its first stage.
    """
    expected = recipe.source.expected
    name, revision, rows = recipe.source.dataset, recipe.source.revision, None
    if expected is not None and dataset is None:
        shape, rows = recipe.source.expected_shape(), expected.rows
        check_parts(recipe, shape)
    else:
        try:
            provenance = resolve(recipe.source, dataset)
        except DataError as error:
            if HUB_ID.fullmatch(name) is None:
                raise
            raise DataError(
                f"{error}; or tell plan what it looks like, for example "
                '"source.expected={classes: 1000, side: 224, rows: 1281167}"'
            ) from error
        name, revision = provenance.dataset, provenance.revision
        shape, names = peek(recipe.source, dataset)
        check_parts(recipe, shape)
        check_teaching(recipe, shape, names)
    size = recipe.distill.canvas.size(shape)
    pixels = sum(height * width for height, width in size.originals)
    values = pixels * shape.c
    section, measured = recipe.distill, recipe.evaluate
    network = section.networks.architecture(recipe.squeeze.network if recipe.squeeze else None)
    kept = list[tuple[str, str]]()
    if measure:
        flops_per_second = probe(network, shape)
        if isinstance(section.objective, Unrolled):
            found = footprint(section.objective, network, shape, size.examples)
            kept = in_words(section.objective, found)
    inner_flops, inner_weights = cost(network, shape)
    teachers = recipe.squeeze.architectures if recipe.squeeze is not None else ()
    asked = inner_flops
    if section.objective.separable:
        asked = asked_per_step(section.objective, [cost(each, shape)[0] for each in teachers])
    student_flops, student_weights = cost(measured.network, shape)
    steps = measured.duration(size.examples)
    lane_work = section.objective.work(asked, size.examples, shape.k)
    lane_work += section.networks.work(inner_flops, size.examples)
    step_work = section.lanes * lane_work
    distill_work = section.steps * step_work
    student_work = student_flops * TRAINING * steps * min(measured.batch, size.examples)
    at = f" at {revision[:12]}" if revision else ""
    heights = sorted(set(size.originals))
    # how many rows the source has shows only when it is read
    uncounted = ["the squeeze stage"] if recipe.squeeze else []
    uncounted += ["the full reference"] if "full" in measured.references else []
    more = "".join(f" and {what}" for what in uncounted)
    stages = [
        ("source", f"read {name}{at}; {shape.k} classes"),
        *_squeezing(recipe, shape),
        ("distill", f"{_moves(recipe, shape, size.examples)}, {flops_in_words(distill_work)}"),
        *_labeling(recipe, size.examples),
        (
            "export",
            f"{size.examples} rows of {shape.c} x {shape.h} x {shape.w} as PNG"
            + ("" if section.objective.separable else " and float"),
        ),
        ("evaluate", _contestants(recipe, steps, student_work)),
        ("publish", recipe.publish.repo or "by `distill-datasets publish`"),
    ]
    numbers = [
        ("one example", f"{shape.c} x {shape.h} x {shape.w} px"),
        ("originals", f"{len(size.originals)} of {', '.join(f'{h} x {w} px' for h, w in heights)}"),
        ("budget", f"{pixels:,} px = {pixels / (shape.k * shape.h * shape.w):.4g} per class"),
        ("trained pixel values", f"{values:,}"),
        ("float originals", f"{4 * values:,} bytes"),
        ("rows, before PNG", f"{size.examples * shape.c * shape.h * shape.w:,} bytes"),
        ("network", f"{inner_weights:,} weights, {flops_in_words(inner_flops)} per image"),
        ("student", f"{student_weights:,} weights, {flops_in_words(student_flops)} per image"),
        ("work of an outer step", flops_in_words(step_work)),
        (
            "work in all",
            flops_in_words(distill_work + _all_students(recipe) * student_work) + more,
        ),
        *kept,
    ]
    spent = lines(costs(recipe, shape, rows), flops_per_second)
    return Plan(stages, list(_parts(recipe, "")), numbers, spent)


def _moves(recipe: Recipe, shape: Shape, images: int) -> str:
    section = recipe.distill
    blocks = len(section.objective.blocks(shape.k, images // shape.k))
    if section.objective.separable:
        return f"{section.steps} steps of each of {blocks} blocks"
    return f"{section.steps} outer steps of {section.lanes} lane" + "s" * (section.lanes > 1)


def _labeling(recipe: Recipe, images: int) -> list[tuple[str, str]]:
    """The line of the relabel stage, when there is one."""
    if recipe.relabel is None:
        return []
    made = Layout(recipe.relabel, images, 1)
    told = f"{made.records:,} views in {made.units:,} batches; store: {recipe.relabel.store}"
    return [("relabel", told)]


def _squeezing(recipe: Recipe, shape: Shape) -> list[tuple[str, str]]:
    """The line of the squeeze stage, when there is one."""
    if recipe.squeeze is None:
        return []
    squeeze = recipe.squeeze
    if squeeze.weights:
        return [("squeeze", f"read {', '.join(squeeze.weights)}")]
    made = [cost(architecture, shape) for architecture in squeeze.architectures]
    rows = squeeze.epochs + 1 if squeeze.keep == "every" else 2
    work = flops_in_words(TRAINING * max(flops for flops, _ in made))
    stored = sum(4 * weights * rows for _, weights in made)
    return [
        (
            "squeeze",
            f"{squeeze.members} networks of {squeeze.epochs} epochs, {work} per image; "
            f"{stored:,} bytes",
        )
    ]


def _parts(section: BaseModel, prefix: str) -> list[tuple[str, str]]:
    """Every line of the recipe that names a part, with the class and file it resolves to."""
    lines = []
    for key in type(section).model_fields:
        value = getattr(section, key)
        if isinstance(value, Part):
            cls = type(value)
            file = Path(inspect.getfile(cls))
            top = Path(sys.modules[cls.__module__.partition(".")[0]].__path__[0]).parent
            lines.append(
                (f"{prefix}{key}: {value.name}", f"{cls.__name__}, {file.relative_to(top)}")
            )
        if isinstance(value, BaseModel):
            lines += _parts(value, f"{prefix}{key}.")
    return lines


def _contestants(recipe: Recipe, steps: int, work: float) -> str:
    settings = recipe.evaluate
    equal = ", ".join(contestants(recipe))
    text = f"{settings.students} students of {steps} steps for {equal}, {flops_in_words(work)} each"
    if "full" in settings.references:
        text += f"; {settings.full_students} of {settings.full_epochs} epochs for full"
    return text


def _all_students(recipe: Recipe) -> int:
    """Students trained on distilled or equally many real pixels."""
    return len(contestants(recipe)) * recipe.evaluate.students
