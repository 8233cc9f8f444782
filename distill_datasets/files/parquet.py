"""Parquet files that every `datasets` from 3.0 on opens, with bytes that depend on content alone.

`datasets` 4 renamed `Sequence` to `List`, and what it writes itself cannot be opened by `datasets`
3. The features are therefore spelled the old way, here in the file and in the card, which every
version reads. Floats are flat lists: nested lists take 30 to 50 times longer to read.

Pages are not cut by their content (`use_content_defined_chunking`). Measured on labels of 100,000
views, 20 MB: files are 2.5 % larger so, and of a version with epochs added, or with an image taken
out, the Hub's storage has to take no less. Groups of a thousand rows, which a viewer fetches alone,
hold a page each, and epochs that are added behind leave the groups before them as they were.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

Feature = dict[str, Any]
Columns = Mapping[str, Sequence[Any] | npt.NDArray[Any]]

IMAGE: Feature = {"_type": "Image"}
TEXT: Feature = {"dtype": "string", "_type": "Value"}
INTEGER: Feature = {"dtype": "int64", "_type": "Value"}

BOOLEAN: Feature = {"dtype": "bool", "_type": "Value"}

_ROWS_PER_GROUP = 1000
_BYTES_PER_GROUP = 64 << 20
_BYTES_PER_FILE = 500_000_000


def class_label(names: Sequence[str]) -> Feature:
    """An integer that stands for one of these names."""
    return {"names": list(names), "_type": "ClassLabel"}


def class_labels(names: Sequence[str]) -> Feature:
    """A list of such integers."""
    return {"_type": "Sequence", "feature": class_label(names)}


def numbers(dtype: str, length: int | None = None) -> Feature:
    """A flat list of `float32`, `float16`, `int32` or `uint8`.

    It is of fixed length where every row has it.
    """
    feature: Feature = {"_type": "Sequence", "feature": {"dtype": dtype, "_type": "Value"}}
    return feature if length is None else {**feature, "length": length}


@dataclass(frozen=True)
class Config:
    """One configuration of a published dataset, read in pieces so that it never lies in memory.

    `read(start, stop)` gives the columns of some rows: PNG bytes for an image, one sequence of
    numbers per row for a list. `row_bytes` is about what a row takes; large configurations are
    several files of some hundred megabytes.
    """

    name: str
    folder: str
    features: dict[str, Feature]
    rows: int
    row_bytes: int
    read: Callable[[int, int], Columns]

    @property
    def paths(self) -> list[str]:
        """Where the rows lie in the published folder."""
        count = len(self.ranges)
        return [f"{self.folder}/train-{i:05d}-of-{count:05d}.parquet" for i in range(count)]

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """Which rows each file holds."""
        groups = max(1, _BYTES_PER_FILE // max(1, self.row_bytes * self.group_rows))
        step = groups * self.group_rows
        starts = range(0, max(1, self.rows), step)
        return [(start, min(start + step, self.rows)) for start in starts]

    @property
    def group_rows(self) -> int:
        """Rows that are held in memory together, and that a viewer fetches alone."""
        return max(1, min(_ROWS_PER_GROUP, _BYTES_PER_GROUP // max(1, self.row_bytes)))


def write_parquet(path: Path, config: Config, start: int, stop: int) -> None:
    """Write some rows of `config`; equal content gives equal bytes.

    Args:
        path: the file to make; its folder exists.
        config: what to write.
        start: the first row.
        stop: the row after the last one.
    """
    info = {"info": {"features": config.features}}
    fields = [pa.field(name, _arrow_type(feature)) for name, feature in config.features.items()]
    schema = pa.schema(fields, metadata={"huggingface": json.dumps(info)})
    floats = [
        f"{name}.list.element"
        for name, feature in config.features.items()
        if feature["_type"] == "Sequence"
        and feature["feature"].get("dtype") in ("float16", "float32")
    ]
    labels = [name for name, feature in config.features.items() if feature["_type"] == "ClassLabel"]
    with pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        use_dictionary=labels,
        use_byte_stream_split=floats,
        write_page_index=True,
    ) as writer:
        for first, last in _groups(start, stop, config.group_rows):
            columns = config.read(first, last)
            arrays = [
                _arrow_array(feature, columns[name]) for name, feature in config.features.items()
            ]
            table = pa.Table.from_arrays(arrays, schema=schema)
            writer.write_table(table, row_group_size=last - first)


def _groups(start: int, stop: int, step: int) -> Iterator[tuple[int, int]]:
    for first in range(start, stop, step):
        yield first, min(first + step, stop)


def _arrow_type(feature: Feature) -> pa.DataType:
    kind = feature["_type"]
    if kind == "Image":
        return pa.struct({"bytes": pa.binary(), "path": pa.string()})
    if kind == "ClassLabel":
        return pa.int64()
    if kind == "Sequence":
        return pa.list_(_arrow_type(feature["feature"]))
    return pa.type_for_alias(feature["dtype"])


def _arrow_array(feature: Feature, values: Sequence[Any] | npt.NDArray[Any]) -> pa.Array:
    kind = _arrow_type(feature)
    if feature["_type"] == "Image":
        return pa.array([{"bytes": png, "path": None} for png in values], type=kind)
    if feature["_type"] == "Sequence":
        if isinstance(values, np.ndarray) and values.ndim == 2:
            offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
            flat = values.reshape(-1).astype(kind.value_type.to_pandas_dtype(), copy=False)
            return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat), type=kind)
        rows = [np.asarray(row).reshape(-1) for row in values]
        offsets = np.cumsum([0, *(len(row) for row in rows)]).astype(np.int32)
        flat = np.concatenate(rows).astype(kind.value_type.to_pandas_dtype())
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat), type=kind)
    return pa.array(values, type=kind)
