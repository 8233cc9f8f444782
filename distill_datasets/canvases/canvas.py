"""The axis of canvases: what is trained and how it becomes images.

Pixels cannot leave the displayable range while they are optimized. One unit of a trained value is,
near mid-gray, a quarter of the displayable range, and so 0.25 / std units of the student's input
space. Papers state step sizes in that space, for rules that move a value by about the step size
whatever the gradient's scale (Adam). Theirs carry over as they are where std is about 0.25, as for
most sets of photographs seen through their own statistics; ImageNet's 0.226 makes a step 11 %
longer. Elsewhere multiply theirs by std / 0.25: by 4 for networks that see pixels in [0, 1] as they
are (std 1), where a step would else be a quarter of the paper's. Plain gradient descent needs the
square of that factor: the gradient is scaled as well.

`sigmoid` shows u as sigmoid(u) and never touches the edges; it flattens out near them, so dark and
bright pixels move slowly. `clip` shows 1/2 + u/4 and cuts u at the edges after every outer step, so
that all pixels move alike: the choice for real initial images.

Shape suffixes: N examples, B examples asked for, G cells, D columns of a table, C channels,
H W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import torch

from distill_datasets.config import Part
from distill_datasets.errors import RecipeError
from distill_datasets.selection.selection import Selection, Teacher
from distill_datasets.types import Shape

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.real import RealData
    from distill_datasets.models.generator import Generator

Tensors = dict[str, "Tensor"]
"""Tensors by name; those of a part of the distilled set: what is trained, and constants."""


class Cells(NamedTuple):
    """What the examples of a canvas show: every cell is of one class and has one label.

    Attributes:
        shown: (N,) the cell of each example, as integers; where examples show several cells,
            (N, G) the share of each example that lies on each cell.
        classes_G: whose each cell is.
    """

    shown: Tensor
    classes_G: Tensor


def mix(shown: Tensor, table_GD: Tensor) -> Tensor:
    """A row per example: that of its cell in the table, or the mean of its cells by their shares.

    `shown` is that of `Cells`, of all examples or of some.
    """
    return table_GD.index_select(0, shown) if shown.dim() == 1 else shown @ table_GD


class CanvasStart(NamedTuple):
    """A canvas before the first step: what is trained, what stays, and what its examples show."""

    trained: Tensors
    constants: Tensors
    cells: Cells


MOST_EXAMPLES = 10_000_000
"""Of a canvas; ImageNet-21K has 11 million images, and a distilled set has fewer."""


def check_count(examples: int, key: str) -> None:
    """Refuse a canvas of so many training examples before any list of them is made.

    Args:
        examples: how many there would be.
        key: of the canvas, to lower.

    Raises:
        RecipeError: they are more than any distilled dataset has.
    """
    if examples > MOST_EXAMPLES:
        raise RecipeError(
            f"distill.canvas.{key}: asks for {examples:,} training examples, expected at most "
            f"{MOST_EXAMPLES:,}; lower it"
        )


class CanvasSize(NamedTuple):
    """A budget before anything is built: trained images as (height, width), and examples."""

    originals: Sequence[tuple[int, int]]
    examples: int


class Alone(NamedTuple):
    """Examples that are images of one class each and can be solved each for itself.

    Attributes:
        per_class: how many there are of every class; they stand class after class.
        init: what they start from.
        start: the start of some of them, given the images (B, C, H, W) in [0, 1] and their classes.
        altered: why the first example of an image is not the image itself, for the user; None when
            it is.
    """

    per_class: int
    init: Selection
    start: Callable[[Tensor, Tensor], CanvasStart]
    altered: str | None


class Canvas(Part, ABC):
    """The axis that says what is trained and how it becomes images.

    A canvas is a set of pure functions of a dict of tensors: what `start` calls trained, at its
    values of this moment, and the constants beside it, all by the names that `start` gave them.
    """

    examples_are_stored: ClassVar[bool] = False
    """True when an example is one stored image, in order, so that its label is stored with it."""
    needs_generator: ClassVar[bool] = False
    """True when a generator decodes its images."""

    @property
    def samples(self) -> bool:
        """True when its images pass a generator's flow, which then has to be a trained one."""
        return False

    @property
    def decoder_layer(self) -> int:
        """The layer of the generator's decoder after which what is trained lies; 0: latents."""
        return 0

    @property
    def needs_squeezed(self) -> bool:
        """True when its initial images are made with the networks of the squeeze stage."""
        return False

    @property
    def keeps_start(self) -> bool:
        """True when `start` is long work that only the section, the source and the seed decide."""
        return False

    @abstractmethod
    def size(self, shape: Shape) -> CanvasSize:
        """What `start` will make, without making it.

        Raises:
            RecipeError: the budget or the sizes cannot hold the classes or one example.
        """

    def budget(self, shape: Shape) -> int | None:
        """How many values are stored at most, where these are no images; None where they are."""
        return None

    @abstractmethod
    def start(
        self, real: RealData, rng: torch.Generator, teacher: Teacher | None = None
    ) -> CanvasStart:
        """Trained tensors at their initial values, on the CPU; raises the errors of `size`.

        `teacher` are the networks of the squeeze stage; there when `needs_squeezed`.
        """

    @abstractmethod
    def decode(self, tensors: Tensors, index_B: Tensor) -> Tensor:
        """Training examples `index_B` as images in [0, 1], shape (B, C, H, W), differentiable."""

    @abstractmethod
    def stored(self, tensors: Tensors) -> list[Tensor]:
        """What is published and where the budget is counted: images, each (C, H, W) in [0, 1].

        Of a `Parameterized` canvas the numbers that its images are drawn from, of any shape.
        """

    def project(self, tensors: Tensors) -> None:
        """Move trained values back into their domain, in place; called after every outer step."""

    def begins(self, tensors: Tensors, steps: int) -> dict[str, int]:
        """The outer step, of so many, at which a trained tensor begins to move, by its name.

        Those that are left out move from the first one on.
        """
        return {}

    def preview(self, tensors: Tensors) -> list[Tensor] | None:
        """Images for a person who looks at the canvas; None shows some of its examples."""
        return None

    def with_generator(self, generator: Generator) -> Canvas | None:
        """The same canvas, whose images this generator decodes; None where none does."""
        return None

    def geometry(self, tensors: Tensors) -> dict[str, object]:
        """How examples are cut from what is stored, as JSON, for the published description."""
        return {}

    def shown(self, shape: Shape, real: RealData | None = None) -> Cells | None:
        """What the examples of `start` show, if it can be told before; None where it cannot.

        Whose cells they are may depend on the images, which only `real` tells.
        """
        return None

    def alone(self) -> Alone | None:
        """How examples are solved each for itself; None where they are solved together."""
        return None


def evenly(count: int, classes: int) -> list[int]:
    """How many of so many images each class has: the first ones have one more than the last."""
    return [count // classes + (label < count % classes) for label in range(classes)]


def initial(
    init: Selection,
    real: RealData,
    counts_K: Sequence[int],
    rng: torch.Generator,
    teacher: Teacher | None,
) -> Tensor:
    """Images to start from, as many of each class as are wanted, class after class."""
    each = max(counts_K)
    drawn_NCHW = init.images(real, each, rng, teacher)
    kept = [label * each + place for label, of in enumerate(counts_K) for place in range(of)]
    return drawn_NCHW[kept]


Bounds = Literal["sigmoid", "clip"]


EDGE = 0.02
"""Real pixels are pulled this far inside the range, where the sigmoid still has a gradient."""


LIMIT = 2.0
"""Trained value of white under `clip`."""


def show(trained: Tensor, bounds: Bounds) -> Tensor:
    """Trained values as pixels in [0, 1]."""
    return torch.sigmoid(trained) if bounds == "sigmoid" else 0.5 + trained / (2 * LIMIT)


def hide(pixels: Tensor, bounds: Bounds) -> Tensor:
    """The inverse of `show`, for pixels in [0, 1]."""
    if bounds == "sigmoid":
        return torch.logit(pixels.clamp(EDGE, 1 - EDGE))
    return (2 * LIMIT) * (pixels.clamp(0, 1) - 0.5)


def keep_inside(trained: Tensor, bounds: Bounds) -> None:
    """Cut trained values at the edges of the range, in place; under `sigmoid` none can pass."""
    with torch.no_grad():
        if bounds == "clip":
            trained.clamp_(-LIMIT, LIMIT)
