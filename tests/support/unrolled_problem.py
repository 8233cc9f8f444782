"""A tiny meta-gradient and its reference: a central finite difference in double precision.

Only tracked steps are differentiated, so the warm-up has to see unperturbed values: `AfterWarmUp`
takes care of that.
"""

import copy

import torch
from torch import Tensor

from distill_datasets.distilled import Distilled
from distill_datasets.networks.network import NetworkSource
from distill_datasets.objectives.objective import Estimate
from distill_datasets.objectives.unrolled import Unrolled
from distill_datasets.optimizers import Adam, Sgd
from distill_datasets.runtime.draws import LaneDraw, rng_for
from distill_datasets.types import Batch
from distill_datasets.views.augment import Augment
from support.tiny import double_distilled, double_networks, double_real

WARM_UP = 3
WINDOW = 4
PIXELS, CELLS = "canvas.trained_CHW", "labels.cells_GK"
FLIP_ROTATE = Augment(operations=["flip", "rotate"])
PERTURBATION = 1e-6


class Clock:
    """A `Draw` that remembers which inner step was asked for last."""

    step, lane = 0, 0

    def __init__(self) -> None:
        self.inner_step = 0

    def __call__(self, *what: str | int) -> torch.Generator:
        if what[0] == "inner":
            self.inner_step = int(what[1])
        return rng_for(3, *what)

    def always(self, *what: str | int) -> torch.Generator:
        return rng_for(3, *what)


class AfterWarmUp(Distilled):
    """Shows its own values in tracked steps, and those of `before` during the warm-up."""

    def __init__(self, own: Distilled, before: Distilled, clock: Clock) -> None:
        vars(self).update(vars(own))
        self._before, self._clock = before, clock

    def __call__(self, index_B: Tensor) -> Batch:
        if self._clock.inner_step < WARM_UP:
            return self._before(index_B)
        return super().__call__(index_B)


class Problem:
    """Everything that a meta-gradient is a function of, tiny and in double precision."""

    def __init__(self) -> None:
        self.real = double_real()
        self.networks: NetworkSource = double_networks()
        self.distilled = double_distilled(self.real)

    def estimate(self, objective: Unrolled, draw: LaneDraw | None = None) -> Estimate:
        return objective.estimate(self.distilled, self.networks, self.real, draw or Clock())

    def derivative(self, objective: Unrolled, name: str, direction: Tensor) -> float:
        """The derivative of the loss along a direction of one parameter, without autograd."""
        losses = []
        for size in (PERTURBATION, -PERTURBATION):
            moved, clock = copy.deepcopy(self.distilled), Clock()
            with torch.no_grad():
                moved.parameters[name].add_(direction, alpha=size)
            shown = AfterWarmUp(moved, self.distilled, clock)
            losses.append(objective.estimate(shown, self.networks, self.real, clock).loss)
        return (losses[0] - losses[1]) / (2 * PERTURBATION)

    def error(self, objective: Unrolled, name: str, grads: dict[str, Tensor]) -> float:
        """How far `grads` is from the derivative, relative to it: the worst of two directions."""
        errors = []
        for seed in range(2):
            rng = rng_for(seed, "direction")
            direction = torch.randn(grads[name].shape, generator=rng, dtype=torch.float64)
            derivative = self.derivative(objective, name, direction)
            errors.append(
                abs(float((grads[name] * direction).sum()) - derivative) / abs(derivative)
            )
        return max(errors)


def unrolled(**changes: object) -> Unrolled:
    """Three steps of warm-up, then a window of four; `changes` replace fields."""
    fields: dict[str, object] = {
        "inner_steps": WARM_UP + WINDOW,
        "window": WINDOW,
        "placement": "end",
        "batch": 7,
        "real_batch": 24,
        "optimizer": Adam(lr=0.01),
        "augment": FLIP_ROTATE,
        "chunk": 10,
    }
    return Unrolled.model_validate(fields | changes)


RULES = {"adam": Adam(lr=0.01), "sgd": Sgd(lr=0.1, momentum=0.9, weight_decay=0.01)}
