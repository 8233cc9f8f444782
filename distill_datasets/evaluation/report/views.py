"""The parts of a page about one set: which rows, points and words each chart shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from distill_datasets.evaluation.report.charts import (
    AxisScale,
    Mark,
    accuracy_scale,
    bytes_in_words,
    labeled,
    log_scale,
    nice_step,
)
from distill_datasets.evaluation.report.subject import (
    Contender,
    Point,
    Subject,
    network_in_words,
    short_name,
)
from distill_datasets.training.intervals import Interval
from distill_datasets.training.rows import ROWS

HEIGHT_PX, TOP_PX, BOTTOM_PX = 300, 22, 286
ABOVE_PX = 13
MOST_CLASSES = 30
"""Of more classes the worst and the best are shown."""
REGIMES = {
    "HL": "hard labels: images and the number of a class",
    "SL-1": "soft labels: one vector of shares for every image",
    "SL-R": "recorded views with a teacher's labels",
    "SL+KD": "a teacher beside the student",
}


class Dot(NamedTuple):
    """A point of a strip with its interval, as shares of its width."""

    x: float
    kind: str
    title: str
    low: float | None = None
    high: float | None = None


class StripRow(NamedTuple):
    """A line of a strip: a label, points along an axis, and the number in words."""

    label: str
    dots: list[Dot]
    value: str
    strong: bool = False


class Tick(NamedTuple):
    """A number at a place of an axis, a share of its length or pixels."""

    at: float
    label: str


class Strip(NamedTuple):
    """Lines of points above one axis."""

    title: str
    rows: list[StripRow]
    ticks: list[Tick]
    note: str = ""
    zero: float | None = None
    legend: list[tuple[str, str]] = []


class Line(NamedTuple):
    """Points that are joined, in the color of a kind."""

    kind: str
    points: list[tuple[float, float]]


class Chart(NamedTuple):
    """Points over two axes."""

    title: str
    x_title: str
    y_title: str
    marks: list[Mark]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line] = []
    height: int = HEIGHT_PX
    note: str = ""
    words: str = ""


def begun(words: str) -> str:
    """Words at the beginning of a title; mAP and R2 stay as they are."""
    return words if words != words.lower() else words.capitalize()


def percent(value: float | None, digits: int = 1) -> str:
    """A share in [0, 1] in percent, without the sign of percent."""
    return "-" if value is None else f"{100 * value:.{digits}f}"


def with_interval(accuracy: Interval) -> str:
    """In percent, with the half of its 95 % interval where it has one."""
    half = "" if accuracy.half is None else f" ± {percent(accuracy.half)}"
    return f"{percent(accuracy.mean)}{half}"


def difference_in_words(difference: Interval) -> str:
    """Points with their sign."""
    half = "" if difference.half is None else f" ± {percent(difference.half)}"
    return f"{100 * difference.mean:+.1f}{half}"


def kind_of(contender: Contender) -> str:
    """The symbol of a contender."""
    if contender.published:
        return "own"
    return "whole" if ROWS[contender.name].images == "all" else "other"


def ticks_of(scale: AxisScale) -> list[Tick]:
    """Of an axis of accuracies."""
    return [Tick(scale.share(tick), f"{100 * tick:.3g}") for tick in scale.ticks()]


def ends(accuracy: Interval, place: Callable[[float], float]) -> tuple[float | None, float | None]:
    """Where an interval begins and ends."""
    if accuracy.half is None:
        return None, None
    return place(accuracy.mean - accuracy.half), place(accuracy.mean + accuracy.half)


def dot(accuracy: Interval, scale: AxisScale, kind: str, words: str) -> Dot:
    """An accuracy on a strip."""
    title = f"{words}: {with_interval(accuracy)} %"
    return Dot(scale.share(accuracy.mean), kind, title, *ends(accuracy, scale.share))


def regimes_of(subject: Subject) -> list[str | None]:
    """In the order of the table."""
    return list(dict.fromkeys(each.regime for each in subject.contenders))


def accuracy_strips(subject: Subject) -> list[Strip]:
    """Every contender on one axis for all regimes, a strip each."""
    accuracies = [each.accuracy for each in subject.contenders]
    if not accuracies:
        return []
    # means decide the axis: the interval of two students may be wider than all of it
    scale = accuracy_scale([each.mean for each in accuracies])
    strips = []
    for regime in regimes_of(subject):
        own = [each for each in subject.contenders if each.regime == regime]
        own.sort(key=lambda each: -each.accuracy.mean)
        rows = [
            StripRow(
                each.words,
                [dot(each.accuracy, scale, kind_of(each), each.words)],
                with_interval(each.accuracy),
                each.published,
            )
            for each in own
        ]
        title = regime or "As published"
        strips.append(Strip(title, rows, ticks_of(scale), REGIMES.get(regime or "", "")))
    return strips


def difference_strip(subject: Subject, regime: str | None) -> Strip | None:
    """This set less each reference, with the interval that decides."""
    found = [each for each in subject.differences if each["regime"] == regime]
    if not found:
        return None
    found.sort(key=lambda each: each["mean"])
    values = [each["mean"] for each in found] + [0.0]
    step = nice_step(max(max(values) - min(values), 0.02))
    scale = AxisScale(
        step * min(0, round(min(values) / step - 0.5)),
        step * max(1, round(max(values) / step + 0.5)),
    )
    rows = []
    for each in found:
        difference = Interval(each["mean"], each.get("half"), each.get("std"))
        other = subject.of(each["against"])
        words = each["against"] if other is None else other.words
        said = {"better": "better", "worse": "worse"}.get(difference.verdict, "undecided")
        rows.append(
            StripRow(
                words,
                [
                    Dot(
                        scale.share(difference.mean),
                        {"better": "own", "worse": "best"}.get(said, "other"),
                        f"{words}: {difference_in_words(difference)} points, {said}",
                        *ends(difference, scale.share),
                    )
                ],
                f"{difference_in_words(difference)} {said}",
                said != "undecided",
            )
        )
    ticks = [
        Tick(scale.share(tick), f"{100 * tick:+.3g}" if tick else "0") for tick in scale.ticks()
    ]
    beginning = "This set" if regime is None else f"{regime}: this set"
    return Strip(f"{beginning} less each reference, in points", rows, ticks, zero=scale.share(0.0))


def bytes_chart(subjects: Sequence[Subject], names: Sequence[str] = ()) -> Chart | None:
    """Accuracy against stored bytes; of several sets only what is published and the best real.

    Args:
        subjects: the sets.
        names: what to call each, of several.
    """
    several = len(subjects) > 1
    chosen = [
        (place, each)
        for place, subject in enumerate(subjects)
        for each in subject.contenders
        if each.bytes and each.name not in ("exact", "hard")
        if not several or each.published or each is subject.best_real
        if (subject.main is not None and each.regime in (subject.main.regime, None))
        or each.name == "full"
    ]
    if len(chosen) < 2:
        return None
    x = log_scale([float(each.bytes or 1) for _, each in chosen])
    y = accuracy_scale([each.accuracy.mean for _, each in chosen])
    marks = []
    for place, each in chosen:
        name = each.short
        if several:
            name = names[place] if each.published else f"{each.short} beside {names[place][:1]}"
        # intervals of rows of the same bytes would lie on each other; strips show them
        accuracy = each.accuracy if each.published else each.accuracy._replace(half=None)
        marks.append(
            mark(
                x.share(each.bytes or 1),
                accuracy,
                y,
                name,
                kind_of(each),
                f"{name}: {with_interval(each.accuracy)} % with {bytes_in_words(each.bytes or 1)}",
            )
        )
    return Chart(
        f"{begun(subjects[0].metric)} against stored bytes",
        "bytes of images and labels, logarithmic",
        f"test {subjects[0].metric}, %",
        labeled(marks, HEIGHT_PX),
        [Tick(x.share(tick), bytes_in_words(tick)) for tick in x.ticks()],
        y_ticks(y),
        words=_words(marks),
    )


def mark(x: float, accuracy: Interval, scale: AxisScale, label: str, kind: str, title: str) -> Mark:
    """An accuracy on a chart."""

    def place(value: float) -> float:
        return BOTTOM_PX - scale.share(value) * (BOTTOM_PX - TOP_PX)

    low, high = ends(accuracy, place)
    return Mark(x, place(accuracy.mean), label, kind, title, low, high)


def y_ticks(scale: AxisScale) -> list[Tick]:
    """Of accuracies, from below."""
    span = BOTTOM_PX - TOP_PX
    return [
        Tick(BOTTOM_PX - scale.share(tick) * span, f"{100 * tick:.3g}") for tick in scale.ticks()
    ]


def _words(marks: Iterable[Mark]) -> str:
    """A chart for who does not see it."""
    return "; ".join(each.title for each in marks)


def steps_chart(subject: Subject) -> Chart | None:
    """Accuracy after fewer and after more steps: this set and the best real images."""
    keys = list(dict.fromkeys(point.key for point in subject.curve))
    steps = sorted({point.steps for point in subject.curve})
    if len(steps) < 2:
        return None
    x = log_scale([float(each) for each in steps])
    y = accuracy_scale([point.accuracy.mean for point in subject.curve])
    marks, lines = [], []
    for key in keys:
        contender = subject.of(key)
        name = short_name(key.partition("/")[0]) if contender is None else contender.short
        if contender is not None and contender.regime not in (None, subject.main and
                                                             subject.main.regime):  # fmt: skip
            name = f"{name}, {contender.regime}"
        kind = "own" if contender is not None and contender.published else "other"
        own = sorted((p for p in subject.curve if p.key == key), key=lambda point: point.steps)
        placed = [
            mark(
                x.share(point.steps),
                point.accuracy,
                y,
                name if point is own[-1] else "",
                kind,
                f"{name} after {point.steps:,} steps: {with_interval(point.accuracy)} %",
            )
            for point in own
        ]
        lines.append(Line(kind, [(each.x, each.y) for each in placed]))
        marks += placed
    return Chart(
        f"{begun(subject.metric)} against training steps",
        "steps of a student, logarithmic",
        f"test {subject.metric}, %",
        labeled(marks, HEIGHT_PX, above=ABOVE_PX),
        [Tick(x.share(each), f"{each:,}") for each in steps],
        y_ticks(y),
        lines,
        words=_words(marks),
    )


def networks_strip(subject: Subject) -> Strip | None:
    """This set and the best real images on every network."""
    networks = list(dict.fromkeys(point.where for point in subject.networks))
    if not networks:
        return None
    scale = accuracy_scale([point.accuracy.mean for point in subject.networks])
    rows = []
    for network in networks:
        own = [point for point in subject.networks if point.where == network]
        dots = [_dot_of(subject, point, scale) for point in own]
        main = next((p for p in own if _published(subject, p)), own[0])
        others = [p for p in own if not _published(subject, p)]
        value = percent(main.accuracy.mean)
        if others:
            value += f" / {percent(max(p.accuracy.mean for p in others))}"
        rows.append(StripRow(network_in_words(network), dots, value))
    names = {
        short_name(point.key.partition("/")[0])
        for point in subject.networks
        if not _published(subject, point)
    }
    legend = [("own", "this set"), *([("other", ", ".join(sorted(names)))] if names else [])]
    return Strip("Other networks", rows, ticks_of(scale), legend=legend)


def _published(subject: Subject, point: Point) -> bool:
    contender = subject.of(point.key)
    return contender is not None and contender.published


def _dot_of(subject: Subject, point: Point, scale: AxisScale) -> Dot:
    contender = subject.of(point.key)
    name = point.key if contender is None else contender.words
    kind = "own" if _published(subject, point) else "other"
    return dot(point.accuracy, scale, kind, f"{name} on {point.where}")


def recall_strip(subject: Subject) -> Strip | None:
    """The recall of every class, the worst first, beside the best real images."""
    main, best = subject.main, subject.best_real
    if main is None or not main.facts.get("per_class"):
        return None
    recalls = dict(zip(subject.class_names, main.facts["per_class"], strict=False))
    known = {name: value for name, value in recalls.items() if value is not None}
    others = {}
    if best is not None and best.facts.get("per_class"):
        others = dict(zip(subject.class_names, best.facts["per_class"], strict=False))
    order = sorted(known, key=lambda name: known[name])
    note = ""
    if len(order) > MOST_CLASSES:
        note = f"the {2 * MOST_CLASSES // 3} worst and the {MOST_CLASSES // 3} best of {len(order)}"
        order = order[: 2 * MOST_CLASSES // 3] + order[-MOST_CLASSES // 3 :]
    scale = AxisScale(0.0, 1.0)
    rows = []
    for name in order:
        dots = [Dot(scale.share(known[name]), "own", f"{name}: {percent(known[name])} %")]
        other = others.get(name)
        if other is not None and best is not None:
            title = f"{name}, {best.short}: {percent(other)} %"
            dots.insert(0, Dot(scale.share(other), "other", title))
        rows.append(StripRow(name, dots, percent(known[name])))
    legend = [("own", "this set"), *([("other", best.short)] if best and others else [])]
    words = subject.outputs
    title = f"{begun(words.measured)} of every {words.one}"
    return Strip(title, rows, ticks_of(scale), note, legend=legend)


@dataclass(frozen=True)
class Confusion:
    """Which class is taken for which, in shares of the true one."""

    names: list[str]
    rows: list[list[float]]
    worst: list[str]


def confusion_of(subject: Subject) -> Confusion | None:
    """Of the published rows, where it was measured."""
    main = subject.main
    counts = None if main is None else main.facts.get("confusion")
    if not counts:
        return None
    names = subject.class_names
    rows = [[count / max(1, sum(row)) for count in row] for row in counts]
    wrong = sorted(
        (
            (share, names[true], names[said])
            for true, row in enumerate(rows)
            for said, share in enumerate(row)
            if true != said and share > 0
        ),
        reverse=True,
    )
    words = [f"{true} is taken for {said}: {percent(share)} %" for share, true, said in wrong[:8]]
    return Confusion(names, rows if len(names) <= MOST_CLASSES else [], words)


def facts_of(subject: Subject) -> list[tuple[str, str]]:
    """What a set is, in pairs of a term and words."""
    manifest, budget = subject.manifest, subject.manifest["budget"]
    source = manifest.get("source") or {}
    main = subject.main
    found: list[tuple[str, str]] = [
        ("distilled from", str(source.get("dataset", "unknown"))),
        ("license of the source", str(source.get("license") or "not stated")),
        ("budget", subject.budget_words),
        (
            "training examples",
            f"{budget['examples']:,} of {len(subject.class_names):,} {subject.outputs.many}",
        ),
        ("bytes to train", bytes_in_words(budget["bytes"]["needed"])),
        ("protocol", subject.protocol),
        ("seed", str(manifest.get("seed"))),
    ]
    if "generator_bytes" in budget:
        size = bytes_in_words(budget["generator_bytes"])
        found.append(("generator", f"{size} made the images; nobody needs it to use them"))
    if main is not None and main.facts.get("calibration"):
        said: dict[str, Any] = main.facts["calibration"]
        words = [f"{name.upper()} {said[name]['mean']:.3f}" for name in said if said[name]]
        found.append(("calibration", ", ".join(words)))
    if main is not None and isinstance(main.facts.get("worst"), dict):
        worst = main.facts["worst"]
        if "class" in worst:
            found.append(("worst class", f"{worst['class']}: {percent(worst['accuracy'])} %"))
    return found
