"""Which splits, columns and rows of a source are used, for training and for testing.

Test rows are never among the training rows: they are another split, or cut off before anything else
is drawn.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distill_datasets.data import columns, image_columns, opening, rows
from distill_datasets.data.decoding import Agreement, Channels, SplitRows, Table
from distill_datasets.data.image_files import ANYWHERE, ImageFiles
from distill_datasets.data.stores import Store
from distill_datasets.data.target_columns import Cell, Outputs, Spread, cells_of, found_columns
from distill_datasets.errors import DataError
from distill_datasets.media.array import ArrayKind
from distill_datasets.runtime.draws import Draw

if TYPE_CHECKING:
    from distill_datasets.data.source import Source

logger = logging.getLogger("distill_datasets")

CHANNELS: dict[str, Channels | None] = {"auto": None, "gray": 1, "rgb": 3}


@dataclass(frozen=True)
class SourceLayout:
    """Which splits and columns are used; `tests` are those that may serve for testing.

    Test rows are cut off from train where there are none of these, or none has labels.
    """

    train: Table
    tests: list[Table]
    image: str
    labels: list[str]

    @property
    def label(self) -> str:
        """The column that holds the classes, or the first of several."""
        return self.labels[0]

    @property
    def label_feature(self) -> Any:  # noqa: ANN401
        return columns.flat(self.train.features)[self.label]

    def agreement(self, source: Source) -> Agreement:
        feature = self.train.features[self.image]
        return Agreement(
            source.resolution,
            CHANNELS[source.channels],
            image_columns.image_mode(feature),
            source.white_level,
            source.background or "white",
            self._array(source, feature) if image_columns.is_array(feature) else None,
            source.view,
        )

    def _array(self, source: Source, feature: Any) -> ArrayKind:  # noqa: ANN401
        """How the arrays are read; channels are the shorter one of the first and the last axis.

        Raises:
            DataError: their values have no range, or the section asks for what only pictures have.
        """
        for name, given in (
            ("channels", source.channels != "auto"),
            ("white_level", source.white_level),
            ("background", source.background),
        ):
            if given:
                raise DataError(
                    f"source.{name}: is about pictures, and {self.image!r} holds arrays; leave it "
                    "out"
                )
        dtype, shape = image_columns.array_of(feature)
        if dtype != "uint8" and source.range is None:
            raise DataError(
                f"source.range: missing, and {self.image!r} holds arrays of {dtype}; set it to the "
                "values that are black and white, for example [0, 10000]"
            )
        if shape is None:
            cell = next(iter(self.train.encoded(self.image, [0])))[1]
            shape = np.shape(cell)
        if len(shape) != 3:
            raise DataError(
                f"the first array of {self.image!r} has the shape {shape}, expected three axes"
            )
        span = None if source.range is None else (source.range[0], source.range[1])
        return ArrayKind(shape[2] < shape[0], span)

    def check_agreement(self, test: Table) -> None:
        """Refuse a test split whose columns differ."""
        ours, theirs = ((table.split, table.features) for table in (self.train, test))
        for label in self.labels:
            columns.check_agreement(ours, theirs, self.image, label)


def layout_of(
    source: Source,
    splits: opening.Splits,
    files: ImageFiles = ANYWHERE,
    guard: Callable[[], AbstractContextManager[None]] = nullcontext,
    kept: Path | None = None,
) -> SourceLayout:
    train_name, test_names = columns.choose_splits(splits, source.train_split, source.test_split)
    train = Table(train_name, splits[train_name], files, guard, kept)
    image = image_columns.image_column(
        train.features, source.image_column, train.holds_images, source.view
    )
    labeling = {name: kind for name, kind in train.features.items() if name != source.group}
    labels = found_columns(labeling, source.label_column, source.label_columns)
    tests = [Table(name, splits[name], files, guard, kept) for name in test_names]
    labeled = [table for table in tests if set(labels) <= columns.flat(table.features).keys()]
    for table in tests:
        if source.test_split is None and table not in labeled:
            logger.warning(
                "nothing is tested on the %s split: no column %r among: %s",
                table.split, labels[0], columns.describe(table.features),
            )  # fmt: skip
    if source.group is not None:
        columns.group_column(train.features, source.group)
    layout = SourceLayout(train, labeled if source.test_split is None else tests, image, labels)
    if layout.tests:
        layout.check_agreement(layout.tests[0])
    return layout


def _labels(table: Table, column: str, role: str, store: Store) -> list[list[columns.Value]]:
    """The labels of every piece of a split."""
    return store.each(f"labels-{role}", table.pieces, lambda piece: table.labels(column, piece))


def cells_in(layout: SourceLayout, table: Table, role: str, store: Store) -> list[list[Cell]]:
    """The targets of every piece of a split, where they are no classes."""
    return store.each(
        f"labels-{role}",
        table.pieces,
        lambda piece: cells_of([table.cells(label, piece) for label in layout.labels]),
    )


def _rows_with_targets(
    source: Source, layout: SourceLayout, draw: Draw, store: Store
) -> tuple[SplitRows, SplitRows, list[str], dict[str, int], dict[str, list[float]]]:
    """What `chosen_rows` returns, and the mean and deviation of targets that are numbers."""
    pieces = cells_in(layout, layout.train, "train", store)
    lengths = [len(piece) for piece in pieces]
    counts = {layout.train.split: sum(lengths)}
    cells = list(itertools.chain.from_iterable(pieces))
    outputs = Outputs.of(
        source.task, layout.label_feature, source.label_columns, cells, source.classes
    )
    train_rows = outputs.rows(cells, layout.label_feature)
    if layout.tests:
        test_table = layout.tests[0]
        pieces = cells_in(layout, test_table, "test", store)
        test_lengths = [len(piece) for piece in pieces]
        counts[test_table.split] = sum(test_lengths)
        theirs = columns.flat(test_table.features)[layout.label]
        test_rows = outputs.rows(itertools.chain.from_iterable(pieces), theirs)
    else:
        test_table, test_lengths = layout.train, lengths
        train_rows, test_rows = rows.cut(train_rows, source.test_share, 1, draw)
    spread = Spread.of(train_rows, outputs.names)
    train_rows, test_rows = (spread.finished(each, source.task) for each in (train_rows, test_rows))
    train_rows = rows.limited(train_rows, source.limit, draw("source", "limit", "train"))
    test_rows = rows.limited(test_rows, source.limit, draw("source", "limit", "test"))
    return (
        SplitRows("train", layout.train, train_rows, lengths),
        SplitRows("test", test_table, test_rows, test_lengths),
        outputs.names,
        counts,
        {"mean": spread.mean, "std": spread.std} if source.task == "values" else {},
    )


def _with_groups(source: Source, part: SplitRows, store: Store) -> SplitRows:
    """A split with the group of every row, where the recipe names a column and it is there."""
    table, name = part.table, source.group
    if name is None:
        return part
    feature = columns.flat(table.features).get(name)
    if feature is None:
        logger.warning(
            "the %s split has no column %r: what the worst group gets is not measured",
            table.split, name,
        )  # fmt: skip
        return part
    pieces = store.each(
        f"groups-{part.role}", table.pieces, lambda piece: table.labels(name, piece)
    )
    groups = columns.named_values(feature, itertools.chain.from_iterable(pieces))
    return replace(part, chosen=rows.grouped(part.chosen, groups), groups=groups)


def _labeled_test(
    source: Source, layout: SourceLayout, store: Store
) -> tuple[Table, list[list[columns.Value]]] | None:
    """The first split for testing whose rows have labels, with these; None where none has.

    Raises:
        DataError: the split that the recipe names has none.
    """
    for place, table in enumerate(layout.tests):
        layout.check_agreement(table)
        values = _labels(table, layout.label, f"test{place or ''}", store)
        if not columns.unlabeled(itertools.chain.from_iterable(values)):
            return table, values
        others = [other.split for other in layout.tests[place + 1 :]]
        if source.test_split is not None:
            raise DataError(
                f"source.test_split: no row of {table.split!r} has a label (each is missing or "
                "negative); name a split that has them, or leave it out to find one"
            )
        cut = f"{source.test_share:g} of each class of {layout.train.split} is cut off for testing"
        instead = f"{others[0]} is taken" if others else cut
        logger.warning(
            "no row of the %s split has a label (each is missing or negative): %s instead",
            table.split, instead,
        )  # fmt: skip
    return None


def chosen_rows(
    source: Source, layout: SourceLayout, draw: Draw, store: Store
) -> tuple[SplitRows, SplitRows, list[str], dict[str, int], dict[str, list[float]]]:
    """Training and test rows, the names of the classes, and how many rows every split has."""
    if source.task != "classes":
        return _rows_with_targets(source, layout, draw, store)
    values = _labels(layout.train, layout.label, "train", store)
    lengths = [len(piece) for piece in values]
    counts = {layout.train.split: sum(lengths)}
    train_values = list(itertools.chain.from_iterable(values))
    classes = columns.class_table(layout.label_feature, train_values, source.classes)
    train_rows = rows.labeled(train_values, classes)
    chosen = _labeled_test(source, layout, store)
    if chosen is None:
        test_table, test_lengths = layout.train, lengths
        train_rows, test_rows = rows.cut(train_rows, source.test_share, len(classes.names), draw)
    else:
        test_table, values = chosen
        test_lengths = [len(piece) for piece in values]
        counts[test_table.split] = sum(test_lengths)
        theirs = columns.flat(test_table.features)[layout.label]
        known = columns.class_names(layout.label_feature) or []
        test_classes = columns.matched(theirs, classes, known)
        test_rows = rows.labeled(itertools.chain.from_iterable(values), test_classes)
    train_rows = rows.limited(train_rows, source.limit, draw("source", "limit", "train"))
    test_rows = rows.limited(test_rows, source.limit, draw("source", "limit", "test"))
    if source.imbalance is not None:
        train_rows = rows.imbalanced(train_rows, source.imbalance, len(classes.names), draw)
    train_part = SplitRows("train", layout.train, train_rows, lengths)
    test_part = SplitRows("test", test_table, test_rows, test_lengths)
    return (
        _with_groups(source, train_part, store),
        _with_groups(source, test_part, store),
        classes.names,
        counts,
        {},
    )
