"""Rows become uint8 tensors, one row at a time; a broken row gives its number and a reason.

Images arrive encoded and are decoded here rather than by `datasets`, where one broken row ends the
whole load. The rows of a split fall into units, each of them decoded once, by any process: ranges
of rows of a table, whole shards (tars) of a stream.

Shape suffixes: B N rows, C channels, H W pixels.
"""

from __future__ import annotations

import bisect
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import numpy as np
import torch

from distill_datasets.data import columns, image_columns, overlap
from distill_datasets.data.image_files import ANYWHERE, ImageFiles
from distill_datasets.data.rows import Row
from distill_datasets.data.stores import Store
from distill_datasets.data.values import Values
from distill_datasets.errors import ArtifactError, DataError
from distill_datasets.files.artifacts import intact, read_record, write_record
from distill_datasets.media import image as images
from distill_datasets.media.array import ArrayKind, read_array
from distill_datasets.media.view import FileView

if TYPE_CHECKING:
    from torch import Tensor


BATCH_ROWS = 256


BATCH_BYTES = 2**24


CELLS_AT_ONCE = 64


UNIT_ROWS = 4 * BATCH_ROWS


LOOKED_AT = 64


PEEK_ROWS = 8


LONGEST_FILE_NAME = 200


Channels = Literal[1, 3]


class Split(NamedTuple):
    """Images as they are shown, and the class of each.

    Where targets are no classes, `targets_NK` has them; the class of an image is then the output
    that it is taken for an example of. Where the recipe names groups, `groups_N` has them.
    """

    images_NCHW: Tensor
    labels_N: Tensor
    targets_NK: Tensor | None = None
    groups_N: Tensor | None = None

    def rows(self, rows_N: Tensor) -> Split:
        """Some of the rows."""
        targets_NK = None if self.targets_NK is None else self.targets_NK[rows_N]
        groups_N = None if self.groups_N is None else self.groups_N[rows_N]
        images_NCHW = self.images_NCHW[rows_N.to(self.images_NCHW.device)]
        labels_N = self.labels_N[rows_N.to(self.labels_N.device)]
        return Split(images_NCHW, labels_N, targets_NK, groups_N)


class BadRow(NamedTuple):
    """A row that cannot be used: its split, its number in that split from 0, and why."""

    split: str
    row: int
    reason: str


class Unit(NamedTuple):
    """Rows that are decoded together: the places `start` to `stop` in a list of usable rows.

    `piece` is the shard that holds them and `first` the number of its first row; both are 0 where
    rows are reached by their number.
    """

    piece: int
    first: int
    start: int
    stop: int


class Table:
    """One split, in memory, on disk or streamed, read column by column.

    `pieces` counts the shards of a stream, which are read one by one; a table that is reached by
    row number is one piece. `files` are those that a row may name in place of bytes. `guard`
    explains what reading a stream raises. In the folder `kept` the labels of a stream are kept,
    since all of it has to be gone through for them.
    """

    def __init__(
        self,
        split: str,
        rows: Any,  # noqa: ANN401
        files: ImageFiles = ANYWHERE,
        guard: Callable[[], AbstractContextManager[None]] = nullcontext,
        kept: Path | None = None,
    ) -> None:
        import datasets

        self.split = split
        self.features = columns.declared(split, rows.features)
        self.files = files
        self._rows = rows.with_format(None)
        self._indexed = isinstance(rows, datasets.Dataset)
        self._guard = guard
        self._kept = kept
        self.pieces: int = 1 if self._indexed else rows.num_shards

    def labels(self, column: str, piece: int = 0) -> list[columns.Value]:
        """The class of every row in one piece, in order, without touching the images."""
        return columns.plain(columns.flat(self.features)[column], self.cells(column, piece))

    def cells(self, column: str, piece: int = 0) -> list[Any]:
        """Every cell of a label column in one piece, in order, without touching the images."""
        path = None
        if self._kept is not None and not self._indexed:
            path = self._kept / f"{self.split}-{column}-cells-{piece:05d}-of-{self.pieces:05d}.json"
        kept = None if path is None else intact(path, read_record)
        if kept is not None:
            return cast(list[Any], kept["cells"])
        values = self._read_cells(column, piece)
        if path is not None:
            # a folder that cannot be written to costs another pass, no more
            with suppress(ArtifactError):
                write_record(path, {"cells": values})
        return values

    def _read_cells(self, column: str, piece: int) -> list[Any]:
        root, *inner = columns.column_path(self.features, column)
        narrow = self._rows.select_columns([root])
        if self._indexed:
            batches = narrow.with_format("arrow").iter(batch_size=100 * BATCH_ROWS)
            values = [value for batch in batches for value in batch.column(root).to_pylist()]
        else:
            with self._guard():
                values = [row[root] for row in self._piece(narrow, piece)]
        for key in inner:
            values = [None if value is None else value.get(key) for value in values]
        return list(values)

    def encoded(
        self, column: str, numbers: Sequence[int] | None, piece: int | None = None, first: int = 0
    ) -> Iterator[tuple[int, Any]]:
        """The undecoded images of some rows (ascending; None is all rows), each with its number.

        `piece` limits a stream to one shard, whose first row has the number `first`.
        """
        undecoded = self._rows.select_columns([column])
        feature = self.features[column]
        if image_columns.holds_files(feature):
            undecoded = undecoded.cast_column(column, type(feature)(decode=False))
        if self._indexed:
            chosen = range(len(undecoded)) if numbers is None else numbers
            batches = undecoded.select(chosen).with_format("arrow").iter(batch_size=BATCH_ROWS)
            # one by one: a batch of huge images is not copied as a whole
            cells = (cell.as_py() for batch in batches for cell in batch.column(column))
            yield from zip(chosen, cells, strict=True)
            return
        wanted = None if numbers is None else iter(numbers)
        following = None if wanted is None else next(wanted, None)
        with self._guard():
            for number, row in enumerate(self._piece(undecoded, piece), start=first):
                if wanted is None:
                    yield number, row[column]
                elif number == following:
                    yield number, row[column]
                    following = next(wanted, None)
                    if following is None:
                        return

    def holds_images(self, column: str) -> bool:
        """Whether PIL identifies the first bytes in a column of bytes."""
        for _, cell in itertools.islice(self.encoded(column, None), LOOKED_AT):
            try:
                encoded = self.bytes_of(cell)
            except images.UnusableImage:
                continue
            if encoded:
                return images.is_image(encoded)
        return False

    def bytes_of(self, cell: Any) -> Any:  # noqa: ANN401
        """The encoded bytes of one cell: bytes, or a struct of bytes and path; an array as it is.

        Raises:
            UnusableImage: there are none, or they lie in a file that cannot or may not be read.
        """
        if isinstance(cell, bytes | list | np.ndarray):
            return cell
        if cell is None or (cell.get("bytes") is None and not cell.get("path")):
            raise images.UnusableImage("the image is missing")
        if cell.get("bytes") is not None:
            return cell["bytes"]
        return self.files.read(str(cell["path"]))

    def units(self, rows: Sequence[Row], lengths: Sequence[int]) -> list[Unit]:
        """How the usable `rows` (ascending) fall into units; `lengths` counts those of each piece.

        The units depend on the source alone, not on how many processes there are.
        """
        if self._indexed:
            starts = range(0, len(rows), UNIT_ROWS)
            return [Unit(0, 0, start, min(start + UNIT_ROWS, len(rows))) for start in starts]
        ends = list(accumulate(lengths))
        places = [bisect.bisect_left(rows, end, key=lambda row: row.number) for end in ends]
        cut = zip(ends, lengths, [0, *places], places, strict=False)
        units = [
            Unit(piece, end - length, start, stop)
            for piece, (end, length, start, stop) in enumerate(cut)
        ]
        return [unit for unit in units if unit.start < unit.stop]

    def _piece(self, rows: Any, piece: int | None) -> Any:  # noqa: ANN401
        if piece is None or self.pieces == 1:
            return rows
        return rows.shard(num_shards=self.pieces, index=piece)


@dataclass
class Agreement:
    """What all images must have in common; the first usable image decides what is not prescribed.

    `resolution` and `channels` are what the recipe prescribes, `mode` is the PIL mode that the
    dataset's feature asks for; each may be None. `white_level` and `background` say what values
    mean, see `media.image`; `array` and `view` how what is no picture is read. The rest is what was
    found.
    """

    resolution: int | None
    channels: Channels | None
    mode: str | None = None
    white_level: int | None = None
    background: str = "white"
    array: ArrayKind | None = None
    view: FileView | None = None
    common: int | None = None
    size: tuple[int, int] | None = None
    first: str = ""
    alone: Lock = field(default_factory=Lock, repr=False)

    def seen(self, where: str, encoded: Any) -> images.Seen:  # noqa: ANN401
        """The pixels of one image, and what is known of its values.

        Args:
            where: split and row, for messages.
            encoded: the image file, or the array.

        Raises:
            UnusableImage: this image is broken.
            DataError: this image is fine but does not agree with the others.
        """
        if self.view is not None:
            seen = self.view.seen(encoded, self.resolution)
        elif self.array is not None:
            seen = read_array(encoded, self.array, self.resolution)
        else:
            seen = images.read_image(
                encoded,
                channels=self.channels,
                resolution=self.resolution,
                mode=self.mode,
                white_level=self.white_level,
                background=self.background,
                alone=self.alone,
            )
        own, size = seen.own, (seen.pixels_CHW.shape[1], seen.pixels_CHW.shape[2])
        if self.common is None or self.size is None:
            self.common, self.size, self.first = own, size, where
        if self.channels is None and own != self.common:
            raise DataError(
                f"{self.first} has {_channel_words(self.common)} and {where} has "
                f"{_channel_words(own)}: one channel count against another; set source.channels "
                "to rgb (gray images are repeated over three channels) or to gray"
            )
        if size != self.size:
            raise DataError(
                f"{self.first} is {self.size[0]}x{self.size[1]} px (height x width) and {where} is "
                f"{size[0]}x{size[1]} px; set source.resolution to bring all to one square size"
            )
        return seen


def _channel_words(count: int) -> str:
    words = {1: "1 channel (gray)", 3: "3 channels (color)"}
    return words.get(count, f"{count} channels")


def first_image(
    tables: Sequence[tuple[Table, Sequence[Row]]], column: str, agreement: Agreement
) -> Tensor | None:
    """The first image that can be used of some rows; it decides what all must have in common.

    Args:
        tables: splits with the rows of each whose labels are usable.
        column: the image column.
        agreement: filled in.

    Returns:
        Its pixels, or None where no image can be used.
    """
    with images.quiet_decoders():
        for table, rows in tables:
            for number, cell in table.encoded(column, [row.number for row in rows]):
                try:
                    where = place_of(table.split, number, cell)
                    return agreement.seen(where, table.bytes_of(cell)).pixels_CHW
                except images.UnusableImage:
                    continue
    return None


def first_shape(table: Table, column: str, agreement: Agreement) -> tuple[int, int, int]:
    """Channels, height and width of the first rows, which must agree.

    Raises:
        DataError: they do not, or none of them holds an image that can be used.
    """
    shape, reasons = None, []
    with images.quiet_decoders():
        for number, cell in itertools.islice(table.encoded(column, None), PEEK_ROWS):
            where = place_of(table.split, number, cell)
            try:
                seen = agreement.seen(where, table.bytes_of(cell))
            except images.UnusableImage as error:
                reasons.append(f"{where}: {error}")
                continue
            c, h, w = seen.pixels_CHW.shape
            shape = (c, h, w)
            if seen.original_px > images.LARGE_PIXELS:
                break
    if shape is None:
        listed = "; ".join(reasons) or "there are none"
        raise DataError(f"none of the first rows holds a usable image: {listed}")
    return shape


def place_of(split: str, number: int, cell: Any) -> str:  # noqa: ANN401
    """How a row is named in a message: its split and number, and the file that holds its image."""
    return f"{split} row {number}{_file_of(cell)}"


def _file_of(cell: Any) -> str:  # noqa: ANN401
    """The name of an image's own file, with its folder's, in brackets; nothing without a file."""
    path = Path((isinstance(cell, dict) and cell.get("path")) or "")
    if not path.is_absolute():
        return ""
    name = f"{path.parent.name}/{path.name}"
    return f" ({name if len(name) <= LONGEST_FILE_NAME else columns.shortened(name)})"


def _threads() -> int:
    """Cores of this process: its share of the machine's, where several processes were started."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def decode(
    table: Table,
    column: str,
    rows: Sequence[Row],
    unit: Unit,
    agreement: Agreement,
    put: Callable[[int, Tensor], None],
) -> tuple[list[tuple[int, str]], Values]:
    """Decode the rows of one unit.

    Args:
        table: the split.
        column: its image column.
        rows: the usable rows of the split, ascending.
        unit: which of them.
        agreement: what all images have in common; decided before.
        put: takes (B, C, H, W) consecutive images and the place of the first, at most `BATCH_ROWS`
            or about `BATCH_BYTES` at a time. An image that cannot be used leaves zeros.

    Returns:
        The places of images that cannot be used, and why; and what is known of the values of all.

    Raises:
        DataError: an image has another size or channel count, or the source gives fewer rows now.
    """
    bad: list[tuple[int, str]] = []
    values = Values()
    numbers = [row.number for row in rows[unit.start : unit.stop]]
    batch: list[Tensor | None] = []
    place, waiting = unit.start, 0

    def flush() -> None:
        usable = next((pixels for pixels in batch if pixels is not None), None)
        if usable is not None:
            blank = torch.zeros_like(usable)
            pixels_BCHW = torch.stack([blank if each is None else each for each in batch])
            put(place - len(batch), pixels_BCHW)
        batch.clear()

    def usable(found: tuple[int, Any]) -> images.Seen | str:
        number, cell = found
        try:
            return agreement.seen(place_of(table.split, number, cell), table.bytes_of(cell))
        except images.UnusableImage as error:
            return f"{error}{_file_of(cell)}"

    cells = table.encoded(column, numbers, unit.piece, unit.first)
    with images.quiet_decoders(), ThreadPoolExecutor(_threads()) as pool:
        while some := _some(cells):
            for found in pool.map(usable, some):
                if isinstance(found, str):
                    batch.append(None)
                    bad.append((place, found))
                else:
                    batch.append(found.pixels_CHW)
                    waiting += found.pixels_CHW.numel()
                    values = values.with_those(Values.of(found))
                place += 1
                if len(batch) == BATCH_ROWS or waiting >= BATCH_BYTES:
                    flush()
                    waiting = 0
        flush()
    if place < unit.stop:
        raise DataError(
            f"the {table.split} split gave {place - unit.start} of {len(numbers)} rows when it was "
            "read again; an iterable has to yield the same rows each time, for example from a "
            "generator function"
        )
    return bad, values


def _some(cells: Iterator[tuple[int, Any]]) -> list[tuple[int, Any]]:
    """The next cells, as many as are decoded together and about `BATCH_BYTES` at most."""
    some, size = list[tuple[int, Any]](), 0
    for number, cell in itertools.islice(cells, CELLS_AT_ONCE):
        some.append((number, cell))
        encoded = cell.get("bytes") if isinstance(cell, dict) else cell
        size += 0 if encoded is None else len(encoded)
        if size >= BATCH_BYTES:
            break
    return some


class Read(NamedTuple):
    """What decoding the rows of a split gave, beside the pixels that lie in the store.

    Attributes:
        bad: the rows that cannot be used.
        kept_N: which of the usable rows have pixels.
        values: what is known of the values of these.
    """

    bad: list[BadRow]
    kept_N: Tensor
    values: Values


@dataclass(frozen=True)
class SplitRows:
    """The rows that are read of one split; `lengths` counts all rows of each of its pieces.

    `groups` has the group of every row by its number, where the split has groups.
    """

    role: str
    table: Table
    chosen: list[Row]
    lengths: list[int]
    groups: list[str | None] | None = None

    @cached_property
    def usable(self) -> list[Row]:
        """The rows that have a class."""
        return [row for row in self.chosen if isinstance(row.label, int)]

    def read(
        self,
        column: str,
        agreement: Agreement,
        shape: tuple[int, ...],
        store: Store,
        report: Callable[[int], None],
    ) -> Read:
        """Decode the rows into the store; what could be used, and what could not."""
        table, usable = self.table, self.usable
        units = table.units(usable, self.lengths)
        bad = [
            BadRow(table.split, row.number, row.label)
            for row in self.chosen
            if isinstance(row.label, str)
        ]
        done = len(bad)
        store.create(self.role, (len(usable), *shape))
        store.create(self._prints, (len(usable), *overlap.PRINT))

        def work(unit: int) -> list[Any]:
            def put(first: int, pixels_BCHW: Tensor) -> None:
                store.put(self.role, first, pixels_BCHW)
                store.put(self._prints, first, overlap.prints(pixels_BCHW))
                reached = done + first - units[unit].start + len(pixels_BCHW)
                if reached < len(self.chosen):
                    report(reached)

            nonlocal done
            broken, values = decode(table, column, usable, units[unit], agreement, put)
            done += units[unit].stop - units[unit].start
            return [broken, values]

        broken, values = list[tuple[int, str]](), Values()
        for unit_broken, unit_values in store.each(self.role, len(units), work):
            broken += unit_broken
            values = values.with_those(Values(*unit_values))
        report(len(self.chosen))
        bad += [BadRow(table.split, usable[place].number, why) for place, why in broken]
        kept_N = torch.ones(len(usable), dtype=torch.bool)
        kept_N[[place for place, _ in broken]] = False
        return Read(sorted(bad), kept_N, values)

    def prints(self, kept_N: Tensor, store: Store) -> Tensor:
        """What is compared of the rows that are kept."""
        return store.finish(self._prints, kept_N)

    def finished(self, kept_N: Tensor, store: Store, group_names: Sequence[str] = ()) -> Split:
        """The rows that are kept; groups are places in `group_names`."""
        labels_N = torch.tensor([row.label for row in self.usable], dtype=torch.int64)
        targets = [row.target for row in self.usable if row.target is not None]
        targets_NK = torch.tensor(targets)[kept_N] if targets else None
        groups_N = None
        if self.groups is not None:
            place = {name: place for place, name in enumerate(group_names)}
            own = [place[str(self.groups[row.number])] for row in self.usable]
            groups_N = torch.tensor(own, dtype=torch.int64)[kept_N]
        return Split(store.finish(self.role, kept_N), labels_N[kept_N], targets_NK, groups_N)

    @property
    def _prints(self) -> str:
        return f"{self.role}-prints"
