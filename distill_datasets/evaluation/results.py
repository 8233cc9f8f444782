"""Metrics over the students of a row, for `results.json`, and what can be said of a difference.

Shape suffixes: S students, K classes.
"""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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


def spread(values: list[float]) -> dict[str, float | None]:
    """Mean and sample standard deviation, which one value alone does not have."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": std}


STUDENT_T = (
    *(12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157),
    *(2.228139, 2.200985, 2.178813, 2.160369, 2.144787, 2.131450, 2.119905, 2.109816, 2.100922),
    *(2.093024, 2.085963, 2.079614, 2.073873, 2.068658, 2.063899, 2.059539, 2.055529, 2.051831),
    *(2.048407, 2.045230, 2.042272),
)
"""The 97.5 % quantile of Student's t with 1, 2, ... degrees of freedom."""


def student_t(freedom: int) -> float:
    """The 97.5 % quantile of Student's t.

    Source: beyond the table the expansion of Abramowitz and Stegun, 26.7.5, off by less than 2e-5.
    """
    if freedom <= len(STUDENT_T):
        return STUDENT_T[freedom - 1]
    z = statistics.NormalDist().inv_cdf(0.975)
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


class Interval(NamedTuple):
    """A mean with its 95 % interval, `mean` +- `half`; one value alone has no width."""

    mean: float
    half: float | None
    std: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Interval":
        """By Student's t over independent values."""
        mean, count = statistics.fmean(values), len(values)
        if count < 2:
            return cls(mean, None, None)
        std = statistics.stdev(values)
        return cls(mean, student_t(count - 1) * std / math.sqrt(count), std)

    @property
    def verdict(self) -> str:
        """Whether a difference is `better` or `worse` than nothing, `undecided`, or `equal`."""
        if self.half is None:
            return "undecided"
        if self.mean == 0 == self.half:
            return "equal"
        if abs(self.mean) <= self.half:
            return "undecided"
        return "better" if self.mean > 0 else "worse"

    def as_json(self) -> dict[str, float | None]:
        """Mean, standard deviation, half width and both ends."""
        ends = (None, None) if self.half is None else (self.mean - self.half, self.mean + self.half)
        low, high = ends
        return {"mean": self.mean, "std": self.std, "half": self.half, "low": low, "high": high}


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> Interval:
    """The difference of two rows over the seeds that both have.

    Students of one seed start from the same weights, so what the start does to both cancels.
    """
    common = sorted(one.keys() & other.keys())
    return Interval.of([one[seed] - other[seed] for seed in common])
