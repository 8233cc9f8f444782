"""Trained images as sums of ever finer levels, in colors that are independent of each other.

An image is x = sigmoid(2 R sum_l enlarged(p_l)). The levels p_l have sides of 1, 2, 4 ... px up to
that of the image, and the finer ones begin to move later: what is large is decided first, so that
no noise of high frequency has to be unlearned. R turns three independent values into red, green
and blue as they go together in photographs.

Shape suffixes: N images, B images asked for, C channels, H W pixels, h w pixels of a level.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, SerializeAsAny

from distill_datasets.canvases.canvas import (
    Alone,
    Canvas,
    CanvasSize,
    CanvasStart,
    Cells,
    Tensors,
)
from distill_datasets.config import part
from distill_datasets.selection.random import Noise
from distill_datasets.selection.selection import Selection, Teacher
from distill_datasets.types import Shape

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.real import RealData

COLORS = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))
"""A square root of the covariance of ImageNet's colors: a row each for red, green and blue.

Source: Feature Visualization, doi:10.23915/distill.00007, its program.
"""
EDGE = 1 / 512
"""Half a step of 8 bits: initial pixels are pulled this far inside, where the sigmoid ends."""
SLOPE = 2.0


class Pyramid(Canvas):
    """Trained images, each a sum of levels from 1 px to the whole image, for 64 px and more."""

    examples_are_stored: ClassVar[bool] = True
    paper: ClassVar[str] = "Linear Gradient Matching, NeurIPS 2025, arXiv:2511.16674"
    name: Literal["pyramid"] = "pyramid"
    ipc: int = Field(ge=1, description="images per class")
    init: Annotated[SerializeAsAny[Selection], part("selections")] = Field(
        default=Noise(std=0.1), description="initial images"
    )
    start_px: int | None = Field(
        default=8,
        gt=0,
        description="what an initial image shows at this side, and no finer, is taken; levels up "
        "to it move from the first step on; null takes and moves all of it",
    )
    growth: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of the steps in which the finer levels come in, one after another",
    )

    @property
    def needs_squeezed(self) -> bool:
        return self.init.needs_squeezed

    def size(self, shape: Shape) -> CanvasSize:
        count = self.ipc * shape.k
        return CanvasSize([(shape.h, shape.w)] * count, count)

    def shown(self, shape: Shape, real: RealData | None = None) -> Cells:
        return _cells(torch.arange(shape.k).repeat_interleave(self.ipc))

    def start(
        self, real: RealData, rng: torch.Generator, teacher: Teacher | None = None
    ) -> CanvasStart:
        pixels_NCHW = self.init.images(real, self.ipc, rng, teacher)
        return self._start_from(pixels_NCHW, self.shown(real.shape).classes_G)

    def alone(self) -> Alone:
        altered = (
            "canvas: 'pyramid' shows smooth copies of its initial images; expected 'pixels' with "
            "bounds: 'clip', which shows them as they are"
        )
        return Alone(self.ipc, self.init, self._start_from, altered)

    def _start_from(self, pixels_NCHW: Tensor, classes_N: Tensor) -> CanvasStart:
        inverse_CC = torch.linalg.inv(_colors(pixels_NCHW.shape[1]).double()).float()
        values_NCHW = torch.logit(pixels_NCHW.clamp(EDGE, 1 - EDGE)) / SLOPE
        rest_NCHW = torch.einsum("cd,ndhw->nchw", inverse_CC, values_NCHW)
        trained = dict[str, torch.Tensor]()
        for number, size in enumerate(level_sizes(*pixels_NCHW.shape[2:])):
            # each level takes what is left at its size: the finest one all of it
            level_NChw = F.interpolate(rest_NCHW, size, mode="area")
            if self.start_px is not None and max(size) > self.start_px:
                level_NChw = torch.zeros_like(level_NChw)
            rest_NCHW = rest_NCHW - _enlarged(level_NChw, rest_NCHW.shape[2:])
            trained[_level(number)] = level_NChw.contiguous()
        return CanvasStart(trained, {}, _cells(classes_N))

    def begins(self, tensors: Tensors, steps: int) -> dict[str, int]:
        """The step at which each level begins to move."""
        sides = {name: max(level.shape[2:]) for name, level in tensors.items()}
        late = [name for name, side in sides.items() if self.start_px and side > self.start_px]
        return {
            name: int(self.growth * steps * (place + 1) / len(late))
            for place, name in enumerate(sorted(late, key=lambda name: sides[name]))
        }

    def decode(self, tensors: Tensors, index_B: Tensor) -> Tensor:
        levels = [level.index_select(0, index_B) for level in tensors.values()]
        size = max(levels, key=lambda level: level.shape[2] * level.shape[3]).shape[2:]
        total_BCHW = torch.stack([_enlarged(level, size) for level in levels]).sum(dim=0)
        colors_CC = _colors(total_BCHW.shape[1]).to(total_BCHW)
        return torch.sigmoid(SLOPE * torch.einsum("cd,ndhw->nchw", colors_CC, total_BCHW))

    def stored(self, tensors: Tensors) -> list[Tensor]:
        count = len(next(iter(tensors.values())))
        with torch.no_grad():
            every_N = torch.arange(count, device=next(iter(tensors.values())).device)
            return list(self.decode(tensors, every_N))

    def preview(self, tensors: Tensors) -> list[Tensor]:
        return self.stored(tensors)


def level_sizes(height: int, width: int) -> Iterator[tuple[int, int]]:
    """Sides of the levels, from one pixel to the whole image, each about twice the one before."""
    for halvings in range(math.ceil(math.log2(max(height, width))), -1, -1):
        yield math.ceil(height / 2**halvings), math.ceil(width / 2**halvings)


def _level(number: int) -> str:
    return f"level_{number:02d}_NChw"


def _cells(classes_N: Tensor) -> Cells:
    return Cells(torch.arange(len(classes_N)), classes_N)


def _colors(channels: int) -> Tensor:
    """R: its longest column has the length 1; of images without color, one."""
    if channels != len(COLORS):
        return torch.eye(channels)
    colors_CC = torch.tensor(COLORS)
    longest: Tensor = torch.linalg.vector_norm(colors_CC, dim=0).max()
    return colors_CC / longest


def _enlarged(level_NChw: Tensor, size: torch.Size) -> Tensor:
    if level_NChw.shape[2:] == size:
        return level_NChw
    large_NCHW: Tensor = F.interpolate(level_NChw, size, mode="bilinear", align_corners=False)
    return large_NCHW
