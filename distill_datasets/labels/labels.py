"""The axis of labels: which targets the training examples have.

Shape suffixes: B examples asked for, N all examples, G cells, K classes, M networks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from distill_datasets.canvases.canvas import Canvas, Cells, Tensors
from distill_datasets.config import Part
from distill_datasets.types import Shape, Task

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.real import RealData


class LabelStart(NamedTuple):
    """Labels before the first step: what is trained, and what stays."""

    trained: Tensors
    constants: Tensors


class Labels(Part, ABC):
    """The axis that says which targets the training examples have.

    Like a canvas, labels are pure functions of a dict of tensors: what `start` calls trained, at
    its values of this moment, and the constants beside it, by the names that `start` gave them.
    """

    keep_classes: ClassVar[bool] = False
    """True when an example of one class has that class as its label, now and at the end."""

    takes_targets: ClassVar[bool] = False
    """True when `take` can put any targets in place of the trained values."""

    @property
    def targets_are(self) -> Task:
        """What targets of a source these labels are."""
        return "classes"

    @property
    def needs_squeezed(self) -> bool:
        """True when labels are made with the networks of the squeeze stage."""
        return False

    @abstractmethod
    def start(self, cells: Cells, classes: int, logits_MNK: Tensor | None = None) -> LabelStart:
        """Labels of the cells that the examples of a canvas show, on the CPU.

        `logits_MNK` is what every network of the squeeze stage says of every example; there when
        `needs_squeezed`.
        """

    @abstractmethod
    def targets(self, tensors: Tensors, index_B: Tensor) -> Tensor:
        """Targets of the examples `index_B`, (B, K); of classes non-negative rows with sum 1."""

    @abstractmethod
    def stored(self, tensors: Tensors) -> Tensor:
        """What is published and counted: the label of every cell, (G, K)."""

    def take(self, tensors: Tensors, targets_NK: Tensor) -> None:
        """Change the trained values, in place, so that every example has this target."""

    def project(self, tensors: Tensors) -> None:
        """Move trained values back into their domain, in place; called after every outer step."""

    def problems(self, canvas: Canvas, shape: Shape, real: RealData | None = None) -> Iterable[str]:
        """Why these labels do not suit the canvas, as far as it shows, with or without `real`."""
        return []
