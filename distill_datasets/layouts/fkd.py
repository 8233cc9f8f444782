"""Soft labels of views as FKD and SRe2L save them: a file for every batch of every epoch.

`epoch_E/batch_B.tar`, which torch.save wrote and which is no tar, has a list of six: crops as
shares (top, left, height, width) of every view, whether each is mirrored, the permutation of the
views that are mixed in, their share, the box of CutMix in pixels as (top, left, bottom, right), and
the teacher's logits. Which image a view shows stands nowhere: the batches follow the RandomSampler
of torch with the seed 42 over the images sorted by their paths, epoch after epoch.

Source: FKD (arXiv:2112.01528), SRe2L (arXiv:2306.13092).

Shape suffixes: N images, B views of a batch, K classes.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import RandomSampler

from distill_datasets.errors import ArtifactError
from distill_datasets.export.content import ViewLabels
from distill_datasets.files.parquet import Config
from distill_datasets.files.pickled import read_pickled
from distill_datasets.soft_labels.records import Columns
from distill_datasets.stages.relabel import feature_of
from distill_datasets.views.recorded import Views
from distill_datasets.views.relabel import Relabel

if TYPE_CHECKING:
    from torch import Tensor

SEED = 42
"""Of the sampler, in the authors' code."""
CHANCE = 1.5
"""Times as often as by chance a teacher has to name a class that a view shows."""
KEPT_BATCHES = 4


@dataclass(frozen=True)
class RecordedLabels:
    """Labels of views, ready to be published, and how the views were drawn."""

    labels: ViewLabels
    relabel: Relabel
    files: list[Path]
    notes: list[str]


def read_fkd(folder: Path, images: int, size: tuple[int, int], labels_N: Tensor) -> RecordedLabels:
    """The labels of all views of some images.

    Args:
        folder: that of the epochs.
        images: how many there are.
        size: their height and width in pixels.
        labels_N: their classes.

    Raises:
        ArtifactError: a batch is missing or damaged, they are of other images, or in another order.
    """
    epochs = _epochs(folder)
    sizes = [len(_batch(path, size)[0]) for path in epochs[0]]
    if sum(sizes) != images:
        raise ArtifactError(
            f"{folder}: labels of {sum(sizes)} views in an epoch for {images} images, expected one "
            "for each; are they of these images?"
        )
    reader = _BatchFiles(epochs, sizes, images, size)
    classes = reader.classes
    checked = min(len(epochs), 2) * images
    agreed = _agreement(reader.read(0, checked), labels_N)
    expected = CHANCE * min(1.0, 2 / int(labels_N.max() + 1))
    if agreed < min(expected, 0.9):
        raise ArtifactError(
            f"{folder}: the teacher names a class that the view shows for {100 * agreed:.0f} % of "
            "the views, as often as by chance: they were made of other images, or in another order "
            f"than torch's RandomSampler with the seed {SEED} gives"
        )
    mix = reader.mix
    relabel = Relabel(epochs=len(epochs), batch=max(2, sizes[0]), mix=mix)
    label_bytes = 2 * classes + 74
    count = len(epochs) * images
    first = reader.read(0, 1)
    features = {name: feature_of(values) for name, values in first.items()}
    config = Config("relabel", "relabel", features, count, label_bytes, reader.read)
    facts = {
        "epochs": len(epochs),
        "batch": sizes[0],
        "mix": mix,
        "store": "logits",
        "teacher": "unknown",
        "teacher_agrees": round(agreed, 4),
    }
    labels = ViewLabels(config, None, count, count * label_bytes, {}, facts)
    note = f"labels of {len(epochs)} views of every image, in the order of the sampler of FKD"
    return RecordedLabels(labels, relabel, [path for each in epochs for path in each], [note])


def is_fkd(folder: Path) -> bool:
    """Whether a folder holds labels of views, epoch by epoch."""
    return (folder / "epoch_0").is_dir()


def _epochs(folder: Path) -> list[list[Path]]:
    """The files of every epoch, in the order of their batches."""
    if not is_fkd(folder):
        raise ArtifactError(
            f"{folder}: no folder epoch_0 in it; expected epoch_0, epoch_1, ... with a "
            "batch_0.tar, batch_1.tar, ... in each, as FKD and SRe2L save labels of views"
        )
    count = len(list(folder.glob("epoch_*")))
    found = []
    for epoch in range(count):
        own = folder / f"epoch_{epoch}"
        numbers = sorted(
            int(match[1])
            for path in own.glob("batch_*.tar")
            if (match := re.fullmatch(r"batch_(\d+)\.tar", path.name))
        )
        if not numbers or numbers != list(range(len(numbers))):
            raise ArtifactError(
                f"{own}: has the batches {numbers[:5]}..., expected 0 to the last without a gap; "
                "copy the missing ones"
            )
        found.append([own / f"batch_{number}.tar" for number in numbers])
        if len(numbers) != len(found[0]):
            raise ArtifactError(
                f"{own}: has {len(numbers)} batches, and epoch_0 {len(found[0])}; copy the missing "
                "ones"
            )
    return found


def _batch(path: Path, size: tuple[int, int]) -> tuple[Any, ...]:
    """Crops, flips, permutation, share, box and logits of a batch."""
    expected = "a list of crops, flips, permutation, share, box and logits"
    content = read_pickled(path, expected)
    if not isinstance(content, list | tuple) or len(content) != 6:
        raise ArtifactError(f"{path}: got a {type(content).__name__}, expected {expected}")
    crop_B4, flip_B, mixed_B, share, box, logits_BK = content
    shapes = [getattr(each, "shape", ()) for each in (crop_B4, flip_B, logits_BK)]
    count = len(crop_B4) if shapes[0] else 0
    good = (
        tuple(shapes[0]) == (count, 4)
        and tuple(shapes[1]) == (count,)
        and len(shapes[2]) == 2
        and len(logits_BK) == count > 0
        and (mixed_B is None or sorted(mixed_B.tolist()) == list(range(count)))
        and bool(logits_BK.float().isfinite().all())
    )
    if not good:
        raise ArtifactError(
            f"{path}: crops, flips, permutation and logits do not belong together: shapes "
            f"{[tuple(shape) for shape in shapes]}"
        )
    if box is not None and (
        len(box) != 4 or max(box[0], box[2]) > size[0] or max(box[1], box[3]) > size[1]
    ):
        raise ArtifactError(
            f"{path}: a box of CutMix at {list(map(int, box))} in images of {size[0]} x {size[1]} "
            "px; labels of views of another size cannot be replayed"
        )
    return crop_B4, flip_B, mixed_B, share, box, logits_BK


class _BatchFiles:
    """The rows of `relabel`, batch by batch; a few batches are held at a time."""

    def __init__(
        self, epochs: list[list[Path]], sizes: list[int], images: int, size: tuple[int, int]
    ) -> None:
        self._epochs, self._images, self._size = epochs, images, size
        self._starts = np.cumsum([0, *sizes]).tolist()
        # the same generator goes on from epoch to epoch
        generator = torch.Generator().manual_seed(SEED)
        sampler = RandomSampler(range(images), generator=generator)
        self._orders = [torch.tensor(list(sampler), dtype=torch.int32) for _ in epochs]
        self._columns = functools.lru_cache(maxsize=KEPT_BATCHES)(self._of_batch)
        _, _, mixed_B, _, box, logits_BK = _batch(epochs[0][0], size)
        self.classes = int(logits_BK.shape[1])
        self.mix: Any = "none" if mixed_B is None else "mixup" if box is None else "cutmix"

    def read(self, start: int, stop: int) -> Columns:
        """The columns of some records."""
        parts = []
        for epoch in range(start // self._images, -(-stop // self._images)):
            for batch, first in enumerate(self._starts[:-1]):
                at = epoch * self._images + first
                length = self._starts[batch + 1] - first
                low, high = max(start - at, 0), min(stop - at, length)
                if low < high:
                    columns = self._columns(epoch, batch)
                    parts.append({name: values[low:high] for name, values in columns.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _of_batch(self, epoch: int, batch: int) -> Columns:
        path, start = self._epochs[epoch][batch], self._starts[batch]
        crop_B4, flip_B, mixed_B, share, box, logits_BK = _batch(path, self._size)
        count = self._starts[batch + 1] - start
        if len(crop_B4) != count or logits_BK.shape[1] != self.classes:
            raise ArtifactError(
                f"{path}: {len(crop_B4)} views of {logits_BK.shape[1]} classes, expected {count} "
                f"of {self.classes} as in epoch_0"
            )
        image_B = self._orders[epoch][start : start + count]
        other_B = torch.arange(count) if mixed_B is None else mixed_B.long()
        box_B4 = torch.zeros(count, 4, dtype=torch.int32)
        share_B = torch.ones(count)
        if box is not None:
            box_B4[:] = torch.tensor([int(side) for side in box], dtype=torch.int32)
        elif mixed_B is not None:
            share_B[:] = float(share)
        crop_B4, flip_B = crop_B4.float(), flip_B.bool()
        views = Views(
            image_B,
            crop_B4,
            flip_B,
            image_B[other_B],
            crop_B4[other_B],
            flip_B[other_B],
            box_B4,
            share_B,
            torch.full((count,), -1, dtype=torch.int32),
        )
        columns = {name: values.numpy() for name, values in views.columns().items()}
        said = {
            "epoch": np.full(count, epoch, dtype=np.int32),
            "batch": np.full(count, batch, dtype=np.int32),
        }
        return {**said, **columns, "logits": logits_BK.half().numpy()}


def _agreement(columns: Columns, labels_N: Tensor) -> float:
    """How often the teacher names a class that a view shows."""
    named = columns["logits"].astype(np.float32).argmax(axis=1)
    labels = labels_N.numpy()
    shown = (labels[columns["image"]] == named) | (labels[columns["partner"]] == named)
    return float(shown.mean())
