"""The picture of a set by its classes."""

import io

import torch
from PIL import Image

from distill_datasets.export.pictures import by_class, class_sheet


def sheet(images_NCHW: torch.Tensor, targets_NK: torch.Tensor, names: list[str]) -> Image.Image:
    return Image.open(io.BytesIO(class_sheet(images_NCHW, targets_NK, names)))


def test_the_rows_of_a_class_are_those_that_are_most_of_it() -> None:
    targets = torch.tensor([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
    assert by_class(targets, most=2) == [[1, 3], [2]]


def test_a_class_stands_under_its_name_with_its_pixels_enlarged() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(2, 1, 8, 8)
    shown = sheet(images, torch.eye(2), ["black", "white"])
    # two blocks of two sides and a gap side by side, a name of 20 px above 64 px of image
    assert shown.size == (2 * (128 + 16) + 16, 20 + 64 + 16 + 16)
    assert shown.getpixel((16, 28)) == shown.getpixel((16 + 63, 28 + 63)) == (0, 0, 0)
    assert shown.getpixel((16 + 64, 28)) == (255, 255, 255)
    name = shown.crop((16, 8, 160, 28))
    assert min(low for low, _ in name.getextrema()) < 60  # dark letters


def test_large_images_are_shrunk_in_their_proportions() -> None:
    shown = sheet(torch.zeros((1, 3, 200, 100), dtype=torch.uint8), torch.ones(1, 1), ["tall"])
    black = [x for x in range(shown.width) if shown.getpixel((x, 28 + 40)) == (0, 0, 0)]
    assert black == list(range(16, 16 + 32))


def test_a_name_that_the_font_lacks_is_shown_as_its_number() -> None:
    images, one = torch.zeros((1, 1, 8, 8), dtype=torch.uint8), torch.ones(1, 1)
    same = class_sheet(images, one, ["class 0"])
    assert class_sheet(images, one, ["\u732b"]) == same
    assert class_sheet(images, one, ["a\x1b[2J"]) == same
    assert class_sheet(images, one, ["cat"]) != same


def test_of_many_classes_a_hundred_evenly_spaced_ones_are_shown() -> None:
    images = torch.zeros((150, 1, 8, 8), dtype=torch.uint8)
    shown = sheet(images, torch.eye(150), [str(label) for label in range(150)])
    columns = 1000 // (128 + 16)
    assert shown.height == -(-100 // columns) * (20 + 64 + 16) + 16
