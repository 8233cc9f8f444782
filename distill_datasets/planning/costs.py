"""What the stages of a separable recipe cost: pieces, floating-point work, bytes, hours.

Networks are counted on images of the recipe's shape without weights; what it takes to differentiate
them is in `models.flops`.

Shape suffixes: B a batch, C channels, H W pixels.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from distill_datasets.evaluation.protocol import Evaluate
from distill_datasets.models.architecture import Architecture, last_linear
from distill_datasets.models.flops import IMAGE_GRADIENT, WEIGHT_GRADIENT, cost
from distill_datasets.objectives.objective import Needs
from distill_datasets.recipe import Recipe
from distill_datasets.stages.relabel import Layout
from distill_datasets.stages.teacher_training import Squeeze, squeeze_work
from distill_datasets.types import Shape
from distill_datasets.views.relabel import Relabel

VIEW_BYTES = 74
"""Of a recorded view: two images, crops and flips, box, share, group, epoch and batch."""
PROBE_IMAGES = 32
FLEETS = (1, 8, 64)
"""Numbers of GPUs, one process each, that hours are given for."""
UNKNOWN = "work unknown"


@dataclass(frozen=True)
class Cost:
    """A stage: pieces of about equal work that processes share, FLOP of all, bytes written.

    `work` is None where an objective does not count it.
    """

    stage: str
    units: int
    work: float | None
    stored: float

    def seconds(self, processes: int, flops_per_second: float) -> float:
        """Time of so many processes, each of which solves whole units only."""
        rounds = math.ceil(self.units / processes)
        return rounds * (self.work or 0.0) / self.units / flops_per_second


class Work(NamedTuple):
    """Floating-point operations of images, steps and students, and weights of the networks.

    Those of steps are None where the objective does not count them.
    """

    network_flops: float
    network_weights: int
    student_flops: float
    student_weights: int
    student_steps: int
    student: float
    outer_step: float | None
    distill: float | None
    total: float | None


def costs(recipe: Recipe, shape: Shape, rows: int | None) -> list[Cost]:
    """What every stage after reading costs; [] for an objective that is not separable.

    Args:
        recipe: what is run.
        shape: one example and the classes.
        rows: training images; where they are not known, stages that go over all of them are left
            out. Choosing initial images is never counted.
    """
    if not recipe.distill.objective.separable:
        return []
    images = recipe.distill.canvas.size(shape).examples
    squeezed = recipe.squeeze.architectures if recipe.squeeze is not None else ()
    forward = [cost(architecture, shape) for architecture in squeezed]
    teachers = [flops for flops, _ in forward]
    frozen = [cost(architecture, shape)[0] for architecture in recipe.distill.networks.asked()]
    of_a_view = labeling(recipe, shape)
    return [
        *_reading(recipe, shape, rows, forward, sum(frozen)),
        _distilling(recipe, shape, images, frozen or teachers),
        *_labeling(recipe.relabel, squeezed, shape, images, of_a_view),
        *_evaluating(recipe, shape, images, rows, of_a_view),
    ]


def drawn_network(recipe: Recipe, shape: Shape) -> tuple[Architecture, float]:
    """The largest network that `distill` draws or asks, and the work of one image on average."""
    squeezed = recipe.squeeze.network if recipe.squeeze is not None else None
    drawn = recipe.distill.networks.architectures(squeezed)
    flops = [cost(architecture, shape)[0] for architecture in drawn]
    largest = max(range(len(drawn)), key=flops.__getitem__)
    return drawn[largest], sum(flops) / len(flops)


def work_of(recipe: Recipe, shape: Shape, examples: int) -> Work:
    """Floating-point operations of distilling and of all students but those of `full`."""
    section, measured = recipe.distill, recipe.evaluate
    network, network_flops = drawn_network(recipe, shape)
    _, network_weights = cost(network, shape)
    asked = network_flops
    if section.objective.separable:
        teachers = asked_networks(recipe)
        each = [cost(architecture, shape)[0] for architecture in teachers]
        asked = asked_per_step(section.objective.needs, each)
    student_flops, student_weights = cost(measured.network, shape)
    steps = measured.duration(examples)
    student = student_work(measured, shape, examples, steps)
    outer_step = distill = total = None
    lane = section.objective.work(asked, examples, shape.k)
    if lane is not None:
        lane += section.networks.work(network_flops, examples)
        outer_step = section.lanes * lane
        distill = section.steps * outer_step
        total = distill + len(baseline_rows(recipe)) * measured.students * student
    return Work(
        network_flops,
        network_weights,
        student_flops,
        student_weights,
        steps,
        student,
        outer_step,
        distill,
        total,
    )


def student_work(measured: Evaluate, shape: Shape, examples: int, steps: int) -> float:
    """Of training a student; over a frozen backbone every example is asked about once."""
    flops, _ = cost(measured.network, shape)
    if measured.network.frozen() is not None:
        return flops * examples
    return WEIGHT_GRADIENT * flops * steps * min(measured.batch, examples)


def labeling(recipe: Recipe, shape: Shape) -> float:
    """Of labeling one view by all teachers that do; 0 where no views are labeled."""
    if recipe.relabel is None or recipe.squeeze is None:
        return 0.0
    teachers = [cost(architecture, shape)[0] for architecture in recipe.squeeze.architectures]
    used = recipe.relabel.weights or [1.0] * len(teachers)
    return sum(flops for flops, weight in zip(teachers, used, strict=False) if weight)


def live_labeling(recipe: Recipe, images: int, flops_per_view: float) -> float:
    """Of the views of references, which are labeled while their students train."""
    measured = recipe.evaluate
    live = [row for row in baseline_rows(recipe) if row in measured.references]
    views = measured.duration(images) * min(measured.batch, images)
    return measured.students * len(live) * flops_per_view * views


def asked_networks(recipe: Recipe) -> Sequence[Architecture]:
    """The networks that a separable objective asks: frozen ones, or those of the squeeze stage."""
    squeezed = recipe.squeeze.architectures if recipe.squeeze is not None else ()
    return recipe.distill.networks.asked() or squeezed


def _reading(
    recipe: Recipe,
    shape: Shape,
    rows: int | None,
    forward: list[tuple[float, int]],
    frozen: float,
) -> Iterator[Cost]:
    """The stages that go over all training images; the units of the first are files of rows."""
    if rows is None:
        return
    yield Cost("source", max(1, rows // 1024), 0.0, rows * shape.c * shape.h * shape.w)
    flops = sum(of_one for of_one, _ in forward)
    squeeze = recipe.squeeze
    if frozen:
        yield Cost("features", max(1, rows // 1024), rows * frozen, 0.0)
    if squeeze is not None and not squeeze.weights:
        work = squeeze_work(squeeze, flops, rows)
        stored = squeezed_bytes(squeeze, [weights for _, weights in forward])
        yield Cost("squeeze", squeeze.members * squeeze.shards, work, stored)
    made = recipe.generator
    if made is not None and made.work(shape, rows):
        yield Cost("generator", 1, made.work(shape, rows), 4.0 * (made.weights(shape) or 0))
    if recipe.distill.objective.needs.class_statistics:
        yield Cost("class statistics", max(1, rows // 4096), rows * flops, 0.0)


def _distilling(recipe: Recipe, shape: Shape, images: int, teachers: list[float]) -> Cost:
    section = recipe.distill
    blocks = len(section.objective.blocks(shape.k, images // shape.k))
    asked = asked_per_step(section.objective.needs, teachers)
    work = section.objective.work(asked, images, shape.k)
    # the blocks, and all of them in one file
    stored = 2 * images * shape.c * shape.h * shape.w
    return Cost("distill", blocks, None if work is None else section.steps * work, stored)


def _labeling(
    settings: Relabel | None,
    squeezed: tuple[Architecture, ...],
    shape: Shape,
    images: int,
    flops_per_view: float,
) -> Iterator[Cost]:
    if settings is None:
        return
    record = VIEW_BYTES + label_bytes(settings, squeezed, shape)
    layout = Layout(settings, images, record)
    work, stored = layout.records * flops_per_view, layout.records * record
    yield Cost("relabel", len(layout.files), work, stored)


def _evaluating(
    recipe: Recipe, shape: Shape, images: int, rows: int | None, flops_per_view: float
) -> Iterator[Cost]:
    measured = recipe.evaluate
    student = student_work(measured, shape, images, measured.duration(images))
    compared = baseline_rows(recipe)
    work = len(compared) * measured.students * student
    work += live_labeling(recipe, images, flops_per_view)
    yield Cost("evaluate", len(compared) * measured.students, work, 0.0)
    if "full" in measured.references and rows is not None:
        steps = measured.full_epochs * rows // measured.batch
        work = measured.full_students * student_work(measured, shape, rows, steps)
        yield Cost("evaluate: full", measured.full_students, work, 0.0)


def squeezed_bytes(squeeze: Squeeze, weights: list[int]) -> int:
    """Bytes of the weights that a squeeze stage keeps, given their number in every member."""
    kept = squeeze.epochs + 1 if squeeze.keep == "every" else 2
    return sum(4 * of_one * kept for of_one in weights)


def baseline_rows(recipe: Recipe) -> list[str]:
    """The rows of the results whose students train equally long, references last."""
    exact = not recipe.distill.objective.separable
    compared = recipe.evaluate.compared(relabeled=recipe.relabel is not None, exact=exact)
    rows = [row.name for row in compared if row.images in ("published", "equal", "bytes")]
    references = [name for name in recipe.evaluate.references if name in rows]
    return [*(name for name in rows if name not in references), *references]


def asked_per_step(needs: Needs, teachers: list[float]) -> float:
    """Forward passes of the teachers that a step asks, on average over steps and blocks."""
    if not teachers or needs.asked is None:
        return sum(teachers)
    return needs.asked * sum(teachers) / len(teachers)


def label_bytes(settings: Relabel, teachers: tuple[Architecture, ...], shape: Shape) -> int:
    """Bytes of one label without its view."""
    if settings.store == "features":
        classifier = last_linear(teachers[0].on_meta(shape))
        assert classifier is not None, "store: features refuses teachers without one"
        return 2 * classifier[1].in_features
    if settings.top_k is not None:
        return settings.top_k * (4 if shape.k <= 2**15 else 6)
    return 2 * shape.k


def probe(architecture: Architecture, shape: Shape, seconds: float = 10.0) -> float:
    """Floating-point operations per second of forward and back to the pixels, measured here.

    On a CPU it is what one core does: its processor time is counted, so that what else the machine
    does is not.

    Args:
        architecture: the network, with any weights.
        shape: of one image.
        seconds: how long to measure, after two rounds that warm up.
    """
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    module = architecture.build(shape).to(device).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(0.01).requires_grad_(False)
    images_BCHW = torch.rand(PROBE_IMAGES, shape.c, shape.h, shape.w, device=device)
    images_BCHW.requires_grad_(True)

    def once() -> float:
        (grad,) = torch.autograd.grad(module(images_BCHW).sum(), images_BCHW)
        return float(grad[0, 0, 0, 0])  # waits for the device

    once(), once()
    clock = time.process_time if device.type == "cpu" else time.monotonic
    began, rounds = clock(), 0
    while clock() - began < seconds or rounds == 0:
        once()
        rounds += 1
    spent = clock() - began
    return IMAGE_GRADIENT * cost(architecture, shape)[0] * PROBE_IMAGES * rounds / spent


def flops_in_words(count: float | None) -> str:
    """A count of floating-point operations, three digits and a unit."""
    if count is None:
        return UNKNOWN
    units = [("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6)]
    for unit, size in units:
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} FLOP"


def bytes_in_words(count: float) -> str:
    """A count of bytes, three digits and a unit of thousands."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} bytes"


def time_in_words(seconds: float) -> str:
    """A time, three digits and a unit."""
    if seconds >= 3600:
        return f"{seconds / 3600:.3g} h"
    return f"{seconds / 60:.3g} min" if seconds >= 60 else f"{seconds:.3g} s"


def lines(stages: list[Cost], flops_per_second: float | None) -> list[tuple[str, str]]:
    """A line per stage, and one for all of them."""
    rows = []
    for each in stages:
        parts = [f"{each.units:,} piece" + ("s" if each.units > 1 else "")]
        parts += [flops_in_words(each.work)] if each.work != 0 else []
        parts += [f"{bytes_in_words(each.stored)} written"] if each.stored else []
        if flops_per_second is not None and each.work:
            parts += [_hours([each], flops_per_second)]
        rows.append((each.stage, ", ".join(parts)))
    if stages and flops_per_second is not None:
        rows.append(("all stages", _hours(stages, flops_per_second)))
        rows.append(("at", f"{flops_in_words(flops_per_second)} per second and GPU"))
    return rows


def _hours(stages: list[Cost], flops_per_second: float) -> str:
    if any(each.work is None for each in stages):
        return UNKNOWN
    times = []
    for processes in FLEETS:
        seconds = sum(each.seconds(processes, flops_per_second) for each in stages)
        times.append(f"{time_in_words(seconds)} on {processes}")
    return "; ".join(times)
