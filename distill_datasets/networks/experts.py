"""Networks that were trained on real data ahead of time, at the end of it or on the way.

Shape suffixes: P all weights of a network in one vector.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator

from distill_datasets.config import Section
from distill_datasets.models.architecture import Architecture
from distill_datasets.networks.network import (
    FlatNetwork,
    MemberSettings,
    Networks,
    NetworkSource,
    Sampled,
    TrainedMembers,
    present,
    skeleton_of,
    squeezed_architecture,
)
from distill_datasets.runtime.draws import Draw, LaneDraw
from distill_datasets.runtime.memory import to_device
from distill_datasets.types import Shape

if TYPE_CHECKING:
    from torch import Tensor


class Growth(Section):
    """Start epochs that become later while the outer loop runs."""

    start_last: int = Field(gt=0, description="exclusive upper end of the start epochs at step 0")
    steps: int = Field(gt=0, description="outer steps until the upper end has reached `last`")


class TrajectorySource(NetworkSource):
    """An expert at a random epoch, and where it was some epochs later."""

    def __init__(
        self, networks: Trajectories, squeezed: TrainedMembers, shape: Shape, device: torch.device
    ) -> None:
        self._networks = networks
        self._squeezed = squeezed
        self._skeleton = skeleton_of(squeezed.architectures[0], shape)
        self._device = device

    def sample(self, draw: LaneDraw) -> Sampled:
        rng = draw("network")
        member = int(torch.randint(len(self._squeezed.architectures), (), generator=rng))
        upper = self._networks.upper(draw.step)
        start = int(torch.randint(self._networks.first, upper, (), generator=rng))
        weights_P, target_P = (
            to_device(self._squeezed.weights(member, epoch), self._device)
            for epoch in (start, start + self._networks.gap)
        )
        return FlatNetwork(self._skeleton, weights_P, target_P)


class Trajectories(Networks):
    """Experts on their way through real data: where one stood, and where it went."""

    paper: ClassVar[str] = "MTT, arXiv:2203.11932; DATM, arXiv:2310.05773"
    offers: ClassVar[frozenset[str]] = frozenset({"trajectory"})
    needs_squeezed: ClassVar[bool] = True
    name: Literal["trajectories"] = "trajectories"
    gap: int = Field(default=2, gt=0, le=100_000, description="epochs from start to target (M)")
    first: int = Field(default=0, ge=0, description="earliest start epoch (T-); 0 is untrained")
    last: int = Field(gt=0, le=100_000, description="end of the start epochs, itself excluded (T+)")
    grow: Growth | None = Field(
        default=None, description="easy starts first: the end of the start epochs rises to `last`"
    )

    @model_validator(mode="after")
    def _epochs_are_in_order(self) -> Self:
        if self.first >= self.last:
            raise ValueError(
                f"first: {self.first} leaves no start epoch below last: {self.last}; `last` itself "
                "is excluded"
            )
        if self.grow is not None and not self.first < self.grow.start_last <= self.last:
            raise ValueError(
                f"grow.start_last: got {self.grow.start_last}, expected a value above first: "
                f"{self.first} and up to last: {self.last}"
            )
        return self

    def upper(self, step: int) -> int:
        """The end of the start epochs at an outer step, itself excluded.

        Source: DATM (arXiv:2310.05773), section 4.2; it rises linearly and is rounded down.
        """
        if self.grow is None:
            return self.last
        rise = self.last - self.grow.start_last
        return self.grow.start_last + rise * min(step, self.grow.steps) // self.grow.steps

    def problems(self, squeezed: MemberSettings) -> Iterator[str]:
        cannot = f"distill.networks: {self.name!r} cannot use these experts;"
        if squeezed.keep != "every":
            yield f"{cannot} squeeze.keep: got {squeezed.keep!r}, expected 'every'"
        needed = self.last - 1 + self.gap
        if squeezed.epochs < needed:
            yield (
                f"{cannot} squeeze.epochs: got {squeezed.epochs}, expected at least {needed}: an "
                f"expert that starts after epoch {self.last - 1} is asked for again {self.gap} "
                "epochs later"
            )

    def build(
        self, shape: Shape, device: torch.device, squeezed: TrainedMembers | None = None
    ) -> NetworkSource:
        return TrajectorySource(self, present(squeezed, self), shape, device)

    def architecture(self, squeezed: Architecture | None) -> Architecture:
        return squeezed_architecture(squeezed, self)


class PretrainedSource(NetworkSource):
    """Members after their last epoch, some of them kept for students."""

    def __init__(
        self, squeezed: TrainedMembers, held_out: int, shape: Shape, device: torch.device
    ) -> None:
        self._squeezed = squeezed
        self._seen = len(squeezed.architectures) - held_out
        self._held_out = held_out
        self._skeleton = skeleton_of(squeezed.architectures[0], shape)
        self._device = device

    def sample(self, draw: LaneDraw) -> Sampled:
        member = int(torch.randint(self._seen, (), generator=draw("network")))
        return FlatNetwork(self._skeleton, self._weights(member))

    def start(self, student: int, draw: Draw) -> Tensor:
        if self._held_out:
            return self._weights(self._seen + student % self._held_out)
        return self._weights(student % self._seen)

    def _weights(self, member: int) -> Tensor:
        return to_device(self._squeezed.weights(member, self._squeezed.epochs), self._device)


class Pretrained(Networks):
    """Networks that already know the real data: one (fixed), or one of many (random)."""

    paper: ClassVar[str] = "Dataset Distillation, arXiv:1811.10959, pre-trained networks"
    needs_squeezed: ClassVar[bool] = True
    has_start: ClassVar[bool] = True
    name: Literal["pretrained"] = "pretrained"
    held_out: int = Field(
        default=0,
        ge=0,
        description="last members, never distilled with, that students start from; 0: students "
        "start from the members that are distilled with",
    )

    def problems(self, squeezed: MemberSettings) -> Iterator[str]:
        members = len(squeezed.architectures)
        if self.held_out >= members:
            yield (
                f"distill.networks.held_out: got {self.held_out} of squeeze.members: {members}, "
                "expected at least one member to distill with; lower held_out or raise "
                "squeeze.members"
            )

    def build(
        self, shape: Shape, device: torch.device, squeezed: TrainedMembers | None = None
    ) -> NetworkSource:
        return PretrainedSource(present(squeezed, self), self.held_out, shape, device)

    def architecture(self, squeezed: Architecture | None) -> Architecture:
        return squeezed_architecture(squeezed, self)
