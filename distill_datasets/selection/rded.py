"""Images put together from crops of real ones that trained networks recognize best (RDED).

Shape suffixes: N images of a class, T crops of each, M networks, B a batch, K classes, C channels,
H W pixels of an image, h w pixels of a tile.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator

from distill_datasets.errors import refuse
from distill_datasets.selection.selection import AT_ONCE, Selection, Teacher, present, repeated
from distill_datasets.types import Shape
from distill_datasets.views.crops import LargestArea, SmallestArea, check_areas

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.real import RealData


class Rded(Selection):
    """Mosaics of the most realistic crops: of some random ones per image, the best recognized.

    A crop is made as small as a tile, surrounded by the mean color, and scored by the cross-entropy
    of the networks of the squeeze stage. Each image gives its best crop, and of these the best fill
    the tiles: tile t of image n is the one of rank n + t * per_class.

    Source: RDED (arXiv:2312.03526), section 3.
    """

    paper: ClassVar[str] = "RDED, arXiv:2312.03526"
    name: Literal["rded"] = "rded"
    factor: int = Field(
        default=2, gt=0, le=256, description="tiles along each side; RDED: 2, below 128 px 1"
    )
    candidates: int = Field(
        default=300,
        gt=0,
        le=10_000_000,
        description="images of a class that crops are cut from, or as many as it has tiles",
    )
    crops: int = Field(default=5, gt=0, le=100_000, description="random crops of each candidate")
    smallest: SmallestArea = 0.08
    largest: LargestArea = 1.0

    @property
    def needs_squeezed(self) -> bool:
        return True

    @model_validator(mode="after")
    def _areas_are_in_order(self) -> Self:
        check_areas(self.smallest, self.largest)
        return self

    def problems(self, shape: Shape) -> Iterator[str]:
        side = min(shape.h, shape.w)
        if side < self.factor:
            yield (
                f"distill.canvas.init.factor: {self.factor} tiles along a side of {side} px; "
                f"set it to at most {side}, usually 1 or 2"
            )

    def of_class(
        self,
        real: RealData,
        label: int,
        per_class: int,
        rng: torch.Generator,
        teacher: Teacher | None = None,
    ) -> Tensor:
        """Displayable mosaics (per_class, C, H, W); a class with few images repeats crops.

        Raises:
            RecipeError: a tile has no pixel.
        """
        refuse(self.problems(real.shape))
        asked, shape = present(teacher, self), real.shape
        tiles = self.factor**2 * per_class
        real.warn_of_few(tiles)
        own_N = real.rows_of_class[label]
        drawn_N = torch.randperm(len(own_N), generator=rng)[: max(self.candidates, tiles)]
        crops_NChw = self._best_crops(real, label, own_N.cpu()[drawn_N], rng, asked)
        ranked_NChw = crops_NChw[repeated(range(len(crops_NChw)), tiles)]
        return self._mosaics(ranked_NChw, per_class, (shape.h, shape.w))

    def _best_crops(
        self, real: RealData, label: int, rows_N: Tensor, rng: torch.Generator, teacher: Teacher
    ) -> Tensor:
        """The best crop of every image, (N, C, h, w), the best recognized image first."""
        best, losses = [], []
        for rows_B in torch.split(rows_N, max(1, AT_ONCE // self.crops)):
            crops_BTChw = torch.stack(
                [self._crops(shown, rng) for shown in real.displayable(rows_B)]
            )
            loss_B, place_B = self._scores(real, crops_BTChw, label, teacher).min(dim=1)
            best.append(crops_BTChw[torch.arange(len(rows_B)), place_B])
            losses.append(loss_B)
        order_N = torch.cat(losses).sort(stable=True).indices
        return torch.cat(best)[order_N]

    def _crops(self, image_CHW: Tensor, rng: torch.Generator) -> Tensor:
        """Random crops in the proportions of the image, as small as a tile: (T, C, h, w)."""
        height, width = image_CHW.shape[1:]
        tile = (height // self.factor, width // self.factor)
        crops = []
        for _ in range(self.crops):
            # a share a of the area has sides sqrt(a) H and sqrt(a) W
            area, down, right = torch.rand(3, generator=rng, dtype=torch.float64).tolist()
            side = math.sqrt(self.smallest + area * (self.largest - self.smallest))
            high, wide = max(1, round(side * height)), max(1, round(side * width))
            top, left = int(down * (height - high + 1)), int(right * (width - wide + 1))
            cut_CHW = image_CHW[:, top : top + high, left : left + wide]
            crops.append(F.interpolate(cut_CHW[None], tile, mode="bilinear", antialias=True))
        return torch.cat(crops).clamp(0, 1)

    def _scores(self, real: RealData, crops_BTChw: Tensor, label: int, teacher: Teacher) -> Tensor:
        """Mean cross-entropy of the networks on every crop in the middle of mean color, (B, T)."""
        tiles_BChw = real.normalization.input_space.to_student(crops_BTChw.flatten(0, 1))
        spare_h, spare_w = real.shape.h - tiles_BChw.shape[2], real.shape.w - tiles_BChw.shape[3]
        # zeros around the tile: the mean color, after normalization
        around = (spare_w // 2, spare_w - spare_w // 2, spare_h // 2, spare_h - spare_h // 2)
        logits_MBK = teacher(F.pad(tiles_BChw, around).to(real.train.labels_N.device)).cpu()
        losses_MB = -F.log_softmax(logits_MBK, dim=2)[:, :, label]
        return losses_MB.mean(dim=0).view(crops_BTChw.shape[:2])

    def _mosaics(self, ranked_NChw: Tensor, per_class: int, size: tuple[int, int]) -> Tensor:
        """The ranked crops of a class as its mosaics, (per_class, C, H, W)."""
        channels, high, wide = ranked_NChw.shape[1:]
        side = self.factor
        # the crop of rank n + t * per_class is tile t of image n
        tiles = ranked_NChw.view(side, side, per_class, channels, high, wide)
        mosaics = tiles.permute(2, 3, 0, 4, 1, 5).reshape(
            per_class, channels, side * high, side * wide
        )
        return mosaics if mosaics.shape[2:] == size else F.interpolate(mosaics, size)
