"""What is distilled as torch modules: a canvas, labels and step sizes, and all of them together.

Shape suffixes: B a batch, N distilled examples, K classes, C channels, H W pixels, G cells of the
label grid, T step sizes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill_datasets.types import Batch


class CanvasModule(nn.Module, ABC):
    """Trainable tensors decoded into displayable images.

    `mix_NG`: the share of each example's area that lies on each cell; `cells_G`: whose cell it is.
    """

    examples_are_originals: ClassVar[bool]
    count: int
    mix_NG: Tensor
    cells_G: Tensor

    @abstractmethod
    def forward(self, index_B: Tensor) -> Tensor:
        """Training examples `index_B` as images in [0, 1], shape (B, C, H, W), differentiable."""

    def project(self) -> None:
        """Move the trained values back into their domain; called after every outer step."""
        return

    @abstractmethod
    def originals(self) -> list[Tensor]:
        """The trained images themselves, each (C, H, W) in [0, 1]: where the budget is counted."""

    @abstractmethod
    def geometry(self) -> dict[str, object]:
        """How examples are cut from the originals, as JSON, for the published `recipe` config."""


class LabelModule(nn.Module, ABC):
    """Targets of the training examples."""

    @abstractmethod
    def forward(self, index_B: Tensor) -> Tensor:
        """Targets of the examples `index_B`, (B, K), each row non-negative with sum 1."""

    @abstractmethod
    def project(self) -> None:
        """Move the trained values back into their domain; called after every outer step."""

    @abstractmethod
    def table_GK(self) -> Tensor:
        """The label of every cell, (G, K)."""


class Distilled(nn.Module):
    """Canvas and labels together: the index of an example becomes a differentiable `Batch`.

    `mean_C` and `std_C` take displayable pixels into the student's input space. `step_sizes` is
    there when the objective learns them.
    """

    mean_C: Tensor
    std_C: Tensor

    def __init__(
        self,
        canvas: CanvasModule,
        labels: LabelModule,
        mean_C: Tensor,
        std_C: Tensor,
        step_sizes: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.canvas = canvas
        self.labels = labels
        self.step_sizes = step_sizes
        self.register_buffer("mean_C", mean_C, persistent=False)
        self.register_buffer("std_C", std_C, persistent=False)

    @property
    def count(self) -> int:
        """Number of training examples."""
        return self.canvas.count

    def forward(self, index_B: Tensor) -> Batch:
        """The examples `index_B` as a student sees them."""
        pixels_BCHW = self.canvas(index_B)
        images_BCHW = (pixels_BCHW - self.mean_C[:, None, None]) / self.std_C[:, None, None]
        return Batch(images_BCHW, self.labels(index_B))


class StepSizes(nn.Module):
    """Learned step sizes of the training that the distilled set is made for, kept positive.

    Source: Dataset Distillation (arXiv:1811.10959), whose program trains them under a softplus.
    """

    def __init__(self, initial: Sequence[float]) -> None:
        super().__init__()
        self.raw_T = nn.Parameter(torch.tensor(initial).expm1().log())

    def forward(self) -> Tensor:
        """Step sizes, (T,); step t of a training run takes the one at t modulo T."""
        return F.softplus(self.raw_T)


@dataclass(frozen=True)
class Recovered:
    """The distilled set of a separable objective, once every block is solved.

    `images_NCHW` are 8-bit displayable pixels, mapped from a file; `classes_N` says whose each one
    is; `facts` has one entry per block: numbers such as `loss`, in the order of the blocks.
    """

    images_NCHW: Tensor
    classes_N: Tensor
    folder: Path
    facts: list[dict[str, float]]
