"""The standard protocol: any published folder beside real images, in every regime, by one rule.

Version `standard-1`. Two levels, `quick` for two cores and `full`, each with settings for small,
middle and large images (`LEVELS`). Every row gets the same number of steps and the same trials: a
step size and whether images are augmented, chosen on a tenth of the training images that is held
out. Test images are read once, by students after their last step. Student s of every row starts
from the same weights and visits its examples by the same draws, so rows are compared student by
student, and the 95 % interval of the difference decides.

What `run_standard` returns, and writes as `standard.json` beside its unit files (accuracies in
[0, 1]; an *interval* is {mean, std, half, low, high}, `half` null for one student):

    protocol      name, level, side_px, network, students, steps, batch, optimizer, schedule,
                  rates, augment, trials, held_out {share, scored}, test_images, interval
    target        name, folder, identity, classes, regimes, budget, selection (words)
    source        train, test, classes, chance
    rows          one object for every row and regime, the published one first:
      key             "default/HL": `from` and `regime`
      from, words     name and words of the row, as in training/rows.py
      regime          HL, SL-1, SL-R or SL+KD
      images, size    how many, and [height, width] as stored
      bytes           {images, labels, teacher, zca, decoder, total}
      network, steps, students
      tuned           {lr, augmented, held_out}: what was chosen, and its accuracy there
      trials          [{lr, augmented, held_out}, ...]
      accuracy        interval
      runs            [{seed, accuracy}, ...]
      per_class       mean recall of every class, null without test images
      balanced, worst interval of the mean over classes; {class, accuracy}
      calibration     {ece, nll, brier}, each an interval
      confusion       K x K counts summed over students, class in rows; null beyond 100 classes
    differences   published minus reference, paired by seed, in its regime:
                  [{regime, against: key, ...interval, verdict: better|worse|undecided|equal}]
    best          {regime: key} the best selection of real images, by its held-out accuracy
    attribution   see evaluation/attribution.py
    curve         [{key, times, steps, accuracy: interval, runs}]
    networks      [{network, regime, key, accuracy: interval, runs, tuned}]
    robustness    [{key, ...}], see evaluation/robustness.py; [] where not asked
    cost          {students, steps, flops}: of this evaluation
    statement     one sentence, see evaluation/statement.py
    missing       sentences: what was not measured and why

Shape suffixes: K classes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distill_datasets.evaluation.baselines import described
from distill_datasets.evaluation.contestants import Contestant, Target, contestants, read_target
from distill_datasets.evaluation.levels import AUGMENT, NAME, Standard
from distill_datasets.evaluation.results import Interval, paired
from distill_datasets.evaluation.students import Choice, Students
from distill_datasets.files.artifacts import write_json
from distill_datasets.models.architecture import Architecture
from distill_datasets.runtime.processes import Run
from distill_datasets.training.rows import Regime

if TYPE_CHECKING:
    from distill_datasets.data.real import RealData

logger = logging.getLogger("distill_datasets")

STANDARD = "standard.json"


def run_standard(
    folder: Path, real: RealData, run: Run, settings: Standard | None = None
) -> dict[str, Any]:
    """Measure a published folder by the standard protocol.

    Args:
        folder: what `write_dataset` wrote, of whatever origin its rows are.
        real: the source, read with the folder's size, channels and normalization.
        run: seed, folder of the unit files, processes and device.
        settings: how thoroughly; None is the quick level.

    Returns:
        The object that this module describes; also written as `standard.json`.

    Raises:
        ArtifactError: the folder is no published one, or not of this source.
    """
    settings = settings or Standard()
    target = read_target(folder, real)
    students = Students(target, real, run, settings)
    field = contestants(target, students.real, students.rest, run.seed, settings.asked)
    table = StandardTable(students, field)
    table.measure()
    found = {
        "protocol": protocol_of(students, settings),
        "target": target_of(target),
        "source": source_of(students.real),
        "rows": [table.row(each) for each in field],
        "differences": table.differences(),
        "best": {regime: each.key for regime, each in table.best.items()},
    }
    if run.runtime.is_main:
        write_json(students.folder / STANDARD, found)
    run.runtime.wait()
    return found


class StandardTable:
    """The rows of an evaluation, measured in rounds, as one decides what the next one trains."""

    def __init__(self, students: Students, field: Sequence[Contestant]) -> None:
        self.students, self.field = students, list(field)
        self.chosen: dict[str, Choice] = {}
        self.best: dict[Regime, Contestant] = {}

    def measure(self) -> None:
        """Tune every row, then train the students that read the test images."""
        students, network = self.students, self.students.network
        students.train(
            "tune", [trial for each in self.field for trial in students.tuning(each, network)]
        )
        self.chosen = {each.key: students.choice(each, network) for each in self.field}
        students.train(
            "evaluate",
            [
                trial
                for each in self.field
                for trial in students.final(each, network, self.chosen[each.key])
            ],
        )
        for regime in students.target.regimes:
            rivals = [each for each in self.field if each.regime == regime and is_selection(each)]
            if rivals:
                self.best[regime] = max(rivals, key=lambda each: self._held_out(each))

    def _held_out(self, contestant: Contestant) -> float:
        return self.chosen[contestant.key].held_out or 0.0

    def accuracies(self, contestant: Contestant) -> dict[int, float]:
        """The accuracy of a row by the seed of its students."""
        choice = self.chosen[contestant.key]
        return self.students.accuracies(
            self.students.final(contestant, self.students.network, choice)
        )

    def row(self, contestant: Contestant) -> dict[str, Any]:
        """A row as it is reported."""
        students, network = self.students, self.students.network
        choice = self.chosen[contestant.key]
        trials = students.final(contestant, network, choice)
        records = [students.found(trial) for trial in trials]
        return {
            "key": contestant.key,
            "from": contestant.row.name,
            "words": contestant.row.printed,
            "regime": contestant.regime,
            "images": contestant.images,
            "size": list(contestant.size),
            "bytes": contestant.bytes.as_json(),
            "network": described(network),
            "steps": students.level.steps,
            "students": len(trials),
            "tuned": choice._asdict(),
            "trials": self._trials(contestant, network),
            **summary(records, students.real),
        }

    def _trials(self, contestant: Contestant, network: Architecture) -> list[dict[str, Any]]:
        return [
            Choice(
                trial.lr, trial.augmented, float(self.students.found(trial)["accuracy"])
            )._asdict()
            for trial in self.students.tuning(contestant, network)
        ]

    def differences(self) -> list[dict[str, Any]]:
        """The published rows minus every reference of their regime, student by student."""
        own = {each.regime: each for each in self.field if each.row.name == "default"}
        found = []
        for each in self.field:
            if each.row.name == "default":
                continue
            interval = paired(self.accuracies(own[each.regime]), self.accuracies(each))
            found.append(
                {"regime": each.regime, "against": each.key}
                | interval.as_json()
                | {"verdict": interval.verdict}
            )
        return found


def is_selection(contestant: Contestant) -> bool:
    """Whether a row shows real images of no more pixels, values or bytes than are published."""
    return contestant.row.images in ("equal", "values", "bytes")


def summary(records: Sequence[dict[str, Any]], real: RealData) -> dict[str, Any]:
    """What the students of a row score, together."""
    recalls = [record["per_class"] for record in records]
    tested = [label for label, recall in enumerate(recalls[0]) if recall is not None]
    means = {label: sum(recall[label] for recall in recalls) / len(recalls) for label in tested}
    worst = min(means, key=lambda label: means[label])
    balanced = [sum(recall[label] for label in tested) / len(tested) for recall in recalls]
    found: dict[str, Any] = {
        "accuracy": Interval.of([record["accuracy"] for record in records]).as_json(),
        "runs": [{"seed": record["seed"], "accuracy": record["accuracy"]} for record in records],
        "per_class": [means.get(label) for label in range(real.shape.k)],
        "balanced": Interval.of(balanced).as_json(),
        "worst": {"class": real.class_names[worst], "accuracy": means[worst]},
        "calibration": {
            name: Interval.of([record["calibration"][name] for record in records]).as_json()
            for name in records[0]["calibration"]
        },
        "confusion": None,
    }
    if "confusion" in records[0]:
        found["confusion"] = torch.tensor([each["confusion"] for each in records]).sum(0).tolist()
    return found


def protocol_of(students: Students, settings: Standard) -> dict[str, Any]:
    """The numbers that were followed."""
    level, shape = students.level, students.real.shape
    held = len(students.rest.test.labels_N) if students.tunes else 0
    return {
        "name": NAME,
        "level": settings.level,
        "changed": settings.changed,
        "side_px": max(shape.h, shape.w),
        "network": described(students.network),
        "students": level.students,
        "steps": level.steps,
        "batch": level.batch,
        "optimizer": "adam",
        "schedule": "cosine",
        "rates": list(level.rates),
        "augment": AUGMENT.model_dump(mode="json"),
        "trials": 2 * len(level.rates),
        "held_out": {"share": 0.1, "scored": held},
        "test_images": len(students.real.test.labels_N),
        "interval": "95 % by Student's t over students",
    }


def target_of(target: Target) -> dict[str, Any]:
    """What was measured."""
    manifest = target.manifest
    return {
        "name": manifest["name"],
        "folder": target.folder.name,
        "identity": target.identity,
        "classes": manifest["classes"],
        "regimes": target.regimes,
        "budget": target.budget,
        "selection": "its settings may have been chosen on all training images",
    }


def source_of(real: RealData) -> dict[str, Any]:
    """What it was measured on."""
    labels_N = real.test.labels_N
    return {
        "train": len(real.train.labels_N),
        "test": len(labels_N),
        "classes": real.shape.k,
        "chance": int(labels_N.bincount().max()) / len(labels_N),
    }
