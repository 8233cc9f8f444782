"""Export: a published folder in the layouts that other programs read.

What is written is the 8-bit rows as `load_dataset` returns them, their labels and soft labels, and
the numbers by which a student normalizes them.

Shape suffixes: N examples, K classes, C channels, H W pixels.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import webdataset
from PIL import Image

from distill_datasets.errors import RecipeError, did_you_mean
from distill_datasets.export.folder import (
    appearing,
    check_of_classes,
    check_writable,
    read_manifest,
)
from distill_datasets.export.reading import load_rows
from distill_datasets.files.artifacts import write_json

logger = logging.getLogger("distill_datasets")

INFO = "info.json"
SHARD_ROWS = 10_000


class WrittenRows(NamedTuple):
    """What is written.

    Attributes:
        images_NHWC: uint8, or (N, H, W) of gray ones.
        labels_N: the likeliest class of each.
        soft_NK: float32, rows that sum to 1.
        names: of the classes.
        info: where it comes from, and `mean` and `std` of the student's input.
    """

    images_NHWC: np.ndarray
    labels_N: np.ndarray
    soft_NK: np.ndarray
    names: list[str]
    info: dict[str, Any]


def write_layout(folder: Path, layout: str, to: Path) -> Path:
    """Write the rows of a published folder in another layout.

    Args:
        folder: a published folder.
        layout: a name of `WRITTEN`.
        to: a new or empty folder.

    Returns:
        The folder that was written, all of it or nothing.

    Raises:
        RecipeError: no such layout.
        ArtifactError: the folder cannot be read, or `to` cannot be written.
    """
    if layout not in WRITTEN:
        raise RecipeError(f"--layout: got {layout!r}; {did_you_mean(layout, WRITTEN)}")
    check_writable(to)
    rows = _rows(folder)
    with appearing(to.absolute()) as partial:
        WRITTEN[layout](rows, partial)
        write_json(partial / INFO, rows.info)
    return to


def _rows(folder: Path) -> WrittenRows:
    manifest = read_manifest(folder)
    check_of_classes(folder, manifest, "export")
    table = load_rows(folder, "default").with_format("numpy")
    info = {
        "name": manifest["name"],
        "method": manifest["method"],
        "source": manifest["source"]["dataset"],
        "recipe_sha256": manifest["recipe_sha256"],
        "classes": manifest["classes"],
        "mean": manifest["input"]["mean"],
        "std": manifest["input"]["std"],
    }
    return WrittenRows(
        np.stack([np.asarray(image) for image in table["image"]]),
        np.asarray(table["label"], dtype=np.int64),
        np.stack([np.asarray(soft, dtype=np.float32) for soft in table["soft_label"]]),
        manifest["classes"],
        info,
    )


def _imagefolder(rows: WrittenRows, to: Path) -> None:
    """train/CLASS/ROW.png, and the soft labels of all rows, in their order, as an array."""
    folders = class_folders(rows.names)
    for row, (image, label) in enumerate(zip(rows.images_NHWC, rows.labels_N, strict=True)):
        place = to / "train" / folders[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{row:05d}.png")
    np.save(to / "soft_labels.npy", rows.soft_NK)


def _npz(rows: WrittenRows, to: Path) -> None:
    images_NHWC = rows.images_NHWC if rows.images_NHWC.ndim == 4 else rows.images_NHWC[..., None]
    np.savez_compressed(
        to / "rows.npz",
        images=images_NHWC,
        labels=rows.labels_N,
        soft_labels=rows.soft_NK,
        class_names=np.array(rows.names),
    )


def _pt(rows: WrittenRows, to: Path) -> None:
    """A dictionary of tensors, which `torch.load(weights_only=True)` reads."""
    images_NHWC = rows.images_NHWC if rows.images_NHWC.ndim == 4 else rows.images_NHWC[..., None]
    content = {
        "images": torch.from_numpy(images_NHWC).permute(0, 3, 1, 2).contiguous(),
        "labels": torch.from_numpy(rows.labels_N),
        "soft_labels": torch.from_numpy(rows.soft_NK),
        "class_names": rows.names,
        "mean": rows.info["mean"],
        "std": rows.info["std"],
    }
    torch.save(content, to / "rows.pt")


def _webdataset(rows: WrittenRows, to: Path) -> None:
    """Tars of KEY.png, KEY.cls and KEY.soft.npy."""
    for first in range(0, len(rows.labels_N), SHARD_ROWS):
        path = to / f"train-{first // SHARD_ROWS:05d}.tar"
        with webdataset.TarWriter(str(path), mtime=0) as tar:
            for row in range(first, min(first + SHARD_ROWS, len(rows.labels_N))):
                sample = {
                    "__key__": f"{row:08d}",
                    "png": Image.fromarray(rows.images_NHWC[row]),
                    "cls": int(rows.labels_N[row]),
                    "soft.npy": rows.soft_NK[row],
                }
                tar.write(sample)


def class_folders(names: list[str]) -> list[str]:
    """A folder for each class: its name where every system can have such a folder, all different.

    Letters that stand for something in a path become `_`; names that are alike then, or in another
    case, are numbered.
    """
    found, taken = [], set[str]()
    for label, name in enumerate(names):
        plain = re.sub(r'[\x00-\x1f/\\:*?"<>|]', "_", name).strip(". ")[:100] or f"class_{label}"
        if plain.casefold() in taken:
            plain = f"{plain}_{label}"
        taken.add(plain.casefold())
        found.append(plain)
    return found


WRITTEN: dict[str, Callable[[WrittenRows, Path], None]] = {
    "imagefolder": _imagefolder,
    "npz": _npz,
    "pt": _pt,
    "webdataset": _webdataset,
}
"""The layouts by their names."""
