"""What targets are: one class, any number of labels at once, or numbers; and what follows from it.

A network has K outputs in every case. With `classes` a softmax of them is a distribution over
classes, with `labels` a sigmoid of each is the probability of that label, and with `values` they
are the numbers themselves.

Shape suffixes: B examples, K outputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
import torch.nn.functional as F

from distill_datasets.types import Task

if TYPE_CHECKING:
    from torch import Tensor

LINKS: dict[Task, str] = {"classes": "softmax", "labels": "sigmoid", "values": "identity"}
"""How outputs become targets."""
METRICS: dict[Task, str] = {"classes": "accuracy", "labels": "mAP", "values": "R2"}
"""What `accuracy` in the results is: the share of images that are right; the mean over labels of
the average precision; the mean over numbers of the share of variance that is explained."""


class OutputWords(NamedTuple):
    """What one of the outputs is called, what several are, and what is measured of one."""

    one: str
    many: str
    measured: str


OUTPUTS: dict[Task, OutputWords] = {
    "classes": OutputWords("class", "classes", "recall"),
    "labels": OutputWords("label", "labels", "average precision"),
    "values": OutputWords("number", "numbers", "R2"),
}

SUM_TOLERANCE = 1e-3


def loss(
    task: Task,
    outputs_BK: Tensor,
    targets_BK: Tensor,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """What a network lowers: of an example, a sum over its outputs; of values, halved squares."""
    if task == "classes":
        return F.cross_entropy(outputs_BK, targets_BK, reduction=reduction)
    if task == "labels":
        each_BK = F.binary_cross_entropy_with_logits(outputs_BK, targets_BK, reduction="none")
    else:
        each_BK = 0.5 * (outputs_BK - targets_BK).square()
    each_B = each_BK.sum(dim=1)
    return each_B.mean() if reduction == "mean" else each_B.sum()


def as_targets(task: Task, outputs_BK: Tensor) -> Tensor:
    """The targets that outputs stand for."""
    if task == "classes":
        return outputs_BK.softmax(dim=1)
    return outputs_BK.sigmoid() if task == "labels" else outputs_BK


def as_outputs(task: Task, targets_BK: Tensor) -> Tensor:
    """The inverse of `as_targets`; of a distribution the outputs that are centered."""
    tiny = torch.finfo(targets_BK.dtype).tiny
    if task == "classes":
        log_BK = targets_BK.clamp(min=tiny).log()
        return log_BK - log_BK.mean(dim=1, keepdim=True)
    return targets_BK.logit(eps=1e-6) if task == "labels" else targets_BK


def centered(task: Task, targets_BK: Tensor) -> Tensor:
    """Real targets as ridge regression fits them: around zero."""
    if task == "classes":
        return targets_BK - targets_BK.mean(dim=1, keepdim=True)
    return targets_BK - 0.5 if task == "labels" else targets_BK


def unfit(task: Task, targets_NK: Tensor) -> str | None:
    """Why these are no targets, in words; None where they are."""
    if task == "classes":
        off = float((targets_NK.sum(dim=1, dtype=torch.float32) - 1).abs().max())
        if off > SUM_TOLERANCE or float(targets_NK.min()) < 0:
            return f"soft labels must be non-negative with sum 1; a row is off by {off:.3g}"
    elif task == "labels" and not 0 <= float(targets_NK.min()) <= float(targets_NK.max()) <= 1:
        return "labels must be probabilities in [0, 1]"
    return None
