"""The stage that measures: fresh students trained only on what was exported.

Every student is a unit of its own: a file appears when it is done, and a run that was killed skips
the students that it finds. A long one leaves a checkpoint between passes and goes on from there.

Shape suffixes: S starts, P all weights of a network, K classes.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from distill_datasets.errors import DivergedError
from distill_datasets.evaluation.baselines import Baseline, Labeling, baselines, described
from distill_datasets.evaluation.beyond import Beyond
from distill_datasets.evaluation.held_out import holding_out
from distill_datasets.evaluation.protocol import Evaluate
from distill_datasets.evaluation.references import once
from distill_datasets.evaluation.results import by_class, by_group, mean_of_each, spread
from distill_datasets.evaluation.trials import (
    Trial,
    best_of,
    dealt,
    is_tuned,
    parted,
    plain,
    tuned,
    tuning,
    wider,
)
from distill_datasets.export.content import STARTS
from distill_datasets.export.reading import load_rows
from distill_datasets.files.artifacts import (
    fingerprint,
    intact,
    read_record,
    read_tensors,
    write_record,
)
from distill_datasets.models.backbones import backbones_of
from distill_datasets.runtime.draws import draws
from distill_datasets.runtime.memory import images_at_once
from distill_datasets.runtime.processes import Run
from distill_datasets.stages.squeeze import SqueezedFolder
from distill_datasets.targets import METRICS
from distill_datasets.training.checkpoint import TrainingCheckpoint
from distill_datasets.training.linear_probe import CLASSIFIER, Probed
from distill_datasets.training.metrics import measure, taken_for
from distill_datasets.training.student import students_at, train_student
from distill_datasets.views.relabel import Relabel

if TYPE_CHECKING:
    from torch import Tensor, nn

    from distill_datasets.data.real import RealData
    from distill_datasets.models.architecture import Architecture
    from distill_datasets.types import Batch

logger = logging.getLogger("distill_datasets")

VERSION = 3


@dataclass(frozen=True)
class Followed:
    """What students take of a published folder beside its examples; empty where they do not ask."""

    step_sizes: list[float]
    order: list[list[int]]
    starts_SP: Tensor | None

    def start_of(self, student: int) -> Tensor | None:
        """The weights (P,) that a student starts from; None draws them."""
        return None if self.starts_SP is None else self.starts_SP[student % len(self.starts_SP)]


def run_evaluate(
    settings: Evaluate,
    exported: Path,
    real: RealData,
    run: Run,
    *,
    identity: str,
    pixels: int,
    attack: tuple[int, int] | None = None,
    relabel: Relabel | None = None,
    squeezed: SqueezedFolder | None = None,
) -> list[dict[str, Any]]:
    """Train the students and return the rows of the results.

    Args:
        settings: the `evaluate` section.
        exported: a folder that `write_dataset` wrote; only what `load_dataset` returns is used.
        real: the source; its test images measure, its training images serve the references.
        run: seed, folder, processes and device; students are dealt to its processes and threads.
        identity: the fingerprint of what was exported and of the source.
        pixels: the budget, for the references.
        attack: the class that was attacked and the one it shall be taken for.
        relabel: how views of the images were labeled, where they were.
        squeezed: the teachers that labeled them.

    Returns:
        Rows as in `results.json`: accuracies in [0, 1], after the last step, never the best.
    """
    section = settings.model_dump(mode="json", exclude={"checkpoint_seconds"})
    deciding = [VERSION, "evaluate", section, identity, run.seed, *(attack or ())]
    labeling = None
    if relabel is not None:
        assert squeezed is not None, "a recipe with relabel has teachers"
        labeling = Labeling(relabel, squeezed)
        deciding += [relabel.model_dump(mode="json"), squeezed.fingerprint]
    folder = run.folder / f"evaluate-{fingerprint(deciding)}"

    def field_of(source: RealData) -> list[Baseline]:
        return baselines(settings, exported, source, pixels, run.seed, labeling)

    beyond = settings.measured_beyond(relabeled=labeling is not None)

    @once
    def tuning_field() -> _Tuning:
        assert beyond is not None, "only rows that are tuned ask"
        rng = draws(run.seed, "evaluate")("held out")
        source = holding_out(real, beyond.held_out, rng)
        return _Tuning(source, {each.row.name: each for each in field_of(source)})

    students = _Students(
        settings,
        folder,
        real,
        run,
        read_followed(settings, exported),
        attack,
        {each.key: Probed(each, real) for each in backbones_of(settings.network)},
        tuning_field,
    )
    compared = field_of(real)
    plain_ones = [plain(each, student) for each in compared for student in range(each.students)]
    if beyond is None:
        return _transferred(students, compared, plain_ones)
    return _beyond(students, beyond, compared, plain_ones)


def _transferred(
    students: _Students, compared: list[Baseline], plain_ones: list[Trial]
) -> list[dict[str, Any]]:
    """Train students of the recipe's network, and as many of each that stands beside it."""
    others = {
        each.row.name: [
            replace(one, network=network)
            for network in students.settings.network.beside()
            for one in plain_ones
            if one.baseline is each and each.trained is None
        ]
        for each in compared
    }
    students.train([*plain_ones, *itertools.chain(*others.values())])
    rows = [students.row(baseline) for baseline in compared]
    for row in rows:
        if others[row["from"]]:
            row["transfer"] = students.by_network(others[row["from"]])
    return rows


def _beyond(
    students: _Students, beyond: Beyond, compared: list[Baseline], plain_ones: list[Trial]
) -> list[dict[str, Any]]:
    """Train in three rounds, as tuning decides the second and its best reference the third."""
    settings, shape = students.settings, students.real.shape
    published, rows = compared[0], [each for each in compared if is_tuned(each)]
    trials = {each.row.name: list(tuning(beyond, each)) for each in rows}
    if max(students.real.counts_K) == 1:
        logger.warning("every class has one training image: none is left to tune step sizes on")
        trials = {}
    own = wider(settings, beyond, published, shape)
    students.train([*plain_ones, *itertools.chain(*trials.values()), *own])

    found = {each.row.name: students.row(each) for each in compared}
    scores = {name: students.scores(tried) for name, tried in trials.items()}
    chosen = {
        each.row.name: tuned(beyond, each, *best_of(scores[each.row.name]))
        for each in rows
        if scores.get(each.row.name)
    }
    students.train(list(itertools.chain(*chosen.values())))
    for name, ones in chosen.items():
        factor, steps = ones[0].factor, ones[0].marks[-1]
        found[name]["tuned"] = {
            "rate": factor,
            "lr": factor * settings.optimizer.lr,
            "steps": steps,
            "held_out": scores[name][factor, steps],
            **students.spread(ones, steps),
        }
    references = [each for each in rows if each is not published]
    measured = {published: own}
    if references:
        best = max(references, key=lambda each: _mean(found[each.row.name]))
        measured[best] = wider(settings, beyond, best, shape)
        students.train(measured[best])
    for baseline, ones in measured.items():
        row = found[baseline.row.name]
        row["beyond"] = students.by_network(ones)
        row["worst"] = _worst([row, *row["beyond"]])
    return list(found.values())


def _mean(row: dict[str, Any]) -> float:
    """The accuracy of a row, tuned where it is."""
    return float(row.get("tuned", row)["accuracy"]["mean"])


def _worst(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Where the mean accuracy is lowest."""
    row = min(rows, key=lambda each: each["accuracy"]["mean"])
    return {key: row[key] for key in ("network", "steps", "accuracy")}


class _Tuning(NamedTuple):
    """What rows are tuned on: the source without the images that score, and its baselines."""

    real: RealData
    field: dict[str, Baseline]


@dataclass(frozen=True)
class _Students:
    """What it takes to measure one student or another."""

    settings: Evaluate
    folder: Path
    real: RealData
    run: Run
    followed: Followed
    attack: tuple[int, int] | None
    probed: dict[str, Probed]
    """The source as the frozen part of a students' network sees it, by the key of a backbone."""
    tuning: Callable[[], _Tuning]

    def train(self, trials: Sequence[Trial]) -> None:
        """Train those that no earlier run has finished, dealt to processes and threads."""
        units = sorted(parted(self.settings, trials), key=lambda trial: -trial.marks[-1])
        dealt(self.run, "evaluate", units, self._measure)

    def _measure(self, trial: Trial) -> None:
        """Train a student and write down what it scores, unless all of it is written down."""
        paths = {mark: self._path(trial, mark) for mark in trial.marks}
        missing = [mark for mark, path in paths.items() if intact(path, read_record) is None]
        if not missing:
            return
        last = paths[trial.marks[-1]]
        checkpoint = TrainingCheckpoint(
            last.with_suffix(".safetensors"),
            self.settings.checkpoint_seconds,
            self.run.runtime.stop,
        )
        if trial == plain(trial.baseline, trial.student):
            self._measure_plain(trial, last, checkpoint)
        else:
            checkpoint.forget_after(missing[0])
            self._measure_beyond(trial, paths, missing, checkpoint)
        checkpoint.remove()

    def _measure_plain(self, trial: Trial, path: Path, checkpoint: TrainingCheckpoint) -> None:
        module, test_batches = self._plain(trial, checkpoint)
        found = measure(
            module,
            test_batches,
            self.real.shape.task,
            self.settings.precision,
            self.real.test.groups_N,
            len(self.real.group_names),
        )
        metrics: dict[str, Any] = {"seed": trial.student, **found}
        if self.attack is not None:
            metrics["taken_for_target"] = taken_for(module, test_batches(), *self.attack)
        write_record(path, metrics)

    def _plain(
        self, trial: Trial, checkpoint: TrainingCheckpoint
    ) -> tuple[nn.Module, Callable[[], Iterator[Batch]]]:
        """The network of a student as the recipe says, and what measures it."""
        at_once = images_at_once(self.real.shape, self.run.runtime.device)
        if trial.baseline.trained is not None:
            module = trial.baseline.trained(trial.student)
            return module, partial(self.real.test_batches, at_once)
        settings, training, test_batches = self._given(
            trial, self.settings, self.real, trial.baseline
        )
        steps = trial.baseline.steps
        module = train_student(settings, steps, **training, checkpoint=checkpoint)
        return module, test_batches

    def _measure_beyond(
        self,
        trial: Trial,
        paths: dict[int, Path],
        missing: Sequence[int],
        checkpoint: TrainingCheckpoint,
    ) -> None:
        real, baseline = self.real, trial.baseline
        if trial.held_out:
            real, baseline = self.tuning().real, self.tuning().field[baseline.row.name]
        rule = self.settings.optimizer
        settings = self.settings.model_copy(
            update={
                "network": trial.network or self.settings.network,
                "optimizer": rule.model_copy(update={"lr": trial.factor * rule.lr}),
            }
        )
        settings, training, test_batches = self._given(trial, settings, real, baseline)
        passing = students_at(settings, trial.marks, **training, checkpoint=checkpoint)
        try:
            for mark, module in passing:
                if mark in missing:
                    found = measure(module, test_batches, real.shape.task, settings.precision)[
                        "accuracy"
                    ]
                    write_record(paths[mark], {"seed": trial.student, "accuracy": found})
        except DivergedError:
            # too large a step for this network: its logits are no numbers, and a guess is left
            guess = {"seed": trial.student, "accuracy": chance(real), "diverged": True}
            for path in paths.values():
                if not path.exists():
                    write_record(path, guess)

    def _given(
        self, trial: Trial, settings: Evaluate, real: RealData, baseline: Baseline
    ) -> tuple[Evaluate, dict[str, Any], Callable[[], Iterator[Batch]]]:
        """Settings, what `train_student` takes beside them, and what measures the network."""
        row, held_out = trial.baseline.row, ("held out",) if trial.held_out else ()
        draw = draws(self.run.seed, "evaluate", row.pair or row.name, *held_out, trial.student)
        device = self.run.runtime.device
        at_once = images_at_once(real.shape, device)
        follows = row.images == "published"
        sizes = self.followed.step_sizes if follows else []
        examples = baseline.examples(draw)
        given = {
            "examples": examples,
            "shape": real.shape,
            "draw": draw,
            "device": device,
            "step_sizes": [trial.factor * size for size in sizes],
            "order": self.followed.order if follows else [],
            "start_P": self.followed.start_of(trial.student),
        }
        backbone = settings.network.frozen()
        if backbone is None:
            return settings, given, partial(real.test_batches, at_once)
        probed = self.probed[backbone.key]
        seen = probed.examples(examples)
        given |= {"examples": seen, "shape": probed.shape, "start_P": probed.start(draw)}
        settings = settings.model_copy(update={"network": CLASSIFIER})
        return settings, given, partial(probed.test_batches, seen.scale, at_once)

    def scores(self, trials: Sequence[Trial]) -> dict[tuple[float, int], float]:
        """The accuracy of every trial at each of its marks."""
        return {
            (trial.factor, mark): float(read_record(self._path(trial, mark))["accuracy"])
            for trial in trials
            for mark in trial.marks
        }

    def spread(self, trials: Sequence[Trial], mark: int) -> dict[str, Any]:
        """The accuracy of some students after so many steps."""
        runs = [read_record(self._path(trial, mark)) for trial in trials]
        return {
            "accuracy": spread([run["accuracy"] for run in runs]),
            "runs": [{key: run[key] for key in ("seed", "accuracy")} for run in runs],
        }

    def by_network(self, trials: Sequence[Trial]) -> list[dict[str, Any]]:
        """A row for every network and number of steps, in their order."""
        rows, networks = [], list["Architecture | None"]()
        for trial in trials:
            if trial.network not in networks:  # settings in lists have no hash
                networks.append(trial.network)
        for network in networks:
            ones = [trial for trial in trials if trial.network == network]
            for mark in ones[0].marks:
                words = described(network or self.settings.network)
                rows.append({"network": words, "steps": mark, **self.spread(ones, mark)})
        return rows

    def row(self, baseline: Baseline) -> dict[str, Any]:
        """The metrics of all students of a baseline, as in `results.json`."""
        ones = [plain(baseline, student) for student in range(baseline.students)]
        runs = [read_record(self._path(each, baseline.steps)) for each in ones]
        metrics = {
            "protocol": "last-step",
            "from": baseline.row.name,
            "network": baseline.network or described(self.settings.network),
            "accuracy": spread([run["accuracy"] for run in runs]),
            "chance": chance(self.real),
            "runs": runs,
            "students": baseline.students,
            "steps": baseline.steps,
            "images": baseline.images,
            "pixels": baseline.pixels,
            **({} if baseline.size is None else {"size": list(baseline.size)}),
            **({} if baseline.bytes is None else {"bytes": baseline.bytes}),
            **self._by_output(runs),
        }
        if self.attack is not None:
            metrics["taken_for_target"] = spread([run["taken_for_target"] for run in runs])
        return metrics

    def _by_output(self, runs: list[dict[str, Any]]) -> dict[str, Any]:
        """Metrics of every class, label or number, and those beside the first."""
        task, per_class = self.real.shape.task, [run["per_class"] for run in runs]
        if task == "classes":
            metrics = by_class(per_class, self.real.counts_K)
            if "per_group" in runs[0]:
                per_group = [run["per_group"] for run in runs]
                metrics |= by_group(per_group, self.real.group_names)
            return metrics
        further = [key for key in ("f1_micro", "f1_macro", "mae") if key in runs[0]]
        return {
            "metric": METRICS[task],
            "per_class": mean_of_each(per_class),
            **{key: spread([run[key] for run in runs]) for key in further},
        }

    def _path(self, trial: Trial, mark: int) -> Path:
        return self.folder / f"{trial.stem(mark)}.json"


def chance(real: RealData) -> float:
    """The accuracy of always naming the class that most test images have.

    Of labels, the share of images that has one, in the mean over those that some image has: the
    average precision of equal logits. Of numbers, the R2 of their mean.
    """
    if real.shape.task == "values":
        return 0.0
    if real.test.targets_NK is not None:
        share_K = real.test.targets_NK.mean(dim=0)
        return float(share_K[share_K > 0].mean())
    labels_N = real.test.labels_N
    return int(labels_N.bincount().max()) / len(labels_N)


def read_followed(settings: Evaluate, exported: Path) -> Followed:
    """What the students of these settings follow, from the published folder alone."""
    row = load_rows(exported, "recipe")[0]
    starts_SP = None
    if settings.start == "distilled":
        starts_SP = read_tensors(exported / STARTS)[0]["weights_SP"]
    return Followed(
        step_sizes=row["step_sizes"] if settings.follows_step_sizes else [],
        order=json.loads(row["order_json"]) if settings.order == "published" else [],
        starts_SP=starts_SP,
    )
