"""Trained images that are cut into tiles, each enlarged to a training example (IDC).

Four or nine examples then cost the pixels of one: the multi-formation canvas of IDC, and of IDM and
NCFM after it.

Shape suffixes: I trained images, N examples, T tiles of an image, B examples asked for, C channels,
H W pixels, h w pixels of a tile, P pixels in a row.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, SerializeAsAny

from distill_datasets.canvases.canvas import Bounds, Canvas, CanvasSize
from distill_datasets.canvases.geometry import Box, crop_grid
from distill_datasets.config import part
from distill_datasets.errors import RecipeError
from distill_datasets.selection.random import Noise, Real
from distill_datasets.selection.selection import Selection, Teacher
from distill_datasets.types import Shape

if TYPE_CHECKING:
    from distill_datasets.data.real import RealData
    from distill_datasets.distilled import CanvasModule


class Mosaic(Canvas):
    """`ipc` trained images per class, each cut into `factor` x `factor` training examples.

    A tile has ceil(side / factor) pixels along a side. Where the factor does not divide the side,
    neighboring tiles share a row or column of pixels, so that the trained image stays as large as
    an example; IDC instead fills the last tiles up with gray.
    """

    paper: ClassVar[str] = "IDC, arXiv:2205.14959"
    name: Literal["mosaic"] = "mosaic"
    ipc: int = Field(ge=1, description="trained images per class")
    factor: int = Field(
        default=2, ge=1, description="tiles along a side (IDC: 2 at 32 px, 3 at 224 px)"
    )
    init: Annotated[SerializeAsAny[Selection], part("selections")] = Field(
        default=Real(), description="initial images: one, made smaller, fills each tile"
    )
    bounds: Bounds = Field(
        default="clip", description="how pixels are kept displayable; clip suits real images"
    )

    @property
    def needs_squeezed(self) -> bool:
        return self.init.needs_squeezed

    def _tiles(self, shape: Shape) -> list[Box]:
        if self.factor > min(shape.h, shape.w):
            raise RecipeError(
                f"distill.canvas.factor: images of {shape.h} x {shape.w} px cannot be cut into "
                f"{self.factor} x {self.factor} tiles; set factor to at most "
                f"{min(shape.h, shape.w)}, usually 2"
            )
        tile = (math.ceil(shape.h / self.factor), math.ceil(shape.w / self.factor))
        return crop_grid((shape.h, shape.w), tile, (self.factor, self.factor))

    def size(self, shape: Shape) -> CanvasSize:
        images = self.ipc * shape.k
        return CanvasSize([(shape.h, shape.w)] * images, images * len(self._tiles(shape)))

    def build(
        self, real: RealData, rng: torch.Generator, teacher: Teacher | None = None
    ) -> CanvasModule:
        from distill_datasets.canvases.modules import MosaicImages

        shape = real.shape
        tiles = self._tiles(shape)
        images = self.ipc * shape.k
        if isinstance(self.init, Noise):  # not made smaller: every pixel is drawn for itself
            pixels_ICHW = self.init.draw((images, shape.c, shape.h, shape.w), rng)
        else:
            given_NCHW = self.init.images(real, self.ipc * len(tiles), rng, teacher)
            size = (tiles[0].bottom - tiles[0].top, tiles[0].right - tiles[0].left)
            small_NChw = F.interpolate(given_NCHW, size, mode="bilinear", antialias=True)
            pixels_ICHW = torch.empty(images, shape.c, shape.h, shape.w)
            for place, box in enumerate(tiles):
                pixels_ICHW[:, :, box.top : box.bottom, box.left : box.right] = small_NChw[
                    place :: len(tiles)
                ]
        classes_I = torch.arange(shape.k).repeat_interleave(self.ipc)
        return MosaicImages(pixels_ICHW, classes_I, tiles, self.bounds)
