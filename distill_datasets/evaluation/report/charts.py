"""The geometry of charts: scales, ticks, and labels that do not lie on each other.

Along x a place is a share of the chart's width, so that text keeps its size on a phone; along y it
is in pixels. The templates draw what is computed here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

LINE_PX = 15
"""Labels that stand above each other are so far apart."""
NEAR = 0.34
"""Labels whose anchors are nearer along x than this share may meet."""


FEWEST_TICKS = 3


class AxisScale(NamedTuple):
    """Values from `low` to `high` along an axis; with `log` by their decimal logarithm."""

    low: float
    high: float
    log: bool = False

    def share(self, value: float) -> float:
        """Where a value lies, 0 to 1; what is beyond the ends is drawn at the end."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, 1e-12))
        return min(1.0, max(0.0, (value - low) / (high - low)))

    def ticks(self) -> list[float]:
        """Round values within it; of a logarithmic one powers of ten and multiples of these.

        As few as are enough to read it.
        """
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            patterns = [(1,), (1, 3), (1, 2, 5)]
            tried = [
                [times * 10.0**power for power in range(first, last + 1) for times in pattern]
                for pattern in patterns
            ]
            within = [[tick for tick in each if self.low <= tick <= self.high] for each in tried]
            return next((each for each in within if len(each) >= FEWEST_TICKS), within[-1])
        step = nice_step(self.high - self.low)
        first = math.ceil(round(self.low / step, 6))
        found = [step * turn for turn in range(first, math.floor(self.high / step + 1e-6) + 1)]
        slack = 1e-9 * abs(self.high)
        return [tick for tick in found if self.low - slack <= tick <= self.high + slack]


def nice_step(span: float, most: int = 5) -> float:
    """The smallest of 1, 2, 5 times a power of ten that gives at most so many steps."""
    power = 10.0 ** math.floor(math.log10(span / most))
    return next(power * times for times in (1, 2, 5, 10) if span / (power * times) <= most + 1e-9)


def accuracy_scale(values: Sequence[float]) -> AxisScale:
    """From a round value below the lowest to one above the highest, within [0, 1]."""
    low, high = min(values), max(values)
    step = nice_step(max(high - low, 0.05))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if first == last:
        first, last = first - 1, last + 1
    if last <= 0:  # numbers that are predicted worse than by their mean
        return AxisScale(0.0, 1.0)
    return AxisScale(max(0.0, first * step), min(1.0, last * step))


def log_scale(values: Sequence[float]) -> AxisScale:
    """A little beyond the smallest and the largest."""
    low, high = min(values), max(values)
    room = max(1.25, (high / low) ** 0.06)
    return AxisScale(low / room, high * room, log=True)


class Mark(NamedTuple):
    """A point of a chart.

    Attributes:
        x: a share of the width.
        y: in pixels.
        label: beside it, "" for none.
        kind: which symbol and color: own, other, whole or best.
        title: what is said of it on hover and to a screen reader.
        low: where its interval ends, in pixels; None without one.
        high: the other end.
        label_y: where the label stands, in pixels.
        left: whether the label stands left of the point.
    """

    x: float
    y: float
    label: str
    kind: str
    title: str
    low: float | None = None
    high: float | None = None
    label_y: float = 0.0
    left: bool = False


def labeled(marks: Sequence[Mark], height: float, above: float = 0.0) -> list[Mark]:
    """The marks with places for their labels that do not meet.

    From the top down each label is moved below those near it that it would meet; then all are
    moved up where the last ones would leave the chart.

    Args:
        marks: without places.
        height: of the chart, in pixels.
        above: how far above its mark a label stands, in pixels, where lines run beside it.
    """
    placed = list[Mark]()
    for mark in sorted(marks, key=lambda each: each.y):
        left = mark.x > 0.6
        y = mark.y - above
        for other in placed:
            meets = other.label and other.left == left and abs(other.x - mark.x) < NEAR
            if mark.label and meets and y - other.label_y < LINE_PX:
                y = other.label_y + LINE_PX
        placed.append(mark._replace(label_y=y, left=left))
    for place in reversed(range(len(placed))):
        mark = placed[place]
        bound = height - 4
        for below in placed[place + 1 :]:
            meets = below.label and below.left == mark.left and abs(below.x - mark.x) < NEAR
            if mark.label and meets:
                bound = min(bound, below.label_y - LINE_PX)
        placed[place] = mark._replace(label_y=min(mark.label_y, bound))
    return placed


def bytes_in_words(count: float) -> str:
    """A size as a person says it, in decimal units."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"
