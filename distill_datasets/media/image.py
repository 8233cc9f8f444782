"""Images: any PIL image becomes 8-bit pixels by the rules written down here, and pixels become PNG.

* The EXIF orientation is applied.
* Transparency (an alpha channel, a transparent palette entry or color key) is composited over
  white, or over `source.background`.
* A palette image is a color image. Of an animation the first frame is used.
* CMYK, YCbCr and HSV are converted by PIL, LAB through the sRGB profile.
* 16-bit integers are divided by 257 and rounded, so that 65535 becomes 255; 32-bit integers (mode
  `I`, how 16-bit files are often opened) likewise, and a value outside 0..65535 is refused. Of
  color images of 16 bits a channel PIL keeps the upper 8. With `source.white_level` that value
  becomes 255 instead, of gray and color images alike, and a value above it is refused.
* Floats (mode `F`) are multiplied by 255 when the image lies within [0, 1], taken as they are when
  it lies within [0, 255], and refused otherwise or when a value is not finite.
* A gray image asked for as RGB is repeated over three channels; a color image asked for as gray is
  reduced by PIL's luma weights (ITU-R 601).
* With a resolution the shorter side is resized (bilinear, antialiased) and the center is cropped to
  a square. An image above 33 megapixels is first averaged over blocks of pixels, to no less than
  four times the resolution, and is decoded while no other such image is.

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
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

    Bytes = npt.NDArray[np.uint8]

GRAY_MODES = frozenset({"1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"})


WIDE_MODES = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})


SOLID_MODES = frozenset({"1", "L", "RGB"})


REDUCIBLE_MODES = frozenset({"L", "LA", "RGB", "RGBA", "CMYK", "YCbCr"})


PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


RGB_COLOR = 2
"""PNG's number of that color type."""


BITS_PER_SAMPLE = 258
"""TIFF's number of that tag."""


LONGEST_SIDE_RATIO = 100


# PIL's own bound beyond which it refuses a file as a bomb, whatever a program has set there
MOST_PIXELS = 178_956_970


LARGE_PIXELS = 2**25


REDUCED_TO = 4
"""How many times the resolution a large image keeps when blocks of its pixels are averaged."""


STRIP_VALUES = 2**22


FULL_16_BIT = 65535


FADED_RANGE = 25
"""An image whose values differ by less than a tenth of the range shows nothing."""


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


class Seen(NamedTuple):
    """What one image file gave.

    Attributes:
        pixels_CHW: uint8.
        own: how many channels the image has by its own mode.
        original_px: pixels of the whole file.
        peak: the highest value where the file has 16 bits a channel, in 0..65535; else None.
        faded: where parts are transparent, whether nothing is left to see over the background.
    """

    pixels_CHW: Tensor
    own: int
    original_px: int
    peak: int | None = None
    faded: bool | None = None


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Keep PIL's warnings about odd files away: what cannot be read is told by rows."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def read_image(
    encoded: bytes,
    *,
    channels: Literal[1, 3] | None = None,
    resolution: int | None = None,
    mode: str | None = None,
    white_level: int | None = None,
    background: str = "white",
    alone: AbstractContextManager[Any] | None = None,
) -> Seen:
    """An image file as uint8 pixels, and what is known of its values.

    Args:
        encoded: the whole file.
        channels: 1 for gray, 3 for RGB; None keeps the image's own.
        resolution: side of the square in pixels; None keeps the image's own size.
        mode: the PIL mode that the dataset's feature asks for.
        white_level: what becomes 255 of files of 16 bits a channel; None is 65535.
        background: what transparent parts lie on.
        alone: held while a large image is decoded, so that memory holds one of them.

    Raises:
        UnusableImage: see `open_image` and `to_pixels`.
    """
    image = _opened(encoded)
    height, width = image.height, image.width
    large = height * width > LARGE_PIXELS
    with alone if large and alone is not None else nullcontext():
        if large and resolution is not None:
            _draft(image, resolution)
        image = _upright(image, mode)
        own, deep_color = own_channels(image), mode is None and _is_deep_color(image, encoded)
        peak: int | None = None
        if deep_color and white_level is not None:
            peak, solid = _deep_color(image, encoded, white_level)
            return Seen(_sized(solid, channels or own, resolution), own, height * width, peak)
        solid = _solid(image, white_level, background, resolution if large else None)
        if deep_color:
            bounds: Any = image.convert("RGB").getextrema()
            peak = max(high for _, high in bounds) * 257
        elif image.mode in WIDE_MODES:
            peak = _peak(image)
        faded = _is_faded(image, solid) if image.has_transparency_data else None
        return Seen(_sized(solid, channels or own, resolution), own, height * width, peak, faded)


def open_image(encoded: bytes, mode: str | None = None) -> Image.Image:
    """Decode the bytes of an image file, upright.

    Args:
        encoded: a whole file in any of the `raster_formats`.
        mode: the PIL mode that the dataset's feature asks for; None keeps the file's own.

    Raises:
        UnusableImage: the bytes are no image, are cut short or are damaged.
    """
    return _upright(_opened(encoded), mode)


def _opened(encoded: bytes) -> Image.Image:
    """An image of which no pixel is decoded yet."""
    if not encoded:
        raise UnusableImage("the image has no bytes")
    try:
        image = Image.open(BytesIO(encoded), formats=raster_formats())
    except UnidentifiedImageError as error:
        raise UnusableImage(f"{len(encoded)} bytes that are no image PIL can identify") from error
    except BROKEN_IMAGE as error:
        raise UnusableImage(f"the image cannot be decoded ({error})") from error
    if image.width * image.height > MOST_PIXELS:
        raise UnusableImage(
            f"{image.height}x{image.width} px, more than the {MOST_PIXELS // 10**6} megapixels "
            "that are read; shrink it first"
        )
    return image


def _upright(image: Image.Image, mode: str | None) -> Image.Image:
    try:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return image if mode is None or mode == image.mode else image.convert(mode)
    except BROKEN_IMAGE as error:
        raise UnusableImage(f"the image cannot be decoded ({error})") from error


def _draft(image: Image.Image, resolution: int) -> None:
    """Let the decoder of a JPEG average blocks of pixels, which saves most of its time."""
    scale = min(image.size) // (REDUCED_TO * resolution)
    if scale > 1:
        image.draft(None, (-(-image.width // scale), -(-image.height // scale)))


def _reduced(image: Image.Image, resolution: int) -> Image.Image:
    factor = min(image.size) // (REDUCED_TO * resolution)
    return image.reduce(factor) if factor > 1 else image


def _peak(image: Image.Image) -> int:
    return max(int(values_HW.max()) for _, values_HW in _strips(image))


def _strips(image: Image.Image) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Whole rows of values, some million at a time, each with the place of the first."""
    values_HW = np.asarray(image)
    rows = max(1, STRIP_VALUES // max(1, image.width))
    for first in range(0, image.height, rows):
        yield first, values_HW[first : first + rows]


def _is_deep_color(image: Image.Image, encoded: bytes) -> bool:
    """Whether a file has 16 bits a channel of a color, or of gray with alpha: PIL keeps 8."""
    if encoded.startswith(PNG_SIGNATURE):
        depth, color = encoded[24], encoded[25]
        return depth == 16 and color in (2, 4, 6)
    bits = image.tag_v2.get(BITS_PER_SAMPLE, ()) if isinstance(image, TiffImageFile) else ()
    return isinstance(bits, tuple) and len(bits) > 1 and max(bits) == 16


def _deep_color(image: Image.Image, encoded: bytes, white_level: int) -> tuple[int, Image.Image]:
    """The highest value of a color image of 16 bits a channel, and the image in 8 bits."""
    if not encoded.startswith(PNG_SIGNATURE) or encoded[25] != RGB_COLOR:
        kind = "transparent" if encoded.startswith(PNG_SIGNATURE) else "a TIFF"
        raise UnusableImage(
            f"16 bits a channel, of which 8 are read because the image is {kind}; with "
            "source.white_level save it as PNG of gray or RGB"
        )
    # what PIL takes for the upper byte of values in the other byte order is the lower one
    low = _opened(encoded)
    low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]  # type: ignore[attr-defined]
    lower_HWC = np.asarray(_upright(low, None))
    values_HWC = np.asarray(image).astype(np.uint16) * 256 + lower_HWC
    peak = int(values_HWC.max(initial=0))
    return peak, Image.fromarray(_to_8_bit(values_HWC, peak, white_level))


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
    return tuple(name for name in Image.ID if name in RASTER_FORMATS)


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


def _to_8_bit(values: npt.NDArray[Any], peak: int, white_level: int | None) -> Bytes:
    if white_level is not None and peak > white_level:
        raise UnusableImage(f"a value of {peak}, above source.white_level {white_level}")
    scale = (white_level or FULL_16_BIT) / 255
    return np.rint(values.astype(np.float64) / scale).astype(np.uint8)


def _wide_to_8_bit(image: Image.Image, white_level: int | None) -> Image.Image:
    bounds = [(values_HW.min(), values_HW.max()) for _, values_HW in _strips(image)]
    low, high = int(min(low for low, _ in bounds)), int(max(high for _, high in bounds))
    if low < 0 or high > FULL_16_BIT:
        raise UnusableImage(f"integers from {low} to {high}, expected 0..{FULL_16_BIT}")
    pixels_HW = np.empty((image.height, image.width), np.uint8)
    for first, values_HW in _strips(image):
        pixels_HW[first : first + len(values_HW)] = _to_8_bit(values_HW, high, white_level)
    return Image.fromarray(pixels_HW)


def _float_to_8_bit(image: Image.Image) -> Image.Image:
    bounds = [(values_HW.min(), values_HW.max()) for _, values_HW in _strips(image)]
    low, high = (float(bound) for bound in (np.min(bounds), np.max(bounds)))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise UnusableImage("floats that are not all finite")
    if low < 0 or high > 255:
        raise UnusableImage(
            f"floats from {low:g} to {high:g}, expected all within [0, 1] or all within [0, 255]"
        )
    scale = 255 if high <= 1 else 1
    pixels_HW = np.empty((image.height, image.width), np.uint8)
    for first, values_HW in _strips(image):
        scaled_HW = np.rint(values_HW.astype(np.float64) * scale)
        pixels_HW[first : first + len(values_HW)] = scaled_HW
    return Image.fromarray(pixels_HW)


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    rgb = Image.new("RGB", image.size)
    return ImageCms.buildTransform(lab, srgb, "LAB", "RGB").apply(image, rgb)


def _over(image: Image.Image, background: str) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")
    pixels = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", pixels.size, background), pixels).convert("RGB")


def _is_faded(image: Image.Image, solid: Image.Image) -> bool:
    """Whether a drawing on transparent ground has the color of what it was laid on."""
    opacity: Any = image.convert("RGBA").getchannel("A").getextrema()
    left: Any = solid.convert("RGB").getextrema()
    return opacity[1] - opacity[0] > 127 and all(high - low < FADED_RANGE for low, high in left)


def _solid(
    image: Image.Image,
    white_level: int | None = None,
    background: str = "white",
    reduced_for: int | None = None,
) -> Image.Image:
    """The image as `1`, `L` or `RGB`: 8 bits a channel and nothing transparent.

    With `reduced_for`, a resolution, blocks of pixels are averaged as early as that can be.
    """
    try:
        if reduced_for is not None:
            if image.mode in ("P", "PA") and image.has_transparency_data:
                image = image.convert("RGBA")
            if image.mode in REDUCIBLE_MODES:
                image = _reduced(image, reduced_for)
        solid = _of_mode(image, white_level, background)
        if reduced_for is None:
            return solid
        return _reduced(solid.convert("L") if solid.mode == "1" else solid, reduced_for)
    except UnusableImage:
        raise
    except (*BROKEN_IMAGE, ImageCms.PyCMSError) as error:
        raise UnusableImage(f"mode {image.mode} cannot be converted ({error})") from error


def _of_mode(image: Image.Image, white_level: int | None, background: str) -> Image.Image:
    if 0 in image.size:
        raise UnusableImage(f"the image is empty ({image.height}x{image.width} px)")
    if image.mode in WIDE_MODES:
        return _wide_to_8_bit(image, white_level)
    if image.mode == "F":
        return _float_to_8_bit(image)
    if image.mode == "LAB":
        return _lab_to_rgb(image)
    if image.has_transparency_data:
        return _over(image, background)
    return image if image.mode in SOLID_MODES else image.convert("RGB")


def square(pixels_CHW: Tensor, resolution: int) -> Tensor:
    """The center of an image, its shorter side resized to `resolution`."""
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
    return _sized(_solid(image), channels, resolution)


def _sized(solid: Image.Image, channels: Literal[1, 3], resolution: int | None) -> Tensor:
    mode = "L" if channels == 1 else "RGB"
    converted = solid if solid.mode == mode else solid.convert(mode)
    values = np.array(converted, dtype=np.uint8).reshape(
        converted.height, converted.width, channels
    )
    pixels_CHW = torch.from_numpy(values).permute(2, 0, 1).contiguous()
    return pixels_CHW if resolution is None else square(pixels_CHW, resolution)


_WIDTH_PX = 1024


_GAP_PX = 2


_MOST_TILES = 400


def to_bytes(image_CHW: Tensor) -> Tensor:
    """An image in [0, 1] rounded to 8 bits."""
    return (image_CHW.detach().clamp(0, 1) * 255).round().byte()


def png(image_CHW: Tensor) -> bytes:
    """An 8-bit image as PNG, mode L for one channel, else RGB: lossless for one and for three."""
    return _encode(_pixels(image_CHW))


def webp(image_CHW: Tensor, quality: int) -> bytes:
    """An 8-bit image as lossy WebP; `quality` is PIL's, from 0 to 100."""
    buffer = io.BytesIO()
    _picture(_pixels(image_CHW)).save(buffer, format="WEBP", quality=quality, method=6)
    return buffer.getvalue()


def jpeg(image_CHW: Tensor, quality: int) -> bytes:
    """An 8-bit image as JPEG with tables of its own; `quality` is PIL's, from 0 to 100."""
    buffer = io.BytesIO()
    _picture(_pixels(image_CHW)).save(buffer, format="JPEG", quality=quality, optimize=True)
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


def in_color(image_CHW: Tensor) -> Tensor:
    """What a person sees of an image: the first three channels as red, green and blue.

    Where there are two, blue is black; one is gray.
    """
    if image_CHW.shape[0] == 2:
        return torch.cat([image_CHW, torch.zeros_like(image_CHW[:1])])
    return image_CHW[:3]


def _pixels(image_CHW: Tensor) -> Bytes:
    image_CHW = in_color(image_CHW)
    pixels: Bytes = image_CHW.cpu().permute(1, 2, 0).contiguous().numpy()
    return pixels


def _encode(pixels_HWC: Bytes) -> bytes:
    buffer = io.BytesIO()
    _picture(pixels_HWC).save(buffer, format="PNG", compress_level=9)
    return buffer.getvalue()


def _picture(pixels_HWC: Bytes) -> Image.Image:
    """Pixels as PIL has them: mode L for one channel, RGB for three."""
    return Image.fromarray(pixels_HWC[:, :, 0] if pixels_HWC.shape[2] == 1 else pixels_HWC)
