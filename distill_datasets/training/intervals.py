"""What can be said of a mean, and of a difference: intervals by Student's t."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

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

    @classmethod
    def between(cls, one: Sequence[float], other: Sequence[float]) -> "Interval":
        """The difference of the means of independent values, of which each side may have its own.

        Source: Welch's test, with the degrees of freedom of Satterthwaite rounded down.
        """
        mean = statistics.fmean(one) - statistics.fmean(other)
        if min(len(one), len(other)) < 2:
            return cls(mean, None, None)
        parts = [
            (statistics.variance(values) / len(values), len(values)) for values in (one, other)
        ]
        variance = sum(part for part, _ in parts)
        if variance == 0:
            return cls(mean, 0.0, 0.0)
        freedom = variance**2 / sum(part**2 / (count - 1) for part, count in parts)
        std = math.sqrt(variance)
        return cls(mean, student_t(max(1, int(freedom))) * std, std)

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
