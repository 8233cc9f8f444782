"""Real images as lossy files, WebP or JPEG, of no more bytes than the published ones.

Which size and quality serve best is decided by nearest neighbors: each form is drawn once, from
training images without those that are held out, and the one whose nearest images name most of the
held-out ones rightly is taken. Test images have no say.

Shape suffixes: N images, C channels, H W pixels, h w those of a shrunk image, K classes.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
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
from distill_datasets.media.image import jpeg, open_image, to_bytes, to_pixels, webp
from distill_datasets.runtime.draws import Draw, draws
from distill_datasets.training.examples import Stored

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.real import RealData

Kind = Literal["webp", "webp_half", "jpeg"]
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


class Lossy:
    """Random real images as lossy files; others for every student.

    Args:
        real: the source that the form is chosen on.
        budget: bytes that all images together do not exceed, unless one of a class does.
        seed: of the run.
        kind: WebP of whichever size serves best, or of half the size, or JPEG.
        filled: fill the budget image by image, where classes may differ by one, and never exceed
            it; else class by class.
        label: bytes that go with every image, and count.
    """

    def __init__(
        self,
        real: RealData,
        budget: int,
        seed: int,
        kind: Kind = "webp",
        *,
        filled: bool = False,
        label: int = 0,
    ) -> None:
        self._real, self.budget, self._filled, self._label = real, budget, filled, label
        self._encode = jpeg if kind == "jpeg" else webp
        self._sides = SIDES if kind != "webp_half" else (0.5,)
        self._draw = draws(seed, "evaluate", f"{kind} form")

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

    def examples(self, real: RealData | None = None) -> MakeStored:
        """What a student trains on, drawn from the same source or another of its shape."""
        return lambda draw: self._stored(real or self._real, self.form, draw)

    def weighed(self, real: RealData, draw: Draw) -> tuple[int, int]:
        """How many images one student gets, and what their files weigh."""
        files, _ = self._kept(real, self.form, draw)
        return len(files), sum(map(len, files))

    def _forms(self, rest: RealData) -> list[Form]:
        """Every size and quality that an image of each class fits in; the lightest if none does."""
        shape = rest.shape
        rows_N = random_rows(rest, min(WEIGHED, len(rest.train.labels_N)), self._draw)
        forms, weights = [], []
        for share, quality in itertools.product(self._sides, QUALITIES):
            size = (max(1, round(share * shape.h)), max(1, round(share * shape.w)))
            files = _files(rest, rows_N, size, quality, self._encode)
            weight = sum(map(len, files)) / len(files) + self._label
            forms.append(Form(size, quality, int(self.budget / weight / shape.k)))
            weights.append(weight)
        fitting = [form for form in forms if form.per_class]
        lightest = forms[weights.index(min(weights))]._replace(per_class=1)
        return fitting or [lightest]

    def _kept(self, real: RealData, form: Form, draw: Draw) -> tuple[list[bytes], Tensor]:
        """The files that fit, and their training rows."""
        classes = real.shape.k
        # rows come in turns of all classes; a light draw has room for more than planned
        planned = (form.per_class + (form.per_class // 10 + 2 if self._filled else 0)) * classes
        if self._filled:
            planned = min(planned, len(real.train.labels_N))
        rows_N = random_rows(real, planned, draw)
        files = _files(real, rows_N, form.size, form.quality, self._encode)
        weights = (len(file) + self._label for file in files)
        fitting = sum(total <= self.budget for total in itertools.accumulate(weights))
        if not self._filled:
            fitting -= fitting % classes
        kept = max(fitting, 1 if self._filled else classes)
        return files[:kept], rows_N[:kept]

    def _stored(self, real: RealData, form: Form, draw: Draw) -> Stored:
        shape, device = real.shape, real.train.labels_N.device
        files, rows_N = self._kept(real, form, draw)
        channels = cast("Literal[1, 3]", shape.c)
        small = [to_pixels(open_image(file), channels, None) for file in files]
        seen_NCHW = enlarged(torch.stack(small).float(), (shape.h, shape.w)).to(device)
        labels_N = real.train.labels_N[rows_N.to(device)]
        targets_NK = functional.one_hot(labels_N, shape.k).float()
        return Stored(real.normalization.apply(seen_NCHW), targets_NK, input_space=None)


def _files(
    real: RealData,
    rows_N: Tensor,
    size: tuple[int, int],
    quality: int,
    encode: Callable[[Tensor, int], bytes] = webp,
) -> list[bytes]:
    """Training images, shrunk to a size, as lossy files."""
    images_NCHW = real.train.images_NCHW
    shown_NCHW = images_NCHW[rows_N.to(images_NCHW.device)].float().cpu() / 255
    small_NChw = to_bytes(by_area(shown_NCHW, size))
    return [encode(image_Chw, quality) for image_Chw in small_NChw]
