"""A distilled set as its own files hold it, before anything is known of the space of its values.

Shape suffixes: N training examples, K classes, C channels, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distill_datasets.errors import ArtifactError

if TYPE_CHECKING:
    from torch import Tensor

SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Outside:
    """What was read of somebody else's set.

    Attributes:
        layout: how its files lie, a name of `LAYOUTS`.
        images_NCHW: uint8, or floats in whatever space the authors trained in.
        targets_NK: rows that sum to 1; of uint8 where each names one class.
        class_names: in the order of the labels; None where the files name none.
        files: those that were read.
        method: what the layout tells of it; None where it tells nothing.
        step_sizes: learned ones, in order.
        facts: what else the files say, as JSON.
        notes: what was done to make labels and images of them, a sentence each.
        license: as a card beside the files states it.
        whitened: why floats are known to be whitened (ZCA); None where nothing says so.
    """

    layout: str
    images_NCHW: Tensor
    targets_NK: Tensor
    class_names: list[str] | None
    files: list[Path]
    method: str | None = None
    step_sizes: list[float] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    license: str | None = None
    whitened: str | None = None


def checked_images(images: object, where: str) -> Tensor:
    """Images (N, C, H, W) on the CPU, floats as float32.

    Raises:
        ArtifactError: they are none.
    """
    if not isinstance(images, torch.Tensor):
        raise ArtifactError(
            f"{where}: the images are a {type(images).__name__}, expected a tensor (images, "
            "channels, height, width)"
        )
    images = images.detach().cpu()
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise ArtifactError(
            f"{where}: images of the shape {tuple(images.shape)}, expected (images, channels, "
            "height, width) with 1 or 3 channels and at least one image"
        )
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise ArtifactError(
            f"{where}: images of {_dtype(images)}, expected floats, or uint8 from 0 to 255"
        )
    images = images.float()
    if bad := int((~images.isfinite()).flatten(1).any(dim=1).sum()):
        raise ArtifactError(
            f"{where}: {bad} of {len(images)} images hold NaN or infinite values, from which no "
            "network learns; import an earlier checkpoint of the run"
        )
    return images


def checked_classes(labels: Tensor, count: int, classes: int | None, where: str) -> Tensor:
    """Labels that name one class each as rows (N, K) of uint8.

    Args:
        labels: (N,) of integers, or of floats that are whole.
        count: of images.
        classes: how many there are; None: as many as the highest label tells.
        where: the file, for errors.

    Raises:
        ArtifactError: there are others than images, or a label is no class.
    """
    labels = labels.detach().cpu()
    if len(labels) != count:
        raise ArtifactError(
            f"{where}: {len(labels)} labels for {count} images, expected one for each; are they "
            "of the same run and iteration?"
        )
    whole = labels.long()
    if labels.is_floating_point() and not torch.equal(whole.to(labels.dtype), labels):
        raise ArtifactError(
            f"{where}: labels such as {labels[0].item():g} are no classes, expected whole numbers"
        )
    known = int(whole.max()) + 1 if classes is None else classes
    outside = whole[(whole < 0) | (whole >= known)]
    if len(outside):
        raise ArtifactError(
            f"{where}: the label {int(outside[0])} is none of the {known} classes 0 to "
            f"{known - 1}; name all classes in their order with --classes"
        )
    if known < 2:
        raise ArtifactError(f"{where}: all labels are class 0, expected at least 2 classes")
    targets_NK = torch.zeros(count, known, dtype=torch.uint8)
    return targets_NK.scatter_(1, whole[:, None], 1)


def checked_shares(labels_NK: Tensor, count: int, classes: int | None, where: str) -> Tensor:
    """Labels that share an image among the classes, (N, K) in float32 with rows that sum to 1.

    Raises:
        ArtifactError: there are others than images or classes, or they are no shares.
    """
    if len(labels_NK) != count:
        raise ArtifactError(
            f"{where}: {len(labels_NK)} labels for {count} images, expected one for each; are "
            "they of the same run and iteration?"
        )
    k = labels_NK.shape[1]
    if k < 2 or (classes is not None and classes != k):
        raise ArtifactError(
            f"{where}: labels of {k} classes, expected {classes or 'at least 2'}; name all classes "
            "in their order with --classes"
        )
    labels_NK = labels_NK.detach().cpu().float()
    if not bool(labels_NK.isfinite().all()):
        raise ArtifactError(f"{where}: some labels are NaN or infinite, expected shares of classes")
    off = (labels_NK.sum(dim=1) - 1).abs().max().item()
    least = labels_NK.min().item()
    if off > SUM_TOLERANCE or least < 0:
        raise ArtifactError(
            f"{where}: labels are no shares of the classes: the lowest is {least:.3g} and a row's "
            f"sum is off 1 by {off:.3g}; expected numbers >= 0 with the sum 1 in every row"
        )
    return labels_NK / labels_NK.sum(dim=1, keepdim=True)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
