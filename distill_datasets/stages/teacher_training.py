"""The recipe's `squeeze` section, and the training of one of its networks.

Shape suffixes: P all weights of a network.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from distill_datasets.data.source import Source
from distill_datasets.models.architecture import Architecture, ArchitectureField
from distill_datasets.models.flops import WEIGHT_GRADIENT
from distill_datasets.models.initialization import initialize
from distill_datasets.runtime.draws import Draw
from distill_datasets.runtime.processes import Runtime
from distill_datasets.training.checkpoint import TrainingCheckpoint
from distill_datasets.training.examples import Examples
from distill_datasets.training.flatness import Flatness, uphill
from distill_datasets.training.loop import Gradient, SupervisedTraining, Training, rate, steps_of
from distill_datasets.types import Shape

if TYPE_CHECKING:
    from torch import Tensor


class MemberNetworks(Training, ABC):
    """Which networks there are, a member each."""

    networks: list[ArchitectureField] = Field(
        default=[], description="several networks instead of `network`, one member each"
    )
    weights: list[str] = Field(
        default=[],
        description="trained elsewhere, one member each: safetensors files, or Hub ids org/name or "
        "org/name@revision, with the names that torch gives the weights; nothing is trained",
    )
    members: int = Field(default=1, gt=0, le=10_000, description="networks, each with its own seed")

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
    def _members_are_counted_once(self) -> Self:
        for listed, name in ((self.networks, "networks"), (self.weights, "weights")):
            if listed and len(listed) != self.members:
                raise ValueError(
                    f"{name}: {len(listed)} of them for {self.members} members; leave members out"
                )
        if self.networks and self.network != self.networks[0]:
            raise ValueError("networks: stand for network and members; leave network out")
        return self


class Squeeze(MemberNetworks):
    """Which networks are trained on real data before anything is distilled."""

    schedule: Literal["constant", "cosine", "step"] = Field(
        default="constant",
        description="of the step size; cosine falls to zero, step to a tenth half-way",
    )
    epochs: int = Field(
        default=0,
        ge=0,
        le=100_000,
        description="passes over the training images; 0 only with weights",
    )
    warmup_epochs: int = Field(
        default=0, ge=0, description="first epochs, in which the step size rises from 1 %"
    )
    shards: int = Field(
        default=1,
        gt=0,
        le=10_000,
        description="equal pieces of a batch with BatchNorm statistics of their own; processes "
        "share them. 1: a process trains a member alone",
    )
    flatness: Flatness | None = Field(
        default=None, description="train towards flat minima, at twice the work (FTD); null: no"
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


def squeeze_work(settings: Squeeze, flops_per_image: float, rows: int) -> float:
    """FLOPs of training the networks of which all together take so many for one image."""
    looks = 1 if settings.flatness is None else 2
    return looks * WEIGHT_GRADIENT * settings.epochs * rows * flops_per_image


class MemberTraining:
    """A network on its way through the training images, epoch by epoch."""

    def __init__(
        self,
        settings: Squeeze,
        architecture: Architecture,
        examples: Examples,
        shape: Shape,
        draw: Draw,
        device: torch.device,
    ) -> None:
        self.module = architecture.build(shape).to(device)
        initialize(self.module, draw("network"))
        per_epoch = steps_of(1, examples.count, settings.batch)
        steps, rising = settings.epochs * per_epoch, settings.warmup_epochs * per_epoch

        def step_size(step: int) -> float:
            return settings.optimizer.lr * rate(settings.schedule, step, steps, rising)

        self._settings, self._per_epoch = settings, per_epoch
        self._training = SupervisedTraining(
            settings, self.module, examples, draw, step_size, precision=settings.precision
        )
        self.rows = [self._weights_P()]
        """The weights that are kept, on the CPU: after every epoch, or the first and the last."""

    @property
    def epoch(self) -> int:
        """How many epochs are done."""
        return self._training.steps_done // self._per_epoch

    def restore(self, checkpoint: TrainingCheckpoint) -> bool:
        """Go on from what an earlier run left; returns whether it did."""
        saved = checkpoint.read()
        if saved is None:
            return False
        self._training.restore(*saved)
        kept = [name for name in saved[0] if name.startswith("rows/")]
        self.rows = [saved[0][f"rows/{row}"] for row in range(len(kept))]
        return True

    def train(
        self,
        runtime: Runtime,
        checkpoint: TrainingCheckpoint | None,
        advance: Callable[[float], None],
    ) -> None:
        """Train every epoch that is left.

        Args:
            runtime: processes and threads that share a batch of several shards.
            checkpoint: where the state is kept between epochs; None on processes that write none.
            advance: called with the loss of the last batch of every epoch.

        Raises:
            DistillError: the loss is not finite.
        """
        shared = self._settings.shards > 1 and runtime.processes > 1

        def stopping() -> bool:
            return self._training.all_stop if shared else runtime.stop.asked

        with self._gradient(runtime) as gradient:
            while self.epoch < self._settings.epochs:
                self._train_epoch(gradient, advance, stopping)
                unfinished = self.epoch < self._settings.epochs
                stops = unfinished and stopping()
                if checkpoint is not None and unfinished and (stops or checkpoint.is_due):
                    rows = {f"rows/{row}": kept_P for row, kept_P in enumerate(self.rows)}
                    checkpoint.write(self._training.state() | rows, self._training.steps_done)
                if stops:
                    if shared:
                        runtime.wait()  # who leaves first may end the one that writes
                    step, steps = self._training.steps_done, self._settings.epochs * self._per_epoch
                    raise runtime.stop.error(f"squeeze is saved after step {step} of {steps}")

    def _train_epoch(
        self, gradient: Gradient, advance: Callable[[float], None], stopping: Callable[[], bool]
    ) -> None:
        until = (self.epoch + 1) * self._per_epoch
        loss = self._training.train(gradient, until, stopping=stopping)
        if self._training.steps_done < until:
            return
        if self._settings.keep == "every" or self.epoch == self._settings.epochs:
            self.rows.append(self._weights_P())
        advance(loss.item())

    def _gradient(self, runtime: Runtime) -> AbstractContextManager[Gradient]:
        if self._settings.shards == 1:
            return nullcontext(self._flat(self._training.alone()))
        return self._flat_shared(runtime)

    @contextmanager
    def _flat_shared(self, runtime: Runtime) -> Iterator[Gradient]:
        with self._training.shared(runtime, self._settings.shards) as gradient:
            yield self._flat(gradient)

    def _flat(self, gradient: Gradient) -> Gradient:
        flatness = self._settings.flatness
        return gradient if flatness is None else uphill(flatness, gradient, self.module)

    def _weights_P(self) -> Tensor:
        return nn.utils.parameters_to_vector(self.module.parameters()).detach().cpu().clone()
