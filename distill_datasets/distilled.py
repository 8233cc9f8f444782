"""What is distilled: images and labels as tensors that are trained, whole or in blocks.

Shape suffixes: B a batch, N distilled examples, K classes, C channels, H W pixels, G cells of the
label grid.
"""

from __future__ import annotations

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
