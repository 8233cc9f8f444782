"""Trainings that make up an evaluation: who is trained on what, and at which steps it is scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from distill_datasets.evaluation.baselines import Baseline
from distill_datasets.evaluation.beyond import Beyond
from distill_datasets.evaluation.protocol import Evaluate
from distill_datasets.files.artifacts import fingerprint
from distill_datasets.models.architecture import Architecture
from distill_datasets.runtime.processes import Run

T = TypeVar("T")

if TYPE_CHECKING:
    from distill_datasets.types import Shape


@dataclass(frozen=True)
class Trial:
    """One training of one student.

    Attributes:
        baseline: what it is trained on.
        student: which of the row's students, and so which seed.
        marks: the numbers of steps at which it is scored, rising.
        network: another than the recipe's; None is that one.
        factor: on the step size.
        held_out: whether it is scored on training images that were held out.
    """

    baseline: Baseline
    student: int
    marks: tuple[int, ...]
    network: Architecture | None = None
    factor: float = 1.0
    held_out: bool = False

    def stem(self, mark: int) -> str:
        """The name of the file that its score at so many steps lies in."""
        stem = f"{self.baseline.row.name}-{self.student:03d}"
        if self == plain(self.baseline, self.student):
            return stem
        network = "" if self.network is None else f"-{fingerprint([self.network.model_dump()])}"
        return f"{stem}{network}-x{self.factor:g}-at-{mark}" + "-held-out" * self.held_out


def plain(baseline: Baseline, student: int) -> Trial:
    """A student as the recipe says."""
    return Trial(baseline, student, (baseline.steps,))


def parted(settings: Evaluate, trials: Iterable[Trial]) -> Iterator[Trial]:
    """The same trials, those of several marks in one training each where that is the same."""
    for trial in trials:
        if settings.begins_alike:
            yield trial
        else:
            yield from (dataclasses.replace(trial, marks=(mark,)) for mark in trial.marks)


def is_tuned(baseline: Baseline) -> bool:
    """Whether a row is also measured at a step size and a number of steps of its own."""
    return baseline.row.name == "default" or baseline.row.images in ("equal", "bytes")


def tuning(beyond: Beyond, baseline: Baseline) -> Iterator[Trial]:
    """What a row is tuned by: a student at every factor, scored along its way."""
    marks = tuple(beyond.ladder(baseline.steps))
    for factor in beyond.rates:
        yield Trial(baseline, 0, marks, factor=factor, held_out=True)


def tuned(beyond: Beyond, baseline: Baseline, factor: float, steps: int) -> list[Trial]:
    """Students at the step size and the steps that tuning chose; the recipe's own where it can."""
    if (factor, steps) == (1.0, baseline.steps):
        return [plain(baseline, student) for student in range(baseline.students)]
    return [Trial(baseline, student, (steps,), factor=factor) for student in range(beyond.students)]


def wider(settings: Evaluate, beyond: Beyond, baseline: Baseline, shape: Shape) -> list[Trial]:
    """Students that train longer, and students of other networks."""
    marks = tuple(beyond.multiples(baseline.steps))
    others = beyond.others(settings.network, shape) if settings.start == "fresh" else []
    students = range(beyond.students)
    longer = [Trial(baseline, student, marks[1:]) for student in students if marks[1:]]
    return longer + [
        Trial(baseline, student, marks, network=network)
        for network in others
        for student in students
    ]


def best_of(scores: Mapping[tuple[float, int], float]) -> tuple[float, int]:
    """The factor and the steps of the best score, of equal ones the first."""
    return max(scores, key=lambda tried: scores[tried])


def dealt(run: Run, stage: str, units: Sequence[T], measure: Callable[[T], None]) -> None:
    """Let processes and threads measure all units between them, with a bar; all wait for all.

    Args:
        run: whose processes and threads.
        stage: what the bar is called.
        units: the longest first, so that no process is left with a long one at the end.
        measure: writes down what it finds, unless that is written down.
    """
    mine = run.runtime.mine(len(units))
    with run.bar(stage, len(mine)) as bar, run.runtime.pool(max(1, len(units))) as run_units:

        def one(unit: int) -> None:
            measure(units[unit])
            bar.advance(1)

        run_units(one, mine)
    run.runtime.wait()
