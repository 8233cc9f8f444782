"""What bfloat16 does to gradients: `python -m tests.benchmarks.precisions SOURCE --output FILE`.

The gradient of the trained pixels after one outer step on real images, a ConvNet-3 of width 128,
beside the same in float64: the cosine of the two and how much longer or shorter it is, for float32
and for whatever an objective computes in bfloat16. What students make of it is another question,
which `tests.benchmarks.minutes` answers.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from distill_datasets.canvases.pixels import Pixels
from distill_datasets.data.source import Source, open_source
from distill_datasets.models.convnets import ConvNet
from distill_datasets.networks.network import FreshSource
from distill_datasets.objectives.distribution import Distribution
from distill_datasets.objectives.gradient import Gradient
from distill_datasets.objectives.objective import Objective
from distill_datasets.objectives.regression import Regression
from distill_datasets.objectives.trajectory import Trajectory
from distill_datasets.objectives.unrolled import Unrolled
from distill_datasets.optimizers import Adam
from distill_datasets.runtime.precision import Precision
from distill_datasets.runtime.processes import Run, Runtime
from distill_datasets.stages.source import load_source
from tests.benchmarks.data import distilled_set
from tests.benchmarks.outer_steps import CPU, DSA, FLIP_ROTATE, OnTheirWay, Problem


class Asked(NamedTuple):
    """An objective by the precision of what it may compute in bfloat16."""

    words: str
    ipc: int
    objective: Callable[[Precision], Objective]


def trajectory(steps: int) -> Callable[[Precision], Objective]:
    return lambda precision: Trajectory(
        steps=steps, step_size=0.01, learn_step_size=False, augment=DSA, precision=precision
    )


ASKED = (
    Asked("DM, real images", 1, lambda precision: Distribution(
        real_batch=128, augment=DSA, real_precision=precision)),
    Asked("DSA, real images", 1, lambda precision: Gradient(
        real_batch=128, augment=DSA, real_precision=precision)),
    Asked("MTT, 10 steps on 10 images", 1, trajectory(10)),
    Asked("MTT, 3 steps on 100 images", 10, trajectory(3)),
    Asked("PoDD, 20 steps before a window of 5", 1, lambda precision: Unrolled(
        inner_steps=25, window=5, placement="end", real_batch=256, optimizer=Adam(lr=0.001),
        augment=FLIP_ROTATE, warm_up_precision=precision)),
    Asked("ridge regression, networks", 1, lambda precision: Regression(
        real_batch=256, augment=FLIP_ROTATE, precision=precision)),
)  # fmt: skip


def compared(got: Tensor, expected: Tensor) -> tuple[float, float]:
    """The cosine of two gradients, and the ratio of their lengths."""
    one, other = got.double().flatten(), expected.double().flatten()
    return float(F.cosine_similarity(one, other, dim=0)), float(one.norm() / other.norm())


def rows(source: str, folder: Path, width: int) -> Iterator[str]:
    """A line of the table for each objective."""
    run = Run(0, folder, Runtime(), shown=False)
    real = load_source(open_source(Source(dataset=source)), run).real
    networks = FreshSource(ConvNet(depth=3, width=width), real.shape, CPU)
    for words, ipc, objective in ASKED:
        canvas = Pixels(ipc=ipc, bounds="clip", init="real")
        made = Problem(real, networks, distilled_set(real, canvas), width)

        def gradient(
            made: Problem, precision: Precision, objective: Callable[[Precision], Objective]
        ) -> Tensor:
            asked = objective(precision)
            if asked.name == "trajectory":
                made = replace(made, networks=OnTheirWay(made.networks))
            loss, grad = made.ours(asked)()
            assert math.isfinite(loss)
            return grad

        expected = gradient(made.double(), "float32", objective)
        cells = [
            f"{cosine:.6f}, {ratio:.4f}"
            for cosine, ratio in (
                compared(gradient(made, precision, objective), expected)
                for precision in ("float32", "bfloat16")
            )
        ]
        yield f"| {words} | {' | '.join(cells)} |"


def main(arguments: list[str] | None = None) -> None:
    """Write the table, line by line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.precisions", description=__doc__
    )
    parser.add_argument("source", help="a Hub id or a folder of images")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the source is kept")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args(arguments)
    with asked.output.open("x", encoding="utf-8") as file:
        for line in (
            "| objective, and what is in bfloat16 | float32 | bfloat16 |",
            "|---|---|---|",
            *rows(asked.source, asked.runs, asked.width),
        ):
            print(line, file=file, flush=True)


if __name__ == "__main__":
    main()
