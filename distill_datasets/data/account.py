"""What a source holds and what of it is read: every file that was found is in a split or is named.

A reader of a kind of source (folders of images, Parquet files, tars) lists its files once, decides
which split each belongs to, and hands an `Account` of it to `opening.Opened`, beside the splits:

* what can hold images counts as *found*: an image in a folder of images, a Parquet file, a tar;
* all of it is either one of the `files` of exactly one split, or named in `left_out` with a reason;
* everything else (annotations, cards) is counted by kind in `other`, and needs no leave.

`opening` refuses a source that leaves something out unless `source.left_out` allows it; plans and
runs say the rest. Rows that were found but cannot be used (a sample of a tar without a label, a
damaged image) are no part of this: they are `BadRow`s, counted, named and refused when rows are
read.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from distill_datasets.errors import DataError

LISTED_FILES = 20


class LeftOut(NamedTuple):
    """A file that can hold images and is in no split: its path inside the source, and why.

    The reason is a clause with its remedy, as in `HEIC, which needs the package pillow-heif`.
    """

    path: str
    reason: str


@dataclass(frozen=True)
class FoundSplit:
    """The files of one split, before any row is drawn or refused.

    Attributes:
        origin: the folders or files as they are called on disk, for people: `Train/`.
        files: how many files.
        images: how many rows they hold; None where only reading tells.
        unlabeled: why no row of this split has a class, so that it cannot be used; else None. Such
            a split is left away from the splits that are opened.
    """

    origin: tuple[str, ...]
    files: int
    images: int | None = None
    unlabeled: str | None = None

    def __str__(self) -> str:
        many, noun = (self.files, "file") if self.images is None else (self.images, "image")
        what = f"{many:,} {noun}{'s' * (many != 1)}"
        where = ", ".join(self.origin[:LISTED_FILES])
        more = ", ..." if len(self.origin) > LISTED_FILES else ""
        note = "" if self.unlabeled is None else f", without labels: {self.unlabeled}"
        return f"{what} of {where}{more}{note}"


@dataclass(frozen=True)
class Account:
    """All that was found in a source; see the module's text for what belongs where.

    Attributes:
        splits: by the name that `source.train_split` and `test_split` know.
        left_out: files in no split.
        other: how many files that hold no images there are of each kind, as in `.json`.
    """

    splits: Mapping[str, FoundSplit]
    left_out: tuple[LeftOut, ...] = ()
    other: Mapping[str, int] = field(default_factory=dict)

    @property
    def found(self) -> int:
        """The files that can hold images."""
        return sum(split.files for split in self.splits.values()) + len(self.left_out)

    def split_called(self, name: str | None, key: str) -> str | None:
        """The split of a name, or of a folder of this name: `validation` for its folder `val/`.

        Args:
            name: what the recipe says.
            key: where it says that.

        Raises:
            DataError: that split has no labels.
        """
        folders = {
            folder.rstrip("/").rpartition("/")[2]: split
            for split, found in self.splits.items()
            for folder in found.origin
            if len(found.origin) == 1
        }
        if name is None:
            return None
        split = name if name in self.splits else folders.get(name, name)
        if split in self.splits and (why := self.splits[split].unlabeled) is not None:
            raise DataError(f"{key}: {name!r} has no labels: {why}; name another split")
        return split

    def refuse_left_out(self, dataset: str) -> None:
        """Refuse a source that leaves files out.

        Raises:
            DataError: names them with their reasons.
        """
        if self.left_out:
            raise DataError(
                f"{dataset!r} leaves out {listed(self.left_out)}\nput them where they can be "
                "read, or set source.left_out=allow to go on without them"
            )

    def lines(self) -> Iterator[str]:
        """A sentence for each split, for what is left out and for the rest."""
        for name, split in self.splits.items():
            yield f"{name}: {split}"
        if self.left_out:
            yield f"left out: {listed(self.left_out)}"
        if self.other:
            counts = ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.other.items()))
            yield f"no images: {counts}"

    def as_json(self) -> dict[str, Any]:
        """The files of every split, what was left out and what holds no images, for a plan."""
        return {
            "files": {
                name: split.__dict__ | {"origin": list(split.origin)}
                for name, split in self.splits.items()
            },
            "left_out": [file._asdict() for file in self.left_out],
            "other": dict(sorted(self.other.items())),
        }


def listed(left_out: tuple[LeftOut, ...]) -> str:
    """How many files are left out, and the first of them a line each."""
    count = f"{len(left_out):,} file{'' if len(left_out) == 1 else 's'}"
    lines = "".join(f"\n  {path}: {reason}" for path, reason in left_out[:LISTED_FILES])
    beyond = len(left_out) - LISTED_FILES
    return count + lines + (f"\n  ... and {beyond:,} more" if beyond > 0 else "")
