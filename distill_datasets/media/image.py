"""Images: any PIL image becomes 8-bit pixels by the rules written down here, and pixels become PNG.

* The EXIF orientation is applied.
* Transparency (an alpha channel, a transparent palette entry or color key) is composited over
  white.
* A palette image is a color image. Of an animation the first frame is used.
* CMYK, YCbCr and HSV are converted by PIL, LAB through the sRGB profile.
* 16-bit integers are divided by 257 and rounded, so that 65535 becomes 255; 32-bit integers (mode
  `I`, how 16-bit files are often opened) likewise, and a value outside 0..65535 is refused.
* Floats (mode `F`) are multiplied by 255 when the image lies within [0, 1], taken as they are when
  it lies within [0, 255], and refused otherwise or when a value is not finite.
* A gray image asked for as RGB is repeated over three channels; a color image asked for as gray is
  reduced by PIL's luma weights (ITU-R 601).
* With a resolution the shorter side is resized (bilinear, antialiased) and the center is cropped to
  a square.

An image is gray when its *mode* is gray. Pixels are not looked at: a gray photograph stored as RGB
is a color image.

Shape suffixes: N images, C channels, H W pixels.
"""

from __future__ import annotations

import importlib
import io
import math
import struct
import warnings
import zlib
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

    Bytes = npt.NDArray[np.uint8]

GRAY_MODES = frozenset({"1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"})


WIDE_MODES = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})


SOLID_MODES = frozenset({"1", "L", "RGB"})


LONGEST_SIDE_RATIO = 100


RASTER_FORMATS = (
    *("PNG", "JPEG", "MPO", "GIF", "BMP", "DIB", "TIFF", "WEBP", "AVIF", "HEIF", "JXL"),
    *("JPEG2000", "PPM", "TGA", "ICO", "CUR", "ICNS", "PCX", "DCX", "SGI", "SUN", "DDS", "FTEX"),
    *("QOI", "PSD", "XBM", "XPM", "IM", "MSP", "PIXAR", "SPIDER", "FITS", "BLP", "FLI", "GBR"),
    *("XVTHUMB", "IMT", "MCIDAS", "PCD"),
)


# They bring the formats HEIF and JXL, where they are installed.
PLUG_INS = ("pillow_heif.HeifImagePlugin", "pillow_jxl")


# What PIL raises on files that are broken, each seen in its decoders.
BROKEN_IMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class UnusableImage(ValueError):
    """One image cannot be used; the message is the reason, without the row."""


def open_image(encoded: bytes, mode: str | None = None) -> Image.Image:
    """Decode the bytes of an image file, upright.

    Args:
        encoded: a whole file in any format that PIL reads.
        mode: the PIL mode that the dataset's feature asks for; None keeps the file's own.

    Raises:
        UnusableImage: the bytes are no image, are cut short or are damaged.
    """
    if not encoded:
        raise UnusableImage("the image has no bytes")
    try:
        image = Image.open(BytesIO(encoded), formats=raster_formats())
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return image if mode is None or mode == image.mode else image.convert(mode)
    except UnidentifiedImageError as error:
        raise UnusableImage(f"{len(encoded)} bytes that are no image PIL can identify") from error
    except BROKEN_IMAGE as error:
        raise UnusableImage(f"the image cannot be decoded ({error})") from error


def is_image(encoded: bytes) -> bool:
    """Whether bytes begin as an image file of a kind that is read does."""
    try:
        with Image.open(BytesIO(encoded), formats=raster_formats()):
            return True
    except BROKEN_IMAGE:
        return False


@cache
def raster_formats() -> tuple[str, ...]:
    """PIL's names of the formats that are read: pixels in a file, and no program that draws them.

    EPS is a program for Ghostscript, WMF one for Windows; MPEG, HDF5 and the like are only stubs.
    """
    Image.init()
    for plug_in in PLUG_INS:
        with suppress(ImportError):
            importlib.import_module(plug_in)
    return tuple(name for name in RASTER_FORMATS if name in Image.OPEN)


@cache
def raster_endings() -> frozenset[str]:
    """The endings of file names that PIL knows for formats that are read: `.png`."""
    formats = raster_formats()
    endings = Image.registered_extensions().items()
    return frozenset(ending for ending, name in endings if name in formats)


@cache
def _signed_formats() -> list[str]:
    """Formats whose files begin with a signature; TGA and a few others are known by ending only."""
    return [name for name in raster_formats() if name == "MPO" or Image.OPEN[name][1] is not None]


def identified(path: Path) -> bool:
    """Whether PIL identifies a file by its first bytes, whatever it is called."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        try:
            with Image.open(path, formats=_signed_formats()):
                return True
        except BROKEN_IMAGE:
            return False


def own_channels(image: Image.Image) -> Literal[1, 3]:
    """How many channels an image has by its own mode: 1 when it is gray, else 3."""
    return 1 if image.mode in GRAY_MODES else 3


def _wide_to_8_bit(image: Image.Image) -> Image.Image:
    values_HW = np.asarray(image).astype(np.float64)
    if values_HW.min() < 0 or values_HW.max() > 65535:
        raise UnusableImage(
            f"integers from {values_HW.min():.0f} to {values_HW.max():.0f}, expected 0..65535"
        )
    return Image.fromarray(np.rint(values_HW / 257).astype(np.uint8))


def _float_to_8_bit(image: Image.Image) -> Image.Image:
    values_HW = np.asarray(image).astype(np.float64)
    if not np.isfinite(values_HW).all():
        raise UnusableImage("floats that are not all finite")
    low, high = values_HW.min(), values_HW.max()
    if low < 0 or high > 255:
        raise UnusableImage(
            f"floats from {low:g} to {high:g}, expected all within [0, 1] or all within [0, 255]"
        )
    scale = 255 if high <= 1 else 1
    return Image.fromarray(np.rint(values_HW * scale).astype(np.uint8))


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    rgb = Image.new("RGB", image.size)
    return ImageCms.buildTransform(lab, srgb, "LAB", "RGB").apply(image, rgb)


def _over_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")
    pixels = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels).convert("RGB")


def _solid(image: Image.Image) -> Image.Image:
    """The image as `1`, `L` or `RGB`: 8 bits a channel and nothing transparent."""
    if image.mode in WIDE_MODES:
        return _wide_to_8_bit(image)
    if image.mode == "F":
        return _float_to_8_bit(image)
    if image.mode == "LAB":
        return _lab_to_rgb(image)
    if image.has_transparency_data:
        return _over_white(image)
    return image if image.mode in SOLID_MODES else image.convert("RGB")


def _square(pixels_CHW: Tensor, resolution: int) -> Tensor:
    from torchvision.transforms.v2 import functional

    height, width = pixels_CHW.shape[-2:]
    if (height, width) == (resolution, resolution):
        return pixels_CHW
    if max(height, width) > LONGEST_SIDE_RATIO * min(height, width):
        raise UnusableImage(
            f"{height}x{width} px, too long for a square crop "
            f"(at most {LONGEST_SIDE_RATIO} times its shorter side)"
        )
    resized_CHW = functional.resize(
        pixels_CHW,
        [resolution],
        interpolation=functional.InterpolationMode.BILINEAR,
        antialias=True,
    )
    cropped: Tensor = functional.center_crop(resized_CHW, [resolution, resolution])
    return cropped


def to_pixels(image: Image.Image, channels: Literal[1, 3], resolution: int | None) -> Tensor:
    """The image as uint8 pixels.

    Args:
        image: what `open_image` returned, of any mode.
        channels: 1 for gray, 3 for RGB.
        resolution: side of the square in pixels; None keeps the image's own size.

    Returns:
        A tensor (channels, height, width) of uint8.

    Raises:
        UnusableImage: the values have no 8-bit meaning, or PIL cannot convert the mode.
    """
    try:
        converted, mode = _solid(image), "L" if channels == 1 else "RGB"
        if converted.mode != mode:
            converted = converted.convert(mode)
    except UnusableImage:
        raise
    except (*BROKEN_IMAGE, ImageCms.PyCMSError) as error:
        raise UnusableImage(f"mode {image.mode} cannot be converted ({error})") from error
    if 0 in converted.size:
        raise UnusableImage(f"the image is empty ({converted.height}x{converted.width} px)")
    values = np.array(converted, dtype=np.uint8).reshape(
        converted.height, converted.width, channels
    )
    pixels_CHW = torch.from_numpy(values).permute(2, 0, 1).contiguous()
    return pixels_CHW if resolution is None else _square(pixels_CHW, resolution)


_WIDTH_PX = 1024


_GAP_PX = 2


_MOST_TILES = 400


def to_bytes(image_CHW: Tensor) -> Tensor:
    """An image in [0, 1] rounded to 8 bits."""
    return (image_CHW.detach().clamp(0, 1) * 255).round().byte()


def png(image_CHW: Tensor) -> bytes:
    """An 8-bit image as PNG: mode L for one channel, RGB for three; lossless, equal bytes."""
    return _encode(_pixels(image_CHW))


def webp(image_CHW: Tensor, quality: int) -> bytes:
    """An 8-bit image as lossy WebP; `quality` is PIL's, from 0 to 100."""
    buffer = io.BytesIO()
    _picture(_pixels(image_CHW)).save(buffer, format="WEBP", quality=quality, method=6)
    return buffer.getvalue()


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
    _picture(pixels_HWC).save(buffer, format="PNG", compress_level=9)
    return buffer.getvalue()


def _picture(pixels_HWC: Bytes) -> Image.Image:
    """Pixels as PIL has them: mode L for one channel, RGB for three."""
    return Image.fromarray(pixels_HWC[:, :, 0] if pixels_HWC.shape[2] == 1 else pixels_HWC)
