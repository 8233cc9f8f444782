"""Supervised training of a network on given examples: the one loop of students and teachers.

A step takes a batch B of a pass, moves its images by the augmentation and follows the gradient of
its mean loss L. The batch may fall into pieces B_1 ... B_n that are differentiated one by one:

    grad L(B) = sum over p of |B_p| / |B| * grad L(B_p)

Nothing random is carried from step to step. The order of a pass, the augmentation and the dropout
of a step are pure functions of their numbers, so a training that was killed goes on from weights,
buffers, the optimizer's moments and the average alone, as they were between two steps.

Shape suffixes: B images of a batch, K classes, N examples, P all weights of a network.
"""

from __future__ import annotations

import copy
from abc import ABC
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

import torch
from pydantic import Field, SerializeAsAny
from torch import nn

from distill_datasets.config import Section, part
from distill_datasets.errors import DivergedError
from distill_datasets.models.architecture import ArchitectureField
from distill_datasets.models.convnets import ConvNet
from distill_datasets.models.initialization import drawing
from distill_datasets.optimizers import Adam, TrainingRule, cosine
from distill_datasets.runtime.draws import Draw
from distill_datasets.runtime.memory import to_device
from distill_datasets.runtime.precision import (
    WHERE_FAST,
    Precision,
    at_least_float32,
    computing_in,
)
from distill_datasets.runtime.processes import Runtime
from distill_datasets.training.checkpoint import restore_state, state_of
from distill_datasets.training.examples import Examples
from distill_datasets.training.losses import smoothed
from distill_datasets.types import Batch
from distill_datasets.views.augment import Augment

if TYPE_CHECKING:
    from torch import Tensor

WARMUP_START = 0.01
"""The share of the step size that a warm-up begins with."""
AGREED = 10
"""Processes that share a training look every so many steps whether one was asked to stop."""
CHECKED = 100
"""The loss is looked at every so many steps: each look waits for the device."""

Gradient = Callable[["Tensor", int], "Tensor"]
"""Puts the gradient of the rows of a batch at a step into the weights' `grad`; returns the loss."""
LossOf = Callable[["nn.Module", Batch, Draw], "Tensor"]
"""The mean loss of a network on a batch; what it draws beside the augmentation, it is given."""


class Steps(Protocol):
    """How examples become steps: all that a training needs to know of its settings."""

    @property
    def batch(self) -> int:
        """Examples of a step."""

    @property
    def optimizer(self) -> TrainingRule:
        """Rule of the training."""

    @property
    def augment(self) -> Augment:
        """Of the training images."""


class Training(Section, ABC):
    """How a network is trained on given examples."""

    network: ArchitectureField = Field(default=ConvNet(), description="what is trained")
    batch: int = Field(
        default=256,
        gt=0,
        description="examples of a training step; what is left of a pass is left out",
    )
    optimizer: Annotated[SerializeAsAny[TrainingRule], part("optimizers")] = Field(
        default=Adam(lr=0.001), description="rule of the training"
    )
    schedule: Literal["constant", "cosine", "step", "published", "published_step"] = Field(
        default="constant",
        description="of the step size; cosine falls to zero, step to a tenth half-way; published "
        "takes the step sizes learned with the images, by sgd, and optimizer.lr in references; "
        "published_step takes a tenth of them from half-way on",
    )
    augment: Augment = Field(default=Augment(), description="of the training images")
    precision: Precision = Field(
        default="float32",
        description="of the network while it is trained, and while students are tested; weights "
        f"and losses are float32; {WHERE_FAST}",
    )


class Average:
    """The exponential moving average of a network's weights; buffers are not averaged.

    Source: EDC (arXiv:2404.13733), whose students are measured so.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._live, self._decay = list(module.parameters()), decay
        self.weights = [weight.detach().clone() for weight in self._live]

    def follow(self) -> None:
        """Take in the weights after a step: decay x average + (1 - decay) x weights."""
        with torch.no_grad():
            live = [weight.detach() for weight in self._live]
            # lerp(a, w, s) = a + s (w - a), one kernel for all weights
            torch._foreach_lerp_(self.weights, live, 1 - self._decay)

    def put(self) -> None:
        """Make the average the network's weights."""
        with torch.no_grad():
            for weight, average in zip(self._live, self.weights, strict=True):
                weight.copy_(average)


class SupervisedTraining:
    """A network on its way through its examples: `steps_done` of them are done.

    Args:
        settings: batch, optimizer and augmentation.
        module: with the weights it starts from, on the device where it is trained.
        examples: what it is trained on; a short last batch of a pass is dropped.
        draw: the randomness of this network.
        step_size: of a step, counted from 0.
        label_smoothing: share of every label that all classes divide.
        ema: decay of the average of the weights; None keeps none.
        precision: of the network.
        order: the examples of step t, at t modulo their number; none shuffles every pass.
        loss_of: what a step lowers; None is the loss of the examples.
    """

    def __init__(
        self,
        settings: Steps,
        module: nn.Module,
        examples: Examples,
        draw: Draw,
        step_size: Callable[[int], float],
        *,
        label_smoothing: float = 0.0,
        ema: float | None = None,
        precision: Precision = "float32",
        order: Sequence[Sequence[int]] = (),
        loss_of: LossOf | None = None,
    ) -> None:
        self.module = module.train()
        self.average = None if ema is None else Average(module, ema)
        self.steps_done = 0
        self.all_stop = False
        """Whether one of the processes that share this training was asked to stop."""
        self._examples, self._draw, self._step_size = examples, draw, step_size
        self._augment, self._label_smoothing, self._order = settings.augment, label_smoothing, order
        self._batch = min(settings.batch, examples.count)
        self._per_pass = steps_of(1, examples.count, settings.batch)
        self._loss_of = loss_of or self._supervised
        self._parameters = [weight for weight in module.parameters() if weight.requires_grad]
        self._device, self._precision = self._parameters[0].device, precision
        self._optimizer = settings.optimizer.torch_optimizer(self._parameters)

    def state(self) -> dict[str, Tensor]:
        """Everything that a step changes."""
        tensors = state_of(self.module, self._optimizer)
        averages = self.average.weights if self.average is not None else []
        return tensors | {f"average/{place}": weight for place, weight in enumerate(averages)}

    def restore(self, tensors: Mapping[str, Tensor], steps_done: int) -> None:
        """Put back what `state` gave after so many steps; other names are left alone."""
        restore_state(self.module, self._optimizer, tensors)
        for place, weight in enumerate(self.average.weights if self.average is not None else []):
            weight.copy_(tensors[f"average/{place}"])
        self.steps_done = steps_done

    def train(
        self,
        gradient: Gradient,
        until: int,
        between_passes: Callable[[], None] = lambda: None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> Tensor:
        """Train up to a step, from where it stands.

        Args:
            gradient: what `alone` or `shared` made of this training.
            until: steps that are done afterwards.
            between_passes: called after every pass, but not at the end.
            stopping: asked after every step; when true, the training ends there.

        Returns:
            The loss of the last step.

        Raises:
            DivergedError: the loss is not finite.
        """
        loss, order_N = torch.zeros(()), torch.empty(0)
        for step in range(self.steps_done, until):
            turn, place = divmod(step, self._per_pass)
            if place == 0 or not len(order_N):  # a pass that was begun by an earlier call
                order_N = self._examples.order(self._draw("order", turn), self._batch, turn)
            index_B = order_N[place * self._batch : (place + 1) * self._batch]
            if self._order:
                index_B = torch.tensor(self._order[step % len(self._order)])
            step_size = self._step_size(step)
            for group in self._optimizer.param_groups:
                group["lr"] = step_size
            self._optimizer.zero_grad()
            loss = gradient(index_B, step)
            self._optimizer.step()
            if self.average is not None:
                self.average.follow()
            self.steps_done = step + 1
            last = self.steps_done == until
            # a loss that is not finite stays so, so that a look now and then finds it too
            if (last or step % CHECKED == 0) and not bool(loss.isfinite()):
                raise DivergedError(
                    f"a network's training loss is {loss.item()} at step {step}; lower its "
                    "optimizer.lr"
                )
            if last or stopping():
                break
            if self.steps_done % self._per_pass == 0:
                between_passes()
        return loss

    def alone(self, chunk: int | None = None) -> Gradient:
        """The gradient of a batch by this thread, `chunk` examples at once; None takes all."""

        def gradient(index_B: Tensor, step: int) -> Tensor:
            images_BCHW, targets_BK = self._moved(index_B, step)
            size = chunk or len(images_BCHW)
            draw = partial(self._draw, "loss", step)
            losses = list[torch.Tensor]()
            with drawing(self.module, self._draw("dropout", step)):
                for images, targets in zip(
                    torch.split(images_BCHW, size), torch.split(targets_BK, size), strict=True
                ):
                    # the piece's mean times its share of the batch: pieces add up in `grad`
                    share = len(images) / len(images_BCHW)
                    loss = self._loss_of(self.module, Batch(images, targets), draw) * share
                    loss.backward()  # type: ignore[no-untyped-call]
                    losses.append(loss.detach())
            return torch.stack(losses).sum()

        return gradient

    @contextmanager
    def shared(self, runtime: Runtime, shards: int) -> Iterator[Gradient]:
        """The gradient of a batch in `shards` equal pieces, dealt to processes and threads.

        Every process holds all weights and moves them alike, as the sum of the pieces has the same
        bits everywhere. Piece p is drawn by `draw(what, step, p)` and sees BatchNorm statistics of
        its own, as each process of torch's DistributedDataParallel does, whoever computes it.
        Buffers are those that piece 0 has seen, on the main process alone.
        """
        mine = runtime.mine(shards)
        # modules of their own that hold the same weights: pieces are threads, and buffers change
        weights: dict[int, object] = {id(weight): weight for weight in self._parameters}
        modules = {
            piece: copy.deepcopy(self.module, dict(weights)) if piece else self.module
            for piece in mine
        }
        sizes = [weight.numel() for weight in self._parameters]
        # what travels of a piece is one vector: its loss, the gradient of every weight, and whether
        # its process was asked to stop, as all have to at the same step
        like = torch.zeros(2 + sum(sizes), device=self._device)
        with runtime.pool(shards, breaks=False) as run_pieces:

            def gradient(index_B: Tensor, step: int) -> Tensor:
                rows = torch.split(index_B, len(index_B) // shards)

                def work(piece: int) -> Tensor:
                    batch = self._moved(rows[piece], step, piece)
                    draw = partial(self._draw, "loss", step, piece)
                    with drawing(modules[piece], self._draw("dropout", step, piece)):
                        loss = self._loss_of(modules[piece], batch, draw)
                    grads = torch.autograd.grad(loss, self._parameters, materialize_grads=True)
                    loss = loss.detach()[None]
                    asked = torch.full_like(loss, float(runtime.stop.asked))
                    return torch.cat([loss, *(grad.flatten() for grad in grads), asked])

                parts = dict(zip(mine, run_pieces(work, mine), strict=True))
                # added in the order of the pieces: the bits of a sum depend on its order
                mean = runtime.sum_in_order(parts, shards, like) / shards
                for weight, grad_P in zip(
                    self._parameters, torch.split(mean[1:-1], sizes), strict=True
                ):
                    weight.grad = grad_P.view_as(weight)
                if step % AGREED == 0:  # a look waits for the device
                    self.all_stop = bool(mean[-1] > 0)
                return mean[0]

            yield gradient

    def _supervised(self, module: nn.Module, batch: Batch, draw: Draw) -> Tensor:
        with computing_in(self._precision, self._device):
            logits_BK = module(batch.images_BCHW)
        return self._examples.loss(at_least_float32(logits_BK), batch.targets_BK)

    def _moved(self, index_B: Tensor, step: int, *piece: int) -> Batch:
        """The examples `index_B`, augmented; a piece has draws of its own."""
        images_BCHW, targets_BK = self._examples(to_device(index_B, self._device))
        images_BCHW = self._augment(images_BCHW, self._draw("augment", step, *piece))
        return Batch(images_BCHW, smoothed(targets_BK, self._label_smoothing))


def steps_of(epochs: int, count: int, batch: int) -> int:
    """Training steps of `epochs` passes over `count` examples; a short last batch is dropped."""
    return epochs * max(1, count // batch)


def rate(schedule: str, step: int, steps: int, rising: int = 0, smoothing: float = 1.0) -> float:
    """The factor on the step size at a step.

    Args:
        schedule: as in the recipe.
        step: counted from 0.
        steps: how many there are in all.
        rising: the first of them, in which the factor rises linearly from `WARMUP_START` to 1; the
            schedule follows over what is left.
        smoothing: eta of the cosine, 1/2 (1 + cos(pi step / (eta steps))); 1 ends at zero.

    Source: RDED (arXiv:2312.03526) and EDC (arXiv:2404.13733) for the smoothed cosine.
    """
    if step < rising:
        return WARMUP_START + (1 - WARMUP_START) * step / rising
    step, steps = step - rising, steps - rising
    if schedule == "cosine":
        return cosine(step, smoothing * steps)
    return 0.1 if schedule in ("step", "published_step") and 2 * step >= steps else 1.0
