"""A source after reading: two splits of uint8 images, and the batches a student sees of them.

Shape suffixes: N rows, B a batch, K classes, C channels, H W pixels, D = C * H * W.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.nn import functional

from distill_datasets import targets
from distill_datasets.data.decoding import BadRow, Split
from distill_datasets.data.features import Features
from distill_datasets.data.normalization import Normalization
from distill_datasets.data.provenance import Provenance
from distill_datasets.errors import DataError
from distill_datasets.runtime.memory import GIB, available_bytes, to_device
from distill_datasets.types import Batch, Shape, Task

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.models.backbones import Backbone
    from distill_datasets.models.generator import Generator

logger = logging.getLogger("distill_datasets")

Sampling = Literal["uniform", "balanced", "group_balanced"]

RESIDENT_SHARE = 0.5
_WARNING = threading.Lock()
"""Lanes are threads, and what they ask for is reported once."""


@dataclass(frozen=True, eq=False)
class Decoded:
    """The images of a source as they were read, before any normalization."""

    train: Split
    test: Split
    class_names: list[str]
    skipped: list[BadRow]
    provenance: Provenance
    task: Task = "classes"
    group_names: list[str] = field(default_factory=list)

    @property
    def shape(self) -> Shape:
        """Channels, height, width and outputs."""
        c, h, w = self.train.images_NCHW.shape[1:]
        return Shape(c, h, w, len(self.class_names), self.task)

    @property
    def counts_K(self) -> list[int]:
        """Training images of every class."""
        return _counts(self.train, len(self.class_names))

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything but the images as named tensors and a JSON note, for one safetensors file."""
        tensors = {"train_labels": self.train.labels_N, "test_labels": self.test.labels_N}
        for name, split in (("train_targets", self.train), ("test_targets", self.test)):
            tensors |= {} if split.targets_NK is None else {name: split.targets_NK}
        for name, split in (("train_groups", self.train), ("test_groups", self.test)):
            tensors |= {} if split.groups_N is None else {name: split.groups_N}
        note = {
            "task": self.task,
            "group_names": self.group_names,
            "class_names": self.class_names,
            "skipped": [list(row) for row in self.skipped],
            "provenance": self.provenance.as_json(),
        }
        return tensors, note

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Tensor],
        note: Mapping[str, Any],
        train_NCHW: Tensor,
        test_NCHW: Tensor,
    ) -> Decoded:
        """The inverse of `to_tensors`, given the images."""
        return cls(
            _split_from("train", tensors, train_NCHW),
            _split_from("test", tensors, test_NCHW),
            list(note["class_names"]),
            [BadRow(*row) for row in note["skipped"]],
            Provenance.from_json(note["provenance"]),
            note["task"],
            list(note.get("group_names", [])),
        )


@dataclass(eq=False)
class RealData:
    """Real images, and the way into the student's input space on a device.

    Labels lie on the device. Images lie there when they fit (see `resident`), else where they were
    read to, often a memory-mapped file, and what is asked for is moved.
    `sampling` says how training rows are drawn, `calibrate` whether the loss on them knows how many
    of them every class has.
    """

    train: Split
    test: Split
    class_names: list[str]
    normalization: Normalization
    shape: Shape
    sampling: Sampling = "uniform"
    calibrate: bool = False
    group_names: list[str] = field(default_factory=list)
    features: dict[str, Features] = field(default_factory=dict)
    """By the key of a backbone; the features stage puts them here."""
    generator: Generator | None = None
    """Where the recipe has one; the generator stage puts it here."""

    def features_of(self, backbone: Backbone) -> Features:
        """The images as a backbone sees them.

        Raises:
            DataError: nobody has computed these features; a run does so for every backbone that
                its recipe names.
        """
        if backbone.key not in self.features:
            raise DataError(
                f"backbone: the features of {backbone.title} are not there; the recipe that is run "
                "has to name it"
            )
        return self.features[backbone.key]

    @classmethod
    def build(
        cls,
        decoded: Decoded,
        normalization: Normalization,
        device: torch.device,
        sampling: Sampling = "uniform",
        calibrate: bool = False,
    ) -> RealData:
        """What was read, for a device."""
        splits = [decoded.train, decoded.test]
        moving = resident(sum(split.images_NCHW.numel() for split in splits), device)
        train, test = (
            Split(
                split.images_NCHW.to(device) if moving else split.images_NCHW,
                split.labels_N.to(device),
                None if split.targets_NK is None else split.targets_NK.to(device),
                None if split.groups_N is None else split.groups_N.to(device),
            )
            for split in splits
        )
        moved = normalization.to(device)
        return cls(
            train,
            test,
            decoded.class_names,
            moved,
            decoded.shape,
            sampling,
            calibrate,
            decoded.group_names,
        )

    def _batch(self, split: Split, index_B: Tensor | slice) -> Batch:
        images_BCHW = self.normalization.apply(_picked(split, index_B))
        if split.targets_NK is None:
            targets_BK = functional.one_hot(split.labels_N[index_B], self.shape.k).float()
        else:
            targets_BK = split.targets_NK[index_B]
        return Batch(images_BCHW, targets_BK)

    def batch(self, rng: torch.Generator, size: int) -> Batch:
        """Training rows drawn as `sampling` says, decided by `rng` alone.

        Uniform draws are without replacement; balanced ones repeat the rows of small classes.

        Raises:
            DataError: more rows are asked for than there are.
        """
        rows = len(self.train.labels_N)
        if size > rows:
            raise DataError(
                f"a batch of {size} real images was asked for and the training split has {rows}; "
                "lower the batch size, or raise source.limit"
            )
        return self._batch(
            self.train, to_device(self._drawn(rng, size), self.train.labels_N.device)
        )

    def order(self, rng: torch.Generator) -> Tensor:
        """The training rows of one pass, (N,): a permutation, or as balanced a list as long."""
        return self._drawn(rng, len(self.train.labels_N))

    def _drawn(self, rng: torch.Generator, size: int) -> Tensor:
        """The first `size` training rows of a pass.

        Balanced, every K in a row, one of each class, are followed by K others; a class begins its
        rows anew, in another order, when all have been drawn. Balanced by groups, the pairs of a
        class and a group stand in the place of classes.
        """
        if self.sampling == "uniform":
            rows = len(self.train.labels_N)
            return torch.randperm(rows, generator=rng, device=rng.device)[:size]
        cells = self.rows_of_class
        if self.sampling == "group_balanced":
            cells = [own_N for groups in self._rows_of_groups for own_N in groups]
        turns = -(-size // len(cells))
        columns = []
        for own_N in cells:
            passes = range(-(-turns // len(own_N)))
            places = [torch.randperm(len(own_N), generator=rng) for _ in passes]
            columns.append(own_N.cpu()[torch.cat(places)[:turns]])
        order_K = torch.randperm(len(cells), generator=rng)
        return torch.stack(columns, dim=1)[:, order_K].flatten()[:size]

    def loss(
        self, logits_BK: Tensor, targets_BK: Tensor, reduction: Literal["mean", "sum"] = "mean"
    ) -> Tensor:
        """What is lowered on real images; calibrated, a logit gets the log share of its class.

        Source: balanced softmax (arXiv:2007.10740), equation 3.
        """
        if self.calibrate:
            logits_BK = logits_BK + self._log_prior_K.to(logits_BK.dtype)
        return targets.loss(self.shape.task, logits_BK, targets_BK, reduction)

    @cached_property
    def counts_K(self) -> list[int]:
        """Training images of every class."""
        return _counts(self.train, self.shape.k)

    @cached_property
    def _log_prior_K(self) -> Tensor:
        counts_K = torch.tensor(self.counts_K, dtype=torch.float64)
        return (counts_K / counts_K.sum()).log().to(self.train.labels_N.device)

    def class_images(self, rng: torch.Generator, label: int, size: int) -> Tensor:
        """Training images of one class in the student's input space, (size, C, H, W).

        Drawn without replacement where the class has enough of them, else with, and reported.
        Balanced by groups, every group of the class gives as many, and a small one repeats its own.
        """
        own_N = self.rows_of_class[label]
        if self.sampling == "group_balanced":
            own_B = self._balanced_rows(rng, self._rows_of_groups[label], size)
        elif size <= len(own_N):
            place_B = torch.randperm(len(own_N), generator=rng)[:size]
            own_B = own_N[to_device(place_B, own_N.device)]
        else:
            self.warn_of_few(size)
            place_B = torch.randint(len(own_N), (size,), generator=rng)
            own_B = own_N[to_device(place_B, own_N.device)]
        return self.normalization.apply(_picked(self.train, own_B))

    def _balanced_rows(self, rng: torch.Generator, groups: list[Tensor], size: int) -> Tensor:
        """As many rows of every group; which groups give one more is drawn."""
        each, more = divmod(size, len(groups))
        order_G = torch.randperm(len(groups), generator=rng).tolist()
        chosen = []
        for turn, group in enumerate(order_G):
            own_N, count = groups[group], each + (turn < more)
            passes = range(-(-count // len(own_N)))
            places = [torch.randperm(len(own_N), generator=rng) for _ in passes]
            place_B = torch.cat([torch.empty(0, dtype=torch.int64), *places])[:count]
            chosen.append(own_N[to_device(place_B, own_N.device)])
        return torch.cat(chosen)

    @cached_property
    def _warned_of(self) -> set[int]:
        """How many images of every class were asked for when some had fewer."""
        return set()

    @cached_property
    def rows_of_class(self) -> list[Tensor]:
        """The training rows of every class."""
        order_N = self.train.labels_N.argsort(stable=True)
        return list(torch.split(order_N, self.counts_K))

    @cached_property
    def _rows_of_groups(self) -> list[list[Tensor]]:
        """The training rows of every class, in those of its groups that have any."""
        groups_N = self.train.groups_N
        assert groups_N is not None, "a recipe that balances groups names them"
        return [
            [own_N[groups_N[own_N] == group] for group in sorted({*groups_N[own_N].tolist()})]
            for own_N in self.rows_of_class
        ]

    def select(self, index_B: Tensor) -> Batch:
        """The training rows `index_B`, normalized."""
        return self._batch(self.train, index_B)

    def examples(self, rng: torch.Generator, per_class: int) -> Tensor:
        """Random training images of every class as displayable pixels, classes in order.

        Returns:
            (classes * per_class, C, H, W) in [0, 1]; a class with too few images repeats them.
        """
        self.warn_of_few(per_class)
        labels_N = self.train.labels_N.cpu()
        order_N = torch.randperm(len(labels_N), generator=rng)
        rows = []
        for label in range(self.shape.k):
            of_class = order_N[labels_N[order_N] == label]
            rows.append(of_class.repeat(-(-per_class // len(of_class)))[:per_class])
        return self.displayable(torch.cat(rows))

    def displayable(self, index_B: Tensor) -> Tensor:
        """The training rows `index_B` as pixels, (B, C, H, W) in [0, 1] on the CPU.

        They show what a student sees: for zca the whitened images, clipped to the range shown.
        """
        seen = self.select(index_B.to(self.train.labels_N.device)).images_BCHW
        return self.normalization.input_space.to_pixels(seen).clamp(0, 1).cpu()

    def warn_of_few(self, per_class: int) -> None:
        """Log which classes have fewer training images than are asked of every class, once."""
        with _WARNING:
            if per_class in self._warned_of:
                return
            self._warned_of.add(per_class)
        few = [
            f"{name} ({count})"
            for name, count in zip(self.class_names, self.counts_K, strict=True)
            if count < per_class
        ]
        if few:
            logger.warning(
                "%d images of every class were asked for; these have fewer and repeat them: %s%s",
                per_class, ", ".join(few[:20]), ", ..." if len(few) > 20 else "",
            )  # fmt: skip

    def test_batches(self, size: int) -> Iterator[Batch]:
        """The test rows in order, `size` at a time; the last batch may be smaller."""
        for start in range(0, len(self.test.labels_N), size):
            yield self._batch(self.test, slice(start, start + size))

    def prototypes_KCHW(self) -> Tensor:
        """The mean training image of each class, in [0, 1]; sums are exact integers."""
        images_NCHW, labels_N = self.train.images_NCHW, self.train.labels_N
        sums_KD = torch.zeros(
            (self.shape.k, images_NCHW[0].numel()), dtype=torch.int64, device=labels_N.device
        )
        for images_BCHW, labels_B in zip(
            torch.split(images_NCHW, 1024), torch.split(labels_N, 1024), strict=True
        ):
            sums_KD.index_add_(0, labels_B, images_BCHW.to(labels_B.device).flatten(1).long())
        counts_K = torch.bincount(labels_N, minlength=self.shape.k)
        means_KD = sums_KD.float() / (255 * counts_K[:, None].float())
        return means_KD.view(self.shape.k, *images_NCHW.shape[1:])


def resident(size: int, device: torch.device) -> bool:
    """Whether so many bytes of images are kept on a device.

    Always on the CPU, where they may stay in the file they were read to. On an accelerator when
    they take at most `RESIDENT_SHARE` of the memory that is free there now; where a device does not
    tell, the memory of the machine is taken for its own.
    """
    if device.type == "cpu":
        return True
    memory_info = getattr(torch.get_device_module(device), "mem_get_info", None)
    free = available_bytes() if memory_info is None else memory_info(device)[0]
    kept = size <= RESIDENT_SHARE * free
    if not kept:
        logger.info(
            "source: %.1f GiB of images stay off the device (%.1f GiB free); batches are moved",
            size / GIB, free / GIB,
        )  # fmt: skip
    return kept


def _split_from(role: str, tensors: Mapping[str, Tensor], images_NCHW: Tensor) -> Split:
    """A split of what `to_tensors` gave."""
    targets_NK, groups_N = (tensors.get(f"{role}_{name}") for name in ("targets", "groups"))
    return Split(images_NCHW, tensors[f"{role}_labels"], targets_NK, groups_N)


def _picked(split: Split, index_B: Tensor | slice) -> Tensor:
    """Rows of a split on the device of its labels."""
    images_NCHW = split.images_NCHW
    chosen = index_B if isinstance(index_B, slice) else index_B.to(images_NCHW.device)
    return to_device(images_NCHW[chosen], split.labels_N.device)


def _counts(split: Split, classes: int) -> list[int]:
    """Images of every class."""
    counts_K: list[int] = torch.bincount(split.labels_N, minlength=classes).tolist()
    return counts_K
