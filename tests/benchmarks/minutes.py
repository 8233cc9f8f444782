"""Accuracy after equal minutes of distilling: `python -m tests.benchmarks.minutes RECIPE ...`.

Settings of one recipe are compared at equal time. The seconds of an outer step are measured first,
each point then distills anew with as many steps as fit, and fresh students are trained on what is
published. For every side a JSON file is written, as `tests.benchmarks.curves` reads it.

    python -m tests.benchmarks.minutes recipes/mnist/dm-ipc1.yaml --minutes 0.5 1 2 --seeds 0 1 \\
        --side paper --side herding distill.canvas.init=herding --output runs/minutes
"""

import argparse
import json
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from distill_datasets.data.source import open_source
from distill_datasets.files.artifacts import write_json
from distill_datasets.pipeline.run import distill, run
from distill_datasets.recipe import Recipe, load_recipe
from distill_datasets.runtime.processes import Run, Runtime
from distill_datasets.stages.source import load_source
from tests.benchmarks.curves import draw
from tests.benchmarks.worker import timed

PROBES = (2, 8)
"""Outer steps of the two runs whose difference times a step; the second grows where it is quick."""
LEAST_SHARE = 0.03
"""Of the longest time asked for, between the two: a first step does more than others."""
OWN = ("evaluate.references=[]", "evaluate.exact=false", "evaluate.beyond=null")
"""Nothing but the students of the published rows."""


def side_of(words: list[str]) -> tuple[str, list[str]]:
    """A side's name, which becomes that of a file, and its overrides."""
    name, *overrides = words
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
        raise SystemExit(f"--side: got {name!r}, expected a name in lower case, then overrides")
    return name, overrides


def distilled_in(recipe: Recipe, runs: Path, runtime: Runtime) -> float:
    """Seconds of distilling, undisturbed by neighbors; what was distilled stays in `runs`."""
    own = runs / recipe.name
    if recipe.squeeze is not None:
        raise SystemExit("--side: compares recipes without squeeze, whose time would be left out")
    own.mkdir(parents=True)  # a resumed run would look faster than it is
    with runtime.reproducible():
        source = load_source(
            open_source(recipe.source), Run(recipe.seed, runs, runtime, shown=False)
        )
        return timed(
            lambda: distill(recipe, source, None, Run(recipe.seed, own, runtime, shown=False)),
            runtime.device,
        )["undisturbed_seconds"]


def point(recipe: Recipe, runs: Path, runtime: Runtime) -> dict[str, Any]:
    """Distill, then evaluate; the accuracy is that of students of the published rows."""
    seconds = distilled_in(recipe, runs, runtime)
    (row, *_) = run(recipe, runs=runs, quiet=True).results
    assert row["from"] == "default"
    return {"steps": recipe.distill.steps, "seconds": seconds, "accuracy": row["accuracy"]["mean"]}


def unused(name: str, runs: Path) -> str:
    """The name with a number behind it that no run has yet."""
    number = sum(1 for folder in runs.glob(f"{name}.*") if folder.is_dir())
    return f"{name}.{number}"


def curve(
    asked: argparse.Namespace, side: str, overrides: list[str], runtime: Runtime
) -> dict[str, Any]:
    """All points of a side."""

    def recipe(steps: int, seed: int) -> Recipe:
        name = unused(f"{side}-{steps}-{seed}", asked.output)
        settings = [f"name={name}", f"seed={seed}", f"distill.steps={steps}"]
        return load_recipe(
            asked.recipe,
            [*asked.set, *overrides, *OWN, *settings],
            profile=asked.profile,
        )

    few, steps = distilled_in(recipe(PROBES[0], 0), asked.output, runtime), PROBES[1]
    least = LEAST_SHARE * 60 * max(asked.minutes)
    while (more := distilled_in(recipe(steps, 0), asked.output, runtime) - few) < least:
        steps *= 4
    each = more / (steps - PROBES[0])
    print(f"{side}: {each:.3f} s an outer step", file=sys.stderr, flush=True)
    found: dict[str, Any] = {"name": side, "minutes": [], "accuracy": [], "std": [], "points": []}
    for minutes in asked.minutes:
        steps = max(1, round(minutes * 60 / each))
        points = [
            point(recipe(steps, seed), asked.output, runtime) | {"seed": seed}
            for seed in asked.seeds
        ]
        values = [one["accuracy"] for one in points]
        found["minutes"].append(statistics.fmean(one["seconds"] for one in points) / 60)
        found["accuracy"].append(statistics.fmean(values))
        found["std"].append(statistics.stdev(values) if len(values) > 1 else None)
        found["points"] += points
        print(
            f"{side}: {found['minutes'][-1]:.2f} min, {steps} steps, "
            f"{', '.join(f'{100 * value:.1f}' for value in values)} %",
            file=sys.stderr,
            flush=True,
        )
    return found


def main(arguments: list[str] | None = None) -> None:
    """Measure all sides, write a file for each and the picture of all."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.minutes", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--profile")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="for all sides")
    parser.add_argument(
        "--side", nargs="+", action="append", required=True, metavar=("NAME", "KEY=VALUE")
    )
    parser.add_argument("--minutes", nargs="+", type=float, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of runs and results")
    asked = parser.parse_args(arguments)
    sides = [side_of(words) for words in asked.side]
    taken = [name for name, _ in sides if (asked.output / f"{name}.json").exists()]
    if taken:
        raise SystemExit(f"{asked.output}: already holds {taken[0]}.json; choose another --output")
    runtime = Runtime()
    environment = {
        "recipe": asked.recipe.name,
        "date": time.strftime("%Y-%m-%d"),
        "device": str(runtime.device),
        "threads": runtime.cores,
        "torch": torch.__version__,
    }
    curves = []
    for name, overrides in sides:
        found = curve(asked, name, overrides, runtime) | {"environment": environment}
        write_json(asked.output / f"{name}.json", found)
        curves.append(found)
    draw(curves).save(asked.output / "minutes.png")
    print(json.dumps({one["name"]: one["accuracy"] for one in curves}))


if __name__ == "__main__":
    main()
