"""Trainings that make up the measurement of a use: units in files, found again by a later call.

Shape suffixes: N images, K classes, C channels, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distill_datasets.evaluation.contestants import Target
from distill_datasets.evaluation.protocol import Evaluate
from distill_datasets.evaluation.trials import dealt
from distill_datasets.files.artifacts import intact, read_record, write_record
from distill_datasets.models.architecture import Architecture
from distill_datasets.optimizers import Adam
from distill_datasets.runtime.processes import Run
from distill_datasets.training.examples import Stored

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.real import RealData

HALF_BYTES = 2
"""Of a share of a soft label, kept as float16."""


def measured(
    run: Run, stage: str, folder: Path, units: Mapping[str, Callable[[], dict[str, Any]]]
) -> dict[str, dict[str, Any]]:
    """What every unit finds, by its name; those that lie in the folder are not done again."""

    def one(name: str) -> None:
        path = folder / f"{name}.json"
        if intact(path, read_record) is None:
            write_record(path, units[name]())

    dealt(run, stage, list(units), one)
    return {name: read_record(folder / f"{name}.json") for name in units}


def kept_bytes(target: Target) -> int:
    """What a memory of the whole set takes: raw 8-bit values, labels of 16 bits or a class number.

    A set that is cut from posters, or drawn from numbers, is kept as these.
    """
    budget, manifest = target.budget, target.manifest
    c, h, w = manifest["input"]["shape"]
    count, classes = budget["examples"], len(manifest["classes"])
    if "numbers" in budget:
        images = int(budget["number_bytes"])
    elif "poster" in manifest["configs"]:
        images = int(budget["pixels"]) * c
    else:
        images = count * c * h * w
    labels = (
        int(budget["label_values"]) * HALF_BYTES if target.soft else count * label_bytes(classes)
    )
    return images + labels


def label_bytes(classes: int) -> int:
    """Of the number of a class."""
    return math.ceil(math.log2(max(2, classes)) / 8)


def real_per_class(target: Target, real: RealData) -> int:
    """How many real images of each class fit the bytes of the whole set; one at the least."""
    shape = real.shape
    one = shape.c * shape.h * shape.w + label_bytes(shape.k)
    return max(1, kept_bytes(target) // (one * shape.k))


def real_rows(real: RealData, rows_N: Tensor) -> Stored:
    """Training images of these rows in 8 bits, with their classes."""
    images_NCHW = real.train.images_NCHW[rows_N.to(real.train.images_NCHW.device)]
    labels_N = real.train.labels_N
    targets_NK = torch.eye(real.shape.k, device=labels_N.device)[
        labels_N[rows_N.to(labels_N.device)]
    ]
    return Stored(images_NCHW.to(labels_N.device), targets_NK, real.normalization.input_space)


def training(network: Architecture, steps: int, batch: int = 64, lr: float = 0.003) -> Evaluate:
    """How every network of a use is trained: Adam, the step size falling to zero by a cosine."""
    return Evaluate(
        network=network,
        batch=batch,
        optimizer=Adam(lr=lr),
        schedule="cosine",
        steps=steps,
        students=1,
        beyond=None,
    )
