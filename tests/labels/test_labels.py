"""Targets from the area that an example shows of each class, fixed or learned."""

from typing import Literal

import pytest
import torch
from support.tiny import distilled_of, flat_real, values

from distill_datasets.canvases.class_order import Listed
from distill_datasets.canvases.pixels import Pixels
from distill_datasets.canvases.poster import Poster
from distill_datasets.distilled import Distilled
from distill_datasets.labels.fixed import Area
from distill_datasets.labels.labels import Labels
from distill_datasets.labels.learned import Learned
from distill_datasets.types import Shape

CELLS = "labels.cells_GK"


def strip(crops: int, labels: Labels, classes_G: tuple[int, ...] = (0, 1)) -> Distilled:
    """A poster of one row of 8 x 8 territories, with crops of the same size."""
    canvas = Poster(
        height=8, width=8 * len(classes_G), crops=[1, crops], order=Listed(classes=list(classes_G))
    )
    return distilled_of(flat_real([0] * len(classes_G)), canvas, labels)


def targets(distilled: Distilled) -> list[list[float]]:
    return [values(row) for row in distilled.targets(torch.arange(distilled.count))]


def test_target_is_the_share_of_the_area_of_each_class() -> None:
    # crops at columns 0, 2, 4, 6, 8 of a poster whose classes meet at column 8
    found = targets(strip(5, Area()))
    assert found == [[1, 0], [0.75, 0.25], [0.5, 0.5], [0.25, 0.75], [0, 1]]


def test_target_belongs_to_the_class_and_not_to_its_place() -> None:
    poster = strip(5, Area(), (2, 0, 1))
    # crops at columns 0, 4, 8, 12, 16; class 2 stands first
    assert targets(poster) == [[0, 0, 1], [0.5, 0, 0.5], [1, 0, 0], [0.5, 0.5, 0], [0, 1, 0]]
    assert poster.stored_labels().tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]


def test_one_hot_takes_the_largest_class_and_the_lower_one_of_a_tie() -> None:
    found = targets(strip(5, Area(rule="one_hot")))
    assert found == [[1, 0], [1, 0], [1, 0], [0, 1], [0, 1]]


def test_one_hot_refuses_a_class_that_is_the_largest_nowhere() -> None:
    # one crop of 8 x 8 on four classes of 4 x 4: a tie, which class 0 wins
    real = flat_real([0] * 4)
    (problem,) = Area(rule="one_hot").problems(Poster(height=8, width=8, crops=1), real.shape, real)
    assert problem.startswith("distill.labels: the classes [1, 2, 3] are in no example")
    assert "use the rule 'proportional'" in problem


def told(labels: Area, canvas: Pixels | Poster, classes: int) -> list[str | None]:
    """What is said before the source is read, and when it is; None: well."""
    real = flat_real([0] * classes)
    return [next(iter(labels.problems(canvas, real.shape, given)), None) for given in (None, real)]


@pytest.mark.parametrize("rule", ["proportional", "one_hot"])
def test_a_class_without_an_image_is_refused_beforehand_in_the_same_words(rule: str) -> None:
    assert told(Area(rule=rule), Pixels(count=3), 5) == 2 * [
        f"distill.labels: the classes [3, 4] are in no example under the rule {rule!r}; give every "
        "class an example by a larger budget in distill.canvas (ipc, or a count of at least 5), or "
        "use 'learned' labels"
    ]
    for canvas in (Pixels(count=5), Pixels(count=8), Pixels(ipc=1)):
        assert told(Area(rule=rule), canvas, 5) == [None, None]


def three(order: list[int] | None) -> Poster:
    """Three cells of 4 x 8 px in a row; crops tie on the first two, on the last two, and between
    them one shows most of the middle cell."""
    return Poster(
        height=8, width=12, crops=[1, 3], **{"order": Listed(classes=order)} if order else {}
    )


def test_an_order_that_hides_a_class_is_refused_beforehand_in_the_same_words() -> None:
    # ties go to the lower class: 0, then 1 of the middle, then 1 again
    lost = (
        "distill.labels: the classes [2] are in no example under the rule 'one_hot'; use the rule "
        "'proportional', 'learned' labels, more crops, a larger budget or another order"
    )
    assert told(Area(rule="one_hot"), three([0, 1, 2]), 3) == [lost] * 2
    assert told(Area(rule="one_hot"), three([0, 2, 1]), 3) == [None] * 2
    # in an order by images, which are alike here and stand as they come, the source has to be read
    assert told(Area(rule="one_hot"), three(None), 3) == [None, lost]
    assert told(Area(), three([0, 1, 2]), 3) == told(Area(), three(None), 3) == [None] * 2


def test_labels_that_are_learned_need_no_example_of_every_class() -> None:
    assert list(Learned().problems(Pixels(count=3), Shape(1, 8, 8, 5))) == []


def test_pixel_images_are_labeled_with_their_class() -> None:
    for rule in (Area(), Area(rule="one_hot")):
        distilled = distilled_of(flat_real([0, 0]), Pixels(ipc=2), rule)
        assert targets(distilled) == [[1, 0], [1, 0], [0, 1], [0, 1]]


def test_fixed_labels_have_nothing_to_train() -> None:
    poster = strip(5, Area())
    before = targets(poster)
    poster.project()
    assert list(poster.parameters) == ["canvas.trained_CHW"]
    assert targets(poster) == before


def test_learned_labels_start_from_geometry() -> None:
    index_N = torch.arange(5)
    fixed = strip(5, Area()).targets(index_N)
    for labels in (Learned(floor=0.0001), Learned(of="area", floor=0.0001)):
        learned = strip(5, labels).targets(index_N)
        torch.testing.assert_close(learned, fixed, atol=0.0002, rtol=0)


def test_a_crop_has_a_label_of_its_own_that_no_other_crop_shares() -> None:
    poster = strip(5, Learned())
    with torch.no_grad():
        poster.parameters[CELLS][1] = torch.tensor([1.0, 3.0])
    assert targets(poster)[1] == [0.25, 0.75]
    others = torch.tensor([0, 2, 3, 4])
    torch.testing.assert_close(poster.targets(others), strip(5, Learned()).targets(others))
    # five labels are published, as the examples have them; of cells there are two
    assert poster.stored_labels()[1].tolist() == [0.25, 0.75]
    assert [
        len(strip(5, labels).stored_labels()) for labels in (Learned(), Learned(of="area"))
    ] == [
        5,
        2,
    ]


def test_an_image_that_shows_one_class_has_the_same_label_either_way() -> None:
    real = flat_real([0, 0])
    for labels in (Learned(), Learned(of="area")):
        found = distilled_of(real, Pixels(ipc=2), labels)
        torch.testing.assert_close(
            found.targets(torch.arange(4)), torch.eye(2).repeat_interleave(2, 0), atol=2e-4, rtol=0
        )
        assert found.parameters[CELLS].shape == (4, 2)


def test_learned_target_is_the_normalized_mean_of_the_cells_by_area() -> None:
    shares_NG = torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    tensors = {"shown": shares_NG, "cells_GK": torch.tensor([[6.0, 2.0], [2.0, 6.0]])}
    # second row: 0.25 * (6, 2) + 0.75 * (2, 6) = (3, 5)
    assert Learned().targets(tensors, torch.tensor([1, 0])).tolist() == [
        [3 / 8, 5 / 8],
        [6 / 8, 2 / 8],
    ]


def test_gradient_reaches_the_cells_of_an_example_and_no_others() -> None:
    poster = strip(3, Learned(of="area"))
    poster.targets(torch.tensor([0]))[0, 0].backward()
    grad_GK = poster.parameters[CELLS].grad
    assert grad_GK is not None
    assert grad_GK[0].abs().min() > 0 and grad_GK[1].tolist() == [0, 0]


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-12])
@pytest.mark.parametrize("of", ["example", "area"])
def test_labels_stay_distributions_after_their_cells_were_driven_to_zero(
    value: float, of: Literal["example", "area"]
) -> None:
    poster = strip(5, Learned(of=of))
    with torch.no_grad():
        poster.parameters[CELLS].fill_(value)
    poster.project()
    drawn_NK = poster.targets(torch.arange(5))
    assert drawn_NK.tolist() == [[0.5, 0.5]] * 5
    drawn_NK[:, 0].sum().backward()
    grad_GK = poster.parameters[CELLS].grad
    assert grad_GK is not None and bool(grad_GK.isfinite().all())


def test_projection_moves_only_what_is_below_the_floor() -> None:
    labels = Learned(of="area", floor=0.01)
    tensors = {"cells_GK": torch.tensor([[-1.0, 5.0], [0.5, 0.001]]), "shown": torch.eye(2)}
    labels.project(tensors)
    assert values(labels.stored(tensors)) == [0.01, 5, 0.5, 0.01]


def test_rows_of_any_labels_sum_to_one() -> None:
    for classes in (2, 3, 7, 10):
        for orientation in ("landscape", "portrait"):
            poster = Poster(ipc=0.7, crops=30, orientation=orientation)
            for rule in (Area(), Learned(), Learned(of="area")):
                distilled = distilled_of(flat_real([0] * classes), poster, rule)
                drawn_NK = distilled.targets(torch.arange(distilled.count))
                assert float(drawn_NK.detach().min()) >= 0
                torch.testing.assert_close(drawn_NK.sum(dim=1), torch.ones(distilled.count))
