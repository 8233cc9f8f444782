"""Where decoded pixels are put, and how the work of decoding them is shared."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import torch

from distill_datasets.data.memory import GIB, available_bytes
from distill_datasets.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor


class Store(Protocol):
    """Rows of uint8 pixels by name, filled in pieces; every process makes the same calls."""

    def each(self, what: str, units: int, work: Callable[[int], Any]) -> list[Any]:
        """The results of `work(unit)`, as JSON, for all units in order.

        Every unit is done once, by some process. Returns when all are done.
        """

    def create(self, name: str, shape: tuple[int, ...]) -> None:
        """Make room for rows (N, C, H, W).

        Raises:
            DataError: there is not enough of it.
        """

    def put(self, name: str, first: int, pixels_BCHW: Tensor) -> None:
        """Take consecutive rows from the place `first` on."""

    def finish(self, name: str, kept_N: Tensor) -> Tensor:
        """The rows that are kept, when all have been put."""


def no_room(name: str, shape: tuple[int, ...], free: int, where: str) -> DataError:
    """The refusal of pixels that do not fit."""
    needed = torch.Size(shape).numel()
    return DataError(
        f"the {name} split needs {needed / GIB:.1f} GiB as pixels ({shape[0]} images of "
        f"{'x'.join(str(side) for side in shape[1:])}) and {free / GIB:.1f} GiB are free{where}; "
        "set source.limit, source.classes or a lower source.resolution"
    )


class InMemory:
    """All rows in the memory of this process, which does everything."""

    def __init__(self) -> None:
        self._rows: dict[str, Tensor] = {}

    def each(self, what: str, units: int, work: Callable[[int], Any]) -> list[Any]:
        """See `Store.each`."""
        return [work(unit) for unit in range(units)]

    def create(self, name: str, shape: tuple[int, ...]) -> None:
        """See `Store.create`."""
        free = available_bytes()
        if torch.Size(shape).numel() > free:
            raise no_room(name, shape, free, "")
        self._rows[name] = torch.zeros(shape, dtype=torch.uint8)

    def put(self, name: str, first: int, pixels_BCHW: Tensor) -> None:
        """See `Store.put`."""
        self._rows[name][first : first + len(pixels_BCHW)] = pixels_BCHW

    def finish(self, name: str, kept_N: Tensor) -> Tensor:
        """See `Store.finish`."""
        rows_NCHW = self._rows.pop(name)
        return rows_NCHW if bool(kept_N.all()) else rows_NCHW[kept_N]
