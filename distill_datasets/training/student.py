"""Students: plain supervised training on given examples.

Shape suffixes: B images, C channels, H W pixels, K classes, P all weights of a network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal, Self

import torch
from pydantic import Field, SerializeAsAny, model_validator
from torch import nn

from distill_datasets.config import Section, part
from distill_datasets.errors import DistillError
from distill_datasets.models.architecture import ArchitectureField
from distill_datasets.models.convnets import ConvNet
from distill_datasets.models.initialization import initialize
from distill_datasets.optimizers import Adam, Sgd, TrainingRule
from distill_datasets.runtime.draws import Draw
from distill_datasets.training.checkpoint import Average, Checkpoint
from distill_datasets.training.examples import Examples
from distill_datasets.training.losses import Loss, TeacherLoss, smoothed
from distill_datasets.training.rows import Reference
from distill_datasets.types import Shape
from distill_datasets.views.augment import Augment
from distill_datasets.views.relabel import Relabel

if TYPE_CHECKING:
    from torch import Tensor

WARMUP_START = 0.01
"""The share of the step size that a warm-up begins with."""
CPU_CHUNK = 32
CHECKED = 100
"""A student's loss is looked at every so many steps: each look waits for the device."""


class Training(Section):
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

    @property
    def follows_step_sizes(self) -> bool:
        """Whether students take the published step sizes."""
        return self.schedule in ("published", "published_step")


class Evaluate(Training):
    """How the published dataset is measured: by training fresh students on it."""

    loss: Loss = Field(
        default="soft",
        description="cross-entropy with the labels as probabilities; or, with relabel, kl of "
        "teacher and student at a temperature, or mse of their logits",
    )
    temperature: float = Field(
        default=1.0, gt=0, description="that logits are divided by in kl (SRe2L: 20)"
    )
    scale_by_temperature: bool = Field(
        default=False, description="multiply kl by the temperature squared"
    )
    hard_weight: float = Field(
        default=0.0,
        ge=0,
        description="of the cross-entropy with the images' classes beside mse (G-VBSM: 0.1, EDC: "
        "0.025)",
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="share of every label that all classes divide"
    )
    smoothing: float | None = Field(
        default=None,
        ge=1,
        description="eta of the papers' cosine, lr / 2 (1 + cos(pi e / (eta E))) in epoch e of E; "
        "1 ends at zero, 2 at half. null: cosine to zero, lower with every step",
    )
    warmup_epochs: int = Field(
        default=0, ge=0, description="first epochs, in which the step size rises from 1 %"
    )
    ema: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="decay of the moving average of the weights that is measured (EDC: 0.99); "
        "null: the last weights are",
    )
    students: int = Field(default=8, gt=0, description="fresh students, each with its own seed")
    steps: int | None = Field(default=None, gt=0, description="training steps of a student")
    epochs: int | None = Field(default=None, gt=0, description="or passes over what it trains on")
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
        description="rows to compare with: random, chosen (herding, k_center) and mean (class_mean)"
        " real images at the same number of pixels, and the whole dataset",
    )
    full_epochs: int = Field(default=20, gt=0, description="training of the `full` reference")
    full_students: int = Field(default=2, gt=0, description="students of the `full` reference")
    checkpoint_seconds: float = Field(
        default=60.0, ge=0, description="at the end of a pass, time since the last checkpoint"
    )

    @model_validator(mode="after")
    def _one_duration(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            got = "neither" if self.steps is None else "both"
            raise ValueError(f"got {got}, expected either steps or epochs")
        if len(set(self.references)) != len(self.references):
            raise ValueError(f"references: expected no repeats, got {self.references}")
        return self

    @model_validator(mode="after")
    def _published_step_sizes_are_of_sgd(self) -> Self:
        if self.follows_step_sizes and not isinstance(self.optimizer, Sgd):
            raise ValueError(
                f"schedule: published step sizes are of sgd, got the optimizer "
                f"{self.optimizer.name!r}; set optimizer: {{name: sgd, momentum: 0, lr: 0.02}}"
            )
        return self

    @model_validator(mode="after")
    def _schedule_and_loss_know_their_settings(self) -> Self:
        if self.smoothing is not None and self.schedule != "cosine":
            raise ValueError(
                f"smoothing: got {self.smoothing} with schedule: {self.schedule}, expected cosine"
            )
        if self.warmup_epochs and self.follows_step_sizes:
            raise ValueError("warmup_epochs: published step sizes have no warm-up; leave it out")
        if self.epochs is not None and self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs: got {self.warmup_epochs} of {self.epochs} epochs, expected fewer"
            )
        at_defaults = TeacherLoss()
        wrong = [
            f"{name}: for loss: {kind}, got it with loss: {self.loss}"
            for name, kind, value, default in (
                ("temperature", "kl", self.temperature, at_defaults.temperature),
                ("scale_by_temperature", "kl", self.scale_by_temperature, at_defaults.scaled),
                ("hard_weight", "mse", self.hard_weight, at_defaults.hard_weight),
            )
            if value != default and self.loss != kind
        ]
        if self.loss == "mse" and self.label_smoothing:
            wrong.append("label_smoothing: mse compares logits, which have none; leave it out")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    @property
    def teacher_loss(self) -> TeacherLoss:
        """What students of a teacher's logits lower."""
        return TeacherLoss(
            self.loss,
            self.temperature,
            self.scale_by_temperature,
            self.hard_weight,
        )

    def refusal(self, relabel: Relabel | None) -> str | None:
        """Why a recipe with this relabel section, or none, cannot be measured; None if it can."""
        if relabel is None:
            return (
                f"evaluate.loss: {self.loss} compares with a teacher's logits, which a relabel "
                "section makes; add one, or take loss: soft"
                if self.loss != "soft"
                else None
            )
        if self.loss == "mse" and relabel.store == "top_k":
            return (
                "evaluate.loss: mse compares all logits, and relabel.store: top_k keeps some; set "
                "relabel.store: logits"
            )
        if self.augment.operations:
            return (
                "evaluate.augment: a label of relabel belongs to the very pixels that were "
                "labeled; leave augment out and set crop, flip and mix of relabel"
            )
        followed = [
            name
            for name, asked in (
                (f"schedule: {self.schedule}", self.follows_step_sizes),
                ("order: published", self.order == "published"),
                ("start: distilled", self.start == "distilled"),
            )
            if asked
        ]
        if followed:
            return (
                f"evaluate.{followed[0]}: students of relabel follow the order of their labels and "
                "their own schedule; leave it out"
            )
        return None

    def duration(self, count: int) -> int:
        """Training steps on `count` examples."""
        return self.steps or steps_of(self.epochs or 0, count, self.batch)


def steps_of(epochs: int, count: int, batch: int) -> int:
    """Training steps of `epochs` passes over `count` examples; a short last batch is dropped."""
    return epochs * max(1, count // batch)


def train_student(
    settings: Evaluate,
    steps: int,
    examples: Examples,
    shape: Shape,
    draw: Draw,
    device: torch.device,
    *,
    step_sizes: Sequence[float] = (),
    order: Sequence[Sequence[int]] = (),
    start_P: Tensor | None = None,
    checkpoint: Checkpoint | None = None,
) -> nn.Module:
    """Train one network from scratch and return it as it is after the last step.

    Args:
        settings: network, optimizer, batch, schedule and augmentation.
        steps: number of training steps.
        examples: what to train on; a pass visits them in an order of its own and drops a short
            last batch.
        shape: of one example, and the number of classes.
        draw: randomness of this student.
        device: where to train.
        step_sizes: step t takes the one at t modulo their number, times the schedule's factor;
            none takes `optimizer.lr`.
        order: the examples of step t, at t modulo their number; none shuffles every pass.
        start_P: all weights to start from, in the order of `parameters()`; None draws them.
        checkpoint: where the state is kept between passes; a killed training goes on from there.

    Returns:
        The network; with `settings.ema` its weights are the average, its buffers the last ones.

    Raises:
        DistillError: the loss is not finite, or `start_P` is of another network.
    """
    from distill_datasets.models.initialization import drawing

    module = settings.network.build(shape).to(device)
    if start_P is None:
        initialize(module, draw("network"))
    else:
        _start_from(module, start_P)
    module.train()
    optimizer = settings.optimizer.torch_optimizer(module.parameters())
    average = None if settings.ema is None else Average(module, settings.ema)
    batch = min(settings.batch, examples.count)
    per_pass = examples.count // batch
    done = 0 if checkpoint is None else checkpoint.restore(module, optimizer, average)
    chunk = _chunk(module, batch)
    for step in range(done, steps):
        if step % per_pass == 0:
            turn = step // per_pass
            order_N = examples.order(draw("order", turn), batch, turn)
        start = step % per_pass * batch
        index_B = order_N[start : start + batch]
        if order:
            index_B = torch.tensor(order[step % len(order)])
        images_BCHW, targets_BK = examples(index_B.to(device))
        images_BCHW = settings.augment(images_BCHW, draw("augment", step))
        for group in optimizer.param_groups:
            size = step_sizes[step % len(step_sizes)] if step_sizes else settings.optimizer.lr
            group["lr"] = size * pace(settings, step, steps, per_pass)
        targets_BK = smoothed(targets_BK, settings.label_smoothing)
        optimizer.zero_grad()
        losses = list[torch.Tensor]()
        with drawing(module, draw("dropout", step)):
            for images, targets in zip(
                torch.split(images_BCHW, chunk), torch.split(targets_BK, chunk), strict=True
            ):
                share = examples.loss(module(images), targets) * (len(images) / len(images_BCHW))
                share.backward()  # type: ignore[no-untyped-call]
                losses.append(share.detach())
        optimizer.step()
        if average is not None:
            average.follow()
        loss = torch.stack(losses).sum()
        last = step == steps - 1
        if (last or step % CHECKED == 0) and not bool(loss.isfinite()):
            raise DistillError(
                f"a network's training loss is {loss.item()} at step {step}; lower its optimizer.lr"
            )
        if checkpoint is not None and not last and (step + 1) % per_pass == 0:
            checkpoint.save(module, optimizer, average, step + 1)
    if average is not None:
        average.put()
    return module


def _chunk(module: nn.Module, batch: int) -> int:
    """Examples that are differentiated at once; a batch's gradient is the sum over its chunks.

    On a CPU a chunk stays in the cache and no block of memory is too large for the allocator to
    keep: half of the time of a ConvNet student of 100 images. Networks that look at the batch as a
    whole, such as by batch norm, get it whole.
    """
    on_cpu = next(module.parameters()).device.type == "cpu"
    whole = any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in module.modules())
    return CPU_CHUNK if on_cpu and not whole else batch


def _start_from(module: nn.Module, start_P: Tensor) -> None:
    """Copy one vector of weights into a module."""
    with torch.no_grad():
        sizes = [parameter.numel() for parameter in module.parameters()]
        if sum(sizes) != len(start_P):
            raise DistillError(
                f"a student's network has {sum(sizes)} weights and the start that it was given has "
                f"{len(start_P)}; make evaluate.network the network of distill.networks"
            )
        for parameter, piece in zip(module.parameters(), torch.split(start_P, sizes), strict=True):
            parameter.copy_(piece.view_as(parameter))


def rate(schedule: str, step: int, steps: int) -> float:
    """The factor on the step size at a step."""
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * step / steps))
    return 0.1 if schedule in ("step", "published_step") and 2 * step >= steps else 1.0


def pace(settings: Evaluate, step: int, steps: int, per_pass: int) -> float:
    """The factor on a student's step size: the warm-up, then the schedule over what is left.

    With `smoothing` it changes between passes only.

    Source: RDED (arXiv:2312.03526) and EDC (arXiv:2404.13733) for the smoothed cosine.
    """
    if settings.smoothing is not None:
        step -= step % per_pass
    rising = settings.warmup_epochs * per_pass
    if step < rising:
        return WARMUP_START + (1 - WARMUP_START) * step / rising
    step, steps = step - rising, steps - rising
    if settings.smoothing is not None:
        return 0.5 * (1 + math.cos(math.pi * step / (settings.smoothing * steps)))
    return rate(settings.schedule, step, steps)
