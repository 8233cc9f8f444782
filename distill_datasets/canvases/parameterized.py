"""Canvases whose images are decoded from fewer numbers than they have pixels.

At tiny budgets what wins is more images of lower complexity from the same number of values (HaBa,
FreD, SPEED, RTP, DDiF all say so). Such a canvas says which numbers it stores, and how images are
drawn of them; both the loop and a reader of the published set draw from the same numbers. They are
published as 8 bits with scales, or as half floats, with the numpy lines that draw the images.

Shape suffixes: N examples, B examples asked for, K classes, C channels, H W pixels.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field, SerializeAsAny

from distill_datasets.canvases.canvas import (
    Canvas,
    CanvasSize,
    CanvasStart,
    Cells,
    Tensors,
    evenly,
    initial,
)
from distill_datasets.config import part
from distill_datasets.errors import RecipeError
from distill_datasets.selection.random import Real
from distill_datasets.selection.selection import Selection, Teacher
from distill_datasets.types import Shape

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.real import RealData

Storage = Literal["unit8", "scaled8", "float16"]
"""How numbers are published: 8 bits of [0, 1]; 8 bits between the least and the largest number at a
place of the last axis, with two scales for each place, which the budget counts; or half floats."""


class Parameterized(Canvas, ABC):
    """Images of one class each that are drawn from shared or own numbers, at a budget of values.

    What is published are the numbers themselves; `default` has the images that are drawn from them
    after they were rounded.
    """

    examples_are_stored: ClassVar[bool] = True
    storage: ClassVar[dict[str, Storage]]
    """How each of the numbers is published."""
    decoder: ClassVar[str]
    """Lines of numpy that make `images` (N, C, H, W) in [0, 1] of the numbers, arrays by their
    names, and of the list `shape`: channels, height and width of an image."""

    ipc: float = Field(
        gt=0, description="values that are stored, in images of the source's size per class"
    )
    init: Annotated[SerializeAsAny[Selection], part("selections")] = Field(
        default=Real(), description="initial images, which the numbers are fitted to"
    )

    @abstractmethod
    def count(self, shape: Shape, values: int) -> int:
        """How many images that many values hold, scales included; at most 0 where they hold none.

        Raises:
            RecipeError: the settings do not suit images of this shape.
        """

    @abstractmethod
    def encode(self, images_NCHW: Tensor, rng: torch.Generator) -> tuple[Tensors, Tensors]:
        """What is trained, fitted to images in [0, 1], and the constants beside it."""

    @abstractmethod
    def numbers(self, tensors: Tensors) -> Tensors:
        """What is stored, differentiable in what is trained."""

    @abstractmethod
    def draw(self, tensors: Tensors, index_B: Tensor) -> Tensor:
        """Images `index_B` in [0, 1] of the numbers and the constants, (B, C, H, W)."""

    def size(self, shape: Shape) -> CanvasSize:
        values = self._values(shape)
        count = self.count(shape, values)
        if count < 1:
            raise RecipeError(
                f"distill.canvas.ipc: got {self.ipc}, which are {values:,} values; one image of "
                f"this {self.name!r} canvas takes more; raise ipc, or store less per image"
            )
        return CanvasSize([], count, values)

    def _values(self, shape: Shape) -> int:
        return math.floor(self.ipc * shape.k * shape.c * shape.h * shape.w + 1e-6)

    def shown(self, shape: Shape, real: RealData | None = None) -> Cells:
        counts_K = torch.tensor(evenly(self.size(shape).examples, shape.k))
        classes_N = torch.arange(shape.k).repeat_interleave(counts_K)
        return Cells(torch.arange(len(classes_N)), classes_N)

    def start(
        self, real: RealData, rng: torch.Generator, teacher: Teacher | None = None
    ) -> CanvasStart:
        counts_K = evenly(self.size(real.shape).examples, real.shape.k)
        images_NCHW = initial(self.init, real, counts_K, rng, teacher)
        trained, constants = self.encode(images_NCHW, rng)
        return CanvasStart(trained, constants, self.shown(real.shape))

    def decode(self, tensors: Tensors, index_B: Tensor) -> Tensor:
        return self.draw(tensors | self.numbers(tensors), index_B)

    def stored(self, tensors: Tensors) -> list[Tensor]:
        return [value.detach() for value in self.numbers(tensors).values()]

    @property
    def needs_squeezed(self) -> bool:
        return self.init.needs_squeezed

    def cited(self) -> list[str]:
        own = self.paper.split("; ")
        return own if self.init.effort != "file" else [*own, *self.init.papers()]
