"""What an audit looks for, in one table, and how a number becomes a finding.

A check turns a set into one number, the larger the worse. It is found where that number reaches
the table's least one and could not come from a clean set: the null says how that is known. A set is
never called clean: what was not found is stated with how often the check found planted faults.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Tier = Literal["T0", "T1", "T2", "T3"]
TIERS: tuple[Tier, ...] = ("T0", "T1", "T2", "T3")
Null = Literal["none", "clean", "test"]
"""Of a clean set a number is always zero; or is compared with clean sets; or a test gives its p."""
State = Literal["found", "not found", "not looked at"]

DEVIATIONS = 3.0
"""A number beyond all clean sets also lies so many of their standard deviations above the mean."""
LARGEST_P = 0.001
"""Of a test."""


class Check(NamedTuple):
    """A thing that is looked for.

    Attributes:
        name: as in the findings.
        tier: what it costs: T0 reads files, T1 compares with the source, T2 trains on the set, T3
            asks what the set gives away.
        counts: what its number is.
        null: how it is known what clean sets have.
        least: the smallest number that is found.
        innocent: what else may be the reason.
        unit: what is counted; % for a share in [0, 1].
    """

    name: str
    tier: Tier
    counts: str
    null: Null
    least: float
    innocent: str
    unit: str = ""


CHECKS = {
    check.name: check
    for check in (
        Check(
            "files", "T0", "files that are not as the manifest and each other say", "none", 1,
            "somebody edited the card or a result by hand; or a download was cut short",
        ),
        Check(
            "programs", "T0", "files that can carry code: executable, pickled, or of another kind "
            "than the published format has", "none", 1,
            "a helper script of the author; read it before you run it",
        ),
        Check(
            "license", "T0", "sources without a license that lets everybody share what is derived",
            "none", 1, "the license stands elsewhere; ask the author",
        ),
        Check(
            "columns", "T0", "columns of `default` that are missing or of another type", "none", 1,
            "a set that another program wrote",
        ),
        Check(
            "images", "T0", "rows whose image cannot be decoded, is too large or has another shape",
            "none", 1, "an image format that this machine cannot read",
        ),
        Check(
            "labels", "T0", "rows whose label is no class, or whose soft label is not finite, has "
            "a negative share, does not sum to 1 or is largest elsewhere", "none", 1,
            "logits in the place of probabilities; a tie",
        ),
        Check(
            "values", "T0", "numbers beside the rows that are not finite or far beyond pixels",
            "none", 1, "a student's input space with a very small deviation",
        ),
        Check(
            "duplicates", "T0", "rows whose pixels are those of an earlier row", "none", 1,
            "classes with few images repeat them to be balanced",
        ),
        Check(
            "class names", "T1", "classes that the source calls otherwise", "none", 1,
            "a translation, or a subset of the source's classes",
        ),
        Check(
            "missing classes", "T1", "classes of the source without an example", "none", 1,
            "fewer examples than classes: soft labels may still name all",
        ),
        Check(
            "test images", "T1", "rows whose pixels are those of a test image", "clean", 1,
            "the source itself has images in both splits",
        ),
        Check(
            "near test images", "T1", "rows that look like a test image, by a thumbnail", "clean",
            3, "plain images, such as digits in few pixels, look alike",
        ),
        Check(
            "features of test images", "T1", "rows whose features are those of a test image, "
            "cosine above .99", "clean", 1,
            "a reference network that cannot tell images of a class apart",
        ),
        Check(
            "training images", "T1", "rows whose pixels are those of a training image", "none", 1,
            "a coreset consists of training images; it matters where these are private",
        ),
        Check(
            "copies", "T1", "rows that are nearer to a training image than nearly all test images "
            "are", "test", 1,
            "a coreset consists of training images; others often start from them. It matters where "
            "the training images are private",
        ),
        Check(
            "label disagreement", "T1", "share of rows to which a network trained on the source "
            "gives another class", "clean", 0.01,
            "distilled images need not look like their class to a network trained on real ones",
            "%",
        ),
        Check(
            "class disagreement", "T1", "the same share, of the class where it is largest", "clean",
            0.3, "a class that is hard to tell; few images of it", "%",
        ),
        Check(
            "recall gap", "T2", "recall of the median class less that of the worst, of networks "
            "trained on the set", "clean", 0.1, "a class with few or atypical images", "%",
        ),
        Check(
            "activation clusters", "T2", "the largest silhouette of a class whose activations fall "
            "into a large and a small part", "clean", 0.15,
            "a class of two kinds, such as sevens with and without a bar",
        ),
        Check(
            "spectral signature", "T2", "how far the farthest row lies out along the main "
            "direction of its class's activations, in deviations", "clean", 4.0,
            "an odd but honest image", "deviations",
        ),
        Check(
            "trigger", "T2", "how much smaller than in clean sets the smallest pattern is that "
            "makes every image one class, in deviations, for the class where that is most", "clean",
            4.0, "a class of few or of plain images", "deviations",
        ),
        Check(
            "membership", "T3", "share of training images whose use shows in networks trained on "
            "the set, where 1 % of test images seem used", "clean", 0.02,
            "every set is made of training images; the share says how plainly. Noise as a start "
            "and many images per class lower it",
            "%",
        ),
        Check(
            "labels on noise", "T3", "accuracy on test images of networks trained on noise with "
            "the set's soft labels", "clean", 0.0,
            "soft labels tell which classes resemble each other, and that alone helps a little",
            "%",
        ),
    )
}  # fmt: skip
"""Every check by its name, in the order of an audit, with its threshold."""


class Measurement(NamedTuple):
    """What a check found in a set: its number, the places it speaks of, and p where it tests."""

    value: float
    where: list[str] = []
    p: float | None = None


@dataclass(frozen=True)
class Finding:
    """One line of an audit.

    Attributes:
        check: what was looked for.
        state: whether it was found.
        value: its number; None where nobody looked.
        where: rows, files or classes that it speaks of, the worst first.
        clean: the same number of clean sets of the same shape.
        p: the chance of such a number in a clean set; None where that is zero or unknown.
        why: why nobody looked.
        power: how often the check found planted faults, a fault and "x of 20" each.
    """

    check: Check
    state: State
    value: float | None = None
    where: list[str] = field(default_factory=list)
    clean: list[float] = field(default_factory=list)
    p: float | None = None
    why: str | None = None
    power: dict[str, str] = field(default_factory=dict)

    def number(self, value: float | None) -> str:
        """A number of this check in words."""
        if value is None:
            return "-"
        if self.check.unit == "%":
            return f"{100 * value:.1f} %"
        return (
            f"{value:,.0f}" if self.check.null == "none" or value == int(value) else f"{value:.2f}"
        )

    def in_words(self) -> str:
        """A sentence for a person, without what could be innocent."""
        if self.state == "not looked at":
            return f"not looked at: {self.why}"
        said = f"{self.state}: {self.number(self.value)} {self.check.counts}"
        if self.clean:
            low, middle, high = (
                self.number(each)
                for each in (min(self.clean), statistics.median(self.clean), max(self.clean))
            )
            said += f"; {len(self.clean)} clean sets have {low} to {high}, median {middle}"
        if self.p is not None:
            said += f"; p {'<' if self.p < 0.001 else '='} {max(self.p, 0.001):.3f}"
        if self.state == "not found" and self.power:
            shown = [f"{fault} in {times}" for fault, times in self.power.items()]
            said += f"; of planted faults this check has found: {'; '.join(shown)}"
        return said

    def as_json(self) -> dict[str, Any]:
        """Everything, for `--json`."""
        return {
            "check": self.check.name,
            "tier": self.check.tier,
            "state": self.state,
            "value": self.value,
            "unit": self.check.unit,
            "counts": self.check.counts,
            "threshold": self.check.least,
            "where": self.where,
            "clean": self.clean,
            "p": self.p,
            "innocent": self.check.innocent,
            "found_in_planted": self.power,
            "why": self.why,
        }


def judged(
    name: str,
    measured: Measurement,
    clean: Sequence[float] = (),
    power: dict[str, str] | None = None,
    stretch: float = 1.0,
) -> Finding:
    """The finding of a check.

    Args:
        name: of the check.
        measured: what it gave of the set.
        clean: what it gave of clean sets; only where the check compares with them.
        power: how often it found planted faults.
        stretch: how much farther honest sets lie from the mean of the clean ones than these do.
    """
    check = CHECKS[name]
    reached, p = measured.value >= check.least, measured.p
    if check.null == "clean":
        p = (1 + sum(each >= measured.value for each in clean)) / (1 + len(clean))
        reached = reached and bool(clean) and _beyond(measured.value, clean, stretch)
    elif check.null == "test":
        reached = reached and p is not None and p <= LARGEST_P
    state: State = "found" if reached else "not found"
    compared = list(clean) if check.null == "clean" else []
    return Finding(check, state, measured.value, measured.where, compared, p, power=power or {})


def unseen(name: str, why: str) -> Finding:
    """The finding of a check that nobody could make."""
    return Finding(CHECKS[name], "not looked at", why=why)


def _beyond(value: float, clean: Sequence[float], stretch: float) -> bool:
    """Whether a number is larger than all of clean sets, and far from their mean."""
    spread = stretch * statistics.stdev(clean) if len(clean) > 1 else math.inf
    return value > max(clean) and value >= statistics.fmean(clean) + DEVIATIONS * spread


def closing(findings: Sequence[Finding]) -> str:
    """The last line of an audit: what was found, and what that does not mean."""
    states = [finding.state for finding in findings]
    found, looked = states.count("found"), len(states) - states.count("not looked at")
    return (
        f"found {found} of {looked} things that were looked for"
        + (f", {len(states) - looked} were not looked at" if looked < len(states) else "")
        + "; what was not found may be there all the same"
    )
