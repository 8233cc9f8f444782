"""The `relabel` section: which views are drawn, how teachers label them, what is stored.

Fast Knowledge Distillation (FKD): instead of one label per image, a teacher labels many views of
it ahead of time, and the student sees these very views.
"""

from abc import ABC
from collections.abc import Iterator
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from distill_datasets.config import Section
from distill_datasets.runtime.precision import WHERE_FAST, Precision
from distill_datasets.types import Shape
from distill_datasets.views.crops import RandomCrop

Store = Literal["logits", "top_k", "features"]


class ViewSettings(Section, ABC):
    """Which views are drawn: a crop or a shift, mirrored, shuffled by tiles, mixed by the batch."""

    epochs: int = Field(default=300, gt=0, le=100_000, description="views of every image")
    batch: int = Field(
        default=100,
        gt=1,
        le=1_000_000,
        description="views that a teacher labels at once and are mixed together",
    )
    crop: RandomCrop | None = Field(default=RandomCrop(), description="of random area; null: none")
    pad: int = Field(
        default=0,
        ge=0,
        le=10_000,
        description="or shifts by up to so many pixels, black beyond the edge",
    )
    flip: bool = Field(default=True, description="mirror left and right, half of the time")
    tiles: int = Field(
        default=1,
        ge=1,
        le=256,
        description="tiles per side that are shuffled before the crop (RDED: 2)",
    )
    mix: Literal["cutmix", "mixup", "none"] = Field(
        default="cutmix", description="of two views; one box or share for every batch"
    )
    mix_alpha: float = Field(
        default=1.0, gt=0, description="of the Beta distribution of a view's own share"
    )

    @model_validator(mode="after")
    def _one_crop(self) -> Self:
        if self.pad and self.crop is not None:
            raise ValueError("pad: got both pad and crop, expected one of them; set crop: null")
        return self

    def batches(self, count: int) -> list[tuple[int, int]]:
        """Where the batches of an epoch of `count` views start and stop.

        The last is short where `batch` does not divide `count`; a last one of a single view, which
        can neither be mixed nor have statistics, belongs to the batch before.
        """
        starts = list(range(0, count, self.batch))
        if len(starts) > 1 and count - starts[-1] == 1:
            starts.pop()
        return list(zip(starts, [*starts[1:], count], strict=True))


class EnsembleSettings(Section, ABC):
    """How the teachers label a batch of views, each alone and all together."""

    batch_norm: Literal["eval", "batch"] = Field(
        default="eval",
        description="statistics of the teacher: those it was trained with, or those of the views "
        "labeled together (SRe2L++)",
    )
    groups: int = Field(
        default=1,
        ge=1,
        description="parts of a batch with statistics of their own (SRe2L++: 2)",
    )
    teachers: Literal["mean", "rescaled"] = Field(
        default="mean",
        description="of several: the mean of their logits; rescaled gives those of every teacher "
        "the mean of their lengths first (G-VBSM)",
    )
    weights: list[float] | None = Field(
        default=None, description="of every teacher in the mean; 0 leaves one out; null: alike"
    )
    precision: Precision = Field(default="float32", description=f"of the teachers; {WHERE_FAST}")

    @model_validator(mode="after")
    def _weights_are_shares(self) -> Self:
        if self.weights is not None and (
            min(self.weights, default=-1) < 0 or not sum(self.weights)
        ):
            raise ValueError(
                f"weights: got {self.weights}, expected numbers >= 0, not all of them 0"
            )
        return self

    @property
    def norm_groups(self) -> int:
        """Parts of a batch with BatchNorm statistics of their own; 0 where no view shares any."""
        return self.groups if self.batch_norm == "batch" else 0

    @property
    def kept_apart(self) -> set[str]:
        """Keys that came later, at values that change nothing: without them hashes stay."""
        return {"precision"} if self.precision == "float32" else set()

    def weights_of(self, teachers: int) -> list[float]:
        """The weight of each of so many teachers."""
        return self.weights or [1.0] * teachers


class LabelStorage(Section, ABC):
    """How many labels are kept, in which code, and in which files they are published."""

    store: Store = Field(
        default="logits",
        description="float16 logits; the largest of them; or the teacher's features with its "
        "classifier once, which give the same logits",
    )
    top_k: int | None = Field(default=None, gt=0, description="logits kept by store: top_k")
    keep: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="share of the batches that are labeled; students then draw batches from them "
        "with replacement (LPLD)",
    )
    parquet_below_bytes: int = Field(
        default=10**9,
        ge=0,
        description="labels of up to so many bytes are published as Parquet, more as tar shards",
    )

    @model_validator(mode="after")
    def _top_k_is_stored(self) -> Self:
        if (self.top_k is not None) != (self.store == "top_k"):
            raise ValueError(
                f"top_k: got {self.top_k} with store: {self.store}, expected a number of logits "
                "with store: top_k and null otherwise"
            )
        return self


# pydantic collects fields from the last base to the first: views, ensemble, storage
class Relabel(LabelStorage, EnsembleSettings, ViewSettings):
    """Teacher labels of recorded views, made once for all students."""

    paper: ClassVar[str] = "FKD, arXiv:2112.01528; SRe2L, arXiv:2306.13092"

    @model_validator(mode="after")
    def _groups_of_batch_statistics(self) -> Self:
        if self.groups > 1 and self.batch_norm == "eval":
            raise ValueError(
                f"groups: got {self.groups} with batch_norm: eval, which knows no groups; set "
                "batch_norm: batch"
            )
        if 2 * self.groups > self.batch:
            raise ValueError(
                f"groups: got {self.groups} of a batch of {self.batch}, expected at least two "
                "views in each"
            )
        return self

    def problems(self, shape: Shape, teachers: int) -> Iterator[str]:
        """What does not fit the images, the classes or the number of teachers."""
        if shape.h % self.tiles or shape.w % self.tiles:
            yield (
                f"relabel.tiles: got {self.tiles} per side, expected a divisor of {shape.h} and "
                f"{shape.w}, the sides of an image in pixels"
            )
        if self.top_k is not None and self.top_k > shape.k:
            yield f"relabel.top_k: got {self.top_k}, expected at most the {shape.k} classes"
        weights = self.weights_of(teachers)
        if len(weights) != teachers:
            yield (
                f"relabel.weights: got {len(weights)} of them for {teachers} teachers; give one "
                "for each network of squeeze"
            )
        used = sum(weight > 0 for weight in weights)
        if self.store == "features" and used > 1:
            yield (
                f"relabel.store: features are those of one teacher, got {used}; set store: logits, "
                "or relabel.weights with one that is not 0"
            )

    def units(self, count: int) -> int:
        """Batches that are labeled, counted over all epochs: the first `keep` of them."""
        return max(1, round(self.keep * self.epochs * len(self.batches(count))))

    def pool(self, count: int) -> int | None:
        """Units that students draw from with replacement; None where they take whole epochs."""
        return self.units(count) if self.keep < 1 else None
