"""The recipe's `squeeze` section: networks that know the real data before anything is distilled."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from distill_datasets.data.source import Source
from distill_datasets.networks.sources import ArchitectureField
from distill_datasets.students import Training
from distill_datasets.types import Architecture


class Squeeze(Training):
    """Which networks are trained on real data before anything is distilled."""

    networks: list[ArchitectureField] = Field(
        default=[], description="several networks instead of `network`, one member each"
    )
    weights: list[str] = Field(
        default=[],
        description="trained elsewhere, one member each: safetensors files, or Hub ids org/name or "
        "org/name@revision, with the names that torch gives the weights; nothing is trained",
    )
    schedule: Literal["constant", "cosine", "step"] = Field(
        default="constant",
        description="of the step size; cosine falls to zero, step to a tenth half-way",
    )
    members: int = Field(default=1, gt=0, description="networks, each with its own seed")
    epochs: int = Field(
        default=0, ge=0, description="passes over the training images; 0 only with weights"
    )
    warmup_epochs: int = Field(
        default=0, ge=0, description="first epochs, in which the step size rises from 1 %"
    )
    shards: int = Field(
        default=1,
        gt=0,
        description="equal pieces of a batch with BatchNorm statistics of their own; processes "
        "share them. 1: a process trains a member alone",
    )
    keep: Literal["every", "last"] = Field(
        default="last", description="weights after every epoch (trajectories), or after the last"
    )
    checkpoint_seconds: float = Field(
        default=60.0, ge=0, description="at the end of an epoch, time since the last checkpoint"
    )
    least_accuracy: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="share of the test images that a teacher has to get right; null: 5 x chance, "
        "at most half-way between chance and 1, and half of what its file claims",
    )
    source: Source | None = Field(
        default=None, description="another dataset to train on; null: the recipe's own"
    )

    @property
    def architectures(self) -> tuple[Architecture, ...]:
        """The network of every member."""
        return tuple(self.networks) or (self.network,) * self.members

    @model_validator(mode="before")
    @classmethod
    def _one_member_each(cls, raw: Any) -> Any:  # noqa: ANN401
        if not isinstance(raw, dict):
            return raw
        listed = raw.get("networks") or raw.get("weights")
        if isinstance(listed, list):
            raw = {"members": len(listed), **raw}
        networks = raw.get("networks")
        return {"network": networks[0], **raw} if isinstance(networks, list) and networks else raw

    @model_validator(mode="after")
    def _members_are_told_once(self) -> Self:
        for listed, name in ((self.networks, "networks"), (self.weights, "weights")):
            if listed and len(listed) != self.members:
                raise ValueError(
                    f"{name}: {len(listed)} of them for {self.members} members; leave members out"
                )
        if self.networks and self.network != self.networks[0]:
            raise ValueError("networks: stand for network and members; leave network out")
        return self

    @model_validator(mode="after")
    def _trained_here_or_elsewhere(self) -> Self:
        if not self.weights:
            if self.epochs <= self.warmup_epochs:
                raise ValueError(
                    f"epochs: got {self.epochs}, expected passes over the training images, more "
                    f"than warmup_epochs: {self.warmup_epochs}; or weights trained elsewhere"
                )
            if self.batch % self.shards:
                raise ValueError(
                    f"shards: {self.shards} do not divide batch: {self.batch} into equal pieces"
                )
            return self
        trained = set(type(self).model_fields) - {
            "network", "networks", "weights", "members", "least_accuracy", "source",
        }  # fmt: skip
        left = type(self)(epochs=1).model_copy(update={"epochs": 0})
        asked = sorted(name for name in trained if getattr(self, name) != getattr(left, name))
        if asked:
            raise ValueError(
                f"weights: nothing is trained, so leave {', '.join(asked)} out, or weights"
            )
        return self
