"""What distilled images are compared with: which real rows are drawn, and how they are shrunk.

Shape suffixes: N images, C channels, H W pixels, K classes.
"""

import dataclasses
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from support.tiny import toy_real

from distill_datasets.data.normalization import Normalization
from distill_datasets.data.real import RealData
from distill_datasets.evaluation.references import (
    by_area,
    random_rows,
    room_for,
    stored_references,
)
from distill_datasets.runtime.draws import draws, rng_for
from distill_datasets.types import Shape


def one_by_one(labels_N: torch.Tensor, classes: int, images: int, seed: int) -> list[int]:
    """Class after class in a drawn order, each giving its rows in the order of one shuffle."""
    rng = draws(seed, "x")("random_real")
    order = torch.randperm(len(labels_N), generator=rng).tolist()
    turns = torch.randperm(classes, generator=rng).tolist()
    rows = {label: [row for row in order if labels_N[row] == label] for label in turns}
    chosen = []
    for turn in range(images):
        own = rows[turns[turn % classes]]
        chosen.append(own[turn // classes % len(own)])
    return chosen


@pytest.mark.parametrize("images", [1, 3, 5, 12, 40])
def test_random_rows_are_a_shuffles_rows_dealt_class_by_class(images: int) -> None:
    """Beyond the rows of a class its first ones come again."""
    for seed in range(5):
        labels_N = torch.tensor([3, 0, 2, 2, 4, 1, 0, 3, 3, 2, 3, 3, 0, 3])
        real = SimpleNamespace(train=SimpleNamespace(labels_N=labels_N), shape=SimpleNamespace(k=5))
        found = random_rows(cast("RealData", real), images, draws(seed, "x"))
        assert found.tolist() == one_by_one(labels_N, 5, images, seed)


@pytest.mark.parametrize(
    ("shape", "pixels", "of_one", "expected"),
    [
        (Shape(1, 8, 8, 10), 384, 1, (10, (6, 6))),
        (Shape(1, 8, 8, 10), 384, 2, (20, (4, 4))),
        (Shape(1, 8, 8, 10), 639, 1, (10, (7, 7))),
        (Shape(1, 8, 8, 10), 640, 1, (10, (8, 8))),
        (Shape(1, 8, 8, 10), 1000, 1, (15, (8, 8))),
        (Shape(1, 28, 28, 10), 3920, 1, (10, (19, 19))),
        (Shape(3, 32, 32, 10), 30720, 2, (60, (22, 22))),
        (Shape(3, 12, 24, 4), 300, 1, (4, (6, 12))),
        (Shape(3, 12, 24, 4), 3, 1, (4, (1, 1))),
    ],
)
def test_the_largest_size_that_fits_is_taken(
    shape: Shape, pixels: int, of_one: int, expected: tuple[int, tuple[int, int]]
) -> None:
    found = room_for(shape, pixels, of_one)
    assert (found.images, found.size) == expected
    assert found.shrunk == (found.size != (shape.h, shape.w))
    assert found.pixels <= pixels or found.size == (1, 1)


def test_a_shrunk_pixel_is_the_mean_of_the_area_that_it_covers() -> None:
    rng = rng_for(0, "images")
    images_NCHW = torch.rand(2, 3, 8, 12, generator=rng)
    small_NCHW = by_area(images_NCHW, (6, 5))
    # exact: every pixel is cut into pieces that belong to one pixel of either size
    fine_NCHW = images_NCHW.repeat_interleave(3, dim=2).repeat_interleave(5, dim=3)
    expected_NCHW = torch.nn.functional.avg_pool2d(fine_NCHW, (4, 12))
    torch.testing.assert_close(small_NCHW, expected_NCHW)
    torch.testing.assert_close(by_area(images_NCHW, (8, 12)), images_NCHW)


def test_a_student_sees_shrunk_means_of_8_bits_enlarged_and_normalized() -> None:
    real = toy_real()
    stored = stored_references(real, 150, 0)["class_mean"](draws(0, "x"))
    images_NCHW, targets_NK = stored(torch.arange(3))
    small_NCHW = by_area(real.prototypes_KCHW(), (7, 7)).mul(255).round() / 255
    large_NCHW = torch.nn.functional.interpolate(small_NCHW, (8, 8), mode="bilinear")
    expected_NCHW = real.normalization.input_space.to_student(large_NCHW)
    torch.testing.assert_close(images_NCHW, expected_NCHW, atol=1e-4, rtol=0)
    assert targets_NK.tolist() == torch.eye(3).tolist()


def test_it_is_the_images_that_are_shrunk_and_not_their_whitened_ones() -> None:
    real = toy_real()
    whitened = dataclasses.replace(real, normalization=Normalization.fit(real.train, "zca", 0.1))
    plain, seen = (
        stored_references(each, 150, 0)["herding"](draws(0, "x")) for each in (real, whitened)
    )
    shown_NCHW = real.normalization.input_space.to_pixels(plain.images_NCHW) * 255
    torch.testing.assert_close(
        seen.images_NCHW, whitened.normalization.apply(shown_NCHW), atol=1e-4, rtol=1e-4
    )


def test_shrunk_random_images_are_others_for_every_student_and_chosen_ones_the_same() -> None:
    references = stored_references(toy_real(), 150, 0)
    for name, make in references.items():
        first, again, second = (make(draws(0, "evaluate", name, seed)) for seed in (0, 0, 1))
        assert torch.equal(first.images_NCHW, again.images_NCHW)
        assert torch.equal(first.images_NCHW, second.images_NCHW) == (name != "random_real")
