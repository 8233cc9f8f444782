"""An objective of random forces, and the outer loop run on it for a few steps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from distill_datasets.canvases.pixels import Pixels
from distill_datasets.data.real import RealData
from distill_datasets.distilled import Distilled
from distill_datasets.labels.learned import Learned
from distill_datasets.networks.network import Fresh, NetworkSource
from distill_datasets.objectives.objective import Estimate, Objective
from distill_datasets.runtime.draws import LaneDraw
from distill_datasets.runtime.processes import Runtime
from distill_datasets.stages.distill import Distill, OuterLoop
from support.tiny import CPU, NET, bits_of, distilled_of, toy_real


class Scattered(Objective):
    """Pulls everything that is trained toward 2, by forces whose size each lane draws."""

    paper: ClassVar[str] = "none"
    name: Literal["scattered"] = "scattered"

    def estimate(
        self, distilled: Distilled, networks: NetworkSource, real: RealData, draw: LaneDraw
    ) -> Estimate:
        force = float(torch.rand((), generator=draw("force")).mul(4).exp())
        grads = {
            name: force * (parameter.detach() - 2)
            for name, parameter in distilled.parameters.items()
        }
        loss = sum(float(grad.square().sum()) for grad in grads.values())
        return Estimate(loss, grads, {})


class Counting:
    """A bar that remembers, and stops the run after so many steps."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.done, self.losses = 0, list[float]()
        self._stop_after = stop_after

    def advance(self, steps: int, **numbers: float) -> None:
        self.done += steps
        self.losses += numbers.values()
        if self._stop_after is not None and len(self.losses) == self._stop_after:
            raise KeyboardInterrupt

    def expect(self, total: int) -> None:
        raise AssertionError("the number of outer steps is known")


def settings(**fields: Any) -> Distill:  # noqa: ANN401
    """Six outer steps of two lanes on one image per class."""
    given: dict[str, Any] = {
        "objective": Scattered(),
        "canvas": Pixels(ipc=1),
        "labels": Learned(),
        "networks": Fresh(network=NET),
        "steps": 6,
        "lanes": 2,
        "checkpoint_seconds": 0.0,
    }
    return Distill(**given | fields)


def fresh(settings: Distill, real: RealData) -> Distilled:
    return distilled_of(real, settings.canvas, settings.labels)


def run(
    settings: Distill,
    folder: Path,
    *,
    bar: Counting | None = None,
    preview: Callable[[int], None] = lambda step: None,
    real: RealData | None = None,
    cores: int = 2,
) -> Distilled:
    """One call of the program: everything is built anew, only `folder` lasts."""
    real = real or toy_real()
    distilled = fresh(settings, real)
    runtime = Runtime()
    runtime.cores = cores
    OuterLoop(
        settings,
        distilled,
        settings.networks.build(real.shape, CPU),
        real,
        seed=0,
        folder=folder,
        runtime=runtime,
        bar=bar or Counting(),
        preview=preview,
    ).run()
    return distilled


def same_bits(left: Distilled, right: Distilled) -> bool:
    ours, theirs = bits_of(left), bits_of(right)
    return all(torch.equal(ours[name], theirs[name]) for name in ours)
