"""Where decoded pixels are put, and how the work of decoding them is shared.

On disk a file is made once with room for all rows and filled unit by unit: the pixels first, then,
when they are safe on disk, a small file that says so, with their checksums. Whoever starts again
leaves out what is said to be there and is what it was. A finished file gets its own name by a
rename, and until the whole stage is done a small file beside it says so: a run that is killed
between two splits does not read the first one again.
"""

from __future__ import annotations

import logging
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from distill_datasets.errors import DataError
from distill_datasets.files.artifacts import (
    create_rows,
    fill_rows,
    holds_rows,
    intact,
    open_rows,
    read_record,
    seal_rows,
    write_record,
    write_rows,
)
from distill_datasets.runtime.memory import GIB, available_bytes
from distill_datasets.runtime.processes import Runtime

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger("distill_datasets")


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


class Discarding:
    """A store in memory that forgets the pixels of some names, where only the rest is asked for.

    Args:
        names: whose pixels are not kept; their rows read as zeros.
    """

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._kept = InMemory()
        self._shapes: dict[str, tuple[int, ...]] = {}

    def each(self, what: str, units: int, work: Callable[[int], Any]) -> list[Any]:
        """See `Store.each`."""
        return self._kept.each(what, units, work)

    def create(self, name: str, shape: tuple[int, ...]) -> None:
        """See `Store.create`."""
        self._shapes[name] = shape
        if name not in self._names:
            self._kept.create(name, shape)

    def put(self, name: str, first: int, pixels_BCHW: Tensor) -> None:
        """See `Store.put`."""
        if name not in self._names:
            self._kept.put(name, first, pixels_BCHW)

    def finish(self, name: str, kept_N: Tensor) -> Tensor:
        """See `Store.finish`."""
        if name not in self._names:
            return self._kept.finish(name, kept_N)
        rows = int(kept_N.sum())
        return torch.zeros(1, dtype=torch.uint8).expand(rows, *self._shapes[name][1:])


_UNFINISHED = ".unfinished.npy"


_FINISHED = ".finished.json"


_CHUNK_BYTES = 2**26


class RowFiles:
    """A `Store` in a folder; units are dealt to the processes."""

    def __init__(self, folder: Path, runtime: Runtime) -> None:
        self._folder = folder
        self._runtime = runtime
        self._sums = list[tuple[str, int, int, int]]()
        """Of the unit in work: name, first row, number of rows and checksum of each `put`."""

    def path(self, name: str) -> Path:
        """Where the finished rows lie."""
        return self._folder / f"{name}.npy"

    def holds(self, name: str) -> bool:
        """Whether this process's share of finished rows lies there whole."""
        return holds_rows(self.path(name), self._runtime.index, self._runtime.processes)

    def each(self, what: str, units: int, work: Callable[[int], Any]) -> list[Any]:
        """See `Store.each`."""
        paths = [self._folder / f"{what}-{unit:05d}.json" for unit in range(units)]
        for unit in self._runtime.mine(units):
            if not self._is_whole(paths[unit]):
                self._sums = []
                result = work(unit)
                write_record(paths[unit], {"result": result, "rows": self._sums})
        self._runtime.wait()
        return [read_record(path)["result"] for path in paths]

    def create(self, name: str, shape: tuple[int, ...]) -> None:
        """See `Store.create`."""
        unfinished = self._unfinished(name)
        begun = self._runtime.is_main and intact(unfinished, open_rows) is not None
        if self._runtime.is_main and not begun and not self._has(name, shape):
            self._said_finished(name).unlink(missing_ok=True)
            for path in self._folder.glob(f"{name}-[0-9]*.json"):
                path.unlink()
            free = shutil.disk_usage(self._folder).free
            if torch.Size(shape).numel() > free:
                raise no_room(name, shape, free, f" where {self._folder.parent} lies")
            create_rows(unfinished, shape)
        self._runtime.wait()

    def put(self, name: str, first: int, pixels_BCHW: Tensor) -> None:
        """See `Store.put`."""
        crc = zlib.crc32(pixels_BCHW.cpu().contiguous().numpy().data)
        self._sums.append((name, first, len(pixels_BCHW), crc))
        # of two names that a unit fills, one may be finished
        if self._unfinished(name).exists():
            fill_rows(self._unfinished(name), first, pixels_BCHW)

    def finish(self, name: str, kept_N: Tensor) -> Tensor:
        """See `Store.finish`."""
        unfinished, path = self._unfinished(name), self.path(name)
        if self._runtime.is_main and unfinished.exists():
            shape = [len(kept_N), *open_rows(unfinished).shape[1:]]
            gaps = not bool(kept_N.all())
            if gaps:
                self._without_gaps(unfinished, path, kept_N)
            else:
                seal_rows(unfinished)
            # believed only where nothing unfinished lies beside it, and so written before that goes
            write_record(self._said_finished(name), {"shape": shape})
            if gaps:
                unfinished.unlink()
            else:
                unfinished.replace(path)
        self._runtime.wait()
        return open_rows(path)

    def forget(self) -> None:
        """Remove what says which units and splits are done, when everything is."""
        # finished splits have all their units, and their prints were compared
        for pattern in (f"*{_FINISHED}", "*-[0-9]*.json", "*-prints.npy"):
            for path in self._folder.glob(pattern):
                path.unlink()

    def _unfinished(self, name: str) -> Path:
        return self._folder / f"{name}{_UNFINISHED}"

    def _said_finished(self, name: str) -> Path:
        return self._folder / f"{name}{_FINISHED}"

    def _has(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether a run that did not end has finished these rows, or those of them it could use."""
        said = intact(self._said_finished(name), read_record)
        return said is not None and said["shape"] == list(shape) and holds_rows(self.path(name))

    def _is_whole(self, path: Path) -> bool:
        """Whether a unit is said to be done, and its rows, if not finished, are what was put."""
        said = intact(path, read_record)
        if said is None:
            return False
        for name, first, count, crc in said["rows"]:
            unfinished = self._unfinished(name)
            if not unfinished.exists():
                continue
            rows_BCHW = open_rows(unfinished)[first : first + count]
            if zlib.crc32(rows_BCHW.numpy().data) != crc:
                logger.warning(
                    "%s: the checksum of rows %d to %d differs; they are read anew",
                    unfinished, first, first + count - 1,
                )  # fmt: skip
                return False
        return True

    def _without_gaps(self, unfinished: Path, path: Path, kept_N: Tensor) -> None:
        rows_NCHW = open_rows(unfinished)
        step = max(1, _CHUNK_BYTES // max(1, rows_NCHW.shape[1:].numel()))
        pairs = zip(torch.split(rows_NCHW, step), torch.split(kept_N, step), strict=True)
        shape = (int(kept_N.sum()), *rows_NCHW.shape[1:])
        write_rows(path, shape, (part_BCHW[kept_B] for part_BCHW, kept_B in pairs))
