"""What a run would do, printed without doing it: stages, parts, sizes and work."""

import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from distill_datasets.data.source import peek, resolve
from distill_datasets.pipeline import check_parts, check_teaching
from distill_datasets.recipe import Recipe
from distill_datasets.students import Evaluate
from distill_datasets.types import Architecture, Part, Shape


@dataclass(frozen=True)
class Plan:
    """Lines to print: the stages, the parts, and the numbers."""

    stages: list[tuple[str, str]]
    parts: list[tuple[str, str]]
    numbers: list[tuple[str, str]]


def plan(recipe: Recipe, dataset: Any = None) -> Plan:  # noqa: ANN401
    """Work out what `run` would do; reads a few rows of the source and trains nothing.

    Raises:
        DistillError: whatever `run` would refuse before its first stage.
    """
    provenance = resolve(recipe.source, dataset)
    shape, names = peek(recipe.source, dataset)
    check_parts(recipe, shape)
    check_teaching(recipe, shape, names)
    size = recipe.distill.canvas.size(shape)
    pixels = sum(height * width for height, width in size.originals)
    values = pixels * shape.c
    section, measured = recipe.distill, recipe.evaluate
    network = section.networks.architecture(recipe.squeeze.network if recipe.squeeze else None)
    inner_flops, inner_weights = cost(network, shape)
    student_flops, student_weights = cost(measured.network, shape)
    steps = measured.duration(size.examples)
    lane_work = section.objective.work(inner_flops, size.examples, shape.k)
    lane_work += section.networks.work(inner_flops, size.examples)
    step_work = section.lanes * lane_work
    distill_work = section.steps * step_work
    student_work = student_flops * 2.93 * steps * min(measured.batch, size.examples)
    revision = f" at {provenance.revision[:12]}" if provenance.revision else ""
    heights = sorted(set(size.originals))
    # how many rows the source has shows only when it is read
    uncounted = ["the squeeze stage"] if recipe.squeeze else []
    uncounted += ["the full reference"] if "full" in measured.references else []
    more = "".join(f" and {what}" for what in uncounted)
    lanes = f"{section.lanes} lane" + ("s" if section.lanes > 1 else "")
    stages = [
        ("source", f"read {provenance.dataset}{revision}; {len(names)} classes"),
        *_squeezing(recipe, shape),
        ("distill", f"{section.steps} outer steps of {lanes}, {_flops(distill_work)}"),
        ("export", f"{size.examples} rows of {shape.c} x {shape.h} x {shape.w} as PNG and float"),
        ("evaluate", _contestants(measured, steps, student_work)),
        ("publish", recipe.publish.repo or "by `distill-datasets publish`"),
    ]
    numbers = [
        ("one example", f"{shape.c} x {shape.h} x {shape.w} px"),
        ("originals", f"{len(size.originals)} of {', '.join(f'{h} x {w} px' for h, w in heights)}"),
        ("budget", f"{pixels:,} px = {pixels / (shape.k * shape.h * shape.w):.4g} per class"),
        ("trained pixel values", f"{values:,}"),
        ("float originals", f"{4 * values:,} bytes"),
        ("rows, before PNG", f"{size.examples * shape.c * shape.h * shape.w:,} bytes"),
        ("network", f"{inner_weights:,} weights, {_flops(inner_flops)} per image"),
        ("student", f"{student_weights:,} weights, {_flops(student_flops)} per image"),
        ("work of an outer step", _flops(step_work)),
        ("work in all", _flops(distill_work + _all_students(measured) * student_work) + more),
    ]
    return Plan(stages, list(_parts(recipe, "")), numbers)


def _squeezing(recipe: Recipe, shape: Shape) -> list[tuple[str, str]]:
    """The line of the squeeze stage, when there is one."""
    if recipe.squeeze is None:
        return []
    flops, weights = cost(recipe.squeeze.network, shape)
    rows = recipe.squeeze.epochs + 1 if recipe.squeeze.keep == "every" else 2
    stored = 4 * weights * rows * recipe.squeeze.members
    return [
        (
            "squeeze",
            f"{recipe.squeeze.members} networks of {recipe.squeeze.epochs} epochs, "
            f"{_flops(2.93 * flops)} per image; {stored:,} bytes",
        )
    ]


def cost(architecture: Architecture, shape: Shape) -> tuple[float, int]:
    """Floating-point operations of one forward pass on one image, and the number of weights."""
    with torch.device("meta"):
        module = architecture.build(shape)
        image = torch.empty(1, shape.c, shape.h, shape.w)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(image)
    return float(counter.get_total_flops()), _count(module)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


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


def _contestants(settings: Evaluate, steps: int, work: float) -> str:
    rows = ["default", *(["exact"] if settings.exact else []), *settings.references]
    equal = ", ".join(row for row in rows if row != "full")
    text = f"{settings.students} students of {steps} steps for {equal}, {_flops(work)} each"
    if "full" in settings.references:
        text += f"; {settings.full_students} of {settings.full_epochs} epochs for full"
    return text


def _all_students(settings: Evaluate) -> int:
    """Students trained on distilled or equally many real pixels."""
    rows = 1 + settings.exact + len([row for row in settings.references if row != "full"])
    return rows * settings.students


def _flops(count: float) -> str:
    for unit, size in (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} FLOP"
