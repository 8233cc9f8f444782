"""What is distilled: a canvas, labels and step sizes at their values of this moment.

Shape suffixes: B a batch, N distilled examples, K classes, C channels, H W pixels, G cells of the
labels, T step sizes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from distill_datasets.canvases.canvas import Canvas, CanvasStart, Tensors
from distill_datasets.labels.labels import Labels, LabelStart
from distill_datasets.runtime.memory import to_device
from distill_datasets.types import Batch, Task

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.normalization import InputSpace


class Distilled:
    """Canvas and labels together: the index of an example becomes a differentiable `Batch`.

    Attributes:
        parameters: what is trained, as leaf tensors, by the name of the part and its own:
            `canvas.trained_NCHW`, `labels.cells_GK`, `step_sizes.raw_T`.
        constants: tensors that stay as they are, named alike.
        count: number of training examples.
        space: the student's input space.
    """

    def __init__(
        self,
        canvas: Canvas,
        labels: Labels,
        space: InputSpace,
        images: CanvasStart,
        targets: LabelStart,
        step_sizes: Sequence[float] = (),
    ) -> None:
        """Put the parts together where they start.

        Args:
            canvas: decodes `images`.
            labels: tells the targets of `targets`.
            space: what displayable pixels become for a student.
            images: what `canvas.start` returned.
            targets: what `labels.start` returned.
            step_sizes: those that are learned; step t of a training run takes the one at t modulo
                their number. None where they are not learned.
        """
        self._canvas, self._labels = canvas, labels
        self.space, self.count = space, len(images.cells.shown)
        # a step size is kept positive by a softplus, as in the program of Dataset Distillation
        # (arXiv:1811.10959); this is its inverse, log(exp(x) - 1)
        raw_T = {"raw_T": torch.tensor(step_sizes).expm1().log()} if len(step_sizes) else {}
        self.parameters = {
            name: tensor.detach().clone().requires_grad_()
            for name, tensor in [
                *_named("canvas", images.trained),
                *_named("labels", targets.trained),
                *_named("step_sizes", raw_T),
            ]
        }
        self.constants = dict(
            [*_named("canvas", images.constants), *_named("labels", targets.constants)]
        )

    @property
    def task(self) -> Task:
        """What the targets are."""
        return self._labels.targets_are

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return next(iter(self.parameters.values())).device

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Distilled:
        """A copy on another device, or with floating-point values of another type."""

        def moved(tensor: Tensor) -> Tensor:
            kept = dtype if tensor.is_floating_point() else None
            return tensor.detach().to(device=device, dtype=kept, copy=True)

        other = copy.copy(self)
        other.parameters = {
            name: moved(tensor).requires_grad_() for name, tensor in self.parameters.items()
        }
        other.constants = {name: moved(tensor) for name, tensor in self.constants.items()}
        other.space = self.space if device is None else self.space.to(device)
        return other

    def __call__(self, index_B: Tensor) -> Batch:
        """The examples `index_B`, on any device, as a student sees them."""
        index_B = to_device(index_B, self.device)
        return Batch(self.space.to_student(self.pixels(index_B)), self.targets(index_B))

    def pixels(self, index_B: Tensor) -> Tensor:
        """The examples `index_B` as displayable images in [0, 1], (B, C, H, W)."""
        return self._canvas.decode(self.of("canvas"), index_B)

    def targets(self, index_B: Tensor) -> Tensor:
        """Targets of the examples `index_B`, (B, K); of classes non-negative rows with sum 1."""
        return self._labels.targets(self.of("labels"), index_B)

    def step_sizes(self) -> Tensor | None:
        """The learned step sizes, (T,); None where they are not learned."""
        raw_T = self.parameters.get("step_sizes.raw_T")
        return None if raw_T is None else F.softplus(raw_T)

    def begins(self, steps: int) -> dict[str, int]:
        """The outer step, of so many, at which a parameter begins to move; 0 for those left out."""
        found = self._canvas.begins(self.of("canvas"), steps)
        return {f"canvas.{name}": step for name, step in found.items()}

    def project(self) -> None:
        """Move trained values back into their domain, in place."""
        self._canvas.project(self.of("canvas"))
        self._labels.project(self.of("labels"))

    def take_targets(self, targets_NK: Tensor) -> None:
        """Change the trained labels, in place, so that every example has this target."""
        self._labels.take(self.of("labels"), targets_NK)

    def stored(self) -> list[Tensor]:
        """What is published and counted: images, each (C, H, W) in [0, 1], or numbers."""
        return self._canvas.stored(self.of("canvas"))

    def stored_labels(self) -> Tensor:
        """The label of every cell, (G, K): what is published and counted of the labels."""
        return self._labels.stored(self.of("labels"))

    def preview(self) -> list[Tensor]:
        """Images for a person who looks at the canvas."""
        shown = self._canvas.preview(self.of("canvas"))
        if shown is None:
            with torch.no_grad():
                shown = list(self.pixels(torch.arange(min(self.count, SHEET), device=self.device)))
        return shown

    def geometry(self) -> dict[str, object]:
        """How examples are cut from the images that are stored, as JSON."""
        return {"canvas": self._canvas.name, **self._canvas.geometry(self.of("canvas"))}

    def of(self, part: str) -> Tensors:
        """The tensors of `canvas`, `labels` or `step_sizes` by the names that the part gave."""
        return {
            name.removeprefix(f"{part}."): tensor
            for tensors in (self.parameters, self.constants)
            for name, tensor in tensors.items()
            if name.startswith(f"{part}.")
        }


SHEET = 400
"""Examples that are shown of a canvas without previews of its own."""


def _named(part: str, tensors: Tensors) -> Iterable[tuple[str, Tensor]]:
    return ((f"{part}.{name}", tensor) for name, tensor in tensors.items())


@dataclass(frozen=True)
class DistilledImages:
    """The distilled set of a separable objective, once every block is solved.

    `images_NCHW` are 8-bit displayable pixels, mapped from a file; `classes_N` says whose each one
    is; `facts` has one entry per block: numbers such as `loss`, in the order of the blocks.
    """

    images_NCHW: Tensor
    classes_N: Tensor
    folder: Path
    facts: list[dict[str, float]]
