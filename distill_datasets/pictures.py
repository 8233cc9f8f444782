"""Pictures as PNG bytes: the published 8-bit images, and the overview that the card shows.

Shape suffixes: N images, C channels, H W pixels.
"""

import io
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

_WIDTH_PX = 1024
_GAP_PX = 2
_MOST_TILES = 400

Bytes = npt.NDArray[np.uint8]


def to_bytes(image_CHW: Tensor) -> Tensor:
    """An image in [0, 1] rounded to 8 bits."""
    return (image_CHW.detach().clamp(0, 1) * 255).round().byte()


def png(image_CHW: Tensor) -> bytes:
    """An 8-bit image as PNG: mode L for one channel, RGB for three; lossless, equal bytes."""
    return _encode(_pixels(image_CHW))


def overview(images: Sequence[Tensor]) -> bytes:
    """All originals in one picture, enlarged without smoothing until it is about 1024 px wide.

    Few large images stand side by side; many small ones make a sheet, in the order given.

    Args:
        images: each (C, H, W) in [0, 1], all with the same number of channels.

    Returns:
        PNG bytes. Of more than 400 images, 400 evenly spaced ones are shown.
    """
    spaced = np.linspace(0, len(images) - 1, min(len(images), _MOST_TILES)).round().astype(int)
    tiles = [_pixels(to_bytes(images[index])) for index in spaced]
    height = max(tile.shape[0] for tile in tiles)
    width = max(tile.shape[1] for tile in tiles)
    columns = min(len(tiles), max(1, round(math.sqrt(len(tiles) * 2 * height / width))))
    rows = math.ceil(len(tiles) / columns)
    scale = max(1, _WIDTH_PX // (columns * (width + _GAP_PX)))
    step_y, step_x = height * scale + _GAP_PX, width * scale + _GAP_PX
    sheet = np.full(
        (rows * step_y - _GAP_PX, columns * step_x - _GAP_PX, tiles[0].shape[2]), 255, np.uint8
    )
    for index, tile in enumerate(tiles):
        y, x = index // columns * step_y, index % columns * step_x
        large = tile.repeat(scale, axis=0).repeat(scale, axis=1)
        sheet[y : y + large.shape[0], x : x + large.shape[1]] = large
    return _encode(sheet)


def _pixels(image_CHW: Tensor) -> Bytes:
    pixels: Bytes = image_CHW.cpu().permute(1, 2, 0).contiguous().numpy()
    return pixels


def _encode(pixels_HWC: Bytes) -> bytes:
    buffer = io.BytesIO()
    pixels = pixels_HWC[:, :, 0] if pixels_HWC.shape[2] == 1 else pixels_HWC
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=9)
    return buffer.getvalue()
