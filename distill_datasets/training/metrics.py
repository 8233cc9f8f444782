"""The share of images that a network gets right.

Shape suffixes: B images, N all of them, C channels, H W pixels, K classes.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from distill_datasets.types import Batch


class Score(NamedTuple):
    """Shares of images that a network gets right, in [0, 1]: of all, and of every class.

    A class without images has None.
    """

    accuracy: float
    per_class: list[float | None]


@torch.no_grad()
def score(module: nn.Module, batches: Iterable[Batch]) -> Score:
    """Count the images whose largest logit is the largest target, in one pass."""
    module.eval()
    predicted, labels, classes = list[Tensor](), list[Tensor](), 0
    for images_BCHW, targets_BK in batches:
        predicted.append(module(images_BCHW).argmax(dim=1))
        labels.append(targets_BK.argmax(dim=1))
        classes = targets_BK.shape[1]
    labels_N = torch.cat(labels)
    right_N = labels_N[torch.cat(predicted) == labels_N]
    pairs = [
        torch.bincount(chosen_N, minlength=classes).tolist() for chosen_N in (right_N, labels_N)
    ]
    return Score(
        len(right_N) / len(labels_N),
        [right / count if count else None for right, count in zip(*pairs, strict=True)],
    )


def accuracy(module: nn.Module, batches: Iterable[Batch]) -> float:
    """Share of images whose largest logit is the largest target, in [0, 1]."""
    return score(module, batches).accuracy


@torch.no_grad()
def taken_for(module: nn.Module, batches: Iterable[Batch], attacked: int, target: int) -> float:
    """Share of the images of class `attacked` whose largest logit is that of `target`."""
    module.eval()
    hits = total = 0
    for images_BCHW, targets_BK in batches:
        own_B = targets_BK.argmax(dim=1) == attacked
        predicted_B = module(images_BCHW).argmax(dim=1)
        hits += int((predicted_B[own_B] == target).sum())
        total += int(own_B.sum())
    return hits / max(1, total)
