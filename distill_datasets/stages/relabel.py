"""The stage that labels views of the distilled images: units (epoch, batch) in files.

A unit is drawn, rendered and labeled as the recipe says, whoever does it. Files of consecutive
units are dealt to processes, appear when they are done, and are skipped when they are there: a run
may be killed at any time and taken up by any number of processes, and no process waits for another
before the end.

Shape suffixes: N images, n those of them that a batch needs, B views, C channels, H W pixels, K
classes, X logits or features.
"""

import threading
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from distill_datasets.errors import ArtifactError, refuse
from distill_datasets.export.content import ViewLabels
from distill_datasets.files.artifacts import (
    DONE,
    done,
    fingerprint,
    holds_tensors,
    mark_done,
    read_note,
    read_record,
    sha256_tensors,
    write_tensors,
)
from distill_datasets.files.parquet import BOOLEAN, Config, Feature, numbers
from distill_datasets.runtime.draws import Draw, draws
from distill_datasets.runtime.processes import Run
from distill_datasets.soft_labels.codes import Code, code_of
from distill_datasets.soft_labels.ensemble import TeacherEnsemble
from distill_datasets.soft_labels.records import Columns, TarBlock, write_shards
from distill_datasets.soft_labels.replay import Pictures
from distill_datasets.stages.squeeze import SqueezedFolder
from distill_datasets.views.recorded import COLUMNS, Views, draw_views, replay
from distill_datasets.views.relabel import Relabel

VERSION = 1
FILE_BYTES = 16 << 20
LEAST_FILES = 64
"""Small sets are cut into so many files, so that many processes have something to do."""
BLOCK_RECORDS = 4096
SHARD_BYTES = 512 << 20


@dataclass(frozen=True)
class Layout:
    """Which units and records lie in which file: known from the recipe alone.

    A unit is a batch of an epoch, a record one view with its label. `images` is the number of views
    of an epoch; `record_bytes` is what a record takes.
    """

    # 40 images in batches of 16, two epochs, two units to a file:
    #
    #   epoch    0                   1
    #   batch    0     1      2      0      1      2
    #   unit     0     1      2      3      4      5      = epoch * batches per epoch + batch
    #   records  0-15  16-31  32-39  40-55  56-71  72-79
    #   file     0            1             2             file_starts: 0, 32, 56, 80
    #
    # The last batch of an epoch has another length than the others, so the first record of a unit
    # is counted by epochs and not by units.

    settings: Relabel
    images: int
    record_bytes: int

    @cached_property
    def batches(self) -> list[tuple[int, int]]:
        """Where the batches of an epoch start and stop."""
        return self.settings.batches(self.images)

    @property
    def units(self) -> int:
        """Number of units."""
        return self.settings.units(self.images)

    @property
    def records(self) -> int:
        """Number of labeled views."""
        return self.first_record(self.units)

    @cached_property
    def files(self) -> list[tuple[int, int]]:
        """The units of every file: its first, and that of the next."""
        unit_bytes = self.settings.batch * self.record_bytes
        step = max(1, min(FILE_BYTES // unit_bytes, -(-self.units // LEAST_FILES)))
        return [(unit, min(unit + step, self.units)) for unit in range(0, self.units, step)]

    @cached_property
    def file_starts(self) -> list[int]:
        """The first record of every file, and after the last one how many there are."""
        return [*(self.first_record(unit) for unit, _ in self.files), self.records]

    def first_record(self, unit: int) -> int:
        """How many records lie before a unit."""
        epoch, batch = divmod(unit, len(self.batches))
        return epoch * self.images + self.batches[batch][0]


@dataclass(frozen=True)
class RelabelFolder:
    """Labels of recorded views, in the files of the stage.

    `facts` say how they were made, as JSON; `constants` is what decoding needs once.
    """

    folder: Path
    layout: Layout
    code: Code
    facts: dict[str, Any]

    @property
    def units(self) -> list[Path]:
        """The files, in the order of their units."""
        return [_file(self.folder, number) for number in range(len(self.layout.files))]

    @property
    def labels(self) -> int:
        """Number of labeled views."""
        return self.layout.records

    @property
    def bytes(self) -> int:
        """What views and labels take before compression."""
        return self.labels * self.layout.record_bytes

    @property
    def constants(self) -> dict[str, Tensor]:
        """What is published once beside the labels."""
        return self.code.constants

    @property
    def in_parquet(self) -> bool:
        """True when they are few enough for a configuration of the dataset."""
        return self.bytes <= self.layout.settings.parquet_below_bytes

    def read(self, start: int, stop: int) -> Columns:
        """The columns of some records, in the order of epochs and batches."""
        parts, starts = list[Columns](), self.layout.file_starts
        for number in range(bisect_right(starts, start) - 1, len(self.layout.files)):
            first, last = max(start, starts[number]), min(stop, starts[number + 1])
            if first >= last:
                break
            path = _file(self.folder, number)
            parts.append(_rows(path, first - starts[number], last - starts[number]))
        order = ["epoch", "batch", *COLUMNS, *self.code.columns]
        return {
            name: np.concatenate([part[name] for part in parts])
            for name in order
            if name in parts[0]
        }

    def config(self) -> Config:
        """The views and labels as the configuration `relabel`."""
        features = {name: feature_of(values) for name, values in self.read(0, 1).items()}
        record_bytes = self.layout.record_bytes
        return Config("relabel", "relabel", features, self.labels, record_bytes, self.read)

    def shards(self, folder: Path) -> list[Path]:
        """Write them as tars and their index into a folder; equal content gives equal bytes."""
        return write_shards(folder, self._blocks(), self.read, SHARD_BYTES)

    def published(self) -> ViewLabels:
        """What the published folder takes, as a configuration or as shards."""
        few = self.in_parquet
        return ViewLabels(
            config=self.config() if few else None,
            shards=None if few else self.shards,
            labels=self.labels,
            bytes=self.bytes,
            constants=self.constants,
            facts=self.facts,
        )

    def _blocks(self) -> list[TarBlock]:
        """Runs of whole batches of an epoch, each a few members of a tar."""
        layout, blocks = self.layout, list[TarBlock]()
        step = max(1, BLOCK_RECORDS // layout.settings.batch)
        for first in range(0, layout.units, len(layout.batches)):
            last = min(first + len(layout.batches), layout.units)  # of the units of an epoch
            for unit in range(first, last, step):
                stop = min(unit + step, last)
                records = (layout.first_record(unit), layout.first_record(stop))
                epoch = first // len(layout.batches)
                blocks.append(TarBlock(epoch, (unit - first, stop - first), records))
        return blocks


def run_relabel(
    settings: Relabel, pictures: Pictures, squeezed: SqueezedFolder, run: Run
) -> RelabelFolder:
    """Label the views that no earlier run has labeled.

    Args:
        settings: the `relabel` section.
        pictures: the distilled images as they are published; may be memory-mapped.
        squeezed: the teachers.
        run: seed, folder, processes and device; files are dealt to its processes and threads.

    Raises:
        RecipeError: the settings do not fit the teachers, or a teacher does not know enough.
        DistillError: a teacher's logits do not fit into float16.
    """
    refuse(squeezed.teacher_problems())
    modules = [squeezed.module(member) for member in range(squeezed.members)]
    refuse(settings.problems(squeezed.shape, len(modules)))
    device, features = run.runtime.device, settings.store == "features"
    ensemble = TeacherEnsemble(modules, settings, squeezed.shape, device, features=features)
    code = code_of(settings.top_k, squeezed.shape.k, ensemble.classifier)
    labeling = _Labeling(settings, pictures, ensemble, code, draws(run.seed, "relabel"), device)
    layout = Layout(settings, pictures.count, labeling.view_bytes + code.label_bytes)
    folder = run.folder / f"relabel-{_identity(settings, pictures, squeezed, run.seed)}"
    # File f belongs to process f modulo the number of processes: no two write the same one, and
    # nobody waits. A file appears by a rename when it is whole, so one that is there is finished,
    # whoever made it.
    mine = run.runtime.mine(len(layout.files))
    left = [number for number in mine if not holds_tensors(_file(folder, number))]
    told = done(folder) is not None
    _label_files(labeling, layout, folder, left, run)
    run.runtime.wait()
    if run.runtime.is_main and not told:
        mark_done(folder, _facts(labeling, layout, squeezed, folder))
    run.runtime.wait()
    return RelabelFolder(folder, layout, code, read_record(folder / DONE))


@dataclass(frozen=True)
class _Labeling:
    """Everything that a file of labels is a function of."""

    settings: Relabel
    pictures: Pictures
    ensemble: TeacherEnsemble
    code: Code
    draw: Draw
    device: torch.device

    def units(self, numbers: range) -> Iterator[dict[str, Tensor]]:
        """Views and labels of some units as columns, unit by unit."""
        batches = self.settings.batches(self.pictures.count)
        for epoch, inside in groupby(numbers, lambda number: number // len(batches)):
            views = self._views(epoch, self.pictures.count)
            for batch in (number % len(batches) for number in inside):
                yield self._unit(epoch, batch, views.at(slice(*batches[batch])))

    def agreement(self, columns: Mapping[str, Tensor]) -> int:
        """Views whose largest logit is the class of their own image."""
        own_B = self.pictures.labels_N[columns["image"].long()]
        return int((self.code.decode(columns).argmax(dim=1) == own_B).sum())

    @property
    def view_bytes(self) -> int:
        """What a view takes without its label, its epoch and batch included."""
        columns = self._views(0, 1).columns().values()
        return 2 * torch.int32.itemsize + sum(column.nbytes for column in columns)

    def _views(self, epoch: int, count: int) -> Views:
        size, groups = self.pictures.size, self.settings.norm_groups
        return draw_views(self.settings, epoch, count, size, self.draw, groups)

    def _unit(self, epoch: int, batch: int, views: Views) -> dict[str, Tensor]:
        needed_nCHW, moved = _needed(self.pictures.images_NCHW, views, self.device)
        rendered_BCHW = replay(needed_nCHW, moved, self.pictures.space)
        labels = self.code.encode(self.ensemble(rendered_BCHW, views.group_B))
        epoch_B, batch_B = (torch.full_like(views.image_B, number) for number in (epoch, batch))
        return {"epoch": epoch_B, "batch": batch_B, **views.columns(), **labels}


def _identity(settings: Relabel, pictures: Pictures, squeezed: SqueezedFolder, seed: int) -> str:
    """What names the folder: all that the bits of labels depend on."""
    space = pictures.space
    pixels = sha256_tensors([pictures.images_NCHW, pictures.labels_N, space.mean_C, space.std_C])
    return fingerprint([VERSION, _deciding(settings), pixels, squeezed.fingerprint, seed])


def _deciding(settings: Relabel) -> dict[str, Any]:
    """The settings that labels depend on, as JSON."""
    return settings.model_dump(mode="json", exclude={"parquet_below_bytes", *settings.kept_apart})


def _label_files(
    labeling: _Labeling, layout: Layout, folder: Path, left: list[int], run: Run
) -> None:
    """Label these files, without a word to any other process."""
    lock = threading.Lock()

    def label(number: int) -> None:
        parts, agreed = list[dict[str, Tensor]](), 0
        for columns in labeling.units(range(*layout.files[number])):
            if run.runtime.stop.asked:
                raise run.runtime.stop.error("relabel: finished files of labels are saved")
            parts.append(columns)
            agreed += labeling.agreement(columns)
            with lock:  # the threads of the pool share one bar
                bar.advance(len(columns["image"]))
        tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        write_tensors(_file(folder, number), tensors, agreed)

    starts = layout.file_starts
    total = sum(starts[number + 1] - starts[number] for number in left)
    with run.bar("relabel", total) as bar, run.runtime.pool(len(layout.files)) as run_files:
        run_files(label, left)


def _facts(
    labeling: _Labeling, layout: Layout, squeezed: SqueezedFolder, folder: Path
) -> dict[str, Any]:
    """How all labels were made, once every file is there, as JSON."""
    # every file says beside its tensors in how many of its views the teachers agree
    agreed = sum(read_note(_file(folder, number)) for number in range(len(layout.files)))
    return {
        **_deciding(labeling.settings),
        "networks": [part.model_dump(mode="json") for part in squeezed.architectures],
        "classes": squeezed.shape.k,
        "images": layout.images,
        "units": layout.units,
        "labels": layout.records,
        "bytes_per_label": labeling.code.label_bytes,
        "bytes_per_view": labeling.view_bytes,
        "teacher_agrees": agreed / layout.records,
        "torch": torch.__version__,
    }


def _needed(images_NCHW: Tensor, views: Views, device: torch.device) -> tuple[Tensor, Views]:
    """The images that some views are of, on the device, and the views with the places there."""
    places = torch.cat([views.image_B, views.partner_B])
    needed_n, place_2B = torch.unique(places, return_inverse=True)
    image_B, partner_B = place_2B.int().chunk(2)
    needed_nCHW = images_NCHW[needed_n.long()].to(device)
    return needed_nCHW, views._replace(image_B=image_B, partner_B=partner_B)


def _rows(path: Path, start: int, stop: int) -> Columns:
    """Some rows of every column of a file."""
    try:
        with safe_open(path, framework="np") as file:
            names = file.keys()
            return {name: file.get_slice(name)[start:stop] for name in names}
    except (FileNotFoundError, SafetensorError) as error:
        raise ArtifactError(
            f"{path}: cannot read these labels ({error}); move the folder away and run again, they "
            "are then made again"
        ) from error


def feature_of(values: np.ndarray[Any, Any]) -> Feature:
    """The type of a column, by its numbers."""
    if values.ndim == 2:
        # Parquet has no narrower integers, and packs them all the same
        dtype = "int32" if values.dtype == np.int16 else str(values.dtype)
        return numbers(dtype, values.shape[1])
    return BOOLEAN if values.dtype == np.bool_ else {"dtype": str(values.dtype), "_type": "Value"}


def _file(folder: Path, number: int) -> Path:
    return folder / f"labels-{number:05d}.safetensors"
