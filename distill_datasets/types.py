"""What every room speaks of: a batch of examples, and the shape of one example.

Shape suffixes: B a batch, C channels, H W pixels, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


Task = Literal["classes", "labels", "values"]
"""Whether a target is one class, any number of labels at once, or numbers; see `targets`."""


@dataclass(frozen=True)
class Shape:
    """One real example and its target: channels, height, width in pixels, number of outputs.

    The outputs are classes, labels or numbers, as the task says.
    """

    c: int
    h: int
    w: int
    k: int
    task: Task = "classes"


class Batch(NamedTuple):
    """Images in the student's input space and one target each, of classes a distribution."""

    images_BCHW: Tensor
    targets_BK: Tensor
