"""What students are trained on: a contestant; and what distilled images are compared with.

Those are as many real images: drawn, chosen or averaged.

Shape suffixes: N images, B a batch, K classes, C channels, H W pixels.
"""

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from distill_datasets.data.real import RealData
from distill_datasets.runtime.draws import Draw, draws
from distill_datasets.selection.coresets import ClassMean, Herding, KCenter
from distill_datasets.selection.selection import Selection
from distill_datasets.training.examples import Examples, Stored

CHOSEN: list[Selection] = [Herding(), KCenter(), ClassMean()]


@dataclass(frozen=True)
class Contestant:
    """Something that students are trained on.

    `trained` gives networks that are measured as they are, which `network` names. `pair` is another
    contestant whose students draw the same: each student's first weights, and random images.
    """

    source: str
    students: int
    steps: int
    examples: Callable[[Draw], Examples]
    images: int
    pixels: int
    follows: bool = False
    """Whether its students take the published step sizes and order, where the recipe says so."""
    trained: Callable[[int], nn.Module] | None = None
    network: str | None = None
    pair: str | None = None


def random_rows(real: RealData, images: int, draw: Draw) -> Tensor:
    """Random training rows, as evenly over the classes as their number allows."""
    rng = draw("random_real")
    order_N = torch.randperm(len(real.train.labels_N), generator=rng)
    labels_N = real.train.labels_N.cpu()[order_N]
    classes_K = torch.randperm(real.shape.k, generator=rng)
    # a stable sort: the rows of a class stand together, in the order in which they were drawn
    by_class_N = order_N[labels_N.sort(stable=True).indices]
    count_K = labels_N.bincount(minlength=real.shape.k)
    first_K = count_K.cumsum(0) - count_K
    turn_B = torch.arange(images)
    class_B = classes_K[turn_B % real.shape.k]
    return by_class_N[first_K[class_B] + turn_B // real.shape.k % count_K[class_B]]


def random_real(real: RealData, images: int, draw: Draw) -> Examples:
    """Random real images with hard labels, as evenly over the classes as the number allows."""
    device, channels = real.train.labels_N.device, real.shape.c
    images_BCHW, targets_BK = real.select(random_rows(real, images, draw).to(device))
    nothing = torch.zeros(channels, device=device)
    return Stored(images_BCHW, targets_BK, nothing, nothing + 1, unit=1.0)


def chosen_real(
    real: RealData, images: int, selection: Selection, seed: int
) -> Callable[[Draw], Stored]:
    """Images of a selection with hard labels, as evenly over the classes as the number allows.

    The selection is made once. Every student draws for itself which classes have an image more
    than the others.
    """
    classes = real.shape.k
    one_at_a_time = threading.Lock()
    draw_selection = draws(seed, "evaluate", selection.name)

    @functools.cache
    def selected(per_class: int) -> Tensor:
        found_NCHW = selection.images(real, per_class, draw_selection("select", per_class))
        return found_NCHW.view(classes, per_class, *found_NCHW.shape[1:])

    def of_every_class(per_class: int) -> Tensor:
        with one_at_a_time:  # students ask side by side, and a cache would let them all work
            return selected(per_class)

    def examples(draw: Draw) -> Stored:
        each, more = divmod(images, classes)
        order_K = torch.randperm(classes, generator=draw("classes")).tolist()
        of_class = [each + (label in order_K[:more]) for label in range(classes)]
        chosen = [(label, count) for label, count in enumerate(of_class) if count]
        images_NCHW = torch.cat([of_every_class(count)[label] for label, count in chosen])
        labels_N = torch.tensor([label for label, count in chosen for _ in range(count)])
        normalization = real.normalization
        return Stored(
            images_NCHW,
            functional.one_hot(labels_N, classes).float(),
            normalization.display_mean_C.cpu(),
            normalization.display_std_C.cpu(),
            unit=1.0,
        ).to(real.train.labels_N.device)

    return examples
