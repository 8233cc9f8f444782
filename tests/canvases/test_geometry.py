"""Rectangles on a poster: budgets are kept, crops cover, and every class owns its share."""

import math

import pytest

from distill_datasets.canvases.geometry import (
    Box,
    class_rows,
    crop_grid,
    fair_grid,
    overlap_shares,
    poster_size,
    territories,
)
from distill_datasets.errors import RecipeError

CLASSES = [*range(1, 31), 37, 43, 100, 101, 200, 257, 1000]


def paint(boxes: list[Box], height: int, width: int) -> list[list[int]]:
    """How many of the boxes contain each pixel, counted one by one."""
    return [
        [
            sum(box.top <= y < box.bottom and box.left <= x < box.right for box in boxes)
            for x in range(width)
        ]
        for y in range(height)
    ]


@pytest.mark.parametrize(
    ("classes", "landscape", "portrait"),
    [
        (1, [1], [1]),
        (2, [2], [1, 1]),
        (3, [3], [1, 1, 1]),
        (4, [2, 2], [2, 2]),
        (6, [3, 3], [2, 2, 2]),
        (7, [4, 3], [2, 2, 2, 1]),
        (10, [5, 5], [2, 2, 2, 2, 2]),
        (11, [4, 4, 3], [3, 3, 3, 2]),
        (13, [5, 4, 4], [3, 3, 3, 2, 2]),
        (100, [10] * 10, [10] * 10),
        (200, [20] * 10, [10] * 20),
    ],
)
def test_class_grid_is_nearly_square(
    classes: int, landscape: list[int], portrait: list[int]
) -> None:
    assert class_rows(classes, portrait=False) == landscape
    assert class_rows(classes, portrait=True) == portrait


@pytest.mark.parametrize("portrait", [False, True])
def test_class_grid_holds_every_class_in_rows_that_differ_by_one(portrait: bool) -> None:
    for classes in CLASSES:
        rows = class_rows(classes, portrait=portrait)
        assert sum(rows) == classes
        assert max(rows) - min(rows) <= 1
        assert len(rows) >= max(rows) if portrait else len(rows) <= max(rows)
        assert max(len(rows), max(rows)) <= 4 * min(len(rows), max(rows))


def test_cifar_10_at_nine_tenths_is_the_poster_of_the_paper() -> None:
    poster = poster_size(0.9, 10, (32, 32), portrait=False)
    assert poster == (60, 153)
    crops = crop_grid(poster, (32, 32), (6, 16))
    assert len(crops) == 96
    assert crops[0] == (0, 0, 32, 32) and crops[-1] == (28, 121, 60, 153)
    # half to even, as in the released program: 28 / 5 = 5.6 and 121 / 15 = 8.07
    assert [box.top for box in crops[::16]] == [0, 6, 11, 17, 22, 28]
    assert [box.left for box in crops[:4]] == [0, 8, 16, 24]


def test_portrait_poster_is_the_landscape_one_turned() -> None:
    assert poster_size(1, 10, (8, 8), portrait=False) == (16, 40)
    assert poster_size(1, 10, (8, 8), portrait=True) == (40, 16)


@pytest.mark.parametrize("portrait", [False, True])
@pytest.mark.parametrize("ipc", [0.1, 0.3, 0.9, 1, 2.5])
@pytest.mark.parametrize("example", [(8, 8), (32, 32), (6, 10)])
def test_poster_spends_its_budget_and_not_more(
    ipc: float, portrait: bool, example: tuple[int, int]
) -> None:
    for classes in CLASSES:
        budget = ipc * classes * example[0] * example[1]
        if ipc * classes < 1:
            continue
        height, width = poster_size(ipc, classes, example, portrait=portrait)
        assert height >= example[0] and width >= example[1]
        assert height * width <= budget
        # what is left cannot pay one more row or column
        assert height * width > budget - max(height, width) - 1


@pytest.mark.parametrize("classes", [1, 3, 7, 10, 200, 1000, 3000])
def test_the_smallest_budget_that_a_refusal_names_is_accepted(classes: int) -> None:
    with pytest.raises(RecipeError, match=r"less than one example .* set ipc to") as caught:
        poster_size(0.9 / classes, classes, (32, 32), portrait=False)
    named = float(str(caught.value).rsplit(" ", 1)[-1])
    height, width = poster_size(named, classes, (32, 32), portrait=False)
    assert min(height, width) >= 32


@pytest.mark.parametrize("portrait", [False, True])
@pytest.mark.parametrize("ipc", [0.3, 0.9])
def test_every_class_owns_an_equal_area(portrait: bool, ipc: float) -> None:
    for classes in CLASSES[3:]:
        height, width = poster_size(ipc, classes, (8, 8), portrait=portrait)
        rows = class_rows(classes, portrait=portrait)
        boxes = territories((height, width), rows)
        assert len(boxes) == classes
        areas = [(box.bottom - box.top) * (box.right - box.left) for box in boxes]
        assert sum(areas) == height * width and min(areas) >= 1
        sides = [(height * count / classes, width / count) for count in rows for _ in range(count)]
        for area, (tall, wide) in zip(areas, sides, strict=True):
            # both edges of a side are rounded, so each side is off by at most one pixel
            assert abs(area - height * width / classes) <= tall + wide + 1


@pytest.mark.parametrize("rows", [[1], [2, 3], [5, 5], [4, 4, 3], [1, 1, 1]])
def test_territories_cover_every_pixel_once(rows: list[int]) -> None:
    boxes = territories((11, 13), rows)
    assert paint(boxes, 11, 13) == [[1] * 13] * 11


def test_territories_of_a_ragged_grid() -> None:
    # five classes on 10 x 12 px: 24 px each, in a row of three and a row of two
    assert territories((10, 12), [3, 2]) == [
        (0, 0, 6, 4),
        (0, 4, 6, 8),
        (0, 8, 6, 12),
        (6, 0, 10, 6),
        (6, 6, 10, 12),
    ]


def test_a_poster_with_fewer_pixels_than_classes_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"2 x 3 px is too small for 8 classes.*raise the budget"):
        territories((2, 3), [4, 4])


def test_crops_are_listed_row_by_row() -> None:
    assert crop_grid((3, 5), (2, 3), (2, 3)) == [
        (0, 0, 2, 3),
        (0, 1, 2, 4),
        (0, 2, 2, 5),
        (1, 0, 3, 3),
        (1, 1, 3, 4),
        (1, 2, 3, 5),
    ]


@pytest.mark.parametrize("poster", [(8, 8), (9, 31), (17, 8), (20, 29)])
@pytest.mark.parametrize("crops", [1, 4, 10, 96, 400])
def test_about_as_many_crops_as_asked_for_cover_the_poster_without_twins(
    poster: tuple[int, int], crops: int
) -> None:
    grid = fair_grid(poster, (8, 8), crops)
    boxes = crop_grid(poster, (8, 8), grid)
    assert len(set(boxes)) == len(boxes) == grid[0] * grid[1]
    assert boxes[0][:2] == (0, 0) and boxes[-1][2:] == poster
    assert min(map(min, paint(boxes, *poster))) >= 1
    most = (poster[0] - 7) * (poster[1] - 7)
    least = math.ceil(poster[0] / 8) * math.ceil(poster[1] / 8)
    assert len(boxes) == pytest.approx(min(max(crops, least), most), rel=0.2)


def test_strides_of_a_fair_grid_are_alike() -> None:
    # 28 and 124 free pixels: 96 crops fall on 5 rows and 19 columns, 7 px apart each way
    assert fair_grid((60, 156), (32, 32), 96) == (5, 19)


@pytest.mark.parametrize(
    ("poster", "grid", "complaint"),
    [
        ((7, 20), (1, 3), r"height: a poster of 7 px cannot hold a crop of 8 px; .* at least 8"),
        ((20, 7), (3, 1), r"width: a poster of 7 px cannot hold a crop of 8 px; .* at least 8"),
        ((10, 20), (4, 3), r"4 crops of 8 px along a height of 10 px coincide; at most 3 differ"),
        ((8, 20), (1, 2), r"leave pixels of a width of 20 px uncovered; use at least 3"),
        ((20, 8), (1, 1), r"leave pixels of a height of 20 px uncovered; use at least 3"),
    ],
)
def test_a_grid_that_does_not_fit_is_refused_with_a_remedy(
    poster: tuple[int, int], grid: tuple[int, int], complaint: str
) -> None:
    with pytest.raises(RecipeError, match=complaint):
        crop_grid(poster, (8, 8), grid)


def test_shares_of_a_crop_are_areas() -> None:
    # a crop of 4 x 4 px: 3 of its columns on the left cell; the other column has a row on each of
    # the two right cells, one row on the upper and three on the lower one
    cells = [Box(0, 0, 8, 4), Box(0, 4, 3, 8), Box(3, 4, 8, 8)]
    shares_NK = overlap_shares([Box(2, 1, 6, 5), Box(0, 4, 3, 8)], cells)
    assert shares_NK.tolist() == [[12 / 16, 1 / 16, 3 / 16], [0, 1, 0]]


@pytest.mark.parametrize("rows", [[5, 5], [4, 3], [3, 2, 2]])
def test_shares_equal_a_count_of_pixels(rows: list[int]) -> None:
    poster, example = (13, 21), (8, 8)
    cells = territories(poster, rows)
    crops = crop_grid(poster, example, (3, 5))
    shares_NK = overlap_shares(crops, cells)
    for crop, shares_K in zip(crops, shares_NK.tolist(), strict=True):
        owner_of = [
            next(
                owner
                for owner, box in enumerate(cells)
                if box.top <= y < box.bottom and box.left <= x < box.right
            )
            for y in range(crop.top, crop.bottom)
            for x in range(crop.left, crop.right)
        ]
        assert shares_K == [owner_of.count(cell) / 64 for cell in range(len(cells))]
