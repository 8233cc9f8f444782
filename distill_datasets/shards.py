"""Labels of views as WebDataset tars: a few large arrays per block, and an index of where they lie.

A block is a run of batches of one epoch. Its arrays are .npy members `<key>.<column>.npy`: never
one member per label, which would double the bytes. `index.json` says which shard holds which
batches and at which byte every array begins, so that any views are read without the rest.
"""

import io
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from webdataset import TarWriter

from distill_datasets.artifacts import sha256_of, write_atomically, write_json

INDEX = "index.json"
Arrays = Mapping[str, np.ndarray[Any, Any]]


class Block(NamedTuple):
    """Views that lie together: batches of an epoch, and records; both a first and a past last."""

    epoch: int
    batches: tuple[int, int]
    records: tuple[int, int]

    @property
    def key(self) -> str:
        """The name of its members in a tar, without dots."""
        return f"epoch-{self.epoch:05d}-batch-{self.batches[0]:07d}"


def write_shards(
    folder: Path,
    blocks: Sequence[Block],
    read: Callable[[int, int], Arrays],
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
    groups = list[list[Block]]()
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
        shards.append(_described(path, group))
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


def _write(path: Path, members: Iterator[tuple[str, Arrays]]) -> None:
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


def _described(path: Path, blocks: Sequence[Block]) -> dict[str, Any]:
    """What the index says of a shard: its blocks, and at which byte their numbers begin."""
    offsets = dict[str, int]()
    with tarfile.open(path) as tar, path.open("rb") as file:
        for member in tar:
            file.seek(member.offset_data)
            npy.read_magic(file)
            npy.read_array_header_1_0(file)
            offsets[member.name] = file.tell()
    described = [
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
        "blocks": described,
    }
