"""A name becomes splits: a Hub id, a local file or folder, or the data set inside this package.

A folder may hold Parquet files (with or without a card that declares configs), images in one folder
a class, WebDataset tars, or what `save_to_disk` wrote. Nothing is decoded here.
"""

import difflib
import glob
import hashlib
import logging
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from distill_datasets.data.account import Account
from distill_datasets.data.folders import ImageFolder, look_into
from distill_datasets.data.image_files import ImageFiles
from distill_datasets.data.listing import ARCHIVES, METADATA, TABLES
from distill_datasets.data.provenance import SourceFile, local_files
from distill_datasets.data.tables import (
    PIECE_BYTES,
    account_of,
    check_declared,
    one_kind,
    split_files,
    unlike,
    with_rows,
)
from distill_datasets.data.tars import Tars
from distill_datasets.errors import ArtifactError, DataError, cut, did_you_mean, shown
from distill_datasets.files.artifacts import read_json
from distill_datasets.hub import pinned as hub
from distill_datasets.media.image import raster_endings
from distill_datasets.media.view import FileView

ASSETS = Path(__file__).parent.parent / "assets"
EMBEDDED = {"embedded:uci-digits": ASSETS / "uci-digits" / "digits.parquet"}
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
FILE_KINDS = {".parquet": "parquet", ".arrow": "arrow"}
INFORMATION = "dataset_info.json"
OLD_INFORMATION = "dataset_infos.json"
DECLARED = "dataset_info"
MOST_OLD_BYTES = 2**24
ROWS = (".csv", ".jsonl", ".py")
SUGGESTIONS = 5

logger = logging.getLogger("distill_datasets")

# `datasets.Dataset` or `datasets.IterableDataset`, neither of which is typed.
Splits = dict[str, Any]


class Opened(NamedTuple):
    """The splits that have labels, and the account of all files; None where no files are listed."""

    splits: Splits
    account: Account | None = None


def _nearby(path: Path) -> str:
    parent = path.parent
    while not parent.is_dir() and parent != parent.parent:
        parent = parent.parent
    try:
        present = sorted(entry.name for entry in parent.iterdir() if entry.name[0] != ".")
    except PermissionError:
        return f"'{parent}' may not be read"
    lost = path.relative_to(parent).parts[0]
    near = difflib.get_close_matches(lost, present, n=1, cutoff=0.5)
    hint = f"did you mean '{parent / near[0]}'? " if near else ""
    shown = ", ".join(present[:SUGGESTIONS]) or "nothing"
    more = f", ... ({len(present)} entries)" if len(present) > SUGGESTIONS else ""
    return f"{hint}'{parent}' holds: {shown}{more}"


def locate(dataset: str) -> Path | None:
    """Where a dataset lies on this machine, or None when its name is a Hub id.

    A path that exists wins over a Hub id of the same spelling.

    Raises:
        DataError: nothing of this name ships with the package, lies there or can be a Hub id.
    """
    if dataset.startswith("embedded:"):
        if dataset not in EMBEDDED:
            raise DataError(
                f"source.dataset: nothing called {dataset!r} ships with this package; "
                f"{did_you_mean(dataset, EMBEDDED)}"
            )
        return EMBEDDED[dataset]
    try:
        path = Path(dataset).expanduser()
        if dataset and path.exists():
            return path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # too long for a path, or ~nobody
        raise DataError(
            f"source.dataset: {shown(dataset)} can be no file or folder ({cut(str(error))}); give "
            "a path of this machine, or a Hub id as 'owner/name'"
        ) from error
    if HUB_ID.fullmatch(dataset) and not dataset.startswith("./"):
        return None
    raise DataError(
        f"source.dataset: no file or folder {dataset!r}, and a Hub id is written 'owner/name'; "
        f"{_nearby(path.absolute())}"
    )


def without_places(value: Any, key: str = "") -> Any:  # noqa: ANN401
    """A recipe's values as others may see them: a path of this machine as its last name alone.

    What lies behind such a name is told by the hashes of its files, in the provenance.
    """
    if isinstance(value, dict):
        return {name: without_places(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [without_places(inner, key) for inner in value]
    if not isinstance(value, str) or "\n" in value or value in EMBEDDED:
        return value
    local = value.startswith(("/", "~/", "./", "../")) or value in (".", "..")
    if not local and key == "dataset" and (Path(value).is_absolute() or os.path.exists(value)):  # noqa: PTH110
        local = True
    return Path(value).expanduser().resolve().name or "root" if local else value


@contextmanager
def local_hint(dataset: str) -> Iterator[None]:
    """When a Hub id fails and its owner is a local folder's name, add what that folder holds."""
    try:
        yield
    except DataError as error:
        path = Path(dataset).absolute()
        if not path.parent.is_dir():
            raise
        raise DataError(f"{error}; if a folder was meant: {_nearby(path)}") from error


def _wrong_config(where: str, config: str | None, revision: str | None) -> str | None:
    """Why `config` cannot be right, or None when it is not to blame."""
    import datasets

    try:
        valid = datasets.get_dataset_config_names(where, revision=revision)
    except (datasets.exceptions.DatasetsError, ValueError, OSError):
        return None
    if config is None and len(valid) > 1:
        return f"source.config: {where!r} has several; set it to one of: {', '.join(valid)}"
    if config is not None and config not in valid:
        return f"source.config: no config {config!r}; {did_you_mean(config, valid)}"
    return None


@contextmanager
def _explained(
    dataset: str, where: str, config: str | None, revision: str | None, *, local: bool
) -> Iterator[None]:
    """Turn what `datasets` raises about files and configs into a `DataError`."""
    import datasets

    try:
        yield
    except (
        datasets.exceptions.DataFilesNotFoundError,
        datasets.data_files.EmptyDatasetError,
    ) as error:
        raise DataError(
            f"source.dataset: {dataset!r} holds no file that can be read; expected Parquet files, "
            "a folder of images for each class, WebDataset tars or what save_to_disk wrote"
        ) from error
    except RuntimeError as error:
        if "script" not in str(error):
            raise
        raise DataError(
            f"source.dataset: {dataset!r} is a loading script, which `datasets` no longer runs; "
            "use a copy that holds data files only (many have a branch refs/convert/parquet: set "
            "source.revision to it)"
        ) from error
    except datasets.exceptions.DatasetNotFoundError:
        raise
    except (datasets.exceptions.DatasetsError, ValueError, KeyError, tarfile.TarError) as error:
        why = _wrong_config(where, config, revision)
        cause = error.__cause__ or error
        raise DataError(
            why or f"source.dataset: {dataset!r} cannot be read: {type(cause).__name__}: {cause}"
        ) from error
    except OSError as error:
        if not local:
            raise
        raise DataError(
            f"source.dataset: {dataset!r} cannot be read: {error}; check the rights of the folder "
            "and that HF_DATASETS_CACHE points at a writable place"
        ) from error


def as_splits(dataset: Any) -> Splits:  # noqa: ANN401
    """An object from Python as splits; one without splits is called train.

    Raises:
        DataError: it is not one of the four dataset classes of `datasets`.
    """
    import datasets

    if isinstance(dataset, datasets.DatasetDict | datasets.IterableDatasetDict):
        return dict(dataset)
    if isinstance(dataset, datasets.Dataset | datasets.IterableDataset):
        return {"train": dataset}
    raise DataError(
        f"a {type(dataset).__name__} is not a dataset; expected a Dataset, DatasetDict, "
        "IterableDataset or IterableDatasetDict of the library `datasets`"
    )


def _only_images(files: Iterable[str], view: FileView | None) -> bool:
    """Whether files are images, or what a view sees, and cards and annotations beside them."""
    endings = raster_endings() if view is None else view.endings
    others = [file.lower() for file in files if Path(file).name not in METADATA]
    rows = [file for file in others if file.endswith(tuple(endings))]
    return bool(rows) and {Path(file).suffix for file in {*others} - {*rows}}.isdisjoint(
        {*TABLES, *ARCHIVES, *ROWS}
    )


def _saved_to_disk(path: Path) -> bool:
    return (path / "dataset_dict.json").is_file() or (
        (path / "state.json").is_file() and (path / INFORMATION).is_file()
    )


def _check_declared(path: Path) -> None:
    """Refuse too many names of classes; a damaged file is told when it is read."""
    with suppress(OSError), path.open("rb") as file:
        check_declared(path.name, file)


def _from_disk(path: Path) -> Any:  # noqa: ANN401
    """What `save_to_disk` wrote.

    Raises:
        DataError: a file of it was changed, or names files that lie elsewhere.
    """
    import datasets

    changed = "is not what save_to_disk wrote; save the dataset anew"
    for pattern in (INFORMATION, f"*/{INFORMATION}", "*.arrow", "*/*.arrow"):
        for file in sorted(path.glob(pattern)):
            _check_declared(file)
    for state in sorted({*path.glob("state.json"), *path.glob("*/state.json")}):
        try:
            names = [each["filename"] for each in read_json(state)["_data_files"]]
        except (ArtifactError, TypeError, KeyError) as error:
            raise DataError(f"source.dataset: {state} {changed}") from error
        for name in names:
            if not isinstance(name, str) or Path(name).name != name:
                raise DataError(
                    f"source.dataset: {state} names the file {shown(name)}, which does not lie "
                    "beside it; only files of the dataset are read"
                )
    try:
        return datasets.load_from_disk(str(path))
    except (AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise DataError(f"source.dataset: {path} {changed} ({type(error).__name__})") from error


@dataclass(frozen=True)
class Place:
    """Where a named dataset lies: in the folder or file `path`, or on the Hub where that is None.

    Its files are listed once; `files` are those that the Hub lists; `view` says which of those in a
    folder are rows, where these are no images. What is read of a Hub dataset
    is downloaded, compared with that list, and read as a folder on this machine is; only the first
    rows of tables are streamed.
    """

    dataset: str
    path: Path | None
    config: str | None = None
    revision: str | None = None
    files: tuple[SourceFile, ...] = ()
    view: FileView | None = None

    @cached_property
    def names(self) -> list[str]:
        """The paths of all files from the dataset's folder, sorted; hidden ones are left out."""
        if self.path is None:
            paths = (PurePosixPath(file.path) for file in self.files)
            return [
                str(path) for path in paths if not any(part.startswith(".") for part in path.parts)
            ]
        return [file.relative_to(self._root).as_posix() for file in local_files(self.path)]

    @property
    def _root(self) -> Path:
        """The folder of the dataset on this machine, whether or not the files are there yet."""
        if self.path is None:
            assert self.revision is not None, "what lies on the Hub is pinned"
            return hub.cached_folder(self.dataset) / "snapshots" / self.revision
        return self.path.parent if self.path.is_file() else self.path

    def _fetch(self, names: list[str] | None = None) -> None:
        """Download files of the Hub, or all of them, and compare those that are here."""
        if self.path is None:
            assert self.revision is not None
            hub.fetch(self.dataset, self.revision, self.files, names)

    @cached_property
    def _saved(self) -> bool:
        return self.path is not None and _saved_to_disk(self.path)

    @cached_property
    def _card_names_files(self) -> bool:
        if self.path is not None:
            return hub.card_names_files(self.path)
        if hub.CARD not in self.names:
            return False
        return hub.card_names_files(hub.card_of(self.dataset, self.revision))

    @cached_property
    def images(self) -> ImageFolder | None:
        """What was found in a folder of images; None for everything else.

        A card that says which files are which splits is followed, and so is what `save_to_disk`
        wrote. A folder of images on the Hub is downloaded.
        """
        if self.path is None and not _only_images(self.names, self.view):
            return None
        if (self.path is not None and self.path.is_file()) or self._saved or self._card_names_files:
            return None
        self._fetch()
        return look_into(self._root, self.view)

    @cached_property
    def tars(self) -> Tars | None:
        """The WebDataset that a source is; None for all others. One on the Hub is downloaded."""
        if self._whole or not all(name.lower().endswith(".tar") for name in self._read_files):
            return None
        self._fetch(self._read_files)
        return Tars(self._root, self._files_of)

    @property
    def _whole(self) -> bool:
        """Whether one reader knows all of it, so that there are no files to deal to splits."""
        return self.images is not None or self._saved or self.path in EMBEDDED.values()

    @cached_property
    def _by_library(self) -> bool:
        """Whether `datasets` deals files to splits: a card says so, or they are of other kinds."""
        if self.path is not None and self.path.is_file():
            return False
        return self._card_names_files or one_kind(self.names) is None

    @cached_property
    def _files_of(self) -> dict[str, list[str]]:
        """The paths of the files of each split."""
        if self.path is not None and self.path.is_file():
            return {"train": self.names}
        if self._by_library:
            return self._dealt(self._builder(streaming=True).config.data_files or {})
        kind = one_kind(self.names)
        return split_files(
            name for name in self.names if PurePosixPath(name).suffix.lower() == kind
        )

    @property
    def _read_files(self) -> list[str]:
        return [name for names in self._files_of.values() for name in names]

    def _dealt(self, data_files: Mapping[Any, list[str]]) -> dict[str, list[str]]:
        """What `datasets` has found for each split, as paths from the dataset's folder.

        Raises:
            DataError: a file is in two splits.
        """
        begin = f"{self._root}/"
        if self.path is None:
            begin = f"hf://datasets/{self.dataset}@{self.revision}/"
        splits = {
            str(split): sorted(file.removeprefix(begin) for file in files)
            for split, files in data_files.items()
        }
        split_of: dict[str, str] = {}
        for split, names in splits.items():
            for name in names:
                if split_of.setdefault(name, split) != split:
                    raise DataError(
                        f"source.dataset: {hub.CARD} puts {name!r} into the splits "
                        f"{split_of[name]!r} and {split!r}; a file belongs to one of them"
                    )
        return splits

    @property
    def here(self) -> bool:
        """Whether all that is read of it lies on this machine."""
        if self.path is not None or self.images is not None:
            return True
        assert self.revision is not None
        return hub.holds(self.dataset, self.revision, self._read_files)

    @cached_property
    def _private_cache(self) -> Path:
        """A cache folder that no other folder shares.

        `datasets` gives two folders of the same base name one cache entry: the second would return
        the first one's rows. A changed file (by size or time) gives a new entry.
        """
        import datasets

        digest = hashlib.sha256(str(self._root.resolve()).encode())
        for name in self.names if self.path is not None else self._read_files:
            status = (self._root / name).stat()
            digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        caches = Path(datasets.config.HF_DATASETS_CACHE) / "distill_datasets"
        return caches / digest.hexdigest()[:24]

    @property
    def labels_folder(self) -> Path | None:
        """Where the labels of tars are kept once they were read; None for all others."""
        return None if self.tars is None else self._private_cache / "labels"

    @property
    def image_files(self) -> ImageFiles:
        """The files that rows may name in place of bytes: those of this dataset."""
        import datasets

        extracted = Path(datasets.config.EXTRACTED_DATASETS_PATH)
        if self.path is not None:
            return ImageFiles(self.path, (self.path, self._private_cache, extracted))
        own = hub.cached_folder(self.dataset)
        return ImageFiles(self._root, (extracted, own), f"hf://datasets/{self.dataset}@")

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn whatever opening or streaming raises into a `DataError`."""
        local = self.path is not None
        where = str(self.path) if local else self.dataset
        online = nullcontext() if local else hub.explained(self.dataset, self.revision)
        with online, _explained(self.dataset, where, self.config, self.revision, local=local):
            yield

    def open(self, *, streaming: bool = False) -> Opened:
        """Open the splits.

        Args:
            streaming: read the first rows without preparing or downloading the rest.

        Raises:
            DataError: they cannot be read; the message says what to do.
        """
        if self.path is not None and self.revision is not None:
            raise DataError(
                f"source.revision: {self.dataset!r} lies on this machine and has no revisions; "
                "leave it out"
            )
        with self.explained():
            if self.images is not None:
                if self.config is not None:
                    raise DataError(
                        "source.config: a folder of images has no configs; leave it out"
                    )
                return Opened(self.images.splits(), self.images.account)
            if self._whole:
                assert self.path is not None
                return Opened(as_splits(self._read_whole(self.path)))
            several = self._by_library and hub.configs_of_card(self._root) > 1
            if self.tars is not None:
                splits = self.tars.splits()
            else:
                splits = as_splits(self._read(streaming=streaming))
            return Opened(splits, account_of(self._root, self.names, self._files_of, several))

    def row_name(self, split: str, row: int) -> str | None:
        """What a row is called where it lies; None where it has no name."""
        return None if self.tars is None else self.tars.name_of(split, row)

    def _read_whole(self, path: Path) -> Any:  # noqa: ANN401
        """The rows of this package, or what `save_to_disk` wrote."""
        import datasets
        import pyarrow.parquet as pq

        if path in EMBEDDED.values():
            return datasets.Dataset(datasets.table.InMemoryTable(pq.read_table(path)))
        if self.config is not None:
            raise DataError("source.config: what save_to_disk wrote has no configs; leave it out")
        return _from_disk(path)

    def _builder(self, *, streaming: bool, local: bool = False) -> Any:  # noqa: ANN401
        """What `datasets` reads the files with.

        Args:
            streaming: see `open`.
            local: whether files of the Hub are read where they were downloaded to.
        """
        import datasets

        self._check_old_information()
        on_hub = self.path is None and not local
        cache = None if on_hub else str(self._private_cache)
        if self.path is not None and self.path.is_file():
            kind = FILE_KINDS[self.path.suffix]
            file = {"train": glob.escape(str(self.path))}
            return datasets.load_dataset_builder(kind, data_files=file, cache_dir=cache)
        where = self.dataset if on_hub else str(self._root)
        files: dict[str, list[str]] | None = None
        if not self._by_library:
            # a name is a name, whatever brackets or stars are in it
            splits = self._files_of if on_hub else with_rows(self._root, self._files_of)
            files = {
                split: [glob.escape(name if on_hub else str(self._root / name)) for name in names]
                for split, names in splits.items()
            }
        named = {"revision": self.revision if on_hub else None, "cache_dir": cache}
        features = None
        if files and self.path is None and hub.front_matter(self._root / hub.CARD).get(DECLARED):
            # the card alone may have the names of classes, and it is not followed beside data_files
            features = datasets.load_dataset_builder(where, self.config, **named).info.features
        return datasets.load_dataset_builder(
            where, self.config, data_files=files, features=features, **named
        )

    def _read(self, *, streaming: bool) -> Any:  # noqa: ANN401
        """Tables, and what `datasets` alone knows to read."""
        import datasets

        path = self.path
        if path is not None and path.is_file() and path.suffix in ARCHIVES:
            raise DataError(
                f"source.dataset: {path.name!r} is an archive; unpack it, and point "
                "source.dataset at the folder"
            )
        if path is not None and path.is_file() and path.suffix not in FILE_KINDS:
            raise DataError(
                f"source.dataset: {path.name!r} is a file of an unknown kind; expected one of "
                f"{', '.join(TABLES)}, or a folder"
            )
        if streaming and not self.here:
            self._check_first_files()
            return self._builder(streaming=True).as_streaming_dataset()
        self._fetch(self._read_files)
        for name in self._read_files:
            _check_declared(self._root / name)
        builder = self._builder(streaming=streaming, local=True)
        if streaming:
            return builder.as_streaming_dataset()
        try:
            builder.download_and_prepare()
        except datasets.exceptions.DatasetsError as error:
            parquet = (name for name in self._read_files if name.lower().endswith(".parquet"))
            if (why := unlike(self._root, parquet)) is None:
                raise
            raise DataError(
                f"source.dataset: {self.dataset!r} cannot be read as one table: {why}; write them "
                "with the same columns, or point source.dataset at one of them"
            ) from error
        return builder.as_dataset()

    def _check_old_information(self) -> None:
        """Look at the size of a file that `datasets` reads whole wherever it lies."""
        if OLD_INFORMATION not in self.names:
            return
        if self.path is not None:
            _check_declared(self._root / OLD_INFORMATION)
        elif max(file.size for file in self.files if file.path == OLD_INFORMATION) > MOST_OLD_BYTES:
            raise DataError(
                f"source.dataset: {OLD_INFORMATION} of {self.dataset!r} is longer than "
                f"{MOST_OLD_BYTES:,} bytes; use a copy of the dataset without it"
            )

    def _check_first_files(self) -> None:
        """Look at what the first file of each split declares, without downloading the rest."""
        import fsspec  # type: ignore[import-untyped]

        for names in self._files_of.values():
            address = f"hf://datasets/{self.dataset}@{self.revision}/{names[0]}"
            if PurePosixPath(names[0]).suffix.lower() in FILE_KINDS:
                with fsspec.open(address, "rb", block_size=PIECE_BYTES) as file:
                    check_declared(names[0], file)


def open_splits(dataset: str, config: str | None, revision: str | None) -> Splits:
    """The splits of a named dataset.

    Args:
        dataset: a Hub id, a local path or an `embedded:` name.
        config: which config of it; None when there is only one.
        revision: branch, tag or commit on the Hub.

    Raises:
        DataError: it does not exist or cannot be read; the message says what to do.
    """
    path, files = locate(dataset), tuple[SourceFile, ...]()
    if path is None:
        pinned = hub.pin(dataset, revision)
        revision, files = pinned.commit, tuple(SourceFile(*file) for file in pinned.files)
    return Place(dataset, path, config, revision, files).open().splits
