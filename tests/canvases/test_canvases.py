"""What is trained becomes images: pixels and posters agree with what a hand would cut and paste."""

import pytest
import torch
from pydantic import ValidationError
from support.tiny import distilled_of, flat_real, images_of, toy_real, values
from torch import Tensor

from distill_datasets.canvases.canvas import EDGE, Bounds, hide, mix, show
from distill_datasets.canvases.class_order import Listed, Visual
from distill_datasets.canvases.mosaic import Mosaic
from distill_datasets.canvases.pixels import Pixels
from distill_datasets.canvases.poster import Poster
from distill_datasets.distilled import Distilled
from distill_datasets.errors import RecipeError
from distill_datasets.labels.fixed import Area
from distill_datasets.labels.learned import Learned
from distill_datasets.runtime.draws import rng_for
from distill_datasets.selection.random import Noise, Real
from distill_datasets.selection.selection import Selection
from distill_datasets.types import Shape

RNG_WORD = "canvas"
POSTER = "canvas.trained_CHW"


def poster_of(real_classes: int = 3, **fields: object) -> Distilled:
    """A poster of gray classes."""
    real = flat_real([20 * label for label in range(1, real_classes + 1)])
    return distilled_of(
        real, Poster.model_validate(fields), Learned(of="area"), rng_for(0, RNG_WORD)
    )


def shares_of(poster: Distilled) -> Tensor:
    """The share of each crop that lies on each territory."""
    return poster.constants["labels.shown"]


def classes_of(poster: Distilled) -> list[int]:
    """Whose each territory is."""
    return poster.constants["canvas.classes_G"].tolist()


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
    distilled = distilled_of(toy_real(), canvas, Area())
    before = distilled.stored()
    (trained,) = distilled.parameters.values()
    with torch.no_grad():
        trained += torch.where(torch.arange(trained.shape[-1]) == 2, 1e3, 0.0)
    assert max(float(image.max()) for image in distilled.stored()) > 1
    distilled.project()
    for image, was in zip(distilled.stored(), before, strict=True):
        assert image[..., 2].unique().tolist() == [1]
        assert torch.equal(image[..., 3:], was[..., 3:])


def test_a_number_of_images_is_dealt_to_the_classes_in_order() -> None:
    for count, expected in ((2, [0, 1]), (3, [0, 1, 2]), (5, [0, 0, 1, 1, 2])):
        canvas = Pixels(count=count, init=Real(), bounds="clip")
        real = flat_real([0, 51, 102])
        distilled = distilled_of(real, canvas, Area())
        assert canvas.start(real, rng_for(0)).cells.classes_G.tolist() == expected
        assert canvas.size(Shape(1, 8, 8, 3)).examples == distilled.count == count
        assert values(distilled.pixels(torch.arange(count)).mean(dim=(1, 2, 3))) == [
            0.2 * label for label in expected
        ]


def test_crops_are_cut_from_the_poster_at_their_corners() -> None:
    poster = poster_of(height=9, width=13, crops=[2, 3], init=Noise(std=0.2))
    corners = [(0, 0), (0, 2), (0, 5), (1, 0), (1, 2), (1, 5)]
    whole_CHW = poster.stored()[0]
    index_B = torch.tensor([5, 1, 1, 0])
    crops_BCHW = poster.pixels(index_B)
    for crop_CHW, index in zip(crops_BCHW, index_B.tolist(), strict=True):
        top, left = corners[index]
        assert torch.equal(crop_CHW, whole_CHW[:, top : top + 8, left : left + 8])


def test_gradient_of_a_pixel_counts_the_crops_that_contain_it() -> None:
    poster = poster_of(height=9, width=10, crops=[2, 2], init=Noise(std=0))
    poster.pixels(torch.arange(4)).sum().backward()
    column_counts = [1, 1, 2, 2, 2, 2, 2, 2, 1, 1]
    row_counts = [1, 2, 2, 2, 2, 2, 2, 2, 1]
    # the slope of the sigmoid at mid-gray is a quarter
    grad_HW = 4 * poster.parameters[POSTER].grad[0]
    assert grad_HW.tolist() == [[row * column for column in column_counts] for row in row_counts]


def test_only_crops_that_are_asked_for_get_a_gradient() -> None:
    poster = poster_of(height=8, width=16, crops=[1, 3], init=Noise(std=0))
    poster.pixels(torch.tensor([2])).sum().backward()
    assert poster.parameters[POSTER].grad[0].bool().int().tolist() == [[0] * 8 + [1] * 8] * 8


def test_one_crop_that_covers_the_poster_is_a_single_image() -> None:
    poster = poster_of(height=8, width=8, crops=1, init=Noise(std=0.1))
    image = images_of(poster.stored()[0][None], torch.eye(1), bounds="sigmoid")
    torch.testing.assert_close(poster.pixels(torch.tensor([0])), image.pixels(torch.tensor([0])))


@pytest.mark.parametrize("orientation", ["landscape", "portrait"])
@pytest.mark.parametrize("ipc", [0.4, 0.9, 2.0])
@pytest.mark.parametrize("shape", [Shape(1, 8, 8, 3), Shape(3, 8, 8, 10), Shape(1, 6, 10, 7)])
def test_size_tells_what_build_makes_and_keeps_the_budget(
    shape: Shape, ipc: float, orientation: str
) -> None:
    canvas = Poster(ipc=ipc, crops=20, orientation=orientation)
    told = canvas.size(shape)
    poster = distilled_of(toy_real(shape, per_class=2), canvas, Learned())
    [original_CHW] = poster.stored()
    assert [tuple(original_CHW.shape[1:])] == told.originals
    assert poster.count == told.examples == len(shares_of(poster))
    assert original_CHW[0].numel() <= ipc * shape.k * shape.h * shape.w
    shown_NCHW = poster.pixels(torch.arange(poster.count))
    assert shown_NCHW.shape == (poster.count, shape.c, shape.h, shape.w)


@pytest.mark.parametrize("order", [Visual(), Listed(classes=[3, 1, 0, 4, 2])])
def test_what_crops_show_is_told_as_it_is_built(order: Visual | Listed) -> None:
    canvas, real = Poster(ipc=0.7, crops=12, order=order), toy_real(Shape(1, 8, 8, 5), per_class=2)
    cells = canvas.start(real, rng_for(0)).cells
    for given in (real, None):
        told = canvas.shown(real.shape, given)
        assert (told is None) == (order == Visual() and given is None)
        if told is not None:
            assert all(torch.equal(*pair) for pair in zip(told, cells, strict=True))


@pytest.mark.parametrize("canvas", [Pixels(count=2), Pixels(ipc=2), Mosaic(ipc=2)])
def test_what_separate_images_show_is_told_as_it_is_built(canvas: Pixels | Mosaic) -> None:
    real = flat_real([0, 51, 102])
    told, cells = canvas.shown(real.shape), canvas.start(real, rng_for(0)).cells
    assert all(torch.equal(*pair) for pair in zip(told, cells, strict=True))


def test_ten_thousand_images_need_no_table_of_shares() -> None:
    shown, classes_G = Pixels(ipc=10_000).shown(Shape(1, 1, 1, 2))
    assert shown.tolist() == list(range(20_000)) and classes_G.shape == (20_000,)
    table_GD = torch.arange(40_000.0).view(20_000, 2)
    assert torch.equal(mix(shown[[5, 19_999]], table_GD), table_GD[[5, 19_999]])


def test_a_poster_has_the_size_that_a_portrait_recipe_asks_for() -> None:
    poster = poster_of(6, height=24, width=16, crops=12, orientation="portrait")
    assert poster.stored()[0].shape == (1, 24, 16)
    assert poster.geometry()["territories"] == [
        [top, left, top + 8, left + 8] for top in (0, 8, 16) for left in (0, 8)
    ]


def test_every_class_owns_a_cell_and_appears_in_a_crop() -> None:
    for classes in (2, 3, 5, 7, 10, 11):
        for orientation in ("landscape", "portrait"):
            poster = poster_of(classes, ipc=0.6, crops=20, orientation=orientation)
            assert sorted(classes_of(poster)) == list(range(classes))
            assert bool((shares_of(poster).sum(dim=0) > 0).all())
            assert torch.allclose(shares_of(poster).sum(dim=1), torch.ones(poster.count))


def test_real_images_start_on_the_territory_of_their_class() -> None:
    order = [2, 0, 1]
    poster = poster_of(height=8, width=24, crops=[1, 3], init=Real(), order=Listed(classes=order))
    assert classes_of(poster) == order
    crops_NCHW = poster.pixels(torch.arange(3))
    for crop_CHW, shares_G in zip(crops_NCHW, shares_of(poster), strict=True):
        owner = order[int(shares_G.argmax())]
        expected = torch.full_like(crop_CHW, 20 * (owner + 1) / 255)
        torch.testing.assert_close(crop_CHW, expected)


def test_noise_starts_around_mid_gray_with_the_deviation_asked_for() -> None:
    pixels_CHW = poster_of(height=80, width=80, crops=100, init=Noise(std=0.05)).stored()[0]
    assert float(pixels_CHW.mean()) == pytest.approx(0.5, abs=0.003)
    assert float(pixels_CHW.std()) == pytest.approx(0.05, rel=0.05)


@pytest.mark.parametrize("canvas", [Pixels(ipc=2), Poster(ipc=0.9, crops=8)])
@pytest.mark.parametrize("init", [Noise(), Real()])
def test_the_generator_alone_decides_the_start(canvas: Pixels | Poster, init: Selection) -> None:
    real, canvas = toy_real(), canvas.model_copy(update={"init": init})

    def start(seed: int) -> torch.Tensor:
        distilled = distilled_of(real, canvas, Learned(), rng_for(seed, RNG_WORD))
        return distilled.pixels(torch.arange(distilled.count))

    assert torch.equal(start(0), start(0))
    assert not torch.equal(start(0), start(1))


def test_geometry_tells_where_the_crops_are() -> None:
    poster = poster_of(height=9, width=13, crops=[2, 3])
    told = poster.geometry()
    assert told["canvas"] == "poster" and told["poster"] == [1, 9, 13] and told["crop"] == [8, 8]
    assert told["corners_yx"] == [[0, 0], [0, 2], [0, 5], [1, 0], [1, 2], [1, 5]]
    assert told["classes"] == classes_of(poster)
    assert told["territories"] == [[0, 0, 9, 4], [0, 4, 9, 9], [0, 9, 9, 13]]


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
        canvas.start(flat_real([0, 100, 200]), rng_for(0, RNG_WORD))


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
    canvas, real = Pixels(ipc=2, init=Real()), flat_real([51, 102, 204])
    distilled = distilled_of(real, canvas, Area())
    assert canvas.size(Shape(1, 8, 8, 3)) == ([(8, 8)] * 6, 6)
    assert distilled.targets(torch.arange(6)).argmax(dim=1).tolist() == [0, 0, 1, 1, 2, 2]
    shown = distilled.pixels(torch.tensor([4, 0, 3]))
    assert values(shown[:, 0, 0, 0]) == [0.8, 0.2, 0.4]


def test_a_pixel_image_that_is_not_asked_for_gets_no_gradient() -> None:
    distilled = images_of(torch.full((3, 1, 2, 2), 0.5), torch.eye(3), bounds="sigmoid")
    distilled.pixels(torch.tensor([2, 0])).sum().backward()
    assert distilled.parameters["canvas.trained_NCHW"].grad[:, 0, 0, 0].tolist() == [0.25, 0, 0.25]


def test_frozen_images_stay_as_they_began_at_their_places() -> None:
    canvas = Pixels(ipc=3, frozen=1, init=Real(), bounds="clip")
    real = toy_real()
    whole = distilled_of(real, Pixels(ipc=3, init=Real(), bounds="clip"), Area())
    mixed = distilled_of(real, canvas, Area())
    every = torch.arange(whole.count)
    assert torch.equal(mixed(every).images_BCHW, whole(every).images_BCHW)
    assert torch.equal(torch.stack(mixed.stored()), torch.stack(whole.stored()))
    images, _ = mixed(every)
    (grad,) = torch.autograd.grad(images.sum(), [mixed.parameters["canvas.trained_NCHW"]])
    assert len(grad) == 2 * len(every) // 3 and (grad != 0).all()
    with torch.no_grad():
        mixed.parameters["canvas.trained_NCHW"].zero_()
    moved = (mixed(every).images_BCHW != whole(every).images_BCHW).flatten(1).any(dim=1)
    assert moved.tolist() == [place % 3 < 2 for place in range(whole.count)]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"ipc": 2, "frozen": 2, "bounds": "clip"}, "frozen: got 2 of ipc: 2"),
        ({"ipc": 2, "frozen": 1}, "takes ipc: and bounds: clip"),
        ({"count": 4, "frozen": 1, "bounds": "clip"}, "takes ipc: and bounds: clip"),
    ],
)
def test_frozen_images_ask_for_trained_ones_and_whole_pixels(
    fields: dict[str, object], why: str
) -> None:
    with pytest.raises(ValidationError, match=why):
        Pixels.model_validate(fields)


def test_what_is_stored_or_looked_at_is_not_differentiable() -> None:
    images = images_of(torch.rand(2, 1, 2, 2), torch.eye(2), bounds="sigmoid")
    for distilled in (poster_of(ipc=1), images):
        for image in (*distilled.stored(), *distilled.preview()):
            assert not image.requires_grad


def test_only_images_of_one_class_each_are_solved_alone() -> None:
    assert Poster(ipc=1).alone() is Mosaic(ipc=1).alone() is Pixels(count=3).alone() is None
    exact, altered = (Pixels(ipc=2, bounds=bounds).alone() for bounds in ("clip", "sigmoid"))
    assert exact is not None and exact.per_class == 2 and exact.altered is None
    assert altered is not None and altered.altered is not None
