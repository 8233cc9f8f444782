"""Trained images that are cut into tiles, each enlarged to a training example (IDC).

Four or nine examples then cost the pixels of one: the multi-formation canvas of IDC, and of IDM and
NCFM after it.

Shape suffixes: I trained images, N examples, T tiles of an image, B examples asked for, C channels,
H W pixels, h w pixels of a tile, P pixels in a row.
"""

import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, SerializeAsAny
from torch import Tensor, nn

from distill_datasets.canvases.bounded import Bounds, hide, keep_inside, show
from distill_datasets.canvases.geometry import Box, crop_grid
from distill_datasets.errors import RecipeError
from distill_datasets.plugins import part
from distill_datasets.selection.drawn import Noise, Real
from distill_datasets.types import Canvas, CanvasModule, CanvasSize, Selection, Shape, Teacher

if TYPE_CHECKING:
    from distill_datasets.data.source import RealData


class MosaicImages(CanvasModule):
    """Images of `tiles` each; the examples of an image stand together, its tiles row by row."""

    examples_are_originals: ClassVar[bool] = False
    _where_TP: Tensor

    def __init__(
        self, pixels_ICHW: Tensor, classes_I: Tensor, tiles: list[Box], bounds: Bounds
    ) -> None:
        super().__init__()
        images, _, self._height, self._width = pixels_ICHW.shape
        self.count = images * len(tiles)
        self._bounds: Bounds = bounds
        self._tiles = tiles
        self._tile_size = (tiles[0].bottom - tiles[0].top, tiles[0].right - tiles[0].left)
        self.trained_ICHW = nn.Parameter(hide(pixels_ICHW, bounds))
        place_HW = torch.arange(self._height * self._width).view(self._height, self._width)
        where_TP = torch.stack(
            [place_HW[box.top : box.bottom, box.left : box.right].flatten() for box in tiles]
        )
        self.register_buffer("_where_TP", where_TP, persistent=False)
        self.register_buffer("mix_NG", torch.eye(images).repeat_interleave(len(tiles), dim=0))
        self.register_buffer("cells_G", classes_I)

    def forward(self, index_B: Tensor) -> Tensor:
        each = len(self._tiles)
        shown_BCP = show(
            self.trained_ICHW.index_select(0, index_B // each).flatten(2), self._bounds
        )
        where_BCP = self._where_TP[index_B % each][:, None].expand(-1, shown_BCP.shape[1], -1)
        tiles_BChw = shown_BCP.gather(2, where_BCP).view(*shown_BCP.shape[:2], *self._tile_size)
        return F.interpolate(
            tiles_BChw, (self._height, self._width), mode="bilinear", align_corners=False
        )

    def project(self) -> None:
        keep_inside(self.trained_ICHW, self._bounds)

    def originals(self) -> list[Tensor]:
        return list(show(self.trained_ICHW.detach(), self._bounds))

    def geometry(self) -> dict[str, object]:
        return {
            "canvas": "mosaic",
            "tile": list(self._tile_size),
            "tile_corners_yx": [[box.top, box.left] for box in self._tiles],
            "enlarged_to": [self._height, self._width],
            "enlarged_by": "bilinear, corners not aligned",
            "classes": self.cells_G.tolist(),
        }


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
        self, real: "RealData", rng: torch.Generator, teacher: Teacher | None = None
    ) -> CanvasModule:
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
