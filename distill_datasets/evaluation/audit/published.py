"""A published folder read with distrust: nothing is run, and what is broken is told, not raised.

Shape suffixes: N readable rows, K classes, C channels, H W pixels.
"""

from __future__ import annotations

import json
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors
import torch

from distill_datasets.data.normalization import InputSpace
from distill_datasets.data.overlap import prints
from distill_datasets.errors import ArtifactError, DistillError
from distill_datasets.evaluation.audit.findings import Measurement
from distill_datasets.export.agreement import problems
from distill_datasets.export.folder import MANIFEST, check_of_classes
from distill_datasets.export.licenses import why_restricted
from distill_datasets.files.artifacts import fingerprint, read_json, read_tensors, sha256_of
from distill_datasets.media.image import UnusableImage, quiet_decoders, read_image
from distill_datasets.training.examples import Stored

if TYPE_CHECKING:
    from torch import Tensor

KINDS = frozenset({".parquet", ".md", ".yaml", ".json", ".png", ".safetensors", ".tar", ""})
"""Endings of files of the published format; .gitattributes has none."""
CODE = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"\x7fELF", b"MZ", b"#!", b"PK\x03\x04")
"""What pickles, programs, scripts and archives of these begin with."""
MOST_NAMED = 10
SUM_TOLERANCE = 1e-3
FAR = 2.0
"""Pixels lie in [0, 1]; trained ones may lie a little outside, but not so far."""
BROKEN = (OSError, ValueError, KeyError, TypeError, pa.ArrowException, DistillError)
"""What readers raise of files that are not what they should be."""


@dataclass(frozen=True)
class Rows:
    """The rows of `default` that can be read.

    Attributes:
        images_NCHW: uint8.
        labels_N: the class of each.
        targets_NK: its soft label.
        row_N: its number in the set.
        class_names: as the set says.
        space: how a student sees pixels; None where the set does not say.
    """

    images_NCHW: Tensor
    labels_N: Tensor
    targets_NK: Tensor
    row_N: list[int]
    class_names: list[str]
    space: InputSpace | None

    @property
    def is_soft(self) -> bool:
        """Whether any label shares classes out."""
        return bool((self.targets_NK.max(dim=1).values < 1 - SUM_TOLERANCE).any())

    def stored(self, space: InputSpace) -> Stored:
        """What students train on; `space` where the set does not say how they see pixels."""
        return Stored(self.images_NCHW, self.targets_NK, self.space or space)

    def named(self, places: Tensor | list[int]) -> list[str]:
        """Rows in words, at most some."""
        chosen = list(map(int, places))[:MOST_NAMED]
        return [f"row {self.row_N[place]} ({self.class_of(place)})" for place in chosen]

    def class_of(self, place: int) -> str:
        """The name of a row's class."""
        return self.class_names[int(self.labels_N[place])]


class Reading(NamedTuple):
    """What was read of a folder: the number of each check of T0, its rows, and a fingerprint."""

    measured: dict[str, Measurement]
    rows: Rows | None
    identity: str


def read_folder(folder: Path) -> Reading:
    """Read a published folder and count what is wrong with it.

    Raises:
        ArtifactError: there is no folder, or nothing in it that a manifest or rows could be.
    """
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: no such folder; give one in the published layout")
    paths = sorted((folder / "data").glob("train-*.parquet"))
    if not paths and not (folder / MANIFEST).exists():
        raise ArtifactError(
            f"{folder}: neither {MANIFEST} nor data/train-*.parquet; give a folder that `run` or "
            "`import` wrote, or import this one first"
        )
    manifest = _manifest(folder)
    check_of_classes(folder, manifest or {}, "audit")
    found = {
        "files": _counted(_disagreements(folder)),
        "programs": _counted(_programs(folder)),
        "license": _license(manifest),
        "values": _counted(_far_values(folder, manifest)),
    }
    table, columns = _table(paths)
    found["columns"] = _counted(columns)
    identity = fingerprint([sha256_of(path) for path in paths])
    if table is None:
        return Reading(found, None, identity)
    rows, of_rows = _rows(table, manifest)
    return Reading(found | of_rows, rows, identity)


def _counted(problems: Iterator[str] | list[str]) -> Measurement:
    found = list(problems)
    return Measurement(len(found), found[:MOST_NAMED])


def _manifest(folder: Path) -> dict[str, Any]:
    """What the manifest says, {} where there is none that can be read."""
    try:
        said = read_json(folder / MANIFEST)
    except ArtifactError:
        return {}
    return said if isinstance(said, dict) else {}


def _disagreements(folder: Path) -> Iterator[str]:
    try:
        yield from problems(folder)
    except BROKEN as error:
        yield f"{error}"
    except AttributeError as error:  # a value of another kind than its reader expects
        yield f"{MANIFEST}: not as this library writes it ({error})"


def _license(manifest: dict[str, Any]) -> Measurement:
    source = manifest.get("source")
    why = why_restricted(source if isinstance(source, dict) else {})
    return Measurement(0) if why is None else Measurement(1, [why])


def _programs(folder: Path) -> Iterator[str]:
    """Files that are run when they are opened, or might be."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            yield f"{name}: a link"
        elif path.is_file():
            with path.open("rb") as file:
                head = file.read(4)
            if path.suffix.lower() not in KINDS:
                yield f"{name}: no kind of file of the published format"
            elif head.startswith(CODE):
                yield f"{name}: begins as a program or a pickle"
            elif path.stat().st_mode & (stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH):
                yield f"{name}: may be executed"


def _far_values(folder: Path, manifest: dict[str, Any]) -> Iterator[str]:
    """Files whose numbers are not finite, or lie where no pixel does."""
    for path in sorted(folder.glob("constants/*.safetensors")):
        name = path.relative_to(folder).as_posix()
        try:
            tensors, _ = read_tensors(path)
        except (DistillError, safetensors.SafetensorError) as error:
            yield f"{name}: {error}"
            continue
        for key, tensor in tensors.items():
            if not bool(tensor.float().isfinite().all()):
                yield f"{name}: {key} is not finite"
    space = _space(manifest)
    for config, column in (("exact", "pixel_values"), ("poster", "poster")):
        for path in sorted((folder / config).glob("train-*.parquet")):
            name = path.relative_to(folder).as_posix()
            try:
                values = pq.read_table(path, columns=[column]).column(column)
                flat = values.combine_chunks().flatten().to_numpy(zero_copy_only=False)
            except BROKEN as error:
                yield f"{name}: {error}"
                continue
            least, most = _pixel_bounds(flat, space if config == "exact" else None)
            if not (np.isfinite(flat).all() and least >= -FAR and most <= 1 + FAR):
                yield f"{name}: {column} from {least:.3g} to {most:.3g}, expected pixels in [0, 1]"


def _pixel_bounds(flat: Any, space: InputSpace | None) -> tuple[float, float]:  # noqa: ANN401
    """The smallest and largest value as a pixel; the mean over channels of how they are seen."""
    if not len(flat):
        return 0.0, 1.0
    scale, shift = (1.0, 0.0) if space is None else (
        float(space.std_C.mean()), float(space.mean_C.mean())
    )  # fmt: skip
    return float(flat.min()) * scale + shift, float(flat.max()) * scale + shift


def _space(manifest: dict[str, Any]) -> InputSpace | None:
    match manifest.get("input"):
        case {"mean": [*mean], "std": [*std]} if mean and len(mean) == len(std):
            values = torch.tensor([mean, std], dtype=torch.float32)
            if bool(values.isfinite().all()) and bool((values[1] > 0).all()):
                return InputSpace(values[0], values[1])
    return None


def _table(paths: list[Path]) -> tuple[pa.Table | None, list[str]]:
    """The rows of `default`, and what is wrong with its columns."""
    expected = {"image": pa.types.is_struct, "label": pa.types.is_integer, "soft_label": _is_list}
    tables = []
    for path in paths:
        try:
            tables.append(pq.read_table(path))
        except BROKEN as error:
            return None, [f"data/{path.name}: {error}"]
    if not tables:
        return None, ["data/train-*.parquet: missing"]
    try:
        table = pa.concat_tables(tables)
    except pa.ArrowException as error:
        return None, [f"data/train-*.parquet: files differ ({error})"]
    wrong = [
        f"{name}: missing"
        if name not in table.column_names
        else f"{name}: {table.schema.field(name).type}"
        for name, fits in expected.items()
        if name not in table.column_names or not fits(table.schema.field(name).type)
    ]
    return (None if wrong else table), wrong


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _class_names(table: pa.Table, manifest: dict[str, Any], classes: int) -> list[str]:
    """The names that the Parquet file says, or the manifest, or numbers."""
    said = manifest.get("classes")
    try:
        info = json.loads((table.schema.metadata or {})[b"huggingface"])
        said = info["info"]["features"]["label"]["names"]
    except (KeyError, TypeError, ValueError):
        pass
    if isinstance(said, list) and all(isinstance(name, str) for name in said):
        return said
    return [str(label) for label in range(classes)]


def _rows(table: pa.Table, manifest: dict[str, Any]) -> tuple[Rows | None, dict[str, Measurement]]:
    """The readable rows, and how many are not."""
    softs = table.column("soft_label").to_pylist()
    widths = Counter(len(soft) for soft in softs if soft is not None)
    classes = widths.most_common(1)[0][0] if widths else 0
    names = _class_names(table, manifest, classes)
    channels = _shape(manifest)
    decoded, bad_images, bad_labels = dict[int, "Tensor"](), list[str](), list[str]()
    labels = table.column("label").to_pylist()
    pictures = table.column("image").to_pylist()
    with quiet_decoders():
        for row, (picture, label, soft) in enumerate(zip(pictures, labels, softs, strict=True)):
            wrong = _wrong_label(label, soft, len(names))
            if wrong is not None:
                bad_labels.append(f"row {row}: {wrong}")
            try:
                decoded[row] = read_image((picture or {}).get("bytes") or b"").pixels_CHW
            except UnusableImage as error:
                bad_images.append(f"row {row}: {error}")
    shapes = Counter(tuple(image.shape) for image in decoded.values())
    usual = channels or (shapes.most_common(1)[0][0] if shapes else ())
    for row in [row for row, image in decoded.items() if tuple(image.shape) != usual]:
        got = "x".join(map(str, decoded.pop(row).shape))
        bad_images.append(f"row {row}: {got}, expected {'x'.join(map(str, usual))}")
    found = {"images": _counted(bad_images), "labels": _counted(bad_labels)}
    unusable = {int(said.split(":")[0].removeprefix("row ")) for said in bad_labels}
    kept = [row for row in decoded if row not in unusable]
    if not kept:
        return None, found
    rows = Rows(
        torch.stack([decoded[row] for row in kept]),
        torch.tensor([labels[row] for row in kept]),
        torch.tensor([softs[row] for row in kept], dtype=torch.float32),
        kept,
        names,
        _space(manifest),
    )
    return rows, found | {"duplicates": _duplicates(rows)}


def _shape(manifest: dict[str, Any]) -> tuple[int, ...] | None:
    match manifest.get("input"):
        case {"shape": [int(c), int(h), int(w)]}:
            return c, h, w
    return None


def _wrong_label(label: object, soft: list[float] | None, classes: int) -> str | None:
    """Why a row's labels cannot be used."""
    if not isinstance(label, int) or not 0 <= label < classes:
        return f"label {label}, expected 0 to {classes - 1}"
    if soft is None or len(soft) != classes or None in soft:
        return f"a soft label of {len(soft or [])} shares, expected {classes}"
    shares = np.array(soft, dtype=np.float64)
    if not np.isfinite(shares).all():
        return "a soft label that is not finite"
    if shares.min() < -SUM_TOLERANCE or abs(shares.sum() - 1) > SUM_TOLERANCE:
        return f"shares from {shares.min():.3g}, their sum {shares.sum():.4g}, expected 1"
    if shares[label] < shares.max() - SUM_TOLERANCE:
        return f"label {label}, but the largest share is that of {int(shares.argmax())}"
    return None


def _duplicates(rows: Rows) -> Measurement:
    """Rows whose decoded pixels are those of an earlier one."""
    seen: dict[bytes, int] = {}
    twice = []
    for place, row in enumerate(prints(rows.images_NCHW).flatten(1)[:, :16].numpy()):
        first = seen.setdefault(row.tobytes(), place)
        if first != place:
            twice.append(f"row {rows.row_N[place]} is row {rows.row_N[first]}")
    return Measurement(len(twice), twice[:MOST_NAMED])
