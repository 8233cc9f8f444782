"""Values survive: sets that use little of 16 bits, and drawings that are white on nothing."""

import io
import struct
import zlib
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from support.image_sets import draw, features, png

from distill_datasets.data.real import Decoded
from distill_datasets.data.source import Source, open_source
from distill_datasets.errors import DataError


def png16(values: npt.NDArray[Any]) -> bytes:
    """A PNG of 16 bits a channel: gray (H, W), gray and alpha, RGB or RGBA (H, W, C)."""
    height, width = values.shape[:2]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[values.reshape(height, width, -1).shape[2]]
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def read(cells: list[bytes], **fields: Any) -> Decoded:  # noqa: ANN401
    """Every cell in both splits, classes alternating."""
    rows = datasets.Dataset.from_dict(
        {
            "image": [{"bytes": cell, "path": None} for cell in cells],
            "label": [row % 2 for row in range(len(cells))],
        },
        features=features(datasets.ClassLabel(names=["cat", "dog"])),
    )
    splits = datasets.DatasetDict(train=rows, test=rows)
    return open_source(Source(dataset="ignored", **fields), splits).read(draw)


def gradient(top: int, channels: int = 1) -> npt.NDArray[Any]:
    """Values 0..top from left to right."""
    row = np.linspace(0, top, 16).round().astype(np.uint16)
    gray = np.tile(row, (16, 1))
    return gray if channels == 1 else np.stack([gray] * channels, axis=2)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_set_that_uses_little_of_16_bits_is_refused(channels: int) -> None:
    cells = [png16(gradient(4095, channels)), png16(gradient(2000, channels))]
    with pytest.raises(
        DataError,
        match=r"4 images have 16 bits a channel and no value above (4,095|3,855) of 65,535: as 8 "
        r"bits they would keep 16 of 256 values; set source.white_level to the value that is white "
        r"\(4095 for 12 bits\), or to 65535",
    ):
        read(cells)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_white_level_keeps_all_values(channels: int) -> None:
    decoded = read([png16(gradient(4095, channels))] * 2, white_level=4095)
    assert decoded.shape.c == channels
    expected = np.rint(gradient(4095) / 4095 * 255).astype(np.uint8)
    assert (decoded.train.images_NCHW[0].numpy() == expected).all()
    assert len(decoded.train.images_NCHW.unique()) == 16


def test_a_value_above_the_white_level_is_a_bad_row() -> None:
    for channels in (1, 3):
        with pytest.raises(
            DataError, match=r"train row 1: a value of 5000, above source.white_level"
        ):
            read(
                [png16(gradient(4095, channels)), png16(gradient(5000, channels))],
                white_level=4095,
            )


def test_a_dark_set_is_taken_as_it_is_when_its_white_is_said_to_be_full() -> None:
    decoded = read([png16(gradient(4095))] * 2, white_level=65535)
    assert int(decoded.train.images_NCHW.max()) == 16


def test_one_bright_image_shows_that_16_bits_are_used() -> None:
    decoded = read([png16(gradient(4095)), png16(gradient(60000))])
    assert decoded.train.images_NCHW.amax(dim=(1, 2, 3)).tolist() == [16, 233]


def test_a_dark_set_of_8_bits_is_taken_as_it_is() -> None:
    assert int(read([png(Image.new("L", (4, 4), 9))] * 2).train.images_NCHW.max()) == 9


def test_a_16_bit_color_tiff_with_a_white_level_is_a_bad_row_with_advice() -> None:
    transparent = png16(np.full((4, 4, 4), 4000, np.uint16))
    with pytest.raises(DataError, match=r"because the image is transparent; .* save it as PNG"):
        read([transparent] * 2, white_level=4095)


def drawing(mode: str, ink: int) -> bytes:
    """A bar of one color on transparent ground."""
    values = np.zeros((16, 16, 4), np.uint8)
    values[..., :3] = ink
    values[:, 4:8, 3] = 255
    return png(Image.fromarray(values).convert(mode))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_white_drawings_on_nothing_are_refused(mode: str) -> None:
    with pytest.raises(
        DataError,
        match=r"4 of 4 images with transparent parts show nothing over white: .* set "
        r"source.background=black",
    ):
        read([drawing(mode, 255), drawing(mode, 250)])
    shown = read([drawing(mode, 255)] * 2, background="black").train.images_NCHW
    assert shown.unique().tolist() == [0, 255]
    assert read([drawing(mode, 255)] * 2, background="white").train.images_NCHW.min() == 255


def test_dark_drawings_on_nothing_lie_on_white_without_a_word() -> None:
    assert read([drawing("RGBA", 0)] * 2).train.images_NCHW.unique().tolist() == [0, 255]


def test_an_opaque_white_image_is_no_drawing() -> None:
    opaque = png(Image.new("RGBA", (8, 8), (255, 255, 255, 255)))
    assert read([opaque] * 2).train.images_NCHW.min() == 255


def test_a_large_image_is_averaged_over_blocks_before_it_is_resized(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8))
    whole = smooth.resize((600, 480), Image.Resampling.BICUBIC)
    kinds = [whole, whole.convert("L"), whole.convert("P"), whole.convert("RGBA")]
    kinds += [whole.convert("L").convert("I"), whole.convert("1"), whole.convert("CMYK")]
    for image in kinds:
        buffer = io.BytesIO()
        image.save(buffer, format="TIFF")
        cells = [buffer.getvalue()] * 2
        settings: dict[str, Any] = {"resolution": 8, "white_level": 255}
        exact = read(cells, **settings).train.images_NCHW.int()
        with monkeypatch.context() as patched:
            patched.setattr("distill_datasets.media.image.LARGE_PIXELS", 1000)
            reduced = read(cells, **settings).train.images_NCHW.int()
        assert (exact - reduced).abs().max() <= 4, image.mode


def test_an_image_beyond_all_bounds_is_a_bad_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill_datasets.media.image.MOST_PIXELS", 100)
    with pytest.raises(DataError, match=r"train row 1: 20x20 px, more than the 0 megapixels that"):
        read([png(Image.new("L", (10, 10))), png(Image.new("L", (20, 20)))], resolution=4)
