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

Shape suffixes: N examples, G cells, C channels, H W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from distill_datasets.config import Part
from distill_datasets.selection.selection import Teacher
from distill_datasets.types import Shape

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.real import RealData
    from distill_datasets.distilled import CanvasModule


class Shown(NamedTuple):
    """What examples show of the classes before they are built, as a `CanvasModule` has it.

    `mix_NG` is the share of each example that lies on each cell; `cells_G` says whose cell it is,
    None where the images decide.
    """

    mix_NG: Tensor
    cells_G: Tensor | None


class CanvasSize(NamedTuple):
    """A budget before anything is built: trained images as (height, width), and examples."""

    originals: Sequence[tuple[int, int]]
    examples: int


class Canvas(Part, ABC):
    """The axis that says what is trained and how it becomes images."""

    @property
    def needs_squeezed(self) -> bool:
        """True when its initial images are made with the networks of the squeeze stage."""
        return False

    @abstractmethod
    def build(
        self, real: RealData, rng: torch.Generator, teacher: Teacher | None = None
    ) -> CanvasModule:
        """Trainable tensors at their initial values.

        Raises:
            RecipeError: the budget or the sizes cannot hold the classes or one example.
        """

    @abstractmethod
    def size(self, shape: Shape) -> CanvasSize:
        """What `build` will make, without making it; raises the same errors."""

    def shown(self, shape: Shape, real: RealData | None = None) -> Shown | None:
        """What the examples of `build` show of the classes, where it is not one class each of all.

        Whose cells they are may depend on the images, which only `real` tells.
        """
        return None


Bounds = Literal["sigmoid", "clip"]


EDGE = 0.02
"""Real pixels are pulled this far inside the range, where the sigmoid still has a slope."""


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
