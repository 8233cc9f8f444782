"""Targets that are no single class: several labels of an image, or numbers beside it."""

from typing import Any

import datasets
import pytest
import torch
from support.image_sets import draw, gray

from distill_datasets.data.real import Decoded
from distill_datasets.data.source import Source, open_source
from distill_datasets.errors import DataError

NAMES = datasets.ClassLabel(names=["cat", "dog", "sun"])
SETS = [[0, 2], [1], [], [0], [1, 2], [0, 1]]


def rows(first: int = 0, **columns: tuple[Any, list[Any]]) -> datasets.Dataset:
    """Rows with a gray image each, of the value `first` + row, and these columns."""
    count = len(next(iter(columns.values()))[1])
    features = {name: feature for name, (feature, _) in columns.items()}
    return datasets.Dataset.from_dict(
        {"image": [gray(first + row) for row in range(count)]}
        | {name: cells for name, (_, cells) in columns.items()},
        features=datasets.Features({"image": datasets.Image()} | features),
    )


def read(section: dict[str, Any], **columns: tuple[Any, list[Any]]) -> Decoded:
    """The rows as training and as test split."""
    splits = datasets.DatasetDict(train=rows(**columns), test=rows(100, **columns))
    source = open_source(Source(dataset="memory", **section), splits)
    decoded = source.read(draw)
    shape, names = source.peek()
    assert shape == decoded.shape and names == decoded.class_names
    return decoded


def test_a_list_of_classes_is_as_many_labels() -> None:
    decoded = read({"task": "labels"}, tags=(datasets.List(NAMES), SETS))
    assert decoded.class_names == ["cat", "dog", "sun"]
    assert decoded.train.targets_NK is not None
    assert decoded.train.targets_NK.tolist() == [
        [1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 0, 0], [0, 1, 1], [1, 1, 0]
    ]  # fmt: skip
    # the rarest label of each, and the most frequent one where there is none
    assert decoded.train.labels_N.tolist()[:5] == [2, 1, 0, 0, 2]


@pytest.mark.parametrize(
    ("kind", "cells"),
    [
        (datasets.Value("string"), [["a"], ["b", "a"], ["b"], []]),
        (datasets.Value("int8"), [[1, 0], [1, 1], [0, 1], [0, 0]]),
    ],
)
def test_names_and_codes_of_zeros_and_ones_say_the_same(kind: Any, cells: list[Any]) -> None:  # noqa: ANN401
    decoded = read({"task": "labels"}, labels=(datasets.List(kind), cells))
    assert decoded.train.targets_NK is not None
    assert decoded.train.targets_NK.tolist() == [[1, 0], [1, 1], [0, 1], [0, 0]]


def test_a_column_for_each_label_and_a_missing_cell_makes_a_row_unusable() -> None:
    flag = datasets.Value("bool")
    columns = {
        "sunny": (flag, [True, False, None, True]),
        "indoors": (flag, [False, True, True, False]),
    }
    section = {"task": "labels", "label_columns": ["sunny", "indoors"]}
    with pytest.raises(DataError, match="train row 2: the label is missing"):
        read(section, **columns)
    decoded = read(section | {"skip_bad_rows": True}, **columns)
    assert decoded.train.targets_NK is not None
    assert decoded.train.targets_NK.tolist() == [[1, 0], [0, 1], [1, 0]]


def test_numbers_are_read_in_standard_deviations_and_their_units_are_kept() -> None:
    number = datasets.Value("float32")
    decoded = read(
        {"task": "values", "label_columns": ["age", "size"]},
        age=(number, [10.0, 20.0, 30.0, 40.0]),
        size=(number, [1.0, 1.0, 3.0, 1.0]),
    )
    assert decoded.train.targets_NK is not None
    torch.testing.assert_close(decoded.train.targets_NK.mean(dim=0), torch.zeros(2))
    assert decoded.provenance.targets["mean"] == [25.0, 1.5]
    assert decoded.train.labels_N.tolist() == [1, 0, 1, 0]  # where each stands out most


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"task": "labels", "label_columns": ["age"]}, "holds 0 or 1, true or false"),
        ({"task": "values", "label_columns": ["sage"]}, "no column 'sage'; did you mean 'age'"),
        ({"task": "values", "label_columns": ["same"]}, "same: the same in all training rows"),
    ],
)
def test_columns_that_are_no_such_targets_are_refused(section: dict[str, Any], words: str) -> None:
    number = datasets.Value("float32")
    columns = {"age": (number, [10.0, 20.0, 30.0]), "same": (number, [2.0, 2.0, 2.0])}
    with pytest.raises(DataError, match=words):
        read(section, **columns)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"label_columns": ["a", "b"]}, "set task: labels"),
        ({"task": "labels", "calibrate": True}, "calibrate: is about classes"),
        ({"task": "values", "label_column": "a", "label_columns": ["b"]}, "got both"),
    ],
)
def test_a_section_that_contradicts_itself_is_refused(section: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Source(dataset="memory", **section)
