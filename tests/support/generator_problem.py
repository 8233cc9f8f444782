"""A toy generator that is trained in seconds, as a function and as a program of some processes.

As a program: `python generator_problem.py FOLDER [MODULE RANK]`. It says the hash of refined
samples; the process of the rank sends itself a signal when it has trained a module for a while.
"""

import hashlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from distill_datasets.data.real import RealData
from distill_datasets.models.generator import Generator
from distill_datasets.runtime.draws import rng_for
from distill_datasets.runtime.processes import Run, Runtime
from distill_datasets.selection.generated import Guided, Refine
from distill_datasets.stages.generator import GeneratorPart, TrainedGenerator, run_generator
from distill_datasets.stages.source import LoadedSource
from distill_datasets.training.loop import SupervisedTraining
from support.tiny import toy_real

PHASE = {"epochs": 2, "batch": 20, "checkpoint_seconds": 0.0, "shards": 2}
TRAINED = {
    "name": "trained",
    "autoencoder": {**PHASE, "channels": 2, "width": 8},
    "flow": {**PHASE, "width": 8, "ema": 0.9},
    "minimax": {**PHASE, "epochs": 1},
    "steps": 4,
}


def trained(**changed: Any) -> TrainedGenerator:  # noqa: ANN401
    """The toy section with some keys changed."""
    return TrainedGenerator.model_validate(TRAINED | changed)


def made(part: GeneratorPart, folder: Path, real: RealData | None = None) -> Generator:
    """The generator of a section for toy images, its folders below `folder`."""
    real = real or toy_real()
    source = LoadedSource(real, None, "toy")  # type: ignore[arg-type]
    runtime = Runtime()
    with runtime.stop.listening(), runtime.reproducible():
        run_generator(part, source, Run(0, folder, runtime, shown=False))
    assert real.generator is not None
    return real.generator


def samples(folder: Path) -> str:
    """The hash of refined samples of one class by the toy generator."""
    real = toy_real()
    made(trained(), folder, real)
    images_BCHW = Guided(mode=0.2, refine=Refine(steps=2)).of_class(real, 1, 3, rng_for(0))
    return hashlib.sha256(images_BCHW.numpy().tobytes()).hexdigest()


def end_in(module: str, rank: str) -> None:
    """Let the process of this rank get a signal in the middle of the training of a module."""
    moved, steps = SupervisedTraining._moved, 0

    def counted(self: SupervisedTraining, *given: Any) -> Any:  # noqa: ANN401
        nonlocal steps
        steps += type(self.module).__name__ == module
        if steps == 4 and os.environ.get("RANK", "0") == rank:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)  # the thread that reads signals has its turn
        return moved(self, *given)

    SupervisedTraining._moved = counted  # type: ignore[method-assign]


if __name__ == "__main__":
    if sys.argv[2:]:
        end_in(sys.argv[2], sys.argv[3])
    print(samples(Path(sys.argv[1])))
