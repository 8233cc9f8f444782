"""How a generator is trained on the source: an autoencoder, a flow of its latents, fine-tuning.

Each is a phase with a folder of its own, named by all that decides it, so that recipes that share a
phase train it once. Batches fall into equal pieces that processes share, as those of `squeeze` do.

Shape suffixes: N rows, B a batch, C channels and H W pixels of an image, L channels and h w sides
of a latent, K classes, D values of a latent, B B pairs of a batch.
"""

from __future__ import annotations

import logging
from abc import ABC
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import torch
import torch.nn.functional as F
from pydantic import Field, SerializeAsAny, model_validator
from torch import nn

from distill_datasets.config import Section, part
from distill_datasets.files.artifacts import (
    holds_rows,
    holds_tensors,
    open_rows,
    read_tensors,
    write_rows,
    write_tensors,
)
from distill_datasets.models.generator import ENCODED_AT_ONCE
from distill_datasets.optimizers import Adam, TrainingRule
from distill_datasets.runtime.draws import Draw, draws
from distill_datasets.runtime.locks import LOCK, one_run
from distill_datasets.runtime.precision import (
    WHERE_FAST,
    Precision,
    at_least_float32,
    computing_in,
)
from distill_datasets.runtime.processes import Run
from distill_datasets.training.checkpoint import TrainingCheckpoint
from distill_datasets.training.examples import Examples, shuffled
from distill_datasets.training.loop import LossOf, SupervisedTraining, rate, steps_of
from distill_datasets.types import Batch
from distill_datasets.views.augment import Augment

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.real import RealData
    from distill_datasets.models.flow import Autoencoder
    from distill_datasets.models.generator import Latents

logger = logging.getLogger("distill_datasets")

SHARD = 4096
"""Images of a unit of latents."""


class Phase(Section, ABC):
    """How long and in which steps one network of a generator is trained."""

    epochs: int = Field(gt=0, le=100_000, description="passes over the training images")
    batch: int = Field(default=128, gt=0, le=1_000_000, description="images of a training step")
    optimizer: Annotated[SerializeAsAny[TrainingRule], part("optimizers")] = Field(
        default=Adam(lr=0.002),
        description="rule of the training; the step size rises in the first twentieth of the steps "
        "and falls to zero by a cosine",
    )
    shards: int = Field(
        default=1, gt=0, le=10_000, description="equal pieces of a batch, which processes share"
    )
    precision: Precision = Field(
        default="float32",
        description=f"of the network while it is trained; weights and losses are float32; "
        f"{WHERE_FAST}",
    )
    checkpoint_seconds: float = Field(
        default=60.0, ge=0, description="at the end of an epoch, time since the last checkpoint"
    )

    @property
    def deciding(self) -> dict[str, object]:
        """What of a phase decides its weights."""
        plain = {"precision"} if self.precision == "float32" else set[str]()
        return self.model_dump(mode="json", exclude={"checkpoint_seconds", *plain})

    @property
    def augment(self) -> Augment:
        """Nothing: a generator makes images as they are."""
        return Augment()

    @model_validator(mode="after")
    def _pieces_are_equal(self) -> Self:
        if self.batch % self.shards:
            raise ValueError(
                f"shards: {self.shards} do not divide batch: {self.batch} into equal pieces"
            )
        return self


class AutoencoderPhase(Phase):
    """A variational autoencoder; a latent has a quarter of the sides, 8 px at most."""

    channels: int = Field(default=8, gt=0, le=4096, description="of a latent")
    width: int = Field(
        default=32, gt=0, le=4096, multiple_of=8, description="channels of its first layer"
    )
    divergence: float = Field(
        default=0.001,
        ge=0,
        description="weight of the divergence of latents from N(0, 1) beside the squared error",
    )


class FlowPhase(Phase):
    """A U-Net that moves noise to latents of a class."""

    width: int = Field(
        default=64, gt=0, le=4096, multiple_of=8, description="channels of its first level"
    )
    drop: float = Field(
        default=0.1, ge=0, lt=1, description="share of the labels that are left out, for guidance"
    )
    ema: float = Field(
        default=0.999, gt=0, lt=1, description="decay of the average of the weights that is kept"
    )
    mirror: bool = Field(
        default=False, description="learn mirrored images too; not for digits and letters"
    )


class MinimaxPhase(Phase):
    """Fine-tuning towards latents that are near to every real one of a class, and far apart.

    To the loss of the flow comes real (1 - min cos(z, m)) + apart max cos(z, z'), over all pairs of
    a batch, which is of one class: latents z and z' that the flow heads for, and real ones m.

    Source: Minimax diffusion (arXiv:2311.15529), where the pairs are of the last
    64 latents.
    """

    real: float = Field(default=0.002, ge=0, description="weight of being near to real latents")
    apart: float = Field(default=0.008, ge=0, description="weight of being far apart")


@dataclass(frozen=True)
class Labeled(Examples):
    """Images as bytes, or latents, with the classes they are of.

    Batches of `by_class` images are of one class each; what is left of a class is left out then.
    """

    rows_N: Tensor
    labels_N: Tensor
    classes: int
    by_class: int | None = None

    @property
    def count(self) -> int:
        if self.by_class is None:
            return len(self.rows_N)
        counts_K = torch.bincount(self.labels_N, minlength=self.classes)
        return int((counts_K // self.by_class * self.by_class).sum())

    def __call__(self, index_B: Tensor) -> Batch:
        labels_B = self.labels_N[index_B]
        rows_B = self.rows_N[index_B.to(self.rows_N.device)].to(labels_B.device)
        rows_B = rows_B if rows_B.is_floating_point() else rows_B.float() / 255
        return Batch(rows_B, F.one_hot(labels_B, self.classes).float())

    def order(self, rng: torch.Generator, batch: int, turn: int) -> Tensor:
        if self.by_class is None:
            return shuffled(self.count, rng, batch)
        order_N = torch.randperm(len(self.rows_N), generator=rng)
        labels_N = self.labels_N.cpu()[order_N]
        batches = [
            rows_B
            for label in range(self.classes)
            for rows_B in torch.split(order_N[labels_N == label], self.by_class)
            if len(rows_B) == self.by_class
        ]
        places = torch.randperm(len(batches), generator=rng).tolist()
        return torch.cat([batches[place] for place in places])

    def loss(self, logits_BK: Tensor, targets_BK: Tensor) -> Tensor:
        return F.mse_loss(logits_BK, targets_BK)


def autoencoder_loss(divergence: float, precision: Precision = "float32") -> LossOf:
    """Mean squared error of a pixel, and the divergence of an image's latent by its pixels.

    Source: VAE (arXiv:1312.6114).
    """

    def loss_of(module: Any, batch: Batch, draw: Draw) -> Tensor:  # noqa: ANN401
        pixels_BCHW, targets_BK = batch
        with computing_in(precision, pixels_BCHW.device):
            moments = module.distribution(pixels_BCHW)
        mean, log_variance = (at_least_float32(each) for each in moments)
        noise = torch.randn(mean.shape, generator=draw("latent")).to(mean.device)
        with computing_in(precision, pixels_BCHW.device):
            drawn_BCHW = module.drawn(mean + (log_variance / 2).exp() * noise, targets_BK)
        divergences = (mean.square() + log_variance.exp() - log_variance - 1) / 2
        per_pixel = divergences.sum() / pixels_BCHW.numel()
        error = F.mse_loss(at_least_float32(drawn_BCHW), pixels_BCHW)
        loss: Tensor = error + divergence * per_pixel
        return loss

    return loss_of


def flow_loss(
    drop: float, minimax: MinimaxPhase | None = None, precision: Precision = "float32"
) -> LossOf:
    """Mean squared error of the velocity, at times whose logits are normal.

    Source: flow matching (arXiv:2210.02747); times as in Stable Diffusion 3 (arXiv:2403.03206).
    """

    def loss_of(module: nn.Module, batch: Batch, draw: Draw) -> Tensor:
        latents_BLhw, targets_BK = batch
        count, classes = targets_BK.shape
        noise = torch.randn(latents_BLhw.shape, generator=draw("noise")).to(latents_BLhw.device)
        times_B = torch.randn(count, generator=draw("time")).sigmoid().to(latents_BLhw.device)
        dropped_B = torch.rand(count, generator=draw("drop")).to(latents_BLhw.device) < drop
        labels_B = targets_BK.argmax(dim=1).masked_fill(dropped_B, classes)
        time = times_B[:, None, None, None]
        x_BLhw = (1 - time) * noise + time * latents_BLhw
        with computing_in(precision, x_BLhw.device):
            velocity_BLhw = module(x_BLhw, times_B, labels_B)
        velocity_BLhw = at_least_float32(velocity_BLhw)
        loss = F.mse_loss(velocity_BLhw, latents_BLhw - noise)
        if minimax is None:
            return loss
        heads_for_BD = (x_BLhw + (1 - time) * velocity_BLhw).flatten(1)
        return loss + spread(heads_for_BD, latents_BLhw.flatten(1), minimax.real, minimax.apart)

    return loss_of


def spread(made_BD: Tensor, real_BD: Tensor, real: float, apart: float) -> Tensor:
    """real (1 - min cos(z, m)) + apart max cos(z, z') over all pairs of made and of real latents.

    Source: Minimax diffusion (arXiv:2311.15529).
    """
    made_BD, real_BD = F.normalize(made_BD), F.normalize(real_BD)
    to_real_BB, between_BB = made_BD @ real_BD.T, made_BD @ made_BD.T
    others_BB = between_BB - 2 * torch.eye(len(made_BD), device=made_BD.device)
    return real * (1 - to_real_BB.min()) + apart * others_BB.max()


def train_phase(
    name: str,
    phase: Phase,
    module: nn.Module,
    examples: Examples,
    loss_of: LossOf,
    folder: Path,
    run: Run,
    *,
    ema: float | None = None,
    finish: Callable[[], None] = lambda: None,
) -> None:
    """Train a module to its end, or go on where an earlier run was stopped; main writes the file.

    Args:
        name: of the phase, for its draws, its bar and messages.
        phase: how long and in which steps.
        module: on the device; of its weights those that are trained require a gradient.
        examples: what it is trained on.
        loss_of: what a step lowers.
        folder: where its weights and its checkpoint lie.
        run: seed, processes and device.
        ema: decay of the average that is kept in place of the last weights.
        finish: called after the last step, before the file is written.

    Raises:
        DistillError: the loss is not finite.
        Interrupted: the run was asked to end; it has saved what it had.
    """
    per_epoch = steps_of(1, examples.count, phase.batch)
    steps = phase.epochs * per_epoch

    def step_size(step: int) -> float:
        return phase.optimizer.lr * rate("cosine", step, steps, steps // 20)

    training = SupervisedTraining(
        phase, module, examples, draws(run.seed, name), step_size, ema=ema, loss_of=loss_of
    )
    checkpoint = TrainingCheckpoint(folder / CHECKPOINT, phase.checkpoint_seconds)
    saved = checkpoint.read()
    if saved is not None:
        training.restore(*saved)
    run.runtime.wait()  # nobody writes before all have read
    loss = torch.zeros(())
    with run.bar(name, phase.epochs) as bar, training.shared(run.runtime, phase.shards) as gradient:
        bar.advance(training.steps_done // per_epoch)
        while training.steps_done < steps:
            until = (training.steps_done // per_epoch + 1) * per_epoch
            loss = training.train(gradient, until, stopping=lambda: training.all_stop)
            stops = training.all_stop and training.steps_done < steps
            due = stops or (checkpoint.is_due and training.steps_done < steps)
            if due and run.runtime.is_main:
                checkpoint.write(training.state(), training.steps_done)
            if stops:
                run.runtime.wait()
                at = f"{name} is saved after step {training.steps_done} of {steps}"
                raise run.runtime.stop.error(at)
            bar.advance(1, loss=loss.item())
    if training.average is not None:
        training.average.put()
    finish()
    if run.runtime.is_main:
        write_tensors(folder / WEIGHTS, module.state_dict(), {"loss": loss.item(), "steps": steps})
    run.runtime.wait()


def phase_done(
    name: str,
    module: nn.Module,
    folder: Path,
    run: Run,
    train: Callable[[], None],
) -> nn.Module:
    """The module with the weights of a finished phase, which is trained if need be: frozen."""
    path = folder / WEIGHTS
    there = run.runtime.agreed(holds_tensors(path))
    with one_run(name, folder / LOCK, run.runtime, needed=not there):
        # another run may have finished it meanwhile
        there = there or run.runtime.agreed(holds_tensors(path))
        if not there:
            train()
        if run.runtime.is_main:  # a run may have been killed before it could do so
            (folder / CHECKPOINT).unlink(missing_ok=True)
    tensors, note = read_tensors(path)
    module.load_state_dict(tensors)
    logger.info("%s: loss %.4g after %d steps, in %s", name, note["loss"], note["steps"], folder)
    return module.eval().requires_grad_(False)


def standardize(module: Autoencoder, real: RealData) -> None:
    """Let latents have mean zero and a variance of one in every channel, by some of the source."""
    rows = len(real.train.labels_N)
    rows_N = torch.arange(0, rows, max(1, rows // STANDARDIZED))
    latents = [
        module.encode(pixels_of(real, rows_B).to(real.train.labels_N.device))
        for rows_B in torch.split(rows_N, ENCODED_AT_ONCE)
    ]
    values_LD = torch.cat(latents).double().transpose(0, 1).flatten(1)
    module.standardize(values_LD.mean(dim=1), values_LD.std(dim=1).clamp(min=1e-6))


def source_latents(
    latents: Latents, real: RealData, folder: Path, run: Run, *, mirror: bool = False
) -> Tensor:
    """Latents (N, L, h, w) of all training images, and then of all of them mirrored.

    Units of some thousand images are files, dealt to processes; found ones are skipped.
    """
    rows = len(real.train.labels_N)
    firsts = list(range(0, rows, SHARD))
    units = [(first, flip) for flip in ([False, True] if mirror else [False]) for first in firsts]
    device = real.train.labels_N.device

    def path(first: int, flip: bool) -> Path:
        return folder / f"latents-{'mirrored-' * flip}{first:09d}.npy"

    left = [unit for unit in run.runtime.mine(len(units)) if not holds_rows(path(*units[unit]))]
    with run.bar("latents", len(left)) as bar, run.runtime.pool(len(units)) as run_units:

        @torch.no_grad()
        def work(unit: int) -> None:
            first, flip = units[unit]
            rows_N = torch.arange(first, min(rows, first + SHARD))
            made = []
            for rows_B in torch.split(rows_N, ENCODED_AT_ONCE):
                pixels_BCHW = pixels_of(real, rows_B).to(device)
                made.append(latents.encode(pixels_BCHW.flip(3) if flip else pixels_BCHW).cpu())
            found = torch.cat(made)
            write_rows(path(first, flip), tuple(found.shape), [found], found.dtype)
            bar.advance(1)

        run_units(work, left)
    run.runtime.wait()
    return torch.cat([open_rows(path(*unit)) for unit in units])


def pixels_of(real: RealData, rows_B: Tensor) -> Tensor:
    """Training images as they were read, in [0, 1]."""
    images_NCHW = real.train.images_NCHW
    return images_NCHW[rows_B.to(images_NCHW.device)].float() / 255


STANDARDIZED = 4096
"""Images whose latents tell mean and deviation, at least."""
WEIGHTS, CHECKPOINT = "weights.safetensors", ".checkpoint.safetensors"
