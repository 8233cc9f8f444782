"""Images that are drawn: noise, and random real images.

Shape suffixes: N images, C channels, H W pixels.
"""

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from distill_datasets.types import Selection, Teacher

if TYPE_CHECKING:
    from distill_datasets.data.source import RealData


class Noise(Selection):
    """Gray with Gaussian noise."""

    paper: ClassVar[str] = "Dataset Distillation, arXiv:1811.10959"
    name: Literal["noise"] = "noise"
    std: float = Field(default=0.0045, ge=0, description="standard deviation, in units of [0, 1]")

    def draw(self, size: tuple[int, ...], rng: torch.Generator) -> Tensor:
        """Pixels of this size; a few may lie outside [0, 1]."""
        return 0.5 + self.std * torch.randn(size, generator=rng)

    def images(
        self, real: "RealData", per_class: int, rng: torch.Generator, teacher: Teacher | None = None
    ) -> Tensor:
        shape = real.shape
        return self.draw((shape.k * per_class, shape.c, shape.h, shape.w), rng)


class Real(Selection):
    """Random training images of every class."""

    paper: ClassVar[str] = "DC, arXiv:2006.05929"
    name: Literal["real"] = "real"

    def images(
        self, real: "RealData", per_class: int, rng: torch.Generator, teacher: Teacher | None = None
    ) -> Tensor:
        return real.examples(rng, per_class)
