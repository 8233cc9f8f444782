"""Who is compared: the published dataset, and the baselines that stand beside it in the results.

Baselines are as many real images, drawn, chosen or averaged; the whole source; and networks that
were trained elsewhere. Where teachers labeled views of the published images, the same teachers
label those of the real ones, in views drawn alike; nothing of that is stored.
Students of hard labels draw views of their own in every pass.

Shape suffixes: N images, B a batch, K classes.
"""

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from distill_datasets.data.real import RealData
from distill_datasets.errors import ArtifactError
from distill_datasets.evaluation.protocol import Evaluate
from distill_datasets.export.content import CLASSIFIER, STARTS, sibling_of
from distill_datasets.export.folder import read_manifest
from distill_datasets.export.reading import load_rows, read_published
from distill_datasets.files.artifacts import read_tensors
from distill_datasets.media.image import to_bytes
from distill_datasets.models.architecture import Architecture
from distill_datasets.runtime.draws import Draw, draws
from distill_datasets.selection.coresets import ClassMean, Herding, KCenter
from distill_datasets.selection.selection import Selection
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
from distill_datasets.training.examples import Examples, Stored, Whole
from distill_datasets.training.loop import steps_of
from distill_datasets.training.losses import TeacherLoss
from distill_datasets.training.rows import ResultRow
from distill_datasets.types import Shape
from distill_datasets.views.relabel import Relabel

T = TypeVar("T")
CHOSEN: list[Selection] = [Herding(), KCenter(), ClassMean()]
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
        examples: makes what a student trains on.
        trained: gives networks that are measured as they are, where no student is trained.
        network: these networks in words.
    """

    row: ResultRow
    students: int
    steps: int
    images: int
    pixels: int
    examples: MakeExamples
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
    side = real.shape.h * real.shape.w
    counts = {
        "published": configs["default"]["rows"],
        "equal": max(1, pixels // side),
        "all": len(real.train.labels_N),
        "none": 0,
    }
    if labeling is None:
        examples = image_examples(exported, real, counts["equal"], seed)
    else:
        examples = view_examples(
            settings.teacher_loss, labeling, exported, real, counts["equal"], seed
        )

    def baseline(row: ResultRow) -> Baseline:
        images = counts[row.images]
        students, steps = settings.students, settings.duration(images)
        if row.images == "all":
            students = settings.full_students
            steps = steps_of(settings.full_epochs, images, settings.batch)
        budget = pixels if row.images == "published" else images * side
        return Baseline(row, students, steps, images, budget, examples[row.name])

    def not_trained(row: ResultRow) -> Baseline:
        if labeling is not None:
            teachers, device = labeling.teachers, real.train.labels_N.device
            return Baseline(
                row, teachers.members, 0, 0, 0, examples["default"],
                trained=lambda member: teachers.module(member).to(device),
                network="; ".join(sorted({described(each) for each in teachers.architectures})),
            )  # fmt: skip
        different = len(read_tensors(exported / STARTS)[0]["weights_SP"])
        return Baseline(row, min(settings.students, different), 0, 0, 0, examples["default"])

    return [
        not_trained(row) if row.images == "none" else baseline(row)
        for row in settings.compared(relabeled=labeling is not None, exact="exact" in configs)
    ]


def image_examples(
    exported: Path, real: RealData, images: int, seed: int
) -> dict[str, MakeExamples]:
    """What students train on where images have labels, by the row; nothing is read before it is.

    Args:
        exported: the published folder.
        real: the source.
        images: real images that have no more pixels than the published ones.
        seed: of the run.
    """
    shape, device = real.shape, real.train.labels_N.device

    @loaded_once
    def published() -> Stored:
        return read_published(exported, "default", shape).to(device)

    @loaded_once
    def exact() -> Stored:
        return read_published(exported, "exact", shape).to(device)

    whole = Whole(real)
    return {
        "default": lambda draw: published(),
        "exact": lambda draw: exact(),
        "random_real": lambda draw: random_real(real, images, draw),
        **{each.name: chosen_real(real, images, each, seed) for each in CHOSEN},
        "full": lambda draw: whole,
    }


def view_examples(
    loss: TeacherLoss, labeling: Labeling, exported: Path, real: RealData, images: int, seed: int
) -> dict[str, MakeExamples]:
    """What students train on where teachers labeled views, by the row.

    Args:
        loss: of students against the teachers.
        labeling: the recorded views, and the teachers.
        exported: the published folder.
        real: the source.
        images: real images that have no more pixels than the published ones.
        seed: of the run.
    """
    relabel, shape, device = labeling.relabel, real.shape, real.train.labels_N.device
    teachers = labeling.teachers
    modules = [teachers.module(member) for member in range(teachers.members)]
    features = relabel.store == "features"
    ensemble = TeacherEnsemble(modules, relabel, shape, device, features=features)
    code = code_of(relabel.top_k, shape.k, ensemble.classifier)
    whole = source_pictures(real)

    @loaded_once
    def published() -> Pictures:
        return published_pictures(exported, shape, device)

    @loaded_once
    def records() -> Records:
        return published_records(exported, published().count)

    def labeled(pictures: MakePictures) -> MakeExamples:
        """Views drawn again as they were for the published images, labeled as they are seen."""

        def examples(draw: Draw) -> Examples:
            own, drawn = pictures(draw), draws(seed, "relabel")
            stream = TeacherStream(relabel, own, drawn, ensemble, code.encode)
            return SoftLabelExamples(own, stream, code, loss)

        return examples

    def of_classes(pictures: MakePictures) -> MakeExamples:
        return lambda draw: HardLabelExamples(relabel, pictures(draw), draw)

    drawn = random_pictures(real, images)
    chosen = {
        each.name: labeled(chosen_pictures(real, chosen_real(real, images, each, seed)))
        for each in CHOSEN
    }
    return {
        "default": lambda draw: published_labels(relabel, exported, published(), records(), loss),
        "hard": of_classes(lambda draw: published()),
        "random_real": labeled(drawn),
        "random_real_hard": of_classes(drawn),
        **chosen,
        "full": lambda draw: HardLabelExamples(relabel, whole, draw, real),
    }


def loaded_once(load: Callable[[], T]) -> Callable[[], T]:
    """What is loaded when the first of several threads asks for it."""
    one_at_a_time, once = threading.Lock(), functools.cache(load)

    def loaded() -> T:
        with one_at_a_time:
            return once()

    return loaded


def described(network: Architecture) -> str:
    """A network and its settings in a line."""
    fields = network.model_dump(mode="json")
    name = fields.pop("name")
    return f"{name}({', '.join(f'{key}={value}' for key, value in fields.items())})"


def random_rows(real: RealData, images: int, draw: Draw) -> Tensor:
    """Random training rows, as evenly over the classes as their number allows."""
    rng = draw("random_real")
    order_N = torch.randperm(len(real.train.labels_N), generator=rng)
    labels_N = real.train.labels_N.cpu()[order_N]
    classes_K = torch.randperm(real.shape.k, generator=rng)
    # a stable sort: the rows of a class stand together, in the order in which they were drawn
    by_class_N = order_N[labels_N.sort(stable=True).indices]
    count_K = labels_N.bincount(minlength=real.shape.k)
    first_K = count_K.cumsum(0) - count_K
    turn_B = torch.arange(images)
    class_B = classes_K[turn_B % real.shape.k]
    return by_class_N[first_K[class_B] + turn_B // real.shape.k % count_K[class_B]]


def random_real(real: RealData, images: int, draw: Draw) -> Stored:
    """Random real images with hard labels, as evenly over the classes as the number allows."""
    device = real.train.labels_N.device
    images_BCHW, targets_BK = real.select(random_rows(real, images, draw).to(device))
    return Stored(images_BCHW, targets_BK, input_space=None)


def chosen_real(
    real: RealData, images: int, selection: Selection, seed: int
) -> Callable[[Draw], Stored]:
    """Images of a selection with hard labels, as evenly over the classes as the number allows.

    The selection is made once. Every student draws for itself which classes have an image more
    than the others.
    """
    classes = real.shape.k
    one_at_a_time = threading.Lock()
    draw_selection = draws(seed, "evaluate", selection.name)

    @functools.cache
    def selected(per_class: int) -> Tensor:
        found_NCHW = selection.images(real, per_class, draw_selection("select", per_class))
        return found_NCHW.view(classes, per_class, *found_NCHW.shape[1:])

    def of_every_class(per_class: int) -> Tensor:
        with one_at_a_time:  # students ask side by side, and a cache would let them all work
            return selected(per_class)

    def examples(draw: Draw) -> Stored:
        each, more = divmod(images, classes)
        order_K = torch.randperm(classes, generator=draw("classes")).tolist()
        of_class = [each + (label in order_K[:more]) for label in range(classes)]
        chosen = [(label, count) for label, count in enumerate(of_class) if count]
        images_NCHW = torch.cat([of_every_class(count)[label] for label, count in chosen])
        labels_N = torch.tensor([label for label, count in chosen for _ in range(count)])
        targets_NK = functional.one_hot(labels_N, classes).float()
        stored = Stored(images_NCHW, targets_NK, real.normalization.input_space)
        return stored.to(real.train.labels_N.device)

    return examples


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


def published_records(exported: Path, images: int) -> Records:
    """Views and labels of a published folder: held in memory when they are few, else in shards.

    Raises:
        ArtifactError: the folder has none.
    """
    labels = read_manifest(exported)["relabel"]
    if labels is None:
        raise ArtifactError(f"{exported}: has no labels of views; run the recipe again")
    if labels["where"] != "relabel":
        return open_shards(sibling_of(exported), images)
    return open_table(load_rows(exported, "relabel").data.table, images)


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


def chosen_pictures(real: RealData, chosen: Callable[[Draw], Stored]) -> MakePictures:
    """Selected images, rounded to 8 bits as distilled ones are."""

    def pictures(draw: Draw) -> Pictures:
        stored = chosen(draw)
        return _pictures(real, to_bytes(stored.images_NCHW), stored.targets_NK.argmax(dim=1))

    return pictures


def _pictures(real: RealData, images_NCHW: Tensor, labels_N: Tensor) -> Pictures:
    space = real.normalization.input_space.to(labels_N.device)
    return Pictures(images_NCHW, labels_N, space, real.shape.k)
