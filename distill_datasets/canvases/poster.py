"""One trained image whose overlapping crops are the training examples (PoDD, arXiv:2403.12040).

Neighboring examples share pixels, so a poster holds less than one image per class.

Shape suffixes: N crops, B crops asked for, G territories, K classes, C channels, H W pixels of the
poster, P the same in a row, h w pixels of a crop.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, SerializeAsAny, model_validator

from distill_datasets.canvases import geometry
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
from distill_datasets.canvases.class_order import ClassOrder, Visual
from distill_datasets.config import part
from distill_datasets.errors import RecipeError
from distill_datasets.selection.random import Noise
from distill_datasets.selection.selection import Selection, Teacher
from distill_datasets.types import Shape

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.real import RealData


class Poster(Canvas):
    """A poster of a given budget or size, cut into evenly spaced crops."""

    paper: ClassVar[str] = "PoDD, arXiv:2403.12040"
    name: Literal["poster"] = "poster"
    ipc: float | None = Field(
        default=None, gt=0, le=100_000, description="budget in images per class"
    )
    height: int | None = Field(
        default=None, gt=0, le=100_000, description="in px, with width, instead of ipc"
    )
    width: int | None = Field(
        default=None, gt=0, le=100_000, description="in px, with height, instead of ipc"
    )
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
        check_count(math.prod(grid), "crops")
        return poster, geometry.crop_grid(poster, example, grid)

    def _class_rows(self, classes: int) -> list[int]:
        return geometry.class_rows(classes, portrait=self.orientation == "portrait")

    def size(self, shape: Shape) -> CanvasSize:
        poster, crops = self._lay_out(shape)
        geometry.territories(poster, self._class_rows(shape.k))
        for problem in self.order.problems(shape.k):
            raise RecipeError(problem)
        return CanvasSize([poster], len(crops))

    def shown(self, shape: Shape, real: RealData | None = None) -> Cells | None:
        poster, crops = self._lay_out(shape)
        rows = self._class_rows(shape.k)
        classes_G = self.order.known() if real is None else self.order.arrange(real, rows)
        if classes_G is None:
            return None
        shares_NG = geometry.overlap_shares(crops, geometry.territories(poster, rows))
        return Cells(shares_NG, torch.tensor(classes_G))

    def start(
        self, real: RealData, rng: torch.Generator, teacher: Teacher | None = None
    ) -> CanvasStart:
        shape = real.shape
        (height, width), crops = self._lay_out(shape)
        rows = self._class_rows(shape.k)
        territories = geometry.territories((height, width), rows)
        classes_G = self.order.arrange(real, rows)
        if isinstance(self.init, Noise):  # not stretched: every pixel is drawn for itself
            pixels_CHW = self.init.draw((shape.c, height, width), rng)
        else:
            pixels_CHW = torch.empty(shape.c, height, width)
            images_KCHW = self.init.images(real, 1, rng, teacher)
            for box, owner in zip(territories, classes_G, strict=True):
                size = (box.bottom - box.top, box.right - box.left)
                pixels_CHW[:, box.top : box.bottom, box.left : box.right] = F.interpolate(
                    images_KCHW[owner][None], size, mode="bilinear", antialias=True
                )[0]
        cells = Cells(geometry.overlap_shares(crops, territories), torch.tensor(classes_G))
        constants = {
            "pixels_Nhw": geometry.pixels_of(crops, width),
            "territories_G4": torch.tensor(territories),
            "classes_G": cells.classes_G,
        }
        return CanvasStart({"trained_CHW": hide(pixels_CHW, self.bounds)}, constants, cells)

    def decode(self, tensors: Tensors, index_B: Tensor) -> Tensor:
        poster_CP = show(tensors["trained_CHW"], self.bounds).flatten(1)
        pixels_Bhw = tensors["pixels_Nhw"].index_select(0, index_B)
        # one gather for all crops: pixels that several crops share get the sum of their gradients
        crops_CBhw = poster_CP.index_select(1, pixels_Bhw.flatten()).view(-1, *pixels_Bhw.shape)
        return crops_CBhw.transpose(0, 1)

    def project(self, tensors: Tensors) -> None:
        keep_inside(tensors["trained_CHW"], self.bounds)

    def stored(self, tensors: Tensors) -> list[Tensor]:
        return [show(tensors["trained_CHW"].detach(), self.bounds)]

    def preview(self, tensors: Tensors) -> list[Tensor]:
        return self.stored(tensors)

    def geometry(self, tensors: Tensors) -> dict[str, object]:
        trained_CHW, pixels_Nhw = tensors["trained_CHW"], tensors["pixels_Nhw"]
        width = trained_CHW.shape[2]
        return {
            "poster": list(trained_CHW.shape),
            "crop": list(pixels_Nhw.shape[1:]),
            "corners_yx": [list(divmod(first, width)) for first in pixels_Nhw[:, 0, 0].tolist()],
            "territories": tensors["territories_G4"].tolist(),
            "classes": tensors["classes_G"].tolist(),
        }
