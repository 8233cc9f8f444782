"""One view that a whole batch of images shares: crop, enlarge, mirror, roll.

All four act on rows and on columns for themselves, so a view is two small matrices: the shape of
the work is the same for every draw, and its gradient is a product as well.

Shape suffixes: C channels, H W pixels, S places along a side.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from distill_datasets.relabeling import RandomCrop
from distill_datasets.views import random_crops

if TYPE_CHECKING:
    from torch import Tensor

Curriculum = Literal["none", "cosine", "linear", "step"]


class SharedView(NamedTuple):
    """A rectangle enlarged to the whole image, then mirrored, then rolled; all in pixels.

    A roll by (1, 0) moves the last row to the top.
    """

    top: int
    left: int
    height: int
    width: int
    flip: bool = False
    down: int = 0
    right: int = 0

    def __call__(self, images: Tensor) -> Tensor:
        """The view of images (..., H, W), each moved alike; bilinear, differentiable."""
        height, width = images.shape[-2:]
        rows_HH = _moved(height, self.top, self.height, False, self.down)
        columns_WW = _moved(width, self.left, self.width, self.flip, self.right)
        rows_HH, columns_WW = rows_HH.to(images), columns_WW.to(images)
        return torch.matmul(rows_HH, torch.matmul(images, columns_WW.T))


def _moved(side: int, start: int, length: int, flip: bool, roll: int) -> Tensor:
    """Weights (S, S) of every old place in every new one, along one side.

    Halves of pixels count as in torch's `interpolate` of the cut out crop.
    """
    to_S = (torch.arange(side) - roll) % side
    to_S = side - 1 - to_S if flip else to_S
    from_S = ((to_S + 0.5) * (length / side) - 0.5).clamp(min=0)
    near_S = from_S.floor().long()
    far_S = (near_S + 1).clamp(max=length - 1)
    part_S = from_S - near_S
    weights_SS = torch.zeros(side, side)
    row_S = torch.arange(side)
    weights_SS[row_S, start + near_S] += 1 - part_S
    weights_SS[row_S, start + far_S] += part_S
    return weights_SS


def smallest_area(crop: RandomCrop, curriculum: Curriculum, milestone: float, done: float) -> float:
    """The least share of the area that a crop may have, when a share `done` of all steps is done.

    It falls from the crop's `largest` to its `smallest` during the share `milestone` of the steps.

    Source: CDA (arXiv:2311.18838), its curriculum on the lower bound of the crop.
    """
    if curriculum == "none" or done >= milestone:
        return crop.smallest
    way = done / milestone
    falling = {"cosine": (1 + math.cos(math.pi * way)) / 2, "linear": 1 - way, "step": 1.0}
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
