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
    across        the same against the best reference, where it has classes and these rows more
    best          {regime: key} the best selection of real images with such labels or with classes,
                  by its held-out accuracy
    attribution   see evaluation/attribution.py
    teacher       {network, members, passes, accuracy, bytes}: networks that have learned the
                  source and label views; null where no regime asks for any
    curve         [{key, times, steps, accuracy: interval, runs}]
    networks      [{network, regime, key, tuned, steps, accuracy: interval, runs}]
    transfer      [{regime, ratio}]: mean over other networks of what the published rows gain over
                  the best reference, divided by the gain on the students' own network
    robustness    see evaluation/robustness.py; [] where not asked
    cost          {students, steps, flops} of this evaluation; `construction`: {stages, total,
                  break_even}, floating-point operations by the stage, teachers included, and how
                  many trainings on the whole set cost as much as making the set and as many
                  trainings on it; null where the folder holds no recipe of this library
    statement     one sentence, see evaluation/statement.py; null without a selection
    missing       sentences: what was not measured and why

Shape suffixes: K classes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_datasets.evaluation.attribution import dd_ranking, image_share, label_share
from distill_datasets.evaluation.baselines import described
from distill_datasets.evaluation.contestants import (
    RANDOM,
    Contestant,
    contestants,
    read_target,
)
from distill_datasets.evaluation.facts import protocol_of, source_of, summary, target_of
from distill_datasets.evaluation.levels import NAME, Standard
from distill_datasets.evaluation.robustness import robustness
from distill_datasets.evaluation.statement import statement
from distill_datasets.evaluation.students import Choice, StandardTrial, Students
from distill_datasets.files.artifacts import write_json
from distill_datasets.models.architecture import Architecture
from distill_datasets.models.flops import WEIGHT_GRADIENT, cost
from distill_datasets.runtime.processes import Run
from distill_datasets.training.intervals import Interval, paired
from distill_datasets.training.rows import Regime

if TYPE_CHECKING:
    from distill_datasets.data.real import RealData

logger = logging.getLogger("distill_datasets")

STANDARD = "standard.json"
OWN = "default"
LABELS_OF: dict[Regime, str] = {
    "HL": "hard",
    "SL-1": "published",
    "SL-R": "recorded",
    "SL+KD": "teacher",
}
"""Whose labels students of a regime read, in the table of the attribution."""


def run_standard(
    folder: Path,
    real: RealData,
    run: Run,
    settings: Standard | None = None,
    construction: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure a published folder by the standard protocol.

    Args:
        folder: what `write_dataset` wrote, of whatever origin its rows are.
        real: the source, read with the folder's size, channels and normalization. A linear probe
            needs the features of its backbone in it, which `run_features` puts there.
        run: seed, folder of the unit files, processes and device.
        settings: how thoroughly; None is the quick level.
        construction: what it took to make the folder, as `planning.construction` tells.

    Returns:
        The object that this module describes; also written as `standard.json`.

    Raises:
        ArtifactError: the folder is no published one, or not of this source.
    """
    settings = settings or Standard()
    target = read_target(folder, real)
    students = Students(target, real, run, settings)
    field = contestants(
        target,
        students.real,
        students.rest,
        run.seed,
        settings.asked,
        students.choices(settings.asked),
        students.teaching(settings),
    )
    table = StandardTable(students, field, settings, construction)
    logger.info("%s", table.announced())
    table.measure()
    found = table.found()
    if run.runtime.is_main:
        write_json(students.folder / STANDARD, found)
    run.runtime.wait()
    return found


class StandardTable:
    """The rows of an evaluation, measured in rounds, as one decides what the next one trains."""

    def __init__(
        self,
        students: Students,
        field: Sequence[Contestant],
        settings: Standard,
        construction: dict[str, Any] | None = None,
    ) -> None:
        self.students, self.field, self.settings = students, list(field), settings
        self.network = students.network
        self.of_key = {each.key: each for each in field}
        self.regimes = [each.regime for each in field if each.row.name == OWN]
        self.chosen: dict[str, Choice] = {}
        self.best: dict[Regime, Contestant] = {}
        self.missing = list[str]()
        self.trained = dict[str, StandardTrial]()
        self.attacked = list[StandardTrial]()
        self.construction = construction
        self.others = list(self._usable(settings.others(self.network, students.real.shape)))

    def _usable(self, networks: Sequence[Architecture]) -> Iterator[Architecture]:
        """Those that can be trained here; why others cannot is noted."""
        for network in networks:
            backbone = network.frozen()
            if backbone is not None and backbone.key not in self.students.real.features:
                why = backbone.absent() or "its features of the source were not computed"
                self.missing.append(f"{described(network)}: {why}")
            else:
                yield network

    def announced(self) -> str:
        """What it takes, before it is done: students, steps, floating-point operations."""
        level, rows = self.students.level, len(self.field)
        regimes = len(self.regimes)
        per_row = 2 * len(level.rates) * self.students.tunes + level.students
        longer = sum(times for times in self.settings.times if times != 1) * level.fewer
        wider = len(level.rates) * self.students.tunes + level.fewer
        whole = [each.images for each in self.field if each.row.images == "all"]
        steps = level.steps * (
            per_row * rows
            + 2 * regimes * level.students
            + 2 * regimes * (longer + wider * len(self.others))
        ) + sum(level.fewer * self.students.whole_steps(images) for images in whole)
        flops = steps * self._step_work(self.network)
        return (
            f"{NAME}, {self.settings.level}: {rows} rows, about {steps / level.steps:,.0f} "
            f"trainings of {level.steps} steps, {flops / 1e12:,.3g} TFLOP where all networks cost "
            "what the students' own costs; what an earlier run has finished is taken from it"
        )

    def _step_work(self, network: Architecture) -> float:
        """Floating-point operations of a step of a full batch."""
        flops, _ = cost(network, self.students.real.shape)
        return WEIGHT_GRADIENT * flops * self.students.level.batch

    def train(self, stage: str, trials: Sequence[StandardTrial]) -> None:
        """Train the students of a round."""
        self.trained |= {trial.stem: trial for trial in trials}
        self.students.train(stage, trials)

    def measure(self) -> None:
        """Tune all rows, train their students, then go further with those that matter most."""
        students, network = self.students, self.network
        if not students.tunes:
            self.missing.append(
                "tuned step sizes: every class has one training image, none is left to choose on"
            )
        tuning = [trial for each in self.field for trial in students.tuning(each, network)]
        self.train("tune", tuning)
        self.chosen = {each.key: students.choice(each, network) for each in self.field}
        main = [trial for each in self.field for trial in self.finals(each)]
        self.attacked = self._attacked()
        self.train("evaluate", [*main, *self.attacked])
        self._choose_best()
        self.train("augmentation", [trial for each in self._pair() for trial in self._arms(each)])
        self.train("steps", [trial for each in self.followed() for trial in self._longer(each)])
        self.train(
            "networks: tune",
            [
                trial
                for each in self.followed()
                for other in self.others
                for trial in self._tuning_on(each, other)
            ],
        )
        self.train(
            "networks",
            [
                trial
                for each in self.followed()
                for other in self.others
                for trial in self._on(each, other)
            ],
        )

    def finals(self, contestant: Contestant) -> list[StandardTrial]:
        """The students that a row is reported with."""
        return self.students.final(contestant, self.network, self.chosen[contestant.key])

    def _attacked(self) -> list[StandardTrial]:
        """Students of the published rows and of random images that are also attacked."""
        if not self.settings.robustness:
            return []
        if self.students.real.normalization.kind != "mean_std" or self.network.frozen() is not None:
            self.missing.append(
                "robustness: attacks are of pixels, and these students see whitened images or "
                "features"
            )
            return []
        fewer = self.students.level.fewer
        return [
            replace(trial, attacked=True)
            for each in self._pair()
            for trial in self.finals(each)[:fewer]
        ]

    def _choose_best(self) -> None:
        for regime in self.regimes:
            rivals = self.rivals(regime)
            if rivals:
                self.best[regime] = max(rivals, key=self._held_out)

    def rivals(self, regime: Regime) -> list[Contestant]:
        """Real images of no more pixels, values or bytes: with labels of the regime, or classes.

        Whoever has real images has their classes, so soft labels that do not suit them may be left.
        Beside recorded views, random images in the place of the rows are rivals too.
        """
        equal = ("equal", "values", "bytes")
        allowed = {regime, "HL"}
        return [
            each
            for each in self.field
            if (each.regime in allowed and each.row.images in equal)
            or (each.key == f"{RANDOM}/SL-R" and regime == "SL-R")
        ]

    def _held_out(self, contestant: Contestant) -> float:
        return self.chosen[contestant.key].held_out or 0.0

    def _pair(self) -> list[Contestant]:
        """The published rows and random images in their place, in every regime."""
        return [each for each in self.field if each.row.name in (OWN, RANDOM)]

    def _arms(self, contestant: Contestant) -> list[StandardTrial]:
        """Students with augmentation and without, each at its own step size."""
        if not self._is_moved(contestant):
            return []
        return [trial for moved in (False, True) for trial in self.arm(contestant, moved)]

    def _is_moved(self, contestant: Contestant) -> bool:
        """Whether students could be augmented: features and labeled views are taken as they are."""
        return self.network.frozen() is None and not contestant.views

    def arm(self, contestant: Contestant, moved: bool) -> list[StandardTrial]:
        """Students that are augmented, or that are not."""
        choice = self.students.choice(contestant, self.network, moved)
        return self.students.final(contestant, self.network, choice)

    def followed(self) -> list[Contestant]:
        """The published rows and the best reference of every regime."""
        own = [self.of_key[f"{OWN}/{regime}"] for regime in self.regimes]
        best = {each.key: each for each in self.best.values()}
        return [*own, *best.values()]

    def _longer(self, contestant: Contestant) -> list[StandardTrial]:
        return [trial for times in self.settings.times for trial in self.at(contestant, times)]

    def at(self, contestant: Contestant, times: float) -> list[StandardTrial]:
        """Students of a multiple of the steps."""
        choice, level = self.chosen[contestant.key], self.students.level
        return self.students.final(contestant, self.network, choice, times, level.fewer)

    def _tuning_on(self, contestant: Contestant, network: Architecture) -> list[StandardTrial]:
        """Step sizes of another network; augmentation stays as the row's own network has it."""
        moved = self._moved_on(contestant, network)
        tried = self.students.tuning(contestant, network)
        return [trial for trial in tried if trial.augmented == moved]

    def _moved_on(self, contestant: Contestant, network: Architecture) -> bool:
        return network.frozen() is None and self.chosen[contestant.key].augmented

    def _choice_on(self, contestant: Contestant, network: Architecture) -> Choice:
        moved = self._moved_on(contestant, network)
        return self.students.choice(contestant, network, moved)

    def _on(self, contestant: Contestant, network: Architecture) -> list[StandardTrial]:
        choice = self._choice_on(contestant, network)
        level = self.students.level
        return self.students.final(contestant, network, choice, students=level.fewer)

    def accuracies(self, key: str) -> dict[int, float]:
        """The accuracy of a row by the seed of its students."""
        return self.students.accuracies(self.finals(self.of_key[key]))

    def found(self) -> dict[str, Any]:
        """Everything, as this module describes it."""
        rows = [self.row(each) for each in self.field]
        differences, across = self.differences(), self.across()
        best: dict[str, str] = {regime: each.key for regime, each in self.best.items()}
        many: dict[str, int] = {
            regime: len({each.row.name for each in self.rivals(regime)}) for regime in self.best
        }
        networks = self.networks()
        return {
            "protocol": protocol_of(self.students, self.settings),
            "target": target_of(self.students.target, self.regimes),
            "source": source_of(self.students.real),
            "rows": rows,
            "differences": differences,
            "across": across,
            "best": best,
            "attribution": self.attribution(),
            "teacher": self.teacher(),
            "curve": self.curve(),
            "networks": networks,
            "transfer": list(self.transfer(networks)),
            "robustness": self.robustness(),
            "cost": self.cost(),
            "statement": statement(rows, [*differences, *across], best, many),
            "missing": self.missing,
        }

    def row(self, contestant: Contestant) -> dict[str, Any]:
        """A row as it is reported."""
        trials = self.finals(contestant)
        tried = self.students.tuning(contestant, self.network)
        scores = [float(self.students.found(trial)["accuracy"]) for trial in tried]
        return {
            "key": contestant.key,
            "from": contestant.row.name,
            "words": contestant.row.printed,
            "regime": contestant.regime,
            "images": contestant.images,
            "size": list(contestant.size),
            "bytes": contestant.bytes.as_json(),
            "network": described(self.network),
            "steps": trials[0].steps,
            "students": len(trials),
            "tuned": self.chosen[contestant.key]._asdict(),
            "trials": [
                Choice(trial.lr, trial.augmented, scored)._asdict()
                for trial, scored in zip(tried, scores, strict=True)
            ],
            **summary([self.students.found(trial) for trial in trials], self.students.real),
        }

    def differences(self) -> list[dict[str, Any]]:
        """The published rows minus every reference of their regime, student by student."""
        pairs = [(each.regime, each) for each in self.field if each.row.name != OWN]
        return [self._difference(regime, each) for regime, each in pairs]

    def across(self) -> list[dict[str, Any]]:
        """The published rows minus the best reference, where that has classes and these more."""
        return [
            self._difference(regime, best)
            for regime, best in self.best.items()
            if best.regime != regime
        ]

    def _difference(self, regime: Regime, reference: Contestant) -> dict[str, Any]:
        own = self.accuracies(f"{OWN}/{regime}")
        interval = paired(own, self.accuracies(reference.key))
        key, verdict = reference.key, interval.verdict
        return {"regime": regime, "against": key, **interval.as_json(), "verdict": verdict}

    def attribution(self) -> dict[str, Any]:
        """Shares of images and labels, arms of augmentation, and the scores of DD-Ranking."""
        regimes = self.regimes
        stored = [regime for regime in regimes if regime != "SL+KD"]
        plain = self.students.target.regimes
        shares = [
            {
                "regime": regime,
                **image_share(
                    self.accuracies(f"{OWN}/{regime}"), self.accuracies(f"{RANDOM}/{regime}")
                ),
            }
            for regime in regimes
        ]
        labels = None
        if len(stored) > 1:
            labels = label_share(
                self.accuracies(f"{OWN}/{stored[-1]}"),
                self.accuracies(f"{OWN}/HL"),
                self.accuracies(f"{RANDOM}/HL"),
            )
        return {
            "table": list(self._arms_table()),
            "image_share": shares,
            "label_share": None if labels is None else labels.as_json(),
            "dd_ranking": self._dd_ranking(plain[-1]),
        }

    def _arms_table(self) -> Iterator[dict[str, Any]]:
        for each in self._pair():
            arms: list[tuple[bool | None, list[StandardTrial]]] = [(None, self.finals(each))]
            if self._is_moved(each):
                arms += [(moved, self.arm(each, moved)) for moved in (True, False)]
            for moved, trials in arms:
                accuracies = list(self.students.accuracies(trials).values())
                yield {
                    "images": "published" if each.row.name == OWN else "random",
                    "labels": LABELS_OF[each.regime],
                    "regime": each.regime,
                    "key": each.key,
                    "augmented": moved,
                    "lr": trials[0].lr,
                    "accuracy": Interval.of(accuracies).as_json(),
                }

    def _dd_ranking(self, regime: Regime) -> dict[str, Any] | None:
        if "full/HL" not in self.of_key:
            self.missing.append("DD-Ranking's scores: the whole source was not measured")
            return None
        if self.network.frozen() is not None:
            self.missing.append("DD-Ranking's scores: features of a backbone are not augmented")
            return None
        own, random = self.of_key[f"{OWN}/{regime}"], self.of_key[f"{RANDOM}/{regime}"]
        arms = {
            moved: tuple(self.students.accuracies(self.arm(each, moved)) for each in (own, random))
            for moved in (True, False)
        }
        return dd_ranking(
            regime,
            self.accuracies("full/HL"),
            self.accuracies(f"{OWN}/HL"),
            self.accuracies(own.key),
            self.accuracies(random.key),
            (arms[True][0], arms[True][1]),
            (arms[False][0], arms[False][1]),
        )

    def teacher(self) -> dict[str, Any] | None:
        """The networks that label views of real images, where a regime has such labels."""
        if not {"SL-R", "SL+KD"} & set(self.regimes):
            return None
        if "SL-R" in self.regimes:
            self.missing.append(
                "SL-R of real images with labels of the teacher of the published ones: the folder "
                "does not hold it, and networks of this evaluation label them"
            )
        return self.students.teacher()

    def curve(self) -> list[dict[str, Any]]:
        """Accuracy against steps."""
        return [
            {
                "key": each.key,
                "times": times,
                "steps": self.at(each, times)[0].steps,
                **self._scored(self.at(each, times)),
            }
            for each in self.followed()
            for times in self.settings.times
        ]

    def networks(self) -> list[dict[str, Any]]:
        """Accuracy of other networks, each tuned for each row."""
        return [
            {
                "network": described(other),
                "regime": each.regime,
                "key": each.key,
                "tuned": self._choice_on(each, other)._asdict(),
                "steps": self.students.level.steps,
                **self._scored(self._on(each, other)),
            }
            for other in self.others
            for each in self.followed()
        ]

    def transfer(self, networks: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """How much of what the published rows gain on their own network they gain on others."""
        for regime, best in self.best.items():
            own, key = f"{OWN}/{regime}", best.key
            gain = paired(self.accuracies(own), self.accuracies(key))
            mean = {(row["network"], row["key"]): row["accuracy"]["mean"] for row in networks}
            names = dict.fromkeys(row["network"] for row in networks)
            gains = [mean[name, own] - mean[name, key] for name in names]
            # the ratio to a gain that may be none says nothing
            sound = bool(gains) and gain.verdict in ("better", "worse")
            ratio = sum(gains) / len(gains) / gain.mean if sound else None
            yield {"regime": regime, "ratio": ratio}

    def _scored(self, trials: Sequence[StandardTrial]) -> dict[str, Any]:
        accuracies = self.students.accuracies(trials)
        return {
            "accuracy": Interval.of(list(accuracies.values())).as_json(),
            "runs": [{"seed": seed, "accuracy": value} for seed, value in accuracies.items()],
        }

    def robustness(self) -> list[dict[str, Any]]:
        """What the published rows and random images withstand."""
        found = []
        for each in self._pair():
            records = [
                self.students.withstood(trial)
                for trial in self.attacked
                if trial.contestant.key == each.key and self.students.was_attacked(trial)
            ]
            if records:
                most = len(self.students.real.test.labels_N)
                images = min(self.students.level.attacked, most)
                found.append(robustness(each.key, images, records))
        return found

    def cost(self) -> dict[str, Any]:
        """What this evaluation takes, whoever has done it, and what making the set took."""
        if self.construction is None:
            self.missing.append("cost of construction: no recipe of this library made the folder")
            made = None
        else:
            made = {**self.construction, "break_even": self._break_even(self.construction["total"])}
        return {
            "students": len(self.trained),
            "steps": sum(trial.steps for trial in self.trained.values()),
            "flops": sum(map(self._work, self.trained.values())),
            "construction": made,
        }

    def _work(self, trial: StandardTrial) -> float:
        """Floating-point operations of a training."""
        batch = min(1.0, trial.contestant.images / self.students.level.batch)
        return trial.steps * self._step_work(trial.network) * batch

    def _break_even(self, made: float | None) -> float | None:
        """How many trainings on the published rows pay for making them."""
        if made is None or "full/HL" not in self.of_key:
            return None
        whole, own = (
            self._work(self.finals(self.of_key[key])[0]) for key in ("full/HL", f"{OWN}/HL")
        )
        return made / (whole - own) if whole > own else None
