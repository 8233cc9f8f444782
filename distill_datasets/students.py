"""Students: plain supervised training, and the share of test images they get right.

Shape suffixes: B images, C channels, H W pixels, K classes, N examples.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, Protocol, Self

import torch
import torch.nn.functional as F
from pydantic import Field, SerializeAsAny, model_validator
from torch import Tensor, nn

from distill_datasets.augment import Augment
from distill_datasets.data.source import Source
from distill_datasets.errors import DistillError
from distill_datasets.inner import Adam, Optimizer
from distill_datasets.networks.sources import ArchitectureField
from distill_datasets.networks.zoo import ConvNet, initialize
from distill_datasets.plugins import part
from distill_datasets.types import Batch, Draw, Section, Shape

if TYPE_CHECKING:
    from distill_datasets.data.source import RealData

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


@dataclass(frozen=True)
class Whole:
    """The training images of the source, normalized batch by batch."""

    real: "RealData"

    @property
    def count(self) -> int:
        return len(self.real.train.labels_N)

    def __call__(self, index_B: Tensor) -> Batch:
        return self.real.select(index_B)


class Training(Section):
    """How a network is trained on given examples."""

    network: ArchitectureField = Field(default=ConvNet(), description="what is trained")
    batch: int = Field(default=256, gt=0, description="examples of a training step")
    optimizer: Annotated[SerializeAsAny[Optimizer], part("optimizers")] = Field(
        default=Adam(lr=0.001), description="rule of the training"
    )
    schedule: Literal["constant", "cosine", "step"] = Field(
        default="constant",
        description="of the step size; cosine falls to zero, step to a tenth half-way",
    )
    augment: Augment = Field(default=Augment(), description="of the training images")


class Squeeze(Training):
    """Which networks are trained on real data before anything is distilled."""

    members: int = Field(default=1, gt=0, description="networks, each with its own seed")
    epochs: int = Field(gt=0, description="passes over the training images")
    keep: Literal["every", "last"] = Field(
        default="last", description="weights after every epoch (trajectories), or after the last"
    )
    source: Source | None = Field(
        default=None, description="another dataset to train on; null: the recipe's own"
    )


class Evaluate(Training):
    """How the published dataset is measured: by training fresh students on it."""

    students: int = Field(default=8, gt=0, description="fresh students, each with its own seed")
    steps: int | None = Field(default=None, gt=0, description="training steps of a student")
    epochs: int | None = Field(default=None, gt=0, description="or passes over what it trains on")
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
    settings: Training,
    steps: int,
    examples: Examples,
    shape: Shape,
    draw: Draw,
    device: torch.device,
    after_step: Callable[[int, nn.Module], None] = lambda done, module: None,
) -> nn.Module:
    """Train one network from scratch and return it as it is after the last step.

    Args:
        settings: network, optimizer, batch and augmentation.
        steps: number of training steps.
        examples: what to train on; a pass visits them in an order of its own and drops a short
            last batch.
        shape: of one example, and the number of classes.
        draw: randomness of this student.
        device: where to train.
        after_step: called with the number of steps done, 0 before the first.

    Raises:
        DistillError: the loss is not finite.
    """
    module = settings.network.build(shape).to(device)
    initialize(module, draw("network"))
    optimizer = settings.optimizer.torch_optimizer(module.parameters())
    batch = min(settings.batch, examples.count)
    per_pass = examples.count // batch
    order_N = torch.arange(examples.count)
    after_step(0, module)
    for step in range(steps):
        if step % per_pass == 0 and batch < examples.count:
            order_N = torch.randperm(examples.count, generator=draw("order", step // per_pass))
        start = step % per_pass * batch
        images_BCHW, targets_BK = examples(order_N[start : start + batch].to(device))
        images_BCHW = settings.augment(images_BCHW, draw("augment", step))
        for group in optimizer.param_groups:
            group["lr"] = settings.optimizer.lr * rate(settings.schedule, step, steps)
        loss = F.cross_entropy(module(images_BCHW), targets_BK)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        last = step == steps - 1
        if (last or step % CHECKED == 0) and not bool(loss.isfinite()):
            raise DistillError(
                f"a network's training loss is {loss.item()} at step {step}; lower its optimizer.lr"
            )
        after_step(step + 1, module)
    return module


def rate(schedule: str, step: int, steps: int) -> float:
    """The factor on the step size at a step."""
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * step / steps))
    return 0.1 if schedule == "step" and 2 * step >= steps else 1.0


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
