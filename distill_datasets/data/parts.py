"""The rows of a split that are read, and how their pixels get into a store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from distill_datasets.data.reading import Agreement, BadRow, Split, Table, decode
from distill_datasets.data.rows import Row
from distill_datasets.data.storing import Store

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Part:
    """The rows that are read of one split; `lengths` counts all rows of each of its pieces."""

    role: str
    table: Table
    chosen: list[Row]
    lengths: list[int]

    @cached_property
    def usable(self) -> list[Row]:
        """The rows that have a class."""
        return [row for row in self.chosen if isinstance(row.label, int)]

    def stored(
        self,
        column: str,
        agreement: Agreement,
        shape: tuple[int, ...],
        store: Store,
        report: Callable[[int], None],
    ) -> tuple[Split, list[BadRow]]:
        """Decode the rows into the store; what could be used, and what could not."""
        table, usable = self.table, self.usable
        units = table.units(usable, self.lengths)
        bad = [
            BadRow(table.split, row.number, row.label)
            for row in self.chosen
            if isinstance(row.label, str)
        ]
        done = len(bad)
        store.create(self.role, (len(usable), *shape))

        def work(unit: int) -> list[tuple[int, str]]:
            def put(first: int, pixels_BCHW: Tensor) -> None:
                store.put(self.role, first, pixels_BCHW)
                reached = done + first - units[unit].start + len(pixels_BCHW)
                if reached < len(self.chosen):
                    report(reached)

            nonlocal done
            broken = decode(table, column, usable, units[unit], agreement, put)
            done += units[unit].stop - units[unit].start
            return broken

        broken = [row for found in store.each(self.role, len(units), work) for row in found]
        report(len(self.chosen))
        bad += [BadRow(table.split, usable[place].number, why) for place, why in broken]
        kept_N = torch.ones(len(usable), dtype=torch.bool)
        kept_N[[place for place, _ in broken]] = False
        labels_N = torch.tensor([row.label for row in usable], dtype=torch.int64)
        return Split(store.finish(self.role, kept_N), labels_N[kept_N]), sorted(bad)
