"""A pool of networks of several kinds and ages that are trained on the distilled set (FRePo).

Every outer step uses one network of the pool, in turn, and trains it one step on the distilled set
as it is then; a network that has reached the largest age is drawn anew. Ages are staggered, so that
the distilled set always meets networks of all ages, and of all architectures that are listed.

Shape suffixes: B examples of a batch, P all weights of a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, SerializeAsAny

from distill_datasets import targets
from distill_datasets.config import part
from distill_datasets.models.architecture import Architecture, ArchitectureField
from distill_datasets.models.flops import WEIGHT_GRADIENT
from distill_datasets.networks.network import (
    CarryingSource,
    FlatNetwork,
    Networks,
    NetworkSource,
    Sampled,
    TrainedMembers,
    fresh_weights,
    skeleton_of,
)
from distill_datasets.optimizers import Adam, Optimizer
from distill_datasets.runtime.draws import LaneDraw
from distill_datasets.runtime.precision import WHERE_FAST, Precision, computing_in
from distill_datasets.types import Shape
from distill_datasets.views.augment import Augment

if TYPE_CHECKING:
    from torch import Tensor, nn

    from distill_datasets.data.real import RealData
    from distill_datasets.distilled import Distilled


class Pool(Networks):
    """Networks of several ages and kinds, trained on the distilled set while it changes."""

    paper: ClassVar[str] = "FRePo, arXiv:2206.00719"
    name: Literal["pool"] = "pool"
    networks: list[ArchitectureField] = Field(
        min_length=1, description="architectures; members take them in turn"
    )
    members: int = Field(default=10, gt=0, le=10_000, description="networks of the pool")
    age: int = Field(
        default=100,
        gt=0,
        le=10_000_000,
        description="training steps after which a member is drawn anew",
    )
    batch: int | None = Field(
        default=None, gt=0, description="examples of a training step; null takes all of them"
    )
    augment: Augment = Field(
        default=Augment(), description="of the training images, each moved by its own draw"
    )
    optimizer: Annotated[SerializeAsAny[Optimizer], part("optimizers")] = Field(
        default=Adam(lr=0.001), description="rule that trains the members"
    )
    precision: Precision = Field(
        default="float32",
        description=f"of a training step; weights and loss are float32; {WHERE_FAST}",
    )

    def build(
        self, shape: Shape, device: torch.device, squeezed: TrainedMembers | None = None
    ) -> NetworkSource:
        return PoolSource(self, shape, device)

    def architecture(self, squeezed: Architecture | None) -> Architecture:
        return self.networks[0]

    def others(self) -> Sequence[Architecture]:
        return self.networks[1:]

    def work(self, flops_per_image: float, examples: int) -> float:
        """What a lane costs beside the objective: a training step of one member."""
        return WEIGHT_GRADIENT * flops_per_image * min(self.batch or examples, examples)


class Member(NamedTuple):
    """A network of the pool at an outer step: which one, where its values lie, and its age."""

    number: int
    skeleton: nn.Module
    first: int
    """Where the member's values begin in the vector that a lane carries."""
    weights: int
    age: int
    """Training steps that it has had since it was drawn; 0 is a fresh one."""


class PoolSource(CarryingSource):
    """Per lane a pool of its own, carried as one vector from step to step.

    The vector is [member 0 | member 1 | ...], each of them [weights (P) | first tensor of the
    optimizer's state (P) | second (P) | ...]. Which member a step uses and how old it is are
    functions of the step alone, so that nothing else has to be kept.
    """

    def __init__(self, settings: Pool, shape: Shape, device: torch.device) -> None:
        self._settings, self._device = settings, device
        kinds = [skeleton_of(architecture, shape) for architecture in settings.networks]
        self._skeletons = [kinds[number % len(kinds)] for number in range(settings.members)]
        self._sizes = [
            sum(weight.numel() for weight in skeleton.parameters()) for skeleton in self._skeletons
        ]
        self._slots = 1 + len(settings.optimizer.start(torch.empty(0)))
        self.carried_values = self._slots * sum(self._sizes)
        self._carried: dict[int, Tensor] = {}
        self._networks: dict[tuple[int, int], FlatNetwork] = {}

    def _network(self, member: Member, weights_P: Tensor, lane: int) -> FlatNetwork:
        """The member's network at these weights; a lane keeps one of every kind."""
        kind = (lane, member.number % len(self._settings.networks))
        if kind not in self._networks:
            self._networks[kind] = FlatNetwork(member.skeleton, weights_P)
        self._networks[kind].weights_P = weights_P
        return self._networks[kind]

    def _member(self, draw: LaneDraw) -> Member:
        """The member of this step: every member has a turn, then the first one again."""
        members, age = self._settings.members, self._settings.age
        # lanes begin with different members, so that a step with several shows several
        turn, number = draw.step // members, (draw.step + draw.lane) % members
        first = self._slots * sum(self._sizes[:number])
        # as if it had been drawn at another time than the others; the first turn finds it fresh
        birthday = number * age // members
        born = max(0, (turn + birthday) // age * age - birthday)
        return Member(number, self._skeletons[number], first, self._sizes[number], turn - born)

    def _values(self, member: Member, draw: LaneDraw) -> list[Tensor]:
        """Weights and optimizer state of a member, (P,) each."""
        carried = self._carried.get(draw.lane)
        if member.age == 0 or carried is None:
            weights_P = fresh_weights(member.skeleton, draw("network"), self._device)
            return [weights_P, *self._settings.optimizer.start(weights_P)]
        last = member.first + self._slots * member.weights
        return list(torch.split(carried[member.first : last], member.weights))

    def sample(self, draw: LaneDraw) -> Sampled:
        member = self._member(draw)
        return self._network(member, self._values(member, draw)[0], draw.lane)

    def advance(self, distilled: Distilled, real: RealData, draw: LaneDraw) -> Tensor:
        """The pool after one training step of this step's member.

        Source: FRePo (arXiv:2206.00719), algorithm 1.
        """
        member, settings = self._member(draw), self._settings
        weights_P, *state = self._values(member, draw)
        network, rng = self._network(member, weights_P, draw.lane), draw("train", "augment")
        index_B = torch.arange(distilled.count, device=distilled.device)
        if settings.batch is not None and settings.batch < distilled.count:
            order_N = torch.randperm(distilled.count, generator=draw("train", "order"))
            index_B = order_N[: settings.batch]
        with torch.no_grad():
            images_BCHW, targets_BK = distilled(index_B)
            images_BCHW = settings.augment(images_BCHW, rng)
        leaf_P = weights_P.detach().requires_grad_()
        with computing_in(settings.precision, self._device):
            logits_BK = network(leaf_P, images_BCHW)
        loss = targets.loss(real.shape.task, logits_BK.to(targets_BK.dtype), targets_BK)
        (grad_P,) = torch.autograd.grad(loss, leaf_P)
        moved = settings.optimizer.step(weights_P, tuple(state), grad_P, member.age + 1)
        pool = self._carried.get(draw.lane)
        pool = weights_P.new_zeros(self.carried_values) if pool is None else pool.clone()
        values = torch.cat([moved[0], *moved[1]])
        pool[member.first : member.first + len(values)] = values
        return pool

    def carry(self, lane: int, values: Tensor) -> None:
        self._carried[lane] = values
