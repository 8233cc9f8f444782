"""Displayable pixels into the student's input space: mean and std, or whitening (ZCA).

`mean_std` is the affine (p - mean) / std per channel, the same for real and for distilled images.

`zca` follows the released code of RaT-BPTT (arXiv:2311.07025): from each image its own mean is
subtracted, it is divided by its L2 norm, and the result x becomes x Z with
Z = V diag((lambda + r * mean(lambda))^-1/2) V^T, where V diag(lambda) V^T = X^T X / N is the
covariance of the training images, not centered, and r the regularization. Distilled images live in
that whitened space. They are shown through the affine z = (p - 1/2) / std, where the range [0, 1]
of p covers `SPAN` = 4 root mean squares of the whitened training images to both sides of zero, per
channel. Rarer values are clipped, one 8-bit step is 1/32 of a root mean square.

Shape suffixes: B N images, C channels, H W pixels, D = C * H * W values of one image, V the
256 values of a pixel.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from distill_datasets.data.decoding import Split
from distill_datasets.errors import DataError
from distill_datasets.runtime.memory import GIB, available_bytes

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger("distill_datasets")

Kind = Literal["mean_std", "zca"]

CHUNK_VALUES = 2**24
SPAN = 4.0
# Covariance, eigenvectors, the scaled eigenvectors, the result, and two of workspace for `eigh`.
MATRICES_AT_ONCE = 6
TINY_NORM = 1e-8


def zca_memory_bytes(values: int) -> int:
    """Memory that fitting a whitening of images with so many values needs at its peak."""
    return MATRICES_AT_ONCE * 4 * values**2


def _chunks(images_NCHW: Tensor) -> Iterator[Tensor]:
    rows = max(1, CHUNK_VALUES // max(1, images_NCHW[0].numel()))
    yield from torch.split(images_NCHW, rows)


def _unit(images_BCHW: Tensor) -> Tensor:
    """Each image minus its own mean, divided by its L2 norm; a constant image becomes zeros."""
    values_BD = images_BCHW.flatten(1).float()
    values_BD = values_BD - values_BD.mean(dim=1, keepdim=True)
    norms_B1 = torch.linalg.vector_norm(values_BD, dim=1, keepdim=True)
    unit_BD: Tensor = values_BD / norms_B1.clamp(min=TINY_NORM)
    return unit_BD


def count_values(images_NCHW: Tensor) -> Tensor:
    """How often each of the 256 values occurs in each channel, (C, 256); exact integers."""
    channels = images_NCHW.shape[1]
    counts_CV = torch.zeros((channels, 256), dtype=torch.int64)
    if not len(images_NCHW):
        return counts_CV
    for chunk_BCHW in _chunks(images_NCHW):
        for channel in range(channels):
            values = chunk_BCHW[:, channel].flatten().cpu()
            counts_CV[channel] += torch.bincount(values, minlength=256)
    return counts_CV


def _mean_std(counts_CV: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel; a constant channel gets the deviation 1.

    The sums are exact integers, so the result depends on nothing but the pixels.
    """
    value_V = torch.arange(256)
    count = int(counts_CV[0].sum())
    sums_C = (counts_CV * value_V).sum(dim=1)
    squares_C = (counts_CV * value_V.square()).sum(dim=1)
    means, deviations = [], []
    for total, square in zip(sums_C.tolist(), squares_C.tolist(), strict=True):
        means.append(total / count / 255)
        deviations.append(math.sqrt(count * square - total**2) / count / 255 or 1.0)
    return torch.tensor(means), torch.tensor(deviations)


def _check_memory(shape: torch.Size) -> None:
    values = shape[1:].numel()
    needed, free = zca_memory_bytes(values), available_bytes()
    logger.info(
        "zca: images of %d values, a matrix of %.2f GiB, %.2f GiB of memory to fit it (%.2f free)",
        values,
        4 * values**2 / GIB,
        needed / GIB,
        free / GIB,
    )
    if needed > free:
        raise DataError(
            f"source.normalization: zca of images with {values} values needs "
            f"{needed / GIB:.1f} GiB and {free / GIB:.1f} GiB are free; set source.resolution "
            "lower or source.normalization to mean_std"
        )


def _fit_zca(images_NCHW: Tensor, regularization: float) -> tuple[Tensor, Tensor]:
    """The whitening matrix, and the mean square of each whitened training value."""
    values = images_NCHW[0].numel()
    covariance_DD = torch.zeros(values, values)
    for chunk_BCHW in _chunks(images_NCHW):
        unit_BD = _unit(chunk_BCHW.cpu())
        covariance_DD.addmm_(unit_BD.T, unit_BD)
    covariance_DD /= len(images_NCHW)
    lambda_D, vectors_DD = torch.linalg.eigh(covariance_DD)
    del covariance_DD
    lambda_D = lambda_D.clamp(min=0)
    ridge_D = lambda_D + regularization * lambda_D.mean()
    if not bool(ridge_D.min() > 0):
        raise DataError(
            "source.normalization: the training images leave nothing to whiten (all constant, or "
            "source.zca_regularization is 0 and there are fewer images than values); set "
            "source.normalization to mean_std or source.zca_regularization above 0"
        )
    mean_square_D = vectors_DD.square() @ (lambda_D / ridge_D)
    whitening_DD = (vectors_DD * ridge_D.rsqrt()) @ vectors_DD.T
    return whitening_DD, mean_square_D


@dataclass(frozen=True, eq=False)
class InputSpace:
    """The student's input space: displayable pixels p in [0, 1] are seen as (p - mean) / std."""

    mean_C: Tensor
    std_C: Tensor

    def to_student(self, pixels_BCHW: Tensor) -> Tensor:
        """Displayable pixels (..., C, H, W) as a student sees them, on their device."""
        return (pixels_BCHW - self._per_channel(self.mean_C, pixels_BCHW)) / self._per_channel(
            self.std_C, pixels_BCHW
        )

    def to_pixels(self, images_BCHW: Tensor) -> Tensor:
        """What a student sees (..., C, H, W) as displayable pixels; some may lie outside [0, 1]."""
        shown = images_BCHW * self._per_channel(self.std_C, images_BCHW)
        return shown + self._per_channel(self.mean_C, images_BCHW)

    def to(self, device: torch.device) -> InputSpace:
        """The same on another device."""
        return InputSpace(self.mean_C.to(device), self.std_C.to(device))

    def _per_channel(self, values_C: Tensor, images: Tensor) -> Tensor:
        return values_C.to(images.device)[:, None, None]


@dataclass(frozen=True, eq=False)
class Normalization:
    """What a student sees of an image. `whitening_DD` is None for `mean_std`.

    `display_mean_C` and `display_std_C` tie displayable pixels p in [0, 1] of a *distilled* image
    to the student's input z = (p - mean) / std; for `mean_std` real images go the same way.
    """

    display_mean_C: Tensor
    display_std_C: Tensor
    whitening_DD: Tensor | None = None
    regularization: float | None = None
    fitted_images: int = 0

    @classmethod
    def fit(cls, train: Split, kind: Kind, regularization: float) -> Normalization:
        """Fit on the training images.

        Args:
            train: uint8 images; the labels are not looked at.
            kind: `mean_std` or `zca`.
            regularization: share of the mean eigenvalue added to every eigenvalue; zca only.

        Raises:
            DataError: zca needs more memory than is free, or the images are all constant.
        """
        images_NCHW = train.images_NCHW
        if kind == "mean_std":
            return cls.of_counts(count_values(images_NCHW), len(images_NCHW))
        _check_memory(images_NCHW.shape)
        whitening_DD, mean_square_D = _fit_zca(images_NCHW, regularization)
        mean_square_C = mean_square_D.view(images_NCHW.shape[1:]).mean(dim=(1, 2))
        std_C = 1 / (2 * SPAN * mean_square_C.clamp(min=1e-12).sqrt())
        return cls(
            torch.full_like(std_C, 0.5), std_C, whitening_DD, regularization, len(images_NCHW)
        )

    @classmethod
    def of_counts(cls, counts_CV: Tensor, images: int) -> Normalization:
        """`mean_std`, of how often every value occurs in `images` training images."""
        return cls(*_mean_std(counts_CV), fitted_images=images)

    @property
    def input_space(self) -> InputSpace:
        """What displayable pixels of a distilled image become for a student."""
        return InputSpace(self.display_mean_C, self.display_std_C)

    @property
    def kind(self) -> Kind:
        """Which normalization this is."""
        return "mean_std" if self.whitening_DD is None else "zca"

    def apply(self, images_BCHW: Tensor) -> Tensor:
        """Real uint8 images as float32 in the student's input space, on the images' device."""
        device = images_BCHW.device
        if self.whitening_DD is not None:
            whitened_BD = _unit(images_BCHW) @ self.whitening_DD.to(device)
            return whitened_BD.view(images_BCHW.shape)
        mean_C, std_C = self.display_mean_C.to(device), self.display_std_C.to(device)
        return (images_BCHW.float() / 255 - mean_C[:, None, None]) / std_C[:, None, None]

    def to(self, device: torch.device) -> Normalization:
        """The same on another device."""
        return replace(
            self,
            display_mean_C=self.display_mean_C.to(device),
            display_std_C=self.display_std_C.to(device),
            whitening_DD=None if self.whitening_DD is None else self.whitening_DD.to(device),
        )

    def to_tensors(self) -> dict[str, Tensor]:
        """Everything as named tensors, for a safetensors file."""
        tensors = {
            "display_mean": self.display_mean_C,
            "display_std": self.display_std_C,
            "fitted_images": torch.tensor(self.fitted_images),
        }
        if self.whitening_DD is not None:
            tensors["whitening"] = self.whitening_DD
            tensors["regularization"] = torch.tensor(self.regularization, dtype=torch.float64)
        return tensors

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Normalization:
        """The inverse of `to_tensors`."""
        regularization = tensors.get("regularization")
        return cls(
            tensors["display_mean"],
            tensors["display_std"],
            tensors.get("whitening"),
            None if regularization is None else float(regularization),
            int(tensors["fitted_images"]),
        )

    def describe(self) -> dict[str, Any]:
        """What a consumer has to know, as JSON; the matrix is named by its size and sha256."""
        described: dict[str, Any] = {
            "kind": self.kind,
            "mean": self.display_mean_C.tolist(),
            "std": self.display_std_C.tolist(),
            "zca": None,
        }
        if self.whitening_DD is not None:
            raw = self.whitening_DD.cpu().contiguous().numpy().tobytes()
            described["zca"] = {
                "regularization": self.regularization,
                "fitted_images": self.fitted_images,
                "order": "CHW",
                "matrix_bytes": len(raw),
                "matrix_sha256": hashlib.sha256(raw).hexdigest(),
            }
        return described
