"""What a network trains on: published examples, or the whole source.

Shape suffixes: B images, C channels, H W pixels, K classes, N examples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from distill_datasets import targets
from distill_datasets.types import Batch, Task

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.normalization import InputSpace
    from distill_datasets.data.real import RealData


class Examples(ABC):
    """What a network trains on."""

    @property
    @abstractmethod
    def count(self) -> int:
        """Number of examples."""

    @abstractmethod
    def __call__(self, index_B: Tensor) -> Batch:
        """The examples `index_B` in the network's input space."""

    @abstractmethod
    def order(self, rng: torch.Generator, batch: int, turn: int) -> Tensor:
        """The examples of pass number `turn`, (N,), for batches of `batch`.

        `shuffled` is the usual one. The examples of a pass may be others than before.
        """

    @abstractmethod
    def loss(self, logits_BK: Tensor, targets_BK: Tensor) -> Tensor:
        """What a training step lowers, a mean over its examples."""


def shuffled(count: int, rng: torch.Generator, batch: int) -> Tensor:
    """An order of `count` examples; one batch of all keeps theirs."""
    return torch.arange(count) if batch >= count else torch.randperm(count, generator=rng)


@dataclass(frozen=True)
class Stored(Examples):
    """Examples held as they were published, made into the student's input batch by batch.

    Bytes stand for 255ths. `input_space` is None where the images already lie in it; `task` says
    what the targets are.
    """

    images_NCHW: Tensor
    targets_NK: Tensor
    input_space: InputSpace | None
    task: Task = "classes"

    @property
    def count(self) -> int:
        return len(self.images_NCHW)

    def __call__(self, index_B: Tensor) -> Batch:
        images_BCHW = self.images_NCHW[index_B]
        if not images_BCHW.is_floating_point():
            images_BCHW = images_BCHW.float() / 255
        if self.input_space is not None:
            images_BCHW = self.input_space.to_student(images_BCHW)
        return Batch(images_BCHW, self.targets_NK[index_B])

    def order(self, rng: torch.Generator, batch: int, turn: int) -> Tensor:
        return shuffled(self.count, rng, batch)

    def loss(self, logits_BK: Tensor, targets_BK: Tensor) -> Tensor:
        return targets.loss(self.task, logits_BK, targets_BK)

    def to(self, device: torch.device) -> Stored:
        """The same on a device."""
        space = None if self.input_space is None else self.input_space.to(device)
        return Stored(self.images_NCHW.to(device), self.targets_NK.to(device), space, self.task)


@dataclass(frozen=True)
class Whole(Examples):
    """The training images of the source, normalized batch by batch; drawn and judged as it says."""

    real: RealData

    @property
    def count(self) -> int:
        return len(self.real.train.labels_N)

    def __call__(self, index_B: Tensor) -> Batch:
        return self.real.select(index_B)

    def order(self, rng: torch.Generator, batch: int, turn: int) -> Tensor:
        if self.real.sampling == "uniform":
            return shuffled(self.count, rng, batch)
        return self.real.order(rng)

    def loss(self, logits_BK: Tensor, targets_BK: Tensor) -> Tensor:
        return self.real.loss(logits_BK, targets_BK)
