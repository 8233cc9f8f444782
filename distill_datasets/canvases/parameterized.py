"""Canvases whose images are decoded from fewer numbers than they have pixels.

At tiny budgets what wins is more images of lower complexity from the same number of values (HaBa,
FreD, SPEED, RTP, DDiF all say so). Such a canvas says which numbers it stores, and how images are
drawn of them; both the loop and a reader of the published set draw from the same numbers. They are
published as 8 bits with scales, or as half floats, with the numpy lines that draw the images.

Shape suffixes: N examples, B examples asked for, K classes, C channels, H W pixels.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
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
from distill_datasets.optimizers import cosine
from distill_datasets.runtime.progress import progress_bar
from distill_datasets.selection.random import Real
from distill_datasets.selection.selection import Selection, Teacher
from distill_datasets.types import Shape

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.real import RealData

logger = logging.getLogger("distill_datasets")

_FITTED_AT_ONCE = 256

Storage = Literal["unit8", "scaled8", "float16"]
"""How numbers are published: 8 bits of [0, 1]; 8 bits between the least and the largest number at a
place of the last axis, with two scales for each place, which the budget counts; or half floats."""


ENLARGED = """\
def hats(short, long):
    at = (np.arange(long)[:, None] + 0.5) * short / long - 0.5
    return (1 - abs(at.clip(0, short - 1) - np.arange(short))).clip(0)

def enlarged(small):
    return hats(small.shape[2], shape[1]) @ small @ hats(small.shape[3], shape[2]).T
"""
"""Lines of a decoder: bilinear, as torch's `interpolate` where corners are not aligned."""

TO_RGB = """\
if shape[0] == 3:
    colors = [[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]]
    images = np.einsum("cy,nyhw->nchw", colors, images)
images = (images + 0.5).clip(0, 1)"""
"""Lines of a decoder: luma and chromas around zero, or gray, become pixels."""

_RGB_33 = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))
"""ITU-R BT.601, as in JPEG: luma, blue and red difference make red, green and blue."""


def to_rgb(ycc_BCHW: Tensor) -> Tensor:
    """Luma and chromas around zero as pixels in [0, 1]; gray has luma alone."""
    if ycc_BCHW.shape[1] == 3:
        ycc_BCHW = torch.einsum("cy,byhw->bchw", torch.tensor(_RGB_33).to(ycc_BCHW), ycc_BCHW)
    return (ycc_BCHW + 0.5).clamp(0, 1)


def to_ycc(images_NCHW: Tensor) -> Tensor:
    """The inverse of `to_rgb`."""
    if images_NCHW.shape[1] == 1:
        return images_NCHW - 0.5
    to_ycc_33 = torch.linalg.inv(torch.tensor(_RGB_33))
    return torch.einsum("yc,nchw->nyhw", to_ycc_33, images_NCHW - 0.5)


def shrunk(images_NCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Images made smaller without aliasing."""
    return F.interpolate(images_NCHW, size, mode="bilinear", antialias=True)


def fitted(
    canvas: Parameterized,
    started: Tensors,
    constants: Tensors,
    images_NCHW: Tensor,
    steps: int,
    lr: float,
) -> Tensors:
    """Trained tensors whose images come close to the given ones, by Adam with a cosine.

    Every image has rows of its own in every tensor, so that pieces can be fitted one after another.
    """
    shown = logger.isEnabledFor(logging.INFO)
    pieces = torch.split(torch.arange(len(images_NCHW)), _FITTED_AT_ONCE)
    rows: dict[str, list[Tensor]] = {name: [] for name in started}
    with progress_bar("fit", steps * len(pieces), shown=shown) as bar:
        for index_B in pieces:
            own = {name: tensor[index_B].clone() for name, tensor in started.items()}
            leaves = [tensor.requires_grad_() for tensor in own.values()]
            adam = torch.optim.Adam(leaves, lr=lr)
            every_B = torch.arange(len(index_B))
            for step in range(steps):
                adam.param_groups[0]["lr"] = lr * cosine(step, steps)
                drawn_BCHW = canvas.decode(own | constants, every_B)
                loss = F.mse_loss(drawn_BCHW, images_NCHW[index_B])
                adam.zero_grad()
                # Adam's steps do not depend on a loss's scale, but its epsilon does
                torch.autograd.backward(loss * drawn_BCHW.numel())
                adam.step()
                bar.advance(1, mse=loss.item())
            for name, tensor in own.items():
                rows[name].append(tensor.detach())
    return {name: torch.cat(tensors) for name, tensors in rows.items()}


class Parameterized(Canvas, ABC):
    """Images of one class each that are drawn from shared or own numbers, at a budget of values.

    What is published are the numbers themselves; `default` has the images that are drawn from them
    after they were rounded.
    """

    examples_are_stored: ClassVar[bool] = True
    storage: ClassVar[dict[str, Storage]]
    """How each of the numbers is published."""

    is_fitted: ClassVar[bool] = False
    """Whether `encode` is a training of its own."""

    ipc: float = Field(
        gt=0, description="values that are stored, in images of the source's size per class"
    )
    init: Annotated[SerializeAsAny[Selection], part("selections")] = Field(
        default=Real(), description="initial images, which the numbers are fitted to"
    )

    @property
    @abstractmethod
    def decoder(self) -> str:
        """Lines of numpy that make `images` (N, C, H, W) in [0, 1] of the numbers.

        The numbers are arrays by their names, and the list `shape` is channels, height and width.
        """

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
        values = self.budget(shape)
        count = self.count(shape, values)
        if count < 1:
            raise RecipeError(
                f"distill.canvas.ipc: got {self.ipc}, which are {values:,} values; one image of "
                f"this {self.name!r} canvas takes more; raise ipc, or store less per image"
            )
        return CanvasSize([], count)

    def budget(self, shape: Shape) -> int:
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

    @property
    def keeps_start(self) -> bool:
        # what a folder holds is not named by the section
        return self.is_fitted and self.init.effort != "file" and not self.needs_squeezed

    def cited(self) -> list[str]:
        own = self.paper.split("; ")
        return own if self.init.effort != "file" else [*own, *self.init.papers()]
