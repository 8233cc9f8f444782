"""What a set gives away of the images and the labels it was made from (T3).

Shape suffixes: N rows of the set, X images asked about, S clean sets, B a batch, K classes.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional

from distill_datasets.evaluation.audit.findings import Measurement
from distill_datasets.evaluation.audit.networks import Effort, activations, student_of
from distill_datasets.runtime.memory import images_at_once
from distill_datasets.training.examples import Stored
from distill_datasets.training.metrics import accuracy

if TYPE_CHECKING:
    from torch import Tensor, nn

    from distill_datasets.data.real import RealData
    from distill_datasets.evaluation.audit.published import Rows
    from distill_datasets.runtime.draws import Draw

ASKED = 1000
"""Training images whose use is asked about, and as many test images."""
FALSE_ALARMS = 0.01
FEWEST_OUT = 4
"""Clean sets without an image that tell how networks that have not seen it answer."""


class Asked(NamedTuple):
    """The images asked about, rows of each split."""

    train_X: Tensor
    test_X: Tensor


def asked_about(real: RealData, draw: Draw) -> Asked:
    """Random rows of both splits, the same for the set and for all clean ones."""
    rng = draw("asked")
    return Asked(*(
        torch.randperm(len(split.labels_N), generator=rng)[:ASKED]
        for split in (real.train, real.test)
    ))  # fmt: skip


def confidence(real: RealData, students: Sequence[nn.Module], asked: Asked) -> Tensor:
    """log p - log(1 - p) of the right class, mean over students, of both splits' images, (X,).

    Source: LiRA (arXiv:2112.03570), equation 4.
    """
    device, found = real.train.labels_N.device, []
    for split, rows_X in zip((real.train, real.test), asked, strict=True):
        for row_B in torch.split(rows_X, 512):
            pixels_BCHW = split.images_NCHW[row_B.to(split.images_NCHW.device)].to(device)
            images_BCHW = real.normalization.apply(pixels_BCHW)
            labels_B1 = split.labels_N[row_B.to(device)][:, None]
            said = torch.stack([_log_odds(student, images_BCHW, labels_B1) for student in students])
            found.append(said.mean(dim=0).cpu())
    return torch.cat(found)


def _log_odds(student: nn.Module, images_BCHW: Tensor, labels_B1: Tensor) -> Tensor:
    log_p_BK = functional.log_softmax(activations(student, images_BCHW)[1].double(), dim=1)
    right_B = log_p_BK.gather(1, labels_B1)[:, 0]
    others_BK = log_p_BK.scatter(1, labels_B1, -math.inf)
    return (right_B - others_BK.logsumexp(dim=1)).clamp(-50, 50)


def membership(own_X: Tensor, shadows_SX: Tensor, used_SX: Tensor, asked: Asked) -> Measurement:
    """The share of training images whose use shows, where 1 % of test images seem used.

    An image's confidence is compared with the normal distribution of what networks of clean sets
    without it have. Test images, which nobody has used, say which deviation is rare.

    Args:
        own_X: the confidence of the set's students, training images first.
        shadows_SX: that of clean sets.
        used_SX: which clean set shows which image.
        asked: the images.

    Source: LiRA (arXiv:2112.03570), offline, with sets of the source as shadows.
    """
    out_SX = torch.where(used_SX, torch.nan, shadows_SX)
    enough_X = (~used_SX).sum(dim=0) >= FEWEST_OUT
    mean_X = out_SX.nanmean(dim=0)
    std_X = (out_SX - mean_X).square().nanmean(dim=0).sqrt().clamp(min=1e-3)
    z_X = (own_X - mean_X) / std_X
    count = len(asked.train_X)
    train_X, test_X = z_X[:count][enough_X[:count]], z_X[count:][enough_X[count:]]
    if not len(train_X) or not len(test_X):
        return Measurement(0.0)
    bound = float(test_X.quantile(1 - FALSE_ALARMS))
    seen = int((train_X > bound).sum())
    order_X = z_X[:count].argsort(descending=True)[: min(seen, 10)]
    named = [f"training image {int(row)}" for row in asked.train_X[order_X]]
    return Measurement(seen / len(train_X), named)


def membership_of_clean(shadows_SX: Tensor, used_SX: Tensor, asked: Asked) -> list[float]:
    """The same share of every clean set, among images that it does not show, beside the others."""
    found = []
    for place in range(len(shadows_SX)):
        others = [other for other in range(len(shadows_SX)) if other != place]
        unused_X = ~used_SX[place]
        train = len(asked.train_X)
        left = Asked(asked.train_X[unused_X[:train]], asked.test_X[unused_X[train:]])
        found.append(
            membership(
                shadows_SX[place][unused_X],
                shadows_SX[others][:, unused_X],
                used_SX[others][:, unused_X],
                left,
            ).value
        )
    return found


def on_noise(rows: Rows, real: RealData, draw: Draw, effort: Effort, *, hard: bool) -> float:
    """Test accuracy of networks trained on noise with the labels of the set.

    Args:
        rows: whose labels are taken.
        real: the source.
        draw: of noise and networks.
        effort: how many networks, and how long.
        hard: whether only the largest share is taken.

    Source: memorized labels, "Soft labels can leak held-out teacher knowledge" (ICLR 2026).
    """
    device, shape = real.train.labels_N.device, real.shape
    size = (len(rows.labels_N), shape.c, shape.h, shape.w)
    noise_NCHW = torch.randn(size, generator=draw("noise"))
    hard_NK = functional.one_hot(rows.labels_N, shape.k).float()
    labels_NK = hard_NK if hard else rows.targets_NK
    examples = Stored(noise_NCHW, labels_NK, None).to(device)
    at_once = images_at_once(shape, device)
    return statistics.fmean(
        accuracy(
            student_of(examples, real, _of_student(draw, number), effort),
            real.test_batches(at_once),
        )
        for number in range(effort.students)
    )


def _of_student(draw: Draw, number: int) -> Draw:
    return lambda *what: draw("noise student", number, *what)
