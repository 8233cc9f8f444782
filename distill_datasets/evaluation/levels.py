"""The numbers of the standard protocol: two levels, each for small, middle and large images."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from distill_datasets.config import Section
from distill_datasets.errors import did_you_mean
from distill_datasets.models.architecture import Architecture, ArchitectureField
from distill_datasets.models.backbones import LinearProbe, LiteBackbone
from distill_datasets.models.convnets import ConvNet, Mlp, Vgg
from distill_datasets.models.vision import ResNet, Vit
from distill_datasets.training.rows import ROWS
from distill_datasets.types import Shape
from distill_datasets.views.augment import Augment

NAME = "standard-1"
AUGMENT = Augment(operations=["color", "crop", "cutout", "scale", "rotate"])
"""DSA's strategy for digits: a class may be told by its handedness, so nothing is mirrored."""


class Level(NamedTuple):
    """The numbers of a level for images of a size.

    students: of every row; their seeds pair the rows.
    fewer: students of the whole set, at other lengths, of other networks and under attack.
    steps: of a student.
    batch: at most; a smaller set is one batch.
    width: of the ConvNet.
    rates: step sizes that are tried.
    scored: held-out training images that tuning looks at, at most.
    test_images: at most.
    attacked: test images that are attacked and corrupted, at most.
    whole: passes over the whole set, and the most multiples of the steps that they may take.
    proxies: networks that learn the source to choose images, and their passes.
    """

    students: int
    fewer: int
    steps: int
    batch: int
    width: int
    rates: tuple[float, ...]
    scored: int
    test_images: int
    attacked: int
    whole: tuple[int, int]
    proxies: tuple[int, int]


TIMES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Multiples of the steps that the published rows and the best references are measured at."""
QUICK_RATES, FULL_RATES = (0.001, 0.003, 0.01), (0.0003, 0.001, 0.003, 0.01, 0.03)
EVERY_IMAGE = 10**9
LEVELS: dict[str, dict[int, Level]] = {
    "quick": {
        40: Level(4, 2, 200, 64, 32, QUICK_RATES, 500, 2_000, 300, (5, 20), (1, 6)),
        10_000: Level(3, 2, 200, 32, 32, QUICK_RATES, 200, 1_000, 100, (5, 20), (1, 6)),
    },
    "full": {
        16: Level(5, 5, 1_000, 128, 128, FULL_RATES, 5_000, EVERY_IMAGE, 1_000, (50, 40), (2, 20)),
        40: Level(5, 5, 2_000, 128, 128, FULL_RATES, 5_000, EVERY_IMAGE, 1_000, (50, 40), (2, 20)),
        10_000: Level(
            5, 5, 4_000, 128, 128, FULL_RATES, 5_000, EVERY_IMAGE, 1_000, (50, 40), (2, 20)
        ),
    },
}
"""By the level, then by the largest side in pixels."""
QUICK_ROWS = (
    *("random_real", "herding", "k_center", "class_mean", "k_means", "easy", "rded", "webp"),
    "full",
)
FULL_ROWS = (*(*QUICK_ROWS, "nearest", "forgetting", "el2n", "random_values", "jpeg", "webp_half"),)
OFFERED = tuple(name for name in ROWS if name in FULL_ROWS)
"""The rows of real images that may be asked for."""
RESNET_FROM = 32
"""From this side on, in pixels, a ResNet is among the other networks."""


class Standard(Section):
    """How thoroughly a published folder is measured by the standard protocol."""

    level: Literal["quick", "full"] = Field(
        default="quick", description="quick: minutes on two cores; full: hours there"
    )
    references: list[str] | None = Field(
        default=None, description="rows of real images beside the published ones; null: the level's"
    )
    network: ArchitectureField | None = Field(
        default=None, description="the students'; null: a ConvNet of the level's width"
    )
    networks: list[ArchitectureField] | None = Field(
        default=None,
        description="others that the published rows and the best references are measured on; null: "
        "the level's",
    )
    times: list[Annotated[float, Field(gt=0, le=1000)]] = Field(
        default=list(TIMES),
        description="multiples of the steps that the same rows are measured at",
    )
    robustness: bool = Field(
        default=True, description="attack and corrupt test images, beside random real images"
    )
    teacher: bool | None = Field(
        default=None,
        description="also with a teacher at training time (SL+KD), networks that have learned the "
        "source; null: in the full level",
    )
    students: int | None = Field(default=None, gt=0, le=1000, description="null: the level's")
    steps: int | None = Field(default=None, gt=0, le=10**7, description="null: the level's")
    checkpoint_seconds: float = Field(
        default=60.0, ge=0, description="at the end of a pass, time since the last checkpoint"
    )

    @model_validator(mode="after")
    def _rows_are_known(self) -> Self:
        for name in self.references or []:
            if name not in OFFERED:
                raise ValueError(f"references: no row {name!r}; {did_you_mean(name, OFFERED)}")
        return self

    def numbers(self, side: int) -> Level:
        """Those of the level for images of this larger side, with what was asked for instead."""
        by_side = LEVELS[self.level]
        level = by_side[min(most for most in by_side if side <= most)]
        students = self.students or level.students
        return level._replace(
            students=students, fewer=min(level.fewer, students), steps=self.steps or level.steps
        )

    def students_network(self, level: Level) -> Architecture:
        """The network of all rows."""
        return self.network or ConvNet(width=level.width)

    def others(self, own: Architecture, shape: Shape) -> list[Architecture]:
        """The other networks, without the students' own."""
        found = others_of(self.level, shape) if self.networks is None else self.networks
        return [network for network in found if network != own]

    @property
    def taught(self) -> bool:
        """Whether SL+KD is measured."""
        return self.level == "full" if self.teacher is None else self.teacher

    @property
    def asked(self) -> list[str]:
        """The names of the rows of real images."""
        if self.references is not None:
            return self.references
        return list(QUICK_ROWS if self.level == "quick" else FULL_ROWS)

    @property
    def changed(self) -> dict[str, Any]:
        """What is not as the version says, so that the numbers are no longer those of it."""
        given = self.model_dump(mode="json", include={"network", "students", "steps"})
        return {name: value for name, value in given.items() if value is not None}


def others_of(level: str, shape: Shape) -> list[Architecture]:
    """The other networks of a level: narrow ones in the quick one."""
    side, square = min(shape.h, shape.w), shape.h == shape.w
    if level == "quick":
        vits = [Vit(depth=2, width=96)] if square else []
        resnets = [ResNet(width=16)] if side >= RESNET_FROM else []
        return [Mlp(), *vits, *resnets]
    vits = [Vit()] if square else []
    return [ResNet(), Vgg(), Mlp(), *vits, LinearProbe(backbone=LiteBackbone())]
