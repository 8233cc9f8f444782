"""The stage that distills: builds canvas and labels, and runs the outer loop to its end."""

import logging
from pathlib import Path

import torch

from distill_datasets.artifacts import fingerprint, is_done, mark_done, write_atomically
from distill_datasets.optimize import STATE, Distill, Progressing, optimize
from distill_datasets.pictures import overview
from distill_datasets.progress import progress_bar
from distill_datasets.runtime import Runtime, rng_for
from distill_datasets.stages.source import LoadedSource
from distill_datasets.types import Distilled

logger = logging.getLogger("distill_datasets")

VERSION = 1


def run_distill(
    settings: Distill,
    source: LoadedSource,
    *,
    seed: int,
    runs: Path,
    runtime: Runtime,
    quiet: bool,
) -> tuple[Distilled, Path]:
    """Distill the source, or take up where an earlier run of the same recipe stopped.

    Args:
        settings: the `distill` section.
        source: what is distilled.
        seed: the recipe's seed.
        runs: the folder of this recipe's stages.
        runtime: processes, threads and device.
        quiet: no progress bar.

    Returns:
        Canvas and labels after the last outer step, on the device, and the stage's folder. It holds
        `state.safetensors` and, under `previews/`, pictures of the canvas on the way.
    """
    result_only = settings.model_dump(mode="json", exclude={"previews", "checkpoint_seconds"})
    folder = (
        runs / f"distill-{fingerprint([VERSION, 'distill', result_only, source.fingerprint, seed])}"
    )
    real = source.real
    canvas = settings.canvas.build(real, rng_for(seed, "canvas"))
    labels = settings.labels.build(canvas, real.shape.k)
    normalization = real.normalization
    distilled = Distilled(
        canvas, labels, normalization.display_mean_C, normalization.display_std_C
    ).to(runtime.device)
    done = is_done(folder) and (folder / STATE).exists()
    runtime.wait()
    if done:
        Progressing(settings, distilled).restore(folder / STATE)
        return distilled, folder

    def preview(step: int) -> None:
        picture = overview(canvas.originals())
        write_atomically(
            folder / "previews" / f"step-{step:07d}.png",
            lambda temporary: _write(temporary, picture),
        )

    networks = settings.networks.build(real.shape, runtime.device)
    with progress_bar("distill", settings.steps, shown=runtime.is_main and not quiet) as bar:
        optimize(
            settings,
            distilled,
            networks,
            real,
            seed=seed,
            folder=folder,
            runtime=runtime,
            bar=bar,
            preview=preview,
        )
    if runtime.is_main:
        mark_done(folder, {"steps": settings.steps, "torch": torch.__version__})
    runtime.wait()
    return distilled, folder


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
