"""The stage that distills: builds canvas and labels, and runs the outer loop to its end."""

import logging
from pathlib import Path

import torch

from distill_datasets.artifacts import (
    fingerprint,
    is_done,
    mark_done,
    sha256_tensors,
    write_atomically,
)
from distill_datasets.data.source import RealData
from distill_datasets.distilled_modules import Distilled, StepSizes
from distill_datasets.optimize import STATE, Distill, Progressing, optimize
from distill_datasets.pictures import overview
from distill_datasets.progress import progress_bar
from distill_datasets.runtime import Runtime, rng_for
from distill_datasets.stages.source import LoadedSource
from distill_datasets.stages.squeeze import Members, SqueezedFolder

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
    squeezed: SqueezedFolder | None = None,
) -> tuple[Distilled, Path]:
    """Distill the source, or take up where an earlier run of the same recipe stopped.

    Args:
        settings: the `distill` section.
        source: what is distilled.
        seed: the recipe's seed.
        runs: the folder of this recipe's stages.
        runtime: processes, threads and device.
        quiet: no progress bar.
        squeezed: the networks of the squeeze stage, when the recipe has one.

    Returns:
        Canvas and labels after the last outer step, on the device, and the stage's folder. It holds
        `state.safetensors` and, under `previews/`, pictures of the canvas on the way.
    """
    result_only = settings.model_dump(mode="json", exclude={"previews", "checkpoint_seconds"})
    identity = [VERSION, "distill", result_only, source.fingerprint, seed]
    if squeezed is not None:
        identity.append(squeezed.fingerprint)
    real = source.real
    distilled = build(settings, real, seed, squeezed, runtime.device)
    # initial images may come from a folder whose content the section does not name
    identity.append(sha256_tensors(distilled.parameters()))
    folder = runs / f"distill-{fingerprint(identity)}"
    distilled = distilled.to(runtime.device)
    networks = settings.networks.build(real.shape, runtime.device, squeezed)
    done = is_done(folder) and (folder / STATE).exists()
    runtime.wait()
    if done:
        Progressing(settings, distilled).restore(folder / STATE)
        return distilled, folder

    def preview(step: int) -> None:
        picture = overview(distilled.canvas.originals())
        write_atomically(
            folder / "previews" / f"step-{step:07d}.png",
            lambda temporary: _write(temporary, picture),
        )

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


def build(
    settings: Distill,
    real: RealData,
    seed: int,
    squeezed: SqueezedFolder | None,
    device: torch.device,
) -> Distilled:
    """Canvas, labels and step sizes at their initial values, on the CPU.

    Squeezed networks that choose images or label them are asked on the device.
    """
    normalization = real.normalization
    mean_C, std_C = normalization.display_mean_C.cpu(), normalization.display_std_C.cpu()
    asked = settings.canvas.needs_squeezed or settings.labels.needs_squeezed
    teacher = Members(squeezed, real.shape, device) if squeezed is not None and asked else None
    canvas = settings.canvas.build(real, rng_for(seed, "canvas"), teacher)
    logits_MNK = None
    if settings.labels.needs_squeezed and teacher is not None:
        with torch.no_grad():
            images_NCHW = canvas(torch.arange(canvas.count))
            logits_MNK = teacher((images_NCHW - mean_C[:, None, None]) / std_C[:, None, None])
    labels = settings.labels.build(canvas, real.shape.k, logits_MNK)
    initial = settings.objective.step_sizes()
    return Distilled(canvas, labels, mean_C, std_C, StepSizes(initial) if initial else None)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
