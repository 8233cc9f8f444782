"""Folders of Parquet files, Arrow files or tars: which file belongs to which split.

Every file is in exactly one split. Folders of the top level that are called like a split say so;
else names of files do, where all of them are written alike: as on the Hub
(`train-00000-of-00001.parquet`, `validation.parquet`, `test_2.tar`), or all with one beginning
(`imagenet1k-train-0000.tar`). A word inside a name (`night train 3.parquet`) makes no split: where
names say nothing, all rows are training rows. Where some files name a split and others do not,
nobody knows what the others are, and the folder is refused.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from distill_datasets.data.account import LISTED_FILES, Account, FoundSplit, LeftOut
from distill_datasets.data.columns import MOST_CLASSES, shortened
from distill_datasets.data.folders import SPLIT_OF_WORD
from distill_datasets.data.listing import ARCHIVES, TABLES
from distill_datasets.errors import DataError
from distill_datasets.hub.pinned import CARD
from distill_datasets.media.image import raster_endings

PIECE_BYTES = 1 << 20
_WORDS = "|".join(sorted(SPLIT_OF_WORD, key=len, reverse=True))
_SHARD = r"(?:[-_. ]?\d+(?:[-_]of[-_]\d+)?(?:-[0-9a-f]{8,})?)?"
# any name is a split's where shards are counted as `datasets` counts them
_COUNTED = re.compile(r"(?P<split>\w+(?:\.\w+)*)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?", re.ASCII)
_PLAIN = re.compile(rf"(?P<split>{_WORDS}){_SHARD}", re.ASCII | re.IGNORECASE)
_BEGUN = re.compile(rf"(?P<beginning>.+[-_.])(?P<split>{_WORDS}){_SHARD}", re.ASCII | re.IGNORECASE)


def split_files(paths: Iterable[str]) -> dict[str, list[str]]:
    """The files of each split, sorted.

    Args:
        paths: all files, relative to the source.

    Raises:
        DataError: some of them name a split and others do not, or names can be read in two ways.
    """
    files = sorted(paths)
    inner = _below_the_common_folder(files)
    tops = {path: inner[path].parts[0] if len(inner[path].parts) > 1 else None for path in files}
    words = {path: _word(top) for path, top in tops.items()}
    if any(words.values()):
        named = {path: word for path, word in words.items() if word is not None}
        _refuse_others(files, named, "in a folder that is called like a split")
        return _grouped(named)
    stems = {path: PurePosixPath(path).stem for path in files}
    strict = {path: split for path in files if (split := _strictly(stems[path])) is not None}
    if set(strict.values()) & {*SPLIT_OF_WORD, *SPLIT_OF_WORD.values()}:
        _refuse_others(files, strict, "called like a split")
        return _grouped(strict)
    begun = {path: match for path in files if (match := _BEGUN.fullmatch(stems[path]))}
    if len(begun) == len(files):
        beginnings = {match["beginning"] for match in begun.values()}
        named = {path: SPLIT_OF_WORD[match["split"].lower()] for path, match in begun.items()}
        if len(beginnings) == 1:
            return _grouped(named)
        if len(set(named.values())) > 1:
            raise DataError(
                f"source.dataset: files begin differently and name several splits: "
                f"{_listed(files)}; put those of each split into a folder called train, test or "
                "validation"
            )
    return {"train": files}


def _below_the_common_folder(files: list[str]) -> dict[str, PurePosixPath]:
    paths = [PurePosixPath(path) for path in files]
    depth = 0
    while all(len(path.parts) > depth + 1 for path in paths):
        if len({path.parts[depth] for path in paths}) > 1 or _word(paths[0].parts[depth]):
            break
        depth += 1
    return {str(path): PurePosixPath(*path.parts[depth:]) for path in paths}


def _word(folder: str | None) -> str | None:
    return None if folder is None else SPLIT_OF_WORD.get(folder.casefold())


def _strictly(stem: str) -> str | None:
    counted = _COUNTED.fullmatch(stem)
    if counted is not None:
        return counted["split"]
    plain = _PLAIN.fullmatch(stem)
    return None if plain is None else SPLIT_OF_WORD[plain["split"].lower()]


def _refuse_others(files: list[str], named: Mapping[str, str], what: str) -> None:
    others = [path for path in files if path not in named]
    if others:
        raise DataError(
            f"source.dataset: {len(named)} of {len(files)} files are {what} "
            f"({_listed(list(named))}), and these are not: {_listed(others)}; give them such a "
            "name too, or move them away"
        )


def _grouped(named: Mapping[str, str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for path, split in named.items():
        groups.setdefault(split, []).append(path)
    return groups


def _listed(files: list[str]) -> str:
    more = "" if len(files) <= LISTED_FILES else f", ... ({len(files)} files)"
    return ", ".join(map(repr, files[:LISTED_FILES])) + more


def one_kind(names: Iterable[str]) -> str | None:
    """The ending of the files that hold rows, where there are any.

    Raises:
        DataError: there are several kinds.
    """
    kinds = {ending: name for name in names if (ending := _ending(name)) in TABLES}
    if len(kinds) > 1:
        raise DataError(
            "source.dataset: a folder holds files of several kinds, for example "
            f"{', '.join(map(repr, kinds.values()))}; point source.dataset at one kind, or move "
            "the others away"
        )
    return next(iter(kinds), None)


def account_of(
    root: Path, names: Iterable[str], splits: Mapping[str, list[str]], several: bool
) -> Account:
    """The account of a source whose rows lie in tables, tars or archives.

    Args:
        root: the folder on this machine, in which files may be lacking.
        names: the paths of all files from there.
        splits: which of them are read.
        several: whether there are other configs, to which the files in no split belong.
    """
    read = {name for group in splits.values() for name in group}
    kinds = {_ending(name) for name in read} & {*TABLES, *ARCHIVES, *raster_endings()}
    left_out, other = list[LeftOut](), Counter[str]()
    for name in names:
        if name in read:
            continue
        if _ending(name) not in kinds:
            other[_ending(name) or "without an ending"] += 1
        elif several:
            other[f"{_ending(name)} of other configs"] += 1
        else:
            reason = f"in no split that {CARD} names; name it there, or move it away"
            left_out.append(LeftOut(name, reason))
    found = {
        split: FoundSplit(tuple(paths), len(paths), _rows([root / path for path in paths]))
        for split, paths in splits.items()
    }
    return Account(found, tuple(sorted(left_out)), other)


def _ending(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def declared_texts(file: BinaryIO, ending: str) -> int:
    """About how many texts what describes a file holds; its rows are not read.

    Args:
        file: from its beginning.
        ending: of its name: `.parquet` has a footer, `.arrow` begins with its schema, and any other
            file is read whole.
    """
    start, stop = 0, file.seek(0, os.SEEK_END)
    if ending == ".parquet":
        file.seek(max(0, stop - 8))
        stop -= 8
        start = max(0, stop - int.from_bytes(file.read(4), "little"))
    elif ending == ".arrow":
        file.seek(0)
        head = file.read(16)
        # a file begins with its name, a stream with the length of its schema at once
        start = 8 if head.startswith(b"ARROW1") else 0
        stop = min(stop, start + 8 + int.from_bytes(head[start + 4 : start + 8], "little"))
    file.seek(start)
    quotes = 0
    while start < stop and (piece := file.read(min(PIECE_BYTES, stop - start))):
        quotes += piece.count(b'"')
        start += len(piece)
    return quotes // 2


def check_declared(name: str, file: BinaryIO) -> None:
    """Refuse a file that declares more names of classes than can be distilled, before any is read.

    `datasets` takes half a kilobyte for each.

    Raises:
        DataError: names the file.
    """
    count = declared_texts(file, _ending(name))
    if count > 2 * MOST_CLASSES:  # twice: other columns have names too
        raise DataError(
            f"source.dataset: {name!r} declares {count:,} names, and at most {MOST_CLASSES:,} "
            "classes can be distilled; write it with fewer class names, or with plain integers as "
            "labels"
        )


def unlike(root: Path, names: Iterable[str]) -> str | None:
    """Two Parquet files whose columns differ, in words; None where all agree."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    first, columns = "", dict[str, Any]()
    for name in names:
        try:
            schema = pq.read_schema(root / name)
        except (OSError, pa.ArrowException):  # damaged, which is told as that
            return None
        own = {field.name: field.type for field in schema}
        if not first:
            first, columns = name, own
        for column in [*columns, *own]:
            if columns.get(column) != own.get(column):
                theirs, ours = (each.get(column, "not there") for each in (columns, own))
                return (
                    f"the column {shortened(column)} is {theirs} in {first!r} and {ours} in "
                    f"{name!r}"
                )
    return None


def with_rows(root: Path, splits: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """The splits without Parquet files that hold no row, which `datasets` cannot read.

    Raises:
        DataError: no file of a split holds any.
    """
    filled = {
        split: [path for path in paths if _rows([root / path]) != 0]
        for split, paths in splits.items()
    }
    for split, paths in splits.items():
        if not filled[split]:
            raise DataError(
                f"source.dataset: the files of the {split} split hold no row: {_listed(paths)}; "
                "write them again, or move them away"
            )
    return filled


def _rows(paths: list[Path]) -> int | None:
    """The rows of Parquet files, which say how many they hold."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if any(path.suffix.lower() != ".parquet" for path in paths):
        return None
    try:
        return sum(int(pq.read_metadata(path).num_rows) for path in paths)
    except (OSError, pa.ArrowException):  # told when it is opened
        return None
