"""What distilled images are compared with: as many real ones, drawn, chosen or averaged.

Shape suffixes: N images, B a batch, K classes, C channels, H W pixels.
"""

import functools
import threading
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from distill_datasets.data.source import RealData
from distill_datasets.examples import Examples, Stored
from distill_datasets.runtime import draws
from distill_datasets.selection.averaged import ClassMean
from distill_datasets.selection.chosen import Herding, KCenter
from distill_datasets.types import Draw, Selection

CHOSEN: list[Selection] = [Herding(), KCenter(), ClassMean()]


def random_real(real: RealData, images: int, draw: Draw) -> Examples:
    """Random real images with hard labels, as evenly over the classes as the number allows."""
    rng = draw("random_real")
    order_N = torch.randperm(len(real.train.labels_N), generator=rng)
    labels_N = real.train.labels_N.cpu()[order_N]
    classes_K = torch.randperm(real.shape.k, generator=rng).tolist()
    chosen: list[int] = []
    for turn in range(images):
        of_class = (labels_N == classes_K[turn % real.shape.k]).nonzero().flatten()
        chosen.append(int(order_N[of_class[turn // real.shape.k % len(of_class)]]))
    device, channels = real.train.labels_N.device, real.shape.c
    images_BCHW, targets_BK = real.select(torch.tensor(chosen, device=device))
    nothing = torch.zeros(channels, device=device)
    return Stored(images_BCHW, targets_BK, nothing, nothing + 1, unit=1.0)


def chosen_real(
    real: RealData, images: int, selection: Selection, seed: int
) -> Callable[[Draw], Examples]:
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

    def examples(draw: Draw) -> Examples:
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
