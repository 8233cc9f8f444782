"""Every objective as a tiny problem that can be put on a device and in a precision.

A problem on an accelerator is the one on the CPU: draws are made on the CPU everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from distill_datasets.canvases.canvas import Canvas
from distill_datasets.canvases.pixels import Pixels
from distill_datasets.data.decoding import Split
from distill_datasets.data.normalization import InputSpace
from distill_datasets.data.real import RealData
from distill_datasets.distilled import Distilled
from distill_datasets.labels.fixed import Area
from distill_datasets.labels.labels import Labels
from distill_datasets.labels.learned import Learned, Vectors
from distill_datasets.networks.network import (
    FlatNetwork,
    FreshSource,
    NetworkSource,
    Sampled,
    TeacherNetwork,
    Teachers,
)
from distill_datasets.objectives.distribution import Distribution
from distill_datasets.objectives.gradient import Gradient
from distill_datasets.objectives.linear import Linear
from distill_datasets.objectives.objective import Estimate, Objective
from distill_datasets.objectives.recover import Recover
from distill_datasets.objectives.regression import Regression
from distill_datasets.objectives.trajectory import Trajectory
from distill_datasets.objectives.unrolled import Unrolled
from distill_datasets.optimizers import Adam
from distill_datasets.runtime.draws import LaneDraw, rng_for
from distill_datasets.selection.random import Real
from distill_datasets.types import Shape
from distill_datasets.views.augment import Augment
from support.probe_problem import probed
from support.recover_problem import block, residual
from support.tiny import NET, POSTER, DoubleNetworks, DoubleReal, distilled_of, toy_real

Kind = Literal["float64", "float32", "bfloat16"]
SHAPE = Shape(3, 8, 8, 4)
MOVED = Augment(operations=["color", "crop", "cutout", "flip", "scale", "rotate"])
DRAW = LaneDraw(3, 0, 0, 10)


class OnTheirWay(NetworkSource):
    """Fresh networks that an expert went a little way from."""

    def __init__(self, device: torch.device) -> None:
        self._fresh = FreshSource(NET, SHAPE, device)

    def sample(self, draw: LaneDraw) -> Sampled:
        network = self._fresh.sample(draw)
        assert isinstance(network, FlatNetwork)
        way_P = torch.randn(network.weights_P.shape, generator=draw("way")) / 20
        network.target_P = network.weights_P + way_P.to(network.weights_P.device)
        return network


class DoubleExperts(DoubleNetworks):
    """The same in double precision."""

    def sample(self, draw: LaneDraw) -> Sampled:
        network = super().sample(draw)
        assert network.target_P is not None
        network.target_P = network.target_P.double()
        return network


@dataclass(frozen=True)
class Problem:
    """What an objective is a function of, on a device."""

    objective: Objective
    distilled: Distilled
    networks: Any
    real: Any

    def estimate(self, draw: LaneDraw = DRAW) -> Estimate:
        return self.objective.estimate(self.distilled, self.networks, self.real, draw)

    def gradient(self) -> Tensor:
        """Of everything that is trained, in one vector on the CPU."""
        grads = self.estimate().grads.values()
        return torch.cat([grad.detach().cpu().double().flatten() for grad in grads])


def on_device(real: RealData, device: torch.device, double: bool = False) -> RealData:
    """Real images there, in the precision that batches are to have."""
    splits = (
        Split(split.images_NCHW.to(device), split.labels_N.to(device))
        for split in (real.train, real.test)
    )
    kind = DoubleReal if double else RealData
    return kind(*splits, real.class_names, real.normalization.to(device), real.shape)


def _joint(
    objective: Objective, canvas: Canvas, labels: Labels, step_sizes: tuple[float, ...] = ()
) -> Callable[[torch.device, bool, Path], Problem]:
    """A problem of drawn networks on toy images."""

    def made(device: torch.device, double: bool, folder: Path) -> Problem:
        real = toy_real(SHAPE)
        distilled = distilled_of(real, canvas, labels, rng_for(1, "canvas"), step_sizes)
        distilled = distilled.to(device, torch.float64 if double else None)
        if isinstance(objective, Trajectory):
            networks: NetworkSource = OnTheirWay(device)
            networks = DoubleExperts(networks) if double else networks
        else:
            networks = FreshSource(NET, SHAPE, device)
            networks = DoubleNetworks(networks) if double else networks
        return Problem(objective, distilled, networks, on_device(real, device, double))

    return made


def _recover(precision: str) -> Callable[[torch.device, bool, Path], Problem]:
    def made(device: torch.device, double: bool, folder: Path) -> Problem:
        objective = Recover.model_validate({"bn_weight": 0.01, "precision": precision})
        module, kind = residual(), torch.float64 if double else torch.float32
        distilled = block([0, 1, 2, 3]).to(device, kind)
        space = distilled.space
        distilled.space = InputSpace(space.mean_C.to(kind), space.std_C.to(kind))
        teachers = Teachers([TeacherNetwork(module.to(device, kind))])
        return Problem(objective, distilled, teachers, None)

    return made


def _linear(device: torch.device, double: bool, folder: Path) -> Problem:
    real, backbone = probed(folder)
    distilled = distilled_of(real, Pixels(ipc=1, init=Real()), Area()).to(device)
    moved = on_device(real, device)
    moved.features.update(real.features)
    networks = Teachers([TeacherNetwork(backbone.load(device))])
    return Problem(Linear(crop=None, flip=False), distilled, networks, moved)


def unrolled(**changes: object) -> Unrolled:
    """A few steps on some crops of a poster."""
    fields = {
        "inner_steps": 5, "window": 3, "placement": "end", "batch": 7, "real_batch": 24,
        "optimizer": Adam(lr=0.01), "augment": MOVED, "chunk": 5,
    }  # fmt: skip
    return Unrolled.model_validate(fields | changes)


PIXELS = Pixels(ipc=2, init=Real())
TWO = {"real_batch": 12, "augment": MOVED}
PROBLEMS: dict[str, Callable[[torch.device, bool, Path], Problem]] = {
    "unrolled, graph": _joint(unrolled(), POSTER, Learned()),
    "unrolled, recompute": _joint(unrolled(differentiate="recompute"), POSTER, Learned()),
    "distribution": _joint(Distribution.model_validate(TWO), PIXELS, Area()),
    "distribution, bfloat16": _joint(
        Distribution.model_validate({"real_precision": "bfloat16", **TWO}), PIXELS, Area()
    ),
    "gradient": _joint(Gradient.model_validate(TWO), PIXELS, Area()),
    "trajectory": _joint(
        Trajectory(steps=4, batch=5, augment=MOVED), PIXELS, Learned(), step_sizes=(0.05,)
    ),
    "unrolled, recompute, bfloat16": _joint(
        unrolled(differentiate="recompute", warm_up_precision="bfloat16"), POSTER, Learned()
    ),
    "gradient, bfloat16": _joint(
        Gradient.model_validate({"real_precision": "bfloat16", **TWO}), PIXELS, Area()
    ),
    "trajectory, bfloat16": _joint(
        Trajectory(steps=4, batch=5, augment=MOVED, precision="bfloat16"),
        PIXELS,
        Learned(),
        step_sizes=(0.05,),
    ),
    "regression": _joint(Regression(real_batch=30, ridge=0.01, augment=MOVED), PIXELS, Vectors()),
    "regression, bfloat16": _joint(
        Regression(real_batch=30, ridge=0.01, augment=MOVED, precision="bfloat16"),
        PIXELS,
        Vectors(),
    ),
    "recover": _recover("float32"),
    "recover, bfloat16": _recover("bfloat16"),
    "linear": _linear,
}
"""By the name of the objective, and of what it computes in a lower precision."""
