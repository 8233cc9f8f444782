"""How long a recipe takes on this machine: a little of its work is done and multiplied.

The stages themselves run in a folder that is gone afterwards, with few steps and with some more:
what the additional ones took is the price of one. Students are timed on noise of the recipe's size.
Where teachers, experts or a generator are trained first, that and what asks them is not run but
counted, and divided by what this machine does in training and in asking such a network.
On a CPU it is the processor time of one thread that is measured, so that what else the machine does
does not count.

Shape suffixes: N examples, K classes, C channels, H W pixels.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from distill_datasets.data.source import open_source
from distill_datasets.evaluation.protocol import Evaluate
from distill_datasets.models.architecture import Architecture
from distill_datasets.models.backbones import backbones_of
from distill_datasets.models.flops import WEIGHT_GRADIENT, cost
from distill_datasets.pipeline.run import distill
from distill_datasets.planning.construction import stage_work
from distill_datasets.planning.costs import (
    baseline_rows,
    drawn_network,
    labeling,
    live_labeling,
    probe,
    time_in_words,
)
from distill_datasets.recipe import Recipe
from distill_datasets.runtime.draws import draws
from distill_datasets.runtime.precision import Precision
from distill_datasets.runtime.processes import Run, Runtime
from distill_datasets.stages.features import run_features
from distill_datasets.stages.source import LoadedSource, load_source
from distill_datasets.training.examples import Stored
from distill_datasets.training.linear_probe import CLASSIFIER, Probed
from distill_datasets.training.metrics import accuracy
from distill_datasets.training.screening import pays
from distill_datasets.training.student import students_at
from distill_datasets.types import Batch

if TYPE_CHECKING:
    from distill_datasets.types import Shape

ASKED_SECONDS = 2.0
STEPS = (2, 12)
"""Of distilling and of students: those of the second number beyond the first are timed."""
TESTED = 500
"""Images that one test of a student is timed on, at most."""


@dataclass(frozen=True)
class Minutes:
    """Seconds on one core, or on one accelerator, by what takes them.

    Attributes:
        source: reading, decoding and normalizing, and the features of frozen networks.
        start: making what the first step of distilling starts from, and what follows the last.
        step: an outer step of distilling.
        distill: all of them.
        evaluate: every student and every test.
        counted: stages whose operations were counted, by name.
    """

    source: float
    start: float
    step: float
    distill: float
    evaluate: float
    counted: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """Of the run."""
        before = self.source + self.start + sum(self.counted.values())
        return before + self.distill + self.evaluate

    def lines(self) -> Iterator[tuple[str, str]]:
        """As `plan` prints them."""
        yield "read the source", time_in_words(self.source)
        for name, seconds in self.counted.items():
            yield name, time_in_words(seconds)
        if self.step > 0:
            distill = time_in_words(self.start + self.distill)
            yield "distill", f"{distill}, {self.step:.3g} s an outer step"
        yield "evaluate", time_in_words(self.evaluate)
        yield "in all", f"about {time_in_words(self.total)} on one core or one accelerator here"


def minutes_of(recipe: Recipe, dataset: Any = None) -> Minutes | None:  # noqa: ANN401
    """Measure a little of a run here; reads the whole source once.

    Args:
        recipe: what would be run.
        dataset: the object to read instead of what `source.dataset` names.

    Returns:
        None where an objective that asks trained networks does not count its work.

    Raises:
        DistillError: whatever `run` would refuse.
    """
    with tempfile.TemporaryDirectory() as folder:
        runtime = Runtime()
        runtime.cores = 1  # threads that wait for each other would count as work
        run = Run(recipe.seed, Path(folder), runtime, shown=False)
        with run.runtime.reproducible():
            kept: list[LoadedSource] = []

            def read() -> None:
                kept.append(load_source(open_source(recipe.source, dataset), run.beside))
                run_features(backbones_of(recipe), kept[0], run.beside)

            reading = _seconds(read, runtime.device)
            (source,) = kept
            counted: dict[str, float] | None = {}
            start = step = 0.0
            if recipe.squeeze is not None or recipe.generator is not None:
                counted = _counted(recipe, source, runtime.device)
            else:
                start, step = _distilling(recipe, source, run)
            if counted is None:
                return None
            evaluating = _evaluating(recipe, source, runtime.device)
    distill = recipe.distill.steps * step
    return Minutes(reading, start, step, distill, evaluating, counted)


def _counted(recipe: Recipe, source: LoadedSource, device: torch.device) -> dict[str, float] | None:
    """Seconds of the stages that train networks, and of those that ask them.

    Everything is done as fast as the largest network of the recipe is trained, or asked.
    """
    shape, rows = source.real.shape, len(source.real.train.labels_N)
    images = recipe.distill.canvas.size(shape).examples
    works = stage_work(recipe, shape, rows)
    works["labels of references"] = live_labeling(recipe, images, labeling(recipe, shape))
    if any(work is None for work in works.values()):
        return None
    network, _ = drawn_network(recipe, shape)
    batch = recipe.squeeze.batch if recipe.squeeze is not None else recipe.evaluate.batch
    settings = recipe.evaluate.model_copy(update={"batch": batch})
    step, _ = _student(settings, network, shape, batch, recipe.seed, device)
    trained = WEIGHT_GRADIENT * cost(network, shape)[0] * batch / max(step, 1e-9)
    asked = probe(network, shape, ASKED_SECONDS)
    joint = not recipe.distill.objective.separable
    rates = {"squeeze": trained, "generator": trained, "distill": trained if joint else asked}
    return {name: work / rates.get(name, asked) for name, work in works.items() if work}


def _distilling(recipe: Recipe, source: LoadedSource, run: Run) -> tuple[float, float]:
    """Seconds beside the outer steps, and of one of these, by runs of few and of more."""
    spent = []
    for steps in STEPS:
        short = recipe.distill.model_copy(update={"steps": steps, "previews": 1})
        folder = run.folder / f"steps-{steps}"
        folder.mkdir()
        own = Run(recipe.seed, folder, run.runtime, shown=False)
        few = recipe.model_copy(update={"distill": short})
        spent.append(_seconds(partial(distill, few, source, None, own), run.runtime.device))
    step = max(0.0, spent[1] - spent[0]) / (STEPS[1] - STEPS[0])
    return max(0.0, spent[0] - STEPS[0] * step), step


def _evaluating(recipe: Recipe, source: LoadedSource, device: torch.device) -> float:
    measured, real = recipe.evaluate, source.real
    shape, count = real.shape, recipe.distill.canvas.size(real.shape).examples
    backbone, others = measured.network.frozen(), 0
    if backbone is not None:  # a linear classifier on features, of each backbone
        others = len(measured.network.beside())
        measured = measured.model_copy(update={"network": CLASSIFIER, "beyond": None})
        shape = Probed(backbone, real).shape
    steps, tests = _work(recipe, measured, shape, count, len(real.train.labels_N))
    total = 0.0
    for network, number in steps.items():
        step, test = _student(measured, network, shape, count, recipe.seed, device)
        total += number * step + tests[network] * len(real.test.labels_N) * test
    return (1 + others) * total


def _work(
    recipe: Recipe, measured: Evaluate, shape: Shape, count: int, real: int
) -> tuple[Counter[Architecture], Counter[Architecture]]:
    """Training steps and tests of every network, those of tuning at their most."""
    own, steps, tests = measured.network, Counter[Architecture](), Counter[Architecture]()
    duration = measured.duration(count)
    rows = baseline_rows(recipe)
    steps[own] += len(rows) * measured.students * duration
    tests[own] += len(rows) * measured.students
    if "full" in measured.references:
        each = measured.full_epochs * max(1, real // measured.batch)
        # batches of the whole dataset, where those of the published rows may be smaller
        share = max(1.0, measured.batch / min(measured.batch, count))
        steps[own] += round(measured.full_students * each * share)
        tests[own] += measured.full_students
    beyond = measured.measured_beyond(relabeled=recipe.relabel is not None)
    if beyond is None:
        return steps, tests
    alike = measured.begins_alike

    def trained(marks: list[int]) -> int:
        return max(marks) if alike else sum(marks)

    tuned = len([row for row in rows if row != "exact"])
    ladder, marks = beyond.ladder(duration), beyond.multiples(duration)
    steps[own] += tuned * len(beyond.rates) * trained(ladder)
    steps[own] += tuned * beyond.students * ladder[-1] * bool(beyond.rates)
    tests[own] += tuned * beyond.students
    wider = 1 + bool(measured.references)
    for network in [own, *beyond.others(own, shape)]:
        steps[network] += wider * beyond.students * trained(marks)
        tests[network] += wider * beyond.students * len(marks)
    return steps, tests


def _student(
    measured: Evaluate,
    network: Architecture,
    shape: Shape,
    count: int,
    seed: int,
    device: torch.device,
) -> tuple[float, float]:
    """Seconds of a training step, and of testing one image, on noise."""
    rng = draws(seed)("minutes")
    images_NCHW = torch.rand(max(count, 2), shape.c, shape.h, shape.w, generator=rng)
    labels_N = torch.arange(len(images_NCHW)) % shape.k
    targets_NK = functional.one_hot(labels_N, shape.k).float()
    examples = Stored(images_NCHW, targets_NK, input_space=None).to(device)
    settings = measured.model_copy(update={"network": network})
    trained = list[torch.nn.Module]()

    def train(steps: int) -> None:
        ((_, module),) = students_at(settings, [steps], examples, shape, draws(seed), device)
        trained.append(module)

    few, more = (_seconds(partial(train, steps), device) for steps in STEPS)
    batch = Batch(examples.images_NCHW[:TESTED], examples.targets_NK[:TESTED])
    # where tests are screened, what is asked again is a twentieth of it
    screening = measured.precision == "float32" and pays(trained[-1])
    precision: Precision = "bfloat16" if screening else measured.precision
    test = _seconds(lambda: accuracy(trained[-1], [batch], precision), device) / len(
        batch.images_BCHW
    )
    return max(0.0, more - few) / (STEPS[1] - STEPS[0]), test


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Processor time of all threads of this process; on an accelerator the time that passes."""
    on_cpu = device.type == "cpu"
    clock = time.process_time if on_cpu else time.monotonic
    began = clock()
    work()
    if not on_cpu:
        torch.accelerator.synchronize()
    return clock() - began
