"""Arrays of numbers as images, of any number of channels: multispectral, depth, several sensors.

Shape suffixes: C channels, H W pixels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from distill_datasets.media.image import Seen, UnusableImage, square


class ArrayKind(NamedTuple):
    """How the arrays of a column are read.

    Attributes:
        last: whether channels are the last axis; else they are the first.
        span: the values that become 0 and 255; None where values are bytes already.
    """

    last: bool
    span: tuple[float, float] | None


def read_array(cell: Any, kind: ArrayKind, resolution: int | None) -> Seen:  # noqa: ANN401
    """An array as uint8 pixels.

    Args:
        cell: nested lists, or an array, of three axes.
        kind: how it is read.
        resolution: side of the square in pixels; None keeps the array's own size.

    Raises:
        UnusableImage: there is none, it has other axes, or a value that is not finite.
    """
    if cell is None:
        raise UnusableImage("the image is missing")
    try:
        values = np.asarray(cell, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UnusableImage("the array has rows of different lengths, or gaps") from error
    if values.ndim != 3 or 0 in values.shape:
        raise UnusableImage(f"an array of shape {values.shape}, expected three axes")
    if not np.isfinite(values).all():
        raise UnusableImage("the array has values that are not finite")
    if kind.span is not None:
        low, high = kind.span
        values = (values - low) / (high - low) * 255
    pixels = torch.from_numpy(values.clip(0, 255).round().astype(np.uint8))
    pixels_CHW = pixels.permute(2, 0, 1).contiguous() if kind.last else pixels
    c, h, w = pixels_CHW.shape
    return Seen(pixels_CHW if resolution is None else square(pixels_CHW, resolution), c, h * w)
