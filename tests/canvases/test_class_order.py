"""Which classes are neighbors on a poster."""

import sys
from pathlib import Path

import pytest
import torch
from support.tiny import flat_real

from distill_datasets.canvases.class_order import (
    Clip,
    Listed,
    Visual,
    cosine,
    neighbors_before,
    place_greedily,
)
from distill_datasets.canvases.geometry import class_rows, territories
from distill_datasets.data.decoding import Split
from distill_datasets.data.normalization import Normalization
from distill_datasets.data.real import RealData
from distill_datasets.errors import RecipeError
from distill_datasets.types import Shape


def test_neighbors_of_a_rectangle_are_to_the_left_and_above() -> None:
    assert neighbors_before([3, 3]) == [[], [0], [1], [0], [3, 1], [4, 2]]


def test_neighbors_of_ragged_rows_overlap_in_their_spans() -> None:
    # thirds above halves: the left half spans the first third and half of the second
    assert neighbors_before([3, 2]) == [[], [0], [1], [0, 1], [3, 1, 2]]


def test_a_wide_position_touches_all_above_it() -> None:
    assert neighbors_before([2, 1, 2]) == [[], [0], [0, 1], [2], [3, 2]]


@pytest.mark.parametrize("rows", [[5, 5], [4, 3], [3, 2, 2], [5, 4, 4], [1, 1, 1]])
def test_neighbors_are_the_territories_that_share_an_edge(rows: list[int]) -> None:
    # 60 is divisible by every count, so no edge is rounded
    boxes = territories((60 * sum(rows), 60), rows)
    for position, near in enumerate(neighbors_before(rows)):
        own = boxes[position]
        touching = [
            other
            for other, box in enumerate(boxes[:position])
            if (box.bottom == own.top and box.left < own.right and own.left < box.right)
            or (box.right == own.left and box.top == own.top)
        ]
        assert sorted(near) == touching


def test_greedy_placement_on_a_square_by_hand() -> None:
    similarity_KK = torch.tensor(
        [
            [1.0, 0.8, 0.1, 0.3],
            [0.8, 1.0, 0.2, 0.6],
            [0.1, 0.2, 1.0, 0.7],
            [0.3, 0.6, 0.7, 1.0],
        ]
    )
    # row sums 2.2, 2.6, 2.0, 2.6: classes 1 and 3 tie, so 1 begins; most like 1 is 0 (0.8); below
    # 1, class 3 (0.6) beats 2 (0.2); 2 is left
    assert place_greedily(similarity_KK, [2, 2]) == [1, 0, 3, 2]


def test_greedy_placement_asks_all_placed_neighbors() -> None:
    similarity_KK = torch.tensor(
        [
            [1.0, 0.9, 0.8, 0.7, 0.6],
            [0.9, 1.0, 0.0, 0.0, 0.5],
            [0.8, 0.0, 1.0, 0.3, 0.4],
            [0.7, 0.0, 0.3, 1.0, 0.0],
            [0.6, 0.5, 0.4, 0.0, 1.0],
        ]
    )
    # 0, then 1 to its right; below 0: class 2; the last of the square touches 2 and 1, where class
    # 4 has 0.4 + 0.5 and class 3 has 0.3 + 0, although 0, placed before, prefers 3
    assert place_greedily(similarity_KK, [2, 2, 1]) == [0, 1, 2, 4, 3]


def test_every_class_is_placed_once_for_any_number_of_classes() -> None:
    for classes in [*range(1, 20), 100]:
        rng = torch.Generator().manual_seed(classes)
        features_KD = torch.randn(classes, 5, generator=rng)
        for portrait in (False, True):
            rows = class_rows(classes, portrait=portrait)
            placed = place_greedily(cosine(features_KD), rows)
            assert sorted(placed) == list(range(classes))


def test_cosine_is_one_for_the_same_direction_and_zero_for_a_right_angle() -> None:
    features_KD = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
    assert cosine(features_KD)[0].tolist() == [1, 1, 0, -1]


def test_visual_order_puts_classes_that_look_alike_side_by_side() -> None:
    # classes 0 and 2 are bright on the left, 1 and 3 on the right
    images_NCHW = torch.zeros(4, 1, 2, 4, dtype=torch.uint8)
    images_NCHW[[0, 2], :, :, :2] = 200
    images_NCHW[[1, 3], :, :, 2:] = 200
    images_NCHW[2, 0, 0, 0] = 180
    images_NCHW[3, 0, 0, 3] = 170
    rows = Split(images_NCHW, torch.arange(4))
    as_is = Normalization(torch.zeros(1), torch.ones(1))
    real = RealData(rows, rows, ["a", "b", "c", "d"], as_is, Shape(1, 2, 4, 4))
    placed = Visual().arrange(real, [4])
    assert {frozenset(placed[:2]), frozenset(placed[2:])} == {frozenset({0, 2}), frozenset({1, 3})}


def test_visual_order_compares_what_differs_from_the_mean_of_all_classes() -> None:
    # as they are, the dark class 0 and the bright class 1 have the same direction; less the mean,
    # the two bright classes have nearly the same and the dark one the opposite
    images_NCHW = torch.tensor([[100, 100], [200, 200], [190, 200]], dtype=torch.uint8)
    rows = Split(images_NCHW.view(3, 1, 1, 2), torch.arange(3))
    as_is = Normalization(torch.zeros(1), torch.ones(1))
    real = RealData(rows, rows, ["a", "b", "c"], as_is, Shape(1, 1, 2, 3))
    assert Visual().arrange(real, [3])[-1] == 0


def test_visual_order_of_a_single_class_or_of_equal_classes_is_defined() -> None:
    assert Visual().arrange(flat_real([7]), [1]) == [0]
    assert sorted(Visual().arrange(flat_real([7, 7, 7]), [3])) == [0, 1, 2]


def test_listed_order_is_taken_as_it_is() -> None:
    assert Listed(classes=[2, 0, 1]).arrange(flat_real([1, 2, 3]), [2, 1]) == [2, 0, 1]


@pytest.mark.parametrize("classes", [[0, 1], [0, 1, 1], [0, 1, 2, 3], [1, 2, 3], []])
def test_a_list_that_is_not_every_class_once_is_refused(classes: list[int]) -> None:
    (problem,) = Listed(classes=classes).problems(3)
    assert f"expected every class 0..2 once, got {classes}" in problem


def test_clip_without_transformers_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    told = (
        "distill.canvas.order: 'clip' needs transformers; run "
        "`pip install 'distill_datasets[clip]'`, or use 'visual'"
    )
    assert list(Clip().problems(3)) == [told]
    with pytest.raises(RecipeError) as caught:
        Clip().arrange(flat_real([1, 2, 3]), [3])
    assert str(caught.value) == told


def test_clip_with_transformers_is_accepted_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "transformers.py").write_text("raise AssertionError", encoding="utf-8")
    monkeypatch.delitem(sys.modules, "transformers", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert list(Clip().problems(3)) == []
    assert "transformers" not in sys.modules


def test_only_a_listed_order_is_known_before_the_source_is_read() -> None:
    assert Listed(classes=[2, 0, 1]).known() == [2, 0, 1]
    assert Visual().known() is Clip().known() is None
