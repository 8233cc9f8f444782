"""Which rows are read: those of the chosen classes, a part cut off for test, a drawn few."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from distill_datasets.data.columns import Classes, Value
from distill_datasets.runtime.draws import Draw


class Row(NamedTuple):
    """A row of a split and its class, or the reason why its label is unusable.

    Where a target is no class, `target` has it, and the class is the output that the row is taken
    for an example of.
    """

    number: int
    label: int | str
    target: tuple[float, ...] | None = None


def labeled(values: Iterable[Value], classes: Classes) -> list[Row]:
    """The rows of the chosen classes, and those whose label is unusable."""
    found = ((number, classes.index(value)) for number, value in enumerate(values))
    return [Row(number, index) for number, index in found if index is not None]


def grouped(rows: Iterable[Row], groups: Sequence[str | None]) -> list[Row]:
    """The rows, of which those without a group are unusable."""
    return [
        Row(row.number, "the group is missing")
        if groups[row.number] is None and isinstance(row.label, int)
        else row
        for row in rows
    ]


def cut(rows: list[Row], share: float, classes: int, draw: Draw) -> tuple[list[Row], list[Row]]:
    """Training and test rows: of each class about `share` goes to test, one row at the least.

    A class with a single row keeps it for training, and so do rows without a usable label.
    """
    members: list[list[int]] = [[] for _ in range(classes)]
    for place, row in enumerate(rows):
        if isinstance(row.label, int):
            members[row.label].append(place)
    test: set[int] = set()
    for index, places in enumerate(members):
        count = min(max(1, round(share * len(places))), len(places) - 1)
        if count > 0:
            order = torch.randperm(len(places), generator=draw("source", "cut", index))
            test.update(places[place] for place in order[:count].tolist())
    kept = [row for place, row in enumerate(rows) if place not in test]
    return kept, [rows[place] for place in sorted(test)]


def limited(rows: list[Row], limit: int | None, rng: torch.Generator) -> list[Row]:
    """At most `limit` rows, drawn uniformly without replacement and kept in their order."""
    if limit is None or limit >= len(rows):
        return rows
    drawn = torch.randperm(len(rows), generator=rng)[:limit].sort().values
    return [rows[place] for place in drawn.tolist()]


def long_tail(largest: int, imbalance: float, classes: int) -> list[int]:
    """How many images each class keeps: `largest` of the first, falling to a share of that.

    Class c of C keeps floor(largest * imbalance^(c / (C - 1))), and one at the least; a single
    class keeps all.

    Source: CIFAR-LT (arXiv:1901.05555), section 5.1.
    """
    shares = [imbalance ** (label / max(1, classes - 1)) for label in range(classes)]
    # the last share is exact, and so must be a count that only rounding keeps below an integer
    return [max(1, math.floor(largest * share + 1e-9)) for share in shares]


def imbalanced(rows: list[Row], imbalance: float, classes: int, draw: Draw) -> list[Row]:
    """Rows whose classes follow `long_tail`, drawn without replacement and kept in their order.

    The first class keeps as many as the smallest class has, so that every class has enough. Rows
    without a usable label stay.
    """
    members: list[list[int]] = [[] for _ in range(classes)]
    for place, row in enumerate(rows):
        if isinstance(row.label, int):
            members[row.label].append(place)
    kept = {place for place, row in enumerate(rows) if not isinstance(row.label, int)}
    counts = long_tail(min(map(len, members)), imbalance, classes)
    for label, (places, count) in enumerate(zip(members, counts, strict=True)):
        order = torch.randperm(len(places), generator=draw("source", "imbalance", label))
        kept.update(places[place] for place in order[:count].tolist())
    return [rows[place] for place in sorted(kept)]
