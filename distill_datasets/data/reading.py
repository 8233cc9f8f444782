"""Rows become uint8 tensors, one row at a time; a broken row gives its number and a reason.

Only the tensors being filled are held in memory. Images arrive encoded and are decoded here rather
than by `datasets`, where one broken row ends the whole load.

Shape suffixes: N rows kept, C channels, H W pixels.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from distill_datasets.data import columns, images
from distill_datasets.data.memory import GIB, available_bytes
from distill_datasets.data.rows import Row
from distill_datasets.errors import DataError

BATCH_ROWS = 256

Channels = Literal[1, 3]


class Split(NamedTuple):
    """Images as they are shown, and the class of each."""

    images_NCHW: Tensor
    labels_N: Tensor


class BadRow(NamedTuple):
    """A row that cannot be used: its split, its number in that split from 0, and why."""

    split: str
    row: int
    reason: str


class Table:
    """One split, in memory, on disk or streamed, read column by column."""

    def __init__(self, split: str, rows: Any) -> None:  # noqa: ANN401
        import datasets

        self.split = split
        self.features = columns.declared(split, rows.features)
        self._rows = rows.with_format(None)
        self._indexed = isinstance(rows, datasets.Dataset)

    def labels(self, column: str) -> list[columns.Value]:
        """Every value of a label column, in order, without touching the images."""
        root, *inner = columns.column_path(self.features, column)
        narrow = self._rows.select_columns([root])
        if self._indexed:
            batches = narrow.with_format("arrow").iter(batch_size=100 * BATCH_ROWS)
            values = [value for batch in batches for value in batch.column(root).to_pylist()]
        else:
            values = [row[root] for row in narrow]
        for key in inner:
            values = [None if value is None else value.get(key) for value in values]
        return values

    def encoded(self, column: str, numbers: Sequence[int] | None) -> Iterator[tuple[int, Any]]:
        """The undecoded images of some rows (ascending; None is all rows), each with its number."""
        import datasets

        undecoded = self._rows.select_columns([column]).cast_column(
            column, datasets.Image(decode=False)
        )
        if self._indexed:
            chosen = range(len(undecoded)) if numbers is None else numbers
            batches = undecoded.select(chosen).with_format("arrow").iter(batch_size=BATCH_ROWS)
            cells = (cell for batch in batches for cell in batch.column(column).to_pylist())
            yield from zip(chosen, cells, strict=True)
            return
        wanted = None if numbers is None else iter(numbers)
        following = None if wanted is None else next(wanted, None)
        for number, row in enumerate(undecoded):
            if wanted is None:
                yield number, row[column]
            elif number == following:
                yield number, row[column]
                following = next(wanted, None)
                if following is None:
                    return


def _bytes_of(cell: Any) -> bytes:  # noqa: ANN401
    """The encoded bytes of one cell of an `Image(decode=False)` column."""
    if cell is None or (cell.get("bytes") is None and cell.get("path") is None):
        raise images.UnusableImage("the image is missing")
    if cell.get("bytes") is not None:
        return cast(bytes, cell["bytes"])
    path = str(cell["path"])
    try:
        if "://" not in path:
            return Path(path).read_bytes()
        import fsspec  # type: ignore[import-untyped]

        with fsspec.open(path, "rb") as file:
            return cast(bytes, file.read())
    except OSError as error:
        raise images.UnusableImage(f"the image file cannot be read ({error})") from error


@dataclass
class Agreement:
    """What all images must have in common; the first usable image decides what is not prescribed.

    `resolution` and `channels` are what the recipe prescribes, `mode` is the PIL mode that the
    dataset's feature asks for; each may be None. The rest is what was found.
    """

    resolution: int | None
    channels: Channels | None
    mode: str | None = None
    common: Channels | None = None
    size: tuple[int, int] | None = None
    first: str = ""

    def pixels(self, where: str, cell: Any) -> Tensor:  # noqa: ANN401
        """The pixels of one image.

        Args:
            where: split and row, for messages.
            cell: the undecoded image.

        Raises:
            UnusableImage: this image is broken.
            DataError: this image is fine but does not agree with the others.
        """
        image = images.open_image(_bytes_of(cell), self.mode)
        own = images.own_channels(image)
        pixels_CHW = images.to_pixels(image, self.channels or own, self.resolution)
        size = (pixels_CHW.shape[1], pixels_CHW.shape[2])
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
        return pixels_CHW


def _channel_words(count: int) -> str:
    return "1 channel (gray)" if count == 1 else "3 channels (color)"


def _allocate(count: int, pixels_CHW: Tensor, split: str) -> Tensor:
    needed, free = count * pixels_CHW.numel(), available_bytes()
    if needed > free:
        raise DataError(
            f"the {split} split needs {needed / GIB:.1f} GiB as pixels ({count} images of "
            f"{'x'.join(str(side) for side in pixels_CHW.shape)}) and {free / GIB:.1f} GiB are "
            "free; set source.limit, source.classes or a lower source.resolution"
        )
    return torch.empty((count, *pixels_CHW.shape), dtype=torch.uint8)


def decode(
    table: Table,
    column: str,
    rows: Sequence[Row],
    agreement: Agreement,
    advance: Callable[[int], None] | None = None,
) -> tuple[Split, list[BadRow]]:
    """Decode some rows of one split.

    Args:
        table: the split.
        column: its image column.
        rows: which rows, ascending; those whose label is a reason are reported, not decoded.
        agreement: what the images must have in common, across splits.
        advance: called with the number of rows handled so far.

    Returns:
        The rows that could be used, in order, and the others.

    Raises:
        DataError: two images have different sizes or channel counts, or memory does not suffice.
    """
    good = [row for row in rows if isinstance(row.label, int)]
    bad = [BadRow(table.split, row.number, row.label) for row in rows if isinstance(row.label, str)]
    images_NCHW: Tensor | None = None
    labels: list[int] = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        cells = table.encoded(column, [row.number for row in good])
        done = 0
        for (number, cell), row in zip(cells, good, strict=False):
            try:
                pixels_CHW = agreement.pixels(f"{table.split} row {number}", cell)
            except images.UnusableImage as error:
                bad.append(BadRow(table.split, number, str(error)))
            else:
                if images_NCHW is None:
                    images_NCHW = _allocate(len(good), pixels_CHW, table.split)
                images_NCHW[len(labels)] = pixels_CHW
                labels.append(cast(int, row.label))
            done += 1
            if advance is not None and (done % BATCH_ROWS == 0 or done == len(good)):
                advance(len(bad) + len(labels))
    if done < len(good):
        raise DataError(
            f"the {table.split} split gave {done} of {len(good)} rows when it was read again; an "
            "iterable has to yield the same rows each time, for example from a generator function"
        )
    if images_NCHW is None:
        images_NCHW = torch.empty((0, 0, 0, 0), dtype=torch.uint8)
    kept = Split(images_NCHW[: len(labels)], torch.tensor(labels, dtype=torch.int64))
    return kept, sorted(bad)
