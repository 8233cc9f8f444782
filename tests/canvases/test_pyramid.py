"""The pyramid: levels that add up to an image and come in one after another."""

import pytest
import torch
from support.tiny import toy_real

from distill_datasets.canvases.pyramid import Pyramid, level_sizes
from distill_datasets.optimizers import Adam
from distill_datasets.runtime.draws import rng_for
from distill_datasets.selection.random import Noise, Real
from distill_datasets.types import Shape

SHAPE = Shape(3, 24, 18, 2)
REAL = toy_real(SHAPE, per_class=3)


def test_levels_double_from_one_pixel_to_the_image() -> None:
    assert list(level_sizes(24, 18)) == [(1, 1), (2, 2), (3, 3), (6, 5), (12, 9), (24, 18)]
    assert list(level_sizes(1, 1)) == [(1, 1)]


@pytest.mark.parametrize("channels", [1, 3])
def test_without_a_start_size_it_shows_its_initial_images(channels: int) -> None:
    pixels_NCHW = torch.rand(2, channels, 24, 18, generator=rng_for(0, "pixels"))
    canvas = Pyramid(ipc=1, start_px=None)
    images = canvas.alone().start(pixels_NCHW, torch.tensor([0, 1]))
    shown_BCHW = canvas.decode(images.trained, torch.tensor([1, 0]))
    torch.testing.assert_close(
        shown_BCHW, pixels_NCHW[[1, 0]].clamp(1 / 512, 511 / 512), rtol=0, atol=1e-5
    )
    assert canvas.begins(images.trained, 100) == {}


def test_with_a_start_size_nothing_finer_is_taken() -> None:
    canvas = Pyramid(ipc=1, init=Real(), start_px=6)
    images = canvas.start(REAL, rng_for(0, "canvas"))
    assert [float(level.abs().max()) > 0 for level in images.trained.values()] == [True] * 4 + [
        False
    ] * 2
    fine = canvas.decode(images.trained, torch.arange(2))
    assert (
        fine.diff(dim=3).abs().mean()
        < 0.5
        * torch.stack([image for image in Real().images(REAL, 1, rng_for(0, "canvas"))])
        .diff(dim=3)
        .abs()
        .mean()
    )


def test_finer_levels_begin_later_and_stand_still_until_then() -> None:
    from distill_datasets.distilled import Distilled
    from distill_datasets.labels.fixed import Area
    from distill_datasets.stages.outer_state import OuterState

    canvas = Pyramid(ipc=1, init=Noise(std=0.2), start_px=3, growth=0.5)
    images = canvas.start(REAL, rng_for(0, "canvas"))
    assert canvas.begins(images.trained, 60) == {
        "level_03_NChw": 10,
        "level_04_NChw": 20,
        "level_05_NChw": 30,
    }
    distilled = Distilled(
        canvas, Area(), REAL.normalization.input_space, images, Area().start(images.cells, 2)
    )
    state = OuterState(distilled, {"canvas": Adam(lr=0.1), "labels": Adam(lr=0.1)}, 60)
    ones = {name: torch.ones_like(value) for name, value in state.parameters.items()}
    before = {name: value.detach().clone() for name, value in state.parameters.items()}
    for state.step in range(11):
        state.move(ones, 1.0)
    moved = {
        name: float((before[name] - value.detach()).abs().mean())
        for name, value in state.parameters.items()
    }
    assert moved["canvas.level_02_NChw"] == pytest.approx(1.1, rel=1e-4)
    # its moments begin with it: its first step is as long as any
    assert moved["canvas.level_03_NChw"] == pytest.approx(0.1, rel=1e-4)
    assert moved["canvas.level_04_NChw"] == moved["canvas.level_05_NChw"] == 0


def test_colors_of_photographs_move_together() -> None:
    canvas = Pyramid(ipc=1, start_px=None)
    gray = torch.full((1, 3, 24, 18), 0.5)
    trained = canvas.alone().start(gray, torch.tensor([0])).trained
    trained["level_00_NChw"][:, 0] += 1.0
    red, green, blue = canvas.decode(trained, torch.tensor([0])).mean((0, 2, 3)).tolist()
    assert min(red, green, blue) > 0.7 and max(red, green, blue) - min(red, green, blue) < 0.02
