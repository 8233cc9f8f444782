"""Who is compared where teachers labeled views: with their labels, with classes, and they alone.

Shape suffixes: N images, K classes.
"""

import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from distill_datasets.data.normalization import InputSpace
from distill_datasets.data.real import RealData
from distill_datasets.errors import ArtifactError
from distill_datasets.evaluation.references import CHOSEN, Contestant, chosen_real, random_rows
from distill_datasets.export.content import CLASSIFIER, sibling_of
from distill_datasets.export.folder import read_manifest
from distill_datasets.export.reading import load_rows, read_published
from distill_datasets.files.artifacts import read_tensors
from distill_datasets.media.image import to_bytes
from distill_datasets.models.architecture import Architecture
from distill_datasets.runtime.draws import Draw, draws
from distill_datasets.soft_labels.codes import code_of, published_code
from distill_datasets.soft_labels.ensemble import TeacherEnsemble
from distill_datasets.soft_labels.records import Records, open_shards, open_table
from distill_datasets.soft_labels.replay import (
    HardLabelExamples,
    Pictures,
    RecordStream,
    SoftLabelExamples,
    TeacherStream,
)
from distill_datasets.stages.squeeze import SqueezedFolder
from distill_datasets.training.examples import Stored
from distill_datasets.training.student import Evaluate, steps_of
from distill_datasets.types import Shape
from distill_datasets.views.relabel import Relabel

T = TypeVar("T")


def relabeled_contestants(
    settings: Evaluate,
    relabel: Relabel,
    squeezed: SqueezedFolder,
    exported: Path,
    real: RealData,
    pixels: int,
    seed: int,
) -> list[Contestant]:
    """The published labels of views, then what the recipe wants to see beside them.

    References are labeled by the same teachers in views drawn by the same rule and words; nothing
    of that is stored. Students of hard labels draw views of their own in every pass.
    """
    device, shape = real.train.labels_N.device, real.shape
    modules = [squeezed.module(member) for member in range(squeezed.members)]
    features = relabel.store == "features"
    ensemble = TeacherEnsemble(modules, relabel, shape, device, features=features)
    code, loss = code_of(relabel.top_k, shape.k, ensemble.classifier), settings.teacher_loss
    count = read_manifest(exported)["configs"]["default"]["rows"]

    @shared
    def published() -> Pictures:
        return published_pictures(exported, shape, device)

    side = shape.h * shape.w
    images = max(1, pixels // side)

    def contestant(
        name: str, pictures: Callable[[Draw], Pictures], count: int, pair: str | None = None
    ) -> Contestant:
        """Relabeled; or with hard labels, beside the `pair` that sees the same images."""

        def labeled(draw: Draw) -> SoftLabelExamples:
            own = pictures(draw)
            drawn = draws(seed, "relabel")
            stream = TeacherStream(relabel, own, drawn, ensemble, code.encode)
            return SoftLabelExamples(own, stream, code, loss)

        def classes(draw: Draw) -> HardLabelExamples:
            return HardLabelExamples(relabel, pictures(draw), draw)

        return Contestant(
            name,
            settings.students,
            settings.duration(count),
            labeled if pair is None else classes,
            count,
            count * side,
            pair=pair,
        )

    @shared
    def records() -> Records:
        return published_records(exported, count)

    def replayed(draw: Draw) -> SoftLabelExamples:
        return read_replayed(settings, relabel, exported, published(), records())

    found = [
        Contestant(
            "default",
            settings.students,
            settings.duration(count),
            replayed,
            count,
            pixels,
        )
    ]
    if settings.hard:
        found.append(contestant("hard", lambda draw: published(), count, "default"))
    if "random_real" in settings.references:
        drawn = random_pictures(real, images)
        found.append(contestant("random_real", drawn, images))
        if settings.hard:
            found.append(contestant("random_real_hard", drawn, images, "random_real"))
    for selection in CHOSEN:
        if selection.name in settings.references:
            chosen = chosen_pictures(real, chosen_real(real, images, selection, seed))
            found.append(contestant(selection.name, chosen, images))
    if "full" in settings.references:
        whole = source_pictures(real)
        found.append(
            Contestant(
                "full",
                settings.full_students,
                steps_of(settings.full_epochs, whole.count, settings.batch),
                lambda draw: HardLabelExamples(relabel, whole, draw, real),
                whole.count,
                whole.count * side,
            )
        )

    def teacher(member: int) -> nn.Module:
        return squeezed.module(member).to(device)

    names = sorted({described(network) for network in squeezed.architectures})
    found.append(
        Contestant(
            "teacher",
            squeezed.members,
            0,
            lambda draw: HardLabelExamples(relabel, published(), draw),
            0,
            0,
            trained=teacher,
            network="; ".join(names),
        )
    )
    return found


def read_replayed(
    settings: Evaluate, relabel: Relabel, exported: Path, pictures: Pictures, records: Records
) -> SoftLabelExamples:
    """The published labels of views, for one student."""
    constants: dict[str, Tensor] = {}
    if (exported / CLASSIFIER).exists():
        constants, _ = read_tensors(exported / CLASSIFIER)
    _, first = records.rows(0, 1)
    lengths = {name: column.shape[1] for name, column in first.items() if column.ndim == 2}
    code = published_code(lengths, pictures.classes, constants)
    stream = RecordStream(relabel, records, code)
    return SoftLabelExamples(pictures, stream, code, settings.teacher_loss)


def shared(load: Callable[[], T]) -> Callable[[], T]:
    """What is loaded when the first of several threads asks for it."""
    one_at_a_time, once = threading.Lock(), functools.cache(load)

    def loaded() -> T:
        with one_at_a_time:
            return once()

    return loaded


def published_records(exported: Path, images: int) -> Records:
    """Views and labels of a published folder: held in memory when they are few, else in shards.

    Raises:
        ArtifactError: the folder has none.
    """
    said = read_manifest(exported)["relabel"]
    if said is None:
        raise ArtifactError(f"{exported}: has no labels of views; run the recipe again")
    if said["where"] != "relabel":
        return open_shards(sibling_of(exported), images)
    return open_table(load_rows(exported, "relabel").data.table, images)


def published_pictures(exported: Path, shape: Shape, device: torch.device) -> Pictures:
    """The published images with their classes."""
    stored = read_published(exported, "default", shape).to(device)
    labels_N = stored.targets_NK.argmax(dim=1)
    space = InputSpace(stored.mean_C, stored.std_C)
    return Pictures(stored.images_NCHW, labels_N, space, shape.k)


def source_pictures(real: RealData) -> Pictures:
    """The training images of the source."""
    return _pictures(real, real.train.images_NCHW, real.train.labels_N)


def random_pictures(real: RealData, images: int) -> Callable[[Draw], Pictures]:
    """Random training images, others for every student."""

    def pictures(draw: Draw) -> Pictures:
        rows = random_rows(real, images, draw)
        images_NCHW = real.train.images_NCHW[rows.to(real.train.images_NCHW.device)]
        labels_N = real.train.labels_N[rows.to(real.train.labels_N.device)]
        return _pictures(real, images_NCHW.to(labels_N.device), labels_N)

    return pictures


def chosen_pictures(real: RealData, chosen: Callable[[Draw], Stored]) -> Callable[[Draw], Pictures]:
    """Selected images, rounded to 8 bits as distilled ones are."""

    def pictures(draw: Draw) -> Pictures:
        stored = chosen(draw)
        return _pictures(real, to_bytes(stored.images_NCHW), stored.targets_NK.argmax(dim=1))

    return pictures


def described(network: Architecture) -> str:
    """A network and its settings in a line."""
    fields = network.model_dump(mode="json")
    name = fields.pop("name")
    return f"{name}({', '.join(f'{key}={value}' for key, value in fields.items())})"


def _pictures(real: RealData, images_NCHW: Tensor, labels_N: Tensor) -> Pictures:
    space = real.normalization.input_space.to(labels_N.device)
    return Pictures(images_NCHW, labels_N, space, real.shape.k)
