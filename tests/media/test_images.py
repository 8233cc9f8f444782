"""Every kind of PIL image becomes the 8-bit pixels that the rules promise."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from support.image_sets import png

from distill_datasets.media.image import (
    UnusableImage,
    open_image,
    own_channels,
    to_bytes,
    to_pixels,
)


def first_pixel(image: Image.Image) -> list[int]:
    """The first pixel in the image's own channel count."""
    return to_pixels(image, own_channels(image), None)[:, 0, 0].tolist()


def palette(mode: str) -> Image.Image:
    """A palette image whose only used color is (10, 20, 30)."""
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    return image if mode == "P" else image.convert("PA")


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("1", (2, 2), 1), [255]),
        (Image.new("L", (2, 2), 77), [77]),
        (Image.new("LA", (2, 2), (77, 255)), [77]),
        (Image.new("LA", (2, 2), (77, 0)), [255]),
        (Image.new("LA", (2, 2), (0, 51)), [204]),
        (Image.new("LA", (2, 2), (0, 255)).convert("La"), [0]),
        (palette("P"), [10, 20, 30]),
        (palette("PA"), [10, 20, 30]),
        (Image.new("RGB", (2, 2), (1, 2, 3)), [1, 2, 3]),
        (Image.new("RGBX", (2, 2), (1, 2, 3, 4)), [1, 2, 3]),
        (Image.new("RGBA", (2, 2), (255, 0, 0, 51)), [255, 204, 204]),
        (Image.new("RGBA", (2, 2), (255, 0, 0, 255)).convert("RGBa"), [255, 0, 0]),
        (Image.new("CMYK", (2, 2), (0, 255, 255, 0)), [255, 0, 0]),
        (Image.new("YCbCr", (2, 2), (128, 128, 128)), [128, 128, 128]),
        (Image.new("HSV", (2, 2), (0, 255, 255)), [255, 0, 0]),
        (Image.new("I", (2, 2), 65535), [255]),
        (Image.new("I", (2, 2), 128), [0]),
        (Image.new("I", (2, 2), 129), [1]),
        (Image.new("I;16", (2, 2), 257), [1]),
        (Image.new("I;16B", (2, 2), 65535), [255]),
        (Image.new("F", (2, 2), 1.0), [255]),
        (Image.new("F", (2, 2), 0.2), [51]),
        (Image.new("F", (2, 2), 200.4), [200]),
    ],
    ids=lambda case: case.mode if isinstance(case, Image.Image) else str(case),
)
def test_each_mode_gives_the_documented_pixel(image: Image.Image, expected: list[int]) -> None:
    assert first_pixel(image) == expected


def test_white_in_lab_is_white_within_one_step() -> None:
    assert min(first_pixel(Image.new("LAB", (2, 2), (255, 128, 128)))) >= 254


def test_a_big_endian_16_bit_image_is_read_in_its_own_byte_order() -> None:
    image = Image.frombytes("I;16B", (1, 1), bytes([0x80, 0x80]))
    assert first_pixel(image) == [128]


def test_a_transparent_palette_entry_turns_white() -> None:
    image = palette("P")
    image.info["transparency"] = 1
    assert first_pixel(open_image(png(image))) == [255, 255, 255]


def test_a_transparent_gray_level_turns_white() -> None:
    buffer = io.BytesIO()
    Image.new("L", (2, 2), 9).save(buffer, format="PNG", transparency=9)
    assert first_pixel(open_image(buffer.getvalue())) == [255]


def test_gray_is_repeated_for_rgb_and_color_is_weighted_for_gray() -> None:
    assert to_pixels(Image.new("L", (1, 1), 7), 3, None).flatten().tolist() == [7, 7, 7]
    assert to_pixels(Image.new("RGB", (1, 1), (255, 0, 0)), 1, None).flatten().tolist() == [76]


def test_a_gray_photograph_stored_as_rgb_is_a_color_image() -> None:
    assert own_channels(Image.new("RGB", (1, 1), (5, 5, 5))) == 3


def test_the_exif_orientation_is_applied() -> None:
    image = Image.fromarray(np.array([[1, 2]], dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # the stored image has to be turned clockwise by a quarter
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", exif=exif)
    assert to_pixels(open_image(buffer.getvalue()), 1, None)[0].tolist() == [[1], [2]]


def test_the_mode_that_a_feature_asks_for_is_applied() -> None:
    assert open_image(png(Image.new("RGB", (1, 1), (255, 0, 0))), "L").mode == "L"


def test_the_first_frame_of_an_animation_is_used() -> None:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (2, 2), color) for color in ((255, 0, 0), (0, 0, 255))]
    frames[0].save(buffer, format="GIF", save_all=True, append_images=frames[1:])
    assert first_pixel(open_image(buffer.getvalue())) == [255, 0, 0]


def test_the_center_is_cropped_to_a_square() -> None:
    columns = np.array([[0, 1, 2, 3, 4, 5]] * 2, dtype=np.uint8)
    assert to_pixels(Image.fromarray(columns), 1, 2)[0].tolist() == [[2, 3], [2, 3]]


def test_the_shorter_side_is_averaged_down() -> None:
    checkered = np.array([[0, 100] * 4] * 4, dtype=np.uint8)
    pixels_CHW = to_pixels(Image.fromarray(checkered), 1, 2)
    assert pixels_CHW.shape == (1, 2, 2)
    assert (pixels_CHW.int() - 50).abs().max() <= 10


def test_a_small_image_is_enlarged() -> None:
    assert to_pixels(Image.new("L", (2, 3), 9), 3, 8).unique().tolist() == [9]


def test_pixels_own_their_memory() -> None:
    pixels_CHW = to_pixels(Image.new("RGB", (3, 2), (1, 2, 3)), 3, None)
    assert pixels_CHW.shape == (3, 2, 3)
    assert pixels_CHW.dtype == torch.uint8
    assert pixels_CHW.is_contiguous()


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (Image.new("I", (2, 2), 70000), "integers from 70000 to 70000, expected 0..65535"),
        (Image.new("I", (2, 2), -1), "integers from -1 to -1, expected 0..65535"),
        (Image.new("F", (2, 2), float("nan")), "floats that are not all finite"),
        (Image.new("F", (2, 2), 256.0), "floats from 256 to 256, expected all within"),
        (Image.new("F", (2, 2), -0.5), "floats from -0.5 to -0.5, expected all within"),
    ],
)
def test_values_without_an_8_bit_meaning_are_refused(image: Image.Image, reason: str) -> None:
    with pytest.raises(UnusableImage, match=reason):
        to_pixels(image, 1, None)


def test_a_strip_is_refused_before_it_is_blown_up() -> None:
    with pytest.raises(UnusableImage, match="1x101 px, too long for a square crop"):
        to_pixels(Image.new("L", (101, 1)), 1, 64)


def encoded(kind: str) -> bytes:
    """A noisy image of some kilobytes."""
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, format=kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "GIF", "BMP", "WEBP"])
def test_a_file_that_is_cut_short_is_unusable(kind: str) -> None:
    content = encoded(kind)
    with pytest.raises(UnusableImage):
        open_image(content[: len(content) // 2])


def test_a_flipped_byte_in_a_png_is_noticed() -> None:
    content = bytearray(encoded("PNG"))
    content[len(content) // 2] ^= 0xFF
    with pytest.raises(UnusableImage, match="cannot be decoded"):
        open_image(bytes(content))


def test_bytes_that_are_no_image_are_unusable() -> None:
    with pytest.raises(UnusableImage, match="5 bytes that are no image"):
        open_image(b"hello")
    with pytest.raises(UnusableImage, match="no bytes"):
        open_image(b"")


def test_a_value_is_rounded_to_the_nearest_of_8_bits_and_cut_at_the_ends() -> None:
    levels = [-3.0, 0.4, 0.6, 99.4, 99.6, 254.4, 254.6, 300.0]
    assert to_bytes(torch.tensor(levels) / 255).tolist() == [0, 0, 1, 99, 100, 254, 255, 255]
