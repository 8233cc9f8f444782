"""The picture of a set by its classes: what of it is shown, and a sheet with the name of each.

Shape suffixes: N examples, K classes, C channels, H W pixels.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from distill_datasets.media.image import in_color

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

MOST_CLASSES = 100
MOST_OF_CLASS = 10
SIDE_PX = 64
WIDTH_PX = 1000
GAP_PX, BLOCK_GAP_PX, LINE_PX = 2, 16, 20
INK, PAPER = (34, 34, 34), (255, 255, 255)


def by_class(targets_NK: Tensor, most: int = MOST_OF_CLASS) -> list[list[int]]:
    """Of every class the rows that are most of it, by their share, at most `most`.

    A row belongs to the class that it has the largest share of; some classes may have none.
    """
    share_N, label_N = targets_NK.float().max(dim=1)
    order_N = share_N.argsort(descending=True, stable=True)
    found: list[list[int]] = [[] for _ in range(targets_NK.shape[1])]
    for row, label in zip(order_N.tolist(), label_N[order_N].tolist(), strict=True):
        if len(found[label]) < most:
            found[label].append(row)
    return found


def class_sheet(images_NCHW: Tensor, targets_NK: Tensor, class_names: Sequence[str]) -> bytes:
    """A PNG with a block of images for every class, under its name.

    Args:
        images_NCHW: uint8.
        targets_NK: their labels.
        class_names: in order. Of more than 100 classes, 100 evenly spaced ones are shown; a name
            beyond Latin letters, which the font lacks, is shown as its number.
    """
    rows = by_class(targets_NK)
    spaced = np.linspace(0, len(rows) - 1, min(len(rows), MOST_CLASSES)).round().astype(int)
    shown = [(label, rows[label]) for label in spaced.tolist() if rows[label]]
    widest = max(len(chosen) for _, chosen in shown)
    block = max(widest * (SIDE_PX + GAP_PX), 2 * SIDE_PX) + BLOCK_GAP_PX
    columns = max(1, min(len(shown), WIDTH_PX // block))
    height = LINE_PX + SIDE_PX + BLOCK_GAP_PX
    lines = -(-len(shown) // columns)
    sheet = Image.new("RGB", (columns * block + BLOCK_GAP_PX, lines * height + BLOCK_GAP_PX), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for place, (label, chosen) in enumerate(shown):
        x = BLOCK_GAP_PX + place % columns * block
        y = BLOCK_GAP_PX // 2 + place // columns * height
        name = _fitting(_printable(class_names[label], label), font, block - BLOCK_GAP_PX)
        pen.text((x, y), name, INK, font)
        for turn, row in enumerate(chosen):
            sheet.paste(_thumbnail(images_NCHW[row]), (x + turn * (SIDE_PX + GAP_PX), y + LINE_PX))
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", compress_level=9)
    return buffer.getvalue()


def _thumbnail(image_CHW: Tensor) -> Image.Image:
    """The image as a square: enlarged without smoothing, shrunk with it."""
    pixels = in_color(image_CHW.cpu()).permute(1, 2, 0).contiguous().numpy()
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    larger = max(picture.size) > SIDE_PX
    picture.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
    if not larger:
        times = SIDE_PX / max(picture.size)
        size = (round(picture.width * times), round(picture.height * times))
        picture = picture.resize(size, Image.Resampling.NEAREST)
    return picture


def _printable(name: str, label: int) -> str:
    """A name that the font has, in a line."""
    line = " ".join(name.split())
    fits = line.isprintable() and line == line.encode("latin-1", "ignore").decode("latin-1")
    return line if fits and line else f"class {label}"


def _fitting(name: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """As much of a name as fits, with three dots where that is not all."""
    if font.getlength(name) <= width:
        return name
    while name and font.getlength(f"{name}...") > width:
        name = name[:-1]
    return f"{name}..."
