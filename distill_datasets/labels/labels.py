"""The axis of labels: which targets the training examples have."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from distill_datasets.canvases.canvas import Canvas
from distill_datasets.config import Part
from distill_datasets.types import Shape

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.real import RealData
    from distill_datasets.distilled import CanvasModule, LabelModule


class Labels(Part, ABC):
    """The axis that says which targets the training examples have."""

    @property
    def needs_squeezed(self) -> bool:
        """True when labels are made with the networks of the squeeze stage."""
        return False

    @abstractmethod
    def build(
        self, canvas: CanvasModule, classes: int, logits_MNK: Tensor | None = None
    ) -> LabelModule:
        """Targets for the examples of `canvas`.

        `logits_MNK` is what every network of the squeeze stage says of every example; there when
        `needs_squeezed`.
        """

    def check(self, canvas: Canvas, shape: Shape, real: RealData | None = None) -> None:
        """Raise `RecipeError` where `build` would, as far as it shows, with or without `real`."""
