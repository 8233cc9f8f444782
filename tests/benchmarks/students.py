"""Students: eight of them on a small set, and the way from a published set to batches.

Augmentation is off where students are compared, so that both sides take the very same steps.
"""

import io
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image as PillowImage
from torch import Tensor, nn

from distill_datasets.data.normalization import InputSpace
from distill_datasets.evaluation.protocol import Evaluate
from distill_datasets.models.architecture import Architecture
from distill_datasets.models.convnets import ConvNet, LeNet
from distill_datasets.networks.network import fresh_weights, skeleton_of
from distill_datasets.optimizers import Sgd
from distill_datasets.runtime.draws import Draw, draws, rng_for
from distill_datasets.runtime.processes import Runtime
from distill_datasets.training.examples import Stored
from distill_datasets.training.student import train_student
from distill_datasets.types import Batch, Shape
from distill_datasets.views.augment import Augment
from tests.benchmarks.plain import convnet, set_weights, train_one
from tests.benchmarks.work import REFERENCE, Run, Size, Work, relative_error

if TYPE_CHECKING:
    from datasets import Dataset

# datasets and torchvision are imported where they are used: the other works start without them
STUDENTS = 8
MEAN, STD = 0.5, 0.25
CPU = torch.device("cpu")


def stored(shape: Shape, examples: int, device: torch.device) -> Stored:
    """A published set of random 8-bit images with soft labels, as evaluation holds it."""
    rng = rng_for(0, "students")
    size = (examples, shape.c, shape.h, shape.w)
    return Stored(
        torch.randint(256, size, generator=rng, dtype=torch.uint8),
        torch.rand(examples, shape.k, generator=rng).softmax(dim=1),
        InputSpace(torch.full((shape.c,), MEAN), torch.full((shape.c,), STD)),
    ).to(device)


def plain_lenet(classes: int) -> nn.Sequential:
    """The LeNet of Dataset Distillation for 28 px in gray."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes),
    )  # fmt: skip


def students_work(
    name: str,
    network: Callable[[Size], Architecture],
    plain: Callable[[Size], nn.Sequential],
    shape: Shape,
    examples: int,
    batch: int,
    steps: dict[Size, int],
    target: float,
) -> Work:
    """Students one after another in a plain loop, against the library's pool of them."""

    def first_weights(size: Size, student: int) -> Tensor:
        skeleton = skeleton_of(network(size), shape)
        return fresh_weights(skeleton, draws(0, student)("network"), CPU)

    def reference(size: Size, device: torch.device) -> Callable[[], list[nn.Module]]:
        own = stored(shape, examples, device)
        floats = own(torch.arange(examples, device=device))
        starts = [first_weights(size, student) for student in range(STUDENTS)]
        per_pass = examples // batch

        def orders(student: int) -> Iterator[Tensor]:
            draw = draws(0, student)
            for step in range(steps[size]):
                if step % per_pass == 0:
                    order_N = torch.arange(examples)
                    if batch < examples:
                        order_N = torch.randperm(
                            examples, generator=draw("order", step // per_pass)
                        )
                start = step % per_pass * batch
                yield order_N[start : start + batch].to(device)

        def run() -> list[nn.Module]:
            trained = []
            for student, start_P in enumerate(starts):
                module = plain(size)
                set_weights(module, start_P)
                trained.append(
                    train_one(module.to(device), floats, list(orders(student)), 0.01, 0.9)
                )
            return trained

        return run

    def ours(size: Size, device: torch.device) -> Callable[[], list[nn.Module]]:
        own = stored(shape, examples, device)
        settings = Evaluate(
            network=network(size), batch=batch, steps=steps[size], optimizer=Sgd(lr=0.01)
        )
        runtime = Runtime()

        def train(student: int) -> nn.Module:
            draw: Draw = draws(0, student)
            return train_student(settings, steps[size], own, shape, draw, device)

        def run() -> list[nn.Module]:
            with runtime.pool(STUDENTS) as run_units:
                return run_units(train, list(range(STUDENTS)))

        return run

    def check() -> dict[str, float]:
        expected, got = reference("tiny", CPU)(), ours("tiny", CPU)()
        images_BCHW = stored(shape, examples, CPU)(torch.arange(8)).images_BCHW
        errors = [
            relative_error(own(images_BCHW), other(images_BCHW))
            for own, other in zip(got, expected, strict=True)
        ]
        return {"logits": max(errors)}

    return Work(
        name,
        {
            size: f"{STUDENTS} students of {count} steps, batch {batch}: "
            f"{type(network(size)).__name__} at {shape.h} px"
            for size, count in steps.items()
        },
        {REFERENCE: reference, "library": ours},
        {"library": target},
        check,
        {"logits": 1e-4},
    )


CIFAR, DIGITS = Shape(3, 32, 32, 10), Shape(1, 28, 28, 10)
STUDENTS_CONVNET = students_work(
    "students-convnet",
    lambda size: ConvNet(depth=3, width=8 if size == "tiny" else 128),
    lambda size: convnet((3, 32, 32), 10, 8 if size == "tiny" else 128),
    CIFAR, 100, 100, {"tiny": 2, "cpu": 2, "paper": 1000}, 1.5,
)  # fmt: skip
STUDENTS_LENET = students_work(
    "students-lenet", lambda size: LeNet(), lambda size: plain_lenet(10),
    DIGITS, 100, 25, {"tiny": 4, "cpu": 40, "paper": 1000}, 1.5,
)  # fmt: skip


class Opened(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Rows of `load_dataset`, decoded and transformed one by one: the usual tutorial."""

    def __init__(self, rows: "Dataset") -> None:
        from torchvision import transforms

        self._rows = rows
        self._transform = transforms.Compose(
            [
                transforms.ToTensor(),
                transforms.Normalize([MEAN] * 3, [STD] * 3),
                transforms.RandomHorizontalFlip(),
                transforms.RandomRotation(15, transforms.InterpolationMode.BILINEAR),
            ]
        )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        row = self._rows[place]
        return self._transform(row["image"]), torch.tensor(row["soft_label"])


def batches_work() -> Work:
    """What a student sees of a published set: augmented batches, without the student."""
    rows_of: dict[Size, int] = {"tiny": 50, "cpu": 1000, "paper": 50000}
    batch, epochs = 100, 2

    def published(own: Stored) -> "Dataset":
        """The rows as Parquet holds them: PNG files and labels."""
        from datasets import Dataset, Features, Image, Value

        files = []
        for image in own.images_NCHW.cpu().permute(0, 2, 3, 1).numpy():
            file = io.BytesIO()
            PillowImage.fromarray(np.ascontiguousarray(image)).save(file, "PNG")
            files.append({"bytes": file.getvalue(), "path": None})
        columns = {"image": files, "soft_label": own.targets_NK.cpu().tolist()}
        kinds = Features({"image": Image(), "soft_label": [Value("float32")]})
        return Dataset.from_dict(columns, features=kinds)

    def reference(size: Size, device: torch.device) -> Run:
        opened = Opened(published(stored(CIFAR, rows_of[size], CPU)))
        loader = torch.utils.data.DataLoader(opened, batch_size=batch, shuffle=True)

        def run() -> list[Batch]:
            seen = []
            for _ in range(epochs):
                for images_BCHW, targets_BK in loader:
                    seen.append(Batch(images_BCHW.to(device), targets_BK.to(device)))
            return seen[-1:]

        return run

    def ours(size: Size, device: torch.device, augment: bool = True) -> Run:
        own, draw = stored(CIFAR, rows_of[size], device), draws(0)
        moves = Augment(operations=["flip", "rotate"] if augment else [], choose="all")

        def run() -> list[Batch]:
            seen = Batch(torch.empty(0), torch.empty(0))
            for epoch in range(epochs):
                order_N = own.order(draw("order", epoch), batch, epoch)
                for step, index_B in enumerate(torch.split(order_N, batch)):
                    images_BCHW, seen_BK = own(index_B.to(device))
                    seen = Batch(moves(images_BCHW, draw("augment", epoch, step)), seen_BK)
            return [seen]

        return run

    def check() -> dict[str, float]:
        from torchvision import transforms

        own = stored(CIFAR, rows_of["tiny"], CPU)
        rows = published(own)
        plain = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize([MEAN] * 3, [STD] * 3)]
        )
        expected = torch.stack([plain(row["image"]) for row in rows])
        got = own(torch.arange(len(rows))).images_BCHW
        return {"images before augmentation": relative_error(got, expected)}

    return Work(
        "batches",
        {
            size: f"{epochs} epochs of {rows} published images at 32 px, flipped and rotated"
            for size, rows in rows_of.items()
        },
        {REFERENCE: reference, "library": ours},
        {"library": 3.0},
        check,
        {"images before augmentation": 1e-6},
    )


BATCHES = batches_work()
