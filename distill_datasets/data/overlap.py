"""Images that lie in both splits: identical by their decoded pixels, or near by a thumbnail.

While images are decoded each leaves a print of 272 bytes: a hash of its pixels and a gray thumbnail
of 16 x 16. Prints are all that is compared, so that no image is read again.

Shape suffixes: B N rows, C channels, H W pixels, T test rows, V values of a thumbnail.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from distill_datasets.data.stores import Store

if TYPE_CHECKING:
    from torch import Tensor

Policy = Literal["refuse", "drop", "allow"]

DIGEST_BYTES = 16
LUMA = (0.299, 0.587, 0.114)
SIDE = 16
PRINT = (1, 1, DIGEST_BYTES + SIDE * SIDE)
FLOATS_AT_ONCE = 2**20
TEST_ROWS, TRAIN_ROWS = 512, 2**15
"""How many rows are compared at once: 64 MiB of correlations."""

COARSE_SIDE = 8
COARSE_CORRELATION = 0.995
NEAR_CORRELATION = 0.998
"""Of two thumbnails; of half as many pixels a side in a first, cheap pass.

What is near is a copy: on all of MNIST and CIFAR-10 it is one pair, a photo of CIFAR-10 without its
colors. Above 0.99 lie 15 pairs of CIFAR-10, each one photo with other colors, and 430 of MNIST, all
ones and sevens of different hands: a lower bound would take these for copies.
"""
WARNED_SHARE = 0.01


class Overlap(NamedTuple):
    """How many test images are also training images, and what was done.

    Attributes:
        identical: test images whose pixels are those of a training image.
        near: other test images whose thumbnail is nearly that of a training image.
        test: test images in all.
        dropped: training images left out because of them.
    """

    identical: int
    near: int
    test: int
    dropped: int = 0

    @property
    def warned(self) -> bool:
        """Whether so many are in both that accuracy is in doubt."""
        return self.identical + self.near > WARNED_SHARE * self.test

    def in_words(self) -> str:
        """A phrase for a person."""
        dropped = f"; {self.dropped:,} training images left out for it" if self.dropped else ""
        return (
            f"{self.identical:,} of {self.test:,} test images are also in training, pixel by "
            f"pixel, and {self.near:,} nearly{dropped}"
        )


def prints(images_BCHW: Tensor) -> Tensor:
    """What is compared of uint8 images, (B, 1, 1, 272) uint8."""
    rows = images_BCHW.contiguous().flatten(1).numpy()
    digests = b"".join(
        hashlib.blake2b(row.tobytes(), digest_size=DIGEST_BYTES).digest() for row in rows
    )
    digests_BV = torch.frombuffer(bytearray(digests), dtype=torch.uint8).view(-1, DIGEST_BYTES)
    at_once = max(1, FLOATS_AT_ONCE // images_BCHW[0].numel())
    thumbnails_BCHW = torch.cat([_thumbnails(some) for some in torch.split(images_BCHW, at_once)])
    return torch.cat([digests_BV, thumbnails_BCHW.flatten(1)], dim=1)[:, None, None]


def _thumbnails(images_BCHW: Tensor) -> Tensor:
    gray_BCHW = images_BCHW.float()
    if gray_BCHW.shape[1] == len(LUMA):  # not the mean, which follows the colors that JPEG thins
        gray_BCHW = (gray_BCHW * torch.tensor(LUMA)[:, None, None]).sum(dim=1, keepdim=True)
    elif gray_BCHW.shape[1] > 1:
        gray_BCHW = gray_BCHW.mean(dim=1, keepdim=True)
    return functional.adaptive_avg_pool2d(gray_BCHW, SIDE).round().byte()


def find_overlap(train_N: Tensor, test_T: Tensor, store: Store) -> tuple[Overlap, Tensor]:
    """Compare all prints of two splits.

    Args:
        train_N: prints of the training images, as `prints` gives them.
        test_T: prints of the test images.
        store: who compares which test rows.

    Returns:
        The counts, and which training images are identical or near to a test image, (N,) bool.
    """
    train_keys, test_keys = _digests(train_N), _digests(test_T)
    identical_T = np.isin(test_keys, train_keys)
    also_N = torch.from_numpy(np.isin(train_keys, test_keys))
    coarse_NV, fine_NV = _vectors(train_N, COARSE_SIDE), _vectors(train_N, SIDE)

    def compare(unit: int) -> list[list[int]]:
        rows = slice(unit * TEST_ROWS, (unit + 1) * TEST_ROWS)
        return _near(coarse_NV, fine_NV, test_T[rows])

    near_T = np.zeros(len(test_T), dtype=bool)
    found = store.each("overlap", -(-len(test_T) // TEST_ROWS), compare)
    for unit, (test_rows, train_rows) in enumerate(found):
        near_T[[unit * TEST_ROWS + row for row in test_rows]] = True
        also_N[train_rows] = True
    near_T &= ~identical_T
    return Overlap(int(identical_T.sum()), int(near_T.sum()), len(test_T)), also_N


def _digests(prints_N: Tensor) -> Any:  # noqa: ANN401
    """The hashes as values that numpy compares."""
    rows = prints_N.flatten(1)[:, :DIGEST_BYTES].contiguous().numpy()
    return rows.view(np.dtype((np.void, DIGEST_BYTES))).ravel()


def _vectors(prints_N: Tensor, side: int) -> Tensor:
    """Thumbnails less their mean, of unit length, so that a product is a correlation.

    A thumbnail of one value has no direction: it becomes zeros, and is near to nothing.
    """
    gray_NCHW = prints_N.flatten(1)[:, DIGEST_BYTES:].float().view(-1, 1, SIDE, SIDE)
    values_NV = functional.adaptive_avg_pool2d(gray_NCHW, side).flatten(1)
    return functional.normalize(values_NV - values_NV.mean(dim=1, keepdim=True), dim=1)


def _near(coarse_NV: Tensor, fine_NV: Tensor, test_T: Tensor) -> list[list[int]]:
    """Pairs of near thumbnails: the places in `test_T`, and those of the training rows."""
    coarse_TV, fine_TV = _vectors(test_T, COARSE_SIDE), _vectors(test_T, SIDE)
    test_rows, train_rows = list[int](), list[int]()
    for first in range(0, len(coarse_NV), TRAIN_ROWS):
        correlation_TN = coarse_TV @ coarse_NV[first : first + TRAIN_ROWS].T
        test, train = (correlation_TN > COARSE_CORRELATION).nonzero(as_tuple=True)
        train += first
        near = (fine_TV[test].double() * fine_NV[train].double()).sum(dim=1) > NEAR_CORRELATION
        test_rows += test[near].tolist()
        train_rows += train[near].tolist()
    return [test_rows, train_rows]
