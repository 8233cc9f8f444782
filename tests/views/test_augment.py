"""Augmentation: the motions are what they are called, and a generator decides all of them.

Where a motion's size matters, `torch.rand` is replaced so that every draw is known: 1 is the
largest motion, 0.5 none. For scale 1 is the largest zoom out, 0 the largest zoom in.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from distill_datasets.runtime.draws import rng_for
from distill_datasets.views.augment import Augment, Uniform


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
    # in the middle of its ranges color adds 0 to the brightness and multiplies by 1
    augment = Augment(operations=["rotate", "shift", "color", "crop"], choose="all")
    torch.testing.assert_close(augment(images(), rng_for(0)), images())
    drawing(monkeypatch, 1 / 3)  # a third of the way from 1/2 to 2
    stretched = Augment(operations=["scale"], scale_factor=2)(images(), rng_for(0))
    torch.testing.assert_close(stretched, images())


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


def test_zoom_in_by_two_shows_the_middle_twice_as_large(monkeypatch: pytest.MonkeyPatch) -> None:
    drawing(monkeypatch, 0)
    # a ramp of -3.5 .. 3.5 becomes one of half the slope; bilinear sampling is exact on it
    ramp = (torch.arange(8, dtype=torch.float64) - 3.5).expand(2, 1, 8, 8)
    moved = Augment(operations=["scale"], scale_factor=2)(ramp, rng_for(0))
    torch.testing.assert_close(moved, ramp / 2)


def test_both_sides_are_stretched_apart_by_factors_of_dsa() -> None:
    ramp = (torch.arange(8, dtype=torch.float64) - 3.5).expand(1000, 1, 8, 8)
    stretch = Augment(operations=["scale"], scale_factor=1.5)
    wide = stretch(ramp, rng_for(0))[:, 0, 4, 4] / 0.5
    high = stretch(ramp.mT, rng_for(0))[:, 0, 4, 4] / 0.5
    for factors in (wide, high):
        # uniform between 2/3 and 3/2, not in the logarithm
        assert 2 / 3 <= float(factors.min()) < 0.68 and 1.48 < float(factors.max()) <= 1.5
        assert float(factors.mean()) == pytest.approx((2 / 3 + 3 / 2) / 2, abs=0.02)
    assert abs(float(torch.corrcoef(torch.stack([wide, high]))[0, 1])) < 0.1


def seen(augment: Augment, high: int = 64, wide: int = 64) -> Tensor:
    """Where the first and the last pixel of each image come from: (B, 2, rows and columns)."""
    down, right = torch.arange(high, dtype=torch.float64), torch.arange(wide, dtype=torch.float64)
    places = torch.stack([down[:, None].expand(high, wide), right.expand(high, wide)])
    moved = augment(places.expand(400, -1, -1, -1), rng_for(0))
    return torch.stack([moved[:, :, 1, 1], moved[:, :, -2, -2]], dim=1)


def test_an_enlarged_crop_of_a_quarter_shows_half_of_each_side_anywhere_in_the_image() -> None:
    whole = Augment(operations=["resized_crop"], crop_area=1.0, crop_aspect=1)
    first, last = seen(whole).unbind(1)
    assert torch.allclose(first, torch.ones_like(first))
    assert torch.allclose(last, torch.full_like(last, 62))

    class Quarter(Augment):
        def _crop_sides(self, images_BCHW: Tensor, uniform: Uniform) -> Tensor:
            return torch.full((len(images_BCHW), 2), 0.5, dtype=torch.float64)

    first, last = seen(Quarter(operations=["resized_crop"])).unbind(1)
    # 61 steps between the two pixels, each half a pixel of the image
    assert torch.allclose(last - first, torch.full_like(first, 30.5))
    assert 0 <= first.min() < 1.5 and 61.5 < last.max() <= 63


@pytest.mark.parametrize(("high", "wide", "largest"), [(64, 64, 1.0), (32, 64, 0.75)])
def test_enlarged_crops_have_the_areas_and_aspects_of_the_fields(
    high: int, wide: int, largest: float
) -> None:
    augment = Augment(operations=["resized_crop"], crop_area=0.2, crop_aspect=1.5)
    first, last = seen(augment, high, wide).unbind(1)
    assert first.min() >= 0 and (last <= torch.tensor([high - 1.0, wide - 1.0])).all()
    down, right = ((last - first) / (torch.tensor([high, wide]) - 3)).unbind(1)
    whole = (down < 0.999) & (right < 0.999)  # the others were cut off
    areas, aspects = (down * right)[whole], (right * wide / (down * high))[whole]
    assert 0.2 <= areas.min() < 0.23 and 0.9 * largest < areas.max() <= largest
    assert 1 / 1.5 <= aspects.min() < 0.7 and 1.4 < aspects.max() <= 1.5


def test_what_comes_from_outside_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    drawing(monkeypatch, 1)
    moved = Augment(operations=["scale"], scale_factor=2)(torch.ones(1, 1, 8, 8), rng_for(0))
    assert not moved[..., :2, :].any() and not moved[..., :, 6:].any()
    torch.testing.assert_close(moved[..., 2:6, 2:6], torch.ones(1, 1, 4, 4))


def test_color_is_brightness_then_saturation_then_contrast(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawing(monkeypatch, 0.75)
    given = torch.randn(3, 3, 4, 5, generator=rng_for(0), dtype=torch.float64)
    bright = given + 0.25
    gray = bright.mean(dim=1, keepdim=True)
    saturated = (bright - gray) * (2 * 0.75) + gray
    mean = saturated.mean(dim=(1, 2, 3), keepdim=True)
    expected = (saturated - mean) * (0.75 + 0.5) + mean
    torch.testing.assert_close(Augment(operations=["color"])(given, rng_for(0)), expected)


def test_strengths_of_color_are_what_the_fields_say(monkeypatch: pytest.MonkeyPatch) -> None:
    drawing(monkeypatch, 1)
    # two channels of +-1 about gray, in an image of mean 0
    given = torch.tensor([1.0, -1.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    augment = Augment(operations=["color"], brightness=0.6, saturation=3.0, contrast=0.25)
    expected = 0.3 + given * 3.0 * 1.25
    torch.testing.assert_close(augment(given, rng_for(0)), expected)
    drawing(monkeypatch, 0)
    torch.testing.assert_close(augment(given, rng_for(0)), torch.full_like(given, -0.3))


def where_the_middle_went(operation: str, side: int, count: int = 2000) -> Tensor:
    """By how many pixels (down, right) the middle of each image was moved."""
    given = torch.zeros(count, 1, side, side)
    given[..., side // 2, side // 2] = 1
    moved = Augment(operations=[operation])(given, rng_for(0))
    assert bool((moved.sum(dim=(1, 2, 3)) == 1).all())
    return moved[:, 0].nonzero()[:, 1:] - side // 2


def test_crop_moves_by_whole_pixels_and_every_shift_is_as_likely() -> None:
    for shifts in where_the_middle_went("crop", 32).unbind(1):
        counts = torch.bincount(shifts + 4)
        assert len(counts) == 9  # from -4 to 4
        assert int(counts.min()) > 150 and int(counts.max()) < 300
    down, right = where_the_middle_went("crop", 32).double().unbind(1)
    assert abs(float(torch.corrcoef(torch.stack([down, right]))[0, 1])) < 0.1


def test_crop_rounds_its_reach_half_up() -> None:
    assert int(where_the_middle_went("crop", 20, 300).abs().max()) == 3  # an eighth is 2.5


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_crop_fills_with_zeros(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    drawing(monkeypatch, value)
    given = images(2, 4, 8)
    expected = torch.zeros_like(given)
    if value:
        expected[..., :3, :6] = given[..., 1:, 2:]
    else:
        expected[..., 1:, 2:] = given[..., :3, :6]
    moved = Augment(operations=["crop"], crop_fraction=0.25)(given, rng_for(0))
    assert torch.equal(moved, expected)


@pytest.mark.parametrize(
    ("value", "fraction", "kept"),
    [
        (0.5, 0.5, [0, 1, 6, 7]),  # centered between pixels 3 and 4
        (0.0, 0.5, [2, 3, 4, 5, 6, 7]),  # its upper half is cut off
        (0.99, 0.5, [0, 1, 2, 3, 4, 5]),
        (0.5, 0.375, [0, 1, 2, 6, 7]),  # centered on pixel 4
        (0.5, 1.0, []),
    ],
)
def test_cutout_blanks_a_square(
    monkeypatch: pytest.MonkeyPatch, value: float, fraction: float, kept: list[int]
) -> None:
    drawing(monkeypatch, value)
    moved = Augment(operations=["cutout"], cutout_fraction=fraction)(images(), rng_for(0))
    outside = torch.tensor([row in kept for row in range(8)])
    shown = outside[:, None] | outside
    assert torch.equal(moved, images() * shown)


def test_the_center_of_a_cutout_lies_anywhere() -> None:
    blank = Augment(operations=["cutout"])(torch.ones(3000, 1, 8, 8), rng_for(0))[:, 0] == 0
    down, right = blank.any(dim=2), blank.any(dim=1)
    for inside in (down, right):
        assert set(inside.sum(dim=1).tolist()) == {2, 3, 4}
        starts = torch.bincount(inside.long().argmax(dim=1), minlength=8)
        # nine centers: three of them start at the upper edge, six below it
        assert 850 < int(starts[0]) < 1150
        assert all(250 < int(start) < 420 for start in starts[1:7]) and not starts[7]
    assert abs(float(torch.corrcoef(torch.stack([down[:, 0], right[:, 0]]).double())[0, 1])) < 0.1


def test_blank_pixels_stay_zero_beside_color() -> None:
    augment = Augment(operations=["cutout", "color"], choose="all")
    moved = augment(images(), rng_for(0))
    assert bool((moved == 0).flatten(1).sum(dim=1).ge(2 * 4).all())


SIX = Augment(operations=["color", "crop", "cutout", "flip", "scale", "rotate"])
ALL_SIX = SIX.model_copy(update={"choose": "all"})


@pytest.mark.parametrize(
    "augment",
    [*(Augment(operations=[operation]) for operation in [*SIX.operations, "shift"]), ALL_SIX, SIX],
    ids=lambda augment: f"{augment.choose}-{'-'.join(augment.operations)}",
)
def test_a_shared_draw_moves_batches_of_any_size_alike(augment: Augment) -> None:
    given = images(7)
    for seed in range(4):
        together = augment(given, rng_for(seed), shared=True)
        apart = [augment(part, rng_for(seed), shared=True) for part in given.split([1, 6])]
        torch.testing.assert_close(torch.cat(apart), together)


@pytest.mark.parametrize("operation", ["color", "crop", "cutout", "scale", "rotate", "shift"])
def test_one_image_moves_in_one_way_under_a_shared_draw_and_in_many_otherwise(
    operation: str,
) -> None:
    same = images(1).expand(6, -1, -1, -1)
    for shared, ways in ((True, {1}), (False, {3, 4, 5, 6})):
        moved = Augment(operations=[operation])(same, rng_for(1), shared=shared)
        assert len({tuple(image.flatten().tolist()) for image in moved}) in ways


def test_a_shared_flip_mirrors_all_images_or_none() -> None:
    mirrored = 0
    for seed in range(40):
        moved = Augment(operations=["flip"])(images(), rng_for(seed), shared=True)
        assert torch.equal(moved, images()) or torch.equal(moved, images().flip(-1))
        mirrored += torch.equal(moved, images().flip(-1))
    assert 8 < mirrored < 32


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
    for augment in (ALL, ALL_SIX):
        for shared in (True, False):
            assert torch.autograd.gradcheck(
                lambda shown, augment=augment, shared=shared: augment(
                    shown, rng_for(5), shared=shared
                ),
                (given,),
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precision_is_kept(dtype: torch.dtype) -> None:
    for augment in (ALL, ALL_SIX):
        assert augment(images().to(dtype), rng_for(0)).dtype == dtype
