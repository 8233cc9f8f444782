"""Metrics over the students of a row, for `results.json`.

Shape suffixes: S students, K classes, G groups.
"""

import itertools
import statistics
from typing import Any

LONG_TAIL = 2
"""From this ratio of the largest to the smallest class on, thirds of the classes are reported."""


def by_class(accuracies_SK: list[list[float | None]], counts_K: list[int]) -> dict[str, Any]:
    """Metrics over the classes; those without test images are left out.

    Args:
        accuracies_SK: of every student on each class; None where there are no test images.
        counts_K: training images of every class.

    Returns:
        The mean over students of each class; the mean over classes; where the training split is
        long-tailed, also that over the third of the classes with most training images, the middle
        and the third with fewest.
    """
    tested = [label for label, value in enumerate(accuracies_SK[0]) if value is not None]
    tables = [
        {label: value for label, value in enumerate(accuracies_K) if value is not None}
        for accuracies_K in accuracies_SK
    ]

    def over(labels: list[int]) -> dict[str, float | None]:
        if not labels:
            return {"mean": None, "std": None}
        return spread([statistics.fmean(table[label] for label in labels) for table in tables])

    metrics: dict[str, Any] = {
        "per_class": [
            over([label])["mean"] if label in tested else None for label in range(len(counts_K))
        ],
        "balanced_accuracy": over(tested),
    }
    if max(counts_K) >= LONG_TAIL * min(counts_K):
        order = sorted(range(len(counts_K)), key=lambda label: -counts_K[label])
        cuts = [round(part * len(order) / 3) for part in range(4)]
        metrics["thirds"] = {
            name: over([label for label in order[start:end] if label in tested])
            for name, (start, end) in zip(
                ("head", "middle", "tail"), itertools.pairwise(cuts), strict=True
            )
        }
    return metrics


def by_group(accuracies_SKG: list[list[list[float | None]]], names: list[str]) -> dict[str, Any]:
    """Metrics over the pairs of a class and a group that are tested.

    Args:
        accuracies_SKG: of every student; None where a pair has no test images.
        names: of the groups.

    Returns:
        What the worst pair of each student gets, as mean and deviation over students; the names of
        the groups, and the mean over students of each pair, a list for every class.
    """
    worst = [
        min(each for row in table for each in row if each is not None) for table in accuracies_SKG
    ]
    return {
        "worst_group": spread(worst),
        "groups": names,
        "per_group": [mean_of_each(list(rows)) for rows in zip(*accuracies_SKG, strict=True)],
    }


def mean_of_each(values_SK: list[list[float | None]]) -> list[float | None]:
    """The mean over students of each output; None where nothing was tested."""
    return [
        None if None in column else statistics.fmean(each for each in column if each is not None)
        for column in zip(*values_SK, strict=True)
    ]


def spread(values: list[float]) -> dict[str, float | None]:
    """Mean and sample standard deviation, which one value alone does not have."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": std}
