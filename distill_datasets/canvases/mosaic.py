"""Trained images that are cut into tiles, each enlarged to a training example (IDC).

Four or nine examples then cost the pixels of one: the multi-formation canvas of IDC, and of IDM and
NCFM after it.

Shape suffixes: I trained images, N examples, T tiles of an image, B examples asked for, C channels,
H W pixels, h w pixels of a tile, P the pixels of a tile in a row.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, SerializeAsAny

from distill_datasets.canvases.canvas import (
    Bounds,
    Canvas,
    CanvasSize,
    CanvasStart,
    Cells,
    Tensors,
    check_count,
    hide,
    keep_inside,
    show,
)
from distill_datasets.canvases.geometry import Box, crop_grid, pixels_of
from distill_datasets.config import part
from distill_datasets.errors import RecipeError
from distill_datasets.selection.random import Noise, Real
from distill_datasets.selection.selection import Selection, Teacher
from distill_datasets.types import Shape

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.real import RealData


class Mosaic(Canvas):
    """`ipc` trained images per class, each cut into `factor` x `factor` training examples.

    A tile has ceil(side / factor) pixels along a side. Where the factor does not divide the side,
    neighboring tiles share a row or column of pixels, so that the trained image stays as large as
    an example; IDC instead fills the last tiles up with gray.
    """

    paper: ClassVar[str] = "IDC, arXiv:2205.14959"
    name: Literal["mosaic"] = "mosaic"
    ipc: int = Field(ge=1, le=100_000, description="trained images per class")
    factor: int = Field(
        default=2, ge=1, le=256, description="tiles along a side (IDC: 2 at 32 px, 3 at 224 px)"
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
        examples = images * len(self._tiles(shape))
        check_count(examples, "ipc")
        return CanvasSize([(shape.h, shape.w)] * images, examples)

    def shown(self, shape: Shape, real: RealData | None = None) -> Cells:
        images, tiles = self.ipc * shape.k, len(self._tiles(shape))
        classes_I = torch.arange(shape.k).repeat_interleave(self.ipc)
        return Cells(torch.arange(images).repeat_interleave(tiles), classes_I)

    def start(
        self, real: RealData, rng: torch.Generator, teacher: Teacher | None = None
    ) -> CanvasStart:
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
        cells = self.shown(shape)
        constants = {"pixels_Thw": pixels_of(tiles, shape.w), "classes_I": cells.classes_G}
        return CanvasStart({"trained_ICHW": hide(pixels_ICHW, self.bounds)}, constants, cells)

    def decode(self, tensors: Tensors, index_B: Tensor) -> Tensor:
        trained_ICHW, pixels_Thw = tensors["trained_ICHW"], tensors["pixels_Thw"]
        tiles, *tile = pixels_Thw.shape
        # example i is tile i modulo T of image i // T
        shown_BCP = show(trained_ICHW.index_select(0, index_B // tiles).flatten(2), self.bounds)
        pixels_BP = pixels_Thw.flatten(1)[index_B % tiles]
        pixels_BCP = pixels_BP[:, None].expand(-1, shown_BCP.shape[1], -1)
        tiles_BChw = shown_BCP.gather(2, pixels_BCP).view(*shown_BCP.shape[:2], *tile)
        size = trained_ICHW.shape[2:]
        return F.interpolate(tiles_BChw, size, mode="bilinear", align_corners=False)

    def project(self, tensors: Tensors) -> None:
        keep_inside(tensors["trained_ICHW"], self.bounds)

    def stored(self, tensors: Tensors) -> list[Tensor]:
        return list(show(tensors["trained_ICHW"].detach(), self.bounds))

    def preview(self, tensors: Tensors) -> list[Tensor]:
        return self.stored(tensors)

    def geometry(self, tensors: Tensors) -> dict[str, object]:
        height, width = tensors["trained_ICHW"].shape[2:]
        pixels_Thw = tensors["pixels_Thw"]
        return {
            "tile": list(pixels_Thw.shape[1:]),
            "tile_corners_yx": [
                list(divmod(first, width)) for first in pixels_Thw[:, 0, 0].tolist()
            ],
            "enlarged_to": [height, width],
            "enlarged_by": "bilinear, corners not aligned",
            "classes": tensors["classes_I"].tolist(),
        }
