"""Parquet files that every `datasets` from 3.0 on opens, with bytes that depend on content alone.

`datasets` 4 renamed `Sequence` to `List`, and what it writes itself cannot be opened by `datasets`
3. The features are therefore spelled the old way, here in the file and in the card, which every
version reads. Floats are flat lists: nested lists take 30 to 50 times longer to read.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Feature = dict[str, Any]
Columns = Mapping[str, Sequence[Any]]

IMAGE: Feature = {"_type": "Image"}
TEXT: Feature = {"dtype": "string", "_type": "Value"}
INTEGER: Feature = {"dtype": "int64", "_type": "Value"}

_ROWS_PER_GROUP = 1000
_BYTES_PER_GROUP = 64 << 20


def class_label(names: Sequence[str]) -> Feature:
    """An integer that stands for one of these names."""
    return {"names": list(names), "_type": "ClassLabel"}


def numbers(dtype: str, length: int | None = None) -> Feature:
    """A flat list of `float32` or `int32`, of fixed length where every row has the same."""
    feature: Feature = {"_type": "Sequence", "feature": {"dtype": dtype, "_type": "Value"}}
    return feature if length is None else {**feature, "length": length}


@dataclass(frozen=True)
class Config:
    """One configuration of a published dataset, read in pieces so that it never lies in memory.

    `read(start, stop)` gives the columns of some rows: PNG bytes for an image, one sequence of
    numbers per row for a list.
    """

    name: str
    folder: str
    features: dict[str, Feature]
    rows: int
    row_bytes: int
    read: Callable[[int, int], Columns]

    @property
    def path(self) -> str:
        """Where the rows lie in the published folder."""
        return f"{self.folder}/train-00000-of-00001.parquet"


def write_parquet(path: Path, config: Config) -> None:
    """Write all rows of `config`; equal content gives equal bytes.

    Args:
        path: the file to make; its folder exists.
        config: what to write.
    """
    info = {"info": {"features": config.features}}
    fields = [pa.field(name, _arrow_type(feature)) for name, feature in config.features.items()]
    schema = pa.schema(fields, metadata={"huggingface": json.dumps(info)})
    floats = [
        f"{name}.list.element"
        for name, feature in config.features.items()
        if feature["_type"] == "Sequence" and feature["feature"]["dtype"] == "float32"
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
        for start, stop in _groups(config):
            columns = config.read(start, stop)
            arrays = [
                _arrow_array(feature, columns[name]) for name, feature in config.features.items()
            ]
            table = pa.Table.from_arrays(arrays, schema=schema)
            writer.write_table(table, row_group_size=stop - start)


def _groups(config: Config) -> Iterator[tuple[int, int]]:
    """Ranges of rows, each small enough to be held in memory and fetched alone by a viewer."""
    step = max(1, min(_ROWS_PER_GROUP, _BYTES_PER_GROUP // max(1, config.row_bytes)))
    for start in range(0, config.rows, step):
        yield start, min(start + step, config.rows)


def _arrow_type(feature: Feature) -> pa.DataType:
    kind = feature["_type"]
    if kind == "Image":
        return pa.struct({"bytes": pa.binary(), "path": pa.string()})
    if kind == "ClassLabel":
        return pa.int64()
    if kind == "Sequence":
        return pa.list_(pa.type_for_alias(feature["feature"]["dtype"]))
    return pa.type_for_alias(feature["dtype"])


def _arrow_array(feature: Feature, values: Sequence[Any]) -> pa.Array:
    kind = _arrow_type(feature)
    if feature["_type"] == "Image":
        return pa.array([{"bytes": png, "path": None} for png in values], type=kind)
    if feature["_type"] == "Sequence":
        rows = [np.asarray(row).reshape(-1) for row in values]
        offsets = np.cumsum([0, *(len(row) for row in rows)]).astype(np.int32)
        flat = np.concatenate(rows).astype(feature["feature"]["dtype"])
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat), type=kind)
    return pa.array(values, type=kind)
