"""The stage that measures: fresh students trained only on what was exported.

Every student is a unit of its own: a file appears when it is done, and a run that was killed skips
the students that it finds. A long one leaves a checkpoint between passes and goes on from there.

Shape suffixes: N examples, K classes, C channels, H W pixels.
"""

import itertools
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from distill_datasets.data.real import RealData
from distill_datasets.evaluation.references import CHOSEN, Contestant, chosen_real, random_real
from distill_datasets.evaluation.relabeled import described, relabeled_contestants, shared
from distill_datasets.export.content import STARTS
from distill_datasets.export.folder import read_manifest
from distill_datasets.export.reading import load_rows, read_published
from distill_datasets.files.artifacts import fingerprint, read_json, read_tensors, write_json
from distill_datasets.runtime.draws import Draw, draws
from distill_datasets.runtime.memory import images_at_once
from distill_datasets.runtime.processes import Run
from distill_datasets.stages.squeeze import SqueezedFolder
from distill_datasets.training.checkpoint import Checkpoint
from distill_datasets.training.examples import Examples, Stored, Whole
from distill_datasets.training.metrics import score, taken_for
from distill_datasets.training.student import Evaluate, steps_of, train_student
from distill_datasets.views.relabel import Relabel

VERSION = 2
LONG_TAIL = 2
"""From this ratio of the largest to the smallest class on, thirds of the classes are reported."""


@dataclass(frozen=True)
class Followed:
    """What a published folder tells students beside its examples; empty where they do not ask."""

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
    """Train the students and return one result row per contestant.

    Args:
        settings: the `evaluate` section.
        exported: a folder that `write_dataset` wrote; only what `load_dataset` returns is used.
        real: the source; its test images measure, its training images serve the references.
        run: seed, folder, processes and device; students are dealt to its processes and threads.
        identity: the fingerprint of what was exported and of the source.
        pixels: the budget, for the reference of random real images.
        attack: the class that was attacked and the one it shall be taken for.
        relabel: how views of the images were labeled, where they were.
        squeezed: the teachers that labeled them.

    Returns:
        Rows as in `results.json`: accuracies in [0, 1], after the last step, never the best.
    """
    section = settings.model_dump(mode="json", exclude={"checkpoint_seconds"})
    deciding = [VERSION, "evaluate", section, identity, run.seed, *(attack or ())]
    if relabel is None:
        field = contestants(settings, exported, real, pixels, run.seed)
    else:
        assert squeezed is not None, "a recipe with relabel has teachers"
        deciding += [relabel.model_dump(mode="json"), squeezed.fingerprint]
        field = relabeled_contestants(settings, relabel, squeezed, exported, real, pixels, run.seed)
    folder = run.folder / f"evaluate-{fingerprint(deciding)}"
    followed = read_followed(settings, exported)
    # longest first, so that no process is left with a long student at the end
    units = [
        (contestant, student)
        for contestant in sorted(field, key=lambda one: -one.steps)
        for student in range(contestant.students)
    ]

    at_once = images_at_once(real.shape, run.runtime.device)

    def train(unit: int) -> None:
        contestant, student = units[unit]
        path = _unit_path(folder, contestant, student)
        if not path.exists():
            checkpoint = Checkpoint(path.with_suffix(".safetensors"), settings.checkpoint_seconds)
            if contestant.trained is not None:
                module = contestant.trained(student)
            else:
                draw = draws(run.seed, "evaluate", contestant.pair or contestant.source, student)
                module = train_student(
                    settings,
                    contestant.steps,
                    contestant.examples(draw),
                    real.shape,
                    draw,
                    run.runtime.device,
                    step_sizes=followed.step_sizes if contestant.follows else [],
                    order=followed.order if contestant.follows else [],
                    start_P=followed.start_of(student),
                    checkpoint=checkpoint,
                )
            scored = score(module, real.test_batches(at_once))
            found: dict[str, Any] = {"seed": student, **scored._asdict()}
            if attack is not None:
                found["taken_for_target"] = taken_for(module, real.test_batches(at_once), *attack)
            write_json(path, found)
            checkpoint.remove()
        bar.advance(1)

    mine = run.runtime.mine(len(units))
    with (
        run.bar("evaluate", len(mine)) as bar,
        run.runtime.pool(len(units)) as run_units,
    ):
        run_units(train, mine)
    run.runtime.wait()
    results = [_result(settings, contestant, folder, real.counts_K) for contestant in field]
    for row in results if attack is not None else []:
        row["taken_for_target"] = _spread([run["taken_for_target"] for run in row["runs"]])
    return results


def contestants(
    settings: Evaluate, exported: Path, real: RealData, pixels: int, seed: int
) -> list[Contestant]:
    """The published rows, then what the recipe wants to see beside them."""
    shape = real.shape
    device = real.train.labels_N.device
    configs = read_manifest(exported)["configs"]

    @shared
    def published() -> Stored:
        return read_published(exported, "default", shape).to(device)

    @shared
    def exact() -> Stored:
        return read_published(exported, "exact", shape).to(device)

    count, side = configs["default"]["rows"], shape.h * shape.w
    steps = settings.duration(count)
    found = [
        Contestant(
            "default",
            settings.students,
            steps,
            lambda draw: published(),
            count,
            pixels,
            follows=True,
        )
    ]
    if settings.exact and "exact" in configs:
        found.append(
            Contestant(
                "exact", settings.students, steps, lambda draw: exact(), count, pixels, follows=True
            )
        )
    if settings.start == "distilled":
        starts = read_followed(settings, exported).starts_SP
        different = len(starts) if starts is not None else 1
        students = min(settings.students, different)
        found.append(Contestant("start", students, 0, lambda draw: published(), 0, 0))
    images = max(1, pixels // side)
    equal: dict[str, Callable[[Draw], Examples]] = {
        "random_real": lambda draw: random_real(real, images, draw),
        **{one.name: chosen_real(real, images, one, seed) for one in CHOSEN},
    }
    found += [
        Contestant(
            name,
            settings.students,
            settings.duration(images),
            examples,
            images,
            images * side,
        )
        for name, examples in equal.items()
        if name in settings.references
    ]
    if "full" in settings.references:
        whole = Whole(real)
        found.append(
            Contestant(
                "full",
                settings.full_students,
                steps_of(settings.full_epochs, whole.count, settings.batch),
                lambda draw: whole,
                whole.count,
                whole.count * side,
            )
        )
    return found


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


def _unit_path(folder: Path, contestant: Contestant, student: int) -> Path:
    return folder / f"{contestant.source}-{student:03d}.json"


def _result(
    settings: Evaluate, contestant: Contestant, folder: Path, counts_K: list[int]
) -> dict[str, Any]:
    runs = [
        read_json(_unit_path(folder, contestant, student)) for student in range(contestant.students)
    ]
    values = [run["accuracy"] for run in runs]
    return {
        "protocol": "last-step",
        "from": contestant.source,
        "network": contestant.network or described(settings.network),
        "accuracy": _spread(values),
        "runs": runs,
        "students": contestant.students,
        "steps": contestant.steps,
        "images": contestant.images,
        "pixels": contestant.pixels,
        **_by_class([run["per_class"] for run in runs], counts_K),
    }


def _by_class(found: list[list[float | None]], counts_K: list[int]) -> dict[str, Any]:
    """What the students' accuracies on every class say; classes without test images are left out.

    Args:
        found: of every student, its accuracy on each class, None where there are no test images.
        counts_K: training images of every class.

    Returns:
        The mean over students of each class; the mean over classes; where the training split is
        long-tailed, also that over the third of the classes with most training images, the middle
        and the third with fewest.
    """
    tested = [label for label, value in enumerate(found[0]) if value is not None]
    tables = [{label: of for label, of in enumerate(run) if of is not None} for run in found]

    def over(labels: list[int]) -> dict[str, float | None]:
        if not labels:
            return {"mean": None, "std": None}
        return _spread([statistics.fmean(table[label] for label in labels) for table in tables])

    said: dict[str, Any] = {
        "per_class": [
            over([label])["mean"] if label in tested else None for label in range(len(counts_K))
        ],
        "balanced_accuracy": over(tested),
    }
    if max(counts_K) >= LONG_TAIL * min(counts_K):
        order = sorted(range(len(counts_K)), key=lambda label: -counts_K[label])
        cuts = [round(part * len(order) / 3) for part in range(4)]
        said["thirds"] = {
            name: over([label for label in order[start:end] if label in tested])
            for name, (start, end) in zip(
                ("head", "middle", "tail"), itertools.pairwise(cuts), strict=True
            )
        }
    return said


def _spread(values: list[float]) -> dict[str, float | None]:
    """Mean and sample standard deviation, which one value alone does not have."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": std}
