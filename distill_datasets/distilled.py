"""What is distilled: images and labels as tensors that are trained, whole or in blocks.

Beside them what is told of them beforehand, and what an objective says of them on the way.

Shape suffixes: B a batch, N distilled examples, K classes, C channels, H W pixels, G cells of the
label grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Batch(NamedTuple):
    """Images in the student's input space and one target distribution each."""

    images_BCHW: Tensor
    targets_BK: Tensor


class Block(NamedTuple):
    """Places in the class-major distilled set (label * ipc + i) that are solved together."""

    places_N: tuple[int, ...]


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


class Estimate(NamedTuple):
    """What an objective returns for one lane: a gradient per parameter of the distilled set."""

    loss: float
    grads: dict[str, Tensor]
    metrics: dict[str, float]
    """Numbers that trackers log beside the loss, of lane 0."""
    counts: bool = True
    """False leaves the lane out of this step's mean; a step in which none counts moves nothing."""


@dataclass(frozen=True)
class Recovered:
    """The distilled set of a separable objective, once every block is solved.

    `images_NCHW` are 8-bit displayable pixels, mapped from a file; `classes_N` says whose each one
    is; `facts` has one entry per block: numbers such as `loss`, in the order of the blocks.
    """

    images_NCHW: Tensor
    classes_N: Tensor
    folder: Path
    facts: list[dict[str, float]]
