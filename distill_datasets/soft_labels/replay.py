"""What students of views train on: their images, with labels of teachers or with classes.

Images stay on the device in 8 bits; every step renders the views of its batch there. One pass of a
student is one epoch of views.

Shape suffixes: N images, B a batch, K classes, C channels, H W pixels, X logits or features.
"""

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from distill_datasets.data.normalization import InputSpace
from distill_datasets.runtime.draws import Draw
from distill_datasets.soft_labels.codes import Code
from distill_datasets.soft_labels.records import Records
from distill_datasets.training.examples import Examples, shuffled
from distill_datasets.training.losses import HardPasses, TeacherLoss, smoothed
from distill_datasets.types import Batch
from distill_datasets.views.recorded import Views, concatenated, draw_views, replay
from distill_datasets.views.relabel import Relabel, ViewSettings

if TYPE_CHECKING:
    from distill_datasets.data.real import RealData

DRAWN_BYTES = 2**30
"""Views that are kept so that a batch of a pool is not drawn with its whole epoch: some 66 bytes
each, all 300 epochs of 50,000 images."""
Labeler = Callable[[Tensor, Tensor], Tensor]
"""Outputs of teachers (B, X) for rendered images (B, C, H, W) in BatchNorm groups (B,)."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """The images that views are of, in 8 bits, with their classes and the student's input space."""

    images_NCHW: Tensor
    labels_N: Tensor
    space: InputSpace
    classes: int

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.images_NCHW)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image, in pixels."""
        height, width = self.images_NCHW.shape[2:]
        return height, width

    def render(self, views: Views) -> Tensor:
        """Views in the student's input space, on the device of the labels."""
        return replay(self.images_NCHW, views, self.space).to(self.labels_N.device)

    def mixed_labels(self, views: Views) -> Tensor:
        """The classes of both images of every view, by their share of its area, (B, K)."""
        # outside of the box the own image has its share; CutMix: share 1, MixUp: no box
        height, width = self.size
        top_B, left_B, bottom_B, right_B = views.box_B4.unbind(1)
        boxed_B = (bottom_B - top_B) * (right_B - left_B) / (height * width)
        own_B1 = (views.share_B * (1 - boxed_B))[:, None]
        own_BK, partner_BK = (
            F.one_hot(self.labels_N[image_B.long()], self.classes)
            for image_B in (views.image_B, views.partner_B)
        )
        return own_B1 * own_BK + (1 - own_B1) * partner_BK


class LabeledViews(NamedTuple):
    """Views and their coded labels, as columns of one row per view."""

    views: Views
    columns: dict[str, Tensor]

    def at(self, index_B: Tensor) -> "LabeledViews":
        """The rows `index_B`."""
        rows = {name: column[index_B] for name, column in self.columns.items()}
        return LabeledViews(self.views.at(index_B), rows)

    def to(self, device: torch.device) -> "LabeledViews":
        """The same on a device."""
        rows = {name: column.to(device) for name, column in self.columns.items()}
        return LabeledViews(self.views.to(device), rows)


class TrainingStream(ABC):
    """Views of N images, epoch by epoch.

    `pool` is the number of batches, counted over all epochs, that students draw from with
    replacement (LPLD, arXiv:2410.15919); None where pass p takes all of epoch p.
    """

    pool: int | None

    @abstractmethod
    def epoch(self, number: int) -> LabeledViews:
        """The views of an epoch; beyond the last one they begin anew."""

    @abstractmethod
    def batch(self, number: int) -> LabeledViews:
        """The views of one batch of the pool."""


class RecordStream(TrainingStream):
    """Views and labels as they were published."""

    def __init__(self, settings: Relabel, records: Records, code: Code) -> None:
        self._records, self._names = records, list(code.columns)
        self._batches = settings.batches(records.per_epoch)
        self.pool = settings.pool(records.per_epoch)

    def epoch(self, number: int) -> LabeledViews:
        return self._labeled(*self._records.epoch(number % self._records.epochs))

    def batch(self, number: int) -> LabeledViews:
        epoch, place = divmod(number, len(self._batches))
        start, stop = (epoch * self._records.per_epoch + end for end in self._batches[place])
        return self._labeled(*self._records.rows(start, stop))

    def _labeled(self, views: Views, columns: dict[str, Tensor]) -> LabeledViews:
        return LabeledViews(views, {name: columns[name] for name in self._names})


class TeacherStream(TrainingStream):
    """The same views drawn again and labeled by the teachers when they are asked for.

    A pool is drawn from at random over all of its epochs, so these are kept, up to `DRAWN_BYTES`.
    """

    def __init__(
        self,
        settings: Relabel,
        pictures: Pictures,
        draw: Draw,
        labeler: Labeler,
        encode: Callable[[Tensor], dict[str, Tensor]],
    ) -> None:
        self._settings, self._pictures, self._draw = settings, pictures, draw
        self._labeler, self._encode = labeler, encode
        self._batches = settings.batches(pictures.count)
        self.pool = settings.pool(pictures.count)
        self._drawn, self._lock = OrderedDict[int, Views](), threading.Lock()

    def epoch(self, number: int) -> LabeledViews:
        views = self._views(number % self._settings.epochs)
        parts = [self._labeled(views.at(slice(*batch))) for batch in self._batches]
        return joined(parts)

    def batch(self, number: int) -> LabeledViews:
        epoch, place = divmod(number, len(self._batches))
        return self._labeled(self._kept(epoch).at(slice(*self._batches[place])))

    def _kept(self, epoch: int) -> Views:
        """The views of an epoch; those that were asked for longest ago make room for others."""
        with self._lock:  # students that are trained side by side share the pool
            if epoch not in self._drawn:
                views = self._views(epoch)
                own_bytes = sum(column.nbytes for column in views if column is not None)
                while self._drawn and (len(self._drawn) + 1) * own_bytes > DRAWN_BYTES:
                    self._drawn.popitem(last=False)
                self._drawn[epoch] = views
            self._drawn.move_to_end(epoch)
            return self._drawn[epoch]

    def _views(self, epoch: int) -> Views:
        settings, pictures = self._settings, self._pictures
        return draw_views(
            settings, epoch, pictures.count, pictures.size, self._draw, settings.norm_groups
        )

    def _labeled(self, views: Views) -> LabeledViews:
        output_BX = self._labeler(self._pictures.render(views), views.group_B)
        return LabeledViews(views, self._encode(output_BX))


class SoftLabelExamples(Examples):
    """Views of images with a teacher's labels; one student's own, as it holds the current epoch."""

    def __init__(
        self, pictures: Pictures, stream: TrainingStream, code: Code, loss: TeacherLoss
    ) -> None:
        self._pictures, self._stream, self._code, self._loss = pictures, stream, code, loss
        self._now: LabeledViews | None = None

    @property
    def count(self) -> int:
        return self._pictures.count

    def order(self, rng: torch.Generator, batch: int, turn: int) -> Tensor:
        pool = self._stream.pool
        if pool is None:
            labeled, index_N = self._stream.epoch(turn), shuffled(self.count, rng, batch)
        else:
            labeled = _drawn(self._stream, pool, self.count, rng)
            index_N = torch.arange(self.count)
        self._now = labeled.to(self._pictures.labels_N.device)
        return index_N

    def __call__(self, index_B: Tensor) -> Batch:
        assert self._now is not None, "order comes before the first batch of a pass"
        views, columns = self._now.at(index_B)
        label_B = self._pictures.labels_N[views.image_B.long()]
        targets = self._loss.targets(self._code.decode(columns), label_B)
        return Batch(self._pictures.render(views), targets)

    def loss(self, logits_BK: Tensor, targets_BK: Tensor) -> Tensor:
        return self._loss(logits_BK, targets_BK)


class HardLabelExamples(Examples):
    """Views of images with the classes of the images, mixed as the views are."""

    def __init__(
        self, settings: ViewSettings, pictures: Pictures, draw: Draw, real: "RealData | None" = None
    ) -> None:
        """`real` is the source where its training images are meant: drawn and judged as it says."""
        self._settings, self._pictures, self._draw = settings, pictures, draw
        self._real = real
        self._now: Views | None = None

    @property
    def count(self) -> int:
        return self._pictures.count

    def order(self, rng: torch.Generator, batch: int, turn: int) -> Tensor:
        views = draw_views(self._settings, turn, self.count, self._pictures.size, self._draw)
        if self._real is not None and self._real.sampling != "uniform":
            drawn_N = self._real.order(rng).int()
            views = views._replace(
                image_B=drawn_N[views.image_B.long()], partner_B=drawn_N[views.partner_B.long()]
            )
        self._now = views.to(self._pictures.labels_N.device)
        return shuffled(self.count, rng, batch)

    def __call__(self, index_B: Tensor) -> Batch:
        assert self._now is not None, "order comes before the first batch of a pass"
        views = self._now.at(index_B)
        return Batch(self._pictures.render(views), self._pictures.mixed_labels(views))

    def loss(self, logits_BK: Tensor, targets_BK: Tensor) -> Tensor:
        if self._real is None:
            return F.cross_entropy(logits_BK, targets_BK)
        return self._real.loss(logits_BK, targets_BK)


class MixedPasses(Examples):
    """Passes of recorded views, and in the middle passes of new views with classes."""

    def __init__(
        self, soft: SoftLabelExamples, hard: HardLabelExamples, passes: HardPasses
    ) -> None:
        self._soft, self._hard, self._passes = soft, hard, passes
        self._are_hard = False

    @property
    def count(self) -> int:
        return self._soft.count

    def order(self, rng: torch.Generator, batch: int, turn: int) -> Tensor:
        self._are_hard = self._passes.takes(turn)
        return (self._hard if self._are_hard else self._soft).order(rng, batch, turn)

    def __call__(self, index_B: Tensor) -> Batch:
        if not self._are_hard:
            return self._soft(index_B)
        images_BCHW, targets_BK = self._hard(index_B)
        return Batch(images_BCHW, smoothed(targets_BK, self._passes.label_smoothing))

    def loss(self, logits_BK: Tensor, targets_BK: Tensor) -> Tensor:
        return (self._hard if self._are_hard else self._soft).loss(logits_BK, targets_BK)


def joined(parts: list[LabeledViews]) -> LabeledViews:
    """The views of several, one after the other."""
    names = parts[0].columns
    return LabeledViews(
        concatenated([part.views for part in parts]),
        {name: torch.cat([part.columns[name] for part in parts]) for name in names},
    )


def _drawn(stream: TrainingStream, pool: int, count: int, rng: torch.Generator) -> LabeledViews:
    """Batches of the pool, drawn with replacement until they hold `count` views."""
    parts, views = list[LabeledViews](), 0
    while views < count:
        parts.append(stream.batch(int(torch.randint(pool, (), generator=rng))))
        views += len(parts[-1].views.image_B)
    return joined(parts)
