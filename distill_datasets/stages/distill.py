"""The stage that distills, and the one outer loop: every objective that gives a gradient.

A step asks the objective for the gradient of each lane, sums the lanes in order, clips the canvas's
share, and moves canvas and labels. The loop knows no method: what differs is in the four axes.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

import torch
from pydantic import Field, SerializeAsAny, model_validator

from distill_datasets.canvases.canvas import Canvas
from distill_datasets.config import Section, part
from distill_datasets.data.real import RealData
from distill_datasets.distilled import Distilled
from distill_datasets.errors import DistillError
from distill_datasets.files.artifacts import (
    fingerprint,
    is_done,
    mark_done,
    read_tensors,
    sha256_tensors,
    write_atomically,
    write_tensors,
)
from distill_datasets.labels.labels import Labels
from distill_datasets.media.image import overview
from distill_datasets.networks.network import CarryingSource, Networks, NetworkSource, Teachers
from distill_datasets.objectives.objective import Objective
from distill_datasets.optimizers import Adam, Optimizer
from distill_datasets.runtime.draws import LaneDraws, rng_for
from distill_datasets.runtime.processes import Run, Runtime
from distill_datasets.runtime.progress import Bar
from distill_datasets.stages.source import LoadedSource
from distill_datasets.stages.squeeze import Members, SqueezedFolder

if TYPE_CHECKING:
    from torch import Tensor


logger = logging.getLogger("distill_datasets")


STATE = "state.safetensors"


MOST_IDLE = 100
"""Steps in a row that may pass without a lane that counts."""


class Distill(Section):
    """What is distilled and how the outer loop moves."""

    objective: Annotated[SerializeAsAny[Objective], part("objectives")]
    canvas: Annotated[SerializeAsAny[Canvas], part("canvases")]
    labels: Annotated[SerializeAsAny[Labels], part("labels")]
    networks: Annotated[SerializeAsAny[Networks], part("networks")]
    steps: int = Field(ge=0, description="outer steps; 0 keeps the initial images")
    lanes: int = Field(
        default=1,
        gt=0,
        description="independent networks whose gradients an outer step averages; processes and "
        "cores share them",
    )
    optimizer: Annotated[SerializeAsAny[Optimizer], part("optimizers")] = Field(
        default=Adam(lr=0.001), description="rule that moves the canvas"
    )
    label_optimizer: Annotated[SerializeAsAny[Optimizer], part("optimizers")] = Field(
        default=Adam(lr=0.001), description="rule that moves learned labels"
    )
    rate_optimizer: Annotated[SerializeAsAny[Optimizer], part("optimizers")] = Field(
        default=Adam(lr=0.001), description="rule that moves learned step sizes"
    )
    schedule: Literal["constant", "cosine"] = Field(
        default="constant", description="of the outer step sizes; cosine falls to zero"
    )
    clip: float | None = Field(
        default=2.0,
        gt=0,
        description="largest canvas gradient, in moving averages of its norm; null never clips",
    )
    previews: int = Field(default=10, ge=0, description="pictures drawn on the way, evenly spaced")
    checkpoint_seconds: float = Field(
        default=30.0, ge=0, description="shortest time between two saved states"
    )

    @model_validator(mode="after")
    def _separable_objectives_have_images_of_one_class(self) -> Self:
        if not self.objective.separable:
            return self
        alone = self.canvas.alone()
        if alone is None:
            raise ValueError(
                f"canvas: {self.canvas.name!r} with the objective {self.objective.name!r}, which "
                "solves images each for itself; expected {name: pixels, ipc: ...}"
            )
        if not self.labels.keep_classes:
            raise ValueError(
                f"labels: {self.labels.name!r} with the objective {self.objective.name!r}, whose "
                "images are of one class each; expected area"
            )
        if self.objective.minimizes:
            return self
        if self.steps:
            raise ValueError(
                f"steps: got {self.steps}, expected 0: the objective {self.objective.name!r} keeps "
                "the initial images"
            )
        if alone.altered is not None:
            raise ValueError(alone.altered)
        return self


class Progressing:
    """Everything that an outer step changes, and how it is saved and restored."""

    def __init__(self, settings: Distill, distilled: Distilled) -> None:
        self.parameters = distilled.parameters
        rules = {
            "canvas": settings.optimizer,
            "labels": settings.label_optimizer,
            "step_sizes": settings.rate_optimizer,
        }
        self.rules = {name: rules[name.partition(".")[0]] for name in self.parameters}
        self.states = {
            name: self.rules[name].start(parameter.detach())
            for name, parameter in self.parameters.items()
        }
        self.step = 0
        self.mean_norm = 0.0
        self.idle = 0
        """Steps in a row in which no lane counted."""
        self.carried: dict[int, Tensor] = {}

    def save(self, path: Path) -> None:
        """Write everything as one file, atomically."""
        tensors: dict[str, Tensor] = dict(self.parameters)
        for name, state in self.states.items():
            tensors |= {f"{name}/{slot}": value for slot, value in enumerate(state)}
        tensors |= {f"carried/{lane}": values for lane, values in self.carried.items()}
        note = {"step": self.step, "mean_norm": self.mean_norm.hex(), "idle": self.idle}
        write_tensors(path, tensors, note)

    def restore(self, path: Path) -> None:
        """Read what `save` wrote, into the parameters themselves."""
        with torch.no_grad():
            tensors, note = read_tensors(path)
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[name])
                self.states[name] = tuple(
                    tensors[f"{name}/{slot}"].to(parameter.device)
                    for slot in range(len(self.states[name]))
                )
            self.step, self.mean_norm = note["step"], float.fromhex(note["mean_norm"])
            self.idle = note.get("idle", 0)
            self.carried = {
                int(name.partition("/")[2]): values
                for name, values in tensors.items()
                if name.startswith("carried/")
            }

    def clip(self, grads: dict[str, Tensor], limit: float | None) -> None:
        """Scale the canvas gradient down to `limit` moving averages of its norm.

        The average (decay 0.9) takes in this step's norm before it is used. Labels are not clipped.

        Source: RaT-BPTT (arXiv:2311.07025), section 4.
        """
        if limit is None:
            return
        canvas = [grad for name, grad in grads.items() if name.startswith("canvas.")]
        norm = math.sqrt(sum(float(grad.double().square().sum()) for grad in canvas))
        self.mean_norm = norm if self.mean_norm == 0 else 0.9 * self.mean_norm + 0.1 * norm
        if norm > limit * self.mean_norm:
            for grad in canvas:
                grad *= limit * self.mean_norm / norm

    def move(self, grads: dict[str, Tensor], rate: float) -> None:
        """One update of every parameter, its step size multiplied by `rate`."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                rule = self.rules[name].model_copy(update={"lr": self.rules[name].lr * rate})
                moved, self.states[name] = rule.step(
                    parameter, self.states[name], grads[name], self.step + 1
                )
                parameter.copy_(moved)


def optimize(
    settings: Distill,
    distilled: Distilled,
    networks: NetworkSource | Teachers,
    real: RealData,
    *,
    seed: int,
    folder: Path,
    runtime: Runtime,
    bar: Bar,
    preview: Callable[[int], None],
) -> None:
    """Run the outer loop to its end, from wherever `folder` says it stands.

    Args:
        settings: the `distill` section.
        distilled: changed in place.
        networks: where lanes draw their networks from.
        real: the source dataset.
        seed: the recipe's seed.
        folder: holds the saved state.
        runtime: processes, threads and device.
        bar: shows steps, loss and speed.
        preview: draws a picture of the current canvas; called with the number of steps done.

    Raises:
        DistillError: the loss or a gradient is not finite, the state before it stays saved; or no
            lane counted in a hundred steps in a row, or in any step.
    """
    progressing = Progressing(settings, distilled)
    if (folder / STATE).exists():
        progressing.restore(folder / STATE)
        for lane, values in progressing.carried.items():
            assert isinstance(networks, CarryingSource), "the saved state is of this very recipe"
            networks.carry(lane, values.to(runtime.device))
        logger.info("distill: resumed after %d of %d steps", progressing.step, settings.steps)
        bar.advance(progressing.step)
    runtime.wait()
    drawn = {
        settings.steps * (picture + 1) // settings.previews for picture in range(settings.previews)
    }
    saved_at = time.monotonic()
    with runtime.pool(settings.lanes) as run_units:
        while progressing.step < settings.steps:
            step = progressing.step

            told: dict[str, float] = {}

            def lane_gradient(lane: int, step: int = step, told: dict[str, float] = told) -> Tensor:
                estimate = settings.objective.estimate(
                    distilled, networks, real, LaneDraws(seed, step, lane, settings.steps)
                )
                if lane == 0:  # one lane is enough to look at, and always the main process's
                    told.update(estimate.metrics)
                grads = (estimate.grads[name].flatten() for name in progressing.parameters)
                loss = torch.tensor([estimate.loss], device=runtime.device)
                values = torch.cat([torch.ones_like(loss), loss, *grads])
                return values if estimate.counts else torch.zeros_like(values)

            lanes = runtime.mine(settings.lanes)
            parts = dict(zip(lanes, run_units(lane_gradient, lanes), strict=True))
            sizes = [parameter.numel() for parameter in progressing.parameters.values()]
            like = torch.zeros(2 + sum(sizes), device=runtime.device)
            total = runtime.sum_in_order(parts, settings.lanes, like)
            finite = total[1:].isfinite().all().to(total.dtype)
            counting, summed, is_finite = torch.stack([*total[:2], finite]).tolist()  # waits once
            mean, loss = total[2:] / max(1, counting), summed / max(1, counting)
            if not is_finite:
                if runtime.is_main:
                    progressing.save(folder / STATE)
                raise DistillError(
                    f"distill: the loss or its gradient is not finite at outer step {step} (loss "
                    f"{loss}); lower distill.optimizer.lr or the inner learning rate. "
                    f"The state before that step is in {folder}"
                )
            pieces = torch.split(mean, sizes)
            grads = {
                name: piece.view_as(parameter)
                for (name, parameter), piece in zip(
                    progressing.parameters.items(), pieces, strict=True
                )
            }
            if counting:
                progressing.clip(grads, settings.clip)
                progressing.move(grads, schedule(settings, step))
                distilled.project()
            if isinstance(networks, CarryingSource):

                def advanced(
                    lane: int, source: CarryingSource = networks, step: int = step
                ) -> Tensor:
                    draw = LaneDraws(seed, step, lane, settings.steps)
                    return source.advance(distilled, real, draw)

                moved = dict(zip(lanes, run_units(advanced, lanes), strict=True))
                like = torch.zeros(networks.carried_values, device=runtime.device)
                for lane, values in enumerate(runtime.exchange(moved, settings.lanes, like)):
                    networks.carry(lane, values)
                    progressing.carried[lane] = values
            progressing.step += 1
            progressing.idle = 0 if counting else progressing.idle + 1
            if progressing.idle >= min(MOST_IDLE, settings.steps):
                raise DistillError(
                    f"distill: no lane counted in {progressing.idle} outer steps up to step "
                    f"{progressing.step}: each loss was above distill.objective.skip_above, or not "
                    "finite; raise skip_above, or lower distill.optimizer.lr. An earlier state is "
                    f"in {folder}"
                )
            bar.advance(1, **({"loss": loss} if counting else {}))
            if counting:
                seen = {"loss": loss, **told}
                runtime.log({f"distill/{name}": seen[name] for name in seen}, step)
            due = time.monotonic() - saved_at >= settings.checkpoint_seconds
            if runtime.is_main and (due or progressing.step == settings.steps):
                progressing.save(folder / STATE)
                saved_at = time.monotonic()
            if runtime.is_main and progressing.step in drawn:
                preview(progressing.step)
    runtime.wait()


def schedule(settings: Distill, step: int) -> float:
    """The factor on the outer step size at a step, in [0, 1]."""
    if settings.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * step / settings.steps))


VERSION = 1


def run_distill(
    settings: Distill,
    source: LoadedSource,
    run: Run,
    *,
    squeezed: SqueezedFolder | None = None,
) -> tuple[Distilled, Path]:
    """Distill the source, or take up where an earlier run of the same recipe stopped.

    Args:
        settings: the `distill` section.
        source: what is distilled.
        run: seed, folder, processes and device.
        squeezed: the networks of the squeeze stage, when the recipe has one.

    Returns:
        Canvas and labels after the last outer step, on the device, and the stage's folder. It holds
        `state.safetensors` and, under `previews/`, pictures of the canvas on the way.
    """
    result_only = settings.model_dump(mode="json", exclude={"previews", "checkpoint_seconds"})
    identity = [VERSION, "distill", result_only, source.fingerprint, run.seed]
    if squeezed is not None:
        identity.append(squeezed.fingerprint)
    real = source.real
    distilled = build(settings, real, run.seed, squeezed, run.runtime.device)
    # initial images may come from a folder whose content the section does not name
    identity.append(sha256_tensors(distilled.parameters.values()))
    folder = run.folder / f"distill-{fingerprint(identity)}"
    distilled = distilled.to(run.runtime.device)
    networks = settings.networks.build(real.shape, run.runtime.device, squeezed)
    done = is_done(folder) and (folder / STATE).exists()
    run.runtime.wait()
    if done:
        Progressing(settings, distilled).restore(folder / STATE)
        return distilled, folder

    def preview(step: int) -> None:
        picture = overview(distilled.preview())
        write_atomically(
            folder / "previews" / f"step-{step:07d}.png",
            lambda temporary: _write(temporary, picture),
        )

    with run.bar("distill", settings.steps) as bar:
        optimize(
            settings,
            distilled,
            networks,
            real,
            seed=run.seed,
            folder=folder,
            runtime=run.runtime,
            bar=bar,
            preview=preview,
        )
    if run.runtime.is_main:
        mark_done(folder, {"steps": settings.steps, "torch": torch.__version__})
    run.runtime.wait()
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
    space = real.normalization.to(torch.device("cpu")).input_space
    asked = settings.canvas.needs_squeezed or settings.labels.needs_squeezed
    teacher = Members(squeezed, real.shape, device) if squeezed is not None and asked else None
    images = settings.canvas.start(real, rng_for(seed, "canvas"), teacher)
    logits_MNK = None
    if settings.labels.needs_squeezed and teacher is not None:
        every_N = torch.arange(len(images.cells.shown))
        pixels_NCHW = settings.canvas.decode(images.trained | images.constants, every_N)
        logits_MNK = teacher(space.to_student(pixels_NCHW))
    targets = settings.labels.start(images.cells, real.shape.k, logits_MNK)
    step_sizes = settings.objective.step_sizes()
    return Distilled(settings.canvas, settings.labels, space, images, targets, step_sizes)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
