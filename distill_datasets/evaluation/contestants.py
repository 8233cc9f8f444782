"""Who is compared by the standard protocol: sets of images, each in the regimes that it can have.

In HL every image has its class. In SL-1 real images get the labels of the published ones: the i-th
image of a class that of the i-th row of this class, and so on in turns. What differs between two
rows of one regime is therefore the images alone, and what differs between the regimes of one row is
the labels alone.

Shape suffixes: N images, M published rows, B a batch, K classes, C channels, H W pixels.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F

from distill_datasets.errors import ArtifactError
from distill_datasets.evaluation.lossy import Kind, Lossy
from distill_datasets.evaluation.references import (
    Chooses,
    MakeStored,
    Room,
    chosen_in,
    random_real,
    room_for,
    rooms_of,
    stored_references,
)
from distill_datasets.evaluation.taught import Teaching, recorded, views_of
from distill_datasets.export.folder import check_of_classes, read_manifest
from distill_datasets.export.reading import image_bytes, poster_bytes, read_published
from distill_datasets.files.artifacts import canonical_json, fingerprint
from distill_datasets.runtime.draws import Draw, draws
from distill_datasets.training.examples import Examples, Stored, Whole
from distill_datasets.training.rows import ROWS, Regime, ResultRow

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.real import RealData
    from distill_datasets.types import Shape

logger = logging.getLogger("distill_datasets")

RANDOM = "random_rows"
"""The row that stands in the place of the published images, whatever is asked for."""
LOSSY: tuple[Kind, ...] = ("jpeg", "webp", "webp_half")
READ = ("data/", "relabel/", "constants/")
"""Folders of a published dataset whose files decide what students see."""


class StoredBytes(NamedTuple):
    """What a student needs, in bytes as it is stored.

    images: files of the published images or of the posters that they are cut from, and of lossy
        ones; other real images as raw 8-bit values.
    labels: a class number of one or two bytes, or float32 for every class.
    teacher: the weights of what labels while a student trains.
    zca: the whitening matrix.
    decoder: the geometry that cuts rows from posters; other rows are images.
    """

    images: int
    labels: int
    teacher: int = 0
    zca: int = 0
    decoder: int = 0

    def as_json(self) -> dict[str, int]:
        """Each of them, and `total`."""
        return {**self._asdict(), "total": sum(self)}


@dataclass(frozen=True)
class Target:
    """A published folder, read once.

    Attributes:
        folder: where it lies.
        manifest: what it says of itself.
        stored: its rows as a student reads them, with the published labels.
        identity: a fingerprint of the files that students read.
        image_bytes: of the files of all images; of posters where the rows are their very crops.
        decoder_bytes: of the geometry that cuts rows from posters, 0 where nothing is cut.
        zca_bytes: of the whitening, 0 where there is none.
    """

    folder: Path
    manifest: dict[str, Any]
    stored: Stored
    identity: str
    image_bytes: int
    decoder_bytes: int
    zca_bytes: int

    @property
    def budget(self) -> dict[str, Any]:
        """Pixels, values and images of what was trained."""
        return dict(self.manifest["budget"])

    @property
    def classes_M(self) -> Tensor:
        """The likeliest class of every row."""
        return self.stored.targets_NK.argmax(dim=1)

    @property
    def soft(self) -> bool:
        """Whether some row has more than a class for its label."""
        return bool((self.stored.targets_NK.max(dim=1).values < 1).any())

    @property
    def hard(self) -> Stored:
        """The same rows with the likeliest class of each for its label."""
        return replace(self.stored, targets_NK=one_hot(self.classes_M, self.stored))

    @property
    def regimes(self) -> list[Regime]:
        """Those in which its rows can be read."""
        return ["HL", "SL-1"] if self.soft else ["HL"]

    def label_bytes(self, regime: Regime) -> int:
        """Of the label of one image."""
        classes = self.stored.targets_NK.shape[1]
        return math.ceil(math.log2(max(2, classes)) / 8) if regime == "HL" else 4 * classes

    def weight(self, regime: Regime, count: int, images: int) -> StoredBytes:
        """What so many images of so many bytes take with their labels."""
        return StoredBytes(images, count * self.label_bytes(regime), zca=self.zca_bytes)

    def own_weight(self, regime: Regime) -> StoredBytes:
        """What the published rows take; labels as they are stored where rows are cut."""
        own = self.weight(regime, self.stored.count, self.image_bytes)
        if self.decoder_bytes and regime == "SL-1":
            own = own._replace(labels=min(own.labels, 4 * self.budget["label_values"]))
        return own._replace(decoder=self.decoder_bytes)


def read_target(folder: Path, real: RealData) -> Target:
    """Read a published folder that shall be measured on a source.

    Raises:
        ArtifactError: it is no published folder, or its images and classes are not the source's.
    """
    manifest = read_manifest(folder)
    check_of_classes(folder, manifest, "evaluate")
    given, shape = manifest["input"], real.shape
    expected = [shape.c, shape.h, shape.w]
    if list(given["shape"]) != expected:
        size = f"{given['shape'][1]} x {given['shape'][2]} px, {given['shape'][0]} channels"
        raise ArtifactError(
            f"{folder}: its images have {size}, the source's {shape.h} x {shape.w} px, {shape.c} "
            "channels; read the source with the same source.resolution and source.mode"
        )
    kind = given["normalization"]["kind"]
    if kind != real.normalization.kind:
        raise ArtifactError(
            f"{folder}: its images are seen through normalization {kind}, the source's through "
            f"{real.normalization.kind}; read the source with source.normalization: {kind}"
        )
    stored = read_published(folder, "default", shape)
    targets_NK = in_order(stored.targets_NK, manifest["classes"], real.class_names, folder)
    # one input space for real and distilled pixels: what differs is the images alone
    space = real.normalization.input_space
    stored = Stored(stored.images_NCHW, targets_NK, space)
    posters = poster_bytes(folder, stored.images_NCHW) if "poster" in manifest["configs"] else None
    decoder = 0 if posters is None else len(canonical_json(manifest["geometry"]))
    zca = given.get("constants") if kind == "zca" else None
    return Target(
        folder,
        manifest,
        stored.to(real.train.labels_N.device),
        identity_of(manifest),
        image_bytes(folder) if posters is None else posters,
        decoder,
        0 if zca is None else int(zca["bytes"]),
    )


def identity_of(manifest: dict[str, Any]) -> str:
    """A fingerprint of the files of a published folder that students read."""
    files = [file for file in manifest["files"] if file["path"].startswith(READ)]
    return fingerprint([[file["path"], file["sha256"]] for file in files])


def in_order(
    targets_NK: Tensor, own: Sequence[str], expected: Sequence[str], folder: Path
) -> Tensor:
    """Labels with the classes in the order of the source.

    Raises:
        ArtifactError: there are fewer or more classes.
    """
    if len(own) != len(expected):
        raise ArtifactError(
            f"{folder}: has {len(own)} classes, the source {len(expected)}; give the source that "
            "it was distilled from"
        )
    if list(own) == list(expected):
        return targets_NK
    if sorted(own) == sorted(expected):
        return targets_NK[:, [list(own).index(name) for name in expected]]
    logger.warning(
        "%s: its classes are not called like the source's (%s, ...; %s, ...); they are taken in "
        "order", folder, own[0], expected[0],
    )  # fmt: skip
    return targets_NK


def one_hot(labels_N: Tensor, like: Stored) -> Tensor:
    """Labels of one class each, as many classes as there."""
    return F.one_hot(labels_N, like.targets_NK.shape[1]).float()


def with_labels_of(stored: Stored, published: Stored) -> Stored:
    """Images of hard labels with the published label of a row of their class, row after row.

    Where no row is of a class, its images keep the class.
    """
    labels_N, rows_M = stored.targets_NK.argmax(dim=1), published.targets_NK.argmax(dim=1)
    targets_NK = stored.targets_NK.clone()
    for label in range(published.targets_NK.shape[1]):
        own_N = (labels_N == label).nonzero().flatten()
        rows = (rows_M == label).nonzero().flatten()
        if len(rows):
            turn_N = torch.arange(len(own_N), device=rows.device) % len(rows)
            targets_NK[own_N] = published.targets_NK[rows[turn_N]].to(targets_NK)
    return replace(stored, targets_NK=targets_NK)


def one_for_every_row(real: RealData, classes_M: Tensor, draw: Draw) -> Stored:
    """A random real image of the class of every row, in the order of the rows.

    No image comes twice before all of its class have come.
    """
    rng, rows_M = draw("random_rows"), torch.empty(len(classes_M), dtype=torch.long)
    wanted_M = classes_M.cpu()
    for label, own_N in enumerate(real.rows_of_class):
        places = (wanted_M == label).nonzero().flatten()
        order_N = own_N.cpu()[torch.randperm(len(own_N), generator=rng)]
        rows_M[places] = order_N[torch.arange(len(places)) % len(order_N)]
    images_BCHW, targets_BK = real.select(rows_M.to(real.train.labels_N.device))
    return Stored(images_BCHW, targets_BK, input_space=None)


@dataclass(frozen=True)
class Contestant:
    """A row of the table: a set of images in a regime.

    Attributes:
        row: whose images.
        regime: what a student reads beside them.
        images: how many there are.
        size: height and width of each as it is stored, in pixels.
        bytes: what is stored.
        make: what one student trains on, given the randomness of the images.
        tuning: the same while settings are chosen, of the source without what is held out.
    """

    row: ResultRow
    regime: Regime
    images: int
    size: tuple[int, int]
    bytes: StoredBytes
    make: Callable[[Draw], Examples]
    tuning: Callable[[Draw], Examples]

    @property
    def key(self) -> str:
        """`row/regime`."""
        return f"{self.row.name}/{self.regime}"

    @property
    def views(self) -> bool:
        """Whether students see views, to whose pixels the labels belong."""
        return self.regime in ("SL-R", "SL+KD")


class _Images(NamedTuple):
    """A set of real images: how many, how large, what they weigh, and how they are drawn."""

    room: Room
    bytes: int
    make: MakeStored
    tuning: MakeStored


def contestants(
    target: Target,
    real: RealData,
    rest: RealData,
    seed: int,
    asked: Sequence[str],
    choices: Mapping[str, Chooses],
    teaching: Mapping[Regime, Teaching] | None = None,
) -> list[Contestant]:
    """Every row in every regime, in the order of the table of rows.

    Args:
        target: what is measured.
        real: the source.
        rest: the source without the training images that are held out.
        seed: of the run.
        asked: the names of the rows beside the published one and those drawn for its labels.
        choices: by the row, what chooses among the images of `rest`.
        teaching: the teachers of SL-R, beside published views, and of SL+KD.
    """
    teaching = teaching or {}
    found = list[Contestant]()
    equal = _equal_sets(target, real, rest, seed, choices)
    sets: dict[Regime, dict[str, _Images]] = {}
    for regime in target.regimes:
        every = equal | _budgeted_sets(target, regime, real, rest, seed, asked)
        sets[regime] = {
            name: images for name, images in every.items() if name in asked or name == RANDOM
        }
    for name, row in ROWS.items():
        if name == "full" and name in asked:
            found.append(_whole(target, row, real, rest))
        for regime in target.regimes:
            if name == "default":
                found.append(_published(target, row, regime, real))
            elif name in sets[regime]:
                found.append(_of_images(target, row, regime, sets[regime][name]))
        for regime, teachers in teaching.items():
            if name == "default":
                found.append(_of_views(target, row, regime, teachers, real, rest))
            elif name == RANDOM or (regime == "SL+KD" and name in sets["HL"]):
                images = sets["HL"][name]
                found.append(_taught(target, row, regime, images, teachers, real, rest))
    return found


def _of_views(
    target: Target,
    row: ResultRow,
    regime: Regime,
    teachers: Teaching,
    real: RealData,
    rest: RealData,
) -> Contestant:
    """The published images in views: with published labels, or with those of a teacher."""
    plain = _published(target, row, "HL", real)
    if regime == "SL-R":
        relabel = views_of(target.folder)
        assert relabel is not None, "the regime is one of published views"
        make = tuning = recorded(target.folder, relabel, real)
        weight = plain.bytes._replace(labels=int(target.manifest["relabel"]["bytes"]))
    else:
        images = _always(target.hard)
        make, tuning = teachers.of(images, real), teachers.of(images, rest)
        weight = plain.bytes._replace(labels=0, teacher=teachers.bytes)
    return replace(plain, regime=regime, bytes=weight, make=make, tuning=tuning)


def _taught(
    target: Target,
    row: ResultRow,
    regime: Regime,
    images: _Images,
    teachers: Teaching,
    real: RealData,
    rest: RealData,
) -> Contestant:
    """Real images in views with the labels of the teachers."""
    plain = _of_images(target, row, "HL", images)
    labels = int(target.manifest["relabel"]["bytes"]) if regime == "SL-R" else 0
    teacher = teachers.bytes if regime == "SL+KD" else 0
    weight = plain.bytes._replace(labels=labels, teacher=teacher)
    make, tuning = teachers.of(images.make, real), teachers.of(images.tuning, rest)
    return replace(plain, regime=regime, bytes=weight, make=make, tuning=tuning)


def _always(stored: Stored) -> MakeStored:
    return lambda draw: stored


def _published(target: Target, row: ResultRow, regime: Regime, real: RealData) -> Contestant:
    size, count = (real.shape.h, real.shape.w), target.stored.count
    make = _always(target.hard if regime == "HL" else target.stored)
    weight = target.own_weight(regime)
    return Contestant(row, regime, count, size, weight, make, make)


def _whole(target: Target, row: ResultRow, real: RealData, rest: RealData) -> Contestant:
    shape, count = real.shape, len(real.train.labels_N)
    weight = target.weight("HL", count, count * shape.c * shape.h * shape.w)
    whole, part = Whole(real), Whole(rest)
    size = (shape.h, shape.w)
    return Contestant(row, "HL", count, size, weight, lambda _: whole, lambda _: part)


def _of_images(target: Target, row: ResultRow, regime: Regime, images: _Images) -> Contestant:
    make, tuning = images.make, images.tuning
    if regime == "SL-1":
        make, tuning = _relabeled(make, target.stored), _relabeled(tuning, target.stored)
    count, size = images.room.images, images.room.size
    weight = target.weight(regime, count, images.bytes)
    return Contestant(row, regime, count, size, weight, make, tuning)


def _relabeled(make: MakeStored, published: Stored) -> MakeStored:
    return lambda draw: with_labels_of(make(draw), published)


def _equal_sets(
    target: Target, real: RealData, rest: RealData, seed: int, choices: Mapping[str, Chooses]
) -> dict[str, _Images]:
    """Real images of no more pixels, and those drawn for the published labels."""
    shape, pixels = real.shape, target.budget["pixels"]
    made, tuning = (stored_references(each, pixels, seed) for each in (real, rest))
    sets = {
        name: _Images(room, _raw(room, shape), made[name], tuning[name])
        for name, room in rooms_of(shape, pixels).items()
    }
    each, classes_M = Room(target.stored.count, (shape.h, shape.w), shrunk=False), target.classes_M
    sets[RANDOM] = _Images(
        each,
        _raw(each, shape),
        lambda draw: one_for_every_row(real, classes_M, draw),
        lambda draw: one_for_every_row(rest, classes_M, draw),
    )
    equal = room_for(shape, pixels)
    for name, choice in choices.items():
        chosen = chosen_in(rest, equal, choice, seed)
        sets[name] = _Images(equal, _raw(equal, shape), chosen, chosen)
    return sets


def _raw(room: Room, shape: Shape) -> int:
    """Bytes of 8-bit values."""
    return room.images * room.size[0] * room.size[1] * shape.c


def _budgeted_sets(
    target: Target,
    regime: Regime,
    real: RealData,
    rest: RealData,
    seed: int,
    asked: Sequence[str],
) -> dict[str, _Images]:
    """Real images whose number depends on what a label of the regime takes."""
    shape, sets = real.shape, dict[str, _Images]()
    room = _room_of_values(target, regime, real)
    if not room.shrunk and room.images != room_for(shape, target.budget["pixels"]).images:
        sets["random_values"] = _Images(
            room,
            _raw(room, shape),
            lambda draw: random_real(real, room.images, draw),
            lambda draw: random_real(rest, room.images, draw),
        )
    for kind in LOSSY:
        if kind in asked:
            sets[kind] = _lossy(target, regime, real, rest, seed, kind)
    return sets


def _room_of_values(target: Target, regime: Regime, real: RealData) -> Room:
    """Whole images with their labels, of no more values than are published, labels included."""
    shape = real.shape
    label = 1 if regime == "HL" else shape.k
    spent = target.budget["values"]
    if regime == "HL":  # a class for every row in the place of its label
        spent += target.stored.count - target.budget["label_values"]
    images = spent // (shape.c * shape.h * shape.w + label)
    return Room(images, (shape.h, shape.w), shrunk=images < shape.k)


def _lossy(
    target: Target, regime: Regime, real: RealData, rest: RealData, seed: int, kind: Kind
) -> _Images:
    # the form is chosen where nothing that scores is seen, and holds for both
    label, own = target.label_bytes(regime), target.own_weight(regime)
    budget = own.images + own.labels + own.decoder
    lossy = Lossy(rest, budget, seed, kind, filled=True, label=label)
    count, weight = lossy.weighed(real, draws(seed, "standard", kind, 0))
    room = Room(count, lossy.form.size, shrunk=True)
    return _Images(room, weight, lossy.examples(real), lossy.examples(rest))
