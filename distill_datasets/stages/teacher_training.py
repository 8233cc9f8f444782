"""The recipe's `squeeze` section, and the training of one of its networks.

It is plain supervised training that can be stopped after any epoch and shared by processes. A
checkpoint after an epoch holds everything that the next one changes; order, augmentation and
dropout are pure functions of the seed and the step. Shared, every batch falls into equal pieces
that see BatchNorm statistics of their own, as each process of torch's DistributedDataParallel does;
the pieces are those of the recipe, however many processes there are.

Shape suffixes: B examples of a batch, P all weights of a network.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from distill_datasets.data.source import Source
from distill_datasets.errors import DistillError
from distill_datasets.files.artifacts import read_tensors, write_tensors
from distill_datasets.models.architecture import Architecture, ArchitectureField
from distill_datasets.models.initialization import drawing, initialize
from distill_datasets.runtime.draws import Draw
from distill_datasets.runtime.processes import Runtime
from distill_datasets.training.checkpoint import restore_state, state_of
from distill_datasets.training.examples import Examples
from distill_datasets.training.student import CHECKED, WARMUP_START, Training, rate
from distill_datasets.types import Shape


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


Step = Callable[[Tensor, int], Tensor]
"""Puts the gradient of a batch at a step into the weights' `grad`; returns the loss."""


class MemberTraining:
    """A network on its way through the examples, at the end of an epoch or before the first."""

    def __init__(
        self,
        settings: Squeeze,
        architecture: Architecture,
        examples: Examples,
        shape: Shape,
        draw: Draw,
        device: torch.device,
    ) -> None:
        self._settings, self._examples, self._draw, self._device = settings, examples, draw, device
        self._batch = min(settings.batch, examples.count)
        self._per_epoch = examples.count // self._batch
        self.module = architecture.build(shape).to(device)
        initialize(self.module, draw("network"))
        self.module.train()
        self._parameters = list(self.module.parameters())
        self._optimizer = settings.optimizer.torch_optimizer(self._parameters)
        self.epoch = 0
        self.rows = [self._weights_P()]
        """The weights that are kept, on the CPU: after every epoch, or the first and the last."""

    def save(self, path: Path) -> None:
        """Write everything that an epoch changes as one file, atomically."""
        tensors = state_of(self.module, self._optimizer)
        tensors |= {f"rows/{row}": weights_P for row, weights_P in enumerate(self.rows)}
        write_tensors(path, tensors, {"epoch": self.epoch})

    def restore(self, path: Path) -> None:
        """Go on from what `save` wrote."""
        tensors, note = read_tensors(path)
        restore_state(self.module, self._optimizer, tensors)
        kept = [name for name in tensors if name.startswith("rows/")]
        self.rows = [tensors[f"rows/{row}"] for row in range(len(kept))]
        self.epoch = note["epoch"]

    def train_epoch(self, gradient: Step) -> float:
        """One pass over the examples; returns the loss of its last batch.

        Raises:
            DistillError: the loss is not finite.
        """
        steps = self._settings.epochs * self._per_epoch
        order_N = self._examples.order(self._draw("order", self.epoch), self._batch)
        loss = torch.zeros(())
        for place in range(self._per_epoch):
            step = self.epoch * self._per_epoch + place
            for group in self._optimizer.param_groups:
                group["lr"] = self._settings.optimizer.lr * self._rate(step, steps)
            self._optimizer.zero_grad()
            loss = gradient(order_N[place * self._batch : (place + 1) * self._batch], step)
            self._optimizer.step()
            last = place == self._per_epoch - 1
            if (last or step % CHECKED == 0) and not bool(loss.isfinite()):
                raise DistillError(
                    f"a network's training loss is {loss.item()} at step {step}; lower its "
                    "optimizer.lr"
                )
        self.epoch += 1
        if self._settings.keep == "every" or self.epoch == self._settings.epochs:
            self.rows.append(self._weights_P())
        return loss.item()

    def alone(self, index_B: Tensor, step: int) -> Tensor:
        """The gradient of a batch, by this process and thread."""
        loss = self._loss(self.module, index_B, step)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    @contextmanager
    def shared(self, runtime: Runtime) -> Iterator[Step]:
        """Takes the gradient of a batch in `shards` pieces, dealt to processes and threads.

        The weights move alike on all processes. Buffers are those that piece 0 has seen, on the
        main process alone.
        """
        shards, mine = self._settings.shards, runtime.mine(self._settings.shards)
        weights: dict[int, object] = {id(weight): weight for weight in self._parameters}
        # the same weights in modules of their own: pieces are threads, and buffers change
        modules = {
            piece: copy.deepcopy(self.module, dict(weights)) if piece else self.module
            for piece in mine
        }
        sizes = [weight.numel() for weight in self._parameters]
        like = torch.zeros(1 + sum(sizes), device=self._device)
        with runtime.pool(shards) as run_pieces:

            def gradient(index_B: Tensor, step: int) -> Tensor:
                rows = torch.split(index_B, len(index_B) // shards)

                def work(piece: int) -> Tensor:
                    loss = self._loss(modules[piece], rows[piece], step, piece)
                    grads = torch.autograd.grad(loss, self._parameters, materialize_grads=True)
                    return torch.cat([loss.detach()[None], *(grad.flatten() for grad in grads)])

                parts = dict(zip(mine, run_pieces(work, mine), strict=True))
                mean = runtime.sum_in_order(parts, shards, like) / shards
                pieces = torch.split(mean[1:], sizes)
                for weight, grad_P in zip(self._parameters, pieces, strict=True):
                    weight.grad = grad_P.view_as(weight)
                return mean[0]

            yield gradient

    def _loss(self, module: nn.Module, index_B: Tensor, step: int, *piece: int) -> Tensor:
        """The mean loss on the examples `index_B`; a piece has draws of its own."""
        images_BCHW, targets_BK = self._examples(index_B.to(self._device))
        images_BCHW = self._settings.augment(images_BCHW, self._draw("augment", step, *piece))
        with drawing(module, self._draw("dropout", step, *piece)):
            return self._examples.loss(module(images_BCHW), targets_BK)

    def _rate(self, step: int, steps: int) -> float:
        """The factor on the step size: a linear rise, then the schedule over what is left."""
        rising = self._settings.warmup_epochs * self._per_epoch
        if step < rising:
            return WARMUP_START + (1 - WARMUP_START) * step / rising
        return rate(self._settings.schedule, step - rising, steps - rising)

    def _weights_P(self) -> Tensor:
        return nn.utils.parameters_to_vector(self._parameters).detach().cpu().clone()
