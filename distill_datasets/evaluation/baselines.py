"""Who is compared: the published dataset, and the baselines that stand beside it in the results.

Baselines are real images of no more pixels, the whole source, and networks that were trained
elsewhere. Where teachers labeled views of the published images, the same teachers
label those of the real ones, in views drawn alike; nothing of that is stored.
Students of hard labels draw views of their own in every pass.

Shape suffixes: N images, B a batch, K classes.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from distill_datasets.data.real import RealData
from distill_datasets.evaluation.lossy import Lossy
from distill_datasets.evaluation.protocol import Evaluate
from distill_datasets.evaluation.references import (
    CHOSEN,
    MakeStored,
    Room,
    chosen_real,
    once,
    random_rows,
    room_for,
    rooms_of,
    stored_references,
)
from distill_datasets.export.content import CLASSIFIER, STARTS
from distill_datasets.export.folder import read_manifest
from distill_datasets.export.reading import image_bytes, published_records, read_published
from distill_datasets.files.artifacts import read_tensors
from distill_datasets.media.image import to_bytes
from distill_datasets.models.architecture import Architecture
from distill_datasets.models.backbones import Backbone
from distill_datasets.runtime.draws import Draw, draws
from distill_datasets.soft_labels.codes import code_of, published_code
from distill_datasets.soft_labels.ensemble import TeacherEnsemble
from distill_datasets.soft_labels.records import Records
from distill_datasets.soft_labels.replay import (
    HardLabelExamples,
    MixedPasses,
    Pictures,
    RecordStream,
    SoftLabelExamples,
    TeacherStream,
)
from distill_datasets.stages.squeeze import SqueezedFolder
from distill_datasets.training.examples import Examples, Stored, Whole
from distill_datasets.training.loop import steps_of
from distill_datasets.training.losses import HardPasses, TeacherLoss
from distill_datasets.training.rows import ResultRow
from distill_datasets.types import Shape
from distill_datasets.views.relabel import Relabel

MakeExamples = Callable[[Draw], Examples]
"""What one student trains on, given its randomness."""
MakePictures = Callable[[Draw], Pictures]
"""The images that a student sees views of."""


@dataclass(frozen=True)
class Baseline:
    """A row of the results on its way: how many students train on what, and for how long.

    Attributes:
        row: which one.
        students: how many networks are measured.
        steps: of training; 0 measures the weights that a network starts from.
        images: number of images that a student sees.
        pixels: of these images.
        size: height and width of each before it is enlarged to what a student sees; None where
            nothing is.
        examples: makes what a student trains on.
        bytes: that their files do not exceed, where that is what is shared.
        trained: gives networks that are measured as they are, where no student is trained.
        network: these networks in words.
    """

    row: ResultRow
    students: int
    steps: int
    images: int
    pixels: int
    size: tuple[int, int] | None
    examples: MakeExamples
    bytes: int | None = None
    trained: Callable[[int], nn.Module] | None = None
    network: str | None = None


@dataclass(frozen=True)
class Labeling:
    """How views of the published images were labeled, and by whom."""

    relabel: Relabel
    teachers: SqueezedFolder


def baselines(
    settings: Evaluate,
    exported: Path,
    real: RealData,
    pixels: int,
    seed: int,
    labeling: Labeling | None = None,
) -> list[Baseline]:
    """The rows of the results, in their order.

    Args:
        settings: the `evaluate` section.
        exported: the published folder.
        real: the source.
        pixels: the budget of the published images.
        seed: of the run.
        labeling: how views of the published images were labeled, where they were.
    """
    configs = read_manifest(exported)["configs"]
    shape = real.shape
    rooms = rooms_of(shape, pixels)
    rows, images_of_all = configs["default"]["rows"], len(real.train.labels_N)
    whole = Room(images_of_all, (shape.h, shape.w), shrunk=False)
    if labeling is None:
        examples = image_examples(exported, real, pixels, seed, settings.network.frozen())
    else:
        loss, hard = settings.teacher_loss, settings.hard_passes
        examples = view_examples(loss, hard, labeling, exported, real, pixels, seed)

    def baseline(row: ResultRow) -> Baseline:
        if row.images == "bytes":
            lossy = Lossy(real, image_bytes(exported), seed)
            steps = settings.duration(lossy.room.images)
            made = _of_real(row, settings.students, steps, lossy.room, lossy.examples())
            return dataclasses.replace(made, bytes=lossy.budget)
        make = examples[row.name]
        if row.images == "published":
            steps = settings.duration(rows)
            return Baseline(row, settings.students, steps, rows, pixels, None, make)
        if row.images == "all":
            steps = steps_of(settings.full_epochs, images_of_all, settings.batch)
            return _of_real(row, settings.full_students, steps, whole, make)
        room = rooms[row.pair or row.name]
        return _of_real(row, settings.students, settings.duration(room.images), room, make)

    def not_trained(row: ResultRow) -> Baseline:
        if labeling is not None:
            teachers, device = labeling.teachers, real.train.labels_N.device
            return Baseline(
                row, teachers.members, 0, 0, 0, None, examples["default"],
                trained=lambda member: teachers.module(member).to(device),
                network="; ".join(sorted({described(each) for each in teachers.architectures})),
            )  # fmt: skip
        different = len(read_tensors(exported / STARTS)[0]["weights_SP"])
        students = min(settings.students, different)
        return Baseline(row, students, 0, 0, 0, None, examples["default"])

    return [
        not_trained(row) if row.images == "none" else baseline(row)
        for row in settings.compared(relabeled=labeling is not None, exact="exact" in configs)
    ]


def _of_real(row: ResultRow, students: int, steps: int, room: Room, make: MakeExamples) -> Baseline:
    return Baseline(row, students, steps, room.images, room.pixels, room.size, make)


def image_examples(
    exported: Path, real: RealData, pixels: int, seed: int, space: Backbone | None
) -> dict[str, MakeExamples]:
    """What students train on where images have labels, by the row; nothing is read before it is.

    Args:
        exported: the published folder.
        real: the source.
        pixels: the budget of the published images.
        seed: of the run.
        space: the backbone between whose features images are chosen; None: between pixels.
    """
    shape, device = real.shape, real.train.labels_N.device

    @once
    def published() -> Stored:
        return read_published(exported, "default", shape).to(device)

    @once
    def exact() -> Stored:
        return read_published(exported, "exact", shape).to(device)

    whole = Whole(real)
    return {
        "default": lambda draw: published(),
        "exact": lambda draw: exact(),
        **stored_references(real, pixels, seed, space),
        "full": lambda draw: whole,
    }


def view_examples(
    loss: TeacherLoss,
    hard: HardPasses | None,
    labeling: Labeling,
    exported: Path,
    real: RealData,
    pixels: int,
    seed: int,
) -> dict[str, MakeExamples]:
    """What students train on where teachers labeled views, by the row.

    Args:
        loss: of students against the teachers.
        hard: passes of these students that take classes; None: none.
        labeling: the recorded views, and the teachers.
        exported: the published folder.
        real: the source.
        pixels: the budget of the published images.
        seed: of the run.
    """
    relabel, shape, device = labeling.relabel, real.shape, real.train.labels_N.device
    teachers, images = labeling.teachers, room_for(shape, pixels).images
    modules = [teachers.module(member) for member in range(teachers.members)]
    features = relabel.store == "features"
    ensemble = TeacherEnsemble(modules, relabel, shape, device, features=features)
    code = code_of(relabel.top_k, shape.k, ensemble.classifier)
    whole = source_pictures(real)

    @once
    def published() -> Pictures:
        return published_pictures(exported, shape, device)

    @once
    def records() -> Records:
        return published_records(exported, published().count)

    def labeled(pictures: MakePictures) -> MakeExamples:
        """Views drawn again as they were for the published images, labeled as they are seen."""

        def examples(draw: Draw) -> Examples:
            own, drawn = pictures(draw), draws(seed, "relabel")
            stream = TeacherStream(relabel, own, drawn, ensemble, code.encode)
            return mixed(SoftLabelExamples(own, stream, code, loss), own, draw)

        return examples

    def mixed(soft: SoftLabelExamples, own: Pictures, draw: Draw) -> Examples:
        if hard is None:
            return soft
        return MixedPasses(soft, HardLabelExamples(relabel, own, draw), hard)

    def of_classes(pictures: MakePictures) -> MakeExamples:
        return lambda draw: HardLabelExamples(relabel, pictures(draw), draw)

    drawn = random_pictures(real, images)
    chosen = {
        each.name: labeled(chosen_pictures(real, chosen_real(real, images, each, seed)))
        for each in CHOSEN
    }
    return {
        "default": lambda draw: mixed(
            published_labels(relabel, exported, published(), records(), loss), published(), draw
        ),
        "hard": of_classes(lambda draw: published()),
        "random_real": labeled(drawn),
        "random_real_hard": of_classes(drawn),
        **chosen,
        "full": lambda draw: HardLabelExamples(relabel, whole, draw, real),
    }


def described(network: Architecture) -> str:
    """A network and its settings in a line."""
    backbone = network.frozen()
    if backbone is not None:
        side = "" if backbone.size is None else f" at {backbone.size} px"
        return f"{network.name}({backbone.title}{side})"
    fields = network.model_dump(mode="json")
    name = fields.pop("name")
    return f"{name}({', '.join(f'{key}={value}' for key, value in fields.items())})"


def published_labels(
    relabel: Relabel, exported: Path, pictures: Pictures, records: Records, loss: TeacherLoss
) -> SoftLabelExamples:
    """The published labels of views, for one student."""
    constants: dict[str, Tensor] = {}
    if (exported / CLASSIFIER).exists():
        constants, _ = read_tensors(exported / CLASSIFIER)
    _, first = records.rows(0, 1)
    lengths = {name: column.shape[1] for name, column in first.items() if column.ndim == 2}
    code = published_code(lengths, pictures.classes, constants)
    return SoftLabelExamples(pictures, RecordStream(relabel, records, code), code, loss)


def published_pictures(exported: Path, shape: Shape, device: torch.device) -> Pictures:
    """The published images with their classes."""
    stored = read_published(exported, "default", shape).to(device)
    space, labels_N = stored.input_space, stored.targets_NK.argmax(dim=1)
    assert space is not None, "8-bit images are published with theirs"
    return Pictures(stored.images_NCHW, labels_N, space, shape.k)


def source_pictures(real: RealData) -> Pictures:
    """The training images of the source."""
    return _pictures(real, real.train.images_NCHW, real.train.labels_N)


def random_pictures(real: RealData, images: int) -> MakePictures:
    """Random training images, others for every student."""

    def pictures(draw: Draw) -> Pictures:
        rows = random_rows(real, images, draw)
        images_NCHW = real.train.images_NCHW[rows.to(real.train.images_NCHW.device)]
        labels_N = real.train.labels_N[rows.to(real.train.labels_N.device)]
        return _pictures(real, images_NCHW.to(labels_N.device), labels_N)

    return pictures


def chosen_pictures(real: RealData, chosen: MakeStored) -> MakePictures:
    """Selected images, rounded to 8 bits as distilled ones are."""

    def pictures(draw: Draw) -> Pictures:
        stored = chosen(draw)
        return _pictures(real, to_bytes(stored.images_NCHW), stored.targets_NK.argmax(dim=1))

    return pictures


def _pictures(real: RealData, images_NCHW: Tensor, labels_N: Tensor) -> Pictures:
    space = real.normalization.input_space.to(labels_N.device)
    return Pictures(images_NCHW, labels_N, space, real.shape.k)
