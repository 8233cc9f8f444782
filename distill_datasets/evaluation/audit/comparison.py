"""What the source says of a set: copies of its images, and labels that it would not give (T1).

Shape suffixes: N rows of the set, M images of the source, B a batch, K classes, C channels, H W
pixels, D features, V values of a small image.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from distill_datasets.data.overlap import DIGEST_BYTES, find_overlap, prints
from distill_datasets.data.stores import InMemory
from distill_datasets.evaluation.audit.findings import Measurement
from distill_datasets.evaluation.audit.networks import activations

if TYPE_CHECKING:
    from torch import Tensor, nn

    from distill_datasets.data.decoding import Split
    from distill_datasets.data.real import RealData
    from distill_datasets.evaluation.audit.published import Rows

AT_ONCE = 512
SMALL_SIDE = 32
"""Distances are those of images of at most so many pixels a side."""
COMPARED = 1000
"""Test images that tell how near to the training images others are."""
SAME_FEATURES = 0.99
"""Cosine from which features count as those of the same image."""
CLOSE = 0.5
"""Of the distance that 99 of 100 test images exceed: nearer is a copy."""


def named_classes(rows: Rows, real: RealData) -> dict[str, Measurement]:
    """Names that differ from the source's, and classes without an example."""
    pairs = zip(rows.class_names, real.class_names, strict=False)
    others = [f"{own!r}, the source's is {its!r}" for own, its in pairs if own != its]
    shown_K = torch.bincount(rows.labels_N, minlength=real.shape.k)
    missing = [name for name, count in zip(real.class_names, shown_K.tolist(), strict=False)
               if not count]  # fmt: skip
    return {
        "class names": Measurement(len(others), others),
        "missing classes": Measurement(len(missing), missing),
    }


class SourceComparison:
    """What of the source is computed once and compared with every set.

    Args:
        real: the source.
        reference: a network that was trained on it.
    """

    def __init__(self, real: RealData, reference: nn.Module) -> None:
        self.real, self._reference = real, reference
        self._train_prints, self._test_prints = _prints(real.train), _prints(real.test)
        self._test_MD = self._features(real.test.images_NCHW)
        self._train_MV = _small(real.train.images_NCHW, real)
        spread_M = torch.linspace(0, len(real.test.labels_N) - 1, min(
            COMPARED, len(real.test.labels_N))).long()  # fmt: skip
        self._test_nearest_M = self._nearest(_small(real.test.images_NCHW[spread_M.to(
            real.test.images_NCHW.device)], real))  # fmt: skip

    def measured(self, rows: Rows) -> dict[str, Measurement]:
        """Every check of T1 that looks at pixels or labels."""
        own = prints(rows.images_NCHW)
        found = dict[str, Measurement]()
        for name, others in (("test images", self._test_prints),
                             ("training images", self._train_prints)):  # fmt: skip
            same_N = _identical(own, others)
            found[name] = _counted(rows, same_N)
            if name == "test images":
                also_N = find_overlap(own, others, InMemory())[1]
                found["near test images"] = _counted(rows, also_N & ~same_N)
        cosine_N = self._cosine(rows)
        found["features of test images"] = _counted(rows, cosine_N > SAME_FEATURES)
        return found | {"copies": self._copies(rows)} | self._disagreement(rows)

    def _features(self, images_NCHW: Tensor) -> Tensor:
        """Of uint8 images, of unit length, on the CPU."""
        found = [
            activations(self._reference, self.real.normalization.apply(
                images_BCHW.to(self.real.train.labels_N.device)))[0].cpu()
            for images_BCHW in torch.split(images_NCHW, AT_ONCE)
        ]  # fmt: skip
        return functional.normalize(torch.cat(found), dim=1)

    def _cosine(self, rows: Rows) -> Tensor:
        """The largest cosine of each row's features with those of a test image, (N,)."""
        own_ND = self._features(rows.images_NCHW)
        most = [
            (own_BD @ self._test_MD.T).max(dim=1).values for own_BD in torch.split(own_ND, AT_ONCE)
        ]
        return torch.cat(most)

    def _nearest(self, small_NV: Tensor) -> Tensor:
        """The distance of each small image to the nearest training image, (N,)."""
        found = []
        for own_BV in torch.split(small_NV, AT_ONCE):
            nearest_B = torch.full((len(own_BV),), math.inf)
            for train_BV in torch.split(self._train_MV, 16 * AT_ONCE):
                nearest_B = torch.minimum(nearest_B, torch.cdist(own_BV, train_BV).amin(dim=1))
            found.append(nearest_B)
        return torch.cat(found)

    def _copies(self, rows: Rows) -> Measurement:
        """Rows nearer to a training image than half of what 99 of 100 test images are."""
        bound = CLOSE * float(self._test_nearest_M.quantile(0.01))
        nearest_N = self._nearest(_small(rows.images_NCHW, self.real))
        close_N = nearest_N < bound
        # one more than were seen, of one more: a chance that is not thought too small
        chance = (1 + int((self._test_nearest_M < bound).sum())) / (1 + len(self._test_nearest_M))
        order_N = nearest_N.argsort()[: int(close_N.sum())]
        count = len(order_N)
        p = binomial_tail(count, len(rows.row_N), chance)
        return Measurement(count, rows.named(order_N), p)

    def _disagreement(self, rows: Rows) -> dict[str, Measurement]:
        """How many rows the reference network takes for another class, of all and of a class."""
        stored = rows.stored(self.real.normalization.input_space)
        device = self.real.train.labels_N.device
        logits_NK = torch.cat([
            activations(self._reference, stored(index_B).images_BCHW.to(device))[1].cpu()
            for index_B in torch.split(torch.arange(stored.count), AT_ONCE)
        ])  # fmt: skip
        wrong_N = logits_NK.argmax(dim=1) != rows.labels_N
        loss_N = functional.cross_entropy(logits_NK, rows.labels_N, reduction="none")
        order_N = [int(place) for place in loss_N.argsort(descending=True) if wrong_N[place]]
        shares = {
            name: float(wrong_N[rows.labels_N == label].double().mean())
            for label, name in enumerate(rows.class_names)
            if bool((rows.labels_N == label).any())
        }
        worst = max(shares, key=lambda name: shares[name])
        return {
            "label disagreement": Measurement(float(wrong_N.double().mean()), rows.named(order_N)),
            "class disagreement": Measurement(shares[worst], [worst]),
        }


def _prints(split: Split) -> Tensor:
    images_NCHW = split.images_NCHW
    return torch.cat([prints(some.cpu()) for some in torch.split(images_NCHW, AT_ONCE)])


def _digests(prints_N: Tensor) -> list[bytes]:
    return [row.tobytes() for row in prints_N.flatten(1)[:, :DIGEST_BYTES].numpy()]


def _identical(own_N: Tensor, others_M: Tensor) -> Tensor:
    """Which rows have the very pixels of one of the others, (N,) bool."""
    others = set(_digests(others_M))
    return torch.tensor([digest in others for digest in _digests(own_N)])


def _counted(rows: Rows, chosen_N: Tensor) -> Measurement:
    places_N = chosen_N.nonzero().flatten()
    return Measurement(len(places_N), rows.named(places_N))


def _small(images_NCHW: Tensor, real: RealData) -> Tensor:
    """Images as a student sees them, shrunk and flat, on the CPU."""
    side = (min(SMALL_SIDE, real.shape.h), min(SMALL_SIDE, real.shape.w))
    device = real.train.labels_N.device
    return torch.cat([
        functional.adaptive_avg_pool2d(
            real.normalization.apply(images_BCHW.to(device)), side).flatten(1).cpu()
        for images_BCHW in torch.split(images_NCHW, AT_ONCE)
    ])  # fmt: skip


def binomial_tail(count: int, trials: int, chance: float) -> float:
    """The chance of at least `count` of `trials`."""
    if count <= 0:
        return 1.0
    log = [
        math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1)
        + k * math.log(chance) + (trials - k) * math.log1p(-chance)
        for k in range(count, trials + 1)
    ]  # fmt: skip
    return min(1.0, math.fsum(map(math.exp, log)))
