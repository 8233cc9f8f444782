"""The stage that labels views of the distilled images: units (epoch, batch) in files.

A unit is drawn, rendered and labeled as the recipe says, whoever does it. Files of consecutive
units are dealt to processes, appear when they are done, and are skipped when they are there: a run
may be killed at any time and taken up by any number of processes, and no process waits for another
before the end.

Shape suffixes: N images, B views, C channels, H W pixels, K classes.
"""

import threading
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from distill_datasets.errors import ArtifactError, RecipeError
from distill_datasets.export.content import ViewLabels
from distill_datasets.files.artifacts import (
    DONE,
    fingerprint,
    is_done,
    mark_done,
    read_json,
    read_tensors,
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
    """Which units and views lie where: known from the recipe alone.

    A unit is a batch of an epoch; `images` is the number of views of an epoch; `record_bytes` is
    what a view takes with its label.
    """

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
        """The first view of every file, and after the last one how many there are."""
        return [*(self.first_record(unit) for unit, _ in self.files), self.records]

    def first_record(self, unit: int) -> int:
        """How many views lie before a unit."""
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
        """The columns of some views, in the order of epochs and batches."""
        parts = list[Columns]()
        starts = self.layout.file_starts
        for number in range(bisect_right(starts, start) - 1, len(self.layout.files)):
            low, high = max(start, starts[number]), min(stop, starts[number + 1])
            if low >= high:
                break
            rows = _rows(_file(self.folder, number), low - starts[number], high - starts[number])
            parts.append(rows)
        order = ["epoch", "batch", *COLUMNS, *self.code.columns]
        return {
            name: np.concatenate([part[name] for part in parts])
            for name in order
            if name in parts[0]
        }

    def config(self) -> Config:
        """The views and labels as the configuration `relabel`."""
        features = {name: _feature(values) for name, values in self.read(0, 1).items()}
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
        blocks, per_epoch = list[TarBlock](), len(self.layout.batches)
        step = max(1, BLOCK_RECORDS // self.layout.settings.batch)
        for epoch in range(-(-self.layout.units // per_epoch)):
            until = min((epoch + 1) * per_epoch, self.layout.units)
            for unit in range(epoch * per_epoch, until, step):
                stop = min(unit + step, until)
                records = (self.layout.first_record(unit), self.layout.first_record(stop))
                blocks.append(
                    TarBlock(epoch, (unit - epoch * per_epoch, stop - epoch * per_epoch), records)
                )
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
    squeezed.check_teachers()
    shape = squeezed.shape
    modules = [squeezed.module(member) for member in range(squeezed.members)]
    for problem in settings.problems(shape, len(modules)):
        raise RecipeError(problem)
    features = settings.store == "features"
    ensemble = TeacherEnsemble(modules, settings, shape, run.runtime.device, features=features)
    code = code_of(settings.top_k, shape.k, ensemble.classifier)
    count, _, height, width = pictures.images_NCHW.shape
    draw = draws(run.seed, "relabel")
    record = draw_views(settings, 0, count, (height, width), draw).columns()
    record_bytes = 2 * torch.int32.itemsize + sum(
        values[0].numel() * values.itemsize for values in record.values()
    )
    layout = Layout(settings, count, record_bytes + code.label_bytes)
    deciding = settings.model_dump(mode="json", exclude={"parquet_below_bytes"})
    space = pictures.space
    pixels = sha256_tensors([pictures.images_NCHW, pictures.labels_N, space.mean_C, space.std_C])
    identity = fingerprint([VERSION, deciding, pixels, squeezed.fingerprint, run.seed])
    folder = run.folder / f"relabel-{identity}"
    if not is_done(folder):
        labeling = _Labeling(settings, pictures, ensemble, code, draw)
        _label(labeling, layout, folder, run)
        run.runtime.wait()
        if run.runtime.is_main:
            agreed = sum(
                read_tensors(_file(folder, number))[1] for number in range(len(layout.files))
            )
            facts = {
                **deciding,
                "networks": [part.model_dump(mode="json") for part in squeezed.architectures],
                "classes": shape.k,
                "images": count,
                "units": layout.units,
                "labels": layout.records,
                "bytes_per_label": code.label_bytes,
                "bytes_per_view": record_bytes,
                "teacher_agrees": agreed / layout.records,
                "torch": torch.__version__,
            }
            mark_done(folder, facts)
        run.runtime.wait()
    return RelabelFolder(folder, layout, code, read_json(folder / DONE))


@dataclass(frozen=True)
class _Labeling:
    """Everything that a file of labels is a function of."""

    settings: Relabel
    pictures: Pictures
    ensemble: TeacherEnsemble
    code: Code
    draw: Draw

    def unit(self, epoch: int, batch: int, views: Views, device: torch.device) -> dict[str, Tensor]:
        """Views and labels of one batch, as columns."""
        here = _here(self.pictures.images_NCHW, views, device)
        rendered_BCHW = replay(*here, self.pictures.space)
        labels = self.code.encode(self.ensemble(rendered_BCHW, views.group_B))
        where = {
            name: torch.full_like(views.image_B, value)
            for name, value in (("epoch", epoch), ("batch", batch))
        }
        return {**where, **views.columns(), **labels}

    def agreement(self, columns: Mapping[str, Tensor]) -> int:
        """Views whose largest logit is the class of their own image."""
        own_B = self.pictures.labels_N[columns["image"].long()]
        return int((self.code.decode(columns).argmax(dim=1) == own_B).sum())


def _label(labeling: _Labeling, layout: Layout, folder: Path, run: Run) -> None:
    """Label this process's files, without a word to any other process."""
    settings, files, batches = layout.settings, layout.files, layout.batches
    count, _, height, width = labeling.pictures.images_NCHW.shape
    mine = run.runtime.mine(len(files))
    left = [number for number in mine if not _file(folder, number).exists()]
    lock = threading.Lock()

    def label(number: int) -> None:
        columns, agreed, drawn = list[dict[str, Tensor]](), 0, -1
        for unit in range(*files[number]):
            epoch, batch = divmod(unit, len(batches))
            if epoch != drawn:
                groups = settings.norm_groups
                views = draw_views(settings, epoch, count, (height, width), labeling.draw, groups)
                drawn = epoch
            here = views.at(slice(*batches[batch]))
            columns.append(labeling.unit(epoch, batch, here, run.runtime.device))
            agreed += labeling.agreement(columns[-1])
            with lock:
                bar.advance(len(here.image_B))
        tensors = {name: torch.cat([part[name] for part in columns]) for name in columns[0]}
        write_tensors(_file(folder, number), tensors, agreed)

    starts = layout.file_starts
    total = sum(starts[number + 1] - starts[number] for number in left)
    with (
        run.bar("relabel", total) as bar,
        run.runtime.pool(len(files)) as run_units,
    ):
        run_units(label, left)


def _here(images_NCHW: Tensor, views: Views, device: torch.device) -> tuple[Tensor, Views]:
    """The images that some views are of, on the device, and the views with the places there."""
    places = torch.cat([views.image_B, views.partner_B])
    needed_n, at_2B = torch.unique(places, return_inverse=True)
    image_B, partner_B = at_2B.int().chunk(2)
    picked_NCHW = images_NCHW[needed_n.long()].to(device)
    return picked_NCHW, views._replace(image_B=image_B, partner_B=partner_B)


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


def _feature(values: np.ndarray[Any, Any]) -> Feature:
    if values.ndim == 2:
        # Parquet has no narrower integers, and packs them all the same
        dtype = "int32" if values.dtype == np.int16 else str(values.dtype)
        return numbers(dtype, values.shape[1])
    return BOOLEAN if values.dtype == np.bool_ else {"dtype": str(values.dtype), "_type": "Value"}


def _file(folder: Path, number: int) -> Path:
    return folder / f"labels-{number:05d}.safetensors"
