"""WebDataset tars: files of one name with several endings are one sample.

A sample's key is what stands before the first dot of a file's name, as the format says; where more
samples are whole when the last dot divides (`img.0001.jpg`), that one does. Members may lie in any
order. An image is whichever image ending a sample has, so that `.jpg`, `.jpeg` and `.png` mix; only
samples with several images give several columns. Only headers are read to find all this out.

Of the rest, `json` gives a column of its plain values, `cls` and `id` integers where all are, else
text, as `txt` does; nothing else is decoded, pickles least of all. Links, devices and pipes in a
tar are never followed.
"""

import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from distill_datasets.errors import DataError
from distill_datasets.media.image import raster_endings

NUMBERS = frozenset(("cls", "cls2", "class", "count", "index", "inx", "id", "label", "target"))
TEXTS = frozenset(("txt", "text", "transcript", "caption"))
LOOKED_AT = 64
LONGEST_NUMBER = 32
MOST_TEXT_BYTES = 2**24
BLOCK = tarfile.BLOCKSIZE
IMAGE = "image"


class Archived(NamedTuple):
    """A file in a tar: its name, and where its bytes lie."""

    name: str
    start: int
    size: int


Sample = dict[str, Archived]


def members(path: Path) -> Iterator[Archived]:
    """The regular files of a tar, from its headers.

    Raises:
        DataError: it is compressed, damaged or cut short.
    """
    end = 0
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                end = member.offset_data + -(-member.size // BLOCK) * BLOCK
                if member.isreg() and not _is_hidden(member.name):
                    yield Archived(member.name, member.offset_data, member.size)
        with path.open("rb") as file:
            file.seek(end)
            # tarfile ends silently at a header that it cannot read
            if file.read(BLOCK).strip(b"\0"):
                raise tarfile.ReadError(f"no header at byte {end:,}")
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise DataError(
            f"source.dataset: {path.name!r} is no tar that can be read to its end ({error}); "
            "unpack a compressed one, or fetch it again"
        ) from error


def _is_hidden(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return any(part.startswith(".") and part not in (".", "..") for part in parts)


def _parted(name: str, last: bool) -> tuple[str, str]:
    """The key of a sample and the field that a file is of it."""
    folder, slash, file = name.rpartition("/")
    key, _, ending = file.rpartition(".") if last else file.partition(".")
    return folder + slash + key, ending.lower()


def _is_image(ending: str) -> bool:
    return f".{ending.rpartition('.')[2]}" in raster_endings()


def _samples(found: Iterable[Archived], last: bool) -> dict[str, Sample]:
    samples: dict[str, Sample] = {}
    for member in found:
        key, ending = _parted(member.name, last)
        if not key or not ending:
            continue
        sample = samples.setdefault(key, {})
        if ending in sample:
            raise DataError(
                f"source.dataset: a tar holds {sample[ending].name!r} and {member.name!r}, two "
                "files of one sample and ending; give them different names"
            )
        sample[ending] = member
    return samples


@dataclass(frozen=True)
class _Columns:
    """How fields become columns: of images by their endings, and of all others by type."""

    images: Mapping[str, tuple[str, ...]]
    others: Mapping[str, Any]


@dataclass(frozen=True)
class Tars:
    """The tars of a source, by split."""

    root: Path
    files: Mapping[str, list[str]]

    @cached_property
    def _listed(self) -> dict[str, list[list[Archived]]]:
        return {
            split: [list(members(self.root / path)) for path in paths]
            for split, paths in self.files.items()
        }

    @cached_property
    def _last(self) -> bool:
        """Whether the last dot of a name divides it; the first one does where both are as good."""
        tars = [tar for split in self._listed.values() for tar in split]

        def quality(last: bool) -> tuple[int, int, int, int]:
            whole = broken = 0
            endings = set[str]()
            for tar in tars:
                for sample in _samples(tar, last).values():
                    kinds = {_is_image(ending) for ending in sample}
                    whole, broken = whole + (len(kinds) == 2), broken + (len(kinds) < 2)
                    endings.update(sample)
            return whole, -broken, -len(endings), -sum("." in ending for ending in endings)

        return quality(True) > quality(False)

    def _samples_of(self, split: str) -> Iterator[tuple[Path, dict[str, Sample]]]:
        for path, found in zip(self.files[split], self._listed[split], strict=True):
            yield self.root / path, _samples(found, self._last)

    @cached_property
    def _columns(self) -> _Columns:
        fields, together = dict[str, None](), False
        looked_at: dict[str, list[bytes]] = {}
        for split in self.files:
            for path, samples in self._samples_of(split):
                step = max(1, len(samples) // LOOKED_AT)
                with path.open("rb") as file:
                    for place, sample in enumerate(samples.values()):
                        fields.update(dict.fromkeys(sample))
                        roles = [_role(ending) for ending in sample if _is_image(ending)]
                        together |= len(set(roles)) < len(roles)
                        if place % step == 0:
                            for ending, member in sample.items():
                                if not _is_image(ending):
                                    looked_at.setdefault(ending, []).append(_bytes(file, member))
        images: dict[str, list[str]] = {}
        for ending in filter(_is_image, fields):
            images.setdefault(ending if together else _role(ending), []).append(ending)
        named = {
            endings[0] if len(endings) == 1 else role or IMAGE: tuple(endings)
            for role, endings in images.items()
        }
        others = {ending: _type_of(ending, cells) for ending, cells in looked_at.items()}
        return _Columns(named, {ending: kind for ending, kind in others.items() if kind})

    def splits(self) -> dict[str, Any]:
        """The splits as streams, a shard for each tar.

        Raises:
            DataError: a tar cannot be read, or none holds an image.
        """
        import datasets

        if not self._columns.images:
            raise DataError(
                f"source.dataset: no image in {sum(map(len, self.files.values()))} tars; expected "
                "files such as 0001.jpg and 0001.cls for each sample"
            )
        features = datasets.Features(
            {name: datasets.Image() for name in self._columns.images} | dict(self._columns.others)
        )
        return {
            split: datasets.IterableDataset.from_generator(
                rows_of,
                features=features,
                gen_kwargs={
                    "tars": [str(self.root / path) for path in paths],
                    "last": self._last,
                    "images": dict(self._columns.images),
                    "others": dict(self._columns.others),
                },
                split=datasets.NamedSplit(split),
            )
            for split, paths in self.files.items()
        }

    def name_of(self, split: str, row: int) -> str:
        """The tar and the key of a row, for a message."""
        for path, samples in self._samples_of(split):
            if row < len(samples):
                return f"{path.name}: {list(samples)[row]}"
            row -= len(samples)
        raise IndexError(row)


def _role(ending: str) -> str:
    """What an image is in its sample: nothing for the only one, as `seg` of `seg.png`."""
    return ending.rpartition(".")[0]


def _bytes(file: Any, member: Archived) -> bytes:  # noqa: ANN401
    file.seek(member.start)
    content: bytes = file.read(min(member.size, MOST_TEXT_BYTES))
    return content


def _type_of(ending: str, cells: list[bytes]) -> Any:  # noqa: ANN401
    """The type of a column that is no image, from some of its cells; None leaves it out."""
    import datasets

    kind = ending.rpartition(".")[2]
    if kind in NUMBERS or kind in TEXTS:
        integers = kind in NUMBERS and all(_integer(cell) is not None for cell in cells)
        return datasets.Value("int64" if integers else "string")
    if kind != "json":
        return None
    return _struct([content for cell in cells if (content := _json(cell)) is not None])


def _struct(contents: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The type of JSON objects: their plain values, and objects inside them."""
    values: dict[str, list[Any]] = {}
    for content in contents:
        for key, value in content.items():
            values.setdefault(key, []).append(value)
    fields = {key: _json_type(found) for key, found in values.items()}
    return {key: kind for key, kind in fields.items() if kind is not None} or None


def _json_type(found: list[Any]) -> Any:  # noqa: ANN401
    there = [value for value in found if value is not None]
    if there and all(isinstance(value, dict) for value in there):
        return _struct(there)
    kinds = {_plain_kind(value) for value in there}
    return None if "" in kinds else _plain_type(kinds)


def _plain_kind(value: object) -> str:
    """The type of a JSON value; nothing for a list or an object, which are no labels."""
    for kind, name in ((bool, "bool"), (int, "int64"), (float, "float64"), (str, "string")):
        if isinstance(value, kind):
            return name
    return ""


def _plain_type(kinds: set[str]) -> Any:  # noqa: ANN401
    import datasets

    if not kinds:
        return None
    if len(kinds) == 1:
        return datasets.Value(next(iter(kinds)))
    return datasets.Value("float64" if kinds == {"int64", "float64"} else "string")


def _integer(cell: bytes) -> int | None:
    try:
        number = int(cell) if len(cell) <= LONGEST_NUMBER else None
    except ValueError:
        return None
    return None if number is None or abs(number) >= 2**63 else number


def _json(cell: bytes) -> dict[str, Any] | None:
    try:
        content = json.loads(cell)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _conformed(cell: bytes, feature: Any) -> Any:  # noqa: ANN401
    """A cell as its column's type has it; None where it is nothing of that."""
    if isinstance(feature, dict):
        return _plain(_json(cell) or {}, feature)
    if feature.dtype == "int64":
        return _integer(cell)
    return cell.decode("utf-8", "replace").strip() or None


def _plain(value: Any, feature: Any) -> Any:  # noqa: ANN401
    """A JSON value as its type has it; None where it is nothing of that."""
    if isinstance(feature, dict):
        content = value if isinstance(value, dict) else {}
        return {key: _plain(content.get(key), inner) for key, inner in feature.items()}
    kind, dtype = _plain_kind(value), feature.dtype
    if value is None or not kind:
        return None
    if dtype == "string":
        return str(value)
    if dtype == "float64" and kind == "int64":
        return float(value)
    return value if kind == dtype else None


def rows_of(
    tars: list[str], last: bool, images: dict[str, tuple[str, ...]], others: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """The samples of tars in order, one row each; what a sample lacks is None.

    Args:
        tars: paths; `datasets` deals them to shards.
        last: whether the last dot of a name divides it.
        images: the endings of each image column.
        others: the types of all other columns.
    """
    for path in map(Path, tars):
        with path.open("rb") as file:
            for sample in _samples(members(path), last).values():
                row: dict[str, Any] = {}
                for name, endings in images.items():
                    member = next((sample[each] for each in endings if each in sample), None)
                    row[name] = None
                    if member is not None:
                        file.seek(member.start)
                        # with a path `datasets` drops the bytes where a file here has that name
                        row[name] = {"bytes": file.read(member.size), "path": None}
                for ending, feature in others.items():
                    there = ending in sample
                    row[ending] = (
                        _conformed(_bytes(file, sample[ending]), feature) if there else None
                    )
                yield row
