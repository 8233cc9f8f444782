"""Class-incremental learning with a memory: the distilled set beside herded real images.

Classes come in tasks, some at a time. A network is trained on the images of one task after the
other, each time beside a memory of the classes that came before, and is asked for all classes seen
so far. The memories take the same bytes. The distilled set was made of all classes together: as a
memory it shows its rows of the classes seen, and their soft labels are limited to these.

Source: iCaRL (arXiv:1611.07725) for tasks, memory and herding.

Shape suffixes: N images, K classes, C channels, H W pixels, P all weights of a network.
"""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from distill_datasets.errors import ArtifactError
from distill_datasets.evaluation.contestants import Target, read_target
from distill_datasets.evaluation.uses.units import (
    kept_bytes,
    measured,
    real_per_class,
    real_rows,
    training,
)
from distill_datasets.files.artifacts import fingerprint, write_json
from distill_datasets.models.convnets import ConvNet
from distill_datasets.runtime.draws import draws
from distill_datasets.runtime.memory import images_at_once
from distill_datasets.runtime.processes import Run
from distill_datasets.selection.coresets import herded
from distill_datasets.training.examples import Stored
from distill_datasets.training.intervals import Interval, paired
from distill_datasets.training.student import train_student

if TYPE_CHECKING:
    from distill_datasets.data.real import RealData

VERSION = 1
MEMORIES = {
    "published": "the distilled set",
    "herding": "herded real images of the same bytes",
    "random_real": "random real images of the same bytes",
    "none": "no memory",
    "all": "all earlier images, whatever their bytes",
}


def run_replay(
    folder: Path,
    real: RealData,
    run: Run,
    *,
    tasks: int = 5,
    steps: int = 200,
    students: int = 3,
) -> dict[str, Any]:
    """Measure a published folder as the memory of a network that learns classes in tasks.

    Args:
        folder: in the published layout.
        real: the source.
        run: seed, folder, processes and device.
        tasks: how many; classes are dealt to them in their order.
        steps: of training in every task.
        students: networks with every memory, paired by seed.

    Returns:
        Accuracies in [0, 1] on the test images of all classes seen: after every task, their mean
        over the tasks, and after the last; intervals are 95 % over students.

    Raises:
        ArtifactError: there are fewer classes than tasks, or the folder is of another source.
    """
    target = read_target(folder, real)
    if not 2 <= tasks <= real.shape.k:
        raise ArtifactError(
            f"{folder}: {real.shape.k} classes cannot come in {tasks} tasks; expected 2 to "
            f"{real.shape.k}"
        )
    deciding = [VERSION, target.identity, tasks, steps, run.seed]
    own = run.folder / f"replay-{fingerprint(deciding)}"
    units = {
        f"{memory}-{student:03d}": partial(
            _sequence, target, real, run, memory, student, tasks, steps
        )
        for student in range(students)
        for memory in MEMORIES
    }
    found = measured(run, "replay", own, units)
    runs = {
        memory: [found[f"{memory}-{student:03d}"]["after"] for student in range(students)]
        for memory in MEMORIES
    }
    said = {
        "use": "replay",
        "tasks": tasks,
        "steps": steps,
        "students": students,
        "bytes": kept_bytes(target),
        "real_per_class": real_per_class(target, real),
        "rows": [_row(memory, after) for memory, after in runs.items()],
        "differences": [
            {"against": memory, **_difference(runs["published"], after)}
            for memory, after in runs.items()
            if memory != "published"
        ],
    }
    if run.runtime.is_main:
        write_json(own / "replay.json", said)
    return said


def _row(memory: str, after: list[list[float]]) -> dict[str, Any]:
    return {
        "memory": memory,
        "words": MEMORIES[memory],
        "after": [Interval.of(column).as_json() for column in zip(*after, strict=True)],
        "average": Interval.of([sum(each) / len(each) for each in after]).as_json(),
        "final": Interval.of([each[-1] for each in after]).as_json(),
    }


def _difference(ours: list[list[float]], theirs: list[list[float]]) -> dict[str, Any]:
    """Published minus another memory in the mean over the tasks, student by student."""
    means = [dict(enumerate(sum(each) / len(each) for each in runs)) for runs in (ours, theirs)]
    interval = paired(*means)
    return interval.as_json() | {"verdict": interval.verdict}


def tasks_of(classes: int, tasks: int) -> list[list[int]]:
    """The classes of every task, as evenly as they can be dealt."""
    ends = [round(task * classes / tasks) for task in range(tasks + 1)]
    return [list(range(start, end)) for start, end in itertools.pairwise(ends)]


def _sequence(
    target: Target, real: RealData, run: Run, memory: str, student: int, tasks: int, steps: int
) -> dict[str, Any]:
    """One network through all tasks; its accuracy on the classes seen after each."""
    start_P, seen, after = None, list[int](), list[float]()
    settings = training(ConvNet(width=32), steps)
    for task, classes in enumerate(tasks_of(real.shape.k, tasks)):
        fresh = real_rows(real, _rows_of(real, classes))
        earlier = _memory(memory, target, real, seen, run.seed, student)
        seen = seen + classes
        module = train_student(
            settings,
            steps,
            fresh if earlier is None else _beside(fresh, earlier),
            real.shape,
            # the same draws with every memory: what differs is the memory alone
            draws(run.seed, "replay", student, task),
            run.runtime.device,
            start_P=start_P,
        )
        start_P = nn.utils.parameters_to_vector(module.parameters()).detach()
        after.append(_accuracy(module, real, seen, images_at_once(real.shape, run.runtime.device)))
    return {"seed": student, "after": after}


def _rows_of(real: RealData, classes: list[int]) -> Tensor:
    return torch.cat([real.rows_of_class[label] for label in classes]).cpu()


def _memory(
    memory: str, target: Target, real: RealData, seen: list[int], seed: int, student: int
) -> Stored | None:
    """What is kept of the classes seen; None where that is nothing."""
    if not seen or memory == "none":
        return None
    if memory == "published":
        return _limited(target, seen)
    if memory == "all":
        return real_rows(real, _rows_of(real, seen))
    each, rows = real_per_class(target, real), list[Tensor]()
    for label in seen:
        own_N = real.rows_of_class[label].cpu()
        if memory == "herding":
            pixels_ND = real.displayable(own_N).flatten(1).cpu()
            places = torch.tensor(herded(pixels_ND, min(each, len(own_N))))
        else:
            rng = draws(seed, "replay", student)("memory", label)
            places = torch.randperm(len(own_N), generator=rng)[:each]
        rows.append(own_N[places])
    return real_rows(real, torch.cat(rows))


def _limited(target: Target, seen: list[int]) -> Stored | None:
    """The published rows of the classes seen, with labels of these alone."""
    stored = target.stored
    known_K = torch.zeros(stored.targets_NK.shape[1], device=stored.targets_NK.device)
    known_K[seen] = 1
    rows_N = known_K[target.classes_M].nonzero().flatten()
    if not len(rows_N):
        return None
    targets_NK = stored.targets_NK[rows_N] * known_K
    targets_NK = targets_NK / targets_NK.sum(dim=1, keepdim=True)
    return Stored(stored.images_NCHW[rows_N], targets_NK, stored.input_space)


def _beside(fresh: Stored, earlier: Stored) -> Stored:
    """Images of a task and as many of the memory, which repeats itself."""
    times = max(1, round(fresh.count / earlier.count))
    return Stored(
        torch.cat([fresh.images_NCHW, earlier.images_NCHW.repeat(times, 1, 1, 1)]),
        torch.cat([fresh.targets_NK, earlier.targets_NK.repeat(times, 1)]),
        fresh.input_space,
    )


@torch.no_grad()
def _accuracy(module: nn.Module, real: RealData, seen: list[int], at_once: int) -> float:
    """On the test images of the classes seen, of which one is named."""
    module.eval()
    chosen_S = torch.tensor(seen, device=real.test.labels_N.device)
    right, asked = 0, 0
    for batch in real.test_batches(at_once):
        labels_B = batch.targets_BK.argmax(dim=1)
        own_B = torch.isin(labels_B, chosen_S)
        named_B = chosen_S[module(batch.images_BCHW)[:, chosen_S].argmax(dim=1)]
        right += int((named_B == labels_B)[own_B].sum())
        asked += int(own_B.sum())
    return right / asked
