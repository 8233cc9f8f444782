"""What every room speaks of: a batch of examples, and the shape of one example.

Shape suffixes: B a batch, C channels, H W pixels, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """One real example and the classes: channels, height and width in pixels, number of classes."""

    c: int
    h: int
    w: int
    k: int


class Batch(NamedTuple):
    """Images in the student's input space and one target distribution each."""

    images_BCHW: Tensor
    targets_BK: Tensor
