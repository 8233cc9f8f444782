"""Images that are drawn: noise, and random real images.

Shape suffixes: N images, C channels, H W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field

from distill_datasets.selection.selection import Selection, Teacher, repeated

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.real import RealData


class Noise(Selection):
    """Gray with Gaussian noise."""

    paper: ClassVar[str] = "Dataset Distillation, arXiv:1811.10959"
    effort: ClassVar[Literal["image", "class", "file"]] = "image"
    shows_real: ClassVar[bool] = False
    name: Literal["noise"] = "noise"
    std: float = Field(default=0.0045, ge=0, description="standard deviation, in units of [0, 1]")

    def draw(self, size: tuple[int, ...], rng: torch.Generator) -> Tensor:
        """Pixels of this size; a few may lie outside [0, 1]."""
        return 0.5 + self.std * torch.randn(size, generator=rng)

    def together(
        self, real: RealData, per_class: int, rng: torch.Generator, teacher: Teacher | None
    ) -> Tensor:
        shape = real.shape
        return self.draw((shape.k * per_class, shape.c, shape.h, shape.w), rng)

    def of_class(
        self,
        real: RealData,
        label: int,
        per_class: int,
        rng: torch.Generator,
        teacher: Teacher | None = None,
    ) -> Tensor:
        return self.draw((per_class, real.shape.c, real.shape.h, real.shape.w), rng)


class Real(Selection):
    """Random training images of every class."""

    paper: ClassVar[str] = "DC, arXiv:2006.05929"
    effort: ClassVar[Literal["image", "class", "file"]] = "class"
    name: Literal["real"] = "real"

    def together(
        self, real: RealData, per_class: int, rng: torch.Generator, teacher: Teacher | None
    ) -> Tensor:
        return real.examples(rng, per_class)

    def of_class(
        self,
        real: RealData,
        label: int,
        per_class: int,
        rng: torch.Generator,
        teacher: Teacher | None = None,
    ) -> Tensor:
        real.warn_of_few(per_class)
        own_N = real.rows_of_class[label].cpu()
        drawn_N = torch.randperm(len(own_N), generator=rng)[:per_class]
        return real.displayable(own_N[repeated(drawn_N.tolist(), per_class)])
