"""What a network gets right, and how well its probabilities tell when.

Shape suffixes: B images, N all of them, C channels, H W pixels, K classes.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill_datasets.types import Batch


class Score(NamedTuple):
    """Shares of images that a network gets right, in [0, 1]: of all, and of every class.

    A class without images has None.
    """

    accuracy: float
    per_class: list[float | None]


class Answers(NamedTuple):
    """The logits of a network for some images, and their classes."""

    logits_NK: Tensor
    labels_N: Tensor

    def score(self) -> Score:
        """The images whose largest logit is that of their class."""
        labels_N, classes = self.labels_N, self.logits_NK.shape[1]
        right_N = labels_N[self.logits_NK.argmax(dim=1) == labels_N]
        pairs = [
            torch.bincount(chosen_N, minlength=classes).tolist() for chosen_N in (right_N, labels_N)
        ]
        return Score(
            len(right_N) / len(labels_N),
            [right / count if count else None for right, count in zip(*pairs, strict=True)],
        )

    def confusion_KK(self) -> Tensor:
        """Images by their class (rows) and by the class that they are taken for."""
        classes = self.logits_NK.shape[1]
        places_N = self.labels_N * classes + self.logits_NK.argmax(dim=1)
        return torch.bincount(places_N, minlength=classes**2).view(classes, classes)

    def calibration(self) -> "Calibration":
        """How far the probabilities are from what happens."""
        log_NK = self.logits_NK.double().log_softmax(dim=1)
        confidence_N, predicted_N = log_NK.exp().max(dim=1)
        right_N = (predicted_N == self.labels_N).double()
        # bin b holds confidences in (b / BINS, (b + 1) / BINS]
        bin_N = ((confidence_N * BINS).ceil().long() - 1).clamp(0, BINS - 1)
        gap_B = torch.zeros(BINS, dtype=torch.float64, device=bin_N.device)
        gap_B.index_add_(0, bin_N, right_N - confidence_N)
        one_hot_NK = F.one_hot(self.labels_N, log_NK.shape[1])
        return Calibration(
            ece=float(gap_B.abs().sum() / len(bin_N)),
            nll=float(F.nll_loss(log_NK, self.labels_N)),
            brier=float((log_NK.exp() - one_hot_NK).square().sum(dim=1).mean()),
        )


BINS = 15
"""Of the expected calibration error."""


class Calibration(NamedTuple):
    """Calibration error, negative log-likelihood and Brier score of a network's probabilities.

    ece: mean over images of |accuracy - confidence| of the image's bin, of 15 equally wide ones.
    nll: mean of -log p(class).
    brier: mean of the squared distance of the probabilities to the one-hot class, in [0, 2].

    Source: On Calibration of Modern Neural Networks (arXiv:1706.04599), equation 3.
    """

    ece: float
    nll: float
    brier: float


@torch.no_grad()
def answers(module: nn.Module, batches: Iterable[Batch]) -> Answers:
    """Ask a network about images."""
    module.eval()
    logits, labels = list[Tensor](), list[Tensor]()
    for images_BCHW, targets_BK in batches:
        logits.append(module(images_BCHW))
        labels.append(targets_BK.argmax(dim=1))
    return Answers(torch.cat(logits), torch.cat(labels))


def score(module: nn.Module, batches: Iterable[Batch]) -> Score:
    """Count the images whose largest logit is the largest target, in one pass."""
    return answers(module, batches).score()


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
