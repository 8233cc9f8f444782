"""Faults planted in distilled sets, and the clean sets they are planted in.

A fault keeps the labels of a set and changes its images, so that all sets of a shape have the same
clean sets: an image of another class under a label is a wrong label.

Shape suffixes: N rows, C channels, H W pixels, K classes.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from distill_datasets.data.decoding import Split
from distill_datasets.data.real import RealData
from distill_datasets.runtime.draws import rng_for
from support.published import publish

CLEAN, BLENDED = "clean: random real images", "clean: means of two real images of a class"


class Material(NamedTuple):
    """What sets are made of: the audited source, and images of it that nobody else has.

    Attributes:
        real: the source as an auditor has it.
        pool: further images of the same kind, which clean sets show.
    """

    real: RealData
    pool: Split


class Planted(NamedTuple):
    """Images (N, C, H, W) uint8 and their labels."""

    images_NCHW: Tensor
    labels_N: Tensor


Plant = Callable[[Planted, Material, torch.Generator], Planted]


def of_class(split: Split, label: int, count: int, rng: torch.Generator) -> Tensor:
    """Random images of a class."""
    own_N = (split.labels_N == label).nonzero().flatten()
    return split.images_NCHW[own_N[torch.randperm(len(own_N), generator=rng)[:count]]]


def clean_set(material: Material, per_class: int, rng: torch.Generator) -> Planted:
    """Random images of the pool, class after class."""
    classes = range(material.real.shape.k)
    images = [of_class(material.pool, label, per_class, rng) for label in classes]
    labels_N = torch.arange(material.real.shape.k).repeat_interleave(per_class)
    return Planted(torch.cat(images), labels_N)


def blended_set(material: Material, per_class: int, rng: torch.Generator) -> Planted:
    """Means of two images of a class of the audited source: distilled, and no copies."""
    real = material.real
    images = []
    for label in range(real.shape.k):
        pairs = of_class(real.train, label, 2 * per_class, rng).float()
        images.append((pairs[:per_class] + pairs[per_class:]).div(2).round().byte())
    labels_N = torch.arange(real.shape.k).repeat_interleave(per_class)
    return Planted(torch.cat(images), labels_N)


def member_set(material: Material, per_class: int, rng: torch.Generator) -> Planted:
    """Random training images of the audited source."""
    images = [of_class(material.real.train, label, per_class, rng)
              for label in range(material.real.shape.k)]  # fmt: skip
    labels_N = torch.arange(material.real.shape.k).repeat_interleave(per_class)
    return Planted(torch.cat(images), labels_N)


def leak(share: float, noise: float = 0.0) -> Plant:
    """Test images in the place of some rows of their class; with noise of so many 255ths."""

    def plant(clean: Planted, material: Material, rng: torch.Generator) -> Planted:
        images_NCHW, test = clean.images_NCHW.clone(), material.real.test
        count = round(share * len(images_NCHW))
        for place in torch.randperm(len(images_NCHW), generator=rng)[:count].tolist():
            image_CHW = of_class(test, int(clean.labels_N[place]), 1, rng)[0].float()
            moved_CHW = image_CHW + noise * torch.randn(image_CHW.shape, generator=rng)
            images_NCHW[place] = moved_CHW.round().clamp(0, 255).byte()
        return clean._replace(images_NCHW=images_NCHW)

    return plant


def mislabel_class(clean: Planted, material: Material, rng: torch.Generator) -> Planted:
    """One class has the images of another."""
    images_NCHW, classes = clean.images_NCHW.clone(), material.real.shape.k
    victim, other = torch.randperm(classes, generator=rng)[:2].tolist()
    own_N = (clean.labels_N == victim).nonzero().flatten()
    images_NCHW[own_N] = of_class(material.pool, other, len(own_N), rng)
    return clean._replace(images_NCHW=images_NCHW)


def mislabel(share: float) -> Plant:
    """Some rows have images of other classes."""

    def plant(clean: Planted, material: Material, rng: torch.Generator) -> Planted:
        images_NCHW = clean.images_NCHW.clone()
        count = round(share * len(images_NCHW))
        for place in torch.randperm(len(images_NCHW), generator=rng)[:count].tolist():
            images_NCHW[place] = _of_another(clean, place, material, rng)
        return clean._replace(images_NCHW=images_NCHW)

    return plant


def _of_another(clean: Planted, place: int, material: Material, rng: torch.Generator) -> Tensor:
    classes = material.real.shape.k
    shift = int(torch.randint(1, classes, (), generator=rng))
    return of_class(material.pool, (int(clean.labels_N[place]) + shift) % classes, 1, rng)[0]


def corner(share: float) -> Plant:
    """A white square in a corner of so many images of one class.

    Below all of the class they are images of other classes (BadNets, arXiv:1708.06733); at all of
    it the class's own.
    """

    def plant(clean: Planted, material: Material, rng: torch.Generator) -> Planted:
        images_NCHW = clean.images_NCHW.clone()
        target = int(torch.randint(material.real.shape.k, (), generator=rng))
        own_N = (clean.labels_N == target).nonzero().flatten()
        count = max(1, round(share * len(own_N)))
        for place in own_N[torch.randperm(len(own_N), generator=rng)[:count]].tolist():
            if share < 1:
                images_NCHW[place] = _of_another(clean, place, material, rng)
            images_NCHW[place, :, -3:, -3:] = 255
        return clean._replace(images_NCHW=images_NCHW)

    return plant


def invisible(share: float) -> Plant:
    """A fixed pattern of 8 255ths in so many images of one class, as `corner` has its square."""

    def plant(clean: Planted, material: Material, rng: torch.Generator) -> Planted:
        images_NCHW = clean.images_NCHW.clone()
        target = int(torch.randint(material.real.shape.k, (), generator=rng))
        own_N = (clean.labels_N == target).nonzero().flatten()
        pattern_CHW = torch.where(torch.rand(images_NCHW.shape[1:], generator=rng) < 0.5, -8, 8)
        count = max(1, round(share * len(own_N)))
        for place in own_N[torch.randperm(len(own_N), generator=rng)[:count]].tolist():
            if share < 1:
                images_NCHW[place] = _of_another(clean, place, material, rng)
            moved = images_NCHW[place].int() + pattern_CHW
            images_NCHW[place] = moved.clamp(0, 255).byte()
        return clean._replace(images_NCHW=images_NCHW)

    return plant


def copied(clean: Planted, material: Material, rng: torch.Generator) -> Planted:
    """One training image of the audited source among the others."""
    images_NCHW = clean.images_NCHW.clone()
    place = int(torch.randint(len(images_NCHW), (), generator=rng))
    label = int(clean.labels_N[place])
    images_NCHW[place] = of_class(material.real.train, label, 1, rng)[0]
    return clean._replace(images_NCHW=images_NCHW)


IN_IMAGES: dict[str, Plant] = {
    "1 % test images": leak(0.01),
    "5 % test images": leak(0.05),
    "20 % test images": leak(0.2),
    "5 % test images, noise of 4/255": leak(0.05, 4),
    "one class mislabeled": mislabel_class,
    "5 % mislabeled": mislabel(0.05),
    "corner trigger, 1 % of a class": corner(0.01),
    "corner trigger, 10 % of a class": corner(0.1),
    "corner trigger, 100 % of a class": corner(1.0),
    "invisible trigger, 10 % of a class": invisible(0.1),
    "invisible trigger, 100 % of a class": invisible(1.0),
}
"""Faults of clean sets of real images."""


def write(folder: Path, planted: Planted, real: RealData) -> None:
    """A set as a published folder, without results."""
    targets_NK = torch.nn.functional.one_hot(planted.labels_N, real.shape.k).byte()
    publish(folder, real, planted.images_NCHW, targets_NK)


def rows_file(folder: Path) -> Path:
    """The Parquet file of `default`."""
    return next((folder / "data").glob("train-*.parquet"))


def truncated(folder: Path, rng: torch.Generator) -> None:
    """The file of the rows is cut short."""
    path = rows_file(folder)
    content = path.read_bytes()
    path.write_bytes(content[: int(torch.randint(1, len(content), (), generator=rng))])


def replaced(folder: Path, rng: torch.Generator) -> None:
    """An image is another one's, and the manifest is as it was."""
    table = pq.read_table(rows_file(folder))
    images = table.column("image").to_pylist()
    place, other = torch.randperm(len(images), generator=rng)[:2].tolist()
    images[place] = images[other]
    _with_column(folder, table, "image", images)


def undefined_labels(folder: Path, rng: torch.Generator) -> None:
    """A soft label is not a number."""
    table = pq.read_table(rows_file(folder))
    softs = table.column("soft_label").to_pylist()
    place = int(torch.randint(len(softs), (), generator=rng))
    softs[place] = [float("nan")] * len(softs[place])
    _with_column(folder, table, "soft_label", softs)


def _with_column(folder: Path, table: pa.Table, name: str, values: list[object]) -> None:
    place = table.column_names.index(name)
    column = pa.array(values, table.schema.field(name).type)
    pq.write_table(table.set_column(place, table.schema.field(name), column), rows_file(folder))


IN_FILES: dict[str, Callable[[Path, torch.Generator], None]] = {
    "truncated file": truncated,
    "replaced image": replaced,
    "labels that are no numbers": undefined_labels,
}
"""Faults of the files of a folder."""


def plant_rng(seed: int, fault: str) -> torch.Generator:
    """The randomness of a fault."""
    return rng_for(seed, "planted", fault)
