"""A toy set that is distilled block by block, as a function and as a program of some processes.

As a program: `python blocks_problem.py FOLDER [OBJECTIVE [KILLED_AT]]`; it kills itself, as a
machine that loses power would, after so many files of its own.
"""

import itertools
import os
import signal
import sys
from pathlib import Path
from typing import Any, ClassVar, Literal
from unittest import mock

import torch
from accelerate import PartialState

from distill_datasets.distilled import DistilledImages
from distill_datasets.models.architecture import Architecture
from distill_datasets.networks.network import Networks, Teachers, TrainedMembers
from distill_datasets.runtime.processes import Run, Runtime
from distill_datasets.stages import blocks
from distill_datasets.stages.distill import Distill
from distill_datasets.stages.source import LoadedSource
from distill_datasets.types import Shape
from support.recover_problem import residual, teachers
from support.tiny import toy_real

SHAPE = Shape(3, 8, 8, 4)
RECOVER = {"name": "recover", "match_batch": 4, "bn_weight": 0.05}
SELECTED = {"name": "selected"}


class Residuals(Networks):
    """Two small residual networks."""

    paper: ClassVar[str] = "none"
    offers: ClassVar[frozenset[str]] = frozenset({"batch_norm"})
    name: Literal["residuals"] = "residuals"

    def build(
        self, shape: Shape, device: torch.device, squeezed: TrainedMembers | None = None
    ) -> Teachers:
        return teachers(residual(0), residual(1))

    def architecture(self, squeezed: Architecture | None) -> Architecture:
        raise AssertionError


def settings(objective: dict[str, Any], init: str = "herding", **changed: Any) -> Distill:  # noqa: ANN401
    """Four classes of three images; three steps in blocks of four."""
    section = {
        "objective": objective,
        "canvas": {"name": "pixels", "ipc": 3, "bounds": "clip", "init": init},
        "labels": "area",
        "networks": Residuals(),
        "steps": 3 if objective["name"] == "recover" else 0,
        "optimizer": {"name": "adam", "lr": 0.25, "beta1": 0.5, "beta2": 0.9},
        "schedule": "cosine",
        "clip": None,
        "checkpoint_seconds": 0.0,
        "previews": 1,
    }
    return Distill.model_validate(section | changed)


def run(section: Distill, folder: Path, runtime: Runtime | None = None) -> DistilledImages:
    """Distill the toy source below `folder`."""
    source = LoadedSource(toy_real(SHAPE, per_class=8), None, "toy")  # type: ignore[arg-type]
    made = runtime or Runtime()
    with made.reproducible():
        return blocks.run_blocks(section, source, run=Run(0, folder, made, shown=False))


def main() -> None:
    folder, objective = Path(sys.argv[1]), {"recover": RECOVER, "selected": SELECTED}[sys.argv[2]]
    killed_at, synced = int(sys.argv[3]), itertools.count(1)  # one count for all threads
    fsync = os.fsync

    def counted(file: int) -> None:
        number = next(synced)
        fsync(file)
        if number == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    with mock.patch("os.fsync", counted):
        run(settings(objective), folder)


if __name__ == "__main__":
    main()
    PartialState().destroy_process_group()  # as the end of a run does
