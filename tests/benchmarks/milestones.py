"""Accuracy on the way: `python -m tests.benchmarks.milestones RECIPE --marks 100 200 --output DIR`.

One run is distilled; after each of these outer steps fresh students are trained on what is there,
rounded to 8 bits, and what they score is written down at once. A run that is cut short has brought
every mark that it reached, and the same command goes on from the state it has saved.

Shape suffixes: N distilled examples.
"""

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import torch

from distill_datasets.data.source import open_source
from distill_datasets.distilled import Distilled
from distill_datasets.errors import Interrupted
from distill_datasets.files.artifacts import read_json, write_json
from distill_datasets.media.image import to_bytes
from distill_datasets.recipe import Recipe, load_recipe
from distill_datasets.runtime.draws import draws
from distill_datasets.runtime.memory import images_at_once
from distill_datasets.runtime.processes import Run, Runtime
from distill_datasets.stages.distill import OuterLoop
from distill_datasets.stages.source import LoadedSource, load_source
from distill_datasets.stages.start import started
from distill_datasets.training.examples import Stored
from distill_datasets.training.metrics import accuracy
from distill_datasets.training.student import train_student
from tests.benchmarks.__main__ import environment

FILE = "milestones.json"


@dataclasses.dataclass
class Counted:
    """How many outer steps are done."""

    steps: int = 0

    def advance(self, steps: int, **numbers: float) -> None:
        self.steps += steps

    def expect(self, total: int) -> None:
        raise AssertionError("the number of outer steps is known")


def measured(recipe: Recipe, source: LoadedSource, distilled: Distilled, run: Run) -> list[float]:
    """The accuracy of every fresh student of what is distilled by now."""
    device, settings = run.runtime.device, recipe.evaluate
    index_N = torch.arange(distilled.count, device=device)
    with torch.no_grad():
        pixels_NCHW, targets_NK = distilled.pixels(index_N), distilled.targets(index_N)
    examples = Stored(to_bytes(pixels_NCHW), targets_NK, distilled.space)

    def score(student: int) -> float:
        module = train_student(
            settings,
            settings.duration(distilled.count),
            examples,
            source.real.shape,
            draws(run.seed, "milestones", student),
            device,
        )
        at_once = images_at_once(source.real.shape, device)
        return accuracy(module, source.real.test_batches(at_once))

    with run.runtime.pool(settings.students) as run_units:
        return run_units(score, list(range(settings.students)))


def main(arguments: list[str] | None = None) -> None:
    """Distill up to every mark, measure there, and write the file anew each time."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.milestones")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="SECTION.KEY=VALUE")
    parser.add_argument("--profile")
    parser.add_argument("--marks", nargs="+", type=int, required=True, help="outer steps, rising")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="save the state and end after so many"
    )
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args(arguments)
    ends_at = time.monotonic() + asked.seconds
    recipe, runtime = load_recipe(asked.recipe, asked.overrides, profile=asked.profile), Runtime()
    if recipe.squeeze is not None:
        raise SystemExit("milestones: expected a recipe without squeeze")
    run = Run(recipe.seed, asked.output, runtime, shown=False)
    path = asked.output / FILE
    points: list[dict[str, Any]] = read_json(path)["points"] if path.exists() else []
    seconds = sum(point["seconds"] for point in points)
    with runtime.reproducible():
        source = load_source(open_source(recipe.source), run)
        settings = recipe.distill
        distilled = started(settings.canvas, settings.labels, settings.objective, source, run).to(
            runtime.device
        )
        networks = settings.networks.build(source.real.shape, runtime.device)
        for mark in [
            mark for mark in asked.marks if mark > max([0, *(p["steps"] for p in points)])
        ]:
            bar, began = Counted(), time.monotonic()
            loop = OuterLoop(
                settings, distilled, networks, source.real, seed=recipe.seed, folder=asked.output,
                runtime=runtime, bar=bar, preview=lambda step: None,
            )  # fmt: skip
            loop.run(lambda bar=bar, mark=mark: bar.steps >= mark or time.monotonic() > ends_at)
            if bar.steps < mark:
                print(f"saved after {bar.steps} outer steps", file=sys.stderr)
                return
            spent = time.monotonic() - began
            accuracies = measured(recipe, source, distilled, run)
            points.append({"steps": mark, "seconds": spent, "accuracies": accuracies})
            seconds += spent
            known = environment(str(runtime.device), runtime.cores)
            write_json(path, {"environment": known, "recipe": recipe.name, "points": points})
            mean = sum(accuracies) / len(accuracies)
            print(f"{mark} outer steps, {seconds:.0f} s: {100 * mean:.1f} %", flush=True)


if __name__ == "__main__":
    try:
        main()
    except Interrupted as stop:
        raise SystemExit(str(stop)) from None
