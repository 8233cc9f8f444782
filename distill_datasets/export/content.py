"""What a published dataset is made of: its content, what can be published of it, and its budget.

Shape suffixes: N training examples, K classes, C channels, H W pixels, G cells of a label poster,
S starting points, P all weights of a student's network.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from distill_datasets.data.normalization import InputSpace
from distill_datasets.errors import ArtifactError
from distill_datasets.files.parquet import Config
from distill_datasets.targets import OUTPUTS, unfit
from distill_datasets.types import Task

STARTS = "constants/starts.safetensors"
"""Where the weights that students start from lie in a published folder, as `weights_SP`."""

CLASSIFIER = "constants/classifier.safetensors"
"""Where `weight_KD` and `bias_K` lie that make logits of the features in the labels of views."""

SIBLING = "-relabel"
"""What the name of the folder and of the repository of large label shards ends with."""

_ROWS_AT_ONCE = 4096


class DisplayPixels(Sequence[Tensor]):
    """8-bit images as displayable pixels in [0, 1], each made when it is asked for."""

    def __init__(self, images_NCHW: Tensor) -> None:
        self._images_NCHW = images_NCHW

    def __len__(self) -> int:
        return len(self._images_NCHW)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...

    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        images = self._images_NCHW[index]
        return DisplayPixels(images) if isinstance(index, slice) else images.float() / 255


@dataclass(frozen=True)
class ViewLabels:
    """The labels that teachers gave to recorded views of the distilled images.

    Attributes:
        config: the labels as a configuration of the dataset, when they are few.
        shards: else writes them as tars into the folder that it is given.
        labels: how many views are labeled.
        bytes: what labels and views take before compression.
        constants: tensors that decoding needs beside the rows, for `CLASSIFIER`.
        facts: how they were made, as JSON.
    """

    config: Config | None
    shards: Callable[[Path], Iterable[Path]] | None
    labels: int
    bytes: int
    constants: dict[str, Tensor]
    facts: dict[str, Any]


def sibling_of(folder: Path) -> Path:
    """Where the label shards lie that belong to a published folder."""
    return folder.with_name(folder.name + SIBLING)


@dataclass(frozen=True)
class Numbers:
    """Numbers that images are drawn from, as they are published: `values / divisor`, then scaled.

    Attributes:
        values: uint8, or float16.
        scales_2D: the step and the least number at every place of the last axis: a published value
            stands for value * step + least. None where 255 stands for 1, or values are floats.
    """

    values: Tensor
    scales_2D: Tensor | None

    def read(self) -> Tensor:
        """The numbers as a reader has them."""
        if self.scales_2D is not None:
            return self.values.float() * self.scales_2D[0] + self.scales_2D[1]
        whole = 255 if self.values.dtype == torch.uint8 else 1
        return self.values.float() / whole

    @property
    def count(self) -> int:
        """How many numbers there are, scales included."""
        return self.values.numel() + (0 if self.scales_2D is None else self.scales_2D.numel())

    @property
    def bytes(self) -> int:
        """What they take before compression, scales included."""
        scales = 0 if self.scales_2D is None else self.scales_2D.nbytes
        return self.values.nbytes + scales


@dataclass(frozen=True)
class Content:
    """Everything a distilled dataset is, before evaluation.

    Attributes:
        name: name of the recipe.
        method: the method in words; `papers` name its papers, by address or arXiv number.
        class_names: one per class, in the source's order.
        images_NCHW: uint8, the published training examples; may be mapped from a file.
        exact_NCHW: float32, the same examples as a student sees them, before rounding to 8 bits;
            None where they are 8-bit by construction, and the originals are the examples.
        task: what targets are; classes are labels or numbers otherwise.
        targets_NK: float32, of classes rows that sum to 1, or of uint8 where each names one class.
        originals: trained images, (C, H, W) in [0, 1]; the budget is counted here, or on `numbers`.
        numbers: what the examples are drawn from, by name; {} where that is the originals.
        decoder: lines of numpy that draw `images` in [0, 1] of the numbers and of `shape`, a list
            of channels, height and width.
        label_cells: one (G, K) table per original that is cut into examples, [] where `default` is
            the canvas.
        geometry: how examples are cut from the originals, as JSON.
        mean: with `std`, a published image as a student sees it: (pixel / 255 - mean) / std.
        std: see `mean`.
        normalization: the source's normalization, as JSON.
        constants: tensors that a student needs beside the rows, such as a ZCA matrix.
        step_sizes: learned step sizes; step t of a training takes the one at t modulo their number.
        order: the examples of each training step, where they are part of the result; else [].
        starts_SP: weights to start from, in the order of torch's `parameters()`; student s takes
            row s modulo S. None where students draw their own.
        student: the training recipe of the student, as JSON.
        layers: the student's layers as constructors of `torch.nn`, to be called one after another;
            [] for a network that is no such chain.
        attack: the class that was attacked and the class that it shall be taken for; else None.
        recipe: the resolved recipe, as JSON; `recipe_yaml` is what was run.
        provenance: the source: dataset, revision, files, splits, license, card_url.
        environment: versions and device.
        real_shape: channels, height and width of a real example.
        relabel: labels of views of the examples by teachers; None where none were asked for.
        privacy: what is said where trained images start from real ones; else None.
        imported: of a set that others made: its layout, its files, and what is not known of it.
            Its student is {}: how the authors train theirs is not known.
        generator_bytes: of the generator that made the images, which nobody needs to use them; None
            where none did.
        written: the recipe as its user wrote it, defaults left out; {} where there is none.
        notes: Markdown for the card in the publisher's words; `citation` is BibTeX.
        citation: see `notes`.
        license: of the distilled dataset as its publisher states it; None: the source's.
        derived: of a set that was made of other finished ones without distilling them anew: how
            (`verb`), of what (`of`), and what is said of it (`notes`).
    """

    name: str
    method: str
    papers: list[str]
    class_names: list[str]
    images_NCHW: Tensor
    exact_NCHW: Tensor | None
    targets_NK: Tensor
    originals: Sequence[Tensor]
    label_cells: list[Tensor]
    geometry: dict[str, Any]
    mean: list[float]
    std: list[float]
    normalization: dict[str, Any]
    constants: dict[str, Tensor]
    step_sizes: list[float]
    order: list[list[int]]
    starts_SP: Tensor | None
    student: dict[str, Any]
    layers: list[str]
    attack: tuple[int, int] | None
    recipe: dict[str, Any]
    recipe_yaml: str
    recipe_sha256: str
    seed: int
    provenance: dict[str, Any]
    environment: dict[str, Any]
    real_shape: tuple[int, int, int]
    relabel: ViewLabels | None = None
    numbers: dict[str, Numbers] = field(default_factory=dict)
    decoder: str = ""
    privacy: str | None = None
    imported: dict[str, Any] | None = None
    generator_bytes: int | None = None
    derived: dict[str, Any] | None = None
    written: dict[str, Any] = field(default_factory=dict)
    notes: str | None = None
    citation: str | None = None
    license: str | None = None
    task: Task = "classes"


def check(content: Content) -> None:
    """Refuse content that cannot be published as it is.

    Raises:
        ArtifactError: shapes disagree, a value is not finite, or there is no PNG for the channels.
    """
    exact_NCHW, (n, c) = content.exact_NCHW, content.images_NCHW.shape[:2]
    k = len(content.class_names)
    if n == 0 or not content.originals:
        raise ArtifactError("there is no image to publish; check that the run has finished")
    if len(set(content.class_names)) < k:
        raise ArtifactError("class names must differ; rename classes of the source that share one")
    shapes = {
        "exact": (
            tuple(content.images_NCHW.shape if exact_NCHW is None else exact_NCHW.shape),
            tuple(content.images_NCHW.shape),
        ),
        "targets": (tuple(content.targets_NK.shape), (n, k)),
        "mean": (len(content.mean), c),
        "std": (len(content.std), c),
        "label posters": (
            len(content.label_cells) or len(content.originals),
            len(content.originals),
        ),
    }
    for name, (got, expected) in shapes.items():
        if got != expected:
            raise ArtifactError(f"{name}: got shape {got}, expected {expected}")
    if not all(step and all(0 <= index < n for index in step) for step in content.order):
        raise ArtifactError(f"order: expected steps of examples 0..{n - 1}, got {content.order}")
    if not all(size > 0 for size in content.step_sizes):
        raise ArtifactError(
            f"step sizes: got {content.step_sizes}, expected positive ones; run again with a "
            "smaller distill.rate_optimizer.lr"
        )
    floats = [content.targets_NK, *content.label_cells]
    floats += [] if exact_NCHW is None else [exact_NCHW, *content.originals]
    floats += [torch.tensor(content.step_sizes)]
    floats += [] if content.starts_SP is None else [content.starts_SP]
    floats += [numbers.read() for numbers in content.numbers.values()]
    if not all(
        bool(torch.isfinite(part).all())
        for tensor in floats
        for part in torch.split(tensor, _ROWS_AT_ONCE)
    ):
        raise ArtifactError(
            "some distilled values are not finite; run again with a smaller learning rate"
        )
    wrong = unfit(content.task, content.targets_NK)
    if wrong is not None:
        raise ArtifactError(wrong)


def budget(content: Content) -> dict[str, Any]:
    """What the distilled set spends, in pixels and in values, labels included.

    A table of labels in which every row names one class costs one value per row; any other costs
    one value per class and row; a learned step size costs one. Pixels count once whatever the
    number of channels; numbers that images are drawn from count as pixels of so many channels.
    Labels of views are counted in bytes, beside the values.
    """
    tables = content.label_cells or [content.targets_NK]
    sizes = (
        [content.images_NCHW.shape[1:]] * len(content.images_NCHW)
        if content.exact_NCHW is None
        else [image.shape for image in content.originals]
    )
    pixels = sum(height * width for _, height, width in sizes)
    values = sum(size.numel() for size in sizes)
    if content.numbers:
        values = sum(part.count for part in content.numbers.values())
        pixels = math.ceil(values / content.real_shape[0])
    label_values = sum(_label_values(table) for table in tables)
    _, h, w = content.real_shape
    labels, parts = content.relabel, content.numbers.values()
    stored = {
        "numbers": sum(part.count for part in parts),
        "number_bytes": sum(part.bytes for part in parts),
    }
    views = (
        {}
        if labels is None
        else {
            "view_labels": labels.labels,
            "view_label_bytes": labels.bytes,
            "bytes_per_view_label": round(labels.bytes / labels.labels, 2),
        }
    )
    return {
        "images": len(content.originals),
        "examples": len(content.images_NCHW),
        "pixels": pixels,
        "ipc_equivalent": round(pixels / (len(content.class_names) * h * w), 6),
        "values": values + label_values + len(content.step_sizes),
        "label_values": label_values,
        "step_sizes": len(content.step_sizes),
        **(stored if content.numbers else {}),
        **views,
        **({} if content.generator_bytes is None else {"generator_bytes": content.generator_bytes}),
    }


def per_class(budget: dict[str, Any], task: Task) -> str:
    """The budget in images per class, label or number, in words."""
    ipc = budget["ipc_equivalent"]
    return f"{ipc:.4g} image{'' if ipc == 1 else 's'} per {OUTPUTS[task].one}"


def rounding_error(content: Content) -> float:
    """Largest difference between a published image and the exact one, as a student sees them."""
    if content.exact_NCHW is None:
        return 0.0
    space = InputSpace(torch.tensor(content.mean), torch.tensor(content.std))
    return max(
        float((space.to_student(image.float() / 255) - exact).abs().max())
        for image, exact in zip(content.images_NCHW.cpu(), content.exact_NCHW.cpu(), strict=True)
    )


def _label_values(table_GK: Tensor) -> int:
    one_hot = bool(((table_GK == 0) | (table_GK == 1)).all())
    return len(table_GK) if one_hot else table_GK.numel()
