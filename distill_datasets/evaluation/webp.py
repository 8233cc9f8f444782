"""Real images as lossy WebP, of no more bytes than the published ones.

Which size and quality serve best is decided by nearest neighbors: each form is drawn once, from
training images without those that are held out, and the one whose nearest images name most of the
held-out ones rightly is taken. Test images have no say.

Shape suffixes: N images, C channels, H W pixels, h w those of a shrunk image, K classes.
"""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

import torch
from torch.nn import functional

from distill_datasets.evaluation.held_out import holding_out, nearest_neighbor_accuracy
from distill_datasets.evaluation.references import (
    MakeStored,
    Room,
    by_area,
    enlarged,
    random_rows,
)
from distill_datasets.media.image import open_image, to_bytes, to_pixels, webp
from distill_datasets.runtime.draws import Draw, draws
from distill_datasets.training.examples import Stored

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.real import RealData

SIDES = (1.0, 0.75, 0.5)
"""Of an image, as shares of the source's."""
QUALITIES = (80, 50, 20)
WEIGHED = 200
"""Images that tell how many fit."""
HELD_OUT = 500


class Form(NamedTuple):
    """How images are stored: their size, the quality and how many of a class."""

    size: tuple[int, int]
    quality: int
    per_class: int


class Webp:
    """Random real images as WebP; others for every student.

    Args:
        real: the source.
        budget: bytes that all images together do not exceed, unless one of a class does.
        seed: of the run.
    """

    def __init__(self, real: RealData, budget: int, seed: int) -> None:
        self._real, self.budget = real, budget
        self._draw = draws(seed, "evaluate", "webp form")

    @functools.cached_property
    def form(self) -> Form:
        """What serves nearest neighbors best."""
        rest = holding_out(self._real, HELD_OUT, self._draw("held out"))
        forms = list(self._forms(rest))
        scores = [
            nearest_neighbor_accuracy(self._stored(rest, form, self._draw), rest) for form in forms
        ]
        return forms[scores.index(max(scores))]

    @property
    def room(self) -> Room:
        """How many images there are, and their size."""
        images = self.form.per_class * self._real.shape.k
        return Room(images, self.form.size, shrunk=True)

    def examples(self) -> MakeStored:
        """What a student trains on."""
        return lambda draw: self._stored(self._real, self.form, draw)

    def _forms(self, rest: RealData) -> list[Form]:
        """Every size and quality that an image of each class fits in; the lightest if none does."""
        shape = rest.shape
        rows_N = random_rows(rest, min(WEIGHED, len(rest.train.labels_N)), self._draw)
        forms, weights = [], []
        for share, quality in itertools.product(SIDES, QUALITIES):
            size = (max(1, round(share * shape.h)), max(1, round(share * shape.w)))
            files = _files(rest, rows_N, size, quality)
            weight = sum(map(len, files)) / len(files)
            forms.append(Form(size, quality, int(self.budget / weight / shape.k)))
            weights.append(weight)
        fitting = [form for form in forms if form.per_class]
        lightest = forms[weights.index(min(weights))]._replace(per_class=1)
        return fitting or [lightest]

    def _stored(self, real: RealData, form: Form, draw: Draw) -> Stored:
        shape, device = real.shape, real.train.labels_N.device
        rows_N = random_rows(real, form.per_class * shape.k, draw)
        files = _files(real, rows_N, form.size, form.quality)
        # a heavy draw has fewer; rows come in turns of all classes
        while sum(map(len, files)) > self.budget and len(files) > shape.k:
            files = files[: -shape.k]
        channels = cast("Literal[1, 3]", shape.c)
        small = [to_pixels(open_image(file), channels, None) for file in files]
        seen_NCHW = enlarged(torch.stack(small).float(), (shape.h, shape.w)).to(device)
        labels_N = real.train.labels_N[rows_N[: len(files)].to(device)]
        targets_NK = functional.one_hot(labels_N, shape.k).float()
        return Stored(real.normalization.apply(seen_NCHW), targets_NK, input_space=None)


def _files(real: RealData, rows_N: Tensor, size: tuple[int, int], quality: int) -> list[bytes]:
    """Training images, shrunk to a size, as WebP."""
    images_NCHW = real.train.images_NCHW
    shown_NCHW = images_NCHW[rows_N.to(images_NCHW.device)].float().cpu() / 255
    small_NChw = to_bytes(by_area(shown_NCHW, size))
    return [webp(image_Chw, quality) for image_Chw in small_NChw]
