"""The stage that trains networks on real data ahead of time: teachers, experts, starting points.

Every member is a unit of its own: a safetensors file with its weights after each epoch, and with
what it keeps beside them, appears when it is done, then a JSON file with its accuracy on the test
images. A run that was killed skips the members that it finds, goes on from the last checkpoint of
the others, and so does one that asks for more of them.

Shape suffixes: P all weights of a network, E epochs with the initialization, M members, B images,
K classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from distill_datasets.errors import ArtifactError, DistillError, RecipeError, refuse
from distill_datasets.files.artifacts import (
    fingerprint,
    holds_tensors,
    intact,
    read_record,
    read_tensors,
    sha256_of,
    write_record,
    write_tensors,
)
from distill_datasets.models.architecture import Architecture
from distill_datasets.models.weights import (
    BUFFERS,
    WEIGHTS,
    buffers_of,
    built,
    fill,
    frozen,
    loaded,
    locate,
    read_checkpoint,
)
from distill_datasets.runtime.draws import draws
from distill_datasets.runtime.memory import images_at_once
from distill_datasets.runtime.processes import Run, Runtime
from distill_datasets.runtime.progress import Bar
from distill_datasets.stages.source import LoadedSource
from distill_datasets.stages.teacher_training import MemberTraining, Squeeze
from distill_datasets.training.checkpoint import TrainingCheckpoint
from distill_datasets.training.examples import Whole
from distill_datasets.training.metrics import accuracy
from distill_datasets.types import Shape

VERSION = 2
CPU = torch.device("cpu")


@dataclass(frozen=True)
class SqueezedFolder:
    """The trained members, read from their files when they are asked for."""

    folder: Path
    shape: Shape
    architectures: tuple[Architecture, ...]
    """The network of every member."""
    epochs: int
    keep: Literal["every", "last"]
    least_accuracy: float | None = None
    statistics: Path | None = None
    """Where `stages.class_statistics` left its files; None where nobody measured them."""

    @property
    def members(self) -> int:
        """How many networks there are."""
        return len(self.architectures)

    def weights(self, member: int, epoch: int) -> Tensor:
        """Weights (P,) of a member after `epoch` epochs, on the CPU; 0 is its initialization."""
        kept = range(self.epochs + 1) if self.keep == "every" else [0, self.epochs]
        if member not in range(self.members) or epoch not in kept:
            raise DistillError(
                f"squeeze: no weights of member {member} after epoch {epoch}; there are "
                f"{self.members} members of {self.epochs} epochs, and squeeze.keep is "
                f"{self.keep!r}"
            )
        with self._opened(member) as file:
            weights_P: Tensor = file.get_slice(WEIGHTS)[kept.index(epoch)]
            return weights_P.clone()

    def module(self, member: int) -> nn.Module:
        """A member after its last epoch, with its buffers: on the CPU, in eval mode, frozen."""
        with self._opened(member) as file:
            names = [name for name in file.keys() if name.startswith(BUFFERS)]  # noqa: SIM118
            buffers = {name.removeprefix(BUFFERS): file.get_tensor(name) for name in names}
        module = built(self.architectures[member], self.shape)
        return frozen(fill(module, self.weights(member, self.epochs), buffers))

    def on(self, device: torch.device) -> Members:
        """All members, to be asked for their logits on a device."""
        return Members(self, self.shape, device)

    def accuracies(self) -> list[float]:
        """The share of test images that each member gets right after its last epoch."""
        return [_facts(self.folder, member)["accuracy"] for member in range(self.members)]

    def class_statistics(self, member: int) -> tuple[list[Tensor], list[Tensor]] | None:
        """Means and biased variances of a member's layers; None where nobody measured them."""
        if self.statistics is None:
            return None
        tensors, note = read_tensors(self.statistics / f"member-{member:04d}.safetensors")
        layers = range(note["layers"])
        mean, var = ([tensors[f"{kind}/{layer}"] for layer in layers] for kind in ("mean", "var"))
        return mean, var

    def teacher_problems(self) -> Iterator[str]:
        """Which members get fewer test images right than they have to; see `least`."""
        chance = 1 / self.shape.k
        for member in range(self.members):
            facts = _facts(self.folder, member)
            needed = self.least_accuracy
            if needed is None:
                needed = least(self.shape.k, facts.get("claimed"))
            if facts["accuracy"] >= needed:
                continue
            claimed = facts.get("claimed")
            remedy = "train it longer or with other settings"
            if self.epochs == 0:
                remedy = (
                    f"it is {facts['file']}: its classes may stand in another order than "
                    f"source.classes, or it may expect images normalized otherwise than by "
                    f"{facts['normalization']}"
                )
            yield (
                f"squeeze: member {member} gets {facts['accuracy']:.1%} of the test images right, "
                f"expected at least {needed:.1%} of a teacher (chance is {chance:.1%}"
                + (f", its file claims {claimed:.1%}" if claimed is not None else "")
                + f"); {remedy}; or set squeeze.least_accuracy"
            )

    @property
    def fingerprint(self) -> str:
        """Of the weights of every member, in order."""
        return fingerprint(
            [_facts(self.folder, member)["sha256"] for member in range(self.members)]
        )

    @contextmanager
    def _opened(self, member: int) -> Iterator[Any]:
        path = _file(self.folder, member)
        try:
            # maps the file and reads what is asked for; a handle of its own for every thread
            with safe_open(path, framework="pt") as file:
                yield file
        except (FileNotFoundError, SafetensorError) as error:
            raise ArtifactError(
                f"{path}: cannot read the weights of member {member} ({error}); move the file away "
                "and run again, the member is then trained again"
            ) from error


def least(classes: int, claimed: float | None) -> float:
    """The share of test images that a teacher has to get right.

    Five times chance, but never more than half-way between chance and all of them, which is less
    where there are at most eight classes; at least half of what its file claims.
    """
    chance = 1 / classes
    return max(min(5 * chance, (1 + chance) / 2), (claimed or 0.0) / 2)


class Members:
    """Every member after its last epoch, asked for its logits on a device."""

    def __init__(self, squeezed: SqueezedFolder, shape: Shape, device: torch.device = CPU) -> None:
        self.modules: Sequence[nn.Module] = [
            squeezed.module(member).to(device) for member in range(squeezed.members)
        ]
        self._device, self._at_once = device, images_at_once(shape, device)

    @torch.no_grad()
    def __call__(self, images_BCHW: Tensor) -> Tensor:
        """Logits (M, B, K), on the CPU."""
        chunks = torch.split(images_BCHW, self._at_once)
        return torch.stack(
            [
                torch.cat([module(chunk.to(self._device)).cpu() for chunk in chunks])
                for module in self.modules
            ]
        )


def find_weights(settings: Squeeze, shape: Shape) -> list[Path]:
    """The files that `weights` names, downloaded if need be, when they fit as far as headers tell.

    No image is needed for that, so it comes before the source is read.

    Args:
        settings: the `squeeze` section.
        shape: of an image, and the number of classes.

    Returns:
        One path per member; none where members are trained.

    Raises:
        RecipeError: a file or model cannot be had, or is of another network or of other classes.
        ArtifactError: a file is damaged.
    """
    files = [locate(name) for name in settings.weights]
    for path, name, architecture in zip(
        files, settings.weights, settings.architectures if files else (), strict=True
    ):
        tensors = read_checkpoint(path, shapes_only=True).tensors
        with torch.device("meta"):  # no values: names and shapes are compared as when it is loaded
            loaded(architecture, shape, tensors, name)
    return files


def run_squeeze(
    settings: Squeeze,
    source: LoadedSource,
    run: Run,
    *,
    files: Sequence[Path] = (),
) -> SqueezedFolder:
    """Train the members that no earlier run has finished, or take their weights from files.

    Args:
        settings: the `squeeze` section.
        source: what they are trained on.
        run: seed, folder, processes and device.
        files: what `find_weights` returned, one for every member that is not trained.

    Raises:
        RecipeError: a file does not fit the network or the source, or does not know its images.
        DistillError: a loss is not finite, or an epoch changed no weight.

    The number of members is no part of the folder's name, so more of them later leave those that
    are there alone. It does decide how many intra-op threads a member gets where members are fewer
    than cores, and with that a member's last bits; the JSON file says how many there were.
    """
    kept_apart = {"source", "members", "weights", "checkpoint_seconds", "least_accuracy"}
    deciding = settings.model_dump(mode="json", exclude=kept_apart)
    shas = [sha256_of(path) for path in files]
    identity = fingerprint([VERSION, "squeeze", deciding, shas, source.fingerprint, run.seed])
    folder = run.folder / f"squeeze-{identity}"
    rows = len(source.real.train.labels_N)
    if min(settings.batch, rows) % settings.shards:
        raise RecipeError(
            f"squeeze.shards: {settings.shards} do not divide a batch of all {rows} training "
            f"images; lower squeeze.batch to a multiple of {settings.shards}"
        )
    # With shards all processes share each member, one after the other; only the main one writes.
    # Without, members are dealt to processes and their threads: each file has one writer.
    together = settings.shards > 1
    mine = list(range(settings.members)) if together else run.runtime.mine(settings.members)
    with run.bar("squeeze", len(mine) * max(1, settings.epochs)) as bar:
        writer = _MemberWriter(settings, source, run.seed, folder, run.runtime, bar)
        if together:
            for member in mine:
                writer.train(member)
                # the member's files are there before anyone asks whether the next one is done
                run.runtime.wait()
        else:
            with run.runtime.pool(settings.members) as run_units:
                run_units(partial(writer.take, files) if files else writer.train, mine)
    run.runtime.wait()
    squeezed = SqueezedFolder(
        folder,
        source.real.shape,
        settings.architectures,
        settings.epochs,
        settings.keep,
        settings.least_accuracy,
    )
    if files:
        refuse(squeezed.teacher_problems())
    return squeezed


@dataclass(frozen=True)
class _MemberWriter:
    """Finishes members: trains them, or takes their weights from files."""

    settings: Squeeze
    source: LoadedSource
    seed: int
    folder: Path
    runtime: Runtime
    bar: Bar

    def take(self, files: Sequence[Path], member: int) -> None:
        """Finish a member with the weights of its file."""
        if not _is_done(self.folder, member):
            checkpoint, name = read_checkpoint(files[member]), self.settings.weights[member]
            real, architecture = self.source.real, self.settings.architectures[member]
            module = loaded(architecture, real.shape, checkpoint.tensors, name)
            weights_P = nn.utils.parameters_to_vector(module.parameters()).detach()
            origin = {
                "file": name,
                "claimed": checkpoint.accuracy,
                "normalization": real.normalization.describe(),
            }
            self._finish(member, module.to(self.runtime.device), [weights_P], origin)
        self.bar.advance(1)

    def train(self, member: int) -> None:
        """Train a member to its end, from its checkpoint or from the start."""
        settings = self.settings
        if _is_done(self.folder, member):
            self.bar.advance(settings.epochs)
            return
        training = MemberTraining(
            settings,
            settings.architectures[member],
            Whole(self.source.real),
            self.source.real.shape,
            draws(self.seed, "squeeze", member),
            self.runtime.device,
        )
        checkpoint = TrainingCheckpoint(
            _checkpoint(self.folder, member), settings.checkpoint_seconds
        )
        if training.restore(checkpoint):
            self.bar.advance(training.epoch)
        writes = settings.shards == 1 or self.runtime.is_main
        training.train(
            self.runtime,
            checkpoint if writes else None,
            lambda loss: self.bar.advance(1, loss=loss),
        )
        for epoch, (before_P, after_P) in enumerate(itertools.pairwise(training.rows)):
            if torch.equal(before_P, after_P):
                raise DistillError(
                    f"squeeze: epoch {epoch + 1} of member {member} changed no weight; raise "
                    "squeeze.optimizer.lr"
                )
        if writes:
            self._finish(member, training.module, training.rows, {})

    def _finish(
        self, member: int, module: nn.Module, rows: list[Tensor], origin: Mapping[str, object]
    ) -> None:
        """Write a member's weights, then its facts: who finds both finds a finished member."""
        path = _file(self.folder, member)
        buffers = {BUFFERS + name: kept for name, kept in buffers_of(module).items()}
        write_tensors(path, {WEIGHTS: torch.stack(rows)} | buffers)
        real = self.source.real
        at_once = images_at_once(real.shape, next(module.parameters()).device)
        right = accuracy(module, real.test_batches(at_once))
        facts = {"accuracy": right, "sha256": sha256_of(path), "threads": torch.get_num_threads()}
        write_record(path.with_suffix(".json"), {**facts, **origin})


def with_statistics(squeezed: SqueezedFolder, folder: Path) -> SqueezedFolder:
    """The same members with the statistics of every class that lie in a folder."""
    return replace(squeezed, statistics=folder)


def _is_done(folder: Path, member: int) -> bool:
    """Whether weights and facts of a member lie there whole."""
    path = _file(folder, member)
    return intact(path.with_suffix(".json"), read_record) is not None and holds_tensors(path)


def _file(folder: Path, member: int) -> Path:
    return folder / f"member-{member:04d}.safetensors"


def _checkpoint(folder: Path, member: int) -> Path:
    """What training goes on from; the last one stays when the member is done."""
    return folder / f".member-{member:04d}.checkpoint.safetensors"


def _facts(folder: Path, member: int) -> dict[str, Any]:
    return read_record(_file(folder, member).with_suffix(".json"))
