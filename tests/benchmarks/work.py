"""What is measured: pieces of work, each done by a plain reference and by the library.

A work has sides. Every side is a function of a size that prepares data and networks and returns the
work itself, a function without arguments. `check` compares what the sides compute, at a small size
in double precision where autograd is compared.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

Size = Literal["tiny", "cpu", "paper"]
SIZES: tuple[Size, ...] = ("tiny", "cpu", "paper")
REFERENCE = "reference"

Run = Callable[[], object]


@dataclass(frozen=True)
class Work:
    """One row of the table for each side that is not the reference.

    `target` is the ratio of the reference's seconds to a side's that is aimed at on two CPU cores.
    `bounds` are the largest errors that `check` may find.
    """

    name: str
    text: Mapping[Size, str]
    sides: Mapping[str, Callable[[Size, torch.device], Run]]
    target: Mapping[str, float]
    check: Callable[[], dict[str, float]]
    bounds: Mapping[str, float]
    warm_up: int = 0
    """Rounds before those that are timed."""


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference as a share of the expected norm."""
    got, expected = got.detach(), expected.detach()
    return float((got - expected).norm() / expected.norm())
