"""Random crops, and the one view that a whole batch shares: crop, enlarge, mirror, roll.

All four act on rows and on columns for themselves, so a shared view is two small matrices: the
shape of the work is the same for every draw, and its gradient is a product as well.

Shape suffixes: N images, R tries, C channels, H W pixels, S places along a side.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator

from distill_datasets.config import Section
from distill_datasets.optimizers import cosine

if TYPE_CHECKING:
    from torch import Tensor


SmallestArea = Annotated[
    float, Field(gt=0, le=1, description="least share of the image's area that a resized crop has")
]
LargestArea = Annotated[
    float,
    Field(gt=0, le=1, description="largest share of the image's area that a resized crop has"),
]
Aspect = Annotated[
    float,
    Field(
        ge=1, description="sides of a resized crop stand between 1 : it and it : 1; 1 for squares"
    ),
]


def check_areas(smallest: float, largest: float) -> None:
    """Refuse a smallest area above the largest, in a validator.

    Raises:
        ValueError: it is.
    """
    if smallest > largest:
        raise ValueError(f"smallest: got {smallest}, expected at most largest, which is {largest}")


class RandomCrop(Section):
    """A rectangle of random area and aspect, enlarged to the whole image: RandomResizedCrop."""

    smallest: SmallestArea = 0.08
    largest: LargestArea = 1.0
    aspect: Aspect = 4 / 3

    @model_validator(mode="after")
    def _areas_are_in_order(self) -> Self:
        check_areas(self.smallest, self.largest)
        return self


def crop_sides(area: Tensor, aspect: Tensor) -> tuple[Tensor, Tensor]:
    """Height and width of rectangles by their area and aspect, the width by the height.

    Source: RandomResizedCrop, Inception (arXiv:1409.4842), section 6.
    """
    return torch.sqrt(area / aspect), torch.sqrt(area * aspect)


TRIES = 10
"""Rectangles drawn for a view before the largest that fits is taken instead, as in torchvision."""


def random_crops(
    settings: RandomCrop, count: int, size: tuple[int, int], rng: torch.Generator
) -> Tensor:
    """Rectangles of whole pixels inside the image, (N, 4) float64, as torchvision draws them."""
    height, width = size
    drawn_NR = torch.rand(4, count, TRIES, generator=rng, dtype=torch.float64)
    share_NR, aspect_NR, top_NR, left_NR = drawn_NR
    area_NR = settings.smallest + (settings.largest - settings.smallest) * share_NR
    area_NR = area_NR * height * width
    # uniform in the logarithm: as often a : 1 as 1 : a
    aspect_NR = torch.exp(math.log(settings.aspect) * (2 * aspect_NR - 1))
    high_NR, wide_NR = (side_NR.round() for side_NR in crop_sides(area_NR, aspect_NR))
    fits_NR = (high_NR > 0) & (high_NR <= height) & (wide_NR > 0) & (wide_NR <= width)
    # the product of a draw just below 1 may be rounded up to the bound
    top_NR = (top_NR * (height - high_NR + 1)).floor().minimum(height - high_NR)
    left_NR = (left_NR * (width - wide_NR + 1)).floor().minimum(width - wide_NR)
    # argmax of ones and zeros is the first one: the first try that fits is taken
    first_N1 = fits_NR.int().argmax(dim=1, keepdim=True)
    tried_N4R = torch.stack([top_NR, left_NR, high_NR, wide_NR], dim=1)
    chosen_N4 = tried_N4R.gather(2, first_N1[:, None].expand(-1, 4, -1))[:, :, 0]
    high = min(height, round(width * settings.aspect))
    wide = min(width, round(height * settings.aspect))
    central_4 = chosen_N4.new_tensor([(height - high) // 2, (width - wide) // 2, high, wide])
    return torch.where(fits_NR.any(dim=1, keepdim=True), chosen_N4, central_4)


Curriculum = Literal["none", "cosine", "linear", "step"]


class SharedView(NamedTuple):
    """A rectangle enlarged to a whole image, then mirrored, then rolled; all in pixels.

    A roll by (1, 0) moves the last row to the top. `size` is the height and width of the view; None
    takes those of the image.
    """

    top: int
    left: int
    height: int
    width: int
    flip: bool = False
    down: int = 0
    right: int = 0
    size: tuple[int, int] | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """The view (..., h, w) of images (..., H, W), all moved alike; bilinear, differentiable."""
        height, width = images.shape[-2:]
        high, wide = self.size or (height, width)
        # x -> R x C^T: R moves the rows and C the columns
        rows_hH = _moved(high, height, self.top, self.height, False, self.down)
        columns_wW = _moved(wide, width, self.left, self.width, self.flip, self.right)
        rows_hH, columns_wW = rows_hH.to(images), columns_wW.to(images)
        return torch.matmul(rows_hH, torch.matmul(images, columns_wW.T))


def _moved(to: int, side: int, start: int, length: int, flip: bool, roll: int) -> Tensor:
    """Weights (s, S) of every old place in every new one, along one side."""
    # read backwards: the roll is taken back, then the mirror, then the place is looked up
    to_s = (torch.arange(to) - roll) % to
    to_s = to - 1 - to_s if flip else to_s
    near_s, far_s, part_s = enlarged(to_s, torch.tensor(float(length)), to)
    weights_sS = torch.zeros(to, side)
    row_s = torch.arange(to)
    weights_sS[row_s, start + near_s.long()] += 1 - part_s
    weights_sS[row_s, start + far_s.long()] += part_s
    return weights_sS


def enlarged(to_S: Tensor, length: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where places of an enlarged crop come from, along one side: bilinear resampling.

    Halves of pixels count as in torch's `interpolate` of the cut out crop: nothing outside of the
    crop is read, and a crop of the whole side is the side itself.

    Args:
        to_S: places along the side, any shape (..., S).
        length: of the crop in whole pixels, float32; of a shape that fits `to_S`.
        side: length of the view.

    Returns:
        The two places of the crop that each lies between, and the weight of the second.
    """
    # the middle of pixel s lies at s + 1/2, so s comes from x = (s + 1/2) length / side - 1/2 and
    # is (1 - part) of pixel floor(x) and part = x - floor(x) of the next
    from_S = ((to_S + 0.5) * (length / side) - 0.5).clamp(min=0)
    near_S = from_S.floor().minimum(length - 1)
    far_S = (near_S + 1).minimum(length - 1)
    return near_S, far_S, from_S - near_S


def smallest_area(crop: RandomCrop, curriculum: Curriculum, milestone: float, done: float) -> float:
    """The least share of the area that a crop may have, when a share `done` of all steps is done.

    It falls from the crop's `largest` to its `smallest` during the share `milestone` of the steps.

    Source: CDA (arXiv:2311.18838), its curriculum on the lower bound of the crop.
    """
    if curriculum == "none" or done >= milestone:
        return crop.smallest
    way = done / milestone
    falling = {"cosine": cosine(way, 1.0), "linear": 1 - way, "step": 1.0}
    return crop.smallest + (crop.largest - crop.smallest) * falling[curriculum]


def draw_view(
    crop: RandomCrop | None, flip: bool, roll: int, size: tuple[int, int], rng: torch.Generator
) -> SharedView:
    """A random view.

    Args:
        crop: area and aspect of the rectangle; None takes the whole image.
        flip: mirror it, half of the time.
        roll: roll it by 0 to so many pixels, down and to the right.
        size: height and width of the images, in pixels.
        rng: decides everything.

    Source: SRe2L (arXiv:2306.13092), the recovery's random resized crop, flip and jitter.
    """
    top, left, height, width = 0, 0, *size
    if crop is not None:
        top, left, height, width = (int(edge) for edge in random_crops(crop, 1, size, rng)[0])
    down, right = torch.randint(roll + 1, (2,), generator=rng).tolist()
    mirrored = flip and float(torch.rand((), generator=rng)) < 0.5
    return SharedView(top, left, height, width, mirrored, down, right)
