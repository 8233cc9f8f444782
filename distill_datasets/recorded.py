"""Published labels of views, read back epoch by epoch from rows or from tar shards.

Shape suffixes: none; all arrays have one row per view.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from distill_datasets.artifacts import read_json
from distill_datasets.errors import ArtifactError
from distill_datasets.shards import INDEX
from distill_datasets.views import Views, views_of

Arrays = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Piece:
    """Records that are read together: the first, and the one past the last."""

    first: int
    last: int
    read: Callable[[int, int], Arrays]
    """The columns of some of its records, counted from its own first one."""


@dataclass(frozen=True)
class Records:
    """Views and coded labels in the order of epochs and batches.

    `per_epoch` is the number of images: an epoch views each of them once. The last epoch has fewer
    views where only a share of the batches was labeled.
    """

    pieces: Sequence[Piece]
    per_epoch: int

    @property
    def count(self) -> int:
        """Number of views."""
        return self.pieces[-1].last

    @property
    def epochs(self) -> int:
        """Number of epochs, the last one may be short."""
        return -(-self.count // self.per_epoch)

    def rows(self, start: int, stop: int) -> tuple[Views, dict[str, Tensor]]:
        """Some views, and all of their columns by name, among them the coded labels."""
        parts = list[Arrays]()
        at = bisect_right([piece.first for piece in self.pieces], start) - 1
        for piece in self.pieces[at:]:
            low, high = max(start, piece.first), min(stop, piece.last)
            if low >= high:
                break
            parts.append(piece.read(low - piece.first, high - piece.first))
        columns = {
            name: torch.from_numpy(np.concatenate([part[name] for part in parts]))
            for name in parts[0]
        }
        return views_of(columns), columns

    def epoch(self, number: int) -> tuple[Views, dict[str, Tensor]]:
        """The views of one epoch, and all of their columns."""
        start = number * self.per_epoch
        return self.rows(start, min(start + self.per_epoch, self.count))


def open_table(table: pa.Table, per_epoch: int) -> Records:
    """The configuration `relabel` of a published dataset, as `load_dataset` holds it.

    Args:
        table: its rows, in order.
        per_epoch: number of distilled images.

    Raises:
        ArtifactError: it has no rows.
    """

    def read(start: int, stop: int) -> Arrays:
        cut = table.slice(start, stop - start)
        return {name: _array(cut.column(name)) for name in cut.column_names}

    pieces = [Piece(0, len(table), read)] if len(table) else []
    return _records(pieces, per_epoch, "relabel")


def open_shards(folder: Path, per_epoch: int) -> Records:
    """Tar shards and their index.

    Args:
        folder: where they lie.
        per_epoch: number of distilled images.

    Raises:
        ArtifactError: no index, or nothing in it.
    """
    index = read_json(folder / INDEX)
    pieces = [
        Piece(
            block["records"][0],
            block["records"][1],
            _block_reader(folder / shard["path"], block, index["columns"]),
        )
        for shard in index["shards"]
        for block in shard["blocks"]
    ]
    return _records(pieces, per_epoch, str(folder / INDEX))


def _records(pieces: list[Piece], per_epoch: int, where: str) -> Records:
    if not pieces:
        raise ArtifactError(f"{where}: got no labels of views, expected some; download it again")
    return Records(pieces, per_epoch)


def _array(column: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    whole = column.combine_chunks()
    listed = pa.types.is_list(whole.type) or pa.types.is_fixed_size_list(whole.type)
    flat = whole.flatten() if listed else whole
    values: np.ndarray[Any, Any] = flat.to_numpy(zero_copy_only=False).copy()
    return values.reshape(len(whole), -1) if listed else values


def _block_reader(
    path: Path, block: dict[str, Any], columns: dict[str, Any]
) -> Callable[[int, int], Arrays]:
    def read(start: int, stop: int) -> Arrays:
        arrays = Arrays()
        for name, column in columns.items():
            dtype = np.dtype(column["dtype"])
            per_row = int(np.prod(column["shape"], dtype=int))
            values = np.fromfile(
                path,
                dtype,
                count=(stop - start) * per_row,
                offset=block["offsets"][name] + start * per_row * dtype.itemsize,
            )
            if len(values) != (stop - start) * per_row:
                raise ArtifactError(f"{path}: the shard ends too early; download it again")
            arrays[name] = values.reshape(stop - start, *column["shape"])
        return arrays

    return read
