"""Where the images came from, so exactly that the same images can be had again.

A Hub dataset is pinned to its commit, a local folder to the sha256 of its files, an object in
memory to its fingerprint. Nothing is decoded and no image is downloaded here.
"""

import hashlib
import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from distill_datasets.data import columns, image_columns
from distill_datasets.data.folders import ImageFolder
from distill_datasets.errors import DataError, cut
from distill_datasets.hub import pinned as hub

logger = logging.getLogger("distill_datasets")

MEMORY_NAME = "in memory"
HASHED_AT_ONCE = 1024
LISTED_FOLDERS = 3


class SourceFile(NamedTuple):
    """One file: its path inside the dataset, its hash in hexadecimal, its size in bytes.

    The hash is the sha256, or the 40-digit git blob id of a small text file on the Hub. The images
    of one class of a folder of images count as one file, `train/cat`: its hash is that of their
    hashes in the order of the rows, a line each, its size the sum of theirs.
    """

    path: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Provenance:
    """What was read; reading fills in `splits`, `overlap` and `targets`."""

    dataset: str
    config: str | None = None
    revision: str | None = None
    files: tuple[SourceFile, ...] = ()
    license: str | None = None
    card_url: str | None = None
    splits: Mapping[str, int] = field(default_factory=dict)
    overlap: Mapping[str, int] = field(default_factory=dict)
    targets: Mapping[str, list[float]] = field(default_factory=dict)
    """Of targets that are numbers: `mean` and `std` of each over the training rows."""

    def identity(self) -> dict[str, Any]:
        """What decides the content, for a fingerprint: no path of this machine, no license.

        A Hub dataset is decided by its commit, so its list of files is left out: it is not known
        offline.
        """
        known = {"dataset": self.dataset, "config": self.config, "revision": self.revision}
        if self.revision is not None:
            return known
        return known | {"files": [list(file) for file in self.files]}

    def as_json(self) -> dict[str, Any]:
        """Everything, for a manifest. A local folder appears under its base name only."""
        return {
            "dataset": self.dataset,
            "config": self.config,
            "revision": self.revision,
            "files": [file._asdict() for file in self.files],
            "license": self.license,
            "card_url": self.card_url,
            "splits": dict(self.splits),
            "overlap": dict(self.overlap),
            **({"targets": dict(self.targets)} if self.targets else {}),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Provenance":
        """The inverse of `as_json`."""
        files = tuple(SourceFile(**file) for file in content["files"])
        return cls(**{**content, "files": files})


def local_files(path: Path) -> list[Path]:
    """The files of a folder, or the one file, sorted; hidden files and folders are left out.

    Raises:
        DataError: a folder cannot be listed.
    """
    if path.is_file():
        return [path]
    found = list[Path]()
    for folder, inner, names in os.walk(path, onerror=_unreadable):
        inner[:] = [name for name in inner if not name.startswith(".")]
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(file for file in found if file.is_file())


def _unreadable(error: OSError) -> NoReturn:
    raise DataError(
        f"source.dataset: {error.filename} cannot be read ({error.strerror}); let this user read "
        "it, or move it away"
    ) from error


def of_path(path: Path, config: str | None, name: str | None = None) -> Provenance:
    """The provenance of a local file or folder.

    Args:
        path: where it lies.
        config: `source.config`.
        name: what to call it; None is its base name.

    Raises:
        DataError: a file or folder in it cannot be read.
    """
    root = path.parent if path.is_file() else path
    found = local_files(path)
    with ThreadPoolExecutor() as pool:
        hashes = pool.map(_hashed, found)
        files = tuple(
            SourceFile(file.relative_to(root).as_posix(), *hashed)
            for file, hashed in zip(found, hashes, strict=True)
        )
    return Provenance(
        name or path.resolve().name, config, files=files, license=hub.license_in_card(root)
    )


def _hashed(file: Path) -> tuple[str, int]:
    """The sha256 of a file and its size."""
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest(), file.stat().st_size
    except OSError as error:
        _unreadable(error)


def of_images(images: ImageFolder, name: str) -> Provenance:
    """The provenance of a folder of images: of the files that are rows, and no others.

    Args:
        images: what was found in it.
        name: what to call it.

    Raises:
        DataError: a file cannot be read.
    """
    files = list[SourceFile]()
    with ThreadPoolExecutor() as pool:
        for split, groups in images.groups.items():
            for group, paths in groups.items():
                digest, size = hashlib.sha256(), 0
                for start in range(0, len(paths), HASHED_AT_ONCE):
                    some = [images.root / path for path in paths[start : start + HASHED_AT_ONCE]]
                    for sha256, file_size in pool.map(_hashed, some):
                        digest.update(f"{sha256}\n".encode())
                        size += file_size
                called = split if group is None else f"{split}/{group}"
                files.append(SourceFile(called, digest.hexdigest(), size))
        for path in images.metadata_files:
            files.append(SourceFile(path, *_hashed(images.root / path)))
    return Provenance(name, files=tuple(files), license=hub.license_in_card(images.root))


def of_hub(dataset: str, config: str | None, revision: str | None) -> Provenance:
    """The provenance of a Hub dataset, pinned to a commit.

    Raises:
        DataError: it does not exist, may not be read, or the Hub cannot be reached.
    """
    pinned = hub.pin(dataset, revision)
    return Provenance(
        dataset,
        config,
        pinned.commit,
        tuple(SourceFile(*file) for file in pinned.files),
        pinned.license,
        pinned.url,
    )


def _hash_rows(split: str, rows: Any) -> SourceFile:  # noqa: ANN401
    """A hash of everything in an iterable that can be an image or a label, read undecoded."""
    undecoded = rows.with_format(None)
    for name, feature in columns.declared(split, rows.features).items():
        if image_columns.holds_files(feature):
            undecoded = undecoded.cast_column(name, type(feature)(decode=False))
    digest, count = hashlib.sha256(), 0
    for row in undecoded:
        digest.update(repr(sorted(row.items())).encode())
        count += 1
    return SourceFile(split, digest.hexdigest(), count)


def _named_files(rows: Any) -> list[str]:  # noqa: ANN401
    """The files that rows of a `Dataset` name in place of an image's bytes."""
    import pyarrow.compute as pc

    named = set[str]()
    for column, feature in rows.features.items():
        if image_columns.holds_files(feature):
            for chunk in rows.data.column(column).chunks:
                alone = pc.and_not(chunk.field("path").is_valid(), chunk.field("bytes").is_valid())
                named.update(chunk.field("path").filter(alone).to_pylist())
    return sorted(named)


def _fingerprint(rows: Any, named: list[str]) -> str:  # noqa: ANN401
    """What `datasets` keeps of a dataset, and the state of files that its images only name."""
    if not named:
        return str(rows._fingerprint)
    digest = hashlib.sha256(rows._fingerprint.encode())
    for path in map(Path, named):
        if path.exists():
            status = path.stat()
            digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _tell_named(split: str, named: list[str]) -> None:
    """Say where files lie that are read because rows name them.

    Whoever made a dataset object in Python may name any file; of one that others made, rows could
    name a picture that is private.
    """
    folders = sorted({path.rpartition("/")[0] or "." for path in named})
    more = f", ... ({len(folders):,} folders)" if len(folders) > LISTED_FOLDERS else ""
    logger.warning(
        "rows of the split %r name %d files in place of bytes, in %s%s: they are read, and what is "
        "distilled may show them; where others made this dataset, see that they belong to it",
        split, len(named), ", ".join(map(cut, folders[:LISTED_FOLDERS])), more,
    )  # fmt: skip


def of_memory(splits: Mapping[str, Any]) -> Provenance:
    """The provenance of dataset objects: their fingerprint, which `datasets` keeps.

    An `IterableDataset` has none: its rows are read once, undecoded, and hashed.
    """
    import datasets

    files = []
    for split, rows in splits.items():
        if isinstance(rows, datasets.Dataset) and rows.format["type"] == "custom":
            logger.warning(
                "the transform of the split %r (set_transform, with_transform) is not applied: "
                "rows are read as they are kept; .map() makes a transform part of them",
                split,
            )
        if isinstance(rows, datasets.Dataset):
            if named := _named_files(rows):
                _tell_named(split, named)
            files.append(SourceFile(split, _fingerprint(rows, named), rows.num_rows))
        else:
            files.append(_hash_rows(split, rows))
    return Provenance(MEMORY_NAME, files=tuple(files))
