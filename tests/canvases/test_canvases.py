"""What is trained becomes images: pixels and posters agree with what a hand would cut and paste."""

import pytest
import torch
from pydantic import ValidationError
from support.tiny import flat_real, toy_real, values

from distill_datasets.canvases.canvas import EDGE, Bounds, hide, show
from distill_datasets.canvases.class_order import Listed, Visual
from distill_datasets.canvases.modules import PixelImages, PosterImage
from distill_datasets.canvases.pixels import Pixels
from distill_datasets.canvases.poster import Poster
from distill_datasets.distilled import CanvasModule
from distill_datasets.errors import RecipeError
from distill_datasets.runtime.draws import rng_for
from distill_datasets.selection.random import Noise, Real
from distill_datasets.selection.selection import Selection
from distill_datasets.types import Shape

RNG_WORD = "canvas"


def poster_of(real_classes: int = 3, **fields: object) -> PosterImage:
    """A poster of gray classes."""
    real = flat_real([20 * label for label in range(1, real_classes + 1)])
    module = Poster.model_validate(fields).build(real, rng_for(0, RNG_WORD))
    assert isinstance(module, PosterImage)
    return module


@pytest.mark.parametrize("bounds", ["sigmoid", "clip"])
def test_hidden_pixels_are_shown_as_they_were(bounds: Bounds) -> None:
    pixels = torch.tensor([EDGE, 0.1, 0.5, 0.9, 1 - EDGE], dtype=torch.float64)
    assert torch.allclose(show(hide(pixels, bounds), bounds), pixels, atol=1e-15)


def test_black_and_white_are_pulled_to_where_the_sigmoid_has_a_slope() -> None:
    assert values(show(hide(torch.tensor([0.0, 1.0]), "sigmoid"), "sigmoid")) == [0.02, 0.98]


def test_trained_values_of_any_size_are_shown_inside_the_range() -> None:
    shown = show(torch.tensor([-1e6, -3.0, 0.0, 3.0, 1e6]), "sigmoid")
    assert shown.min() >= 0 and shown.max() <= 1 and shown[2] == 0.5


def test_clipped_pixels_keep_black_and_white_and_move_alike() -> None:
    trained = hide(torch.tensor([0.0, 0.3, 1.0]), "clip").requires_grad_()
    shown = show(trained, "clip")
    assert values(shown) == [0, 0.3, 1]
    assert torch.autograd.grad(shown.sum(), trained)[0].tolist() == [0.25, 0.25, 0.25]


@pytest.mark.parametrize("canvas", [Pixels(ipc=2, bounds="clip"), Poster(ipc=1, bounds="clip")])
def test_clipped_pixels_that_leave_the_range_are_brought_back(canvas: Pixels | Poster) -> None:
    module: CanvasModule = canvas.build(toy_real(), rng_for(0, RNG_WORD))
    before = module.originals()
    (trained,) = module.parameters()
    with torch.no_grad():
        trained += torch.where(torch.arange(trained.shape[-1]) == 2, 1e3, 0.0)
    assert max(float(image.max()) for image in module.originals()) > 1
    module.project()
    for image, was in zip(module.originals(), before, strict=True):
        assert image[..., 2].unique().tolist() == [1]
        assert torch.equal(image[..., 3:], was[..., 3:])


def test_a_number_of_images_is_dealt_to_the_classes_in_order() -> None:
    for count, expected in ((2, [0, 1]), (3, [0, 1, 2]), (5, [0, 0, 1, 1, 2])):
        canvas = Pixels(count=count, init=Real(), bounds="clip")
        module = canvas.build(flat_real([0, 51, 102]), rng_for(0))
        assert module.cells_G.tolist() == expected
        assert canvas.size(Shape(1, 8, 8, 3)).examples == module.count == count
        assert values(module(torch.arange(count)).mean(dim=(1, 2, 3))) == [
            0.2 * label for label in expected
        ]


def test_crops_are_cut_from_the_poster_at_their_corners() -> None:
    poster = poster_of(height=9, width=13, crops=[2, 3], init=Noise(std=0.2))
    corners = [(0, 0), (0, 2), (0, 5), (1, 0), (1, 2), (1, 5)]
    whole_CHW = poster.originals()[0]
    index_B = torch.tensor([5, 1, 1, 0])
    crops_BCHW = poster(index_B)
    for crop_CHW, index in zip(crops_BCHW, index_B.tolist(), strict=True):
        top, left = corners[index]
        assert torch.equal(crop_CHW, whole_CHW[:, top : top + 8, left : left + 8])


def test_gradient_of_a_pixel_counts_the_crops_that_contain_it() -> None:
    poster = poster_of(height=9, width=10, crops=[2, 2], init=Noise(std=0))
    poster(torch.arange(4)).sum().backward()
    column_counts = [1, 1, 2, 2, 2, 2, 2, 2, 1, 1]
    row_counts = [1, 2, 2, 2, 2, 2, 2, 2, 1]
    # the slope of the sigmoid at mid-gray is a quarter
    grad_HW = 4 * poster.trained_CHW.grad[0]
    assert grad_HW.tolist() == [[row * column for column in column_counts] for row in row_counts]


def test_only_crops_that_are_asked_for_get_a_gradient() -> None:
    poster = poster_of(height=8, width=16, crops=[1, 3], init=Noise(std=0))
    poster(torch.tensor([2])).sum().backward()
    assert poster.trained_CHW.grad[0].bool().int().tolist() == [[0] * 8 + [1] * 8] * 8


def test_one_crop_that_covers_the_poster_is_a_single_image() -> None:
    poster = poster_of(height=8, width=8, crops=1, init=Noise(std=0.1))
    image = PixelImages(poster.originals()[0][None], torch.tensor([0]), "sigmoid")
    torch.testing.assert_close(poster(torch.tensor([0])), image(torch.tensor([0])))


@pytest.mark.parametrize("orientation", ["landscape", "portrait"])
@pytest.mark.parametrize("ipc", [0.4, 0.9, 2.0])
@pytest.mark.parametrize("shape", [Shape(1, 8, 8, 3), Shape(3, 8, 8, 10), Shape(1, 6, 10, 7)])
def test_size_tells_what_build_makes_and_keeps_the_budget(
    shape: Shape, ipc: float, orientation: str
) -> None:
    canvas = Poster(ipc=ipc, crops=20, orientation=orientation)
    told = canvas.size(shape)
    module = canvas.build(toy_real(shape, per_class=2), rng_for(0, RNG_WORD))
    [original_CHW] = module.originals()
    assert [tuple(original_CHW.shape[1:])] == told.originals
    assert module.count == told.examples == len(module.mix_NG)
    assert original_CHW[0].numel() <= ipc * shape.k * shape.h * shape.w
    assert module(torch.arange(module.count)).shape == (module.count, shape.c, shape.h, shape.w)


@pytest.mark.parametrize("order", [Visual(), Listed(classes=[3, 1, 0, 4, 2])])
def test_what_crops_show_is_told_as_it_is_built(order: Visual | Listed) -> None:
    canvas, real = Poster(ipc=0.7, crops=12, order=order), toy_real(Shape(1, 8, 8, 5), per_class=2)
    module = canvas.build(real, rng_for(0))
    told = canvas.shown(real.shape, real)
    assert torch.equal(told.mix_NG, module.mix_NG)
    assert told.cells_G is not None and torch.equal(told.cells_G, module.cells_G)
    mix_NG, cells_G = canvas.shown(real.shape)
    assert torch.equal(mix_NG, module.mix_NG)
    assert (cells_G is None) == (order == Visual())


def test_fewer_images_than_classes_tell_which_they_show() -> None:
    canvas = Pixels(count=2)
    module = canvas.build(flat_real([0, 51, 102]), rng_for(0))
    told = canvas.shown(Shape(1, 8, 8, 3))
    assert told is not None and told.cells_G is not None
    assert torch.equal(told.mix_NG, module.mix_NG) and torch.equal(told.cells_G, module.cells_G)
    assert Pixels(count=3).shown(Shape(1, 8, 8, 3)) is None
    assert Pixels(ipc=2).shown(Shape(1, 8, 8, 3)) is None


def test_a_poster_has_the_size_that_a_portrait_recipe_asks_for() -> None:
    poster = poster_of(6, height=24, width=16, crops=12, orientation="portrait")
    assert poster.originals()[0].shape == (1, 24, 16)
    assert poster.geometry()["territories"] == [
        [top, left, top + 8, left + 8] for top in (0, 8, 16) for left in (0, 8)
    ]


def test_every_class_owns_a_cell_and_appears_in_a_crop() -> None:
    for classes in (2, 3, 5, 7, 10, 11):
        for orientation in ("landscape", "portrait"):
            poster = poster_of(classes, ipc=0.6, crops=20, orientation=orientation)
            assert sorted(poster.cells_G.tolist()) == list(range(classes))
            assert bool((poster.mix_NG.sum(dim=0) > 0).all())
            assert torch.allclose(poster.mix_NG.sum(dim=1), torch.ones(poster.count))


def test_real_images_start_on_the_territory_of_their_class() -> None:
    order = [2, 0, 1]
    poster = poster_of(height=8, width=24, crops=[1, 3], init=Real(), order=Listed(classes=order))
    assert poster.cells_G.tolist() == order
    crops_NCHW = poster(torch.arange(3))
    for crop_CHW, shares_G in zip(crops_NCHW, poster.mix_NG, strict=True):
        owner = order[int(shares_G.argmax())]
        expected = torch.full_like(crop_CHW, 20 * (owner + 1) / 255)
        torch.testing.assert_close(crop_CHW, expected)


def test_noise_starts_around_mid_gray_with_the_deviation_asked_for() -> None:
    pixels_CHW = poster_of(height=80, width=80, crops=100, init=Noise(std=0.05)).originals()[0]
    assert float(pixels_CHW.mean()) == pytest.approx(0.5, abs=0.003)
    assert float(pixels_CHW.std()) == pytest.approx(0.05, rel=0.05)


@pytest.mark.parametrize("canvas", [Pixels(ipc=2), Poster(ipc=0.9, crops=8)])
@pytest.mark.parametrize("init", [Noise(), Real()])
def test_the_generator_alone_decides_the_start(canvas: Pixels | Poster, init: Selection) -> None:
    real, canvas = toy_real(), canvas.model_copy(update={"init": init})

    def start(seed: int) -> torch.Tensor:
        module: CanvasModule = canvas.build(real, rng_for(seed, RNG_WORD))
        return module(torch.arange(module.count))

    assert torch.equal(start(0), start(0))
    assert not torch.equal(start(0), start(1))


def test_geometry_tells_where_the_crops_are() -> None:
    poster = poster_of(height=9, width=13, crops=[2, 3])
    told = poster.geometry()
    assert told["canvas"] == "poster" and told["poster"] == [1, 9, 13] and told["crop"] == [8, 8]
    assert told["corners_yx"] == [[0, 0], [0, 2], [0, 5], [1, 0], [1, 2], [1, 5]]
    assert told["classes"] == poster.cells_G.tolist()


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"ipc": 0.3}, r"ipc: 0.3 images .* less than one example .* set ipc to at least 0.334"),
        ({"height": 7, "width": 40}, "height: .*cannot hold a crop of 8 px; set height to at le"),
        ({"height": 40, "width": 7}, "width: .*cannot hold a crop of 8 px; set width to at least"),
        ({"height": 6, "width": 5}, "height: a poster of 6 px cannot hold a crop of 8 px"),
        ({"height": 8, "width": 24, "crops": [1, 2]}, "uncovered; use at least 3"),
        ({"height": 8, "width": 9, "crops": [1, 3]}, "coincide; at most 2 differ"),
    ],
)
def test_a_poster_that_cannot_be_cut_is_refused_before_and_while_building(
    fields: dict[str, object], complaint: str
) -> None:
    canvas = Poster.model_validate(fields)
    with pytest.raises(RecipeError, match=complaint):
        canvas.size(Shape(1, 8, 8, 3))
    with pytest.raises(RecipeError, match=complaint):
        canvas.build(flat_real([0, 100, 200]), rng_for(0, RNG_WORD))


def test_a_list_of_classes_of_another_data_set_is_refused_before_building() -> None:
    canvas = Poster(ipc=1, order=Listed(classes=[0, 1]))
    with pytest.raises(RecipeError, match=r"every class 0\.\.2 once"):
        canvas.size(Shape(1, 8, 8, 3))


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({}, "either ipc, or height and width"),
        ({"ipc": 1, "height": 8, "width": 8}, "either ipc, or height and width"),
        ({"height": 8}, "either ipc, or height and width"),
        ({"ipc": 1, "height": 8}, "either ipc, or height and width"),
        ({"ipc": 1, "crops": 0}, "crops: expected at least 1, got 0"),
        ({"ipc": 1, "crops": [2]}, r"crops: expected \[rows, columns\], .* got \[2\]"),
        ({"ipc": 1, "crops": [2, 0]}, r"crops: expected \[rows, columns\], .* got \[2, 0\]"),
    ],
)
def test_a_poster_whose_fields_contradict_each_other_is_refused(
    fields: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ValidationError, match=complaint):
        Poster.model_validate(fields)


def test_pixel_images_stand_in_the_order_of_their_classes() -> None:
    canvas = Pixels(ipc=2, init=Real())
    module = canvas.build(flat_real([51, 102, 204]), rng_for(0, RNG_WORD))
    assert canvas.size(Shape(1, 8, 8, 3)) == ([(8, 8)] * 6, 6)
    assert module.cells_G.tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(module.mix_NG, torch.eye(6))
    shown = module(torch.tensor([4, 0, 3]))
    assert values(shown[:, 0, 0, 0]) == [0.8, 0.2, 0.4]


def test_a_pixel_image_that_is_not_asked_for_gets_no_gradient() -> None:
    module = PixelImages(torch.full((3, 1, 2, 2), 0.5), torch.arange(3), "sigmoid")
    module(torch.tensor([2, 0])).sum().backward()
    assert module.trained_NCHW.grad[:, 0, 0, 0].tolist() == [0.25, 0, 0.25]


def test_originals_are_copies_of_nothing_that_is_trained_further() -> None:
    for module in (
        poster_of(ipc=1),
        PixelImages(torch.rand(2, 1, 2, 2), torch.arange(2), "sigmoid"),
    ):
        assert not any(original.requires_grad for original in module.originals())
