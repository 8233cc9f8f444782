"""The stage that asks frozen backbones about all real images, once for every recipe that wants it.

Shards of some thousand images are units: one file each, dealt to processes, found ones are skipped.
At last the main process puts the shards of a split together and computes their moments; the folder
is named by the weights of the backbone and by the source.

Shape suffixes: N rows, B a batch, C channels, H W pixels, D features.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from distill_datasets.data.features import FeatureMoments, Features, moments
from distill_datasets.files.artifacts import (
    done,
    fingerprint,
    holds_rows,
    holds_tensors,
    mark_done,
    open_rows,
    read_tensors,
    write_rows,
    write_tensors,
)
from distill_datasets.models.backbones import Backbone
from distill_datasets.runtime.locks import LOCK, one_run
from distill_datasets.runtime.memory import images_at_once
from distill_datasets.runtime.processes import Run
from distill_datasets.runtime.progress import Bar
from distill_datasets.stages.source import LoadedSource
from distill_datasets.types import Shape

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.models.frozen import FrozenBackbone

logger = logging.getLogger("distill_datasets")

VERSION = 1
SHARD = 1024
"""Images of a unit: half a minute of a core at 96 px."""
SPLITS = ("train", "test")
MOMENTS = "moments.safetensors"


def run_features(backbones: Sequence[Backbone], source: LoadedSource, run: Run) -> None:
    """Put what these backbones see of the source into `source.real.features`.

    Args:
        backbones: those that a recipe names.
        source: what is read.
        run: folder, processes and device; the folder is shared by all recipes.

    Raises:
        RecipeError: a backbone cannot be had.
    """
    for backbone in backbones:
        asked = backbone.load(run.runtime.device)
        folder = (
            run.folder / f"features-{fingerprint([VERSION, asked.fingerprint, source.fingerprint])}"
        )
        there = run.runtime.agreed(_holds(folder))
        with one_run("features", folder / LOCK, run.runtime, needed=not there):
            # another run may have made all of it meanwhile; all decide before one writes
            there = there or run.runtime.agreed(_holds(folder))
            run.runtime.wait()
            if not there:
                _compute(folder, backbone, asked, source, run)
            run.runtime.wait()
        source.real.features[backbone.key] = read_features(folder)
        logger.info(
            "features: %s, %d of each image, in %s",
            backbone.title, source.real.features[backbone.key].train_ND.shape[1], folder,
        )  # fmt: skip


def _holds(folder: Path) -> bool:
    """Whether everything lies there as it was written."""
    rows = [holds_rows(folder / f"{split}.npy") for split in SPLITS]
    return all(rows) and holds_tensors(folder / MOMENTS) and done(folder) is not None


def read_features(folder: Path) -> Features:
    """What the stage has written."""
    train_ND, test_ND = (open_rows(folder / f"{split}.npy") for split in SPLITS)
    return Features(
        train_ND, test_ND, FeatureMoments.from_tensors(read_tensors(folder / MOMENTS)[0])
    )


def _compute(
    folder: Path, backbone: Backbone, asked: FrozenBackbone, source: LoadedSource, run: Run
) -> None:
    images = {"train": source.real.train.images_NCHW, "test": source.real.test.images_NCHW}
    shards = [
        (split, number) for split in SPLITS for number in range(-(-len(images[split]) // SHARD))
    ]
    left = [
        unit
        for unit in run.runtime.mine(len(shards))
        if not holds_rows(_file(folder, *shards[unit]))
    ]
    shown = f"features of {backbone.title}"
    with run.bar(shown, len(left)) as bar, run.runtime.pool(len(shards)) as run_units:

        def work(unit: int) -> None:
            split, number = shards[unit]
            own_NCHW = images[split][number * SHARD : (number + 1) * SHARD]
            _write_shard(_file(folder, split, number), own_NCHW, asked, run.runtime.device, bar)

        run_units(work, left)
    run.runtime.wait()
    if run.runtime.is_main:
        _gather(folder, backbone, source, shards)


@torch.no_grad()
def _write_shard(
    path: Path, images_NCHW: Tensor, asked: FrozenBackbone, device: torch.device, bar: Bar
) -> None:
    side = asked.preprocessing.size
    chunks = torch.split(images_NCHW, images_at_once(Shape(3, side, side, 1), device))
    features_ND = torch.cat([asked(chunk.to(device).float() / 255).cpu() for chunk in chunks])
    write_rows(path, tuple(features_ND.shape), [features_ND], features_ND.dtype)
    bar.advance(1)


def _gather(
    folder: Path, backbone: Backbone, source: LoadedSource, shards: list[tuple[str, int]]
) -> None:
    for split in SPLITS:
        paths = [_file(folder, *shard) for shard in shards if shard[0] == split]
        shapes = [open_rows(path).shape for path in paths]
        rows = sum(shape[0] for shape in shapes)
        write_rows(
            folder / f"{split}.npy",
            (rows, *shapes[0][1:]),
            _each(paths),
            torch.float32,
        )
    labels_N = source.real.train.labels_N.cpu()
    found = moments(open_rows(folder / "train.npy"), labels_N, source.real.shape.k)
    write_tensors(folder / MOMENTS, found.to_tensors())
    mark_done(folder, {"backbone": backbone.model_dump(mode="json")})
    for shard in shards:
        _file(folder, *shard).unlink(missing_ok=True)


def _each(paths: Sequence[Path]) -> Iterator[Tensor]:
    return map(open_rows, paths)


def _file(folder: Path, split: str, number: int) -> Path:
    return folder / f"{split}-{number:05d}.npy"
