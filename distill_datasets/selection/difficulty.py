"""How hard every training image is for networks that learn all of them, and choices by that.

    EL2N(x)       = mean over networks of || softmax(f(x)) - onehot(y) ||, early in training
    forgetting(x) = how often x goes from right to wrong from one pass to the next; an image that is
                    never right counts as one that is forgotten in every pass
    LBPE(x)       = mean over the passes that end with the most images right of
                    || softmax(f(x)) - label(x) ||

Hard images serve large selections and easy ones small selections. CCS drops the hardest images and
takes as many from every stratum of the scores that are left.

Shape suffixes: N training images, B a batch, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from distill_datasets.models.initialization import initialize
from distill_datasets.runtime.memory import images_at_once
from distill_datasets.selection.selection import repeated
from distill_datasets.training.examples import Stored, Whole
from distill_datasets.training.loop import SupervisedTraining, Training, rate, steps_of
from distill_datasets.types import Shape

if TYPE_CHECKING:
    from torch import Tensor, nn

    from distill_datasets.data.real import RealData
    from distill_datasets.runtime.draws import Draw

STRATA = 50
DROPPED = 0.3
"""The share of the hardest images that CCS leaves out."""
EARLY = 0.3
"""The share of the passes after which EL2N is taken."""


@dataclass(frozen=True)
class Difficulty:
    """Scores of all training images by one network, and the network.

    Attributes:
        el2n_N: the length of the error of its probabilities, early in training.
        forgotten_N: how often an image was forgotten.
        module: after the last pass, in eval mode.
    """

    el2n_N: Tensor
    forgotten_N: Tensor
    module: nn.Module


def difficulty(
    real: RealData, settings: Training, passes: int, draw: Draw, device: torch.device
) -> Difficulty:
    """Train a network on all training images and keep a record of what it gets right.

    Args:
        real: the source.
        settings: network, batch, optimizer and schedule.
        passes: over the training images.
        draw: the randomness of this network.
        device: where to train.

    Raises:
        DivergedError: the loss is not finite.

    Source: EL2N (arXiv:2107.07075), definition 4.2; forgetting (arXiv:1812.05159), section 3.
    """
    module = settings.network.build(real.shape).to(device)
    initialize(module, draw("network"))
    examples = Whole(real)
    per_pass = steps_of(1, examples.count, settings.batch)

    def step_size(step: int) -> float:
        return settings.optimizer.lr * rate(settings.schedule, step, passes * per_pass)

    training = SupervisedTraining(settings, module, examples, draw, step_size)
    gradient = training.alone()
    labels_N = real.train.labels_N.cpu()
    right_N = torch.zeros(len(labels_N), dtype=torch.bool)
    ever_N, forgotten_N, el2n_N = right_N.clone(), torch.zeros(len(labels_N)), torch.empty(0)
    for turn in range(passes):
        training.train(gradient, (turn + 1) * per_pass)
        probabilities_NK = _probabilities(module, real, device)
        if turn + 1 == max(1, round(EARLY * passes)):
            error_NK = probabilities_NK.clone()
            error_NK[torch.arange(len(labels_N)), labels_N] -= 1
            el2n_N = error_NK.norm(dim=1)
        now_N = probabilities_NK.argmax(dim=1) == labels_N
        forgotten_N += (right_N & ~now_N).float()
        right_N, ever_N = now_N, ever_N | now_N
        module.train()
    forgotten_N[~ever_N] = passes
    return Difficulty(el2n_N, forgotten_N, module.eval())


def prediction_errors(
    examples: Stored,
    settings: Training,
    shape: Shape,
    passes: int,
    best: int,
    draw: Draw,
    device: torch.device,
    advance: Callable[[int], object],
) -> Tensor:
    """The LBPE of all distilled examples (N,) by one network that trains on them alone.

    Args:
        examples: on the device.
        settings: network, batch, optimizer and augmentation.
        shape: of an example, and the number of classes.
        passes: over the examples.
        best: passes that the score is a mean of: those with the most examples right, of equal ones
            the first.
        draw: the randomness of this network.
        device: where to train.
        advance: is told of every pass.

    Raises:
        DivergedError: the loss is not finite.

    Source: YOCO (arXiv:2310.14019), rule 1.
    """
    module = settings.network.build(shape).to(device)
    initialize(module, draw("network"))
    training = SupervisedTraining(settings, module, examples, draw, lambda _: settings.optimizer.lr)
    gradient, per_pass = training.alone(), steps_of(1, examples.count, settings.batch)
    label_N = examples.targets_NK.argmax(dim=1)
    right: list[int] = []
    errors: list[Tensor] = []
    for turn in range(passes):
        training.train(gradient, (turn + 1) * per_pass)
        share_NK = _shares(module, examples, shape, device)
        right.append(int((share_NK.argmax(dim=1) == label_N).sum()))
        errors.append((share_NK - examples.targets_NK).norm(dim=1).cpu())
        module.train()
        advance(1)
    # `sorted` is stable: of passes alike the first come first
    chosen = sorted(range(passes), key=lambda turn: -right[turn])[:best]
    return torch.stack([errors[turn] for turn in chosen]).mean(dim=0)


@torch.no_grad()
def _shares(module: nn.Module, examples: Stored, shape: Shape, device: torch.device) -> Tensor:
    """What a network says of every example, (N, K)."""
    module.eval()
    parts = torch.split(torch.arange(examples.count, device=device), images_at_once(shape, device))
    return torch.cat([module(examples(part).images_BCHW).softmax(dim=1) for part in parts])


@torch.no_grad()
def _probabilities(module: nn.Module, real: RealData, device: torch.device) -> Tensor:
    """Of every class for every training image, (N, K), on the CPU."""
    module.eval()
    rows_N = torch.arange(len(real.train.labels_N), device=device)
    parts = torch.split(rows_N, images_at_once(real.shape, device))
    return torch.cat([module(real.select(part).images_BCHW).softmax(1).cpu() for part in parts])


def stratified(
    scores_N: Tensor,
    count: int,
    rng: torch.Generator,
    strata: int = STRATA,
    dropped: float = DROPPED,
) -> list[int]:
    """Places of images, as many from every stratum of their scores as it has or gets.

    The hardest share is dropped, but no more than leaves enough. The range of what is left is cut
    into strata of equal width; beginning with the smallest, each gives its share of what is still
    to be chosen.

    Source: CCS (arXiv:2210.15809), algorithm 1.
    """
    order_N = scores_N.sort(stable=True).indices
    kept_N = order_N[: max(count, len(order_N) - int(dropped * len(order_N)))]
    low, high = scores_N[kept_N].min(), scores_N[kept_N].max()
    width = (high - low).clamp(min=torch.finfo(torch.float32).tiny) / strata
    stratum_N = ((scores_N[kept_N] - low) / width).long().clamp(max=strata - 1)
    members = [kept_N[stratum_N == stratum] for stratum in range(strata)]
    members = sorted((own_N for own_N in members if len(own_N)), key=len)
    chosen, left = list[int](), count
    for place, own_N in enumerate(members):
        share = min(len(own_N), left // (len(members) - place))
        chosen += own_N[torch.randperm(len(own_N), generator=rng)[:share]].tolist()
        left -= share
    return chosen


def easiest(scores_N: Tensor, count: int) -> list[int]:
    """Places of the images of the lowest scores, of equal ones the first."""
    found: list[int] = scores_N.sort(stable=True).indices[:count].tolist()
    return found


@dataclass(frozen=True)
class ByDifficulty:
    """Training images of every class by their scores.

    Attributes:
        name: of the choice.
        scores_N: of all training images of the source that is asked about.
        easy: whether the easiest are taken, or CCS chooses.
    """

    name: str
    scores_N: Tensor
    easy: bool

    def images(self, real: RealData, per_class: int, rng: torch.Generator) -> Tensor:
        """Displayable images (K * per_class, C, H, W) of all classes in order."""
        real.warn_of_few(per_class)
        rows = []
        for own_N in real.rows_of_class:
            own_N = own_N.cpu()
            count, scores = min(per_class, len(own_N)), self.scores_N[own_N]
            places = easiest(scores, count) if self.easy else stratified(scores, count, rng)
            rows.append(own_N[repeated(places, per_class)])
        return real.displayable(torch.cat(rows))
