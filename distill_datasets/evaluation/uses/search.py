"""Architecture search on a distilled set: does it put networks in the order of the whole set?

Small networks are trained on the set, on random real images of the same bytes, and for one epoch of
the whole set, and are scored on training images that were held out. The order that this gives is
compared with that of their test accuracy after training on the whole set.

Shape suffixes: M networks.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from distill_datasets.evaluation.contestants import Target, read_target
from distill_datasets.evaluation.held_out import tenth_held_out
from distill_datasets.evaluation.uses.units import (
    kept_bytes,
    measured,
    real_per_class,
    real_rows,
    training,
)
from distill_datasets.files.artifacts import fingerprint, write_json
from distill_datasets.models.convnets import ConvNet
from distill_datasets.runtime.draws import draws
from distill_datasets.runtime.memory import images_at_once
from distill_datasets.runtime.processes import Run
from distill_datasets.training.examples import Examples
from distill_datasets.training.intervals import Interval, paired
from distill_datasets.training.metrics import predictions
from distill_datasets.training.student import train_student

if TYPE_CHECKING:
    from distill_datasets.data.real import RealData

VERSION = 1
PROXIES = {
    "published": "the distilled set",
    "random_real": "random real images of the same bytes",
    "epoch": "one epoch of the whole set",
}
BATCH, SCORED, TOP = 64, 1000, 3
TRUTHS = 2
"""Networks of every kind that are trained on the whole set; their mean is the truth."""


def networks() -> list[ConvNet]:
    """The 24 networks that are put in order."""
    norms: tuple[Literal["instance", "none"], ...] = ("instance", "none")
    return [
        ConvNet(depth=depth, width=width, norm=norm)
        for depth, width, norm in itertools.product((1, 2, 3), (4, 8, 16, 32), norms)
    ]


def run_search(
    folder: Path,
    real: RealData,
    run: Run,
    *,
    steps: int = 150,
    whole_steps: int = 600,
    students: int = 3,
) -> dict[str, Any]:
    """Measure how a published folder puts networks in order.

    Args:
        folder: in the published layout.
        real: the source.
        run: seed, folder, processes and device.
        steps: of every network on the set, and on as many bytes of real images.
        whole_steps: of every network on the whole set.
        students: times that all networks are trained on each proxy.

    Returns:
        Of every proxy Spearman's and Kendall's correlation with the truth, and the regret of its
        first and of the best of its first three: accuracies in [0, 1] below that of the best.
    """
    target = read_target(folder, real)
    rest = tenth_held_out(real, SCORED, draws(run.seed, "search")("held out"))
    tried, deciding = networks(), [VERSION, target.identity, steps, whole_steps, run.seed]
    own = run.folder / f"search-{fingerprint(deciding)}"
    epoch = max(1, len(rest.train.labels_N) // BATCH)
    taken = {"published": steps, "random_real": steps, "epoch": epoch}
    units = {
        f"whole-{number:02d}-{seed}": partial(
            _score, tried[number], "whole", target, rest, real, run, whole_steps, seed
        )
        for number in range(len(tried))
        for seed in range(TRUTHS)
    } | {
        f"{proxy}-{number:02d}-{seed}": partial(
            _score, tried[number], proxy, target, rest, rest, run, taken[proxy], seed
        )
        for proxy in PROXIES
        for number in range(len(tried))
        for seed in range(students)
    }
    found = measured(run, "search", own, units)

    def of(kind: str, seed: int) -> list[float]:
        return [
            float(found[f"{kind}-{number:02d}-{seed}"]["accuracy"]) for number in range(len(tried))
        ]

    truth_M = [
        sum(each) / TRUTHS for each in zip(*(of("whole", s) for s in range(TRUTHS)), strict=True)
    ]
    scores = {proxy: [of(proxy, seed) for seed in range(students)] for proxy in PROXIES}
    said = {
        "use": "search",
        "networks": [
            {"depth": each.depth, "width": each.width, "norm": each.norm, "accuracy": accuracy}
            for each, accuracy in zip(tried, truth_M, strict=True)
        ],
        "bytes": kept_bytes(target),
        "real_per_class": real_per_class(target, real),
        "students": students,
        "whole_steps": whole_steps,
        "rows": [_row(proxy, taken[proxy], scores[proxy], truth_M) for proxy in PROXIES],
        "differences": [
            {"against": proxy, **_difference(scores["published"], scores[proxy], truth_M)}
            for proxy in PROXIES
            if proxy != "published"
        ],
    }
    if run.runtime.is_main:
        write_json(own / "search.json", said)
    return said


def _score(
    network: ConvNet,
    kind: str,
    target: Target,
    trained: RealData,
    asked: RealData,
    run: Run,
    steps: int,
    seed: int,
) -> dict[str, Any]:
    """The accuracy of one network, trained on one of the proxies or on the whole set."""
    draw, device = draws(run.seed, "search", kind, seed), run.runtime.device
    examples: Examples
    if kind == "published":
        examples = target.stored
    elif kind == "random_real":
        each = real_per_class(target, trained)
        rows = [
            own_N.cpu()[torch.randperm(len(own_N), generator=draw("rows", label))[:each]]
            for label, own_N in enumerate(trained.rows_of_class)
        ]
        examples = real_rows(trained, torch.cat(rows))
    else:
        examples = real_rows(trained, torch.arange(len(trained.train.labels_N)))
    settings = training(network, steps, BATCH)
    module = train_student(settings, steps, examples, trained.shape, draw, device)
    ask = partial(asked.test_batches, images_at_once(asked.shape, device))
    return {"seed": seed, "accuracy": predictions(module, ask).score().accuracy}


def _row(
    proxy: str, steps: int, scores_SM: list[list[float]], truth_M: list[float]
) -> dict[str, Any]:
    mean_M = [sum(each) / len(each) for each in zip(*scores_SM, strict=True)]
    order = sorted(range(len(mean_M)), key=lambda number: -mean_M[number])
    best = max(truth_M)
    return {
        "proxy": proxy,
        "words": PROXIES[proxy],
        "steps": steps,
        "spearman": Interval.of([spearman(each, truth_M) for each in scores_SM]).as_json(),
        "kendall": Interval.of([kendall(each, truth_M) for each in scores_SM]).as_json(),
        "spearman_of_means": spearman(mean_M, truth_M),
        "kendall_of_means": kendall(mean_M, truth_M),
        "regret": best - truth_M[order[0]],
        "regret_of_three": best - max(truth_M[number] for number in order[:TOP]),
    }


def _difference(
    ours_SM: list[list[float]], theirs_SM: list[list[float]], truth_M: list[float]
) -> dict[str, Any]:
    """Published minus another proxy in Kendall's correlation, by the seed."""
    found = [
        dict(enumerate(kendall(each, truth_M) for each in scores))
        for scores in (ours_SM, theirs_SM)
    ]
    interval = paired(*found)
    return interval.as_json() | {"verdict": interval.verdict}


def ranks(values: Sequence[float]) -> list[float]:
    """The rank of every value from 1; equal ones share the mean of theirs."""
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2
        for value in values
    ]


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's correlation of two orders; 0 where one of them has no order."""
    pairs = [torch.tensor(ranks(each), dtype=torch.float64) for each in (one, other)]
    left, right = (each - each.mean() for each in pairs)
    size = float(left.norm() * right.norm())
    return float(left @ right) / size if size else 0.0


def kendall(one: Sequence[float], other: Sequence[float]) -> float:
    """Kendall's tau-b of two orders; 0 where one of them has no order."""
    agree, left, right = 0, 0, 0
    for (a, b), (c, d) in itertools.combinations(zip(one, other, strict=True), 2):
        first, second = (a > c) - (a < c), (b > d) - (b < d)
        agree += first * second
        left += first != 0
        right += second != 0
    return agree / (left * right) ** 0.5 if left and right else 0.0
