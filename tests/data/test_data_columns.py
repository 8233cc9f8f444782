"""Which split, column and class is used, and what is said when that is not clear."""

from typing import Any

import datasets
import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError
from support.image_sets import both, dataset, draw, gray, png, values

from distill_datasets.data import columns
from distill_datasets.data.real import Decoded
from distill_datasets.data.source import Source, open_source
from distill_datasets.errors import DataError


def read_object(rows: Any, **fields: Any) -> Decoded:  # noqa: ANN401
    """Read an object from Python."""
    source = Source(dataset="ignored", **fields)
    return open_source(source, rows).read(draw)


def named(columns: dict[str, Any], kinds: dict[str, Any]) -> datasets.Dataset:
    """A dataset with the columns given."""
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


def pets(label: str, kind: Any) -> datasets.Dataset:  # noqa: ANN401
    """Ten rows with the label column named and typed as asked."""
    cells = [row % 2 for row in range(10)]
    strings = isinstance(kind, datasets.Value) and "string" in kind.dtype
    return named(
        {
            "picture": [gray(row) for row in range(10)],
            label: [("dog", "cat")[cell] for cell in cells] if strings else cells,
        },
        {"picture": datasets.Image(), label: kind},
    )


@pytest.mark.parametrize(
    ("label", "kind", "names"),
    [
        ("anything", datasets.ClassLabel(names=["x", "y"]), ["x", "y"]),
        ("label", datasets.Value("int64"), ["0", "1"]),
        ("cls", datasets.Value("uint8"), ["0", "1"]),
        ("Target", datasets.Value("string"), ["cat", "dog"]),
        ("class", datasets.Value("large_string"), ["cat", "dog"]),
        ("label", datasets.Value("bool"), ["False", "True"]),
    ],
)
def test_the_label_column_is_found_by_type_or_name(
    label: str,
    kind: Any,  # noqa: ANN401
    names: list[str],
) -> None:
    rows = pets(label, kind)
    assert read_object(rows).class_names == names
    assert open_source(Source(dataset="ignored"), rows).peek()[1] == names


def test_strings_are_numbered_in_sorted_order() -> None:
    decoded = read_object(pets("label", datasets.Value("string")))
    even = [value % 2 == 0 for value in values(decoded.train.images_NCHW)]
    assert [label == 1 for label in decoded.train.labels_N.tolist()] == even  # row 0 is a dog


def test_integers_without_names_keep_their_value_as_name() -> None:
    rows = dataset([30, 7, 7, 30] * 3, datasets.Value("int32"))
    assert read_object(rows).class_names == ["7", "30"]


def test_two_image_columns_are_ambiguous_until_one_is_named() -> None:
    rows = pets("label", datasets.ClassLabel(names=["x", "y"]))
    rows = rows.map(lambda row: {"mask": row["picture"]})
    with pytest.raises(
        DataError, match=r"several image columns: picture, mask; set source.image_co"
    ):
        read_object(rows)
    assert len(read_object(rows, image_column="mask").train.labels_N) == 8


def test_two_label_columns_are_ambiguous_until_one_is_named() -> None:
    rows = pets("fine", datasets.ClassLabel(names=["x", "y"]))
    rows = rows.add_column(
        "coarse", [0] * 5 + [1] * 5, feature=datasets.ClassLabel(names=["p", "q"])
    )
    with pytest.raises(
        DataError, match=r"several label columns: fine, coarse; set source.label_co"
    ):
        read_object(rows)
    assert read_object(rows, label_column="coarse").class_names == ["p", "q"]


def test_a_misspelled_column_is_answered_with_names_and_types() -> None:
    rows = pets("label", datasets.ClassLabel(names=["x", "y"]))
    with pytest.raises(
        DataError,
        match=r"source.image_column: no column 'pictur'; did you mean 'picture'\? valid names: "
        r"label, picture; types: picture \(Image\), label \(ClassLabel of 2 classes\)",
    ):
        read_object(rows, image_column="pictur")
    with pytest.raises(
        DataError, match=r"source.label_column: no column 'lable'; did you mean 'la"
    ):
        read_object(rows, label_column="lable")


def test_columns_of_the_wrong_type_are_refused() -> None:
    rows = pets("label", datasets.ClassLabel(names=["x", "y"]))
    with pytest.raises(
        DataError, match=r"source.image_column: 'label' is .*expected an Image column"
    ):
        read_object(rows, image_column="label")
    with pytest.raises(
        DataError, match=r"source.label_column: 'picture' is .*, expected one class a"
    ):
        read_object(rows, label_column="picture")


def test_no_label_column_lists_what_there_is() -> None:
    rows = named(
        {"image": [gray(0)], "caption": ["a cat"]},
        {"image": datasets.Image(), "caption": datasets.Value("string")},
    )
    with pytest.raises(
        DataError, match=r"no label column among: image \(Image\), caption \(string\)"
    ):
        read_object(rows)


def test_arrays_are_not_images() -> None:
    rows = named(
        {"image": [np.zeros((2, 2), np.uint8)] * 4, "label": [0, 1] * 2},
        {"image": datasets.Array2D((2, 2), "uint8"), "label": datasets.ClassLabel(2)},
    )
    with pytest.raises(DataError, match=r"no image column among: image .*arrays of three axes"):
        read_object(rows)
    with pytest.raises(
        DataError, match=r"source.image_column: 'image' is .*encode pictures as PNG"
    ):
        read_object(rows, image_column="image")


def test_several_labels_a_row_are_refused() -> None:
    rows = named(
        {"image": [gray(row) for row in range(4)], "label": [[0, 2], [1, 0], [0, 1], [1, 1]]},
        {"image": datasets.Image(), "label": datasets.Sequence(datasets.Value("int64"))},
    )
    with pytest.raises(
        DataError,
        match=r"2 rows cannot be used:\n  train row 0: the label \[0, 2\] is a list of 2, expected "
        r"one class, alone or one-hot\n  train row 3: the label \[1, 1\]",
    ):
        read_object(rows, label_column="label")


LABELS = [0, 1, 1, 0, 0, 1]


@pytest.mark.parametrize(
    ("cells", "kind", "names"),
    [
        ([float(label) for label in LABELS], datasets.Value("float32"), ["0", "1"]),
        ([label / 1 for label in LABELS], datasets.Value("float64"), ["0", "1"]),
        ([[1 - label, label] for label in LABELS], datasets.List(datasets.Value("int8")), None),
        ([[1 - label, label] for label in LABELS], datasets.List(datasets.Value("bool")), None),
        ([[1.0 - label, label] for label in LABELS], datasets.List(datasets.Value("double")), None),
        (
            [[1 - label, label] for label in LABELS],
            datasets.Sequence(datasets.Value("int64"), 2),
            0,
        ),
        ([[label] for label in LABELS], datasets.List(datasets.Value("int64")), None),
        (
            [[f"c{label}"] for label in LABELS],
            datasets.List(datasets.Value("string")),
            ["c0", "c1"],
        ),
        ([[label] for label in LABELS], datasets.LargeList(datasets.Value("uint8")), None),
        (
            [[label] for label in LABELS],
            datasets.List(datasets.ClassLabel(names=["a", "b"])),
            ["a", "b"],
        ),
    ],
)
def test_whole_floats_and_lists_that_hold_one_class_are_labels(
    cells: list[Any],
    kind: Any,  # noqa: ANN401
    names: list[str] | None,
) -> None:
    images = [gray(10 * label + row) for row, label in enumerate(LABELS)]
    rows = named({"image": images, "label": cells}, {"image": datasets.Image(), "label": kind})
    decoded = read_object(datasets.DatasetDict(train=rows, test=rows))
    assert decoded.class_names == (names or ["0", "1"])
    assert decoded.train.labels_N.tolist() == LABELS
    assert open_source(Source(dataset="ignored"), rows).peek()[1] == decoded.class_names


def test_floats_between_classes_are_bad_rows() -> None:
    cells = [0.0, 1.0, 0.5, float("nan"), float("inf"), 1.0]
    rows = dataset(cells, datasets.Value("float64"))
    with pytest.raises(DataError) as caught:
        read_object(rows)
    assert str(caught.value).splitlines()[1:4] == [
        "  train row 2: the label 0.5 is not a class",
        "  train row 3: the label is missing",
        "  train row 4: the label inf is not a class",
    ]


def test_lists_of_classes_are_never_taken_for_one_hot_codes() -> None:
    kind = datasets.List(datasets.ClassLabel(names=["a", "b"]))
    with pytest.raises(DataError, match=r"train row 1: the label \[0, 1\] is a list of 2"):
        read_object(dataset([[0], [0, 1], [1], [1]], kind))
    with pytest.raises(DataError, match=r"train row 0: the label \[0, 1\] is a list of 2"):
        read_object(dataset([[0, 1], [1, 0], [0, 1], [1, 0]], kind))


def test_a_label_of_another_type_is_named_with_its_type() -> None:
    rows = named(
        {"image": [gray(0)], "label": [b"x"]},
        {"image": datasets.Image(), "label": datasets.Value("binary")},
    )
    with pytest.raises(DataError, match=r"; column 'label' is binary; expected one class a row: "):
        read_object(rows)


def test_integers_win_over_a_list_of_the_same_kind_of_name() -> None:
    rows = dataset([0, 1] * 4, datasets.Value("int64")).add_column("labels", [[0.5, 0.5]] * 8)
    assert read_object(rows).class_names == ["0", "1"]


def test_a_test_split_without_labels_gives_way_to_validation(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rows = datasets.DatasetDict(
        train=dataset([0, 1]),
        test=dataset([-1, -1], first_value=9),
        validation=dataset([0, 1], first_value=50),
    )
    assert values(read_object(rows).test.images_NCHW) == [50, 51]
    assert (
        "no row of the test split has a label (each is missing or negative): validation is taken "
        "instead" in caplog.text
    )
    with pytest.raises(DataError, match=r"source.test_split: no row of 'test' has a label"):
        read_object(rows, test_split="test")


def test_without_any_labeled_test_split_a_part_of_train_is_cut_off(
    caplog: pytest.LogCaptureFixture,
) -> None:
    unlabeled = dataset([None, None], datasets.Value("int64"), first_value=90)
    train = dataset([0, 1] * 5, datasets.Value("int64"))
    decoded = read_object(datasets.DatasetDict(train=train, test=unlabeled))
    assert len(decoded.test.labels_N) == 2
    assert max(values(decoded.test.images_NCHW)) < 90
    assert "0.2 of each class of train is cut off for testing instead" in caplog.text


def test_a_test_split_without_a_label_column_is_left_out_and_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rows = datasets.DatasetDict(
        train=dataset([0, 1]),
        test=dataset([0, 1], first_value=9).remove_columns("label"),
        valid=dataset([0, 1], first_value=50),
    )
    assert values(read_object(rows).test.images_NCHW) == [50, 51]
    assert "nothing is tested on the test split: no column 'label' among: image" in caplog.text


@pytest.mark.parametrize(
    "kind",
    [
        datasets.Value("binary"),
        datasets.Value("large_binary"),
        {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
        {"path": datasets.Value("string"), "bytes": datasets.Value("binary")},
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_bytes_that_are_images_are_read(kind: Any, stream: bool) -> None:  # noqa: ANN401
    cells: list[Any] = [png(gray(row)) for row in range(6)]
    if isinstance(kind, dict):
        cells = [{"bytes": cell, "path": f"{row}.png"} for row, cell in enumerate(cells)]
    rows = named(
        {"image": cells, "label": [0, 1] * 3, "hash": [b"\x89PNG no image"] * 6},
        {"image": kind, "label": datasets.Value("int64"), "hash": datasets.Value("binary")},
    )
    splits: Any = datasets.DatasetDict(train=rows, test=rows)
    if stream:
        splits = datasets.IterableDatasetDict(
            {name: rows.to_iterable_dataset() for name in ("train", "test")}
        )
    decoded = read_object(splits)
    assert values(decoded.train.images_NCHW) == list(range(6))
    assert open_source(Source(dataset="ignored"), splits).peek()[0] == decoded.shape
    assert len(read_object(splits, image_column="image").test.labels_N) == 6
    with pytest.raises(DataError, match=r"source.image_column: the bytes in 'hash' are no images"):
        read_object(splits, image_column="hash")


def test_bytes_that_are_no_images_are_named() -> None:
    rows = named(
        {"data": [b"x", b"y"], "label": [0, 1]},
        {"data": datasets.Value("binary"), "label": datasets.Value("int64")},
    )
    with pytest.raises(DataError, match=r"the bytes in 'data' are no images that PIL identifies"):
        read_object(rows)


def test_a_misspelled_split_is_answered_with_the_splits() -> None:
    with pytest.raises(
        DataError, match=r"no split 'trian'; did you mean 'train'\? valid names: te"
    ):
        read_object(both(), train_split="trian")
    with pytest.raises(
        DataError, match=r"source.test_split: no split 'x'; valid names: test, train"
    ):
        read_object(both(), test_split="x")


def test_without_a_train_split_one_has_to_be_named() -> None:
    rows = datasets.DatasetDict(fit=dataset([0, 1]), test=dataset([0, 1], first_value=9))
    with pytest.raises(
        DataError, match=r"no split is called 'train'; set source.train_split to one"
    ):
        read_object(rows)
    assert values(read_object(rows, train_split="fit").train.images_NCHW) == [0, 1]


@pytest.mark.parametrize("name", ["validation", "valid", "val"])
def test_a_validation_split_serves_as_test(name: str) -> None:
    rows = datasets.DatasetDict({"train": dataset([0, 1]), name: dataset([0, 1], first_value=9)})
    assert values(read_object(rows).test.images_NCHW) == [9, 10]


def test_test_rows_are_never_training_rows() -> None:
    with pytest.raises(DataError, match=r"'train' is also the training split"):
        read_object(both(), test_split="train")
    decoded = read_object(dataset([0, 1] * 20))
    train, test = (values(split.images_NCHW) for split in (decoded.train, decoded.test))
    assert sorted(train + test) == list(range(40))
    assert len(test) == 8


def test_splits_with_different_classes_are_refused() -> None:
    rows = both()
    rows["test"] = dataset([0, 1], datasets.ClassLabel(names=["fox", "owl"]))
    with pytest.raises(
        DataError, match=r"the column 'label' of the train split differs in the test"
    ):
        read_object(rows)


def test_classes_are_renumbered_in_the_order_given() -> None:
    kind = datasets.ClassLabel(names=["cat", "dog", "eel"])
    rows = datasets.DatasetDict(
        train=dataset([0, 1, 2, 0], kind), test=dataset([2, 1, 0], kind, first_value=100)
    )
    decoded = read_object(rows, classes=["eel", 0])
    assert decoded.class_names == ["eel", "cat"]
    assert values(decoded.train.images_NCHW) == [0, 2, 3]
    assert decoded.train.labels_N.tolist() == [1, 0, 1]
    assert values(decoded.test.images_NCHW) == [100, 102]
    assert decoded.test.labels_N.tolist() == [0, 1]
    assert open_source(Source(dataset="ignored", classes=["eel", 0]), rows).peek()[1] == [
        "eel",
        "cat",
    ]


def test_an_unknown_class_is_answered_with_the_classes() -> None:
    with pytest.raises(
        DataError, match=r"no class 'dgo'; did you mean 'dog'\? valid names: cat, dog"
    ):
        read_object(both(), classes=["cat", "dgo"])
    with pytest.raises(DataError, match=r"no class 5; valid names: cat, dog"):
        read_object(both(), classes=[0, 5])
    with pytest.raises(DataError, match=r"source.classes: 1 names class 'dog' again"):
        read_object(both(), classes=["dog", 1])


def test_among_many_classes_only_near_ones_are_listed() -> None:
    kind = datasets.ClassLabel(names=[f"class {number}" for number in range(60)])
    with pytest.raises(DataError, match=r"did you mean one of: .*class 59.*\? \(60 classes\)"):
        read_object(dataset([0, 1], kind), classes=["clas 59", "class 1"])


@pytest.mark.parametrize(
    ("classes", "message"),
    [(["cat"], "expected at least 2"), (["cat", "dog", "cat"], "named more than once: cat")],
)
def test_a_useless_class_list_is_refused_by_the_recipe(classes: list[str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Source(dataset="x", classes=classes)


def test_one_class_is_nothing_to_learn() -> None:
    with pytest.raises(DataError, match=r"1 class in the label column, expected at least 2"):
        read_object(dataset([7, 7, 7], datasets.Value("int64")))


def test_a_limit_draws_rows_with_the_seed_and_keeps_their_order() -> None:
    rows = datasets.DatasetDict(
        train=dataset([0, 1] * 20), test=dataset([0, 1] * 20, first_value=100)
    )
    first, again = (values(read_object(rows, limit=8).train.images_NCHW) for _ in range(2))
    assert first == again == sorted(first)
    assert len(set(first)) == 8
    assert first != list(range(8))
    assert len(read_object(rows, limit=8).test.labels_N) == 8
    assert len(read_object(rows, limit=1000).test.labels_N) == 40


def test_another_seed_draws_other_rows() -> None:
    source, rows = Source(dataset="ignored", limit=8), dataset([0, 1] * 20)

    def other(*what: str | int) -> torch.Generator:
        return draw("another seed", *what)

    drawn = [open_source(source, rows).read(lane) for lane in (draw, other)]
    assert not torch.equal(drawn[0].train.images_NCHW, drawn[1].train.images_NCHW)


def test_a_class_without_training_images_is_refused() -> None:
    kind = datasets.ClassLabel(names=["cat", "dog", "eel"])
    with pytest.raises(
        DataError, match=r"no training image of 1 of 3 classes: eel; name the classes"
    ):
        read_object(dataset([0, 1] * 5, kind))


def test_of_a_column_that_names_many_absent_classes_the_present_ones_are_listed() -> None:
    names = [f"class {number:03d}" for number in range(1000)]
    rows = dataset([0, 217, 482, 491] * 4, datasets.ClassLabel(names=names))
    with pytest.raises(DataError) as caught:
        read_object(rows)
    line = 'classes: ["class 000", "class 217", "class 482", "class 491"]'
    assert str(caught.value) == (
        "no training image of 996 of 1000 classes; images are there of 4; keep these with this "
        f"line under source:\n  {line}"
    )
    kept = yaml.safe_load(line)["classes"]
    assert read_object(rows, classes=kept).class_names == kept


def test_the_line_that_keeps_classes_is_yaml_whatever_their_names() -> None:
    names = ["no", "a: b", 'quo"te', "3", "tab\t", "ü\u2028", "[x]", "#h", "null", "0x1F"]
    assert yaml.safe_load(columns.line_that_keeps(names)) == {"classes": names}


def test_a_class_without_test_images_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    rows = datasets.DatasetDict(train=dataset([0, 1]), test=dataset([0], first_value=9))
    assert len(read_object(rows).test.labels_N) == 1
    assert "no test image of 1 of 2 classes: dog" in caplog.text


def test_a_class_with_a_single_row_keeps_it_for_training() -> None:
    decoded = read_object(dataset([0, 1, 1, 1, 1, 1]))
    assert decoded.train.labels_N.bincount().tolist() == [1, 4]
    assert decoded.test.labels_N.tolist() == [1]


def test_fields_out_of_range_are_refused() -> None:
    for field, value in (("test_share", 1.0), ("resolution", 0), ("limit", 0), ("channels", "x")):
        with pytest.raises(ValidationError, match=field):
            Source(dataset="x", **{field: value})
