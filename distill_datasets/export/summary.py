"""Results in words, the same for the command line and the card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from distill_datasets.training.intervals import Interval
from distill_datasets.training.rows import ROWS

Row = dict[str, Any]
ENOUGH = 3
"""Students from which on the rows at their tuned step sizes are compared."""


class Wider(NamedTuple):
    """Longer training and other networks: published rows and, behind a slash, the best reference.

    Attributes:
        names: the rows that were measured, the published ones first.
        multiples: of the recipe's steps, a column each.
        rows: a network in words and its cells, in percent.
    """

    names: list[str]
    multiples: list[str]
    rows: list[tuple[str, list[str]]]


def percent(accuracy: dict[str, Any]) -> str:
    """A mean in [0, 1] and its spread, which one student alone does not have, in percent."""
    spread = "" if accuracy["std"] is None else f" ± {100 * accuracy['std']:.1f}"
    return f"{_short(accuracy)}{spread}"


def tuned(row: Row) -> str:
    """What a row reaches at a step size and a number of steps of its own; - where it has none."""
    found = row.get("tuned")
    if found is None:
        return "-"
    return f"{percent(found['accuracy'])} (lr {found['lr']:.3g}, {found['steps']:,} steps)"


def wider(results: list[Row]) -> Wider | None:
    """The table of longer training and of other networks; None where nobody measured it."""
    measured = [row for row in results if "beyond" in row]
    if not measured:
        return None
    tables = [_by_network(row) for row in measured]
    rows = [
        (
            network,
            [
                " / ".join(cells)
                for cells in zip(*(table[network] for table in tables), strict=True)
            ],
        )
        for network in tables[0]
    ]
    steps = sorted({each["steps"] for each in [measured[0], *measured[0]["beyond"]]})
    multiples = [f"{each / measured[0]['steps']:g}x" for each in steps]
    return Wider([row["from"] for row in measured], multiples, rows)


def transfer(results: list[Row]) -> tuple[list[str], list[tuple[str, list[str]]]] | None:
    """Every row on other backbones: these in words, and the cells of each row, in percent.

    None where nobody measured it; the recipe's own backbone is the first.
    """
    measured = [row for row in results if "transfer" in row]
    if not measured:
        return None
    names = [each["network"] for each in [measured[0], *measured[0]["transfer"]]]
    return names, [
        (row["from"], [percent(each["accuracy"]) for each in [row, *row["transfer"]]])
        for row in measured
    ]


def worst(row: Row) -> str:
    """Where the students of a row are worst: the accuracy, the network and the steps."""
    found = row["worst"]
    return f"{_short(found['accuracy'])} % ({found['network']}, {found['steps']:,} steps)"


def at_chance(results: list[Row]) -> str | None:
    """What to say of published rows that teach nothing; None where they teach something."""
    for row in results:
        if row["from"] == "default" and "chance" in row and _is_guessing(row):
            if "metric" in row:
                return _nothing_learned(row)
            return (
                f"students of this dataset are right for {percent(row['accuracy'])} % of the test "
                f"images, and one that always names the same class for {100 * row['chance']:.1f} %:"
                " it teaches nothing. Look at poster.png; where that is noise, lower "
                "distill.optimizer.lr or distill more steps; where it is not, look at evaluate: "
                "steps and optimizer.lr"
            )
    return None


def _nothing_learned(row: Row) -> str:
    return (
        f"students of this dataset reach {heading([row])} {percent(row['accuracy'])}, and guesses "
        f"{100 * row['chance']:.1f}: it teaches nothing. Look at poster.png, distill more steps, "
        "or train students longer"
    )


def heading(results: Sequence[Row]) -> str:
    """What `accuracy` in the results is called: mAP where an image has several labels, or R2."""
    return str(results[0].get("metric", "accuracy")) if results else "accuracy"


def further(results: Sequence[Row]) -> str | None:
    """The metrics beside the first, of the published rows; None where there are none."""
    own = next((row for row in results if row["from"] == "default"), None)
    if own is None or "metric" not in own:
        return None
    named = {"f1_micro": "micro F1, %", "f1_macro": "macro F1, %"}
    parts = [f"{words} {percent(own[key])}" for key, words in named.items() if key in own]
    if "mae" in own:
        parts.append(f"mean absolute error {own['mae']['mean']:.3g} standard deviations")
    return "; ".join(parts)


def _is_guessing(row: Row) -> bool:
    """Whether a mean is so near to chance that students may have learned nothing."""
    chance = row["chance"]
    return bool(row["accuracy"]["mean"] <= chance + min(chance / 2, (1 - chance) / 20))


def _by_network(row: Row) -> dict[str, list[str]]:
    """Mean accuracies in percent by network, the row's own first, in the order of the steps."""
    table: dict[str, list[str]] = {}
    for each in [row, *row["beyond"]]:
        table.setdefault(each["network"], []).append(_short(each["accuracy"]))
    return table


def _short(accuracy: dict[str, Any]) -> str:
    return f"{100 * accuracy['mean']:.1f}"


def statement(results: Sequence[Row], *, hard: bool) -> str | None:
    """One sentence that says whether the published images beat real ones, made from the results.

    The best selection is the one with the best held-out accuracy, or where nothing was tuned the
    one with the best accuracy, which favors the real images. Students of two rows start from
    weights of their own, so the interval is that of Welch's test.

    Args:
        results: rows as in `results.json`.
        hard: whether a published label is a class alone.

    Returns:
        None where no selection of real images was measured.
    """
    rows = {row["from"]: row for row in results}
    relabeled = "teacher" in rows
    own = "hard" if relabeled and "hard" in rows else "default"
    rivals = [row for row in results if ROWS[row["from"]].images in ("equal", "bytes")]
    with_classes = [row for row in rivals if ROWS[row["from"]].classes_alone]
    with_teachers = [row for row in rivals if not ROWS[row["from"]].classes_alone]
    if not relabeled:
        given = "hard" if hard else "the published"
        whose = "targets of their own" if "metric" in rows["default"] else "hard labels"
        than = "" if hard else f", which have {whose}"
        return _compared(f"With {given} labels", rows["default"], rivals, than)
    parts = [
        _compared("With hard labels", rows[own], with_classes) if own == "hard" else None,
        _compared("With the teachers' labels", rows["default"], with_teachers),
    ]
    return " ".join(part for part in parts if part) or None


def best_real(results: Sequence[Row]) -> Row | None:
    """The best selection of real images of no more pixels or bytes; None without any."""
    rivals = [row for row in results if ROWS[row["from"]].images in ("equal", "bytes")]
    return max(rivals, key=_chosen_by, default=None)


def _compared(beginning: str, own: Row, rivals: Sequence[Row], which: str = "") -> str | None:
    if not rivals:
        return None
    best = max(rivals, key=_chosen_by)
    found = Interval.between(*(_accuracies(row, best) for row in (own, best)))
    count = f"the best of {len(rivals)} real selections" if len(rivals) > 1 else "real images"
    return (
        f"{beginning} these images {beats(found.verdict, found.half)} {count}{which} "
        f"({ROWS[best['from']].printed}): {points(found.as_json())}."
    )


def _chosen_by(row: Row) -> float:
    tuned_row = row.get("tuned")
    return float(row["accuracy"]["mean"] if tuned_row is None else tuned_row["held_out"])


def _accuracies(row: Row, best: Row) -> list[float]:
    """Of all students; at the tuned step size where both rows have enough of them there."""
    runs = row["runs"]
    if all("tuned" in each and len(each["tuned"]["runs"]) >= ENOUGH for each in (row, best)):
        runs = row["tuned"]["runs"]
    return [run["accuracy"] for run in runs]


def beats(verdict: str, half: float | None) -> str:
    """What images do to others, by the verdict of a difference and half of its interval."""
    if half is None:  # one student alone, by which neither side is seen to win
        return "are not shown to beat"
    verbs = {"better": "beat", "worse": "do worse than", "undecided": "do not beat"}
    return verbs.get(verdict, "equal")


def points(interval: Mapping[str, Any]) -> str:
    """A difference in points of accuracy, with its 95 % interval."""
    mean = f"{100 * interval['mean']:+.1f}"
    if interval["half"] is None:
        return f"{mean} points (one student, no interval)"
    return f"{mean} ± {100 * interval['half']:.1f} points"
