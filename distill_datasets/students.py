"""Students: plain supervised training, and the share of test images they get right.

Shape suffixes: B images, C channels, H W pixels, K classes, N examples.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, Protocol, Self

import torch
import torch.nn.functional as F
from pydantic import Field, SerializeAsAny, model_validator
from torch import Tensor, nn

from distill_datasets.augment import Augment
from distill_datasets.data.source import Source
from distill_datasets.errors import DistillError
from distill_datasets.inner import Adam, Optimizer, Sgd
from distill_datasets.networks.sources import ArchitectureField
from distill_datasets.networks.zoo import ConvNet, initialize
from distill_datasets.plugins import part
from distill_datasets.types import Batch, Draw, Section, Shape

if TYPE_CHECKING:
    from distill_datasets.data.source import RealData

Reference = Literal["random_real", "herding", "k_center", "class_mean", "full"]

CPU_CHUNK = 32
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

    def order(self, rng: torch.Generator, batch: int) -> Tensor:
        """The examples of one pass, (N,), for batches of `batch`; one batch of all keeps theirs."""
        if batch >= self.count:
            return torch.arange(self.count)
        return torch.randperm(self.count, generator=rng)

    def loss(self, logits_BK: Tensor, targets_BK: Tensor) -> Tensor:
        """What a training step lowers, a mean over its examples."""
        return F.cross_entropy(logits_BK, targets_BK)


@dataclass(frozen=True)
class Stored(Examples):
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
class Whole(Examples):
    """The training images of the source, normalized batch by batch; drawn and judged as it says."""

    real: "RealData"

    @property
    def count(self) -> int:
        return len(self.real.train.labels_N)

    def __call__(self, index_B: Tensor) -> Batch:
        return self.real.select(index_B)

    def order(self, rng: torch.Generator, batch: int) -> Tensor:
        if self.real.sampling == "uniform":
            return super().order(rng, batch)
        return self.real.order(rng)

    def loss(self, logits_BK: Tensor, targets_BK: Tensor) -> Tensor:
        return self.real.cross_entropy(logits_BK, targets_BK)


class Training(Section):
    """How a network is trained on given examples."""

    network: ArchitectureField = Field(default=ConvNet(), description="what is trained")
    batch: int = Field(default=256, gt=0, description="examples of a training step")
    optimizer: Annotated[SerializeAsAny[Optimizer], part("optimizers")] = Field(
        default=Adam(lr=0.001), description="rule of the training"
    )
    schedule: Literal["constant", "cosine", "step", "published"] = Field(
        default="constant",
        description="of the step size; cosine falls to zero, step to a tenth half-way; published "
        "takes the step sizes learned with the images, by sgd, and optimizer.lr in references",
    )
    augment: Augment = Field(default=Augment(), description="of the training images")


class Squeeze(Training):
    """Which networks are trained on real data before anything is distilled."""

    schedule: Literal["constant", "cosine", "step"] = Field(
        default="constant",
        description="of the step size; cosine falls to zero, step to a tenth half-way",
    )
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
    references: list[Reference] = Field(
        default=[],
        description="rows to compare with: random, chosen (herding, k_center) and mean (class_mean)"
        " real images at the same number of pixels, and the whole dataset",
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

    @model_validator(mode="after")
    def _published_step_sizes_are_of_sgd(self) -> Self:
        if self.schedule == "published" and not isinstance(self.optimizer, Sgd):
            raise ValueError(
                f"schedule: published step sizes are of sgd, got the optimizer "
                f"{self.optimizer.name!r}; set optimizer: {{name: sgd, momentum: 0, lr: 0.02}}"
            )
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
    *,
    step_sizes: Sequence[float] = (),
    order: Sequence[Sequence[int]] = (),
    start_P: Tensor | None = None,
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
        step_sizes: step t takes the one at t modulo their number; none follows the schedule.
        order: the examples of step t, at t modulo their number; none shuffles every pass.
        start_P: all weights to start from, in the order of `parameters()`; None draws them.

    Raises:
        DistillError: the loss is not finite, or `start_P` is of another network.
    """
    module = settings.network.build(shape).to(device)
    if start_P is None:
        initialize(module, draw("network"))
    else:
        _start_from(module, start_P)
    optimizer = settings.optimizer.torch_optimizer(module.parameters())
    batch = min(settings.batch, examples.count)
    per_pass = examples.count // batch
    chunk = _chunk(module, batch)
    after_step(0, module)
    for step in range(steps):
        if step % per_pass == 0:
            order_N = examples.order(draw("order", step // per_pass), batch)
        start = step % per_pass * batch
        index_B = order_N[start : start + batch]
        if order:
            index_B = torch.tensor(order[step % len(order)])
        images_BCHW, targets_BK = examples(index_B.to(device))
        images_BCHW = settings.augment(images_BCHW, draw("augment", step))
        for group in optimizer.param_groups:
            group["lr"] = (
                step_sizes[step % len(step_sizes)]
                if step_sizes
                else settings.optimizer.lr * rate(settings.schedule, step, steps)
            )
        optimizer.zero_grad()
        losses = list[Tensor]()
        for images, targets in zip(
            torch.split(images_BCHW, chunk), torch.split(targets_BK, chunk), strict=True
        ):
            share = examples.loss(module(images), targets) * (len(images) / len(images_BCHW))
            share.backward()  # type: ignore[no-untyped-call]
            losses.append(share.detach())
        optimizer.step()
        loss = torch.stack(losses).sum()
        last = step == steps - 1
        if (last or step % CHECKED == 0) and not bool(loss.isfinite()):
            raise DistillError(
                f"a network's training loss is {loss.item()} at step {step}; lower its optimizer.lr"
            )
        after_step(step + 1, module)
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


@torch.no_grad()
def _start_from(module: nn.Module, start_P: Tensor) -> None:
    """Copy one vector of weights into a module."""
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
    return 0.1 if schedule == "step" and 2 * step >= steps else 1.0


class Score(NamedTuple):
    """Shares of images that a network gets right, in [0, 1]: of all, and of every class.

    A class without images has None.
    """

    accuracy: float
    per_class: list[float | None]


@torch.no_grad()
def score(module: nn.Module, batches: Iterable[Batch]) -> Score:
    """Count the images whose largest logit is the largest target, in one pass."""
    module.eval()
    predicted, labels, classes = list[Tensor](), list[Tensor](), 0
    for images_BCHW, targets_BK in batches:
        predicted.append(module(images_BCHW).argmax(dim=1))
        labels.append(targets_BK.argmax(dim=1))
        classes = targets_BK.shape[1]
    labels_N = torch.cat(labels)
    right_N = labels_N[torch.cat(predicted) == labels_N]
    pairs = [
        torch.bincount(chosen_N, minlength=classes).tolist() for chosen_N in (right_N, labels_N)
    ]
    return Score(
        len(right_N) / len(labels_N),
        [right / count if count else None for right, count in zip(*pairs, strict=True)],
    )


def accuracy(module: nn.Module, batches: Iterable[Batch]) -> float:
    """Share of images whose largest logit is the largest target, in [0, 1]."""
    return score(module, batches).accuracy


@torch.no_grad()
def taken_for(module: nn.Module, batches: Iterable[Batch], attacked: int, target: int) -> float:
    """Share of the images of class `attacked` whose largest logit is that of `target`."""
    module.eval()
    hits = total = 0
    for images_BCHW, targets_BK in batches:
        own_B = targets_BK.argmax(dim=1) == attacked
        predicted_B = module(images_BCHW).argmax(dim=1)
        hits += int((predicted_B[own_B] == target).sum())
        total += int(own_B.sum())
    return hits / max(1, total)
