"""Random images in the shapes of the papers' datasets: speed does not depend on what they show."""

import torch

from distill_datasets.canvases.canvas import Canvas
from distill_datasets.canvases.poster import Poster
from distill_datasets.data.decoding import Split
from distill_datasets.data.normalization import Normalization
from distill_datasets.data.real import RealData
from distill_datasets.distilled import Distilled
from distill_datasets.labels.fixed import Area
from distill_datasets.runtime.draws import rng_for
from distill_datasets.types import Batch, Shape
from tests.support.tiny import distilled_of

CIFAR = Shape(3, 32, 32, 10)
POSTER = Poster(height=64, width=160, crops=[6, 16], bounds="clip")
"""One image per class: 96 crops of a 64 x 160 poster."""


def random_real(shape: Shape, per_class: int, device: torch.device) -> RealData:
    """Images of random 8-bit pixels and as many of every class."""
    rng = rng_for(0, "benchmark")
    size = (per_class * shape.k, shape.c, shape.h, shape.w)
    images_NCHW = torch.randint(256, size, generator=rng, dtype=torch.uint8)
    rows = Split(images_NCHW, torch.arange(shape.k).repeat(per_class))
    normalization = Normalization.fit(rows, "mean_std", 0.1)
    names = [f"class {label}" for label in range(shape.k)]
    moved = Split(rows.images_NCHW.to(device), rows.labels_N.to(device))
    return RealData(moved, moved, names, normalization.to(device), shape)


def as_floats(real: RealData) -> Batch:
    """All training images in the student's input space, as the papers' programs hold them."""
    return real.select(torch.arange(len(real.train.labels_N), device=real.train.labels_N.device))


def distilled_set(real: RealData, canvas: Canvas) -> Distilled:
    """A distilled set at its initial values, on the device of the real images."""
    device = real.train.labels_N.device
    return distilled_of(real, canvas, Area(), rng_for(1, "canvas")).to(device)
