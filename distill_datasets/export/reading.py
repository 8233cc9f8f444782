"""A published folder as its users read it.

Shape suffixes: N examples, B a batch, K classes, C channels, H W pixels.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from distill_datasets.data.normalization import InputSpace
from distill_datasets.errors import ArtifactError
from distill_datasets.export.configs import PIXELS, SOFT, VALUES
from distill_datasets.export.content import sibling_of
from distill_datasets.export.folder import read_manifest
from distill_datasets.hub.pinned import library_bars
from distill_datasets.media.image import open_image, to_pixels
from distill_datasets.soft_labels.records import Records, open_shards, open_table
from distill_datasets.training.examples import Stored
from distill_datasets.types import Shape

if TYPE_CHECKING:
    from datasets import Dataset

ROWS_AT_ONCE = 64


def load_rows(folder: Path, config: str) -> "Dataset":
    """One config of a published folder, as `load_dataset` returns it, held in memory."""
    with _loaded(folder, config, in_memory=True) as rows:
        return rows


def read_published(exported: Path, config: str, shape: Shape) -> Stored:
    """The training examples of one config, from plain `load_dataset`.

    Rows are decoded a few at a time, from a file, into the one copy that is returned.
    """
    exact = config == "exact"
    with _loaded(exported, config, in_memory=False) as rows:
        taught = SOFT if SOFT in rows.column_names else VALUES
        flat = "pixel_values" if exact else PIXELS if PIXELS in rows.column_names else None
        images_NCHW, targets_NK = _filled(rows, flat, shape, taught)
    if taught == VALUES:
        # as the source is read: in standard deviations from the mean
        scale = json.loads(load_rows(exported, "recipe")[0]["provenance_json"])["targets"]
        mean_K, std_K = (torch.tensor(scale[key]) for key in ("mean", "std"))
        targets_NK = (targets_NK - mean_K) / std_K
    if exact:
        return Stored(images_NCHW, targets_NK, None, shape.task)
    recipe = load_rows(exported, "recipe")[0]
    space = InputSpace(torch.tensor(recipe["mean"]), torch.tensor(recipe["std"]))
    return Stored(images_NCHW, targets_NK, space, shape.task)


def image_bytes(exported: Path) -> int:
    """What the files of all images of `default` weigh, without their Parquet."""
    sizes = [
        pc.sum(pc.binary_length(pc.struct_field(column, "bytes"))).as_py()
        for path in sorted((exported / "data").glob("train-*.parquet"))
        for column in pq.read_table(path, columns=["image"]).column("image").iterchunks()
    ]
    return sum(sizes)


def poster_bytes(exported: Path, examples_NCHW: Tensor) -> int | None:
    """What the 8-bit pictures of all posters weigh, where the examples are their very crops.

    Args:
        exported: a published folder.
        examples_NCHW: the images of `default`, in 8 bits.

    Returns:
        None where nothing is cut from posters, or a crop is not the example of its place.
    """
    paths = sorted((exported / "poster").glob("train-*.parquet"))
    geometry = json.loads(load_rows(exported, "recipe")[0]["geometry_json"])
    if not paths or not {"crop", "corners_yx"} <= geometry.keys():
        return None
    columns = [pq.read_table(path, columns=["preview"]).column("preview") for path in paths]
    files = [row["bytes"] for column in columns for row in column.to_pylist()]
    (high, wide), corners = geometry["crop"], geometry["corners_yx"]
    channels: Literal[1, 3] = 3 if examples_NCHW.shape[1] == 3 else 1
    posters = [to_pixels(open_image(file), channels, None) for file in files]
    crops = [poster[:, y : y + high, x : x + wide] for poster in posters for y, x in corners]
    same = len(crops) == len(examples_NCHW) and all(
        torch.equal(crop, example) for crop, example in zip(crops, examples_NCHW, strict=True)
    )
    return sum(map(len, files)) if same else None


def has_hard_labels(exported: Path) -> bool:
    """Whether every label of `default` is a class alone."""
    for path in sorted((exported / "data").glob("train-*.parquet")):
        if SOFT not in pq.read_schema(path).names:
            return False
        column = pq.read_table(path, columns=[SOFT]).column(SOFT)
        shares = pc.list_flatten(column)
        # a label that sums to one is a class where every share is nothing or all
        if not pc.all(pc.or_(pc.equal(shares, 0.0), pc.equal(shares, 1.0))).as_py():
            return False
    return True


def published_records(exported: Path, images: int) -> Records:
    """Views and labels of a published folder: held in memory when they are few, else in shards.

    Raises:
        ArtifactError: the folder has none.
    """
    labels = read_manifest(exported)["relabel"]
    if labels is None:
        raise ArtifactError(f"{exported}: has no labels of views; run the recipe again")
    if labels["where"] != "relabel":
        return open_shards(sibling_of(exported), images)
    return open_table(load_rows(exported, "relabel").data.table, images)


@contextmanager
def _loaded(folder: Path, config: str, *, in_memory: bool) -> Iterator["Dataset"]:
    """One config, held in memory or mapped from a file that is gone afterwards.

    The cache is a private folder: `datasets` shares one entry between local folders of one name,
    and would return the rows of the first.
    """
    from datasets import load_dataset

    with tempfile.TemporaryDirectory() as cache, library_bars(shown=False):
        yield load_dataset(
            str(folder), config, split="train", cache_dir=cache, keep_in_memory=in_memory
        )


def _filled(rows: "Dataset", flat: str | None, shape: Shape, taught: str) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W), floats of this shape where they are exact, and their targets (N, K)."""
    images_NCHW, targets_NK = torch.empty(0), torch.empty(0)
    first = 0
    for columns in rows.with_format("numpy").iter(ROWS_AT_ONCE):
        images_BCHW = _pixels(columns) if flat is None else _values(columns[flat], shape)
        targets_BK = torch.tensor(np.stack(columns[taught]), dtype=torch.float32)
        if first == 0:
            images_NCHW = images_BCHW.new_empty((len(rows), *images_BCHW.shape[1:]))
            targets_NK = targets_BK.new_empty((len(rows), *targets_BK.shape[1:]))
        images_NCHW[first : first + len(images_BCHW)] = images_BCHW
        targets_NK[first : first + len(images_BCHW)] = targets_BK
        first += len(images_BCHW)
    return images_NCHW, targets_NK


def _pixels(columns: Mapping[str, Any]) -> Tensor:
    images = torch.tensor(np.stack(columns["image"]), dtype=torch.uint8)
    return images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)


def _values(column: Any, shape: Shape) -> Tensor:  # noqa: ANN401
    values = torch.tensor(np.stack(column), dtype=torch.float32)
    return values.view(-1, shape.c, shape.h, shape.w)
