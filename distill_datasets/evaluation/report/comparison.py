"""Several sets beside each other: aligned rows, differences with intervals, and what differs."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from distill_datasets.evaluation.report.charts import accuracy_scale, bytes_in_words
from distill_datasets.evaluation.report.subject import Contender, Subject, independent
from distill_datasets.evaluation.report.views import (
    Dot,
    Strip,
    StripRow,
    begun,
    difference_in_words,
    dot,
    kind_of,
    percent,
    ticks_of,
    with_interval,
)
from distill_datasets.training.intervals import Interval, paired

MOST_RECIPE_ROWS = 60
WORST_CLASSES = 12


class AlignedRow(NamedTuple):
    """A property of all sets: its name, a cell each, and whether they differ."""

    name: str
    cells: list[str]
    differs: bool = False


class Comparison(NamedTuple):
    """What is said of several sets together."""

    names: list[str]
    aligned: list[AlignedRow]
    strip: Strip | None
    classes: Strip | None
    recipe: list[AlignedRow]
    left_out: int
    warnings: list[str]


def comparison_of(subjects: Sequence[Subject], names: list[str]) -> Comparison:
    """Of at least two sets by their names; the first is what the others are compared with."""
    recipe = recipe_rows(subjects)
    return Comparison(
        names,
        aligned_rows(subjects),
        accuracy_strip(subjects, names),
        class_strip(subjects, names),
        recipe[:MOST_RECIPE_ROWS],
        max(0, len(recipe) - MOST_RECIPE_ROWS),
        list(warnings_of(subjects)),
    )


def titles(subjects: Sequence[Subject]) -> list[str]:
    """The name of each set behind a letter, as several may be called alike."""
    letters = string.ascii_uppercase
    return [f"{letters[place % 26]} {each.name}" for place, each in enumerate(subjects)]


def difference(one: Contender, other: Contender, *, same_students: bool) -> Interval:
    """Of two sets: student by student where both were measured by the same ones."""
    if same_students and one.by_seed.keys() & other.by_seed.keys():
        return paired(one.by_seed, other.by_seed)
    return independent(one, other)


def same_students(one: Subject, other: Subject) -> bool:
    """Whether student s of both starts from the same weights and sees the same draws."""
    protocols = [each.standard.get("protocol") for each in (one, other)]
    sources = [each.standard.get("source") for each in (one, other)]
    return protocols[0] is not None and protocols[0] == protocols[1] and sources[0] == sources[1]


def aligned_rows(subjects: Sequence[Subject]) -> list[AlignedRow]:
    """Accuracy, difference and budget of each."""
    mains = [each.main for each in subjects]

    def row(name: str, cells: list[str]) -> AlignedRow:
        return AlignedRow(name, cells, len(set(cells)) > 1)

    budgets = [each.manifest["budget"] for each in subjects]
    rows = [
        row("folder", [each.folder.name for each in subjects]),
        row(f"{subjects[0].metric}, %", [_accuracy(main) for main in mains]),
        row("regime", [_regime(main) for main in mains]),
    ]
    first = mains[0]
    if first is not None:
        cells = ["-"]
        for subject, main in zip(subjects[1:], mains[1:], strict=True):
            if main is None:
                cells.append("not measured")
                continue
            alike = same_students(subjects[0], subject)
            found = difference(main, first, same_students=alike)
            how = "paired by student" if alike else "independent students"
            cells.append(f"{difference_in_words(found)}, {found.verdict}; {how}")
        rows.append(row("difference to the first, points", cells))
    rows += [
        row("best real images, %", [_accuracy(each.best_real) for each in subjects]),
        row(f"lowest {subjects[0].outputs.measured}, %", [_lowest(each) for each in subjects]),
        row("budget", [each.budget_words for each in subjects]),
        row("training examples", [f"{budget['examples']:,}" for budget in budgets]),
        row("values", [f"{budget['values']:,}" for budget in budgets]),
        row("bytes to train", [bytes_in_words(each["bytes"]["needed"]) for each in budgets]),
        row("source", [str(each.manifest["source"].get("dataset")) for each in subjects]),
        row("method", [str(each.manifest.get("method")) for each in subjects]),
        row("seed", [str(each.manifest.get("seed")) for each in subjects]),
        row("protocol", [each.protocol for each in subjects]),
    ]
    return rows


def _accuracy(contender: Contender | None) -> str:
    return "not measured" if contender is None else with_interval(contender.accuracy)


def _regime(contender: Contender | None) -> str:
    return "-" if contender is None else contender.regime or "as published"


def _lowest(subject: Subject) -> str:
    recalls = _recalls(subject)
    if not recalls:
        return "-"
    name = min(recalls, key=lambda each: recalls[each])
    return f"{percent(recalls[name])} ({name})"


def _recalls(subject: Subject) -> dict[str, float]:
    values = [] if subject.main is None else subject.main.facts.get("per_class") or []
    pairs = zip(subject.class_names, values, strict=False)
    return {name: value for name, value in pairs if value is not None}


def accuracy_strip(subjects: Sequence[Subject], names: Sequence[str]) -> Strip | None:
    """Each set and its best real images on one axis."""
    shown = [
        (name, subject, subject.main)
        for name, subject in zip(names, subjects, strict=True)
        if subject.main is not None
    ]
    if not shown:
        return None
    values = [main.accuracy.mean for _, _, main in shown if main is not None]
    values += [s.best_real.accuracy.mean for _, s, _ in shown if s.best_real is not None]
    scale = accuracy_scale(values)
    rows = []
    for name, subject, main in shown:
        assert main is not None
        dots = [dot(main.accuracy, scale, kind_of(main), name)]
        best = subject.best_real
        if best is not None:
            dots.insert(0, dot(best.accuracy, scale, "other", f"{name}, {best.words}"))
        rows.append(StripRow(name, dots, with_interval(main.accuracy), strong=True))
    legend = [("own", "the set"), ("other", "the best real images beside it")]
    return Strip(begun(subjects[0].metric), rows, ticks_of(scale), legend=legend)


def class_strip(subjects: Sequence[Subject], names: Sequence[str]) -> Strip | None:
    """The classes where two sets differ most."""
    recalls = [_recalls(each) for each in subjects]
    common = [name for name in recalls[0] if all(name in each for each in recalls)]
    if not common:
        return None

    def spread(name: str) -> float:
        values = [each[name] for each in recalls]
        return max(values) - min(values)

    chosen = sorted(common, key=spread, reverse=True)[:WORST_CLASSES]
    scale = accuracy_scale([each[name] for each in recalls for name in chosen])
    kinds = ["own", "best", "other"]
    rows = [
        StripRow(
            name,
            [
                Dot(
                    scale.share(each[name]),
                    kinds[min(place, 2)],
                    f"{name}, {names[place]}: {percent(each[name])} %",
                )
                for place, each in enumerate(recalls)
            ],
            " / ".join(percent(each[name], 0) for each in recalls),
        )
        for name in chosen
    ]
    note = (
        ""
        if len(common) <= WORST_CLASSES
        else f"{len(chosen)} of {len(common)} {subjects[0].outputs.many}"
    )
    legend = [(kinds[min(place, 2)], name) for place, name in enumerate(names)]
    words = subjects[0].outputs
    title = f"{begun(words.measured)} of the {words.many} that differ most"
    return Strip(title, rows, ticks_of(scale), note, legend=legend)


def recipe_rows(subjects: Sequence[Subject]) -> list[AlignedRow]:
    """Keys of the recipes whose values differ."""
    flat = [dict(flattened(each.recipe)) for each in subjects]
    keys = dict.fromkeys(key for each in flat for key in each)
    return [
        AlignedRow(key, [each.get(key, "-") for each in flat], differs=True)
        for key in keys
        if len({each.get(key, "-") for each in flat}) > 1
    ]


def flattened(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Every value of nested sections with its full key."""
    found: list[tuple[str, str]] = []
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            found += flattened(value, f"{name}.")
        else:
            found.append((name, "null" if value is None else str(value)))
    return found


def warnings_of(subjects: Sequence[Subject]) -> list[str]:
    """Why numbers of these sets may not be compared."""
    sources = {str(each.manifest["source"].get("dataset")) for each in subjects}
    regimes = {_regime(each.main) for each in subjects if each.main is not None}
    protocols = {each.protocol for each in subjects if each.main is not None}
    said = []
    if len(sources) > 1:
        said.append(f"These sets are of different sources: {', '.join(sorted(sources))}.")
    if len(regimes) > 1:
        said.append(f"They were measured in different regimes: {', '.join(sorted(regimes))}.")
    if len(protocols) > 1:
        said.append("Their students were trained differently: see the row “protocol”.")
    return said
