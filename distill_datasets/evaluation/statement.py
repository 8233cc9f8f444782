"""One sentence made from the table of the standard protocol, so that nobody picks the words.

    With hard labels and no more pixels, values or bytes these images do worse than the best of 8
    real selections (class means): -11.6 +- 2.6 points; with the published labels: -11.4 +- 1.1.

The best selection is the one with the best held-out accuracy, so that test images choose nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distill_datasets.export.summary import BEATS, points

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
    words = {row["key"]: row["words"] for row in rows}
    found = {
        regime: next(each for each in differences if each["against"] == key)
        for regime, key in best.items()
    }
    first = found["HL"]
    count = selections["HL"]
    many = f"the best of {count} real selections" if count > 1 else "the one real selection"
    text = (
        f"With hard labels and no more pixels, values or bytes these images "
        f"{BEATS[first['verdict']]} {many} ({words[best['HL']]}): {points(first)}"
    )
    for regime, labeled in LABELED.items():
        if regime in found:
            same = words[best[regime]] == words[best["HL"]]
            against = "" if same else f" against {words[best[regime]]}"
            text += f"; {labeled}{against}: {points(found[regime])}"
    return text + "."
