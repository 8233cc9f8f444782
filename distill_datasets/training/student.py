"""Students: fresh networks trained on what is measured.

Shape suffixes: P all weights of a network.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from distill_datasets.config import Section
from distill_datasets.errors import DistillError
from distill_datasets.models.initialization import initialize
from distill_datasets.optimizers import Sgd
from distill_datasets.runtime.draws import Draw
from distill_datasets.training.checkpoint import TrainingCheckpoint
from distill_datasets.training.examples import Examples
from distill_datasets.training.loop import SupervisedTraining, Training, rate, steps_of
from distill_datasets.training.losses import StudentLoss
from distill_datasets.types import Shape

if TYPE_CHECKING:
    from torch import Tensor

CPU_CHUNK = 32


class Pace(Section, ABC):
    """How a student's step size and its average go with the passes."""

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


class Student(Pace, StudentLoss, Training, ABC):
    """How a student is trained; pydantic puts the fields of the last base first."""

    @property
    def follows_step_sizes(self) -> bool:
        """Whether students take the published step sizes."""
        return self.schedule in ("published", "published_step")

    @property
    def begins_alike(self) -> bool:
        """Whether a short training is the beginning of a longer one."""
        return self.schedule in ("constant", "published") and self.ema is None

    @model_validator(mode="after")
    def _published_step_sizes_are_of_sgd(self) -> Self:
        if self.follows_step_sizes and not isinstance(self.optimizer, Sgd):
            raise ValueError(
                f"schedule: published step sizes are of sgd, got the optimizer "
                f"{self.optimizer.name!r}; set optimizer: {{name: sgd, momentum: 0, lr: 0.02}}"
            )
        return self

    @model_validator(mode="after")
    def _schedule_knows_its_settings(self) -> Self:
        if self.smoothing is not None and self.schedule != "cosine":
            raise ValueError(
                f"smoothing: got {self.smoothing} with schedule: {self.schedule}, expected cosine"
            )
        if self.warmup_epochs and self.follows_step_sizes:
            raise ValueError("warmup_epochs: published step sizes have no warm-up; leave it out")
        return self


def train_student(
    settings: Student,
    steps: int,
    examples: Examples,
    shape: Shape,
    draw: Draw,
    device: torch.device,
    *,
    step_sizes: Sequence[float] = (),
    order: Sequence[Sequence[int]] = (),
    start_P: Tensor | None = None,
    checkpoint: TrainingCheckpoint | None = None,
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
        DivergedError: the loss is not finite.
        DistillError: `start_P` is of another network.
    """
    (trained,) = students_at(
        settings,
        [steps],
        examples,
        shape,
        draw,
        device,
        step_sizes=step_sizes,
        order=order,
        start_P=start_P,
        checkpoint=checkpoint,
    )
    return trained[1]


def students_at(
    settings: Student,
    marks: Sequence[int],
    examples: Examples,
    shape: Shape,
    draw: Draw,
    device: torch.device,
    *,
    step_sizes: Sequence[float] = (),
    order: Sequence[Sequence[int]] = (),
    start_P: Tensor | None = None,
    checkpoint: TrainingCheckpoint | None = None,
) -> Iterator[tuple[int, nn.Module]]:
    """Train one network and give it away at several numbers of steps, as `train_student` would.

    Args:
        settings: as there; with several marks, one for which short trainings `begins_alike`.
        marks: the numbers of steps, rising. A training that goes on from a checkpoint gives none
            that lie before it.
        examples: as there, like all that follows.
        shape: of one example, and the number of classes.
        draw: randomness of this student.
        device: where to train.
        step_sizes: of the steps.
        order: of the examples.
        start_P: all weights to start from.
        checkpoint: where the state is kept.

    Yields:
        The number of steps and the network, which may be put in another mode and must not be
        changed.

    Raises:
        DivergedError: the loss is not finite.
        DistillError: `start_P` is of another network.
    """
    assert len(marks) == 1 or settings.begins_alike, "a schedule ends where its training does"
    steps = marks[-1]
    module = settings.network.build(shape).to(device)
    if start_P is None:
        initialize(module, draw("network"))
    else:
        _start_from(module, start_P)
    per_pass = steps_of(1, examples.count, settings.batch)

    def step_size(step: int) -> float:
        size = step_sizes[step % len(step_sizes)] if step_sizes else settings.optimizer.lr
        return size * pace(settings, step, steps, per_pass)

    training = SupervisedTraining(
        settings,
        module,
        examples,
        draw,
        step_size,
        label_smoothing=settings.label_smoothing,
        ema=settings.ema,
        precision=settings.precision,
        order=order,
    )
    saved = None if checkpoint is None else checkpoint.read()
    if saved is not None:
        training.restore(*saved)

    def save() -> None:
        if checkpoint is not None and checkpoint.is_due:
            checkpoint.write(training.state(), training.steps_done)

    def stopping() -> bool:
        return checkpoint is not None and checkpoint.stop.asked

    gradient = training.alone(_chunk(module, min(settings.batch, examples.count)))
    for mark in marks:
        if mark < training.steps_done:
            continue
        training.train(gradient, mark, save, stopping)
        if checkpoint is not None and training.steps_done < mark:
            checkpoint.write(training.state(), training.steps_done)
            raise checkpoint.stop.error("every student is saved after its last step")
        if training.average is not None:
            training.average.put()
        yield mark, module
        module.train()


def pace(settings: Student, step: int, steps: int, per_pass: int) -> float:
    """The factor on a student's step size: the warm-up, then the schedule over what is left.

    With `smoothing` it changes between passes only.
    """
    rising = settings.warmup_epochs * per_pass
    if settings.smoothing is None:
        return rate(settings.schedule, step, steps, rising)
    return rate(settings.schedule, step - step % per_pass, steps, rising, settings.smoothing)


def _chunk(module: nn.Module, batch: int) -> int:
    """Examples that are differentiated at once, of a batch of so many.

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
