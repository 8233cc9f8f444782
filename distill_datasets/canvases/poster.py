"""One trained image whose overlapping crops are the training examples (PoDD, arXiv:2403.12040).

Neighboring examples share pixels, so a poster holds less than one image per class.

Shape suffixes: N crops, B crops asked for, G K classes, C channels, H W poster pixels, h w crop
pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, SerializeAsAny, model_validator

from distill_datasets.canvases import geometry
from distill_datasets.canvases.canvas import Bounds, Canvas, CanvasSize, Shown
from distill_datasets.canvases.class_order import ClassOrder, Visual
from distill_datasets.config import part
from distill_datasets.selection.random import Noise
from distill_datasets.selection.selection import Selection, Teacher
from distill_datasets.types import Shape

if TYPE_CHECKING:
    from distill_datasets.data.real import RealData
    from distill_datasets.distilled import CanvasModule


class Poster(Canvas):
    """A poster of a given budget or size, cut into evenly spaced crops."""

    paper: ClassVar[str] = "PoDD, arXiv:2403.12040"
    name: Literal["poster"] = "poster"
    ipc: float | None = Field(default=None, gt=0, description="budget in images per class")
    height: int | None = Field(default=None, gt=0, description="in px, with width, instead of ipc")
    width: int | None = Field(default=None, gt=0, description="in px, with height, instead of ipc")
    crops: int | list[int] = Field(
        default=96, description="training examples: about this many, or exactly [rows, columns]"
    )
    orientation: Literal["landscape", "portrait"] = Field(
        default="landscape", description="more columns of classes than rows, or the reverse"
    )
    order: Annotated[SerializeAsAny[ClassOrder], part("orders")] = Field(
        default=Visual(), description="which classes are neighbors (PoCO)"
    )
    init: Annotated[SerializeAsAny[Selection], part("selections")] = Field(
        default=Noise(), description="initial pixels: one image of each class fills its territory"
    )
    bounds: Bounds = Field(
        default="sigmoid", description="how pixels are kept displayable; clip suits real images"
    )

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        sides = (self.height is not None) + (self.width is not None)
        if sides == 1 or (sides == 2) == (self.ipc is not None):
            raise ValueError("expected either ipc, or height and width")
        if isinstance(self.crops, list) and (len(self.crops) != 2 or min(self.crops) < 1):
            raise ValueError(f"crops: expected [rows, columns], each at least 1, got {self.crops}")
        if isinstance(self.crops, int) and self.crops < 1:
            raise ValueError(f"crops: expected at least 1, got {self.crops}")
        return self

    @property
    def needs_squeezed(self) -> bool:
        return self.init.needs_squeezed

    def _lay_out(self, shape: Shape) -> tuple[tuple[int, int], list[geometry.Box]]:
        """(height, width) of the poster, and its crops."""
        example = (shape.h, shape.w)
        if self.ipc is not None:
            portrait = self.orientation == "portrait"
            poster = geometry.poster_size(self.ipc, shape.k, example, portrait=portrait)
        else:
            assert self.height is not None and self.width is not None
            poster = (self.height, self.width)
        if isinstance(self.crops, list):
            grid = (self.crops[0], self.crops[1])
        else:
            grid = geometry.fair_grid(poster, example, self.crops)
        return poster, geometry.crop_grid(poster, example, grid)

    def _class_rows(self, classes: int) -> list[int]:
        return geometry.class_rows(classes, portrait=self.orientation == "portrait")

    def size(self, shape: Shape) -> CanvasSize:
        poster, crops = self._lay_out(shape)
        geometry.territories(poster, self._class_rows(shape.k))
        self.order.check(shape.k)
        return CanvasSize([poster], len(crops))

    def shown(self, shape: Shape, real: RealData | None = None) -> Shown:
        poster, crops = self._lay_out(shape)
        rows = self._class_rows(shape.k)
        mix_NG = geometry.overlap_shares(crops, geometry.territories(poster, rows))
        classes_G = self.order.known() if real is None else self.order.arrange(real, rows)
        return Shown(mix_NG, None if classes_G is None else torch.tensor(classes_G))

    def build(
        self, real: RealData, rng: torch.Generator, teacher: Teacher | None = None
    ) -> CanvasModule:
        from distill_datasets.canvases.modules import PosterImage

        shape = real.shape
        (height, width), crops = self._lay_out(shape)
        rows = self._class_rows(shape.k)
        cells = geometry.territories((height, width), rows)
        classes_G = self.order.arrange(real, rows)
        if isinstance(self.init, Noise):  # not stretched: every pixel is drawn for itself
            pixels_CHW = self.init.draw((shape.c, height, width), rng)
        else:
            pixels_CHW = torch.empty(shape.c, height, width)
            images_KCHW = self.init.images(real, 1, rng, teacher)
            for box, owner in zip(cells, classes_G, strict=True):
                size = (box.bottom - box.top, box.right - box.left)
                pixels_CHW[:, box.top : box.bottom, box.left : box.right] = F.interpolate(
                    images_KCHW[owner][None], size, mode="bilinear", antialias=True
                )[0]
        return PosterImage(pixels_CHW, crops, cells, classes_G, self.bounds)
