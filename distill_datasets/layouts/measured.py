"""A set that no run made together with what it was measured at: ready to be published.

The rows stay the very bytes that were measured; results, card and manifest are written anew beside
them, in another folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill_datasets.errors import ArtifactError
from distill_datasets.export.folder import (
    check_writable,
    made_by_run,
    read_manifest,
    write_dataset,
)
from distill_datasets.layouts.stored import content_of


def check_unmeasured(folder: Path, to: Path) -> None:
    """Find out before students are trained whether `write_measured` may write.

    Raises:
        ArtifactError: the folder is what a run made, or the other one is taken.
    """
    if made_by_run(read_manifest(folder)):
        raise ArtifactError(
            f"{folder}: a run made it, and its results stand in it; --to is for sets of others, "
            "and for those that shrink, extend or merge made"
        )
    check_writable(to)


def write_measured(folder: Path, found: dict[str, Any], to: Path) -> dict[str, Any]:
    """Write a set that no run made with its results.

    Args:
        folder: what `import_set`, or a derivation, wrote.
        found: what the standard protocol returned of it.
        to: new or empty folder.

    Returns:
        The manifest.

    Raises:
        ArtifactError: see `check_unmeasured`.
    """
    check_unmeasured(folder, to)
    return write_dataset(to, content_of(folder), results_of(found), made=folder)


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
