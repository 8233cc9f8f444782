"""An imported set together with what it was measured at: ready to be published.

The rows stay the very bytes that were measured; results, card and manifest are written anew beside
them, in another folder.

Shape suffixes: N training examples, K classes, C channels, H W pixels.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from distill_datasets.errors import ArtifactError
from distill_datasets.export.content import Content, DisplayPixels
from distill_datasets.export.folder import check_writable, read_manifest, write_dataset
from distill_datasets.export.reading import load_rows, read_published
from distill_datasets.types import Shape


def check_imported(folder: Path, to: Path) -> None:
    """Find out before students are trained whether `write_measured` may write.

    Raises:
        ArtifactError: the folder is what a run made, or the other one is taken.
    """
    if "imported" not in read_manifest(folder):
        raise ArtifactError(
            f"{folder}: a run made it, and its results stand in it; --to is for sets of others"
        )
    check_writable(to)


def write_measured(folder: Path, found: dict[str, Any], to: Path) -> dict[str, Any]:
    """Write an imported set with its results.

    Args:
        folder: what `import_set` wrote.
        found: what the standard protocol returned of it.
        to: new or empty folder.

    Returns:
        The manifest.

    Raises:
        ArtifactError: see `check_imported`.
    """
    check_imported(folder, to)
    return write_dataset(to, imported_content(folder), results_of(found), made=folder)


def results_of(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of the standard protocol as rows of `results.json`, under the set's own labels.

    Real images have the labels of the published ones there, and with hard labels their classes.
    """
    regime = found["target"]["regimes"][-1]
    rows = []
    for row in found["rows"]:
        if row["regime"] != regime:
            continue
        h, w = row["size"]
        rows.append(
            {
                "protocol": found["protocol"]["name"],
                "from": row["from"],
                "regime": regime,
                "network": row["network"],
                "accuracy": {key: row["accuracy"][key] for key in ("mean", "std")},
                "chance": found["source"]["chance"],
                "runs": row["runs"],
                "students": row["students"],
                "steps": row["steps"],
                "images": row["images"],
                "pixels": row["images"] * h * w,
                "lr": row["tuned"]["lr"],
            }
        )
    return rows


def imported_content(folder: Path) -> Content:
    """The content of a folder that `import_set` wrote, read back from it."""
    manifest, row = read_manifest(folder), load_rows(folder, "recipe")[0]
    c, h, w = manifest["input"]["shape"]
    shape = Shape(c, h, w, len(manifest["classes"]))
    stored = read_published(folder, "default", shape)
    exact = "exact" in manifest["configs"]
    return Content(
        name=manifest["name"],
        method=manifest["method"],
        papers=manifest["papers"],
        class_names=manifest["classes"],
        images_NCHW=stored.images_NCHW,
        exact_NCHW=read_published(folder, "exact", shape).images_NCHW if exact else None,
        targets_NK=stored.targets_NK,
        originals=DisplayPixels(stored.images_NCHW),
        label_cells=[],
        geometry=manifest["geometry"],
        mean=manifest["input"]["mean"],
        std=manifest["input"]["std"],
        normalization=manifest["input"]["normalization"],
        constants={},
        step_sizes=manifest["step_sizes"],
        order=[],
        starts_SP=None,
        student={},
        layers=[],
        attack=None,
        recipe=json.loads(row["recipe_json"]),
        recipe_yaml=row["recipe_yaml"],
        recipe_sha256=manifest["recipe_sha256"],
        seed=manifest["seed"],
        provenance=manifest["source"],
        environment=manifest["environment"],
        real_shape=(c, h, w),
        imported=manifest["imported"],
    )
