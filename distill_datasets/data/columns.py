"""Which split, which column, which class: found by type, or named by the user and checked.

Nothing here looks at pixels. A label column is a `ClassLabel`, or integers, booleans or strings; a
field inside a JSON column is written with a dot, as in `json.label`.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distill_datasets.errors import DataError, did_you_mean

LABEL_NAMES = frozenset(
    (
        *("label", "labels", "label_id", "fine_label", "class_label"),
        *("class", "classes", "class_id", "cls", "category", "target", "targets", "digit", "y"),
    )
)
TEST_NAMES = ("test", "validation", "valid", "val")

# One cell of a label column as Arrow gives it.
Value = int | str | bool | float | None


def _kind(feature: Any) -> str:  # noqa: ANN401
    return "struct" if isinstance(feature, dict) else type(feature).__name__


def _dtype(feature: Any) -> str:  # noqa: ANN401
    return str(feature.dtype) if _kind(feature) == "Value" else ""


def declared(split: str, features: Mapping[str, Any] | None) -> dict[str, Any]:
    """The columns of a split.

    Raises:
        DataError: it is an iterable that does not say which columns it has.
    """
    if features is None:
        raise DataError(
            f"the {split} split is an iterable that does not declare its columns; pass "
            "features=datasets.Features(...) where it is made"
        )
    return dict(features)


def flat(features: Mapping[str, Any]) -> dict[str, Any]:
    """Every column and every field inside a struct column, by dotted name."""
    found: dict[str, Any] = {}
    for name, feature in features.items():
        if isinstance(feature, dict):
            found |= {f"{name}.{inner}": deep for inner, deep in flat(feature).items()}
        else:
            found[name] = feature
    return found


def column_path(features: Mapping[str, Any], column: str) -> list[str]:
    """A dotted name as the keys that lead to it; a column's own name may contain dots."""
    for name, feature in features.items():
        if column == name:
            return [name]
        if isinstance(feature, dict) and column.startswith(f"{name}."):
            return [name, *column_path(feature, column.removeprefix(f"{name}."))]
    raise KeyError(column)


def describe(features: Mapping[str, Any]) -> str:
    """The columns with their types, for an error message."""

    def words(feature: Any) -> str:  # noqa: ANN401
        if _kind(feature) == "ClassLabel":
            return f"ClassLabel of {feature.num_classes} classes"
        return _dtype(feature) or _kind(feature)

    return ", ".join(f"{name} ({words(feature)})" for name, feature in flat(features).items())


def _is_label(feature: Any) -> bool:  # noqa: ANN401
    if _kind(feature) == "ClassLabel":
        return True
    return _dtype(feature).startswith(("int", "uint", "string", "large_string", "bool"))


def names_classes(feature: Any) -> bool:  # noqa: ANN401
    """True when the type alone says what the classes are, so that no row has to be read."""
    return _kind(feature) == "ClassLabel"


def _check_named(features: Mapping[str, Any], field: str, name: str) -> Any:  # noqa: ANN401
    columns = flat(features)
    if name not in columns:
        raise DataError(
            f"source.{field}: no column {name!r}; {did_you_mean(name, columns)}; "
            f"types: {describe(features)}"
        )
    return columns[name]


def image_column(features: Mapping[str, Any], named: str | None) -> str:
    """The column that holds the images.

    Args:
        features: the dataset's columns.
        named: `source.image_column`, or None to find the only `Image` column.

    Raises:
        DataError: there is none, there are several, or the named one holds no images.
    """
    remedy = (
        "encode them as PNG first, for example "
        'dataset.map(...).cast_column("image", datasets.Image())'
    )
    if named is not None:
        feature = _check_named(features, "image_column", named)
        if _kind(feature) != "Image":
            raise DataError(
                f"source.image_column: {named!r} is {_dtype(feature) or _kind(feature)}, "
                f"expected an Image column; arrays and bare bytes are not images: {remedy}"
            )
        return named
    found = [name for name, feature in features.items() if _kind(feature) == "Image"]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"several image columns: {', '.join(found)}; set source.image_column to one of them"
        )
    raise DataError(
        f"no image column among: {describe(features)}; arrays and bare bytes are not images: "
        f"{remedy}"
    )


def label_column(features: Mapping[str, Any], named: str | None) -> str:
    """The column that holds the classes.

    Args:
        features: the dataset's columns.
        named: `source.label_column`, or None to find the only `ClassLabel` column, else the only
            integer or string column with a usual name.

    Raises:
        DataError: there is none, there are several, or the named one holds no classes.
    """
    if named is not None:
        feature = _check_named(features, "label_column", named)
        if not _is_label(feature):
            raise DataError(
                f"source.label_column: {named!r} is {_dtype(feature) or _kind(feature)}, expected "
                "one class a row: ClassLabel, integers or strings"
            )
        return named
    columns = flat(features)
    found = [name for name, feature in columns.items() if _kind(feature) == "ClassLabel"]
    found = found or [
        name
        for name, feature in columns.items()
        if _is_label(feature) and name.rpartition(".")[2].lower() in LABEL_NAMES
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"several label columns: {', '.join(found)}; set source.label_column to one of them"
        )
    raise DataError(
        f"no label column among: {describe(features)}; expected one ClassLabel column, or integers "
        "or strings in a column called label, labels, cls or alike; set source.label_column"
    )


def choose_splits(
    splits: Iterable[str], train_split: str | None, test_split: str | None
) -> tuple[str, str | None]:
    """The names of the training and the test split; None when the test rows are to be cut off.

    Raises:
        DataError: a named split does not exist, both are the same, or no split is called train.
    """
    names = list(splits)
    for field, name in (("train_split", train_split), ("test_split", test_split)):
        if name is not None and name not in names:
            raise DataError(f"source.{field}: no split {name!r}; {did_you_mean(name, names)}")
    if train_split is None and "train" not in names:
        raise DataError(
            f"no split is called 'train'; set source.train_split to one of: {', '.join(names)}"
        )
    train = train_split or "train"
    test = test_split or next(
        (name for name in TEST_NAMES if name in names and name != train), None
    )
    if test == train:
        raise DataError(
            f"source.test_split: {test!r} is also the training split; test images must not be "
            "trained on; leave source.test_split out to cut a test part off"
        )
    return train, test


@dataclass(frozen=True)
class Classes:
    """Which label values are used: position in `values` is the class, `names` what it is called."""

    names: list[str]
    values: dict[int | str, int]
    left_out: frozenset[int | str]

    def index(self, value: Value) -> int | str | None:
        """The class of a label value, None when it was left out, or why the value is unusable."""
        if value is None:
            return "the label is missing"
        if isinstance(value, float):
            return f"the label {value} is not a class"
        if value in self.values:
            return self.values[value]
        if value in self.left_out:
            return None
        if isinstance(value, int) and value < 0:
            return f"the label {value} is negative, which usually marks an unlabeled row"
        return f"the label {value!r} is none of the {self._known()} known classes"

    def _known(self) -> int:
        return len(self.values) + len(self.left_out)


def _sorted_values(values: Sequence[Value]) -> list[int | str]:
    distinct = {value for value in values if isinstance(value, int | str)}
    numbers = sorted(value for value in distinct if isinstance(value, int) and value >= 0)
    return [*numbers, *sorted(value for value in distinct if isinstance(value, str))]


def class_table(
    feature: Any,  # noqa: ANN401
    train_values: Sequence[Value] | None,
    subset: Sequence[str | int] | None,
) -> Classes:
    """The classes of a dataset.

    Args:
        feature: the type of the label column.
        train_values: the training labels; None is enough for a `ClassLabel`.
        subset: `source.classes`, by name or by original integer, in the wanted order.

    Raises:
        DataError: a class of the subset does not exist or stands there twice, or fewer than two
            classes remain.
    """
    if _kind(feature) == "ClassLabel":
        values: list[int | str] = list(range(feature.num_classes))
        names = [str(name) for name in feature.names]
    else:
        values = _sorted_values(train_values or [])
        names = [str(value) for value in values]
    if subset is not None:
        by_name = dict(zip(names, values, strict=True))
        chosen = []
        for wanted in subset:
            value = by_name.get(wanted) if isinstance(wanted, str) else wanted
            if value is None or value not in values:
                raise DataError(f"source.classes: no class {wanted!r}; {_valid(wanted, names)}")
            if value in chosen:
                raise DataError(
                    f"source.classes: {wanted!r} names class {names[values.index(value)]!r} again"
                )
            chosen.append(value)
        left_out = frozenset(values) - frozenset(chosen)
        names = [names[values.index(value)] for value in chosen]
        values = chosen
    else:
        left_out = frozenset()
    if len(values) < 2:
        raise DataError(
            f"{len(values)} class{'' if len(values) == 1 else 'es'} in the label column, "
            "expected at least 2; check source.label_column and source.classes"
        )
    return Classes(names, {value: place for place, value in enumerate(values)}, left_out)


def _valid(wanted: str | int, names: list[str]) -> str:
    if len(names) <= 50:
        return did_you_mean(str(wanted), names)
    near = difflib.get_close_matches(str(wanted), names, n=10, cutoff=0.4)
    return f"did you mean one of: {', '.join(near or names[:10])}? ({len(names)} classes)"
