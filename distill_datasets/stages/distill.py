"""The stage that distills, and the one outer loop: every objective that gives a gradient.

A step asks the objective for the gradient of each lane, sums the lanes in order, clips the canvas's
share, and moves canvas and labels. The loop knows no method: what differs is in the four axes, and
whether images can be solved each for itself is asked of the canvas.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, NoReturn, Self

import torch
from pydantic import Field, SerializeAsAny, model_validator

from distill_datasets.canvases.canvas import Canvas
from distill_datasets.config import Section, part
from distill_datasets.distilled import Distilled
from distill_datasets.errors import DistillError
from distill_datasets.files.artifacts import (
    done,
    fingerprint,
    mark_done,
    sha256_tensors,
    write_atomically,
)
from distill_datasets.labels.labels import Labels
from distill_datasets.media.image import overview
from distill_datasets.networks.network import CarryingSource, Networks, NetworkSource, Teachers
from distill_datasets.objectives.objective import Objective
from distill_datasets.optimizers import Adam, Optimizer, cosine
from distill_datasets.runtime.draws import LaneDraw
from distill_datasets.runtime.processes import Run, Runtime
from distill_datasets.runtime.progress import Bar, NoBar
from distill_datasets.stages.outer_state import OuterState, Residual
from distill_datasets.stages.start import started

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.real import RealData
    from distill_datasets.stages.source import LoadedSource
    from distill_datasets.stages.squeeze import SqueezedFolder


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
    steps: int = Field(ge=0, le=10_000_000, description="outer steps; 0 keeps the initial images")
    lanes: int = Field(
        default=1,
        gt=0,
        le=10_000,
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
    ema: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="decay of a moving average of what is trained, which is published in place of "
        "the last values; null publishes those",
    )
    residual: Residual | None = Field(
        default=None, description="mix the start of the canvas back between phases; null: never"
    )
    clip: float | None = Field(
        default=2.0,
        gt=0,
        description="largest canvas gradient, in moving averages of its norm; null never clips",
    )
    previews: int = Field(
        default=10, ge=0, le=10_000, description="pictures drawn on the way, evenly spaced"
    )
    checkpoint_seconds: float = Field(
        default=30.0, ge=0, description="shortest time between two saved states"
    )

    @model_validator(mode="after")
    def _labels_take_the_targets_of_the_objective(self) -> Self:
        if self.objective.last_steps and not self.labels.takes_targets:
            raise ValueError(
                f"labels: {self.labels.name!r} cannot take the targets that the objective "
                f"{self.objective.name!r} gives them at the end; expected vectors"
            )
        return self

    @model_validator(mode="after")
    def _separable_objectives_have_images_of_one_class(self) -> Self:
        if not self.objective.separable:
            return self
        alone = self.canvas.alone()
        if alone is None:
            raise ValueError(
                f"canvas: {self.canvas.name!r} with the objective {self.objective.name!r}, which "
                "solves images each for itself; expected {name: pixels, ipc: ...}, none frozen"
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


class LaneMean(NamedTuple):
    """What an outer step learns from its lanes: means over those that count."""

    counting: float
    loss: float
    grads: dict[str, Tensor]
    metrics: dict[str, float]
    stops: bool
    """Whether any process was asked to stop when it began."""


RunUnits = Callable[[Callable[[int], "Tensor"], list[int]], list["Tensor"]]
"""Maps a function of a lane over some lanes; what `Runtime.pool` gives."""


@dataclass
class OuterLoop:
    """The outer loop of a distilled set, on all processes of a runtime.

    Attributes:
        settings: the `distill` section.
        distilled: changed in place.
        networks: what the objective asks: a source that lanes draw networks from, or teachers.
        real: the source dataset.
        seed: the recipe's seed.
        folder: holds the saved state.
        runtime: processes, threads and device.
        bar: shows steps, loss and speed.
        preview: draws a picture of the current canvas; called with the number of steps done.
        saves_end: False leaves out the state after the last step, which another file replaces.
    """

    settings: Distill
    distilled: Distilled
    networks: NetworkSource | Teachers
    real: RealData
    seed: int
    folder: Path
    runtime: Runtime
    bar: Bar
    preview: Callable[[int], None]
    saves_end: bool = True

    def __post_init__(self) -> None:
        settings = self.settings
        rules = {
            "canvas": settings.optimizer,
            "labels": settings.label_optimizer,
            "step_sizes": settings.rate_optimizer,
        }
        self._state = OuterState(
            self.distilled, rules, settings.steps, settings.ema, settings.residual
        )
        self._saved_at = time.monotonic()

    def run(self, stopping: Callable[[], bool] = lambda: False) -> bool:
        """Go on to the last step, from wherever the folder says the loop stands.

        Args:
            stopping: asked before every step; when true, the loop saves its state and ends there.

        Returns:
            True when all steps are done.

        Raises:
            DistillError: the loss or a gradient is not finite, the state before it stays saved; or
                no lane counted in a hundred steps in a row, or in any step.
        """
        state, settings = self._state, self.settings
        self._resume()
        self.runtime.wait()
        with self.runtime.pool(settings.lanes, breaks=False) as run_units:
            while state.step < settings.steps:
                if stopping():
                    state.save(self.folder / STATE)
                    return False
                mean = self._mean_over_lanes(run_units)
                if mean.counting:
                    state.clip(mean.grads, settings.clip)
                    state.move(mean.grads, schedule(settings, state.step))
                    self.distilled.project()
                state.average()
                if isinstance(self.networks, CarryingSource):
                    self._advance(self.networks, run_units)
                state.step += 1
                state.mix_start()
                self._refuse_to_idle(mean)
                self._report(mean)
                self._save_when_due()
                self._draw_when_due()
                if mean.stops or (self.runtime.processes == 1 and self.runtime.stop.asked):
                    self._stop()
        self._settle()
        self.runtime.wait()
        return True

    def _stop(self) -> None:
        """Save the state and leave, all processes together; after the last step only go on."""
        step, steps = self._state.step, self.settings.steps
        if step == steps:
            return
        if self.runtime.is_main:
            self._state.save(self.folder / STATE)
        self.runtime.wait()
        raise self.runtime.stop.error(f"distill is saved after step {step} of {steps}")

    def take_finished(self) -> bool:
        """Take what an earlier run left after its last step; False where its state is another."""
        steps = self.settings.steps
        if self._restore() and self._state.step == steps:
            self._settle()
            return True
        logger.warning(
            "%s: says that all %d steps are done, but its state is that after %d; it goes on there",
            self.folder, steps, self._state.step,
        )  # fmt: skip
        return False

    def _settle(self) -> None:
        """Put what is published in place of the last values, which the saved state keeps.

        The averages where there are any, then the targets that the objective gives at the end.
        """
        self._state.publish()
        steps, lanes = self.settings.steps, self.settings.lanes
        draws = [
            LaneDraw(self.seed, steps + more, lane, steps)
            for more in range(self.settings.objective.last_steps)
            for lane in range(lanes)
        ]
        if not draws:
            return

        def targets(_: int) -> Tensor:
            found = self.settings.objective.last_targets(self.distilled, self.networks, draws)
            assert found is not None, "an objective that asks for draws gives targets"
            return found

        with self.runtime.pool(1) as run_units:  # as many threads as in any other process
            (targets_NK,) = run_units(targets, [0])
        self.distilled.take_targets(targets_NK)

    def _resume(self) -> None:
        if not self._restore():
            return
        step, steps = self._state.step, self.settings.steps
        logger.info("distill: resumed after %d of %d steps", step, steps)
        self.bar.advance(step)

    def _restore(self) -> bool:
        if not self._state.restore(self.folder / STATE):
            return False
        for lane, values in self._state.carried.items():
            assert isinstance(self.networks, CarryingSource), "the state is of this very recipe"
            self.networks.carry(lane, values.to(self.runtime.device))
        return True

    def _draw(self, lane: int) -> LaneDraw:
        return LaneDraw(self.seed, self._state.step, lane, self.settings.steps)

    def _mean_over_lanes(self, run_units: RunUnits) -> LaneMean:
        """The mean loss and gradient of the lanes that count, the same bits on every process."""
        parameters, lanes = self._state.parameters, self.settings.lanes
        device, metrics = self.runtime.device, dict[str, float]()

        def packed(lane: int) -> Tensor:
            """One lane as a vector: [1, loss, all gradients in a row, 1 if asked to stop].

            Zeros, but for the last, if the lane counts not.
            """
            estimate = self.settings.objective.estimate(
                self.distilled, self.networks, self.real, self._draw(lane)
            )
            if lane == 0:  # one lane is enough to look at, and always the main process's
                metrics.update(estimate.metrics)
            grads = (estimate.grads[name].flatten() for name in parameters)
            loss = torch.tensor([estimate.loss], device=device)
            values = torch.cat([torch.ones_like(loss), loss, *grads])
            values = values if estimate.counts else torch.zeros_like(values)
            # processes are told to stop at different times and have to stop at the same step
            return torch.cat([values, torch.full_like(loss, float(self.runtime.stop.asked))])

        mine = self.runtime.mine(lanes)
        vectors = dict(zip(mine, run_units(packed, mine), strict=True))
        sizes = [parameter.numel() for parameter in parameters.values()]
        like = torch.zeros(3 + sum(sizes), device=device)
        # the one collective of a step: [lanes that count, sum of losses, sums of gradients]
        total = self.runtime.sum_in_order(vectors, lanes, like)
        finite = total[1:].isfinite().all().to(total.dtype)
        asked = total[-1]
        # the one place where a step waits for the device
        counting, summed, is_finite, stops = torch.stack([*total[:2], finite, asked]).tolist()
        mean, loss = total[2:-1] / max(1, counting), summed / max(1, counting)
        if not is_finite:
            self._refuse_infinite(loss)
        pieces = zip(parameters.items(), torch.split(mean, sizes), strict=True)
        grads = {name: piece.view_as(parameter) for (name, parameter), piece in pieces}
        return LaneMean(counting, loss, grads, metrics, bool(stops))

    def _refuse_infinite(self, loss: float) -> NoReturn:
        if self.runtime.is_main:
            self._state.save(self.folder / STATE)
        raise DistillError(
            f"distill: the loss or its gradient is not finite at outer step {self._state.step} "
            f"(loss {loss}); lower distill.optimizer.lr or the inner learning rate. "
            f"The state before that step is in {self.folder}"
        )

    def _advance(self, networks: CarryingSource, run_units: RunUnits) -> None:
        """Let the lanes' networks train, and give what they carry to every process."""
        lanes = self.settings.lanes

        def advanced(lane: int) -> Tensor:
            return networks.advance(self.distilled, self.real, self._draw(lane))

        mine = self.runtime.mine(lanes)
        vectors = dict(zip(mine, run_units(advanced, mine), strict=True))
        like = torch.zeros(networks.carried_values, device=self.runtime.device)
        for lane, values in enumerate(self.runtime.exchange(vectors, lanes, like)):
            networks.carry(lane, values)
            self._state.carried[lane] = values

    def _refuse_to_idle(self, mean: LaneMean) -> None:
        state = self._state
        state.idle = 0 if mean.counting else state.idle + 1
        if state.idle >= min(MOST_IDLE, self.settings.steps):
            raise DistillError(
                f"distill: no lane counted in {state.idle} outer steps up to step {state.step}: "
                "each loss was above distill.objective.skip_above, or not finite; raise "
                f"skip_above, or lower distill.optimizer.lr. An earlier state is in {self.folder}"
            )

    def _report(self, mean: LaneMean) -> None:
        if not mean.counting:
            self.bar.advance(1)
            return
        self.bar.advance(1, loss=mean.loss)
        metrics = {"loss": mean.loss, **mean.metrics}
        numbers = {f"distill/{name}": value for name, value in metrics.items()}
        self.runtime.log(numbers, self._state.step - 1)

    def _save_when_due(self) -> None:
        due = time.monotonic() - self._saved_at >= self.settings.checkpoint_seconds
        if self._state.step == self.settings.steps:
            due = self.saves_end
        if due and self.runtime.is_main:
            self._state.save(self.folder / STATE)
            self._saved_at = time.monotonic()

    def _draw_when_due(self) -> None:
        pictures = self.settings.previews
        due = {self.settings.steps * (picture + 1) // pictures for picture in range(pictures)}
        if self._state.step in due and self.runtime.is_main:
            self.preview(self._state.step)


def schedule(settings: Distill, step: int) -> float:
    """The factor on the outer step size at a step, in [0, 1]."""
    return 1.0 if settings.schedule == "constant" else cosine(step, settings.steps)


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
    if real.generator is not None:
        identity.append(real.generator.fingerprint)
    distilled = started(
        settings.canvas, settings.labels, settings.objective, source, run, squeezed=squeezed
    )
    # initial images may come from a folder whose content the section does not name
    identity.append(sha256_tensors(distilled.parameters.values()))
    folder = run.folder / f"distill-{fingerprint(identity)}"
    distilled = distilled.to(run.runtime.device)
    networks = settings.networks.build(real.shape, run.runtime.device, squeezed)
    finished = done(folder) is not None
    run.runtime.wait()

    def preview(step: int) -> None:
        draw_pictures(folder / "previews" / f"step-{step:07d}.png", distilled.preview())

    def loop(bar: Bar) -> OuterLoop:
        return OuterLoop(
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

    if finished and loop(NoBar()).take_finished():
        return distilled, folder
    with run.bar("distill", settings.steps) as bar:
        loop(bar).run()
    if run.runtime.is_main:
        mark_done(folder, {"steps": settings.steps, "torch": torch.__version__})
    run.runtime.wait()
    return distilled, folder


def draw_pictures(path: Path, images: list[Tensor]) -> None:
    """Write an overview of displayable images."""
    picture = overview(images)
    write_atomically(path, lambda temporary: temporary.write_bytes(picture))
