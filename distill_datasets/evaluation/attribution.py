"""What of an accuracy is owed to the images, what to the labels, and what to augmentation.

Per regime r the image share is acc(S, r) - acc(random, r), where *random* has as many real images
as S has rows, of the same classes, with the same labels. The label share is

    (acc(S, SL) - acc(S, HL)) / (acc(S, SL) - acc(random, HL)),

1 where all that is gained over random images with hard labels is gained by labels.

DD-Ranking's scores (arXiv:2505.13300) are taken of fractions in [0, 1], as its paper defines them:

    HLR = acc(whole, HL) - acc(S, HL)                     hard-label recovery, lower is better
    IOR = acc(S, r) - acc(random, r)                      r: the richest regime of S
    LRS = (exp(IOR / 2 - HLR / 2) - 1 / e) / (e - 1 / e)
    ARS = (exp(a / 2 + b / 2) - 1 / e) / (e - 1 / e)      a, b: IOR with and without augmentation

Its program v0.2.0 puts percentages into the exponent; `percent` holds what that gives.

What `attribution` returns:

    table           [{images: published|random, labels: hard|published|recorded|teacher, regime,
                    key, lr, accuracy: interval, augmented: null where tuning chose, else true or
                    false}]
    image_share     [{regime, ...interval, verdict, draw: {half, verdict}}]; `draw` is the interval
                    in which the share of one more random draw falls: inside of it, S may be luck
    label_share     interval, or null where labels are hard or nothing is gained
    dd_ranking      {regime, hlr, ior, lrs, ars, percent: {lrs, ars}}, null where the whole set was
                    not measured
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from distill_datasets.training.intervals import Interval, paired, student_t

Accuracies = Mapping[int, float]
"""The accuracy of every student of a row, by its seed."""


def label_robust_score(ior: float, hlr: float, weight: float = 0.5) -> float:
    """LRS of DD-Ranking, in [0, 1] for accuracies in [0, 1].

    Source: DD-Ranking (arXiv:2505.13300), definition of the label-robust score.
    """
    return _score(weight * ior - (1 - weight) * hlr)


def augmentation_robust_score(with_: float, without: float, weight: float = 0.5) -> float:
    """ARS of DD-Ranking: of the gain over random images with and without augmentation.

    Source: DD-Ranking (arXiv:2505.13300), definition of the augmentation-robust score.
    """
    return _score(weight * with_ + (1 - weight) * without)


def _score(exponent: float) -> float:
    return (math.exp(exponent) - math.exp(-1)) / (math.e - math.exp(-1))


def of_a_draw(differences: Sequence[float]) -> Interval:
    """The interval in which the mean difference falls when what is measured is one more draw.

    With n draws that differ by s it is t s sqrt(1 + 1 / n) wide to both sides, where the interval
    of the mean is t s sqrt(1 / n).
    """
    interval, count = Interval.of(differences), len(differences)
    if interval.std is None:
        return interval
    half = student_t(count - 1) * interval.std * math.sqrt(1 + 1 / count)
    return interval._replace(half=half)


def image_share(own: Accuracies, random: Accuracies) -> dict[str, Any]:
    """What the images gain over random real ones with the same labels."""
    share = paired(own, random)
    drawn = of_a_draw([own[seed] - random[seed] for seed in sorted(own.keys() & random.keys())])
    lucky = {"half": drawn.half, "verdict": drawn.verdict}
    return {**share.as_json(), "verdict": share.verdict, "draw": lucky}


def label_share(soft: Accuracies, hard: Accuracies, random_hard: Accuracies) -> Interval | None:
    """The share of the gain that labels have, with its interval by the jackknife over seeds.

    None where the gain over random images with hard labels is not clearly above zero.
    """
    seeds = sorted(soft.keys() & hard.keys() & random_hard.keys())
    gain = Interval.of([soft[seed] - random_hard[seed] for seed in seeds])
    if gain.verdict != "better":
        return None

    def share(chosen: Sequence[int]) -> float:
        labels = statistics.fmean(soft[seed] - hard[seed] for seed in chosen)
        return labels / statistics.fmean(soft[seed] - random_hard[seed] for seed in chosen)

    count, whole = len(seeds), share(seeds)
    left_out = [share([other for other in seeds if other != seed]) for seed in seeds]
    # pseudo-values: their mean has the bias taken off, their spread is that of the ratio
    pseudo = [count * whole - (count - 1) * each for each in left_out]
    return Interval.of(pseudo)._replace(mean=whole)


def dd_ranking(
    regime: str,
    whole: Accuracies,
    hard: Accuracies,
    own: Accuracies,
    random: Accuracies,
    augmented: tuple[Accuracies, Accuracies],
    still: tuple[Accuracies, Accuracies],
) -> dict[str, Any]:
    """The four scores, and the two of percentages.

    Args:
        regime: the richest of the published rows.
        whole: students of the whole source.
        hard: of the published images with hard labels.
        own: of the published images in the regime.
        random: of random images in the regime.
        augmented: published and random images in the regime, augmented.
        still: the same without augmentation.
    """

    def mean(found: Accuracies) -> float:
        return statistics.fmean(found.values())

    def gain(pair: tuple[Accuracies, Accuracies]) -> float:
        return mean(pair[0]) - mean(pair[1])

    hlr, ior, with_, without = (
        mean(whole) - mean(hard),
        gain((own, random)),
        *map(gain, (augmented, still)),
    )
    return {
        "regime": regime,
        "hlr": hlr,
        "ior": ior,
        "lrs": label_robust_score(ior, hlr),
        "ars": augmentation_robust_score(with_, without),
        "percent": {
            "lrs": label_robust_score(100 * ior, 100 * hlr),
            "ars": augmentation_robust_score(100 * with_, 100 * without),
        },
    }
