"""A source after reading: two splits of uint8 images, and the batches a student sees of them.

Shape suffixes: N rows, B a batch, K classes, C channels, H W pixels, D = C * H * W.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from distill_datasets.data.normalization import Normalization
from distill_datasets.data.provenance import Provenance
from distill_datasets.data.reading import BadRow, Split
from distill_datasets.errors import DataError
from distill_datasets.types import Batch, Shape


@dataclass(frozen=True, eq=False)
class Decoded:
    """The images of a source as they were read, before any normalization."""

    train: Split
    test: Split
    class_names: list[str]
    skipped: list[BadRow]
    provenance: Provenance

    @property
    def shape(self) -> Shape:
        """Channels, height, width and classes."""
        c, h, w = self.train.images_NCHW.shape[1:]
        return Shape(c, h, w, len(self.class_names))

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Named tensors and a JSON note, for one safetensors file."""
        tensors = {
            "train_images": self.train.images_NCHW,
            "train_labels": self.train.labels_N,
            "test_images": self.test.images_NCHW,
            "test_labels": self.test.labels_N,
        }
        note = {
            "class_names": self.class_names,
            "skipped": [list(row) for row in self.skipped],
            "provenance": self.provenance.as_json(),
        }
        return tensors, note

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> "Decoded":
        """The inverse of `to_tensors`."""
        return cls(
            Split(tensors["train_images"], tensors["train_labels"]),
            Split(tensors["test_images"], tensors["test_labels"]),
            list(note["class_names"]),
            [BadRow(*row) for row in note["skipped"]],
            Provenance.from_json(note["provenance"]),
        )


@dataclass(eq=False)
class RealData:
    """Real images on a device, and the way into the student's input space."""

    train: Split
    test: Split
    class_names: list[str]
    normalization: Normalization
    shape: Shape

    @classmethod
    def build(
        cls, decoded: Decoded, normalization: Normalization, device: torch.device
    ) -> "RealData":
        """What was read, moved to a device."""
        train, test = (
            Split(split.images_NCHW.to(device), split.labels_N.to(device))
            for split in (decoded.train, decoded.test)
        )
        return cls(train, test, decoded.class_names, normalization.to(device), decoded.shape)

    def _batch(self, split: Split, index_B: Tensor | slice) -> Batch:
        images_BCHW = self.normalization.apply(split.images_NCHW[index_B])
        targets_BK = functional.one_hot(split.labels_N[index_B], self.shape.k).float()
        return Batch(images_BCHW, targets_BK)

    def batch(self, rng: torch.Generator, size: int) -> Batch:
        """Training rows drawn uniformly without replacement, decided by `rng` alone.

        Raises:
            DataError: more rows are asked for than there are.
        """
        rows = len(self.train.labels_N)
        if size > rows:
            raise DataError(
                f"a batch of {size} real images was asked for and the training split has {rows}; "
                "lower the batch size, or raise source.limit"
            )
        index_B = torch.randperm(rows, generator=rng, device=rng.device)[:size]
        return self._batch(self.train, index_B.to(self.train.labels_N.device))

    def class_images(self, rng: torch.Generator, label: int, size: int) -> Tensor:
        """Training images of one class in the student's input space, (size, C, H, W).

        Drawn without replacement where the class has enough of them, else with.
        """
        own_N = self.rows_of_class[label]
        if size <= len(own_N):
            place_B = torch.randperm(len(own_N), generator=rng)[:size]
        else:
            place_B = torch.randint(len(own_N), (size,), generator=rng)
        return self.normalization.apply(self.train.images_NCHW[own_N[place_B.to(own_N.device)]])

    @cached_property
    def rows_of_class(self) -> list[Tensor]:
        """The training rows of every class."""
        labels_N = self.train.labels_N
        return [(labels_N == label).nonzero().flatten() for label in range(self.shape.k)]

    def select(self, index_B: Tensor) -> Batch:
        """The training rows `index_B`, normalized."""
        return self._batch(self.train, index_B)

    def examples(self, rng: torch.Generator, per_class: int) -> Tensor:
        """Random training images of every class as displayable pixels, classes in order.

        They show what a student sees: for zca the whitened images, clipped to the range shown.

        Returns:
            (classes * per_class, C, H, W) in [0, 1]; a class with too few images repeats them.
        """
        labels_N = self.train.labels_N.cpu()
        order_N = torch.randperm(len(labels_N), generator=rng)
        rows = []
        for label in range(self.shape.k):
            of_class = order_N[labels_N[order_N] == label]
            rows.append(of_class.repeat(-(-per_class // len(of_class)))[:per_class])
        index_B = torch.cat(rows).to(self.train.labels_N.device)
        seen = self.select(index_B).images_BCHW
        shape = (-1, 1, 1)
        shown = seen * self.normalization.display_std_C.view(shape)
        return (shown + self.normalization.display_mean_C.view(shape)).clamp(0, 1).cpu()

    def test_batches(self, size: int) -> Iterator[Batch]:
        """The test rows in order, `size` at a time; the last batch may be smaller."""
        for start in range(0, len(self.test.labels_N), size):
            yield self._batch(self.test, slice(start, start + size))

    def prototypes_KCHW(self) -> Tensor:
        """The mean training image of each class, in [0, 1]; sums are exact integers."""
        images_NCHW, labels_N = self.train
        sums_KD = torch.zeros(
            (self.shape.k, images_NCHW[0].numel()), dtype=torch.int64, device=images_NCHW.device
        )
        for images_BCHW, labels_B in zip(
            torch.split(images_NCHW, 1024), torch.split(labels_N, 1024), strict=True
        ):
            sums_KD.index_add_(0, labels_B, images_BCHW.flatten(1).long())
        counts_K = torch.bincount(labels_N, minlength=self.shape.k)
        means_KD = sums_KD.float() / (255 * counts_K[:, None].float())
        return means_KD.view(self.shape.k, *images_NCHW.shape[1:])
