"""What it took to make a published folder, by the recipe that it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill_datasets.errors import DistillError
from distill_datasets.export.folder import recipe_of
from distill_datasets.models.flops import cost
from distill_datasets.planning.costs import costs, work_of
from distill_datasets.recipe import Recipe, recipe_from
from distill_datasets.stages.teacher_training import squeeze_work
from distill_datasets.types import Shape


def construction(folder: Path, shape: Shape, rows: int) -> dict[str, Any] | None:
    """Floating-point operations of every stage, teachers and experts included.

    Args:
        folder: a published folder.
        shape: of a real example.
        rows: training images of the source.

    Returns:
        `stages`, the operations by the stage, None where an objective does not count its own; and
        `total`, None where one of them is. None for a set that no recipe of this library made.
    """
    try:
        recipe = recipe_from(recipe_of(folder), [])
        stages = stage_work(recipe, shape, rows)
    except DistillError:
        return None
    known = [work for work in stages.values() if work is not None]
    return {"stages": stages, "total": sum(known) if len(known) == len(stages) else None}


def stage_work(recipe: Recipe, shape: Shape, rows: int) -> dict[str, float | None]:
    """Floating-point operations of every stage before students, None where nobody counts them."""
    if recipe.distill.objective.separable:
        planned = costs(recipe, shape, rows)
        return {
            each.stage: each.work
            for each in planned
            if each.work != 0 and not each.stage.startswith("evaluate")
        }
    stages: dict[str, float | None] = {}
    squeeze = recipe.squeeze
    if squeeze is not None and not squeeze.weights:
        forward = sum(cost(each, shape)[0] for each in squeeze.architectures)
        stages["squeeze"] = squeeze_work(squeeze, forward, rows)
    examples = recipe.distill.canvas.size(shape).examples
    stages["distill"] = work_of(recipe, shape, examples).distill
    return stages
