"""The `.npz` of RFAD (github.com/yolky/RFAD): images, labels for a regression, and their scale.

`images` are (N, C, H, W) in the space that students see. `labels` are (N, K) targets of a kernel
regression: one-hot minus 1 / K, or learned from there. `k` is the logarithm of the factor that
makes logits of what the regression predicts; it is 0 where it was not learned.

Shape suffixes: N training examples, K classes, C channels, H W pixels.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from distill_datasets.errors import ArtifactError
from distill_datasets.layouts.outside import (
    SUM_TOLERANCE,
    Outside,
    checked_classes,
    checked_images,
    checked_shares,
)

if TYPE_CHECKING:
    from torch import Tensor

NPZ = "npz"
_MOST_EXPONENT = 100.0
"""A factor of exp(k) with a k beyond it is infinite in float32."""


def is_npz(path: Path) -> bool:
    """Whether a file is called as archives of numpy are."""
    return path.is_file() and path.suffix == ".npz"


def read_npz(path: Path, classes: int | None) -> Outside:
    """What RFAD saved.

    Args:
        path: the file.
        classes: how many there are; None: as the labels tell.

    Raises:
        ArtifactError: the file is damaged or another, or holds what cannot be trained on.
    """
    arrays = _arrays(path)
    absent = [name for name in ("images", "labels") if name not in arrays]
    if absent:
        raise ArtifactError(
            f"{path}: no array {absent[0]!r} among {', '.join(arrays) or 'none'}; expected images "
            "(images, channels, height, width), labels, and k where it was learned"
        )
    images_NCHW = checked_images(torch.from_numpy(arrays["images"].copy()), str(path))
    labels = torch.from_numpy(arrays["labels"].copy())
    scale = _scalar(arrays.get("k"))
    notes = list[str]()
    if labels.ndim == 1:
        targets_NK = checked_classes(labels, len(images_NCHW), classes, str(path))
    elif labels.ndim == 2:
        shares_NK, notes = _shares(labels.float(), scale)
        targets_NK = checked_shares(shares_NK, len(images_NCHW), classes, str(path))
    else:
        raise ArtifactError(
            f"{path}: labels of the shape {tuple(labels.shape)}, expected a class for every image, "
            "or a row of all classes"
        )
    said = {name: _scalar(arrays.get(name)) for name in ("k", "jit", "valid_loss", "best_iter")}
    facts = {name: value for name, value in said.items() if value is not None}
    is_rfad = "jit" in facts and labels.ndim == 2
    return Outside(
        NPZ,
        images_NCHW,
        targets_NK,
        None,
        [path],
        method="RFAD" if is_rfad else None,
        facts=facts,
        notes=notes,
        whitened="RFAD whitens color images (ZCA)"
        if is_rfad and len(images_NCHW[0]) == 3
        else None,
    )


def _shares(labels_NK: Tensor, scale: float | None) -> tuple[Tensor, list[str]]:
    """Targets of a regression as shares of the classes, and what was done."""
    shifted_NK = labels_NK + 1 / labels_NK.shape[1]
    sums_N = labels_NK.sum(dim=1)
    if bool(((shifted_NK - shifted_NK.round()).abs() < SUM_TOLERANCE).all()) and bool(
        (sums_N.abs() < SUM_TOLERANCE).all()
    ):
        return shifted_NK.round(), ["labels were one-hot minus 1 / K: 1 / K was added"]
    if bool((labels_NK >= 0).all()) and bool(((sums_N - 1).abs() < SUM_TOLERANCE).all()):
        return labels_NK, []
    if scale is not None and 0 < scale < _MOST_EXPONENT:
        return (labels_NK * float(np.exp(scale))).softmax(dim=1), [
            "labels were learned targets of a regression: softmax(exp(k) label), as its loss has it"
        ]
    positive_NK = shifted_NK.clamp(min=0)
    return positive_NK / positive_NK.sum(dim=1, keepdim=True).clamp(min=1e-12), [
        "labels were learned targets of a regression without a scale: 1 / K was added, what is "
        "below 0 became 0, and rows were scaled to the sum 1"
    ]


def _arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ArtifactError(f"{path}: holds one array, expected several, saved by np.savez")
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, KeyError) as error:
        pickled = "Object arrays" in str(error) or "pickle" in str(error)
        why = "an array of Python objects, which only running code could read" if pickled else error
        raise ArtifactError(
            f"{path}: cannot be read as an .npz of numpy ({why}); expected plain numbers, saved by "
            "np.savez; download it again, or save its arrays alone"
        ) from error


def _scalar(value: np.ndarray[Any, Any] | None) -> float | None:
    return float(value) if value is not None and value.size == 1 else None
