"""Toy images relabeled by toy teachers, as a function and as a program of some processes.

As a program: `python relabel_problem.py FOLDER [KILLED_AT]`; it kills itself, as a machine that
loses power would, after so many files.
"""

import dataclasses
import itertools
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast
from unittest import mock

import torch
import torch.nn.functional as F
from accelerate import PartialState
from torch import Tensor, nn

from distill_datasets.data.normalization import InputSpace
from distill_datasets.evaluation.protocol import Evaluate
from distill_datasets.export.content import Content
from distill_datasets.models.architecture import Architecture
from distill_datasets.models.convnets import ConvNet
from distill_datasets.models.weights import frozen
from distill_datasets.optimizers import Sgd
from distill_datasets.runtime.draws import rng_for
from distill_datasets.runtime.processes import Run, Runtime
from distill_datasets.soft_labels.replay import Pictures
from distill_datasets.stages.relabel import RelabelFolder, run_relabel
from distill_datasets.stages.squeeze import SqueezedFolder
from distill_datasets.types import Shape
from distill_datasets.views.relabel import Relabel
from support.sample_content import DisplayPixels, bytes_sample
from support.tiny import NET

SHAPE = Shape(3, 8, 12, 5)
MEAN_C, STD_C = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.25])
SPACE = InputSpace(MEAN_C, STD_C)


def images(shape: Shape = SHAPE, count: int = 40) -> Tensor:
    """Noise in 8 bits."""
    size = (count, shape.c, shape.h, shape.w)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=rng_for(5, "images"))


def pictures(shape: Shape = SHAPE) -> Pictures:
    """The toy images, in classes by turns."""
    space = InputSpace(MEAN_C[: shape.c], STD_C[: shape.c])
    return Pictures(images(shape), torch.arange(40) % shape.k, space, shape.k)


@dataclass(frozen=True)
class Store:
    """Small networks with BatchNorm, oblong images and running statistics that have moved."""

    members: int = 1
    shape: Shape = SHAPE
    fingerprint: str = "toy"

    @property
    def architectures(self) -> tuple[Architecture, ...]:
        return (NET,) * self.members

    def module(self, member: int) -> nn.Module:
        rng = rng_for(member, "teacher")
        module = nn.Sequential(
            nn.Conv2d(self.shape.c, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(24, self.shape.k),
        )
        with torch.no_grad():
            for weight in module.parameters():
                weight.copy_(torch.randn(weight.shape, generator=rng))
            module(torch.randn(9, self.shape.c, 8, 8, generator=rng))
        return frozen(module)

    def teacher_problems(self) -> Iterator[str]:
        yield from ()


def relabel(
    folder: Path,
    runtime: Runtime | None = None,
    store: Store | None = None,
    store_as: str = "logits",
    **settings: Any,  # noqa: ANN401
) -> RelabelFolder:
    """Label the toy images: two epochs in batches of 16, 16 and 8."""
    section = Relabel.model_validate({"epochs": 2, "batch": 16, "store": store_as, **settings})
    made, squeezed = runtime or Runtime(), store or Store()
    with made.reproducible():
        return run_relabel(
            section,
            pictures(squeezed.shape),
            cast("SqueezedFolder", squeezed),
            Run(3, folder, made, shown=False),
        )


def several(member_count: int = 2) -> Store:
    """The same with more members."""
    return replace(Store(), members=member_count)


def main() -> None:
    folder, killed_at = Path(sys.argv[1]), int(sys.argv[2])
    synced, fsync = itertools.count(1), os.fsync  # one count for all threads

    def counted(file: int) -> None:
        if next(synced) == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(file)

    with mock.patch("os.fsync", counted):
        relabel(folder, batch_norm="batch", groups=2)


if __name__ == "__main__":
    main()
    PartialState().destroy_process_group()  # as the end of a run does


KL = {"loss": "kl", "temperature": 4.0}


STUDENT = Evaluate(
    network=ConvNet(depth=1, width=4, norm="batch"),
    students=2,
    epochs=2,
    batch=10,
    optimizer=Sgd(lr=0.05),
    **KL,
)


LABELS_N = torch.arange(40) % SHAPE.k


def content_of(folder: Path, **fields: Any) -> Content:  # noqa: ANN401
    """What is published of 40 images with labels of two epochs of views."""
    made = relabel(folder / "runs", **fields)
    images_NCHW = images()
    content = bytes_sample(
        class_names=[f"class {label}" for label in range(SHAPE.k)],
        mean=MEAN_C.tolist(),
        std=STD_C.tolist(),
        real_shape=(SHAPE.c, SHAPE.h, SHAPE.w),
        relabel=made.published(),
    )
    return dataclasses.replace(
        content,
        images_NCHW=images_NCHW,
        originals=DisplayPixels(images_NCHW),
        targets_NK=F.one_hot(LABELS_N, SHAPE.k).byte(),
    )
