"""Published folders of given images, for tests that measure them.

Shape suffixes: N images, K classes, C channels, H W pixels.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill_datasets.data.real import RealData
from distill_datasets.data.source import Source, open_source
from distill_datasets.export.content import DisplayPixels
from distill_datasets.export.folder import write_dataset
from distill_datasets.runtime.processes import Run, Runtime
from distill_datasets.stages.source import LoadedSource, load_source
from support.sample_content import bytes_sample


def loaded_digits(folder: Path) -> LoadedSource:
    """The handwritten digits that ship with the package."""
    source = open_source(Source(dataset="embedded:uci-digits"))
    return load_source(source, Run(0, folder, Runtime(), shown=False))


def digits(folder: Path) -> RealData:
    """The same as real images."""
    return loaded_digits(folder).real


def alone(folder: Path, seed: int = 0) -> Run:
    """A run of one process whose students train one after the other."""
    runtime = Runtime()
    runtime.cores = 1
    return Run(seed, folder, runtime, shown=False)


def publish(
    folder: Path,
    real: RealData,
    images_NCHW: Tensor,
    targets_NK: Tensor,
    **changes: Any,  # noqa: ANN401
) -> Path:
    """Write 8-bit images and their labels as a folder that was distilled from a source."""
    space = real.normalization.input_space
    content = dataclasses.replace(
        bytes_sample(),
        class_names=real.class_names,
        images_NCHW=images_NCHW,
        targets_NK=targets_NK,
        originals=DisplayPixels(images_NCHW),
        mean=space.mean_C.tolist(),
        std=space.std_C.tolist(),
        normalization=real.normalization.describe(),
        real_shape=(real.shape.c, real.shape.h, real.shape.w),
        **changes,
    )
    write_dataset(folder, content, None)
    return folder


def some_real(real: RealData, per_class: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random training images of every class, class after class, and their classes."""
    rng = torch.Generator().manual_seed(seed)
    rows = [
        own_N[torch.randperm(len(own_N), generator=rng)[:per_class]] for own_N in real.rows_of_class
    ]
    rows_N = torch.cat(rows)
    return real.train.images_NCHW[rows_N], real.train.labels_N[rows_N]
