"""Real images as a frozen backbone sees them, and the statistics of these features.

Features are centered and divided by one number, the root mean square of all their values, so that
settings mean the same for every backbone. The covariance is that of the scaled features.

Shape suffixes: N rows, B a batch, D features, K classes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch

from distill_datasets.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

AT_ONCE = 4096
"""Rows that are held in memory together where all are passed."""


class FeatureMoments(NamedTuple):
    """Of the features of all training images; the centers are those of the classes, scaled."""

    mean_D: Tensor
    scale: float
    centers_KD: Tensor
    covariance_DD: Tensor

    def to_tensors(self) -> dict[str, Tensor]:
        """As named tensors, for a safetensors file."""
        return self._asdict() | {"scale": torch.tensor(self.scale, dtype=torch.float64)}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> FeatureMoments:
        """The inverse of `to_tensors`."""
        return cls(**tensors | {"scale": float(tensors["scale"])})  # type: ignore[arg-type]

    def scaled(self, features_BD: Tensor) -> Tensor:
        """Features as all of this speaks of them."""
        return (features_BD - self.mean_D.to(features_BD)) / self.scale


def moments(train_ND: Tensor, labels_N: Tensor, classes: int) -> FeatureMoments:
    """Pass the training features twice, some thousand rows at a time, in double precision."""
    size = train_ND.shape[1]
    sums_KD = torch.zeros(classes, size, dtype=torch.float64)
    for rows_BD, labels_B in _chunks(train_ND, labels_N):
        sums_KD.index_add_(0, labels_B, rows_BD)
    counts_K = labels_N.bincount(minlength=classes)
    mean_D = sums_KD.sum(dim=0) / len(train_ND)
    covariance_DD = torch.zeros(size, size, dtype=torch.float64)
    for rows_BD, _ in _chunks(train_ND, labels_N):
        centered_BD = rows_BD - mean_D
        covariance_DD.addmm_(centered_BD.T, centered_BD)
    covariance_DD /= len(train_ND)
    scale = float(covariance_DD.diagonal().mean().sqrt())
    if scale == 0:
        raise DataError(
            "backbone: its features are the same for all training images; choose another one, or "
            "look at the source"
        )
    centers_KD = (sums_KD / counts_K[:, None] - mean_D) / scale
    return FeatureMoments(
        mean_D.float(), scale, centers_KD.float(), (covariance_DD / scale**2).float()
    )


@dataclass(eq=False)
class Features:
    """What a backbone sees in the training and the test images, mapped from files."""

    train_ND: Tensor
    test_ND: Tensor
    moments: FeatureMoments
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @cached_property
    def _solved(self) -> dict[float, Tensor]:
        return {}

    def discriminants(self, ridge: float) -> Tensor:
        """W = (S + ridge I)^-1 M, (K, D): what ridge regression on the classes looks for.

        M are the class centers and S the covariance, whose mean eigenvalue is 1.
        """
        with self._lock:  # blocks are solved by threads, and one of them is enough
            if ridge not in self._solved:
                centers_KD, covariance_DD = self.moments.centers_KD, self.moments.covariance_DD
                ridged_DD = covariance_DD.double() + ridge * torch.eye(len(covariance_DD)).double()
                solved_DK = torch.linalg.solve(ridged_DD, centers_KD.double().T)
                self._solved[ridge] = solved_DK.T.float().contiguous()
            return self._solved[ridge]


def _chunks(train_ND: Tensor, labels_N: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Some thousand rows after the other, read from their file when they are asked for."""
    for start in range(0, len(train_ND), AT_ONCE):
        rows_BD = train_ND[start : start + AT_ONCE].double()
        yield rows_BD, labels_N[start : start + AT_ONCE]
