"""Students of the standard protocol: every training is a unit, and its score a file.

A run that was killed skips the files that it finds; a long training goes on from its checkpoint.

Shape suffixes: N images, B a batch, K classes, C channels, H W pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from distill_datasets.errors import DivergedError
from distill_datasets.evaluation.baselines import described
from distill_datasets.evaluation.contestants import Contestant, Target
from distill_datasets.evaluation.held_out import tenth_held_out, tested_on
from distill_datasets.evaluation.levels import AUGMENT, Level, Standard
from distill_datasets.evaluation.protocol import Evaluate
from distill_datasets.evaluation.proxies import CHOSEN_BY_PROXIES, Consulted, Proxies
from distill_datasets.evaluation.references import Chooses
from distill_datasets.evaluation.robustness import probed
from distill_datasets.evaluation.taught import (
    Teaching,
    drawn_alike,
    views_at_training,
    views_of,
)
from distill_datasets.evaluation.trials import dealt
from distill_datasets.files.artifacts import (
    fingerprint,
    intact,
    read_record,
    sha256_tensors,
    write_record,
)
from distill_datasets.models.architecture import Architecture
from distill_datasets.models.backbones import backbones_of
from distill_datasets.optimizers import Adam
from distill_datasets.runtime.draws import draws
from distill_datasets.runtime.memory import images_at_once
from distill_datasets.runtime.processes import Run
from distill_datasets.training.checkpoint import TrainingCheckpoint
from distill_datasets.training.linear_probe import CLASSIFIER, Probed
from distill_datasets.training.loop import steps_of
from distill_datasets.training.metrics import Answers, answers, predictions
from distill_datasets.training.rows import Regime
from distill_datasets.training.student import train_student
from distill_datasets.views.augment import Augment

if TYPE_CHECKING:
    from torch import Tensor, nn

    from distill_datasets.data.real import RealData
    from distill_datasets.types import Batch

VERSION = 2
MOST_CONFUSION = 100
"""Classes up to which the confusion is kept."""
HASHED = 4096
"""Images of a split that tell one source from another."""


@dataclass(frozen=True)
class StandardTrial:
    """One training of one student.

    Attributes:
        contestant: what it is trained on.
        student: its seed.
        network: which one.
        lr: its step size.
        augmented: whether its images are moved.
        steps: of the training.
        held_out: whether it is scored on training images that were held out.
        attacked: whether it is also asked about attacked and corrupted images.
    """

    contestant: Contestant
    student: int
    network: Architecture
    lr: float
    augmented: bool
    steps: int
    held_out: bool = False
    attacked: bool = False

    @property
    def stem(self) -> str:
        """The name of the file that its score lies in."""
        row = f"{self.contestant.row.name}-{self.contestant.regime}"
        network = fingerprint([self.network.model_dump(mode="json")])[:6]
        moved = "moved" if self.augmented else "still"
        end = f"held-out-{self.student}" if self.held_out else f"{self.student:03d}"
        return f"{row}-{network}-{self.lr:g}-{moved}-at-{self.steps}-{end}"


class Choice(NamedTuple):
    """What was chosen for a row on held-out images, and its accuracy there."""

    lr: float
    augmented: bool
    held_out: float | None


class Students:
    """What it takes to train one student or another, and to read what it scored.

    Args:
        target: what is measured.
        real: the source.
        run: seed, folder, processes and device.
        settings: of the protocol.
    """

    def __init__(self, target: Target, real: RealData, run: Run, settings: Standard) -> None:
        shape, draw = real.shape, draws(run.seed, "standard")
        self.level = settings.numbers(max(shape.h, shape.w))
        self.network = settings.students_network(self.level)
        self.target, self.run, self._seconds = target, run, settings.checkpoint_seconds
        self.real = tested_on(real, self.level.test_images, draw("test"))
        self.tunes = max(real.counts_K) > 1
        self.rest = (
            tenth_held_out(real, self.level.scored, draw("held out")) if self.tunes else real
        )
        level = self.level
        numbers = f"{VERSION} {level.batch} {level.scored} {level.test_images} {run.seed}"
        source = source_identity(real)
        self.folder = run.folder / f"standard-{fingerprint([numbers, target.identity, source])}"
        self._proxies_folder = run.folder / f"proxies-{fingerprint([numbers, source])}"
        self._probed = {
            each.key: (Probed(each, self.real), Probed(each, self.rest))
            for network in [self.network, *settings.others(self.network, shape)]
            for each in backbones_of(network)
            if each.key in real.features
        }

    @functools.cached_property
    def consulted(self) -> Consulted:
        """Networks that have learned the source without what is held out."""
        members, passes = self.level.proxies
        proxies = Proxies(members, passes, self.level.width)
        return Consulted(proxies, self.rest, self.run, self._proxies_folder)

    def choices(self, asked: Sequence[str]) -> dict[str, Chooses]:
        """What chooses the images of these rows, where networks have to learn the source first."""
        names = [name for name in CHOSEN_BY_PROXIES if name in asked]
        return {name: self.consulted.choice(name) for name in names}

    def teaching(self, settings: Standard) -> dict[Regime, Teaching]:
        """The teachers of the regimes in which students see labeled views."""
        shape, draw = self.real.shape, draws(self.run.seed, "standard", "views")
        found = dict[Regime, Teaching]()
        if self.network.frozen() is not None or self.real.normalization.kind != "mean_std":
            return found
        if self.target.manifest["relabel"] is not None:
            relabel = views_of(self.target.folder)
            if relabel is not None:
                found["SL-R"] = Teaching(self.consulted, drawn_alike(relabel), draw)
        if settings.taught:
            views = views_at_training(min(shape.h, shape.w), max(2, self.level.batch))
            found["SL+KD"] = Teaching(self.consulted, views, draw)
        return found

    def teacher(self) -> dict[str, Any]:
        """Who labels views, and the mean accuracy of these networks on the test images."""
        members, passes = self.level.proxies
        at_once = images_at_once(self.real.shape, self.run.runtime.device)
        ask = partial(self.real.test_batches, at_once)
        right = [predictions(each, ask).score().accuracy for each in self.consulted.modules]
        return {
            "network": described(self.consulted.network),
            "members": members,
            "passes": passes,
            "accuracy": sum(right) / len(right),
            "bytes": self.consulted.bytes,
        }

    def train(self, stage: str, trials: Iterable[StandardTrial]) -> None:
        """Train those that no earlier run has finished, dealt to processes and threads."""
        units = dict[str, StandardTrial]()
        for trial in trials:
            if trial.stem not in units or trial.attacked:
                units[trial.stem] = trial
        dealt(self.run, stage, sorted(units.values(), key=_length), self._measure)

    def found(self, trial: StandardTrial) -> dict[str, Any]:
        """What a student has scored."""
        return read_record(self._path(trial))

    def was_attacked(self, trial: StandardTrial) -> bool:
        """Whether it could be attacked: a network that diverged is not."""
        return self._attacked_path(trial).exists()

    def withstood(self, trial: StandardTrial) -> dict[str, Any]:
        """What a student scores on attacked and corrupted images."""
        return read_record(self._attacked_path(trial))

    def accuracies(self, trials: Iterable[StandardTrial]) -> dict[int, float]:
        """The accuracy of students by their seed."""
        return {trial.student: float(self.found(trial)["accuracy"]) for trial in trials}

    def tuning(self, contestant: Contestant, network: Architecture) -> list[StandardTrial]:
        """What decides the step size and the augmentation of a row."""
        if not self.tunes:
            return []
        still = network.frozen() is not None or contestant.views
        return [
            StandardTrial(contestant, 0, network, lr, moved, self.level.steps, held_out=True)
            for moved in ((False,) if still else (False, True))
            for lr in self.level.rates
        ]

    def choice(
        self, contestant: Contestant, network: Architecture, moved: bool | None = None
    ) -> Choice:
        """The best of the trials, of equal ones the first.

        Args:
            contestant: the row.
            network: of its students.
            moved: only trials with augmentation, or only those without; None looks at all.
        """
        tried = [
            Choice(trial.lr, trial.augmented, float(self.found(trial)["accuracy"]))
            for trial in self.tuning(contestant, network)
            if moved is None or trial.augmented == moved
        ]
        middle = Choice(self.level.rates[len(self.level.rates) // 2], bool(moved), None)
        return max(tried, key=lambda choice: choice.held_out or 0.0) if tried else middle

    def final(
        self,
        contestant: Contestant,
        network: Architecture,
        choice: Choice,
        times: float = 1,
        students: int | None = None,
    ) -> list[StandardTrial]:
        """The students of a row that read the test images; fewer of the whole set, for longer."""
        count, steps = students or self.level.students, max(1, round(times * self.level.steps))
        if contestant.row.images == "all":
            count, steps = self.level.fewer, self.whole_steps(contestant.images)
        return [
            StandardTrial(contestant, student, network, choice.lr, choice.augmented, steps)
            for student in range(count)
        ]

    def whole_steps(self, images: int) -> int:
        """Of a student of the whole set of so many images."""
        passes, most = self.level.whole
        own = steps_of(passes, images, self.level.batch)
        return max(self.level.steps, min(own, most * self.level.steps))

    def _path(self, trial: StandardTrial) -> Path:
        return self.folder / f"{trial.stem}.json"

    def _attacked_path(self, trial: StandardTrial) -> Path:
        return self.folder / f"{trial.stem}-attacked.json"

    def _measure(self, trial: StandardTrial) -> None:
        path, attacked = self._path(trial), self._attacked_path(trial)
        missing = intact(path, read_record) is None
        if not missing and not (trial.attacked and intact(attacked, read_record) is None):
            return
        if not missing and read_record(path).get("diverged"):
            return
        real = self.rest if trial.held_out else self.real
        checkpoint = TrainingCheckpoint(
            path.with_suffix(".safetensors"), self._seconds, self.run.runtime.stop
        )
        record: dict[str, Any] = {"seed": trial.student}
        module = None
        try:
            module, ask = self._trained(trial, real, checkpoint)
            # calibration reads all logits
            found = predictions(module, ask) if trial.held_out else answers(module, ask())
        except DivergedError:
            # too large a step for this network: its logits are no numbers, and a guess is left
            found, record["diverged"] = guess(real), True
        record |= found.score()._asdict()
        if not trial.held_out:
            record["calibration"] = found.calibration()._asdict()
            if real.shape.k <= MOST_CONFUSION:
                record["confusion"] = found.confusion_KK().tolist()
        if trial.attacked and module is not None:
            write_record(attacked, {"seed": trial.student, **self._attack(module, trial.student)})
        write_record(path, record)
        checkpoint.remove()

    def _attack(self, module: nn.Module, student: int) -> dict[str, Any]:
        """What a student scores on attacked and corrupted test images, the same for all."""
        test, shape, device = self.real.test, self.real.shape, self.run.runtime.device
        rng = draws(self.run.seed, "standard", "attacked")
        rows_N = torch.randperm(len(test.labels_N), generator=rng("images"))
        rows_N = rows_N[: self.level.attacked].sort().values
        return probed(
            module,
            self.real.normalization.input_space,
            test.images_NCHW[rows_N.to(test.images_NCHW.device)],
            test.labels_N[rows_N.to(test.labels_N.device)],
            draws(self.run.seed, "standard", "attacked", student),
            images_at_once(shape, device),
        )

    def _trained(
        self, trial: StandardTrial, real: RealData, checkpoint: TrainingCheckpoint
    ) -> tuple[nn.Module, Callable[[], Iterator[Batch]]]:
        """The network of a student after its last step, and what it is asked."""
        contestant, device, seed = trial.contestant, self.run.runtime.device, self.run.seed
        held = ("held out",) if trial.held_out else ()
        draw = draws(seed, "standard", "student", trial.student)
        make = contestant.tuning if trial.held_out else contestant.make
        examples = make(draws(seed, "standard", contestant.row.name, *held, trial.student))
        settings, at_once = student_settings(self.level, trial), images_at_once(real.shape, device)
        shape, start_P = real.shape, None
        ask: Callable[[], Iterator[Batch]] = partial(real.test_batches, at_once)
        backbone = trial.network.frozen()
        if backbone is not None:
            probed = self._probed[backbone.key][trial.held_out]
            seen = probed.examples(examples)
            examples, shape, start_P = seen, probed.shape, probed.start(draw)
            ask = partial(probed.test_batches, seen.scale, at_once)
            settings = settings.model_copy(update={"network": CLASSIFIER})
        module = train_student(
            settings,
            trial.steps,
            examples,
            shape,
            draw,
            device,
            start_P=start_P,
            checkpoint=checkpoint,
        )
        return module, ask


def _length(trial: StandardTrial) -> int:
    """For the longest first."""
    return -trial.steps


def student_settings(level: Level, trial: StandardTrial) -> Evaluate:
    """How a student of the protocol is trained: Adam, the step size falling to zero by a cosine."""
    return Evaluate(
        network=trial.network,
        batch=level.batch,
        optimizer=Adam(lr=trial.lr),
        schedule="cosine",
        augment=AUGMENT if trial.augmented else Augment(),
        steps=trial.steps,
        students=1,
        beyond=None,
    )


def guess(real: RealData) -> Answers:
    """The answers of a network that has learned nothing but the most frequent class."""
    labels_N = real.test.labels_N
    logits_NK = torch.zeros(len(labels_N), real.shape.k, device=labels_N.device)
    logits_NK[:, int(labels_N.bincount().argmax())] = 1e-3
    return Answers(logits_NK, labels_N)


def source_identity(real: RealData) -> str:
    """What tells one source from another: labels, normalization, and images here and there."""
    parts: list[Tensor] = []
    for split in (real.train, real.test):
        step = max(1, len(split.labels_N) // HASHED)
        parts += [split.labels_N.cpu(), split.images_NCHW[::step]]
    kept = real.normalization.to_tensors()
    parts += [kept[name] for name in sorted(kept)]
    return sha256_tensors(parts)[:12]
