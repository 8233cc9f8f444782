"""Learned label logits: where they start, how examples mix them, and that they stay labels."""

import math

import pytest
import torch
from support.tiny import flat_real, values
from support.toy_runs import CONVNET, toy_recipe
from torch import Tensor

from distill_datasets.canvases.canvas import Cells, Tensors
from distill_datasets.canvases.class_order import Listed
from distill_datasets.canvases.poster import Poster
from distill_datasets.errors import RecipeError
from distill_datasets.labels.learned import Logits
from distill_datasets.runtime.draws import rng_for

# two members, two examples of each of two classes: of (class 0, class 0, class 1, class 1) the
# first member gets the examples 0 and 3 right, the second 0 and 1
OPINIONS_MNK = torch.tensor(
    [
        [[4.0, 0.0], [1.0, 3.0], [9.0, 1.0], [-1.0, 5.0]],
        [[2.0, 1.0], [7.0, 2.0], [5.0, 3.0], [6.0, 0.0]],
    ]
)


TWO_EACH = Cells(torch.arange(4), torch.tensor([0, 0, 1, 1]))


def strip(crops: int) -> Cells:
    """A poster of two 8 x 8 territories, with crops of the same size."""
    canvas = Poster(height=8, width=16, crops=[1, crops], order=Listed(classes=[0, 1]))
    return canvas.start(flat_real([0, 0]), rng_for(0)).cells


def begun(labels: Logits, cells: Cells) -> Tensors:
    """Trained logits, ready to be differentiated, and what goes with them."""
    trained, constants = labels.start(cells, 2)
    return {"logits_GK": trained["logits_GK"].requires_grad_()} | constants


def logits(labels: Logits, cells: Cells, opinions_MNK: Tensor | None = None) -> list[float]:
    return values(labels.start(cells, 2, opinions_MNK).trained["logits_GK"])


def test_labels_start_from_the_right_class_with_the_confidence_that_is_asked_for() -> None:
    labels = Logits(confidence=3.0)
    assert logits(labels, TWO_EACH) == [3, 0, 3, 0, 0, 3, 0, 3]
    right = math.exp(3) / (math.exp(3) + 1)
    expected = torch.tensor([[right, 1 - right]] * 2 + [[1 - right, right]] * 2)
    tensors = begun(labels, TWO_EACH)
    torch.testing.assert_close(labels.targets(tensors, torch.arange(4)).detach(), expected)
    torch.testing.assert_close(labels.stored(tensors), expected)


def test_target_is_the_softmax_of_the_mean_logits_by_area() -> None:
    shares_NG = torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    tensors = {"shown": shares_NG, "logits_GK": torch.tensor([[4.0, 0.0], [0.0, 4.0]])}
    # second row: 0.25 * (4, 0) + 0.75 * (0, 4) = (1, 3)
    expected = torch.tensor([[1.0, 3.0], [4.0, 0.0]]).softmax(dim=1)
    torch.testing.assert_close(Logits().targets(tensors, torch.tensor([1, 0])), expected)


def test_only_members_that_are_right_are_heard_and_all_where_none_is() -> None:
    labels = Logits(init="squeezed")
    # example 0: both; 1: the second; 2: none, so both; 3: the first
    assert logits(labels, TWO_EACH, OPINIONS_MNK) == [3, 0.5, 7, 2, 7, 2, -1, 5]


def test_all_members_are_heard_when_asked_for() -> None:
    labels = Logits(init="squeezed", only_correct=False)
    assert logits(labels, TWO_EACH, OPINIONS_MNK) == [3, 0.5, 4, 2.5, 7, 2, 2.5, 2.5]


def test_a_cell_starts_from_the_mean_of_the_examples_that_show_it() -> None:
    # crops at columns 0, 4, 8: shares (1, 0), (0.5, 0.5), (0, 1)
    opinions_MNK = torch.tensor([[[4.0, 0.0], [3.0, 3.0], [0.0, 6.0]]])
    labels = Logits(init="squeezed", only_correct=False)
    expected = [(4 + 1.5) / 1.5, 1.5 / 1.5, 1.5 / 1.5, (6 + 1.5) / 1.5]
    assert logits(labels, strip(3), opinions_MNK) == pytest.approx(expected, abs=1e-5)


def test_a_cell_that_no_example_shows_starts_from_its_class() -> None:
    opinions_MNK = torch.tensor([[[4.0, 1.0], [4.0, 1.0]]])
    labels = Logits(init="squeezed", confidence=3.0)
    for shown in (torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 0])):
        assert logits(labels, Cells(shown, torch.arange(2)), opinions_MNK) == [4, 1, 0, 3]


def test_the_tiles_of_an_image_are_heard_alike() -> None:
    cells = Cells(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1]))
    labels = Logits(init="squeezed", only_correct=False)
    assert logits(labels, cells, OPINIONS_MNK[:1]) == [2.5, 1.5, 4, 3]


def test_gradient_reaches_the_cells_of_an_example_and_no_others() -> None:
    tensors = begun(Logits(), strip(3))
    Logits().targets(tensors, torch.tensor([0]))[0, 0].backward()
    grad_GK = tensors["logits_GK"].grad
    assert grad_GK is not None
    assert grad_GK[0].abs().min() > 0 and grad_GK[1].tolist() == [0, 0]


@pytest.mark.parametrize("scale", [1.0, -1e3, 1e6])
def test_labels_stay_distributions_whatever_the_logits(scale: float) -> None:
    tensors = begun(Logits(), strip(5))
    with torch.no_grad():
        tensors["logits_GK"].mul_(scale)
    Logits().project(tensors)
    drawn_NK = Logits().targets(tensors, torch.arange(5))
    assert bool((drawn_NK >= 0).all())
    torch.testing.assert_close(drawn_NK.sum(dim=1), torch.ones(5))


def test_only_an_init_from_squeezed_networks_needs_them() -> None:
    assert Logits(init="squeezed").needs_squeezed and not Logits().needs_squeezed
    with pytest.raises(RecipeError, match=r"'squeezed' needs networks .*add a section squeeze"):
        Logits(init="squeezed").start(TWO_EACH, 2)


def test_a_recipe_says_that_the_networks_are_missing_or_not_used() -> None:
    needing = "distill.labels={name: logits, init: squeezed}"
    with pytest.raises(RecipeError, match=r"squeeze: missing; distill\.labels: 'logits'"):
        toy_recipe(needing)
    squeeze = f"squeeze={{epochs: 1, network: {CONVNET}}}"
    toy_recipe(needing, squeeze)
    with pytest.raises(RecipeError, match="squeeze: neither distill nor relabel uses the networks"):
        toy_recipe("distill.labels=logits", squeeze)
