"""Augmentation: the motions are what they are called, and a generator decides all of them.

Where a motion's size matters, `torch.rand` is replaced so that every draw is known: 1 is the
largest motion, 0.5 none.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from distill_datasets.augment import Augment
from distill_datasets.runtime import rng_for


def images(count: int = 6, height: int = 8, width: int = 8) -> Tensor:
    return torch.randn(count, 2, height, width, generator=rng_for(0, "images"), dtype=torch.float64)


def drawing(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    """Let every uniform draw from [0, 1) be `value`."""

    def rand(*size: int, **_: Any) -> Tensor:  # noqa: ANN401
        return torch.full(size, value, dtype=torch.float64)

    monkeypatch.setattr(torch, "rand", rand)


ALL = Augment(operations=["flip", "rotate", "shift", "scale"], choose="all")


@pytest.mark.parametrize("choose", ["one", "all"])
def test_the_same_generator_gives_the_same_motions(choose: str) -> None:
    augment = ALL.model_copy(update={"choose": choose})
    first, second, other = (augment(images(), rng_for(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_nothing_but_the_generator_is_drawn_from() -> None:
    before = torch.get_rng_state()
    ALL(images(), rng_for(0))
    assert torch.equal(before, torch.get_rng_state())


def test_images_of_a_batch_move_differently() -> None:
    same = images(1).expand(6, -1, -1, -1)
    for operation in ("rotate", "shift", "scale"):
        moved = Augment(operations=[operation])(same, rng_for(0))
        assert len({tuple(image.flatten().tolist()) for image in moved}) == 6


def test_the_images_passed_in_are_left_as_they_were() -> None:
    given = images()
    ALL(given, rng_for(0))
    assert torch.equal(given, images())


@pytest.mark.parametrize("choose", ["one", "all"])
def test_no_operation_leaves_the_images_alone(choose: str) -> None:
    assert torch.equal(Augment(operations=[], choose=choose)(images(), rng_for(0)), images())


def test_flip_mirrors_about_half_of_the_images_exactly() -> None:
    given = images(200)
    moved = Augment(operations=["flip"])(given, rng_for(0))
    kept = (moved == given).flatten(1).all(dim=1)
    mirrored = (moved == given.flip(-1)).flatten(1).all(dim=1)
    assert bool((kept ^ mirrored).all())
    assert 70 < int(mirrored.sum()) < 130


def test_shift_by_a_quarter_of_the_side_moves_by_two_of_eight_pixels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawing(monkeypatch, 1)
    moved = Augment(operations=["shift"], shift_fraction=0.25)(images(), rng_for(0))
    expected = torch.zeros_like(moved)
    expected[..., :6, :6] = images()[..., 2:, 2:]
    torch.testing.assert_close(moved, expected)


def test_shift_is_measured_along_each_side(monkeypatch: pytest.MonkeyPatch) -> None:
    drawing(monkeypatch, 0)
    moved = Augment(operations=["shift"], shift_fraction=0.25)(images(2, 4, 8), rng_for(0))
    expected = torch.zeros_like(moved)
    expected[..., 1:, 2:] = images(2, 4, 8)[..., :3, :6]
    torch.testing.assert_close(moved, expected)


def test_motions_of_size_zero_are_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    drawing(monkeypatch, 0.5)
    augment = Augment(operations=["rotate", "shift", "scale"], choose="all")
    torch.testing.assert_close(augment(images(), rng_for(0)), images())


def test_rotation_by_a_right_angle_turns_the_rows_into_columns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawing(monkeypatch, 1)
    moved = Augment(operations=["rotate"], rotate_degrees=90)(images(), rng_for(0))
    torch.testing.assert_close(moved, images().rot90(dims=(-2, -1)))


def test_rotation_of_an_oblong_image_does_not_stretch_it(monkeypatch: pytest.MonkeyPatch) -> None:
    drawing(monkeypatch, 1)
    oblong = images(2, 4, 8)
    moved = Augment(operations=["rotate"], rotate_degrees=90)(oblong, rng_for(0))
    # the middle square turns; what comes from outside the image is zero
    expected = torch.zeros_like(oblong)
    expected[..., 2:6] = oblong[..., 2:6].rot90(dims=(-2, -1))
    torch.testing.assert_close(moved, expected)


def test_angles_stay_within_the_limit_and_reach_for_it() -> None:
    # the center of mass of a bright pixel to the right of the center turns with the image
    given = torch.zeros(300, 1, 33, 33, dtype=torch.float64)
    given[..., 15:18, 27:30] = 1
    moved = Augment(operations=["rotate"], rotate_degrees=20)(given, rng_for(0))
    axis = torch.arange(33, dtype=torch.float64) - 16
    mass = moved.sum(dim=(1, 2, 3))
    down = (moved * axis[:, None]).sum(dim=(1, 2, 3)) / mass
    right = (moved * axis).sum(dim=(1, 2, 3)) / mass
    degrees = torch.atan2(down, right).rad2deg()
    assert 18 < float(degrees.max()) < 20.5 and -20.5 < float(degrees.min()) < -18
    assert abs(float(degrees.mean())) < 2


def test_zoom_by_two_shows_the_middle_twice_as_large(monkeypatch: pytest.MonkeyPatch) -> None:
    drawing(monkeypatch, 1)
    # a ramp of -3.5 .. 3.5 becomes one of half the slope; bilinear sampling is exact on it
    ramp = (torch.arange(8, dtype=torch.float64) - 3.5).expand(2, 1, 8, 8)
    moved = Augment(operations=["scale"], scale_factor=2)(ramp, rng_for(0))
    torch.testing.assert_close(moved, ramp / 2)


def test_zoom_out_is_as_likely_as_zoom_in() -> None:
    ramp = (torch.arange(8, dtype=torch.float64) - 3.5).expand(400, 1, 8, 8)
    moved = Augment(operations=["scale"], scale_factor=1.5)(ramp, rng_for(0))
    slopes = moved[:, 0, 4, 4] / ramp[:, 0, 4, 4]
    assert 0.66 < float(slopes.min()) < 0.7 and 1.45 < float(slopes.max()) < 1.51
    assert abs(float(slopes.log().mean())) < 0.04


def test_what_comes_from_outside_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    drawing(monkeypatch, 0)
    moved = Augment(operations=["scale"], scale_factor=2)(torch.ones(1, 1, 8, 8), rng_for(0))
    assert not moved[..., :2, :].any() and not moved[..., :, 6:].any()
    torch.testing.assert_close(moved[..., 2:6, 2:6], torch.ones(1, 1, 4, 4))


def test_one_takes_a_single_operation_for_the_whole_batch() -> None:
    augment = Augment(operations=["flip", "rotate"])
    given = images(12)
    taken = []
    for seed in range(40):
        moved = augment(given, rng_for(seed))
        either = (moved == given) | (moved == given.flip(-1))
        exact = either.flatten(1).all(dim=1)
        assert bool(exact.all()) or not bool(exact.any())
        taken.append(bool(exact.all()))
    assert 8 < sum(taken) < 32


def test_all_takes_every_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    drawing(monkeypatch, 0)  # flips every image and shifts by a quarter
    augment = Augment(operations=["flip", "shift"], choose="all", shift_fraction=0.25)
    expected = torch.zeros_like(images())
    expected[..., 2:, 2:] = images().flip(-1)[..., :6, :6]
    torch.testing.assert_close(augment(images(), rng_for(0)), expected)


def test_motions_are_differentiable() -> None:
    given = images(3, 4, 4).requires_grad_()
    torch.autograd.gradcheck(lambda shown: ALL(shown, rng_for(5)), (given,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precision_is_kept(dtype: torch.dtype) -> None:
    assert ALL(images().to(dtype), rng_for(0)).dtype == dtype
