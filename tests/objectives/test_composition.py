"""What is in a match batch, from the recipe alone."""

from types import SimpleNamespace

import pytest

from distill_datasets.errors import RecipeError
from distill_datasets.objectives.objective import Composition, match_blocks
from distill_datasets.runtime.processes import Runtime


def classes_of(
    composition: Composition, match_batch: int | None, classes: int, per_class: int
) -> list[list[int]]:
    """The class of every image of every block."""
    blocks = match_blocks(composition, match_batch, classes, per_class)
    return [[place // per_class for place in block.places_N] for block in blocks]


@pytest.mark.parametrize("composition", ["across", "within", "class_major"])
@pytest.mark.parametrize(("classes", "per_class", "batch"), [(10, 6, 2), (4, 4, 4), (3, 4, 1)])
def test_every_place_is_in_one_block(
    composition: Composition, classes: int, per_class: int, batch: int
) -> None:
    blocks = match_blocks(composition, batch, classes, per_class)
    assert {len(block.places_N) for block in blocks} == {batch}
    places = [place for block in blocks for place in block.places_N]
    assert sorted(places) == list(range(classes * per_class))


def test_batches_across_classes_have_every_class_once() -> None:
    found = classes_of("across", 10, 10, 6)
    assert found == [list(range(10))] * 6
    assert match_blocks("across", 10, 10, 6)[2].places_N == tuple(range(2, 60, 6))


def test_batches_smaller_than_the_classes_have_no_class_twice() -> None:
    # 21K has 10,450 classes, which 100 does not divide: batches go on in the next turn
    for found in classes_of("across", 6, 9, 2):
        assert len(set(found)) == 6


def test_batches_larger_than_the_classes_have_all_equally_often() -> None:
    for found in classes_of("across", 30, 10, 6):
        assert [found.count(label) for label in range(10)] == [3] * 10


def test_batches_within_a_class_have_no_other() -> None:
    assert classes_of("within", 3, 4, 6) == [[label] * 3 for label in (0, 0, 1, 1, 2, 2, 3, 3)]


def test_class_major_batches_take_class_after_class() -> None:
    assert classes_of("class_major", 8, 4, 4) == [[0] * 4 + [1] * 4, [2] * 4 + [3] * 4]
    assert classes_of("class_major", 4, 2, 6) == [[0] * 4, [0, 0, 1, 1], [1] * 4]


def test_without_a_number_a_batch_is_one_of_every_class_or_all_of_one() -> None:
    assert classes_of("across", None, 4, 3) == [[0, 1, 2, 3]] * 3
    assert classes_of("within", None, 2, 3) == [[0] * 3, [1] * 3]


@pytest.mark.parametrize(
    ("composition", "batch", "expected"),
    [
        ("across", 7, "a divisor of the 60 images that is at most 10 or a multiple of it"),
        ("across", 12, "at most 10 or a multiple"),
        ("across", 100, "a divisor of the 60 images"),
        ("within", 4, "a divisor of the 6 images of a class"),
        ("class_major", 8, "a divisor of the 60 images"),
    ],
)
def test_batches_of_unequal_composition_are_refused(
    composition: Composition, batch: int, expected: str
) -> None:
    with pytest.raises(RecipeError, match=expected):
        match_blocks(composition, batch, 10, 6)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_processes_share_the_blocks_and_change_none(world: int) -> None:
    blocks = match_blocks("across", 10, 10, 6)
    dealt = []
    for index in range(world):
        runtime = Runtime()
        runtime.accelerator = SimpleNamespace(num_processes=world, process_index=index)
        dealt += runtime.mine(len(blocks))
    assert sorted(dealt) == list(range(6))
    assert all(len({place // 6 for place in block.places_N}) == 10 for block in blocks)
