"""Parts of a page that only the standard protocol measures: attribution, robustness, cost."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from distill_datasets.evaluation.report.charts import accuracy_scale
from distill_datasets.evaluation.report.subject import Subject, short_name
from distill_datasets.evaluation.report.views import (
    Dot,
    Strip,
    StripRow,
    difference_in_words,
    dot,
    percent,
    ticks_of,
    with_interval,
)
from distill_datasets.training.intervals import Interval

Said = Mapping[str, Any]
CLEAN, EVERY = "undisturbed", "all corruptions"


class Attribution(NamedTuple):
    """What is owed to images and what to labels: sentences, and the table behind them."""

    words: list[str]
    strips: list[Strip]


def interval_of(said: Said) -> Interval:
    """An interval as JSON has it."""
    return Interval(said["mean"], said.get("half"), said.get("std"))


def attribution_of(subject: Subject) -> Attribution | None:
    """Of a set that the standard protocol has measured."""
    said = subject.standard.get("attribution")
    if not said:
        return None
    return Attribution(list(_shares(said)), list(_tables(said["table"])))


def _shares(said: Said) -> Iterator[str]:
    for share in said["image_share"]:
        gain = interval_of(share)
        verdict = {
            "better": "better than those",
            "worse": "worse than those",
            "equal": "equal to those",
        }.get(share["verdict"], "not told apart from those")
        yield (
            f"Images, {share['regime']}: {difference_in_words(gain)} points beside random real "
            f"images with the same labels, {verdict}."
        )
    if said.get("label_share"):
        share = interval_of(said["label_share"])
        half = "" if share.half is None else f" ± {percent(share.half, 0)}"
        yield (
            f"Labels: {percent(share.mean, 0)}{half} % of what is gained over random real images "
            "with hard labels is owed to the labels."
        )
    ranking = said.get("dd_ranking")
    if ranking:
        yield (
            f"DD-Ranking, in fractions: HLR {ranking['hlr']:.3f}, IOR {ranking['ior']:.3f}, LRS "
            f"{ranking['lrs']:.3f}, ARS {ranking['ars']:.3f}."
        )


def _tables(table: Sequence[Said]) -> Iterator[Strip]:
    """A strip for what tuning chose, and one each with and without augmentation."""
    scale = accuracy_scale([each["accuracy"]["mean"] for each in table])
    titles = {None: "Images and labels", True: "With augmentation", False: "Without augmentation"}
    for augmented, title in titles.items():
        rows = []
        for each in table:
            if each["augmented"] is not augmented:
                continue
            whose = "this set's images" if each["images"] == "published" else "random real images"
            labels = "hard labels" if each["labels"] == "hard" else "this set's labels"
            words, accuracy = f"{whose}, {labels}", interval_of(each["accuracy"])
            kind = "own" if each["images"] == "published" else "other"
            rows.append(
                StripRow(words, [dot(accuracy, scale, kind, words)], with_interval(accuracy))
            )
        if rows:
            yield Strip(title, rows, ticks_of(scale))


def robustness_of(subject: Subject) -> list[Strip]:
    """Attacks by their size and corruptions by their name, each beside real images."""
    measured: list[Said] = subject.standard.get("robustness") or []
    if not measured:
        return []
    names = {said["key"]: _name(subject, said["key"]) for said in measured}
    found = [
        _disturbed(
            measured,
            names,
            {CLEAN: _clean}
            | {f"{size} / 255": _attacked(attack, size) for size in measured[0][attack]},
            title,
        )
        for attack, title in (
            ("pgd", "Attacked by PGD, 10 steps, of this size in every pixel"),
            ("fgsm", "Attacked by FGSM, of this size in every pixel"),
        )
    ]
    corruptions = {CLEAN: _clean, EVERY: _corrupted} | {
        name: _corruption(name) for name in measured[0]["corruptions"]
    }
    return [*found, _disturbed(measured, names, corruptions, "Corrupted, mean of five severities")]


def _name(subject: Subject, key: str) -> str:
    contender = subject.of(key)
    if contender is None:
        return short_name(key.partition("/")[0])
    return contender.short if contender.regime is None else f"{contender.short}, {contender.regime}"


def _clean(said: Said) -> Interval:
    return interval_of(said["clean"])


def _corrupted(said: Said) -> Interval:
    return interval_of(said["corrupted"])


def _attacked(attack: str, size: str) -> Callable[[Said], Interval]:
    return lambda said: interval_of(said[attack][size])


def _corruption(name: str) -> Callable[[Said], Interval]:
    def of(said: Said) -> Interval:
        return Interval(statistics.fmean(s["mean"] for s in said["corruptions"][name]), None, None)

    return of


def _disturbed(
    measured: Sequence[Said],
    names: Mapping[str, str],
    rows: Mapping[str, Callable[[Said], Interval]],
    title: str,
) -> Strip:
    """A line for every disturbance, with a point for every row that was measured."""
    scale = accuracy_scale([of(said).mean for of in rows.values() for said in measured])
    kinds = dict(zip(names, ("own", "other", "best", "whole"), strict=False))
    lines = []
    for label, of in rows.items():
        dots: list[Dot] = [
            dot(of(said), scale, kinds.get(said["key"], "whole"), f"{names[said['key']]}, {label}")
            for said in measured
        ]
        value = " / ".join(percent(of(said).mean) for said in measured)
        # the first row is drawn above the others
        lines.append(StripRow(label, dots[::-1], value))
    legend = [(kinds.get(key, "whole"), name) for key, name in names.items()]
    return Strip(title, lines, ticks_of(scale), legend=legend)


def costs_of(subject: Subject) -> list[tuple[str, str]]:
    """What making and measuring it took, in pairs of a term and words."""
    cost = subject.standard.get("cost")
    if not cost:
        return []
    said = [f"{cost['students']:,} students", f"{cost['steps']:,} steps"]
    if cost.get("flops"):
        said.append(f"{cost['flops']:.2g} floating-point operations")
    found = [("cost of measuring", ", ".join(said))]
    made = cost.get("construction")
    if made:
        stages = [f"{name} {count:.2g}" for name, count in made["stages"].items()]
        words = f"{made['total']:.2g} floating-point operations ({', '.join(stages)})"
        if made.get("break_even") is not None:
            words += f"; it pays from {made['break_even']:,.0f} trainings on the whole set on"
        found.append(("cost of making it", words))
    return found


def transfer_of(subject: Subject) -> list[str]:
    """How much of the gain other networks have, a sentence for every regime."""
    return [
        f"{each['regime']}: on other networks the gain over the best reference is "
        f"{each['ratio']:.2f} times that on the students' own."
        for each in subject.standard.get("transfer") or []
        if each.get("ratio") is not None
    ]
