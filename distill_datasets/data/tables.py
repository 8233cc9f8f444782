"""Folders of Parquet files, Arrow files or tars: which file belongs to which split.

Every file is in exactly one split. Folders of the top level that are called like a split say so;
else names of files do, where all of them are written alike: as on the Hub
(`train-00000-of-00001.parquet`, `validation.parquet`, `test_2.tar`), or all with one beginning
(`imagenet1k-train-0000.tar`). A word inside a name (`night train 3.parquet`) makes no split: where
names say nothing, all rows are training rows. Where some files name a split and others do not,
nobody knows what the others are, and the folder is refused.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from distill_datasets.data.account import LISTED_FILES, Account, FoundSplit
from distill_datasets.data.folders import SPLIT_OF_WORD
from distill_datasets.data.listing import TABLES
from distill_datasets.errors import DataError

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


def one_kind(files: Iterable[Path]) -> str | None:
    """The ending of the files that hold rows, where there are any.

    Raises:
        DataError: there are several kinds.
    """
    kinds = {ending: file for file in files if (ending := file.suffix.lower()) in TABLES}
    if len(kinds) > 1:
        raise DataError(
            "source.dataset: a folder holds files of several kinds, for example "
            f"{', '.join(repr(file.name) for file in kinds.values())}; point source.dataset at "
            "one kind, or move the others away"
        )
    return next(iter(kinds), None)


def account_of(root: Path, files: Iterable[Path], splits: Mapping[str, list[str]]) -> Account:
    """The account of a folder whose rows lie in tables.

    Args:
        root: the folder.
        files: all files in it.
        splits: what `split_files` gave.
    """
    other: dict[str, int] = {}
    for file in files:
        ending = file.suffix.lower()
        if ending not in TABLES:
            other[ending or "without an ending"] = other.get(ending or "without an ending", 0) + 1
    found = {
        split: FoundSplit(tuple(paths), len(paths), _rows([root / path for path in paths]))
        for split, paths in splits.items()
    }
    return Account(found, other=other)


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
