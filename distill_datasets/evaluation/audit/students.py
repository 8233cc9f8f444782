"""What networks trained on the set show: weak classes, odd activations, triggers (T2).

Shape suffixes: N rows, M rows of a class, B images, C channels, H W pixels, K classes, D features.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional

from distill_datasets.evaluation.audit.findings import Measurement
from distill_datasets.evaluation.audit.networks import Effort, activations
from distill_datasets.runtime.memory import images_at_once
from distill_datasets.training.metrics import predictions

if TYPE_CHECKING:
    from torch import Tensor, nn

    from distill_datasets.data.real import RealData
    from distill_datasets.evaluation.audit.published import Rows
    from distill_datasets.runtime.draws import Draw

FEWEST = 8
"""Rows of a class that clusters and outliers are looked for among."""
MOST = 500
"""Rows of a class whose distances are all computed."""
DIRECTIONS = 10
MINORITY = 0.35
"""A part of a class that is larger is no minority: honest classes fall into halves too."""
SEARCHED = 32
"""Real images that a trigger has to turn."""
MASK_WEIGHT = 0.1
MAD = 1.4826
"""Times the median deviation, of normal numbers, is their standard deviation."""


class _ClassSaid(NamedTuple):
    """A number of one class, and the rows that it is about."""

    value: float
    rows: list[int]


def measured_students(
    rows: Rows, real: RealData, students: Sequence[nn.Module]
) -> dict[str, Measurement]:
    """Every check of T2 but for triggers; those that need more rows than there are give zero."""
    features = [_features(rows, real, student) for student in students]
    return {
        "recall gap": _recall_gap(real, students),
        "activation clusters": _worst_class(rows, features, _clusters),
        "spectral signature": _worst_class(rows, features, _spectral),
    }


def _features(rows: Rows, real: RealData, student: nn.Module) -> Tensor:
    stored = rows.stored(real.normalization.input_space)
    device = real.train.labels_N.device
    return torch.cat([
        activations(student, stored(index_B).images_BCHW.to(device))[0].cpu()
        for index_B in torch.split(torch.arange(stored.count), 256)
    ])  # fmt: skip


def _recall_gap(real: RealData, students: Sequence[nn.Module]) -> Measurement:
    at_once = images_at_once(real.shape, real.train.labels_N.device)
    ask = partial(real.test_batches, at_once)
    every = [predictions(student, ask).score().per_class for student in students]
    recalls = {
        name: statistics.fmean(found)
        for name, of_class in zip(real.class_names, zip(*every, strict=True), strict=True)
        if (found := [recall for recall in of_class if recall is not None])
    }
    worst = min(recalls, key=lambda name: recalls[name])
    return Measurement(statistics.median(recalls.values()) - recalls[worst], [worst])


def _worst_class(
    rows: Rows, features: list[Tensor], look: Callable[[Tensor], _ClassSaid]
) -> Measurement:
    """The class where the mean of a number over students is largest, and its rows."""
    best = Measurement(0.0)
    for label, name in enumerate(rows.class_names):
        own_M = (rows.labels_N == label).nonzero().flatten()[:MOST]
        if len(own_M) < FEWEST:
            continue
        said = [look(features_ND[own_M]) for features_ND in features]
        value = statistics.fmean(each.value for each in said)
        if value > best.value:
            top = max(said, key=lambda each: each.value).rows
            best = Measurement(value, [name, *rows.named(own_M[top])])
    return best


def _clusters(features_MD: Tensor) -> _ClassSaid:
    """The silhouette of two clusters, and the rows of the smaller; zero where it is no minority.

    Source: activation clustering (arXiv:1811.03728), in the main directions in the place of ICA.
    """
    centered_MD = features_MD - features_MD.mean(dim=0)
    left_MM, values_M, _ = torch.linalg.svd(centered_MD, full_matrices=False)
    points_MD = (left_MM * values_M)[:, :DIRECTIONS]
    # the farthest row of the main direction and its opposite start, as nothing is drawn here
    ends = torch.stack([points_MD[points_MD[:, 0].argmax()], points_MD[points_MD[:, 0].argmin()]])
    for _ in range(50):
        of_M = torch.cdist(points_MD, ends).argmin(dim=1)
        if of_M.min() == of_M.max():
            return _ClassSaid(0.0, [])
        moved = torch.stack([points_MD[of_M == part].mean(dim=0) for part in (0, 1)])
        if torch.equal(moved, ends):
            break
        ends = moved
    counts = torch.bincount(of_M, minlength=2)
    small = int(counts.argmin())
    if counts[small] >= MINORITY * len(of_M):
        return _ClassSaid(0.0, [])
    return _ClassSaid(_silhouette(points_MD, of_M), (of_M == small).nonzero().flatten().tolist())


def _silhouette(points_MD: Tensor, of_M: Tensor) -> float:
    """The mean over rows of (b - a) / max(a, b); a row that is alone counts zero.

    a is the mean distance to the others of its part, b that to the other part.
    """
    distance_MM = torch.cdist(points_MD, points_MD)
    own_MM = of_M[:, None] == of_M[None]
    others_M = own_MM.sum(dim=1) - 1
    a_M = (distance_MM * own_MM).sum(dim=1) / others_M.clamp(min=1)
    b_M = (distance_MM * ~own_MM).sum(dim=1) / (~own_MM).sum(dim=1)
    width_M = torch.where(others_M > 0, (b_M - a_M) / torch.maximum(a_M, b_M), 0)
    return float(width_M.mean())


def _spectral(features_MD: Tensor) -> _ClassSaid:
    """How far the farthest row lies along the top singular direction, in robust deviations.

    Source: spectral signatures (arXiv:1811.00636).
    """
    centered_MD = features_MD - features_MD.mean(dim=0)
    left_MM, values_M, _ = torch.linalg.svd(centered_MD, full_matrices=False)
    along_M = left_MM[:, 0] * values_M[0]
    off_M = (along_M - along_M.median()).abs()
    deviation = float(MAD * off_M.median())
    if deviation <= 0:
        return _ClassSaid(0.0, [])
    order_M = off_M.argsort(descending=True).tolist()
    return _ClassSaid(float(off_M.max()) / deviation, order_M)


def pattern_sizes(
    real: RealData, students: Sequence[nn.Module], draw: Draw, effort: Effort
) -> Tensor:
    """The size of the smallest pattern that makes images a class, (K,), mean over students."""
    found = [_smallest_patterns(real, student, draw, effort) for student in students]
    return torch.stack(found).mean(dim=0)


def trigger(
    own_K: Tensor, clean_SK: Tensor, class_names: Sequence[str], stretch: float = 1.0
) -> Measurement:
    """How far the pattern of a class falls below those of the same class in clean sets.

    Args:
        own_K: the sizes of the patterns of a set.
        clean_SK: those of clean sets.
        class_names: of the classes.
        stretch: how much farther honest sets lie from the mean of the clean ones than these do.

    Source: Neural Cleanse (doi:10.1109/SP.2019.00031), which compares the classes of one network
    with each other; some classes honestly take half the pixels of others, so that here each is
    compared with itself.
    """
    deviation_K = stretch * clean_SK.std(dim=0).clamp(min=1e-3)
    index_K = (clean_SK.mean(dim=0) - own_K) / deviation_K
    target = int(index_K.argmax())
    return Measurement(float(index_K[target]), [class_names[target]])


def _smallest_patterns(real: RealData, student: nn.Module, draw: Draw, effort: Effort) -> Tensor:
    """For every class the size of a mask whose pattern makes images that class, (K,) in pixels.

    All classes are searched at once: minimize CE(f((1 - m) x + m d), k) + weight |m|_1 over the
    mask m and the pattern d, both in [0, 1] by a sigmoid.
    """
    shape, device = real.shape, real.train.labels_N.device
    rng = draw("trigger")
    chosen_B = torch.randperm(len(real.train.labels_N), generator=rng)[:SEARCHED]
    shown_BCHW = real.displayable(chosen_B).to(device)
    space = real.normalization.input_space
    mask_KHW = torch.full((shape.k, shape.h, shape.w), -2.0, device=device)
    pattern_KCHW = 0.1 * torch.randn((shape.k, shape.c, shape.h, shape.w), generator=rng)
    mask_KHW, pattern_KCHW = mask_KHW.requires_grad_(), pattern_KCHW.to(device).requires_grad_()
    optimizer = torch.optim.Adam([mask_KHW, pattern_KCHW], lr=0.2, betas=(0.5, 0.9))
    targets_X = torch.arange(shape.k, device=device).repeat_interleave(len(chosen_B))
    for weight in student.parameters():
        weight.requires_grad_(False)
    for _ in range(effort.search_steps):
        mask_K1HW = mask_KHW.sigmoid()[:, None]
        kept = (1 - mask_K1HW)[:, None] * shown_BCHW[None]
        stamped = kept + (mask_K1HW * pattern_KCHW.sigmoid())[:, None]
        logits_XK = student(space.to_student(stamped.flatten(0, 1)))
        loss = functional.cross_entropy(logits_XK, targets_X, reduction="sum") / len(chosen_B)
        loss = loss + MASK_WEIGHT * mask_K1HW.sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return mask_KHW.detach().sigmoid().sum(dim=(1, 2)).cpu()
