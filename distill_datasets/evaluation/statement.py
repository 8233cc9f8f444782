"""One sentence made from the table of the standard protocol, so that nobody picks the words.

    With hard labels and no more pixels, values or bytes these images do worse than the best of 8
    real selections (class means): -31.8 +- 1.5 points; with the published labels they beat the best
    of 8 real selections (class means with hard labels): +1.9 +- 1.2 points.

The best selection is the one with the best held-out accuracy, so that test images choose nothing.
Beside labels that cost more, real images may have these or their classes, whichever serves them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distill_datasets.export.summary import beats, points

LABELED = {
    "SL-1": "with the published labels",
    "SL-R": "with the recorded labels of a teacher",
    "SL+KD": "with a teacher at training time",
}


def statement(
    rows: Sequence[Mapping[str, Any]],
    differences: Sequence[Mapping[str, Any]],
    best: Mapping[str, str],
    selections: Mapping[str, int],
) -> str | None:
    """The sentence; None where no selection of real images was measured with hard labels.

    Args:
        rows: of the table.
        differences: published minus reference.
        best: the key of the best selection, by the regime.
        selections: how many were compared, by the regime.
    """
    if "HL" not in best:
        return None
    rows_of = {row["key"]: row for row in rows}
    found = {
        regime: next(
            each for each in differences if (each["regime"], each["against"]) == (regime, key)
        )
        for regime, key in best.items()
    }

    def compared(regime: str, who: str) -> str:
        count, row = selections[regime], rows_of[best[regime]]
        many = f"the best of {count} real selections" if count > 1 else "the one real selection"
        labels = "" if regime == "HL" or row["regime"] != "HL" else " with hard labels"
        verb = beats(found[regime]["verdict"], found[regime]["half"])
        return f"{who} {verb} {many} ({row['words']}{labels}): {points(found[regime])}"

    text = "With hard labels and no more pixels, values or bytes " + compared("HL", "these images")
    for regime, labeled in LABELED.items():
        if regime in found:
            text += f"; {labeled} they " + compared(regime, "").lstrip()
    return text + "."
