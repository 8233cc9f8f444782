"""Training images that choose: held out, so that what they choose does not show them.

Shape suffixes: N rows of a split, C channels, H W pixels, D pixel values of an image, K classes.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

from distill_datasets.data.features import Features

if TYPE_CHECKING:
    from distill_datasets.data.real import RealData
    from distill_datasets.training.examples import Stored

AT_ONCE = 256
SHARE = 0.2
"""Most of a class's training images that are held out."""


def holding_out(real: RealData, count: int, rng: torch.Generator) -> RealData:
    """The source without some training images, which stand in the place of its test images.

    Args:
        real: the source.
        count: how many, as evenly over the classes as `SHARE` allows.
        rng: draws them.
    """
    each = max(1, count // real.shape.k)
    held, left = [], []
    for own_N in real.rows_of_class:
        order_N = own_N[torch.randperm(len(own_N), generator=rng).to(own_N.device)]
        # a class of one image keeps it
        here = min(each, len(own_N) - 1, max(1, int(SHARE * len(own_N))))
        held.append(order_N[:here])
        left.append(order_N[here:].sort().values)
    return dataclasses.replace(
        real, train=real.train.rows(torch.cat(left)), test=real.train.rows(torch.cat(held))
    )


def tenth_held_out(real: RealData, scored: int, rng: torch.Generator) -> RealData:
    """The source without a tenth of every class, of which some stand for its test images.

    A class of one image keeps it.

    Args:
        real: the source.
        scored: how many of them, at most; as many of every class as there are of the smallest.
        rng: draws them.
    """
    held, left = [], []
    for own_N in real.rows_of_class:
        order_N = own_N[torch.randperm(len(own_N), generator=rng).to(own_N.device)]
        here = min(len(own_N) - 1, max(1, round(0.1 * len(own_N))))
        held.append(order_N[: min(here, max(1, scored // real.shape.k))])
        left.append(order_N[here:].sort().values)
    rows_N, held_N = torch.cat(left), torch.cat(held)
    features = {
        key: Features(each.train_ND[rows_N.cpu()], each.train_ND[held_N.cpu()], each.moments)
        for key, each in real.features.items()
    }
    train, test = real.train.rows(rows_N), real.train.rows(held_N)
    return dataclasses.replace(real, train=train, test=test, features=features)


def tested_on(real: RealData, images: int, rng: torch.Generator) -> RealData:
    """The source with so many of its test images, drawn once; with all where it has fewer."""
    labels_N = real.test.labels_N
    if images >= len(labels_N):
        return real
    rows_N = torch.randperm(len(labels_N), generator=rng)[:images].sort().values
    features = {
        key: Features(each.train_ND, each.test_ND[rows_N], each.moments)
        for key, each in real.features.items()
    }
    test = real.test.rows(rows_N.to(labels_N.device))
    return dataclasses.replace(real, test=test, features=features)


def nearest_neighbor_accuracy(stored: Stored, real: RealData) -> float:
    """The share of the test images whose nearest stored example is of their class.

    Distances are those of what a student sees. It takes no training, so many sets can be compared.
    """
    images_NCHW, targets_NK = stored(torch.arange(stored.count))
    found, labels_N = list[torch.Tensor](), targets_NK.argmax(dim=1)
    for batch in real.test_batches(AT_ONCE):
        distance_BN = torch.cdist(batch.images_BCHW.flatten(1), images_NCHW.flatten(1))
        found.append(labels_N[distance_BN.argmin(dim=1)] == batch.targets_BK.argmax(dim=1))
    return float(torch.cat(found).double().mean())
