"""Folders of images: which of them are splits and which are classes.

Nothing is guessed from names of files, and nothing below a class makes a split.

* Folders of the top level called train, training, val, validation, valid, dev, test, testing or
  eval, in any case, are splits where they hold folders of images. Otherwise there is one split. A
  lone folder that holds all the others is gone into first.
* Every other folder with images is a class, with all that lies below it. Where a folder holds no
  image itself but several folders of them, those are the classes, called by their path.
* `metadata.csv`, `.jsonl` or `.parquet` with a column `file_name` adds its columns to the images
  that it names, and gives their labels where it has a label column.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from distill_datasets.data import columns
from distill_datasets.data.account import Account, FoundSplit, LeftOut, listed
from distill_datasets.data.listing import METADATA, TABLES, Folder, Listing
from distill_datasets.errors import DataError
from distill_datasets.media.view import FileView

SPLIT_OF_WORD = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "validation", "valid", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval"), "test"),
}
FILE_NAME = "file_name"
LISTED_NAMES = 8


@dataclass
class _Split:
    """The folders of a split as they are called, its classes, and images that are in none."""

    origin: tuple[str, ...]
    classes: dict[str, list[str]] = field(default_factory=dict)
    loose: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """All images."""
        return sum(map(len, self.classes.values())) + len(self.loose)


def _classes(folder: Folder, name: str) -> Iterator[tuple[str, list[str]]]:
    """A folder as one class, or the folders below as several; names are paths below the split."""
    while not folder.images and len(folder.folders) == 1:
        (folder,) = folder.folders.values()
    if folder.images:
        yield name, folder.all_images()
        return
    for inner, below in folder.folders.items():
        yield from _classes(below, f"{name}/{inner}")


def _split(folder: Folder, origin: str) -> _Split:
    """The classes in a folder that is a split, gone into where one folder holds all others."""
    loose = [folder.inner(name) for name in folder.images]
    if not loose:
        folder = _gone_into(folder)
    return _split_of(list(folder.folders.items()), (origin,), loose)


def _split_of(named: list[tuple[str, Folder]], origin: tuple[str, ...], loose: list[str]) -> _Split:
    classes = dict(pair for name, folder in named for pair in _classes(folder, name))
    return _Split(origin, classes, loose)


def _gone_into(folder: Folder) -> Folder:
    """The first folder below that holds images or several folders."""
    while not folder.images and len(folder.folders) == 1:
        (inner,) = folder.folders.values()
        if inner.images or _is_split(inner):
            return folder
        folder = inner
    return folder


def _word(folder: Folder) -> str | None:
    """The split that a folder's name stands for."""
    return SPLIT_OF_WORD.get(folder.path.rpartition("/")[2].casefold())


def _is_split(folder: Folder) -> bool:
    return _word(folder) is not None and bool(folder.folders)


def _shown(folders: list[Folder]) -> str:
    names = [f"{folder.path}/" for folder in folders[:LISTED_NAMES]]
    return ", ".join([*names, *(["..."] if len(folders) > LISTED_NAMES else [])])


def _layout(listing: Listing, metadata: bool) -> tuple[dict[str, _Split], list[LeftOut]]:
    """The splits of a folder, and images that lie beside them.

    Args:
        listing: what was found.
        metadata: whether a file names images, so that these need no folder of their class.

    Raises:
        DataError: a folder may be a class or a split, or splits lie inside what would be a class.
    """
    top = _gone_into(listing.top)
    folders = list(top.folders.values())
    named = [folder for folder in folders if _word(folder) is not None]
    others = [folder for folder in folders if _word(folder) is None]
    split_folders = [folder for folder in named if folder.folders]
    flat = [folder for folder in named if not folder.folders]
    loose = [top.inner(name) for name in top.images]
    if metadata and flat and not others:
        split_folders, flat = named, []
    if not split_folders:
        if flat and others and not metadata:
            # a class called train, or images to be predicted: only a person knows
            raise DataError(
                f"source.dataset: {_shown(flat)} is named like a split, and beside it "
                f"{_shown(others)} would be classes; if it is a class, give it another name; if "
                "it is a split, put its images into a folder for each class, or move it away"
            )
        if flat and not others:
            raise DataError(
                f"source.dataset: {_shown(flat)} holds {flat[0].images[0]!r} and other images "
                "without folders of classes, so that no image has a label; make a folder for each "
                f"class, or name labels in a {METADATA[0]} with the columns {FILE_NAME} and label"
            )
        _refuse_splits_inside(others)
        pairs = [(folder.path.rpartition("/")[2], folder) for folder in folders]
        return {"train": _split_of(pairs, (f"{top.path}/" if top.path else "./",), loose)}, []
    words = Counter(_word(folder) for folder in named)
    splits = dict[str, _Split]()
    for folder in named:
        word, own = _word(folder), folder.path.rpartition("/")[2]
        assert word is not None
        # two folders for one split keep their own names: which is meant, the recipe says
        splits[word if words[word] == 1 else own] = _split(folder, f"{folder.path}/")
    beside = list[LeftOut]()
    if "train" not in words and others:
        _refuse_splits_inside(others)
        origin = tuple(f"{folder.path}/" for folder in others)
        pairs = [(folder.path.rpartition("/")[2], folder) for folder in others]
        splits = {"train": _split_of(pairs, origin, [])} | splits
    else:
        reason = f"lies beside the splits {_shown(named)}; put it into one of them"
        beside = [LeftOut(path, reason) for each in others for path in each.all_images()]
    beside += [LeftOut(path, "lies in no folder of a split") for path in loose]
    return splits, beside


def _refuse_splits_inside(classes: list[Folder]) -> None:
    for folder in classes:
        within = [inner for inner in folder.folders.values() if _is_split(inner)]
        if within:
            raise DataError(
                f"source.dataset: {folder.path}/ holds the splits {_shown(within)}, and other "
                f"images lie beside it; point source.dataset at {folder.path}/"
            )


def _check_names(splits: Mapping[str, _Split]) -> None:
    """Refuse class names of two splits, or of one, that a person would take for the same.

    Raises:
        DataError: names two folders.
    """
    trained = splits.get("train")
    for split in splits.values():
        if trained is None:
            continue
        alike = dict[str, list[str]]()
        for name in trained.classes:
            alike.setdefault(columns.plain_form(name), []).append(name)
        for name in split.classes:
            found = columns.spelled_otherwise(name, alike.get(columns.plain_form(name), []))
            if found is None:
                continue
            other, what = found
            # `a` and `A` may be two letters where both are in a split; no eye tells NFC from NFD
            if what != "case" or not (other in split.classes or name in trained.classes):
                raise DataError(
                    f"source.dataset: the class {name!r} of {split.origin[0]} and the class "
                    f"{other!r} of {trained.origin[0]} differ only in {what}; rename one of them"
                )


@dataclass(frozen=True)
class _Metadata:
    """All metadata files as one Arrow table without the names of files, and the row of each."""

    table: Any
    row_of: dict[str, int]
    files: tuple[str, ...]

    @property
    def has_labels(self) -> bool:
        """Whether a column is called as labels are."""
        return any(name.lower() in columns.LABEL_NAMES for name in self.table.column_names)


def _read_metadata(listing: Listing) -> _Metadata | None:
    """What the metadata files say; one without a column of file names is any other file.

    Raises:
        DataError: a file cannot be read.
    """
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet as pq

    readers = dict(zip(METADATA, (pa.csv.read_csv, pa.json.read_json, pq.read_table), strict=True))
    tables, files, row_of, first = list[Any](), list[str](), dict[str, int](), 0
    # a file nearer to an image comes later, and its row wins
    for path in sorted(listing.metadata, key=lambda path: (path.count("/"), path)):
        folder, _, name = path.rpartition("/")
        try:
            table = readers[name](listing.root / path)
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"source.dataset: {listing.root / path} cannot be read: {error}"
            ) from error
        if FILE_NAME not in table.column_names:
            listing.other[name] += 1
            continue
        for row, file in enumerate(table.column(FILE_NAME).to_pylist()):
            row_of[f"{folder}/{file}" if folder else str(file)] = first + row
        first += table.num_rows
        tables.append(table.drop_columns(FILE_NAME))
        files.append(path)
    if not tables:
        return None
    try:
        return _Metadata(pa.concat_tables(tables, promote_options="default"), row_of, tuple(files))
    except pa.ArrowException as error:
        raise DataError(
            f"source.dataset: {', '.join(files)} have columns that do not agree: {error}"
        ) from error


@dataclass(frozen=True)
class ImageFolder:
    """A folder of images that was looked into, or of files that are `kind`.

    Attributes:
        root: where it lies.
        account: all that was found.
        groups: of every split that has labels, its images class by class, in the order of the rows;
            one group called None where a metadata file has the labels. Paths are below `root`.
    """

    root: Path
    account: Account
    groups: Mapping[str, Mapping[str | None, list[str]]]
    _metadata: _Metadata | None
    kind: str = "Image"

    @property
    def metadata_files(self) -> tuple[str, ...]:
        """The paths of the metadata files that were read."""
        return () if self._metadata is None else self._metadata.files

    @cached_property
    def _class_names(self) -> list[str]:
        return sorted(
            {name for split in self.groups.values() for name in split if name is not None}
        )

    def splits(self) -> dict[str, Any]:
        """The splits as `datasets.Dataset`, whose images are paths: nothing is opened."""
        return {split: self._dataset(split) for split in self.groups}

    def _dataset(self, split: str) -> Any:  # noqa: ANN401
        import datasets
        import pyarrow as pa

        number = {name: label for label, name in enumerate(self._class_names)}
        column, feature = self.kind.lower(), getattr(datasets, self.kind)
        features = datasets.Features({column: feature()})
        if number:
            features["label"] = datasets.ClassLabel(names=self._class_names)
        paths, labels, rows = list[Any](), list[Any](), list[int | None]()
        for name, group in self.groups[split].items():
            paths.append(pa.array([f"{self.root}/{path}" for path in group], pa.string()))
            if name is not None:
                labels.append(pa.repeat(pa.scalar(number[name], pa.int64()), len(group)))
            if self._metadata is not None:
                rows += [self._metadata.row_of.get(path) for path in group]
        path_N = pa.concat_arrays(paths)
        undecoded = pa.nulls(len(path_N), pa.binary())
        held = {column: pa.StructArray.from_arrays([undecoded, path_N], ["bytes", "path"])}
        if labels:
            held["label"] = pa.concat_arrays(labels)
        if self._metadata is not None:
            told = self._metadata.table.take(pa.array(rows, pa.int64()))
            fresh = [name for name in told.column_names if name not in held]
            held |= {name: told.column(name) for name in fresh}
            told_features = datasets.Features.from_arrow_schema(told.schema)
            features |= {name: told_features[name] for name in fresh}
        table = datasets.table.InMemoryTable(pa.table(held))
        information = datasets.DatasetInfo(features=datasets.Features(features))
        # a fingerprint of datasets' own making would pickle the table
        return datasets.Dataset(
            table, information, datasets.NamedSplit(split), fingerprint=f"{split}-of-a-folder"
        )


def look_into(root: Path, view: FileView | None = None) -> ImageFolder | None:
    """Look into a folder; None where it holds no images, or is a folder of Parquet files or tars.

    Args:
        root: where it lies.
        view: what it holds in place of images.

    Raises:
        DataError: a folder cannot be read; all that could hold images is left out; which folders
            are splits or classes cannot be told; or class names differ only in how they are
            written.
    """
    listing = Listing(root, view)
    images = bool(listing.top.images or listing.top.folders)
    if not images and listing.left_out and not listing.tables:
        raise DataError(
            f"source.dataset: {str(root)!r} holds no image that can be read: "
            f"{listed(tuple(sorted(listing.left_out)))}"
        )
    if not images or (listing.tables and not _has_classes(listing)):
        return None
    metadata = _read_metadata(listing)
    splits, beside = _layout(listing, metadata is not None)
    left_out = [*listing.left_out, *beside]
    left_out += [
        LeftOut(
            path,
            f"{TABLES[Path(path).suffix.lower()]} beside folders of images; point source.dataset "
            "at it if it holds the dataset, else move it away",
        )
        for path in listing.tables
    ]
    _check_names(splits)
    groups, found = dict[str, dict[str | None, list[str]]](), dict[str, FoundSplit]()
    for name, split in splits.items():
        own, unlabeled = _grouped(split, splits.get("train"), metadata, left_out)
        count = split.count if unlabeled else sum(map(len, own.values()))
        found[name] = FoundSplit(split.origin, count, count, unlabeled)
        if unlabeled is None:
            groups[name] = own
    if metadata is not None:
        here = {path for split in splits.values() for path in _paths(split)}
        left_out += [
            LeftOut(path, f"named in {', '.join(metadata.files)}, and not there")
            for path in metadata.row_of
            if path not in here
        ]
    _check_groups(groups, found)
    account = Account(found, tuple(sorted(left_out)), dict(listing.other))
    kind = "Image" if view is None else view.reads
    return ImageFolder(root, account, groups, metadata, kind)


def _check_groups(
    groups: Mapping[str, Mapping[str | None, list[str]]], found: Mapping[str, FoundSplit]
) -> None:
    """Refuse images without any label, a single class, and splits without a class in common.

    Raises:
        DataError: names the folders.
    """
    if not groups:
        reasons = "; ".join(f"{split.origin[0]}: {split.unlabeled}" for split in found.values())
        raise DataError(
            f"source.dataset: no image has a label ({reasons}); make a folder for each class, or "
            f"name labels in a {METADATA[0]} with the columns {FILE_NAME} and label"
        )
    names = {split: {name for name in own if name is not None} for split, own in groups.items()}
    everything = set().union(*names.values())
    if len(everything) == 1:
        origin = next(iter(found.values())).origin[0]
        raise DataError(
            f"source.dataset: one class, {everything.pop()!r} in {origin}, expected a folder of "
            "images for each of at least two classes"
        )
    for split, own in names.items():
        trained = names.get("train", own)
        if own and trained and not own & trained:
            ours, theirs = (", ".join(sorted(each)[:LISTED_NAMES]) for each in (trained, own))
            raise DataError(
                f"source.dataset: no folder of {found[split].origin[0]} is called as one of "
                f"{found['train'].origin[0]} is: {theirs} against {ours}; rename them, or move "
                f"{found[split].origin[0]} away"
            )


def _has_classes(listing: Listing) -> bool:
    """Whether images lie in folders of at least two classes."""
    try:
        splits, _ = _layout(listing, metadata=False)
    except DataError:
        return False
    return any(len(split.classes) > 1 for split in splits.values())


def _paths(split: _Split) -> Iterator[str]:
    yield from split.loose
    for group in split.classes.values():
        yield from group


def _grouped(
    split: _Split, trained: _Split | None, metadata: _Metadata | None, left_out: list[LeftOut]
) -> tuple[dict[str | None, list[str]], str | None]:
    """The images of a split that have labels, by class, or why it has none at all.

    Images without a label in a split that has labels are added to `left_out`.
    """
    if metadata is not None and (metadata.has_labels or not split.classes):
        told = sorted(path for path in _paths(split) if path in metadata.row_of)
        named_in = ", ".join(metadata.files)
        if not told:
            return {}, f"no image of it is named in {named_in}"
        untold = set(_paths(split)) - set(told)
        left_out += [LeftOut(path, f"not named in {named_in}") for path in untold]
        return {None: told}, None
    if not split.classes:
        return {}, "its images lie in no folders of classes"
    if trained is not None and trained is not split and len(split.classes) == 1:
        (name,) = split.classes
        if name not in trained.classes and not split.loose:
            return {}, f"its only folder {name}/ is no class of {trained.origin[0]}"
    left_out += [LeftOut(path, "lies in no folder of a class") for path in split.loose]
    return {name: split.classes[name] for name in sorted(split.classes)}, None
