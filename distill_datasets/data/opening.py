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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from distill_datasets.data.account import Account
from distill_datasets.data.folders import ImageFolder, look_into
from distill_datasets.data.image_files import ImageFiles
from distill_datasets.data.listing import ARCHIVES, METADATA, TABLES
from distill_datasets.data.provenance import SourceFile, local_files
from distill_datasets.data.tables import account_of, one_kind, split_files, with_rows
from distill_datasets.data.tars import Tars
from distill_datasets.errors import ArtifactError, DataError, cut, did_you_mean, shown
from distill_datasets.files.artifacts import read_json
from distill_datasets.hub import pinned as hub
from distill_datasets.media.image import raster_endings

ASSETS = Path(__file__).parent.parent / "assets"
EMBEDDED = {"embedded:uci-digits": ASSETS / "uci-digits" / "digits.parquet"}
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
FILE_KINDS = {".parquet": "parquet", ".tar": "webdataset", ".arrow": "arrow"}
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


def _only_images(files: tuple[str, ...]) -> bool:
    """Whether files are images, and cards and annotations beside them."""
    named = (Path(file) for file in files)
    endings = {file.suffix.lower() for file in named if file.name not in METADATA}
    return bool(endings & raster_endings()) and not endings & {*TABLES, *ARCHIVES, *ROWS}


def _saved_to_disk(path: Path) -> bool:
    return (path / "dataset_dict.json").is_file() or (
        (path / "state.json").is_file() and (path / "dataset_info.json").is_file()
    )


def _from_disk(path: Path) -> Any:  # noqa: ANN401
    """What `save_to_disk` wrote.

    Raises:
        DataError: a file of it was changed, or names files that lie elsewhere.
    """
    import datasets

    changed = "is not what save_to_disk wrote; save the dataset anew"
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

    The files of a local one are listed once; `files` are those that the Hub lists, against which
    downloaded ones are checked.
    """

    dataset: str
    path: Path | None
    config: str | None = None
    revision: str | None = None
    files: tuple[SourceFile, ...] = ()

    @cached_property
    def _files(self) -> list[Path]:
        return [] if self.path is None else local_files(self.path)

    @cached_property
    def images(self) -> ImageFolder | None:
        """What was found in a folder of images; None for everything else.

        A card that says which files are which splits is followed, and so is what `save_to_disk`
        wrote. A folder of images on the Hub is downloaded.
        """
        path = self.path
        if path is None:
            if not _only_images(tuple(file.path for file in self.files)):
                return None
            path = hub.snapshot(self.dataset, self.revision)
            if found := hub.changed(self.dataset, self.revision, self.files):
                raise DataError(
                    f"source.dataset: the downloaded {found[0]} of {self.dataset!r} has other "
                    f"bytes than the Hub lists; remove {path / found[0]} and run again"
                )
        if path.is_file() or _saved_to_disk(path) or hub.card_names_files(path):
            return None
        return look_into(path)

    @property
    def _only_tars(self) -> bool:
        """True for a tar and for a folder whose data files all are."""
        return {file.suffix for file in self._files} - {".md", ".txt", ".json", ""} == {".tar"}

    @cached_property
    def _private_cache(self) -> Path:
        """A cache folder that no other local folder shares.

        `datasets` gives two folders of the same base name one cache entry: the second would return
        the first one's rows. A changed file (by size or time) gives a new entry.
        """
        import datasets

        assert self.path is not None, "the Hub's datasets have names of their own"
        digest = hashlib.sha256(str(self.path.resolve()).encode())
        for file in self._files:
            status = file.stat()
            digest.update(
                f"{file.relative_to(self.path)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode()
            )
        caches = Path(datasets.config.HF_DATASETS_CACHE) / "distill_datasets"
        return caches / digest.hexdigest()[:24]

    @property
    def labels_folder(self) -> Path | None:
        """Where the labels of local tars are kept once they were read; None for all others."""
        return self._private_cache / "labels" if self._only_tars else None

    @property
    def image_files(self) -> ImageFiles:
        """The files that rows may name in place of bytes: those of this dataset."""
        import datasets

        extracted = Path(datasets.config.EXTRACTED_DATASETS_PATH)
        if self.path is not None:
            return ImageFiles(self.path, (self.path, self._private_cache, extracted))
        downloads = Path(datasets.config.DOWNLOADED_DATASETS_PATH)
        own = hub.cached_folder(self.dataset)
        return ImageFiles(None, (downloads, extracted, own), f"hf://datasets/{self.dataset}@")

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
            if self.path is not None:
                return self._local(self.path, streaming)
            return Opened(as_splits(self._from_hub(streaming)))

    def _from_hub(self, streaming: bool) -> Any:  # noqa: ANN401
        """What `datasets` makes of the downloaded files, once their bytes are those listed.

        Over plain HTTP the client compares sizes only, and keeps a file that was changed on its way
        in its cache.
        """
        import datasets

        def load(mode: str | None = None) -> Any:  # noqa: ANN401
            return datasets.load_dataset(
                self.dataset,
                self.config,
                revision=self.revision,
                streaming=streaming,
                download_mode=mode,
            )

        def changed() -> list[str]:
            return hub.changed(self.dataset, self.revision, self.files)

        if any(path == hub.CARD for path, _, _ in self.files):
            hub.read_card(self.dataset, self.revision)
        try:
            loaded = load()
        except (datasets.exceptions.DatasetsError, OSError, ValueError):
            # what a reader says of bytes that nobody wrote
            if streaming or not changed():
                raise
            loaded = None
        if streaming or not (found := changed()):
            return loaded
        logger.warning(
            "source: the download of %s was damaged on its way; fetching it again", found[0]
        )
        loaded = load("force_redownload")
        if found := changed():
            raise DataError(
                f"source.dataset: the downloaded {found[0]} of {self.dataset!r} has other bytes "
                "than the Hub lists, twice in a row; look at the connection, or give a local folder"
            )
        return loaded

    def _local(self, path: Path, streaming: bool) -> Opened:
        if path in EMBEDDED.values() or _saved_to_disk(path) or hub.card_names_files(path):
            return Opened(as_splits(self._read(path, streaming)))
        if self.tars is not None:
            account = account_of(self.tars.root, self._files, self.tars.files)
            return Opened(self.tars.splits(), account)
        kind = one_kind(self._files) if path.is_dir() else None
        if kind is None:
            return Opened(as_splits(self._read(path, streaming)))
        splits = split_files(
            file.relative_to(path).as_posix() for file in self._files if file.suffix.lower() == kind
        )
        account = account_of(path, self._files, splits)
        return Opened(as_splits(self._read(path, streaming, splits)), account)

    @cached_property
    def tars(self) -> Tars | None:
        """The WebDataset that a local source is; None for all others."""
        path = self.path
        if path is None or _saved_to_disk(path):
            return None
        if path.is_file():
            return Tars(path.parent, {"train": [path.name]}) if path.suffix == ".tar" else None
        if hub.card_names_files(path) or one_kind(self._files) != ".tar":
            return None
        shards = [file for file in self._files if file.suffix.lower() == ".tar"]
        return Tars(path, split_files(file.relative_to(path).as_posix() for file in shards))

    def row_name(self, split: str, row: int) -> str | None:
        """What a row is called where it lies; None where it has no name."""
        return None if self.tars is None else self.tars.name_of(split, row)

    def _read(
        self, path: Path, streaming: bool, splits: Mapping[str, list[str]] | None = None
    ) -> Any:  # noqa: ANN401
        import datasets
        import pyarrow.parquet as pq

        if path in EMBEDDED.values():
            return datasets.Dataset(datasets.table.InMemoryTable(pq.read_table(path)))
        if _saved_to_disk(path):
            if self.config is not None:
                raise DataError(
                    "source.config: what save_to_disk wrote has no configs; leave it out"
                )
            return _from_disk(path)
        cache = str(self._private_cache)
        # shards of a WebDataset are read where they lie: nothing is copied, and processes share
        streaming = streaming or self._only_tars
        if path.is_file():
            if path.suffix in ARCHIVES:
                raise DataError(
                    f"source.dataset: {path.name!r} is an archive; unpack it, and point "
                    "source.dataset at the folder"
                )
            if path.suffix not in FILE_KINDS:
                raise DataError(
                    f"source.dataset: {path.name!r} is a file of an unknown kind; expected one of "
                    f"{', '.join(FILE_KINDS)}, or a folder"
                )
            return datasets.load_dataset(
                FILE_KINDS[path.suffix],
                data_files={"train": str(path)},
                cache_dir=cache,
                streaming=streaming,
            )
        if splits is None:
            return datasets.load_dataset(
                str(path), self.config, cache_dir=cache, streaming=streaming
            )
        # a name is a name, whatever brackets or stars are in it
        files = {
            split: [glob.escape(str(path / name)) for name in names]
            for split, names in with_rows(path, splits).items()
        }
        return datasets.load_dataset(
            str(path), self.config, data_files=files, cache_dir=cache, streaming=streaming
        )


def open_splits(dataset: str, config: str | None, revision: str | None) -> Splits:
    """The splits of a named dataset.

    Args:
        dataset: a Hub id, a local path or an `embedded:` name.
        config: which config of it; None when there is only one.
        revision: branch, tag or commit on the Hub.

    Raises:
        DataError: it does not exist or cannot be read; the message says what to do.
    """
    return Place(dataset, locate(dataset), config, revision).open().splits
