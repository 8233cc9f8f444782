"""Whether a published folder is what it says of itself: a line for each look at it.

Where `agreement.problems` decides whether a run goes on, this tells a stranger what was looked at:
every hash, every copy of a number, every row through `load_dataset`, every image decoded.

Shape suffixes: N examples, K classes, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from distill_datasets.data.normalization import InputSpace
from distill_datasets.errors import ArtifactError
from distill_datasets.export.agreement import damaged, problems
from distill_datasets.export.configs import PICTURED, PIXELS, SOFT, VALUES
from distill_datasets.export.content import sibling_of
from distill_datasets.export.folder import CARD, MANIFEST, read_manifest, verify
from distill_datasets.export.reading import ROWS_AT_ONCE, load_rows
from distill_datasets.targets import SUM_TOLERANCE, unfit
from distill_datasets.types import Task

if TYPE_CHECKING:
    from datasets import Dataset

COLUMNS = {
    "exact": {"pixel_values"},
    "poster": {"preview", "poster", "poster_shape", "label_poster", "label_poster_shape"},
    "numbers": {"name", "shape", "uint8", "float16", "scales"},
    "relabel": {"epoch", "batch", "image", "crop", "flip", "partner", "box", "share"},
    "recipe": {"recipe_yaml", "student_json", "provenance_json", "results_json", "mean", "std"},
}
"""What every configuration has at the least."""
LABELED = ("default", "exact")
LABELS: dict[Task, set[str]] = {
    "classes": {"label", SOFT},
    "labels": {"labels", SOFT},
    "values": {VALUES},
}
"""And these two, by what targets are."""
ROUNDING = 1e-5
"""Of the largest difference between `default` and `exact`, which is recomputed."""
MOST_NAMED = 3


class Look(NamedTuple):
    """One look: at what, whether all is as it should be, and in words."""

    name: str
    passed: bool
    words: str


def looks(folder: Path) -> Iterator[Look]:
    """Look at all of a published folder; what cannot be looked at after a fault is left out.

    Args:
        folder: in the published layout, label shards in a folder beside it.

    Raises:
        ArtifactError: there is no manifest, or it is not one of ours.
    """
    manifest = read_manifest(folder)
    yield Look("manifest", True, f"schema version {manifest['schema_version']}")
    files = manifest["files"]
    found, edited = damaged(folder), len(verify(folder))
    size = sum(file["bytes"] for file in files)
    words = f"{len(files)} files, {size:,} bytes, sha256 as in {MANIFEST}"
    words += f", but for {CARD}, which was edited" if edited and not found else ""
    yield _check("files", found, words)
    beside = _beside(folder, manifest)
    words = f"not in {MANIFEST}, and read by nobody: {', '.join(beside[:MOST_NAMED])}"
    yield Look("files beside", True, words if beside else "none")
    if found:
        return
    yield _check(
        "agreement",
        problems(folder),
        "results.json, the card, the manifest and the configuration recipe say the same",
    )
    configs = manifest["configs"]
    unloadable = list(_unloadable(folder, manifest))
    yield _check("load_dataset", unloadable, f"{', '.join(configs)}: columns and rows")
    if not unloadable:
        undecoded = list(_undecoded(folder, manifest))
        yield _check("images", undecoded, f"{configs['default']['rows']:,} decoded")
        if "exact" in configs and not undecoded:
            found = list(_unlike(folder, manifest))
            yield _check("exact", found, "rounds to default, as far as the manifest says")
    relabel = manifest.get("relabel")
    if relabel is not None and relabel["where"] != "relabel":
        yield _shards(folder, manifest)


def _check(name: str, found: list[str], passed: str) -> Look:
    more = f"; and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return Look(name, not found, "; ".join(found[:MOST_NAMED]) + more if found else passed)


def _beside(folder: Path, manifest: dict[str, Any]) -> list[str]:
    known = {file["path"] for file in manifest["files"]} | {MANIFEST}
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in paths if path not in known)


def _loaded(folder: Path, config: str) -> Dataset | str:
    """A configuration, or why `load_dataset` does not read it."""
    from datasets.exceptions import DatasetsError

    try:
        return load_rows(folder, config)
    except (DatasetsError, ValueError, OSError, KeyError, TypeError) as error:
        text = (str(error.__cause__ or error) or type(error).__name__).splitlines()[0]
        return f"{config}: load_dataset does not read it ({text})"


def _unloadable(folder: Path, manifest: dict[str, Any]) -> Iterator[str]:
    for name, said in manifest["configs"].items():
        rows = _loaded(folder, name)
        if isinstance(rows, str):
            yield rows
            continue
        task = manifest.get("task", "classes")
        expected = (
            COLUMNS.get(name, set())
            | (_shown(manifest) if name == "default" else set())
            | (LABELS[task] if name in LABELED else set())
        )
        if absent := sorted(expected - set(rows.column_names)):
            yield f"{name}: no column {', '.join(absent)}"
        if len(rows) != said["rows"]:
            yield f"{name}: {len(rows)} rows, expected {said['rows']}"
        if name in LABELED and task == "classes":
            yield from _mislabeled(name, rows, manifest["classes"])
        elif name in LABELED and not absent:
            yield from _mistaught(name, rows, manifest["classes"], task)


def _mistaught(name: str, rows: Dataset, names: list[str], task: Task) -> Iterator[str]:
    """What is wrong with labels of which an image has several, or with numbers."""
    taught = VALUES if task == "values" else SOFT
    columns = rows.select_columns([taught]).with_format("numpy")[:]
    targets_NK = torch.tensor(np.stack(columns[taught]))
    if targets_NK.shape[1] != len(names) or not bool(targets_NK.isfinite().all()):
        yield f"{name}: {taught} is not {len(names)} finite numbers in every row"
    elif (wrong := unfit(task, targets_NK)) is not None:
        yield f"{name}: {wrong}"
    elif task == "labels":
        own = [set(row) for row in rows["labels"]]
        likely = [set((row > 0.5).nonzero().flatten().tolist()) for row in targets_NK]
        if count := sum(a != b for a, b in zip(own, likely, strict=True)):
            yield f"{name}: the labels of {count} rows are not those above 1/2 in soft_label"


def _mislabeled(name: str, rows: Dataset, classes: list[str]) -> Iterator[str]:
    declared = rows.features["label"]
    if getattr(declared, "names", None) != classes:
        yield f"{name}: the names of its labels are not the manifest's classes"
        return
    columns = rows.select_columns(["label", "soft_label"]).with_format("numpy")[:]
    soft_NK, label_N = np.stack(columns["soft_label"]), np.asarray(columns["label"])
    if soft_NK.shape[1] != len(classes) or not np.isfinite(soft_NK).all():
        yield f"{name}: soft labels are not {len(classes)} finite numbers in every row"
        return
    if soft_NK.min() < 0 or np.abs(soft_NK.sum(axis=1) - 1).max() > SUM_TOLERANCE:
        yield f"{name}: soft labels are no shares that sum to 1"
    likeliest_N = soft_NK[np.arange(len(soft_NK)), label_N]
    if wrong := int((likeliest_N < soft_NK.max(axis=1)).sum()):
        yield f"{name}: the label of {wrong} rows is not the largest share of its soft label"


def _shown(manifest: dict[str, Any]) -> set[str]:
    """The columns of `default` that hold images."""
    return {"image"} if manifest["input"]["shape"][0] in PICTURED else {"preview", PIXELS}


def _undecoded(folder: Path, manifest: dict[str, Any]) -> Iterator[str]:
    c, h, w = manifest["input"]["shape"]
    column = "image" if c in PICTURED else "preview"
    expected = (h, w) if c == 1 else (h, w, 3)
    images = load_rows(folder, "default").select_columns([column]).with_format("numpy")
    for number in range(len(images)):
        try:
            shape = images[number][column].shape
        except (OSError, ValueError, SyntaxError) as error:  # what PIL says of damaged files
            yield f"row {number}: its image cannot be decoded ({error})"
            continue
        if shape != expected:
            yield f"row {number}: an image of {shape}, expected {expected}"


def _unlike(folder: Path, manifest: dict[str, Any]) -> Iterator[str]:
    """Whether the rounded rows are those of `exact`."""
    space = InputSpace(
        torch.tensor(manifest["input"]["mean"]), torch.tensor(manifest["input"]["std"])
    )
    c, h, w = manifest["input"]["shape"]
    largest = 0.0
    pairs = zip(
        load_rows(folder, "default").with_format("numpy").iter(ROWS_AT_ONCE),
        load_rows(folder, "exact").with_format("numpy").iter(ROWS_AT_ONCE),
        strict=True,
    )
    for rounded, said in pairs:
        if c in PICTURED:
            images = torch.tensor(np.stack(rounded["image"])).float() / 255
            pixels = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
        else:
            pixels = torch.tensor(np.stack(rounded[PIXELS])).view(-1, c, h, w)
        values = torch.tensor(np.stack(said["pixel_values"])).view(-1, c, h, w)
        largest = max(largest, float((space.to_student(pixels) - values).abs().max()))
    told = manifest["quantization"]["max_abs_error"]
    if abs(largest - told) > ROUNDING * max(1.0, told):
        yield f"exact differs from default by {largest:.6g}, and the manifest says {told:.6g}"


def _shards(folder: Path, manifest: dict[str, Any]) -> Look:
    place = sibling_of(folder.absolute())
    if not (place / MANIFEST).exists():
        return Look("labels of views", False, f"{place}: not there; fetch them beside the dataset")
    try:
        found = damaged(place)
        if read_manifest(place).get("labels_of") != manifest["recipe_sha256"]:
            found.append("they belong to another recipe")
    except ArtifactError as error:
        found = [str(error)]
    return _check("labels of views", found, f"{place.name}: sha256 as in its {MANIFEST}")
