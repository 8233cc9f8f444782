"""Records of views in files: as WebDataset tars with an index, and read back epoch by epoch.

A record is one view with its coded label: a row of named arrays, the columns. Records have numbers,
in the order of epochs and batches. A block is a run of batches of one epoch; its columns are the
.npy members `<key>.<column>.npy` of a tar: never one member per record, which would double the
bytes. A shard is a tar of some blocks. `index.json` says which shard holds which block and at which
byte every column begins, so that any records are read without the rest.
"""

import io
import tarfile
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.lib import format as npy
from torch import Tensor
from webdataset import TarWriter

from distill_datasets.errors import ArtifactError
from distill_datasets.files.artifacts import read_json, sha256_of, write_atomically, write_json
from distill_datasets.views.recorded import Views, views_of

INDEX = "index.json"
Columns = dict[str, np.ndarray[Any, Any]]
"""Named arrays of one row per record."""
ReadColumns = Callable[[int, int], Columns]
"""The columns of the records from a first to one past the last."""


class TarBlock(NamedTuple):
    """Records that lie together in a tar: batches of an epoch; both a first and a past last."""

    epoch: int
    batches: tuple[int, int]
    records: tuple[int, int]

    @property
    def key(self) -> str:
        """The name of its members in a tar, without dots."""
        return f"epoch-{self.epoch:05d}-batch-{self.batches[0]:07d}"


def write_shards(
    folder: Path,
    blocks: Sequence[TarBlock],
    read: ReadColumns,
    shard_bytes: int,
) -> list[Path]:
    """Write tars of about `shard_bytes` each, and their index.

    Args:
        folder: where to; a shard that is there is written again.
        blocks: all blocks in the order of their records, at least one.
        read: the columns of some records; of all columns every record has as many numbers.
        shard_bytes: no shard but one of a single block is larger.

    Returns:
        The files, the index last; the same bytes for the same content.
    """
    first = read(0, 1)
    record_bytes = sum(values.nbytes for values in first.values())
    groups = list[list[TarBlock]]()
    filled = 0
    for block in blocks:
        size = (block.records[1] - block.records[0]) * record_bytes
        if not groups or filled + size > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(block)
        filled += size
    paths = [folder / f"relabel-{number:05d}.tar" for number in range(len(groups))]
    shards = list[dict[str, Any]]()
    for path, group in zip(paths, groups, strict=True):
        members = ((block.key, read(*block.records)) for block in group)
        write_atomically(path, lambda temporary, members=members: _write(temporary, members))  # type: ignore[misc]
        shards.append(_index_entry(path, group))
    columns = {
        name: {"dtype": values.dtype.str, "shape": list(values.shape[1:])}
        for name, values in first.items()
    }
    index = {
        "schema_version": 1,
        "records": blocks[-1].records[1],
        "columns": columns,
        "shards": shards,
    }
    write_json(folder / INDEX, index)
    return [*paths, folder / INDEX]


def _write(path: Path, members: Iterator[tuple[str, Columns]]) -> None:
    with (
        path.open("wb") as file,
        TarWriter(file, user="root", group="root", mode=0o644, encoder=False, mtime=0) as tar,
    ):
        for key, arrays in members:
            tar.write({"__key__": key, **{f"{name}.npy": _npy(arrays[name]) for name in arrays}})


def _npy(values: np.ndarray[Any, Any]) -> bytes:
    content = io.BytesIO()
    npy.write_array(content, np.ascontiguousarray(values), version=(1, 0), allow_pickle=False)
    return content.getvalue()


def _index_entry(path: Path, blocks: Sequence[TarBlock]) -> dict[str, Any]:
    """What the index has of a shard: its blocks, and at which byte their numbers begin."""
    offsets = dict[str, int]()
    with tarfile.open(path) as tar, path.open("rb") as file:
        for member in tar:
            # a member is a .npy file: its header ends where its numbers begin
            file.seek(member.offset_data)
            npy.read_magic(file)
            npy.read_array_header_1_0(file)
            offsets[member.name] = file.tell()
    entries = [
        {
            "key": block.key,
            "epoch": block.epoch,
            "batches": list(block.batches),
            "records": list(block.records),
            "offsets": {
                name.removeprefix(f"{block.key}.").removesuffix(".npy"): offset
                for name, offset in offsets.items()
                if name.startswith(f"{block.key}.")
            },
        }
        for block in blocks
    ]
    return {
        "path": path.name,
        "bytes": path.stat().st_size,
        "sha256": sha256_of(path),
        "blocks": entries,
    }


@dataclass(frozen=True)
class RecordRange:
    """Records that are read from one place: the first, and the one past the last."""

    start: int
    stop: int
    read: ReadColumns
    """The columns of some of its records, counted from its own first one."""


@dataclass(frozen=True)
class Records:
    """All records of a published set.

    `per_epoch` is the number of images: an epoch views each of them once. The last epoch has fewer
    views where only a share of the batches was labeled.
    """

    ranges: Sequence[RecordRange]
    per_epoch: int

    @property
    def count(self) -> int:
        """Number of records."""
        return self.ranges[-1].stop

    @property
    def epochs(self) -> int:
        """Number of epochs, the last one may be short."""
        return -(-self.count // self.per_epoch)

    def rows(self, start: int, stop: int) -> tuple[Views, dict[str, Tensor]]:
        """Some views, and all of their columns by name, among them the coded labels."""
        parts = list[Columns]()
        # ranges lie one after the other: the first is the last one that starts at or before `start`
        at = bisect_right([own.start for own in self.ranges], start) - 1
        for own in self.ranges[at:]:
            first, last = max(start, own.start), min(stop, own.stop)
            if first >= last:
                break
            parts.append(own.read(first - own.start, last - own.start))
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

    def read(start: int, stop: int) -> Columns:
        cut = table.slice(start, stop - start)
        return {name: _array(cut.column(name)) for name in cut.column_names}

    ranges = [RecordRange(0, len(table), read)] if len(table) else []
    return _records(ranges, per_epoch, "relabel")


def open_shards(folder: Path, per_epoch: int) -> Records:
    """Tar shards and their index.

    Args:
        folder: where they lie.
        per_epoch: number of distilled images.

    Raises:
        ArtifactError: no index, or nothing in it.
    """
    index = read_json(folder / INDEX)
    ranges = [
        RecordRange(
            block["records"][0],
            block["records"][1],
            _block_reader(folder / shard["path"], block, index["columns"]),
        )
        for shard in index["shards"]
        for block in shard["blocks"]
    ]
    return _records(ranges, per_epoch, str(folder / INDEX))


def _records(ranges: list[RecordRange], per_epoch: int, where: str) -> Records:
    if not ranges:
        raise ArtifactError(f"{where}: got no labels of views, expected some; download it again")
    return Records(ranges, per_epoch)


def _array(column: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    whole = column.combine_chunks()
    listed = pa.types.is_list(whole.type) or pa.types.is_fixed_size_list(whole.type)
    flat = whole.flatten() if listed else whole
    values: np.ndarray[Any, Any] = flat.to_numpy(zero_copy_only=False).copy()
    return values.reshape(len(whole), -1) if listed else values


def _block_reader(path: Path, block: dict[str, Any], columns: dict[str, Any]) -> ReadColumns:
    def read(start: int, stop: int) -> Columns:
        arrays = Columns()
        for name, column in columns.items():
            # rows follow each other without gaps: row r begins r * per_row numbers after the first
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
