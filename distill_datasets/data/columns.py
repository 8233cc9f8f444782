"""Which split, which column, which class: found by type, or named by the user and checked.

Nothing here looks at pixels. A label column is a `ClassLabel`, or integers, booleans, strings or
whole floats, alone or as the only element of a list, or a one-hot list of numbers; a field inside a
JSON column is written with a dot, as in `json.label`. Image columns are in `image_columns`.
"""

import difflib
import json
import math
import unicodedata
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

# One cell of a label column: its class, or what stands there in place of one.
Value = int | str | bool | float | list[Any] | None

LISTS = frozenset({"List", "LargeList", "Sequence"})
SHOWN_CHARACTERS = 60
SHOWN_NUMBERS = 8
LONGEST_NAME = 256
MOST_CLASSES = 100_000
LISTED_CLASSES = 200


def kind(feature: Any) -> str:  # noqa: ANN401
    """The name of a type's class; a plain dictionary of types is a struct."""
    return "struct" if isinstance(feature, dict) else type(feature).__name__


def dtype(feature: Any) -> str:  # noqa: ANN401
    """The type of the values of a plain column; of all others nothing."""
    return str(feature.dtype) if kind(feature) == "Value" else ""


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

    columns = flat(features)
    listed = [f"{name} ({words(columns[name])})" for name in list(columns)[:LISTED_CLASSES]]
    more = [] if len(columns) <= LISTED_CLASSES else [f"... ({len(columns)} columns)"]
    return ", ".join([*listed, *more])


def words(feature: Any) -> str:  # noqa: ANN401
    """A type as a message names it."""
    if kind(feature) == "ClassLabel":
        return f"ClassLabel of {feature.num_classes} classes"
    if kind(feature) in LISTS:
        return f"list of {words(feature.feature)}"
    return dtype(feature) or kind(feature)


def _is_scalar_label(feature: Any) -> bool:  # noqa: ANN401
    if kind(feature) == "ClassLabel":
        return True
    return dtype(feature).startswith(("int", "uint", "string", "large_string", "bool"))


def _is_label(feature: Any) -> bool:  # noqa: ANN401
    """Whether rows of this type can hold one class each; what they do hold, only they can tell."""
    inner = feature.feature if kind(feature) in LISTS else feature
    return _is_scalar_label(inner) or dtype(inner).startswith(("float", "double"))


def _class_label(feature: Any) -> Any:  # noqa: ANN401
    """The `ClassLabel` that a label column is, or is a list of; else None."""
    inner = feature.feature if kind(feature) in LISTS else feature
    return inner if kind(inner) == "ClassLabel" else None


def names_classes(feature: Any) -> bool:  # noqa: ANN401
    """True when the type alone says what the classes are, so that no row has to be read."""
    return _class_label(feature) is not None


def plain(feature: Any, values: Iterable[Any]) -> list[Value]:  # noqa: ANN401
    """The cells of a label column as classes, where floats or lists say one.

    A whole float is its integer and NaN is missing; a list of one element is that element; where
    all lists are equally long, one that holds a single 1 and 0 otherwise is the place of the 1. All
    else stays as it is, and is no class.

    Args:
        feature: the type of the column.
        values: its cells as Arrow gives them.
    """
    if kind(feature) not in LISTS:
        floats = dtype(feature).startswith(("float", "double"))
        return [_whole(value) for value in values] if floats else list(values)
    cells = [None if value is None else list(value) for value in values]
    # a list of ClassLabel holds classes, never a one-hot code of them
    numbers = not names_classes(feature) and len({len(cell) for cell in cells if cell}) == 1
    return [_one_of(cell, numbers) for cell in cells]


def _whole(value: Any) -> Value:  # noqa: ANN401
    if not isinstance(value, float):
        return value  # type: ignore[no-any-return]
    if math.isnan(value):
        return None
    return int(value) if value.is_integer() else value


def _one_of(cell: list[Any] | None, one_hot: bool) -> Value:
    if not cell:
        return None
    if len(cell) == 1:
        return _whole(cell[0])
    if one_hot and all(each in (0, 1) for each in cell) and sum(cell) == 1:
        return cell.index(1)
    return cell


def shortened(value: object) -> str:
    """What was got, as one line of bounded length."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 4]} ..."


def check_named(features: Mapping[str, Any], field: str, name: str) -> Any:  # noqa: ANN401
    """The type of a column that the recipe names.

    Raises:
        DataError: there is none.
    """
    columns = flat(features)
    if name not in columns:
        raise DataError(
            f"source.{field}: no column {name!r}; {did_you_mean(name, columns)}; "
            f"types: {describe(features)}"
        )
    return columns[name]


def label_column(features: Mapping[str, Any], named: str | None) -> str:
    """The column that holds the classes.

    Args:
        features: the dataset's columns.
        named: `source.label_column`, or None to find the only `ClassLabel` column, else the only
            integer or string column with a usual name, else the only one of floats or lists.

    Raises:
        DataError: there is none, there are several, or the named one holds no classes.
    """
    expected = "one class a row: ClassLabel, integers, strings, whole floats or a one-hot list"
    if named is not None:
        feature = check_named(features, "label_column", named)
        if not _is_label(feature):
            raise DataError(
                f"source.label_column: {named!r} is {words(feature)}, expected {expected}"
            )
        return named
    columns = flat(features)
    usual = {
        name: feature
        for name, feature in columns.items()
        if name.rpartition(".")[2].lower() in LABEL_NAMES
    }
    found = [name for name, feature in columns.items() if kind(feature) == "ClassLabel"]
    found = found or [name for name, feature in usual.items() if _is_scalar_label(feature)]
    found = found or [name for name, feature in columns.items() if names_classes(feature)]
    found = found or [name for name, feature in usual.items() if _is_label(feature)]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"several label columns: {', '.join(found)}; set source.label_column to one of them"
        )
    unfit = [f"column {name!r} is {words(feature)}" for name, feature in usual.items()]
    raise DataError(
        f"no label column among: {describe(features)}; {'; '.join([*unfit, ''])}expected {expected}"
        ", in one ClassLabel column or a column called label, labels, cls or alike; set "
        "source.label_column"
    )


def choose_splits(
    splits: Iterable[str], train_split: str | None, test_split: str | None
) -> tuple[str, list[str]]:
    """The training split, and those that may serve for testing, the best first.

    There are none of these where the test rows are to be cut off.

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
    if test_split == train:
        raise DataError(
            f"source.test_split: {test_split!r} is also the training split; test images must not "
            "be trained on; leave source.test_split out to cut a test part off"
        )
    if test_split is not None:
        return train, [test_split]
    return train, [name for name in TEST_NAMES if name in names and name != train]


def unlabeled(values: Iterable[Value]) -> bool:
    """Whether no row has a label: each is missing or negative, as rows to be predicted have it."""
    return all(value is None or (isinstance(value, int) and value < 0) for value in values)


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
        if isinstance(value, list):
            several = f"the label {shortened(value)} is a list of {len(value)}"
            return f"{several}, expected one class, alone or one-hot"
        if value in self.values:
            return self.values[value]
        if value in self.left_out:
            return None
        if isinstance(value, int) and value < 0:
            return f"the label {value} is negative, which usually marks an unlabeled row"
        return f"the label {shortened(value)} is none of the {self._known()} known classes"

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
        subset: `source.classes`, by name or, where no name is a number, by original integer, in the
            wanted order.

    Raises:
        DataError: a class of the subset does not exist or stands there twice, or fewer than two
            classes remain.
    """
    declared_classes = _class_label(feature)
    if declared_classes is not None:
        values: list[int | str] = list(range(declared_classes.num_classes))
        names = [str(name) for name in declared_classes.names]
    else:
        values = _sorted_values(train_values or [])
        names = [str(value) for value in values]
    if subset is not None:
        by_name = dict(zip(names, values, strict=True))
        name_of = dict(zip(values, names, strict=True))
        chosen: dict[int | str, str] = {}
        for wanted in subset:
            value = _wanted(wanted, by_name, name_of)
            if value in chosen:
                raise DataError(f"source.classes: {wanted!r} names class {chosen[value]!r} again")
            chosen[value] = name_of[value]
        left_out = frozenset(values) - frozenset(chosen)
        names, values = list(chosen.values()), list(chosen)
    else:
        left_out = frozenset()
    _check_count(names)
    if len(values) < 2:
        raise DataError(
            f"{len(values)} class{'' if len(values) == 1 else 'es'} in the label column, "
            "expected at least 2; check source.label_column and source.classes"
        )
    return Classes(names, {value: place for place, value in enumerate(values)}, left_out)


def _wanted(
    wanted: str | int, by_name: Mapping[str, int | str], name_of: Mapping[int | str, str]
) -> int | str:
    """The label value that an entry of `source.classes` means: a number is a name first."""
    if str(wanted) in by_name:
        return by_name[str(wanted)]
    if isinstance(wanted, str) or wanted not in name_of:
        alike = spelled_otherwise(str(wanted), by_name)
        hint = "" if alike is None else f"{alike[0]!r} differs from it only in {alike[1]}; "
        raise DataError(
            f"source.classes: no class {wanted!r}; {hint}{_valid(wanted, list(by_name))}"
        )
    numbers = [name for name in by_name if name.isdecimal()]
    if numbers:
        shown = ", ".join([*numbers[:SHOWN_NUMBERS], *["..."][: len(numbers) > SHOWN_NUMBERS]])
        raise DataError(
            f"source.classes: no class is called {wanted}, and as there are classes called "
            f"{shown}, it does not stand for the class at that place, {name_of[wanted]!r}; write "
            "names, in quotes where they begin with 0"
        )
    return wanted


def matched(feature: Any, classes: Classes, names: Sequence[str]) -> Classes:  # noqa: ANN401
    """The classes as the `ClassLabel` of another split numbers them, matched by name.

    Args:
        feature: the label column of the other split.
        classes: what `class_table` made of the training split.
        names: all class names of the training split, those left out included.
    """
    theirs = _class_label(feature)
    if theirs is None:
        return classes
    place = {name: index for index, name in enumerate(classes.names)}
    numbers = {str(name): number for number, name in enumerate(theirs.names)}
    known: dict[int | str, int] = {
        number: place[name] for name, number in numbers.items() if name in place
    }
    left_out = {number for name, number in numbers.items() if name in names and name not in place}
    return Classes(classes.names, known, frozenset(left_out))


def group_column(features: Mapping[str, Any], named: str) -> str:
    """The column of the groups, `source.group`.

    Raises:
        DataError: it is not there, or holds no names or integers.
    """
    feature = check_named(features, "group", named)
    if not _is_scalar_label(feature):
        raise DataError(
            f"source.group: {named!r} is {words(feature)}, expected one group a row: ClassLabel, "
            "integers, booleans or strings"
        )
    return named


def named_values(feature: Any, values: Iterable[Value]) -> list[str | None]:  # noqa: ANN401
    """Classes or groups by their names; None where a value is missing."""
    declared_names = class_names(feature)
    if declared_names is None:
        return [None if value is None else str(value) for value in values]
    return [
        declared_names[value] if isinstance(value, int) and value >= 0 else None for value in values
    ]


def class_names(feature: Any) -> list[str] | None:  # noqa: ANN401
    """The names that a label column declares; None where only its rows tell."""
    declared_classes = _class_label(feature)
    return None if declared_classes is None else [str(name) for name in declared_classes.names]


def check_agreement(
    train: tuple[str, Mapping[str, Any]],
    test: tuple[str, Mapping[str, Any]],
    image: str,
    label: str,
) -> None:
    """Refuse a test split whose columns differ; classes may stand in another order.

    Args:
        train: the training split's name and columns.
        test: those of the test split.
        image: the image column.
        label: the label column.

    Raises:
        DataError: a column is of another type, or a class name is one of the training split's,
            written otherwise.
    """
    (train_name, ours), (test_name, theirs) = train, test
    own, other = (class_names(flat(each).get(label)) for each in (ours, theirs))
    compared = [image, label]
    if own is not None and other is not None and set(own) & set(other):
        compared.remove(label)  # matched by name
        for name in set(other) - set(own):
            alike = spelled_otherwise(name, own)
            if alike is not None:
                raise DataError(
                    f"the class {name!r} of the {test_name} split and the class {alike[0]!r} of "
                    f"the {train_name} split differ only in {alike[1]}; give them one name"
                )
    for column in compared:
        if flat(theirs).get(column) != flat(ours).get(column):
            raise DataError(
                f"the column {column!r} of the {train_name} split differs in the {test_name} "
                f"split: {describe(ours)} against {describe(theirs)}; name columns and splits "
                "that agree"
            )


def spelled_otherwise(name: str, others: Iterable[str]) -> tuple[str, str] | None:
    """A name among others that a person would take for this one, and what it differs in."""
    plain = plain_form(name)
    for other in others:
        if other != name and plain_form(other) == plain:
            composed = {unicodedata.normalize("NFC", each) for each in (name, other)}
            return other, "case" if len(composed) > 1 else "Unicode form (NFC against NFD)"
    return None


def plain_form(name: str) -> str:
    """A name without what case and Unicode forms make of it."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def _check_count(names: Sequence[str]) -> None:
    if len(names) > MOST_CLASSES:
        raise DataError(
            f"{len(names):,} classes in the label column, at most {MOST_CLASSES:,} can be "
            "distilled; check source.label_column, or name the classes to use in source.classes"
        )
    longest = max(names, key=len, default="")
    if len(longest) > LONGEST_NAME:
        raise DataError(
            f"a class name of {len(longest):,} characters ({shortened(longest)}), expected at most "
            f"{LONGEST_NAME}; check source.label_column"
        )


def line_that_keeps(names: Sequence[str]) -> str:
    """The line of a recipe that keeps these classes alone.

    Args:
        names: what the classes are called, in their order.
    """
    # JSON's strings are YAML's, whatever stands in a name
    listed = ", ".join(json.dumps(name, ensure_ascii=False) for name in names[:LISTED_CLASSES])
    more = "" if len(names) <= LISTED_CLASSES else f", ... ({len(names)} names)"
    return f"classes: [{listed}{more}]"


def _valid(wanted: str | int, names: list[str]) -> str:
    if len(names) <= 50:
        return did_you_mean(str(wanted), names)
    near = difflib.get_close_matches(str(wanted), names, n=10, cutoff=0.4)
    return f"did you mean one of: {', '.join(near or names[:10])}? ({len(names)} classes)"
