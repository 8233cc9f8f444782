"""Where crops and class territories lie on a poster.

This module knows only rectangles: no gradients, no labels, no files.

Shape suffixes: N boxes or crops, h w pixels of a box, K classes.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch

from distill_datasets.errors import RecipeError

if TYPE_CHECKING:
    from torch import Tensor


class Box(NamedTuple):
    """A rectangle in pixels: rows top..bottom, columns left..right, ends excluded."""

    top: int
    left: int
    bottom: int
    right: int


def class_rows(classes: int, *, portrait: bool) -> list[int]:
    """How many classes stand in each row of the class grid.

    The grid is the divisor pair nearest to a square; a count without a fair one (7, 11, 13) gets
    rows that differ by one class.

    Args:
        classes: number of classes, at least 1.
        portrait: more rows than columns instead of more columns than rows.

    Returns:
        Classes of each row, top to bottom; they sum to `classes`.
    """
    root = math.isqrt(classes)
    short = max(divisor for divisor in range(1, root + 1) if classes % divisor == 0)
    if short * 2 <= root:
        short = root
    rows = math.ceil(classes / short) if portrait else short
    return [classes // rows + (row < classes % rows) for row in range(rows)]


def poster_size(
    ipc: float, classes: int, example: tuple[int, int], *, portrait: bool
) -> tuple[int, int]:
    """Height and width of a poster that spends a budget, in pixels.

    The aspect is that of the class grid; the height is clamped to one example, and the width takes
    what is left. At 0.9 images per class on CIFAR-10 this is the paper's 60 x 153.

    Args:
        ipc: budget in images per class; at most this many pixels are used.
        classes: number of classes.
        example: (height, width) of one example, in pixels.
        portrait: orientation of the class grid.

    Raises:
        RecipeError: the budget is smaller than one example.
    """
    area = math.floor(ipc * classes * example[0] * example[1])
    if area < example[0] * example[1]:
        raise RecipeError(
            f"distill.canvas.ipc: {ipc} images per class of {classes} classes are {area} px, less "
            f"than one example of {example[0]} x {example[1]} px; set ipc to at least "
            f"{math.ceil(1000 / classes) / 1000}"
        )
    rows = len(class_rows(classes, portrait=portrait))
    height = max(example[0], math.floor(rows * example[0] * math.sqrt(ipc)))
    width = area // height
    if width < example[1]:
        width = example[1]
        height = area // width
    return height, width


def territories(poster: tuple[int, int], rows: list[int]) -> list[Box]:
    """The rectangle of every position of the class grid, row by row.

    A row's height is in proportion to its classes, so that all classes own nearly equal area.

    Raises:
        RecipeError: the poster has fewer pixels along an axis than the grid has positions.
    """
    height, width = poster
    classes = sum(rows)
    boxes = []
    placed = 0
    for count in rows:
        top, bottom = (round(height * edge / classes) for edge in (placed, placed + count))
        placed += count
        edges = [round(width * column / count) for column in range(count + 1)]
        boxes += [Box(top, left, bottom, right) for left, right in pairwise(edges)]
    if any(box.top == box.bottom or box.left == box.right for box in boxes):
        raise RecipeError(
            f"distill.canvas: a poster of {height} x {width} px is too small for {classes} classes "
            f"in rows of {rows}, each of which owns at least one pixel; raise the budget"
        )
    return boxes


def crop_grid(
    poster: tuple[int, int], example: tuple[int, int], grid: tuple[int, int]
) -> list[Box]:
    """Evenly spaced crops, row by row.

    The first crop touches the top-left corner of the poster and the last its bottom-right one.

    Args:
        poster: (height, width) of the poster, in pixels.
        example: (height, width) of one crop, in pixels.
        grid: (rows, columns) of crops, each at least 1.

    Raises:
        RecipeError: a crop is larger than the poster, crops would coincide, or crops would leave
            pixels uncovered.

    Source: PoDD (arXiv:2403.12040), section 3.
    """
    starts = []
    for axis, length, side, count in zip(("height", "width"), poster, example, grid, strict=True):
        free = length - side
        if free < 0:
            raise RecipeError(
                f"distill.canvas.{axis}: a poster of {length} px cannot hold a crop of {side} px; "
                f"set {axis} to at least {side}, raise ipc or lower source.resolution"
            )
        if count > free + 1:
            raise RecipeError(
                f"distill.canvas.crops: {count} crops of {side} px along a {axis} of {length} px "
                f"coincide; at most {free + 1} differ"
            )
        if count * side < length:
            raise RecipeError(
                f"distill.canvas.crops: {count} crops of {side} px leave pixels of a {axis} of "
                f"{length} px uncovered; use at least {math.ceil(length / side)}"
            )
        starts.append(
            [round(free * step / (count - 1)) for step in range(count)] if count > 1 else [0]
        )
    return [
        Box(top, left, top + example[0], left + example[1])
        for top in starts[0]
        for left in starts[1]
    ]


def fair_grid(poster: tuple[int, int], example: tuple[int, int], crops: int) -> tuple[int, int]:
    """Rows and columns of about `crops` crops whose strides are alike along both axes.

    Along an axis there are never more crops than distinct positions, and never too few to cover it.
    """
    # a poster that is too small for one crop is refused by `crop_grid`
    free_h, free_w = (max(0, length - side) for length, side in zip(poster, example, strict=True))
    least_h, least_w = (
        math.ceil(length / side) for length, side in zip(poster, example, strict=True)
    )
    rows = round(math.sqrt(crops * (free_h + 1) / (free_w + 1)))
    rows = max(min(rows, crops // least_w, free_h + 1), least_h)
    columns = min(max(round(crops / rows), least_w), free_w + 1)
    return rows, columns


def overlap_shares(crops: list[Box], cells: list[Box]) -> Tensor:
    """The share of each crop's area that lies on each cell, (N, K), rows summing to 1."""
    crop_N4 = torch.tensor(crops)
    cell_K4 = torch.tensor(cells)

    def overlap(start: int, end: int) -> Tensor:
        first = torch.maximum(crop_N4[:, None, start], cell_K4[None, :, start])
        last = torch.minimum(crop_N4[:, None, end], cell_K4[None, :, end])
        return (last - first).clamp(min=0)

    area_NK = (overlap(0, 2) * overlap(1, 3)).to(torch.float32)
    return area_NK / area_NK.sum(dim=1, keepdim=True)


def pixels_of(boxes: list[Box], width: int) -> Tensor:
    """Where the pixels of boxes of one size lie in an image of so many columns, (N, h, w).

    Places are counted row by row: the one of pixel (y, x) is y * width + x.
    """
    first = boxes[0]
    corner_N = torch.tensor([box.top * width + box.left for box in boxes])
    row_h = torch.arange(first.bottom - first.top) * width
    inside_hw = row_h[:, None] + torch.arange(first.right - first.left)
    return corner_N[:, None, None] + inside_hw
