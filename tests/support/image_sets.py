"""Tiny image data sets made on the fly, with pixels that say which row they are."""

import hashlib
import io
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image


def draw(*what: str | int) -> torch.Generator:
    """A `Draw`: the same words give the same stream."""
    digest = hashlib.sha256(repr(what).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:6], "big"))


def gray(value: int, height: int = 2, width: int = 2) -> Image.Image:
    """A gray image of one value."""
    return Image.new("L", (width, height), value)


def png(image: Image.Image) -> bytes:
    """The image as PNG bytes."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def features(label: Any) -> datasets.Features:  # noqa: ANN401
    """An image column and a label column of the type given."""
    return datasets.Features({"image": datasets.Image(), "label": label})


def dataset(
    labels: Sequence[Any],
    label: Any = None,  # noqa: ANN401
    first_value: int = 0,
) -> datasets.Dataset:
    """Row i is a gray 2x2 image of the value `first_value` + i."""
    kind = label or datasets.ClassLabel(names=["cat", "dog"])
    images = [gray(first_value + row) for row in range(len(labels))]
    return datasets.Dataset.from_dict(
        {"image": images, "label": list(labels)}, features=features(kind)
    )


def both(label: Any = None) -> datasets.DatasetDict:  # noqa: ANN401
    """Four training rows 0..3 and two test rows 100, 101, classes alternating."""
    return datasets.DatasetDict(
        train=dataset([0, 1, 0, 1], label), test=dataset([0, 1], label, first_value=100)
    )


def values(images_NCHW: torch.Tensor) -> list[int]:
    """The value of the first pixel of each image."""
    return images_NCHW[:, 0, 0, 0].tolist()


def noise(count: int, channels: int, side: int, seed: int = 0) -> torch.Tensor:
    """Random uint8 images, smooth enough to have a spectrum that is not flat."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 200, (count, channels, 1, 1))
    fine = rng.integers(0, 56, (count, channels, side, side))
    return torch.from_numpy((coarse + fine).astype(np.uint8))
