"""What the canvases train, as torch modules: images as they are, cut into tiles, or one poster.

Shape suffixes: N examples, B examples asked for, I trained images, T tiles of an image, G cells,
C channels, H W pixels, h w pixels of a tile or crop, P pixels in a row.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill_datasets.canvases.canvas import Bounds, hide, keep_inside, show
from distill_datasets.canvases.geometry import Box, overlap_shares
from distill_datasets.distilled import CanvasModule


class PixelImages(CanvasModule):
    """Images that are trained as they are; `classes_N` says whose each one is."""

    examples_are_originals: ClassVar[bool] = True

    def __init__(self, pixels_NCHW: Tensor, classes_N: Tensor, bounds: Bounds) -> None:
        super().__init__()
        self.count = len(pixels_NCHW)
        self._bounds: Bounds = bounds
        self.trained_NCHW = nn.Parameter(hide(pixels_NCHW, bounds))
        self.register_buffer("mix_NG", torch.eye(self.count))
        self.register_buffer("cells_G", classes_N)

    def forward(self, index_B: Tensor) -> Tensor:
        return show(self.trained_NCHW.index_select(0, index_B), self._bounds)

    def project(self) -> None:
        keep_inside(self.trained_NCHW, self._bounds)

    def originals(self) -> list[Tensor]:
        return list(show(self.trained_NCHW.detach(), self._bounds))

    def geometry(self) -> dict[str, object]:
        return {"canvas": "pixels"}


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


class PosterImage(CanvasModule):
    """A poster, its crops, and the class that owns each territory."""

    examples_are_originals: ClassVar[bool] = False
    _where_NP: Tensor

    def __init__(
        self,
        pixels_CHW: Tensor,
        crops: list[Box],
        cells: list[Box],
        classes_G: list[int],
        bounds: Bounds,
    ) -> None:
        super().__init__()
        self.count = len(crops)
        self._bounds: Bounds = bounds
        self.trained_CHW = nn.Parameter(hide(pixels_CHW, bounds))
        self._crops, self._cells = crops, cells
        self._crop_size = (crops[0].bottom - crops[0].top, crops[0].right - crops[0].left)
        width = pixels_CHW.shape[2]
        row_h = torch.arange(self._crop_size[0]) * width
        inside_hw = row_h[:, None] + torch.arange(self._crop_size[1])
        corner_N = torch.tensor([box.top * width + box.left for box in crops])
        where_NP = corner_N[:, None] + inside_hw.flatten()
        self.register_buffer("_where_NP", where_NP, persistent=False)
        self.register_buffer("mix_NG", overlap_shares(crops, cells))
        self.register_buffer("cells_G", torch.tensor(classes_G))

    def forward(self, index_B: Tensor) -> Tensor:
        poster_CP = show(self.trained_CHW, self._bounds).flatten(1)
        where_B = self._where_NP.index_select(0, index_B).flatten()
        crops_CBhw = poster_CP.index_select(1, where_B).view(-1, len(index_B), *self._crop_size)
        return crops_CBhw.transpose(0, 1)

    def project(self) -> None:
        keep_inside(self.trained_CHW, self._bounds)

    def originals(self) -> list[Tensor]:
        return [show(self.trained_CHW.detach(), self._bounds)]

    def geometry(self) -> dict[str, object]:
        return {
            "canvas": "poster",
            "poster": list(self.trained_CHW.shape),
            "crop": list(self._crop_size),
            "corners_yx": [[box.top, box.left] for box in self._crops],
            "territories": [list(box) for box in self._cells],
            "classes": self.cells_G.tolist(),
        }
