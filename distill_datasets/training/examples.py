"""What a student trains on: published examples, or the whole source.

Shape suffixes: B images, C channels, H W pixels, K classes, N examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F

from distill_datasets.types import Batch

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.real import RealData


class Examples(Protocol):
    """What a student trains on."""

    @property
    def count(self) -> int:
        """Number of examples."""
        ...

    def __call__(self, index_B: Tensor) -> Batch:
        """The examples `index_B` in the student's input space."""
        ...

    def order(self, rng: torch.Generator, batch: int, turn: int = 0) -> Tensor:
        """The examples of pass number `turn`, (N,), for batches of `batch`.

        One batch of all keeps their order. The examples of a pass may be others than before.
        """
        if batch >= self.count:
            return torch.arange(self.count)
        return torch.randperm(self.count, generator=rng)

    def loss(self, logits_BK: Tensor, targets_BK: Tensor) -> Tensor:
        """What a training step lowers, a mean over its examples."""
        return F.cross_entropy(logits_BK, targets_BK)


@dataclass(frozen=True)
class Stored(Examples):
    """Examples held as they were published, made into the student's input batch by batch.

    `unit` is the value that stands for 1: 255 for 8-bit images, 1 for floats.
    """

    images_NCHW: Tensor
    targets_NK: Tensor
    mean_C: Tensor
    std_C: Tensor
    unit: float

    @property
    def count(self) -> int:
        return len(self.images_NCHW)

    def __call__(self, index_B: Tensor) -> Batch:
        pixels_BCHW = self.images_NCHW[index_B].float() / self.unit
        images_BCHW = (pixels_BCHW - self.mean_C[:, None, None]) / self.std_C[:, None, None]
        return Batch(images_BCHW, self.targets_NK[index_B])

    def to(self, device: torch.device) -> Stored:
        """The same on a device."""
        return Stored(
            self.images_NCHW.to(device),
            self.targets_NK.to(device),
            self.mean_C.to(device),
            self.std_C.to(device),
            self.unit,
        )


@dataclass(frozen=True)
class Whole(Examples):
    """The training images of the source, normalized batch by batch; drawn and judged as it says."""

    real: RealData

    @property
    def count(self) -> int:
        return len(self.real.train.labels_N)

    def __call__(self, index_B: Tensor) -> Batch:
        return self.real.select(index_B)

    def order(self, rng: torch.Generator, batch: int, turn: int = 0) -> Tensor:
        if self.real.sampling == "uniform":
            return super().order(rng, batch)
        return self.real.order(rng)

    def loss(self, logits_BK: Tensor, targets_BK: Tensor) -> Tensor:
        return self.real.cross_entropy(logits_BK, targets_BK)
