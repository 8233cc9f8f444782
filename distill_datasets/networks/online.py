"""Networks that are trained on the way: on the distilled set (DC, DSA) or on real images (IDC).

Every few outer steps a lane starts with a fresh network; after the update of each other step it
trains that network a little. The loop carries its weights, and the state of its optimizer, from
step to step and into the saved state.

Shape suffixes: B examples of a batch, N rows to choose from, K classes, P all weights of a network.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, SerializeAsAny

from distill_datasets.config import part
from distill_datasets.models.architecture import Architecture, ArchitectureField
from distill_datasets.models.convnets import ConvNet
from distill_datasets.models.flops import WEIGHT_GRADIENT
from distill_datasets.networks.network import (
    CarryingSource,
    FlatNetwork,
    FreshSource,
    Networks,
    NetworkSource,
    Sampled,
    TrainedMembers,
    fresh_weights,
    skeleton_of,
)
from distill_datasets.optimizers import Optimizer, Sgd
from distill_datasets.runtime.draws import LaneDraw
from distill_datasets.runtime.memory import to_device
from distill_datasets.types import Batch, Shape
from distill_datasets.views.augment import Augment

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.real import RealData
    from distill_datasets.distilled import Distilled

CUTMIX_PROBABILITY = 0.5


class Trained(Networks):
    """Networks that a lane trains between the outer steps of a cycle."""

    network: ArchitectureField = Field(default=ConvNet(), description="what is drawn and trained")
    batch: int = Field(gt=0, description="examples of a training step")
    augment: Augment = Field(
        default=Augment(), description="of the training images, each moved by its own draw"
    )
    optimizer: Annotated[SerializeAsAny[Optimizer], part("optimizers")] = Field(
        description="rule that trains the networks"
    )

    @property
    @abstractmethod
    def cycle(self) -> int:
        """Outer steps from one fresh network to the next."""

    @abstractmethod
    def loss(self, logits_BK: Tensor, targets_BK: Tensor, real: RealData) -> Tensor:
        """The mean loss of a training step."""

    @abstractmethod
    def examples(self, distilled: Distilled, real: RealData, draw: LaneDraw) -> Iterator[Batch]:
        """The batches that the network is trained on after one outer step."""

    @abstractmethod
    def steps(self, distilled: Distilled, real: RealData) -> int:
        """How many batches `examples` gives."""

    @abstractmethod
    def images(self, examples: int) -> int:
        """How many images those batches have, given the number of distilled examples."""

    def work(self, flops_per_image: float, examples: int) -> float:
        trained = self.images(examples) * (self.cycle - 1) / self.cycle
        return WEIGHT_GRADIENT * flops_per_image * trained

    def build(
        self, shape: Shape, device: torch.device, squeezed: TrainedMembers | None = None
    ) -> NetworkSource:
        if self.cycle == 1:  # fresh at every step, so that none is ever trained
            return FreshSource(self.network, shape, device)
        return TrainedSource(self, shape, device)

    def architecture(self, squeezed: Architecture | None) -> Architecture:
        return self.network


class TrainedSource(CarryingSource):
    """Per lane the network of the current cycle: fresh at its start, then what was carried.

    A carried vector is [weights (P) | first tensor of the optimizer's state (P) | second (P) | ...]
    with as many tensors as the rule keeps: one for SGD, two for Adam.
    """

    def __init__(self, settings: Trained, shape: Shape, device: torch.device) -> None:
        self._settings = settings
        self._skeleton = skeleton_of(settings.network, shape)
        self._device = device
        self._carried: dict[int, Tensor] = {}
        self._weights = sum(parameter.numel() for parameter in self._skeleton.parameters())
        slots = len(settings.optimizer.start(torch.empty(0)))
        self.carried_values = (1 + slots) * self._weights

    def sample(self, draw: LaneDraw) -> Sampled:
        return FlatNetwork(self._skeleton, self._now(draw)[: self._weights])

    def _now(self, draw: LaneDraw) -> Tensor:
        """Weights and optimizer state of a lane in this step, as one vector."""
        if draw.step % self._settings.cycle:
            return self._carried[draw.lane]
        weights_P = fresh_weights(self._skeleton, draw("network"), self._device)
        return torch.cat([weights_P, *self._settings.optimizer.start(weights_P)])

    def advance(self, distilled: Distilled, real: RealData, draw: LaneDraw) -> Tensor:
        """The lane's network after its training, or as it is where a fresh one comes next.

        Source: DC (arXiv:2006.05929), algorithm 1.
        """
        now, cycle = self._now(draw), self._settings.cycle
        if (draw.step + 1) % cycle == 0:
            return now
        weights_P, *slots = torch.split(now, self._weights)
        state = tuple(slots)
        # the optimizer counts its steps from the start of the cycle: Adam's bias correction asks
        network = FlatNetwork(self._skeleton, weights_P)
        done = draw.step % cycle * self._settings.steps(distilled, real)
        for images_BCHW, targets_BK in self._settings.examples(distilled, real, draw):
            done += 1
            leaf_P = weights_P.detach().requires_grad_()
            loss = self._settings.loss(network(leaf_P, images_BCHW), targets_BK, real)
            (grad_P,) = torch.autograd.grad(loss, leaf_P)
            weights_P, state = self._settings.optimizer.step(weights_P, state, grad_P, done)
        return torch.cat([weights_P, *state])

    def carry(self, lane: int, values: Tensor) -> None:
        self._carried[lane] = values


class TrainedOnDistilled(Trained):
    """Networks trained on the distilled set as it is, between its updates (DC, DSA)."""

    paper: ClassVar[str] = "DC, arXiv:2006.05929; DSA, arXiv:2102.08259"
    name: Literal["trained_on_distilled"] = "trained_on_distilled"
    outer: int = Field(
        gt=0,
        le=10_000_000,
        description="outer steps with one network; then a fresh one (DC: 1 at ipc 1, else 10)",
    )
    epochs: int = Field(
        default=1,
        gt=0,
        le=100_000,
        description="passes over the distilled set after an outer step (DC: 50)",
    )
    batch: int = Field(default=256, gt=0, description="examples of a training step")
    optimizer: Annotated[SerializeAsAny[Optimizer], part("optimizers")] = Field(
        default=Sgd(lr=0.01, momentum=0.0), description="rule that trains the networks"
    )

    @property
    def cycle(self) -> int:
        return self.outer

    def loss(self, logits_BK: Tensor, targets_BK: Tensor, real: RealData) -> Tensor:
        return F.cross_entropy(logits_BK, targets_BK)

    def steps(self, distilled: Distilled, real: RealData) -> int:
        return self.epochs * math.ceil(distilled.count / self.batch)

    def images(self, examples: int) -> int:
        return self.epochs * examples

    def _batch(self, distilled: Distilled, index_B: Tensor, rng: torch.Generator) -> Batch:
        with torch.no_grad():
            images_BCHW, targets_BK = distilled(index_B)
            return Batch(self.augment(images_BCHW, rng), targets_BK)

    def examples(self, distilled: Distilled, real: RealData, draw: LaneDraw) -> Iterator[Batch]:
        for epoch in range(self.epochs):
            order_N = torch.randperm(distilled.count, generator=draw("train", "order", epoch))
            for place, index_B in enumerate(torch.split(order_N, self.batch)):
                yield self._batch(distilled, index_B, draw("train", "augment", epoch, place))


class TrainedOnReal(Trained):
    """Networks trained on real images between the updates of the distilled set (IDC)."""

    paper: ClassVar[str] = "IDC, arXiv:2205.14959"
    name: Literal["trained_on_real"] = "trained_on_real"
    every: int = Field(
        default=100,
        gt=0,
        le=10_000_000,
        description="outer steps with one network; then a fresh one",
    )
    real_images: int = Field(
        gt=0,
        description="real images, or all there are if fewer, that the network passes once after an "
        "outer step (IDC: 2000 or 500)",
    )
    batch: int = Field(default=64, gt=0, description="images of a training step")
    cutmix: bool = Field(
        default=True, description="every other batch at random pastes boxes of its images (CutMix)"
    )
    optimizer: Annotated[SerializeAsAny[Optimizer], part("optimizers")] = Field(
        default=Sgd(lr=0.01, momentum=0.9, weight_decay=0.0005),
        description="rule that trains the networks",
    )

    @property
    def cycle(self) -> int:
        return self.every

    def _rows(self, real: RealData) -> int:
        return min(self.real_images, len(real.train.labels_N))

    def steps(self, distilled: Distilled, real: RealData) -> int:
        return math.ceil(self._rows(real) / self.batch)

    def images(self, examples: int) -> int:
        return self.real_images

    def loss(self, logits_BK: Tensor, targets_BK: Tensor, real: RealData) -> Tensor:
        return real.loss(logits_BK, targets_BK)

    def _batch(self, real: RealData, index_B: Tensor, rng: torch.Generator) -> Batch:
        with torch.no_grad():
            images_BCHW, targets_BK = real.select(to_device(index_B, real.train.labels_N.device))
            batch = Batch(self.augment(images_BCHW, rng), targets_BK)
            if self.cutmix and float(torch.rand((), generator=rng)) < CUTMIX_PROBABILITY:
                return cut_and_mix(batch, rng)
            return batch

    def examples(self, distilled: Distilled, real: RealData, draw: LaneDraw) -> Iterator[Batch]:
        order_N = real.order(draw("train", "order"))
        for place, index_B in enumerate(torch.split(order_N[: self._rows(real)], self.batch)):
            yield self._batch(real, index_B, draw("train", "augment", place))


def cut_and_mix(batch: Batch, rng: torch.Generator) -> Batch:
    """Paste one box of every image from another image of the batch, and mix the targets by area.

    The box has a uniform share of the area before it is cut off at the edges; its center may lie
    anywhere.

    Source: CutMix (arXiv:1905.04899), algorithm A1, with alpha 1.
    """
    # a box with a share r of the area has sides sqrt(r) H and sqrt(r) W; y, x is its center
    images_BCHW, targets_BK = batch
    height, width = images_BCHW.shape[-2:]
    share, y, x = torch.rand(3, generator=rng).tolist()
    other_B = to_device(torch.randperm(len(images_BCHW), generator=rng), images_BCHW.device)
    inside_HW = torch.ones(height, width, dtype=torch.bool)
    for center, side, view in ((y, height, inside_HW), (x, width, inside_HW.T)):
        half = int(side * math.sqrt(share)) // 2
        middle = int(center * side)
        view[: max(0, middle - half)] = False
        view[middle + half :] = False
    pasted = float(inside_HW.float().mean())
    inside_HW = to_device(inside_HW, images_BCHW.device)
    # targets: (1 - a) t + a t' with a the share of pixels that the box has after it is cut off
    return Batch(
        torch.where(inside_HW, images_BCHW[other_B], images_BCHW),
        (1 - pasted) * targets_BK + pasted * targets_BK[other_B],
    )
