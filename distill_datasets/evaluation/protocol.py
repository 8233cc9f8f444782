"""The recipe's `evaluate` section: how students are trained, on what, and how many of them."""

import math
from collections.abc import Iterator
from typing import Literal, Self

from pydantic import Field, model_validator

from distill_datasets.evaluation.beyond import Beyond
from distill_datasets.training.loop import steps_of
from distill_datasets.training.rows import ROWS, Reference, ResultRow
from distill_datasets.training.student import Student
from distill_datasets.views.relabel import Relabel


class Evaluate(Student):
    """How the published dataset is measured: by training fresh students on it."""

    students: int = Field(
        default=8, gt=0, le=10_000, description="fresh students, each with its own seed"
    )
    steps: int | None = Field(
        default=None, gt=0, le=10_000_000, description="training steps of a student"
    )
    epochs: int | None = Field(
        default=None, gt=0, le=100_000, description="or passes over what it trains on"
    )
    order: Literal["shuffled", "published"] = Field(
        default="shuffled",
        description="of the examples: shuffled every pass, or at each step those that are "
        "published for it; references are shuffled",
    )
    start: Literal["fresh", "distilled"] = Field(
        default="fresh",
        description="weights a student starts from: its own draw, or those the networks of distill "
        "start from, which are published; references too",
    )
    exact: bool = Field(
        default=True, description="also measure the float pixels before rounding to 8 bits"
    )
    hard: bool = Field(
        default=True,
        description="with relabel: also students of the classes alone, on views drawn live",
    )
    references: list[Reference] = Field(
        default=[],
        description="rows to compare with: random, chosen (herding, k_center, nearest) and mean "
        "(class_mean) real images at the same number of pixels, shrunk where they are fewer than "
        "classes; twice as many centers, shrunk (k_means); random ones as lossy WebP at the bytes "
        "of the published images (webp); and the whole dataset",
    )
    full_epochs: int = Field(
        default=20, gt=0, le=100_000, description="training of the `full` reference"
    )
    full_students: int = Field(
        default=2, gt=0, le=10_000, description="students of the `full` reference"
    )
    beyond: Beyond | None = Field(
        default=Beyond(),
        description="also measured: longer training, other networks, tuned step sizes; null: none, "
        "as with relabel or a frozen backbone",
    )
    checkpoint_seconds: float = Field(
        default=60.0, ge=0, description="at the end of a pass, time since the last checkpoint"
    )

    @model_validator(mode="after")
    def _one_duration(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            got = "neither" if self.steps is None else "both"
            raise ValueError(f"got {got}, expected either steps or epochs")
        if self.epochs is not None and self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs: got {self.warmup_epochs} of {self.epochs} epochs, expected fewer"
            )
        if self.hard_passes is not None and self.hard_passes.until > (self.epochs or math.inf):
            raise ValueError(
                f"hard_passes.until: got {self.hard_passes.until} of {self.epochs} epochs, "
                f"expected at most {self.epochs}"
            )
        if len(set(self.references)) != len(self.references):
            raise ValueError(f"references: expected no repeats, got {self.references}")
        return self

    def problems(self, relabel: Relabel | None) -> Iterator[str]:
        """Why a recipe with this relabel section, or none, cannot be measured."""
        if relabel is None:
            if self.loss != "soft":
                yield (
                    f"evaluate.loss: {self.loss} compares with a teacher's logits, which a relabel "
                    "section makes; add one, or take loss: soft"
                )
            if self.hard_passes is not None:
                yield (
                    "evaluate.hard_passes: stand between passes of a teacher's labels, which a "
                    "relabel section makes; add one, or leave hard_passes out"
                )
            return
        if self.loss == "mse" and relabel.store == "top_k":
            yield (
                "evaluate.loss: mse compares all logits, and relabel.store: top_k keeps some; set "
                "relabel.store: logits"
            )
        for name in ("k_means", "webp"):
            if name in self.references:
                yield (
                    f"evaluate.references: {name} shows shrunk images, and teachers label views of "
                    "whole ones; leave it out"
                )
        if self.augment.operations:
            yield (
                "evaluate.augment: a label of relabel belongs to the very pixels that were "
                "labeled; leave augment out and set crop, flip and mix of relabel"
            )
        for setting, is_asked in (
            (f"schedule: {self.schedule}", self.follows_step_sizes),
            ("order: published", self.order == "published"),
            ("start: distilled", self.start == "distilled"),
        ):
            if is_asked:
                yield (
                    f"evaluate.{setting}: students of relabel follow the order of their labels and "
                    "their own schedule; leave it out"
                )

    def compared(self, *, relabeled: bool, exact: bool) -> list[ResultRow]:
        """The rows of the results, in their order.

        Args:
            relabeled: whether teachers labeled views.
            exact: whether float pixels are published.
        """
        is_asked = {
            "exact": self.exact and exact and not relabeled,
            "start": self.start == "distilled" and not relabeled,
            "hard": self.hard and relabeled,
            "random_real_hard": self.hard and relabeled and "random_real" in self.references,
            "teacher": relabeled,
        }
        references = dict.fromkeys(self.references, True)
        asked = {"default": True} | is_asked | references
        return [row for name, row in ROWS.items() if asked.get(name)]

    def measured_beyond(self, *, relabeled: bool) -> Beyond | None:
        """`beyond`, where students train on images of their own; None where nothing is."""
        return None if relabeled or self.network.frozen() is not None else self.beyond

    def duration(self, count: int) -> int:
        """Training steps on `count` examples."""
        return self.steps or steps_of(self.epochs or 0, count, self.batch)
