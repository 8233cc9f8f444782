"""A toy generator that is trained in seconds, as a function and as a program of some processes.

As a program: `python generator_problem.py FOLDER`.
"""

import sys
from pathlib import Path
from typing import Any

from distill_datasets.data.real import RealData
from distill_datasets.models.generator import Generator
from distill_datasets.runtime.processes import Run, Runtime
from distill_datasets.stages.generator import GeneratorPart, TrainedGenerator, run_generator
from distill_datasets.stages.source import LoadedSource
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
    with runtime.reproducible():
        run_generator(part, source, Run(0, folder, runtime, shown=False))
    assert real.generator is not None
    return real.generator


if __name__ == "__main__":
    made(trained(), Path(sys.argv[1]))
