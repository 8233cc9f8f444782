"""What a page says of one set: read from its folder and from what was measured, put into one form.

A set has rows of `results.json`, measured by its own recipe, or an object of the standard protocol
(`evaluation/standard.py`), which is preferred where it is there. Everything is data here; how it is
drawn stands in `charts.py`, and no text of a set is trusted to be short, plain or harmless.

Shape suffixes: N examples, K classes, C channels, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from distill_datasets.errors import ArtifactError, shown
from distill_datasets.evaluation.contestants import identity_of
from distill_datasets.evaluation.report.examples import ShownExamples, read_examples
from distill_datasets.evaluation.standard import STANDARD
from distill_datasets.export.content import per_class
from distill_datasets.export.folder import MANIFEST, read_manifest, task_of
from distill_datasets.export.reading import has_hard_labels
from distill_datasets.export.summary import statement
from distill_datasets.files.artifacts import read_json
from distill_datasets.files.yaml_text import from_yaml
from distill_datasets.targets import METRICS, OUTPUTS, OutputWords
from distill_datasets.training.intervals import Interval
from distill_datasets.training.rows import ROWS
from distill_datasets.types import Task

if TYPE_CHECKING:
    from torch import Tensor

PUBLISHED = "default"
STANDARD_KEYS = frozenset({"protocol", "target", "rows", "differences"})
SHORT = {
    "default": "this set",
    "exact": "before rounding",
    "full": "whole source",
    "start": "starting weights",
    "teacher": "teachers",
    "webp": "WebP",
}
"""Names on charts that are not the row's own."""


class Contender(NamedTuple):
    """A row of a table: what students were trained on, and what they reach.

    Attributes:
        key: tells it from all others of its set.
        name: of the row, as in training/rows.py.
        short: on a chart.
        words: in a table.
        regime: HL, SL-1, ...; None where the recipe's own students were measured.
        accuracy: with its 95 % interval.
        by_seed: of every student.
        bytes: stored, None where that is unknown.
        facts: everything else that was said of it.
    """

    key: str
    name: str
    short: str
    words: str
    regime: str | None
    accuracy: Interval
    by_seed: dict[int, float]
    bytes: int | None
    facts: Mapping[str, Any]

    @property
    def published(self) -> bool:
        """Whether these are the images of the set."""
        return self.name in (PUBLISHED, "exact", "hard")


class Point(NamedTuple):
    """An accuracy elsewhere: of a contender after some steps, or on a network."""

    key: str
    where: str
    steps: int
    accuracy: Interval


@dataclass(frozen=True)
class Subject:
    """A set as a page shows it."""

    folder: Path
    manifest: dict[str, Any]
    recipe: dict[str, Any]
    examples: ShownExamples | None
    contenders: list[Contender]
    curve: list[Point]
    networks: list[Point]
    differences: list[dict[str, Any]]
    protocol: str
    chance: float | None
    statement: str | None
    standard: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its title."""
        return str(self.manifest.get("name", self.folder.name))

    @property
    def class_names(self) -> list[str]:
        """In the order of its labels."""
        return [str(name) for name in self.manifest["classes"]]

    @property
    def task(self) -> Task:
        """What its targets are."""
        return task_of(self.manifest)

    @property
    def metric(self) -> str:
        """What is measured of it: accuracy, mAP or R2."""
        return METRICS[self.task]

    @property
    def outputs(self) -> OutputWords:
        """What its classes are called, and what is measured of one."""
        return OUTPUTS[self.task]

    @property
    def main(self) -> Contender | None:
        """The published rows with all that they come with; None where nobody has measured them."""
        own = [each for each in self.contenders if each.name == PUBLISHED]
        return max(own, key=lambda each: each.regime or "", default=None)

    @property
    def best_real(self) -> Contender | None:
        """The selection of real images that reaches most, in the regime of `main`."""
        main = self.main
        rivals = [
            each
            for each in self.contenders
            if main is not None
            and each.regime == main.regime
            and ROWS[each.name].images in ("equal", "values", "bytes")
        ]
        return max(rivals, key=lambda each: each.accuracy.mean, default=None)

    @property
    def budget_words(self) -> str:
        """Images per class, in words."""
        return str(per_class(self.manifest["budget"], self.task))

    def of(self, key: str) -> Contender | None:
        """The contender of a key."""
        return next((each for each in self.contenders if each.key == key), None)


def read_subject(folder: Path, standard: Path | None = None) -> Subject:
    """Read a published folder and what was measured of it.

    Args:
        folder: what `run` or `import` wrote.
        standard: what the standard protocol wrote of it; None takes the results of its own recipe.

    Raises:
        ArtifactError: one of them is not what it should be.
    """
    manifest = read_manifest(folder)
    measured = {} if standard is None else read_standard(standard)
    try:
        return _subject(folder, manifest, measured)
    except (KeyError, TypeError, AttributeError, IndexError, OSError) as error:
        raise ArtifactError(
            f"{standard or folder / MANIFEST}: not as this library writes it ({shown(error)}); "
            "`distill-datasets verify` says what else differs"
        ) from error


def _subject(folder: Path, manifest: dict[str, Any], measured: dict[str, Any]) -> Subject:
    """What a folder and a measurement say together."""
    recipe = from_yaml((folder / "recipe.yaml").read_text(encoding="utf-8"))
    common = {
        "folder": folder,
        "manifest": manifest,
        "recipe": recipe if isinstance(recipe, dict) else {},
        "examples": read_examples(folder, manifest),
    }
    if measured:
        return _by_standard(measured, common)
    return _by_recipe(manifest.get("results") or [], common)


def read_standard(path: Path) -> dict[str, Any]:
    """What the standard protocol wrote.

    Raises:
        ArtifactError: it is something else.
    """
    said = read_json(path)
    if not isinstance(said, dict) or not said.keys() >= STANDARD_KEYS:
        raise ArtifactError(
            f"{path}: not what `distill-datasets evaluate` writes; expected an object with "
            f"{', '.join(sorted(STANDARD_KEYS))}"
        )
    return said


def find_standard(folder: Path, runs: Path) -> Path | None:
    """What the standard protocol has measured of a published folder, below a folder of runs.

    Of several measurements the one of the full level, then of most students and steps.
    """
    identity = identity_of(read_manifest(folder))
    found = list[tuple[tuple[bool, int, int], Path]]()
    for path in sorted(runs.rglob(STANDARD)):
        said = intact_standard(path)
        if said is not None and said["target"].get("identity") == identity:
            protocol = said["protocol"]
            worth = (protocol["level"] == "full", protocol["students"], protocol["steps"])
            found.append((worth, path))
    return max(found, key=lambda each: each[0])[1] if found else None


def intact_standard(path: Path) -> dict[str, Any] | None:
    """What the standard protocol wrote; None where a file of that name is something else."""
    try:
        return read_standard(path)
    except ArtifactError:
        return None


def _by_standard(said: dict[str, Any], common: dict[str, Any]) -> Subject:
    contenders = [_standard_row(row) for row in said["rows"]]
    protocol = said["protocol"]
    words = (
        f"Protocol {protocol['name']}, {protocol['level']}: {protocol['students']} students of "
        f"{protocol['steps']:,} steps, {network_in_words(protocol['network'])}; the step size of "
        f"every row chosen by {protocol['trials']} trials on held-out training images; test "
        "images read once, after the last step"
    )
    return Subject(
        **common,
        contenders=contenders,
        curve=_with_own(
            [
                Point(
                    each["key"], f"{each['times']:g}x", each["steps"], _interval(each["accuracy"])
                )
                for each in said.get("curve") or []
            ],
            contenders,
            lambda point, own: point.steps == own.steps,
        ),
        networks=_with_own(
            [
                Point(each["key"], each["network"], protocol["steps"], _interval(each["accuracy"]))
                for each in said.get("networks") or []
            ],
            contenders,
            lambda point, own: point.where == own.where,
        ),
        differences=said["differences"],
        protocol=words,
        chance=said["source"].get("chance"),
        statement=said.get("statement"),
        standard=said,
    )


def _with_own(
    points: list[Point], contenders: list[Contender], same: Callable[[Point, Point], bool]
) -> list[Point]:
    """The points with those of the table itself, which is at the steps and network of all rows."""
    added = []
    for key in dict.fromkeys(point.key for point in points):
        for each in contenders:
            if each.key == key:
                facts = each.facts
                own = Point(key, facts["network"], facts["steps"], each.accuracy)
                if not any(same(point, own) for point in points if point.key == key):
                    added.append(own)
    return [*added, *points]


def _standard_row(row: dict[str, Any]) -> Contender:
    return Contender(
        row["key"],
        row["from"],
        short_name(row["from"]),
        row["words"],
        row["regime"],
        _interval(row["accuracy"]),
        {run["seed"]: run["accuracy"] for run in row["runs"]},
        row["bytes"]["total"],
        row,
    )


def _interval(said: Mapping[str, Any]) -> Interval:
    return Interval(said["mean"], said.get("half"), said.get("std"))


def _by_recipe(results: list[dict[str, Any]], common: dict[str, Any]) -> Subject:
    """The rows of `results.json`; references are compared with the published one."""
    manifest = common["manifest"]
    contenders = [_recipe_row(row, manifest) for row in results if row["from"] in ROWS]
    first = next((each for each in contenders if each.name == PUBLISHED), None)
    facts = {} if first is None else first.facts
    words = (
        f"The set's own recipe: {facts.get('students')} students of {facts.get('steps'):,} steps, "
        f"{network_in_words(str(facts.get('network')))}; measured after the last step"
        if first is not None
        else "Nobody has measured it"
    )
    beyond = [(each, row) for each in contenders for row in each.facts.get("beyond") or []]
    points = [
        Point(each.key, row["network"], row["steps"], _of_runs(row)) for each, row in beyond
    ] + [
        Point(each.key, each.facts["network"], each.facts["steps"], each.accuracy)
        for each in contenders
        if each.facts.get("beyond")
    ]
    own = facts.get("network")
    return Subject(
        **common,
        contenders=contenders,
        curve=[point for point in points if point.where == own],
        networks=[
            *(point for point in points if point.steps == facts.get("steps")),
            *(
                Point(each.key, row["network"], facts.get("steps", 0), _of_runs(row))
                for each in contenders
                for row in each.facts.get("transfer") or []
            ),
        ],
        differences=[
            {"regime": None, "against": each.key, **independent(first, each).as_json()}
            for each in contenders
            if first is not None and not each.published and ROWS[each.name].images != "none"
        ],
        protocol=words,
        chance=facts.get("chance"),
        statement=statement(results, hard=has_hard_labels(common["folder"])) if facts else None,
    )


def _recipe_row(row: dict[str, Any], manifest: dict[str, Any]) -> Contender:
    channels = manifest["input"]["shape"][0]
    kind = ROWS[row["from"]]
    stored = {"published": manifest["budget"]["bytes"]["needed"], "none": None}
    # other real images are counted as raw 8-bit values
    raw = None if row.get("pixels") is None else row["pixels"] * channels
    if kind.images == "all":
        raw = row["images"] * math.prod(manifest["input"]["shape"])
    return Contender(
        row["from"],
        row["from"],
        short_name(row["from"]),
        kind.printed,
        None,
        _of_runs(row),
        {run["seed"]: run["accuracy"] for run in row["runs"]},
        row.get("bytes", stored.get(kind.images, raw)),
        row,
    )


def _of_runs(row: Mapping[str, Any]) -> Interval:
    return Interval.of([run["accuracy"] for run in row["runs"]])


def short_name(name: str) -> str:
    """A row as a chart names it."""
    return SHORT.get(name, name.replace("_", " "))


def network_in_words(network: str) -> str:
    """A network with those of its settings that tell networks apart."""
    name, _, rest = network.partition("(")
    parts = [part.strip() for part in rest.rstrip(")").split(",")]
    kept = [part for part in parts if part and part != "first_padding=1"]
    return f"{name} ({', '.join(kept)})" if kept else name


def independent(one: Contender, other: Contender) -> Interval:
    """The difference of two rows whose students have nothing in common."""
    return Interval.between([*one.by_seed.values()], [*other.by_seed.values()])


def likeliest(targets_K: Tensor, names: list[str], most: int = 5) -> list[tuple[str, float]]:
    """The largest shares of a label, with the names of their classes."""
    values, labels = targets_K.float().sort(descending=True)
    return [
        (names[int(label)], float(value))
        for value, label in zip(values[:most], labels[:most], strict=True)
        if float(value) >= 0.005
    ]
