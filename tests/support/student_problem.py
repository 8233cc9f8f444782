"""A student of one layer, and examples that remember when they were asked for."""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from distill_datasets.evaluation.protocol import Evaluate
from distill_datasets.models.architecture import Architecture
from distill_datasets.optimizers import Sgd
from distill_datasets.training.examples import Examples, shuffled
from distill_datasets.types import Batch, Shape
from support.tiny import toy_real


class OneLayer(Architecture):
    """A linear classifier."""

    paper: ClassVar[str] = "none"
    name: Literal["one_layer"] = "one_layer"

    def build(self, shape: Shape) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(shape.c * shape.h * shape.w, shape.k))


class Rows(Examples):
    """Training examples that remember when they were asked for."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self.asked: list[list[int]] = []

    @property
    def count(self) -> int:
        return len(self._batch.images_BCHW)

    def __call__(self, index_B: Tensor) -> Batch:
        self.asked.append(index_B.tolist())
        return Batch(self._batch.images_BCHW[index_B], self._batch.targets_BK[index_B])

    def order(self, rng: torch.Generator, batch: int, turn: int) -> Tensor:
        return shuffled(self.count, rng, batch)

    def loss(self, logits_BK: Tensor, targets_BK: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits_BK, targets_BK)


def rows(count: int = 9) -> Rows:
    real = toy_real()
    return Rows(real.select(torch.arange(count)))


def settings(**fields: Any) -> Evaluate:  # noqa: ANN401
    return Evaluate(**{"network": OneLayer(), "steps": 6, "optimizer": Sgd(lr=0.05)} | fields)


def weights(module: nn.Module) -> Tensor:
    return parameters_to_vector(module.parameters()).detach()
