"""Targets that are no single class: several labels of an image at once, or numbers beside it.

They stand in one column of lists, or in a column for each label or number. What an image is taken
for an example of, where an image is asked for by class, is one of its labels, or of its numbers
above their mean: the one that fewest images before it were taken for, and else the rarest.

Shape suffixes: N rows, K outputs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from distill_datasets.data import columns
from distill_datasets.data.columns import shortened
from distill_datasets.data.rows import Row
from distill_datasets.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from distill_datasets.types import Task

Cell = list[Any] | None
"""What stands in a row: a list of labels or numbers; None where nothing does."""


def found_columns(
    features: dict[str, Any], named: str | None, several: Sequence[str] | None
) -> list[str]:
    """The columns that hold the targets.

    Args:
        features: the dataset's columns.
        named: `source.label_column`.
        several: `source.label_columns`.

    Raises:
        DataError: one of them is not there, or none can be found.
    """
    if several is None:
        return [columns.label_column(features, named)]
    known = columns.flat(features)
    for name in several:
        if name not in known:
            raise DataError(
                f"source.label_columns: no column {name!r}; {did_you_mean(name, known)}"
            )
    return list(several)


def cells_of(found: Sequence[Sequence[Any]]) -> list[Cell]:
    """The cells of one column, or those of several side by side."""
    if len(found) > 1:
        return [None if None in row else list(row) for row in zip(*found, strict=True)]
    return [None if cell is None else _listed(cell) for cell in found[0]]


def _listed(cell: Any) -> list[Any]:  # noqa: ANN401
    return list(cell) if isinstance(cell, list | tuple) else [cell]


@dataclass(frozen=True)
class Outputs:
    """What the cells of the training split mean, and therefore those of the test split.

    Attributes:
        task: `labels` or `values`.
        names: of the labels or numbers that are used, in their order.
        known: of all labels that are there.
        places: where numbers stand in a cell: a cell is as long as all of them; of `labels` such
            cells hold 0 or 1. None where a cell names its labels.
    """

    task: Task
    names: list[str]
    known: frozenset[str]
    places: dict[str, int] | None

    @classmethod
    def of(
        cls,
        task: Task,
        feature: Any,  # noqa: ANN401
        several: Sequence[str] | None,
        cells: Sequence[Cell],
        subset: Sequence[str | int] | None,
    ) -> Outputs:
        """Look at the training split.

        Args:
            task: `labels` or `values`.
            feature: the type of the column, or of the first of several.
            several: their names, where there are several columns.
            cells: of the training split.
            subset: `source.classes`.

        Raises:
            DataError: the cells hold no such targets, or a name of the subset is none of theirs.
        """
        given = [cell for cell in cells if cell is not None]
        declared, lengths = columns.class_names(feature), {len(cell) for cell in given}
        numbers = declared is None and all(
            isinstance(each, int | float) for each in itertools.chain.from_iterable(given)
        )
        placed = several is not None or (numbers and len(lengths) == 1)
        if task == "labels":
            placed = placed and all(set(cell) <= {0, 1} for cell in given)
        elif not placed or not numbers:
            raise DataError(
                "source.task: values needs a number, or as many in every row; got cells such as "
                f"{shortened(next(iter(given), None))}; name columns of numbers in "
                "source.label_columns, or a list in source.label_column"
            )
        if placed:
            own = list(several or map(str, range(max(lengths, default=0))))
        elif several is not None:
            raise DataError(
                "source.label_columns: a column for each label holds 0 or 1, true or false, in "
                f"every row; got rows such as {shortened(next(iter(given), None))}"
            )
        else:
            values = {each for cell in given for each in cell}
            own = declared or [str(each) for each in sorted(values, key=_order)]
        names = [str(name) for name in subset or own]
        for name in names:
            if name not in own:
                raise DataError(f"source.classes: no label {name!r}; {did_you_mean(name, own)}")
        if not names:
            raise DataError("no label stands in any training row; check source.label_column")
        places = {name: place for place, name in enumerate(own)} if placed else None
        return cls(task, names, frozenset(own), places)

    def target(self, cell: Cell, feature: Any) -> tuple[float, ...] | str:  # noqa: ANN401
        """What a cell says, or why it says nothing.

        Args:
            cell: of the training or of the test split.
            feature: the type of its column.
        """
        if cell is None:
            return "the label is missing"
        if self.places is not None:
            return self._placed(cell)
        declared = columns.class_names(feature)
        named = [declared[each] if declared and isinstance(each, int) else each for each in cell]
        unknown = [each for each in map(str, named) if each not in self.known]
        if unknown:
            return f"the label {shortened(unknown[0])} is none of the {len(self.known)} known ones"
        return tuple(float(name in set(map(str, named))) for name in self.names)

    def _placed(self, cell: list[Any]) -> tuple[float, ...] | str:
        assert self.places is not None
        if len(cell) != len(self.places) or not all(isinstance(each, int | float) for each in cell):
            return f"the label {shortened(cell)} is not {len(self.places)} numbers"
        numbers = tuple(float(cell[self.places[name]]) for name in self.names)
        if self.task == "labels" and not set(numbers) <= {0.0, 1.0}:
            return f"the label {shortened(cell)} is not 0 or 1 everywhere"
        if not all(map(math.isfinite, numbers)):
            return f"the label {shortened(cell)} is not finite"
        return numbers

    def rows(self, cells: Iterable[Cell], feature: Any) -> list[Row]:  # noqa: ANN401
        """The rows, those with an unusable target included; every class is 0 so far."""
        rows = []
        for number, cell in enumerate(cells):
            found = self.target(cell, feature)
            rows.append(Row(number, found) if isinstance(found, str) else Row(number, 0, found))
        return rows


def _order(value: Any) -> tuple[bool, Any]:  # noqa: ANN401
    return isinstance(value, str), value


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of every output over the training rows."""

    mean: list[float]
    std: list[float]

    @classmethod
    def of(cls, rows: Sequence[Row], names: Sequence[str]) -> Spread:
        """Those of the usable rows.

        Raises:
            DataError: an output is the same everywhere, so that nothing can be learned of it.
        """
        targets_NK = torch.tensor([row.target for row in rows if row.target is not None]).double()
        if not len(targets_NK):
            raise DataError("no training row has a usable label; check source.label_column")
        std_K = targets_NK.std(dim=0, correction=0)
        same = [name for name, std in zip(names, std_K.tolist(), strict=True) if std == 0]
        if same:
            raise DataError(
                f"source.label_columns: {', '.join(same[:20])}: the same in all training rows, so "
                "that nothing can be learned of it; leave it out, or name the others in "
                "source.classes"
            )
        return cls(targets_NK.mean(dim=0).tolist(), std_K.tolist())

    def finished(self, rows: Sequence[Row], task: Task) -> list[Row]:
        """The rows with their class; numbers in standard deviations from their mean."""
        found, taken = [], [0] * len(self.mean)
        most = max(range(len(self.mean)), key=self.mean.__getitem__)
        for row in rows:
            if row.target is not None:
                apart = [
                    (each - mean) / std
                    for each, mean, std in zip(row.target, self.mean, self.std, strict=True)
                ]
                own = [place for place, each in enumerate(apart) if each > 0]
                if task == "labels":
                    own = [place for place, each in enumerate(row.target) if each > 0] or [most]
                # fewest images so far, then what stands out most: no output is left without any
                label = min(
                    own or [apart.index(max(apart))],
                    key=lambda place: (taken[place], -apart[place]),
                )
                taken[label] += 1
                row = Row(row.number, label, tuple(apart) if task == "values" else row.target)
            found.append(row)
        return found
