"""One crop, flip and roll for a whole batch, against torchvision's."""

import pytest
import torch
import torchvision.transforms.v2.functional as tv

from distill_datasets.runtime.draws import rng_for
from distill_datasets.views.crops import (
    Curriculum,
    RandomCrop,
    SharedView,
    draw_view,
    smallest_area,
)


@pytest.mark.parametrize(
    "view",
    [
        SharedView(0, 0, 9, 12),
        SharedView(2, 3, 5, 4),
        SharedView(0, 0, 9, 12, flip=True),
        SharedView(1, 4, 8, 1, flip=True, down=3, right=2),
        SharedView(0, 0, 1, 12, down=8, right=11),
    ],
)
def test_a_view_is_torchvisions_crop_then_flip_then_roll(view: SharedView) -> None:
    images = torch.rand(3, 2, 9, 12, generator=rng_for(0, "images"))
    expected = tv.resized_crop(
        images, view.top, view.left, view.height, view.width, [9, 12], antialias=False
    )
    expected = tv.horizontal_flip(expected) if view.flip else expected
    expected = expected.roll((view.down, view.right), (2, 3))
    torch.testing.assert_close(view(images), expected, atol=2e-6, rtol=0)


def test_a_view_of_another_size_is_torchvisions_crop_of_that_size() -> None:
    images = torch.rand(3, 2, 9, 12, generator=rng_for(0, "images"))
    expected = tv.resized_crop(images, 2, 3, 5, 4, [6, 8], antialias=False)
    expected = tv.horizontal_flip(expected).roll((3, 2), (2, 3))
    view = SharedView(2, 3, 5, 4, flip=True, down=3, right=2, size=(6, 8))
    torch.testing.assert_close(view(images), expected, atol=2e-6, rtol=0)


def test_a_roll_by_one_moves_the_last_row_to_the_top() -> None:
    image = torch.arange(3.0)[:, None].expand(3, 2)[None]
    assert SharedView(0, 0, 3, 2, down=1)(image)[0, :, 0].tolist() == [2, 0, 1]


def test_images_that_are_equal_stay_equal() -> None:
    image = torch.rand(1, 3, 16, 16, generator=rng_for(0, "image")).expand(5, -1, -1, -1)
    for step in range(20):
        moved = draw_view(RandomCrop(), True, 4, (16, 16), rng_for(step))(image)
        assert all(torch.equal(other, moved[0]) for other in moved)


@pytest.mark.parametrize(
    ("curriculum", "areas"),
    [
        ("none", (0.08, 0.08, 0.08)),
        ("cosine", (1, 0.54, 0.08)),
        ("linear", (1, 0.54, 0.08)),
        ("step", (1, 1, 0.08)),
    ],
)
def test_the_smallest_crop_falls_from_the_whole_image(
    curriculum: Curriculum, areas: tuple[float, ...]
) -> None:
    found = [smallest_area(RandomCrop(), curriculum, 1.0, done) for done in (0, 0.5, 1)]
    assert found == pytest.approx(areas)


def test_cosine_and_linear_differ_between() -> None:
    assert smallest_area(RandomCrop(), "cosine", 1.0, 0.25) == pytest.approx(0.8652691)
    assert smallest_area(RandomCrop(), "linear", 1.0, 0.25) == pytest.approx(0.77)


def test_a_milestone_is_the_share_of_the_steps_that_the_curriculum_takes() -> None:
    halved = [smallest_area(RandomCrop(), "cosine", 0.5, done) for done in (0, 0.25, 0.5, 0.9)]
    assert halved == pytest.approx([1, 0.54, 0.08, 0.08])


def test_whole_images_are_drawn_where_no_crop_is_asked_for() -> None:
    drawn = [draw_view(None, False, 0, (5, 7), rng_for(seed)) for seed in range(10)]
    assert set(drawn) == {SharedView(0, 0, 5, 7)}


def test_every_flip_and_every_roll_is_drawn() -> None:
    drawn = [draw_view(None, True, 2, (5, 7), rng_for(seed)) for seed in range(400)]
    assert {(view.down, view.right) for view in drawn} == {
        (d, r) for d in range(3) for r in range(3)
    }
    flips = sum(view.flip for view in drawn)
    assert 160 < flips < 240


def test_areas_of_crops_are_spread_between_their_bounds() -> None:
    crop = RandomCrop(smallest=0.25, largest=0.75)
    drawn = [draw_view(crop, False, 0, (64, 64), rng_for(seed)) for seed in range(500)]
    areas = torch.tensor([view.height * view.width / 64**2 for view in drawn])
    assert areas.min() < 0.28 and areas.max() > 0.72
    assert areas.min() > 0.24 and areas.max() < 0.77
    assert abs(float(areas.mean()) - 0.5) < 0.03
