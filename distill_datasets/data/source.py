"""The recipe's `source` section, and how any image classification dataset becomes two splits.

`open_source` finds a source once; what it is (its commit, its files), what one example looks like
and its rows all come from the `SourceDataset` that it returns. Test rows are never among the
training rows: they are another split, or cut off before anything else is drawn.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    field_validator,
    model_serializer,
    model_validator,
)

from distill_datasets.config import Section
from distill_datasets.data import columns, image_columns, opening
from distill_datasets.data.account import Account
from distill_datasets.data.chosen import CHANNELS, SourceLayout, cells_in, chosen_rows, layout_of
from distill_datasets.data.counts import RowCount, check_tested, check_trained, count_rows
from distill_datasets.data.decoding import (
    BadRow,
    Channels,
    Read,
    Split,
    SplitRows,
    first_image,
    first_shape,
)
from distill_datasets.data.normalization import Kind
from distill_datasets.data.overlap import Overlap, Policy, find_overlap
from distill_datasets.data.provenance import (
    MEMORY_NAME,
    Provenance,
    of_hub,
    of_images,
    of_memory,
    of_path,
)
from distill_datasets.data.real import Decoded, Sampling
from distill_datasets.data.stores import InMemory, Store
from distill_datasets.data.target_columns import Outputs
from distill_datasets.errors import DataError, cut
from distill_datasets.media.view import ViewField
from distill_datasets.runtime.draws import Draw
from distill_datasets.types import Shape, Task

if TYPE_CHECKING:
    from torch import Tensor

Name = Annotated[str, StringConstraints(min_length=1, max_length=1000)]


class Expected(Section):
    """What a dataset that is not at hand looks like."""

    classes: int = Field(ge=2, le=1_000_000, description="number of classes that are distilled")
    rows: int = Field(gt=0, le=10_000_000_000, description="training images")
    channels: Channels = Field(default=3, description="1 is gray, 3 is color")
    side: int | None = Field(
        default=None,
        gt=0,
        le=10_000,
        description="height and width in pixels; null: source.resolution",
    )


LATER = frozenset({"view", "group"})


class Source(Section):
    """Which images are distilled, and how they are read."""

    dataset: Name = Field(description="Hub id, local path or embedded:uci-digits")
    config: Name | None = Field(default=None, description="config (subset) of the dataset")
    revision: Name | None = Field(default=None, description="Hub branch, tag or commit")
    train_split: Name | None = Field(default=None, description="default: train")
    test_split: Name | None = Field(
        default=None,
        description="default: test, validation, valid or val; else a part of train is cut off",
    )
    test_share: float = Field(
        default=0.2, gt=0, lt=1, description="share of each class cut off when no split is for test"
    )
    image_column: Name | None = Field(default=None, description="default: the only Image column")
    label_column: Name | None = Field(
        default=None, description="default: the only ClassLabel column, or one called label or so"
    )
    label_columns: list[Name] | None = Field(
        default=None,
        min_length=1,
        max_length=10_000,
        description="or a column for each label (0 or 1) or number, with task: labels or values",
    )
    task: Task = Field(
        default="classes",
        description="what a target is: one class; labels, any number of them at once; or values, "
        "numbers to be predicted",
    )
    view: ViewField | None = Field(
        default=None, description="what is seen of a sound, a video or a volume; null: images"
    )
    resolution: int | None = Field(
        default=None, gt=0, le=10_000, description="side in pixels; None keeps the images' own size"
    )
    channels: Literal["auto", "gray", "rgb"] = Field(
        default="auto", description="auto keeps those of the images, which then have to agree"
    )
    classes: list[str | int] | None = Field(
        default=None, description="names or integers of the classes to keep, in the new order"
    )
    limit: int | None = Field(default=None, gt=0, description="rows drawn from each split")
    imbalance: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="make the training split long-tailed: the images of the last class as a share "
        "of those of the first, falling geometrically in the order of the classes",
    )
    sampling: Sampling = Field(
        default="uniform",
        description="draw the real images of a training step uniformly, or equally often from "
        "every class, or from every pair of a class and a group that there is",
    )
    group: Name | None = Field(
        default=None,
        description="column of what images have in common beside their class, as a background or a "
        "hospital: sampling can balance it, and results tell the worst of all pairs of class and "
        "group",
    )
    calibrate: bool = Field(
        default=False,
        description="add the log share of its training images to every class's logit in losses on "
        "uniformly drawn real images (balanced softmax)",
    )
    normalization: Kind = Field(
        default="mean_std", description="of what a student sees: each channel, or whitened (zca)"
    )
    zca_regularization: float = Field(
        default=0.1, ge=0, description="share of the mean eigenvalue added to each eigenvalue"
    )
    mean: list[float] | None = Field(
        default=None,
        description="of every channel in [0, 1], to normalize with instead of that of the training "
        "images: what networks of squeeze.weights were trained with",
    )
    std: list[float] | None = Field(default=None, description="of every channel, beside mean")
    white_level: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="value that is white in files of 16 bits a channel, as in 4095 for 12 bits; "
        "null: 65535, refused where less than a tenth of it is used",
    )
    range: list[float] | None = Field(
        default=None,
        min_length=2,
        max_length=2,
        description="of a column of arrays: the values that become 0 and 1; null: they are bytes",
    )
    background: Literal["white", "black"] | None = Field(
        default=None,
        description="what transparent pixels lie on; null: white, refused where drawings vanish",
    )
    overlap: Policy = Field(
        default="allow",
        description="what is done about test images that are training images too, identical or "
        "nearly: refuse, drop them from training, or allow (above 1 % with a warning)",
    )
    skip_bad_rows: bool = Field(default=False, description="leave unusable rows out, and log them")
    left_out: Literal["refuse", "allow"] = Field(
        default="refuse",
        description="what happens when files that can hold images are in no split: allow logs them",
    )

    expected: Expected | None = Field(
        default=None, description="shape for `plan`, which then does not look at the dataset"
    )

    @model_validator(mode="after")
    def _expected_size_is_known(self) -> Self:
        if self.expected is not None and self.expected.side is None and self.resolution is None:
            raise ValueError("expected.side: missing, and resolution does not tell it either")
        return self

    def expected_shape(self) -> Shape:
        """The shape that `expected` describes, as `peek` would return it."""
        assert self.expected is not None
        side = self.resolution or self.expected.side
        assert side is not None, "the recipe was checked"
        channels = CHANNELS[self.channels] or self.expected.channels
        return Shape(channels, side, side, self.expected.classes, self.task)

    @model_validator(mode="after")
    def _targets_fit_their_columns(self) -> Self:
        if self.task == "classes":
            if self.label_columns is not None:
                raise ValueError(
                    "label_columns: a class stands in one column, label_column; set task: labels "
                    "or task: values for several"
                )
            return self
        if self.label_columns is not None and self.label_column is not None:
            raise ValueError("label_column and label_columns: got both, expected one of them")
        for name, given in (
            ("calibrate", self.calibrate),
            ("imbalance", self.imbalance),
            ("group", self.group),
        ):
            if given:
                raise ValueError(f"{name}: is about classes, got task: {self.task}; leave it out")
        return self

    @model_validator(mode="after")
    def _views_have_keys_of_their_own(self) -> Self:
        if self.view is None:
            return self
        for name, given in (
            ("channels", self.channels != "auto"),
            ("range", self.range),
            ("white_level", self.white_level),
            ("background", self.background),
        ):
            if given:
                raise ValueError(
                    f"{name}: is about images, got view: {self.view.name}; leave it out, and see "
                    "the keys of the view"
                )
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What came later is left out where it is not asked for: older recipes keep their hash."""
        dumped: dict[str, Any] = dump(self)
        return {
            key: value for key, value in dumped.items() if key not in LATER or value is not None
        }

    @field_validator("range")
    @classmethod
    def _range_rises(cls, span: list[float] | None) -> list[float] | None:
        if span is not None and not span[0] < span[1]:
            raise ValueError(f"got {span}, expected the lower value first")
        return span

    @model_validator(mode="after")
    def _one_correction(self) -> Self:
        if self.sampling == "group_balanced" and self.group is None:
            raise ValueError(
                "sampling: group_balanced needs groups; set group to the column that has them"
            )
        if self.calibrate and self.sampling != "uniform":
            raise ValueError(
                f"calibrate: true and sampling: {self.sampling} would correct for unequal classes "
                "twice; choose one of them"
            )
        return self

    @model_validator(mode="after")
    def _mean_and_std_belong_together(self) -> Self:
        mean, std = self.mean, self.std
        if mean is None and std is None:
            return self
        if mean is None or std is None or len(mean) != len(std) or min(std, default=0) <= 0:
            raise ValueError(
                f"mean and std: got {mean} and {std}, expected one number of each for every "
                "channel, std above 0; or neither"
            )
        if self.normalization != "mean_std":
            raise ValueError(
                f"mean and std: given with normalization: {self.normalization}, which fits its "
                "own; leave them out, or set normalization: mean_std"
            )
        return self

    @field_validator("classes")
    @classmethod
    def _distinct_classes(cls, classes: list[str | int] | None) -> list[str | int] | None:
        if classes is None:
            return None
        if len(classes) < 2:
            raise ValueError(f"got {len(classes)} classes, expected at least 2")
        repeated = sorted(str(name) for name, count in Counter(classes).items() if count > 1)
        if repeated:
            raise ValueError(f"named more than once: {cut(', '.join(repeated))}")
        return classes


logger = logging.getLogger("distill_datasets")


LISTED_ROWS = 20


EMBEDDED_CARDS = {"embedded:uci-digits": "https://doi.org/10.24432/C50P49"}


def _report(bad: list[BadRow], skip: bool, name: Callable[[str, int], str | None]) -> None:
    if not bad:
        return
    lines = []
    for row in bad[:LISTED_ROWS]:
        called = name(row.split, row.row)
        lines.append(f"  {row.split} row {row.row}: {row.reason}{f' ({called})' if called else ''}")
    listed = "\n".join(lines)
    more = f"\n  ... and {len(bad) - LISTED_ROWS} more" if len(bad) > LISTED_ROWS else ""
    count = f"{len(bad)} row{'' if len(bad) == 1 else 's'}"
    if not skip:
        raise DataError(
            f"{count} cannot be used:\n{listed}{more}\n"
            "set source.skip_bad_rows=true (or --skip-bad-rows) to leave them out"
        )
    logger.warning("%s left out:\n%s%s", count, listed, more)


def _as_called(account: Account | None, source: Source) -> Source:
    """The section with its splits as the account calls them, if what is left out is allowed.

    Raises:
        DataError: it is not, or a split that the section names has no labels.
    """
    if account is None:
        return source
    if source.left_out == "refuse":
        account.refuse_left_out(source.dataset)
    train = source.train_split or ("train" if "train" in account.splits else None)
    called = {
        "train_split": account.split_called(train, "source.train_split"),
        "test_split": account.split_called(source.test_split, "source.test_split"),
    }
    return source.model_copy(update=called)


def _without_overlap(
    source: Source,
    train_rows: SplitRows,
    train: Read,
    test_rows: SplitRows,
    test: Read,
    store: Store,
) -> tuple[Tensor, Overlap]:
    """Which training rows are kept, and how many images are in both splits.

    Raises:
        DataError: there are some, and the recipe refuses them.
    """
    found, also_N = find_overlap(
        train_rows.prints(train.kept_N, store), test_rows.prints(test.kept_N, store), store
    )
    if source.overlap == "allow" or not also_N.any():
        return train.kept_N, found
    places = train.kept_N.nonzero().flatten()[also_N]
    if source.overlap == "refuse":
        numbers = [str(train_rows.usable[place].number) for place in places[:LISTED_ROWS].tolist()]
        raise DataError(
            f"source.overlap: {found.in_words()}; rows of {train_rows.table.split}: "
            f"{', '.join(numbers)}{', ...' if len(places) > LISTED_ROWS else ''}; set "
            "source.overlap=drop to leave these out of training, or =allow to go on with them"
        )
    kept_N = train.kept_N.clone()
    kept_N[places] = False
    return kept_N, found._replace(dropped=len(places))


class SourceDataset:
    """A source that was found: a Hub dataset at one commit, a local one, or an object of Python.

    Args:
        section: the section of the recipe.
        dataset: a `Dataset`, `DatasetDict` or iterable one to read instead of `section.dataset`.
    """

    def __init__(self, section: Source, dataset: Any = None) -> None:  # noqa: ANN401
        if section.view is not None and (why := section.view.absent()) is not None:
            raise DataError(why)
        self.section = section
        self._layouts: dict[bool, SourceLayout] = {}
        self.account: Account | None = None
        self._memory = None if dataset is None else opening.as_splits(dataset)
        self._pinned: Provenance | None = None
        if self._memory is not None:
            self.name, self.revision = MEMORY_NAME, None
            return
        path = opening.locate(section.dataset)
        self.revision = section.revision
        if path is None:
            self.name = section.dataset
            with opening.local_hint(section.dataset):
                self._pinned = of_hub(section.dataset, section.config, section.revision)
            self.revision = self._pinned.revision
        else:
            embedded = section.dataset in opening.EMBEDDED
            self.name = section.dataset if embedded else path.name
        files = () if self._pinned is None else self._pinned.files
        self._place = opening.Place(
            section.dataset, path, section.config, self.revision, files, section.view
        )

    @cached_property
    def provenance(self) -> Provenance:
        """What the source is, exactly: no image is decoded for it and, on the Hub, none downloaded.

        The files of a local source are hashed when this is asked for first.

        Raises:
            DataError: a file or folder cannot be read.
        """
        if self._memory is not None:
            return of_memory(self._memory)
        if self._pinned is not None:
            return self._pinned
        assert self._place.path is not None, "what lies on the Hub is pinned"
        if self._place.images is not None:
            return of_images(self._place.images, self.name)
        local = of_path(self._place.path, self.section.config, self.name)
        if self.name in EMBEDDED_CARDS:
            return replace(local, license="cc-by-4.0", card_url=EMBEDDED_CARDS[self.name])
        return local

    def _row_name(self, split: str, row: int) -> str | None:
        return None if self._memory is not None else self._place.row_name(split, row)

    def _layout(self, *, streaming: bool) -> SourceLayout:
        """Splits and columns; each way of opening is gone once, and a folder of images has one."""
        if self._memory is None and self._place.images is not None:
            streaming = False
        if streaming not in self._layouts:
            if self._memory is not None:
                layout = layout_of(self.section, self._memory)
            else:
                place = self._place
                splits, self.account = place.open(streaming=streaming)
                section = _as_called(self.account, self.section)
                layout = layout_of(
                    section, splits, place.image_files, place.explained, place.labels_folder
                )
            self._layouts[streaming] = layout
        return self._layouts[streaming]

    def suggested_view(self) -> str | None:
        """The view that sees what is here, by its name; None where images are here."""
        if self._memory is None and self._place.images is not None:
            return None
        splits = self._memory or self._place.open(streaming=True).splits
        split, rows = next(iter(splits.items()))
        return image_columns.suggested_view(columns.declared(split, rows.features))

    def peek(self) -> tuple[Shape, list[str]]:
        """The shape of one example and the class names, from a few rows.

        Raises:
            DataError: see `read`; only what shows in the first rows is noticed.
        """
        layout = self._layout(streaming=True)
        shaped = partial(first_shape, layout.train, layout.image, layout.agreement(self.section))
        if self.section.task != "classes":
            layout = self._layout(streaming=False)
            store = InMemory()
            pieces = cells_in(layout, layout.train, "train", store)
            section, cells = self.section, list(itertools.chain.from_iterable(pieces))
            outputs = Outputs.of(
                section.task, layout.label_feature, section.label_columns, cells, section.classes
            )
            return Shape(*shaped(), len(outputs.names), section.task), outputs.names
        values = None
        if not columns.names_classes(layout.label_feature):
            layout = self._layout(streaming=False)
            values = [
                value
                for piece in range(layout.train.pieces)
                for value in layout.train.labels(layout.label, piece)
            ]
        names = columns.class_table(layout.label_feature, values, self.section.classes).names
        return Shape(*shaped(), len(names)), names

    def counts(self, draw: Draw) -> dict[str, RowCount] | None:
        """How many rows of each class are for training and for testing, from the labels alone.

        None for tables on the Hub that were not downloaded and for iterables, whose rows would have
        to be gone through.

        Raises:
            DataError: see `read`; what the labels show.
        """
        import datasets

        memory = None if self._memory is None else self._memory.values()
        if memory is None and not self._place.here:
            return None
        if memory is not None and not all(isinstance(rows, datasets.Dataset) for rows in memory):
            return None
        layout = self._layout(streaming=True)
        train, test, names, *_ = chosen_rows(self.section, layout, draw, InMemory())
        counted = {
            part.role: count_rows(part.table.split, part.chosen, names, self.section.task)
            for part in (train, test)
        }
        if self.section.skip_bad_rows or not any(count.unusable for count in counted.values()):
            check_trained((int(row.label) for row in train.usable), names)
            check_tested((int(row.label) for row in test.usable), names, train.table is test.table)
        return counted

    def read(
        self,
        draw: Draw,
        advance: Callable[[int, int], None] | None = None,
        store: Store | None = None,
    ) -> Decoded:
        """Read and decode both splits.

        Args:
            draw: randomness, for the rows cut off for test and for `source.limit` and `imbalance`.
            advance: called with the number of rows handled so far and their total.
            store: where pixels are put and who decodes which rows; by default memory, and this
                process.

        Raises:
            DataError: the dataset, a split, a column or a class does not exist; images disagree in
                size or channels; rows are unusable and may not be skipped; a class has no training
                image.
        """
        store = store or InMemory()
        layout = self._layout(streaming=False)
        train_part, test_part, names, counts, scale = chosen_rows(self.section, layout, draw, store)
        if self.section.skip_bad_rows or len(train_part.usable) == len(train_part.chosen):
            # otherwise the rows that cannot be used are reported first, with the broken images
            check_trained((int(row.label) for row in train_part.usable), names)
        agreement = layout.agreement(self.section)
        total = len(train_part.chosen) + len(test_part.chosen)
        parts = [train_part, test_part]
        first = first_image([(part.table, part.usable) for part in parts], layout.image, agreement)
        shape = (0, 0, 0) if first is None else tuple(first.shape)
        groups = sorted({name for part in parts for name in part.groups or [] if name is not None})

        def report(before: int, done: int) -> None:
            if advance is not None:
                advance(before + done, total)

        train = train_part.read(layout.image, agreement, shape, store, partial(report, 0))
        trained: Split | None = None
        if self.section.overlap != "drop":
            trained = train_part.finished(train.kept_N, store, groups)
        test = test_part.read(
            layout.image, agreement, shape, store, partial(report, len(train_part.chosen))
        )
        bad = sorted(
            {*train.bad, *test.bad}, key=lambda row: (row.split != layout.train.split, row)
        )
        _report(bad, self.section.skip_bad_rows, self._row_name)
        train.values.with_those(test.values).check(
            self.section.white_level, self.section.background
        )
        kept_N, shared = _without_overlap(self.section, train_part, train, test_part, test, store)
        trained = trained or train_part.finished(kept_N, store, groups)
        tested = test_part.finished(test.kept_N, store, groups)
        check_trained(trained.labels_N.tolist(), names)
        check_tested(tested.labels_N.tolist(), names, train_part.table is test_part.table)
        provenance = replace(
            self.provenance, splits=counts, overlap=shared._asdict(), targets=scale
        )
        return Decoded(trained, tested, names, bad, provenance, self.section.task, groups)


def open_source(section: Source, dataset: Any = None) -> SourceDataset:  # noqa: ANN401
    """Find a source, once; no image is decoded and no file is read.

    Args:
        section: the section of the recipe.
        dataset: a `Dataset`, `DatasetDict` or iterable one to read instead of `section.dataset`.

    Raises:
        DataError: there is no such dataset or revision, or it may not be read; or what
            `source.view` needs is not installed.
    """
    return SourceDataset(section, dataset)
