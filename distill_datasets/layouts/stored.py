"""A published folder read back as the content that it was written from.

Shape suffixes: N training examples, K classes, C channels, H W pixels.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distill_datasets.config import load
from distill_datasets.export.content import Content, DisplayPixels, Numbers, ViewLabels
from distill_datasets.export.folder import check_of_classes, read_manifest
from distill_datasets.export.reading import load_rows, published_records, read_published
from distill_datasets.files.artifacts import read_tensors
from distill_datasets.files.parquet import Config
from distill_datasets.models.architecture import Architecture
from distill_datasets.models.layers import chain
from distill_datasets.soft_labels.records import Columns
from distill_datasets.stages.relabel import feature_of
from distill_datasets.types import Shape, Task

if TYPE_CHECKING:
    from torch import Tensor


def content_of(folder: Path) -> Content:
    """What a set is made of that takes the rows of a published folder.

    What rows are drawn from where these are numbers is left out: the rows count for themselves.
    Labels of views are held in memory.

    Args:
        folder: in the published layout; labels of views in shards lie beside it.

    Raises:
        ArtifactError: it is none, or it is damaged.
    """
    manifest = read_manifest(folder)
    check_of_classes(folder, manifest, "making a set of its rows")
    return replace(
        as_written(folder), numbers={}, decoder="", relabel=_view_labels(folder, manifest)
    )


def as_written(folder: Path) -> Content:
    """What a published folder was written from; labels of views in shards stay where they lie.

    Raises:
        ArtifactError: it is none, or it is damaged.
    """
    manifest, row = read_manifest(folder), load_rows(folder, "recipe")[0]
    c, h, w = manifest["input"]["shape"]
    task: Task = manifest.get("task", "classes")
    shape = Shape(c, h, w, len(manifest["classes"]), task)
    stored = read_published(folder, "default", shape)
    images_NCHW = stored.images_NCHW
    if images_NCHW.is_floating_point():  # of other channels than a picture's
        images_NCHW = (images_NCHW * 255).round().byte()
    exact = "exact" in manifest["configs"]
    posters, cells = _posters(folder) if "poster" in manifest["configs"] else ([], [])
    starts = manifest["starts"]
    recipe = json.loads(row["recipe_json"])
    return Content(
        name=manifest["name"],
        method=manifest["method"],
        papers=manifest["papers"],
        class_names=manifest["classes"],
        images_NCHW=images_NCHW,
        exact_NCHW=read_published(folder, "exact", shape).images_NCHW if exact else None,
        targets_NK=stored.targets_NK,
        originals=posters or DisplayPixels(images_NCHW),
        label_cells=cells,
        geometry=manifest["geometry"],
        mean=manifest["input"]["mean"],
        std=manifest["input"]["std"],
        normalization=manifest["input"]["normalization"],
        constants=_tensors(folder, manifest["input"]["constants"]),
        step_sizes=manifest["step_sizes"],
        order=json.loads(row["order_json"]),
        starts_SP=None if starts is None else _tensors(folder, starts)["weights_SP"],
        student=manifest["student"],
        layers=_layers(manifest["student"], shape),
        attack=None if manifest["attack"] is None else tuple(manifest["attack"]),
        recipe=recipe,
        recipe_yaml=row["recipe_yaml"],
        recipe_sha256=manifest["recipe_sha256"],
        seed=manifest["seed"],
        provenance=manifest["source"],
        environment=manifest["environment"],
        real_shape=(c, h, w),
        relabel=_published_labels(folder, manifest),
        numbers=_numbers(folder) if "numbers" in manifest["configs"] else {},
        decoder=manifest.get("decoder", ""),
        task=task,
        privacy=manifest.get("privacy"),
        imported=manifest.get("imported"),
        derived=manifest.get("derived"),
        written=manifest.get("written", {}),
        notes=recipe.get("publish", {}).get("notes"),
        citation=recipe.get("publish", {}).get("citation"),
        license=recipe.get("publish", {}).get("license"),
    )


def labels_of_views(
    columns: Columns, facts: dict[str, Any], constants: dict[str, Tensor]
) -> ViewLabels:
    """Labels of views that lie in memory, as they are published.

    Args:
        columns: of all records, by name, in the order of epochs and batches.
        facts: how they were made.
        constants: what decoding needs once.
    """
    count = len(columns["image"])
    record_bytes = sum(values[:1].nbytes for values in columns.values())
    config = Config(
        "relabel",
        "relabel",
        {name: feature_of(values) for name, values in columns.items()},
        count,
        record_bytes,
        lambda start, stop: {name: values[start:stop] for name, values in columns.items()},
    )
    return ViewLabels(config, None, count, count * record_bytes, constants, facts)


def records_of(folder: Path, images: int) -> Columns:
    """The columns of all labels of views of a folder."""
    records = published_records(folder, images)
    _, columns = records.rows(0, records.count)
    return {name: values.numpy() for name, values in columns.items()}


def classifier_of(folder: Path, manifest: dict[str, Any]) -> dict[str, Tensor]:
    """What decoding labels of views needs once; {} where they are logits."""
    name = manifest["relabel"]["classifier"]
    return {} if name is None else read_tensors(folder / name)[0]


def _view_labels(folder: Path, manifest: dict[str, Any]) -> ViewLabels | None:
    if manifest["relabel"] is None:
        return None
    columns = records_of(folder, manifest["configs"]["default"]["rows"])
    return labels_of_views(columns, manifest["relabel"]["facts"], classifier_of(folder, manifest))


def _published_labels(folder: Path, manifest: dict[str, Any]) -> ViewLabels | None:
    """Labels of views as they were published: held in memory where they are a configuration."""
    said = manifest["relabel"]
    if said is None or said["where"] == "relabel":
        return _view_labels(folder, manifest)
    constants = classifier_of(folder, manifest)
    return ViewLabels(None, None, said["labels"], said["bytes"], constants, said["facts"])


def _numbers(folder: Path) -> dict[str, Numbers]:
    """What rows are drawn from, by name."""
    found = {}
    for row in load_rows(folder, "numbers").with_format("numpy"):
        eight, scales = len(row["uint8"]) > 0, row["scales"]
        values = torch.tensor(
            row["uint8"] if eight else row["float16"],
            dtype=torch.uint8 if eight else torch.float16,
        )
        scales_2D = torch.tensor(scales).view(2, -1) if len(scales) else None
        found[row["name"]] = Numbers(values.view(*row["shape"].tolist()), scales_2D)
    return found


def _posters(folder: Path) -> tuple[list[Tensor], list[Tensor]]:
    """The trained images that rows are cut from, and their label cells."""
    rows = load_rows(folder, "poster").with_format("numpy")
    read = [
        [
            torch.tensor(row[name], dtype=torch.float32).view(*row[f"{name}_shape"].tolist())
            for row in rows
        ]
        for name in ("poster", "label_poster")
    ]
    return read[0], read[1]


def _tensors(folder: Path, file: dict[str, Any] | None) -> dict[str, Tensor]:
    return {} if file is None else read_tensors(folder / file["file"])[0]


def _layers(student: dict[str, Any], shape: Shape) -> list[str]:
    """The student's layers as constructors of `torch.nn`; [] where nobody knows the student."""
    network = network_of(student)
    return [] if network is None else chain(network.on_meta(shape))


def network_of(student: dict[str, Any]) -> Architecture | None:
    """The network of a published student; None where nobody knows it."""
    if not student:
        return None
    section = student["network"]
    found = load("architectures", section["name"]).model_validate(section)
    assert isinstance(found, Architecture), "the axis has no others"
    return found
