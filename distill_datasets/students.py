"""Students: plain supervised training, and the share of test images they get right.

Shape suffixes: B images, C channels, H W pixels, K classes, N examples.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, Self

import torch
import torch.nn.functional as F
from pydantic import Field, SerializeAsAny, model_validator
from torch import Tensor, nn

from distill_datasets.augment import Augment
from distill_datasets.errors import DistillError
from distill_datasets.inner import Adam, Optimizer
from distill_datasets.networks.sources import ArchitectureField
from distill_datasets.networks.zoo import ConvNet, initialize
from distill_datasets.plugins import part
from distill_datasets.types import Batch, Draw, Section, Shape

CHECKED = 100
"""A student's loss is looked at every so many steps: each look waits for the device."""


class Examples(Protocol):
    """What a student trains on."""

    @property
    def count(self) -> int:
        """Number of examples."""
        ...

    def __call__(self, index_B: Tensor) -> Batch:
        """The examples `index_B` in the student's input space."""
        ...


@dataclass(frozen=True)
class Stored:
    """Examples held as they were published, made into the student's input batch by batch.

    `unit` is the value that stands for 1: 255 for 8-bit images, 1 for floats.
    """

    images_NCHW: Tensor
    targets_NK: Tensor
    mean_C: Tensor
    std_C: Tensor
    unit: float

    @property
    def count(self) -> int:
        return len(self.images_NCHW)

    def __call__(self, index_B: Tensor) -> Batch:
        pixels_BCHW = self.images_NCHW[index_B].float() / self.unit
        images_BCHW = (pixels_BCHW - self.mean_C[:, None, None]) / self.std_C[:, None, None]
        return Batch(images_BCHW, self.targets_NK[index_B])

    def to(self, device: torch.device) -> "Stored":
        """The same on a device."""
        return Stored(
            self.images_NCHW.to(device),
            self.targets_NK.to(device),
            self.mean_C.to(device),
            self.std_C.to(device),
            self.unit,
        )


class Evaluate(Section):
    """How the published dataset is measured: by training fresh students on it."""

    network: ArchitectureField = Field(default=ConvNet(), description="the student")
    students: int = Field(default=8, gt=0, description="fresh students, each with its own seed")
    steps: int | None = Field(default=None, gt=0, description="training steps of a student")
    epochs: int | None = Field(default=None, gt=0, description="or passes over what it trains on")
    batch: int = Field(default=256, gt=0, description="examples of a training step")
    optimizer: Annotated[SerializeAsAny[Optimizer], part("optimizers")] = Field(
        default=Adam(lr=0.001), description="rule of the student's training"
    )
    schedule: Literal["constant", "cosine"] = Field(
        default="constant", description="of the student's step size; cosine falls to zero"
    )
    augment: Augment = Field(default=Augment(), description="of the student's training images")
    exact: bool = Field(
        default=True, description="also measure the float pixels before rounding to 8 bits"
    )
    references: list[Literal["random_real", "full"]] = Field(
        default=[],
        description="rows to compare with: random real images at the same number of pixels, and "
        "the whole dataset",
    )
    full_epochs: int = Field(default=20, gt=0, description="training of the `full` reference")
    full_students: int = Field(default=2, gt=0, description="students of the `full` reference")

    @model_validator(mode="after")
    def _one_duration(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            got = "neither" if self.steps is None else "both"
            raise ValueError(f"got {got}, expected either steps or epochs")
        if len(set(self.references)) != len(self.references):
            raise ValueError(f"references: expected no repeats, got {self.references}")
        return self

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
) -> nn.Module:
    """Train one fresh student and return it as it is after the last step.

    Args:
        settings: network, optimizer, batch and augmentation.
        steps: number of training steps.
        examples: what to train on; a pass visits them in an order of its own and drops a short
            last batch.
        shape: of one example, and the number of classes.
        draw: randomness of this student.
        device: where to train.

    Raises:
        DistillError: the loss is not finite.
    """
    module = settings.network.build(shape).to(device)
    initialize(module, draw("network"))
    optimizer = settings.optimizer.torch_optimizer(module.parameters())
    batch = min(settings.batch, examples.count)
    per_pass = examples.count // batch
    order_N = torch.arange(examples.count)
    for step in range(steps):
        if step % per_pass == 0 and batch < examples.count:
            order_N = torch.randperm(examples.count, generator=draw("order", step // per_pass))
        start = step % per_pass * batch
        images_BCHW, targets_BK = examples(order_N[start : start + batch].to(device))
        images_BCHW = settings.augment(images_BCHW, draw("augment", step))
        if settings.schedule == "cosine":
            rate = 0.5 * (1 + math.cos(math.pi * step / steps))
            for group in optimizer.param_groups:
                group["lr"] = settings.optimizer.lr * rate
        loss = F.cross_entropy(module(images_BCHW), targets_BK)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        last = step == steps - 1
        if (last or step % CHECKED == 0) and not bool(loss.isfinite()):
            raise DistillError(
                f"evaluate: a student's loss is {loss.item()} at step {step}; lower "
                "evaluate.optimizer.lr"
            )
    return module


@torch.no_grad()
def accuracy(module: nn.Module, batches: Iterable[Batch]) -> float:
    """Share of images whose largest logit is the largest target, in [0, 1]."""
    module.eval()
    right = total = 0
    for images_BCHW, targets_BK in batches:
        predicted_B = module(images_BCHW).argmax(dim=1)
        right += int((predicted_B == targets_BK.argmax(dim=1)).sum())
        total += len(images_BCHW)
    return right / total
