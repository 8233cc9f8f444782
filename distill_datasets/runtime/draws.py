"""Randomness as a pure function: the same words give the same stream, on any process."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Protocol

import torch


class Draw(Protocol):
    """Randomness as a pure function: the same words give the same stream, on any process."""

    def __call__(self, *what: str | int) -> torch.Generator: ...


def rng_for(seed: int, *what: str | int) -> torch.Generator:
    """The random stream of one named piece of work.

    A pure function: nothing is carried from draw to draw, so nothing has to be saved to resume.

    Args:
        seed: the recipe's seed.
        what: words and numbers that name the draw, for example ("distill", step, lane, "network").

    Returns:
        A generator on the CPU.
    """
    digest = hashlib.sha256(json.dumps([seed, *what]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def draws(seed: int, *prefix: str | int) -> Draw:
    """`rng_for` with the first words given."""

    def draw(*what: str | int) -> torch.Generator:
        return rng_for(seed, *prefix, *what)

    return draw


@dataclass(frozen=True)
class LaneDraw:
    """The randomness of one lane of one outer step: `rng_for` with its place given.

    Attributes:
        seed: the recipe's seed.
        step: outer step, from 0.
        lane: lane, from 0.
        steps: outer steps in all.
    """

    seed: int
    step: int
    lane: int
    steps: int | None = None

    @property
    def progress(self) -> float:
        """The share of the outer steps that are done, in [0, 1)."""
        assert self.steps is not None, "the outer loop says how many steps there are"
        return self.step / self.steps

    def __call__(self, *what: str | int) -> torch.Generator:
        return rng_for(self.seed, "distill", self.step, self.lane, *what)

    def always(self, *what: str | int) -> torch.Generator:
        """A stream that is the same in every lane of every step."""
        return rng_for(self.seed, "distill", *what)
