"""What a network gets right, and how well its probabilities tell when.

Shape suffixes: B images, N all of them, C channels, H W pixels, K classes.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill_datasets.runtime.precision import Precision, at_least_float32, computing_in
from distill_datasets.training.screening import pays, screened
from distill_datasets.types import Batch, Task


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

    def by_group(self, groups_N: Tensor, groups: int) -> list[list[float | None]]:
        """The accuracy of every class on every group; None where there are no such images."""
        shape = (self.logits_NK.shape[1], groups)
        places_N = self.labels_N * groups + groups_N
        right_N = places_N[self.logits_NK.argmax(dim=1) == self.labels_N]
        tables = [
            torch.bincount(chosen_N, minlength=shape[0] * shape[1]).view(shape).tolist()
            for chosen_N in (right_N, places_N)
        ]
        return [
            [right / count if count else None for right, count in zip(*rows, strict=True)]
            for rows in zip(*tables, strict=True)
        ]

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
def answers(
    module: nn.Module, batches: Iterable[Batch], precision: Precision = "float32"
) -> Answers:
    """Ask a network about images; its logits are float32."""
    module.eval()
    logits, labels = list[Tensor](), list[Tensor]()
    for images_BCHW, targets_BK in batches:
        with computing_in(precision, images_BCHW.device):
            logits_BK = module(images_BCHW)
        logits.append(at_least_float32(logits_BK))
        labels.append(targets_BK.argmax(dim=1))
    return Answers(torch.cat(logits), torch.cat(labels))


def predictions(
    module: nn.Module, ask: Callable[[], Iterable[Batch]], precision: Precision = "float32"
) -> Answers:
    """Answers of which only the largest logit of an image is looked at.

    Those of float32 may come from a pass in bfloat16 that tells which of them are sure: the class
    of the largest is the same, the values are not.
    """
    found = screened(module, ask) if precision == "float32" and pays(module) else None
    return answers(module, ask(), precision) if found is None else Answers(*found)


def score(module: nn.Module, batches: Iterable[Batch], precision: Precision = "float32") -> Score:
    """Count the images whose largest logit is the largest target, in one pass."""
    return answers(module, batches, precision).score()


def measure(
    module: nn.Module,
    ask: Callable[[], Iterable[Batch]],
    task: Task,
    precision: Precision = "float32",
    groups_N: Tensor | None = None,
    groups: int = 0,
) -> dict[str, Any]:
    """How good a network is: `accuracy` and `per_class` as in `Score`, of `targets.METRICS`.

    Where targets are no classes, further metrics stand beside them; where images have groups, the
    accuracy of every class on every group, `per_group`.
    """
    if task == "classes":
        told = predictions(module, ask, precision)
        metrics: dict[str, Any] = told.score()._asdict()
        if groups_N is not None:
            metrics["per_group"] = told.by_group(groups_N, groups)
        return metrics
    outputs_NK, targets_NK = _outputs(module, ask(), precision)
    if task == "labels":
        return label_score(outputs_NK, targets_NK)
    return value_score(outputs_NK, targets_NK)


@torch.no_grad()
def _outputs(
    module: nn.Module, batches: Iterable[Batch], precision: Precision
) -> tuple[Tensor, Tensor]:
    """What a network makes of images, in float32, and the targets."""
    module.eval()
    outputs, targets = list[Tensor](), list[Tensor]()
    for images_BCHW, targets_BK in batches:
        with computing_in(precision, images_BCHW.device):
            outputs_BK = module(images_BCHW)
        outputs.append(at_least_float32(outputs_BK))
        targets.append(targets_BK)
    return torch.cat(outputs), torch.cat(targets)


def label_score(logits_NK: Tensor, targets_NK: Tensor) -> dict[str, Any]:
    """Mean average precision over labels that some image has, and F1 at a probability of 1/2.

    The average precision of a label is the mean, over the images that have it, of the share of
    images with the label among those of at least its logit; of equal logits all count.
    """
    precisions = list[float | None]()
    for logits_N, has_N in zip(logits_NK.double().T, targets_NK.T > 0.5, strict=True):
        if not bool(has_N.any()):
            precisions.append(None)
            continue
        # places of equal logits are those of the last of them
        own_P = logits_N[has_N]
        above_P = (logits_N >= own_P[:, None]).sum(dim=1)
        right_P = (own_P >= own_P[:, None]).sum(dim=1)
        precisions.append(float((right_P / above_P).mean()))
    named_NK, has_NK = logits_NK > 0, targets_NK > 0.5
    hits_K = (named_NK & has_NK).sum(dim=0).double()
    both_K = (named_NK.sum(dim=0) + has_NK.sum(dim=0)).double()
    tested = [each for each in precisions if each is not None]
    return {
        "accuracy": sum(tested) / max(1, len(tested)),
        "per_class": precisions,
        "f1_micro": float(2 * hits_K.sum() / both_K.sum().clamp(min=1)),
        "f1_macro": float((2 * hits_K / both_K.clamp(min=1)).mean()),
    }


def value_score(outputs_NK: Tensor, targets_NK: Tensor) -> dict[str, Any]:
    """Mean over numbers of R2, and the mean absolute error in the targets' units.

    A number that is the same in all test images has no R2.
    """
    error_NK = (outputs_NK - targets_NK).double()
    apart_NK = (targets_NK - targets_NK.mean(dim=0)).double()
    left_K, whole_K = error_NK.square().sum(dim=0), apart_NK.square().sum(dim=0)
    explained = [
        1 - left / whole if whole > 0 else None
        for left, whole in zip(left_K.tolist(), whole_K.tolist(), strict=True)
    ]
    tested = [each for each in explained if each is not None]
    return {
        "accuracy": sum(tested) / max(1, len(tested)),
        "per_class": explained,
        "mae": float(error_NK.abs().mean()),
    }


def accuracy(
    module: nn.Module, batches: Iterable[Batch], precision: Precision = "float32"
) -> float:
    """Share of images whose largest logit is the largest target, in [0, 1]."""
    return score(module, batches, precision).accuracy


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
