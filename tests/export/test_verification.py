"""Verification: a line for each look, and every kind of change is seen by one of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.sample_content import RESULTS, sample

from distill_datasets.export.folder import MANIFEST, manifest_text, write_dataset
from distill_datasets.export.verification import looks
from distill_datasets.files.artifacts import sha256_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "set", sample(), RESULTS)
    return tmp_path / "set"


def failed(folder: Path) -> dict[str, str]:
    return {check.name: check.words for check in looks(folder) if not check.passed}


def told(folder: Path, path: str) -> None:
    """Write the hash of a changed file into the manifest, as who deceives would."""
    manifest = json.loads((folder / MANIFEST).read_text())
    for entry in manifest["files"]:
        if entry["path"] == path:
            file = folder / path
            entry.update(bytes=file.stat().st_size, sha256=sha256_of(file))
    (folder / MANIFEST).write_text(manifest_text(manifest))


def changed_rows(
    folder: Path, config: str, column: str, change: Callable[[list[Any]], list[Any]]
) -> None:
    path = f"{config}/train-00000-of-00001.parquet"
    table = pq.read_table(folder / path)
    place = table.column_names.index(column)
    values = change(table.column(column).to_pylist())
    field = table.schema.field(column)
    pq.write_table(table.set_column(place, field, pa.array(values, field.type)), folder / path)
    told(folder, path)


def test_what_a_run_wrote_passes_every_look(folder: Path) -> None:
    found = list(looks(folder))

    assert all(check.passed for check in found)
    names = "manifest, files, files beside, agreement, load_dataset, images, exact"
    assert ", ".join(check.name for check in found) == names


def test_a_flipped_byte_is_found_by_its_hash(folder: Path) -> None:
    path = folder / "poster.png"
    path.write_bytes(path.read_bytes()[:-1] + b"x")

    assert failed(folder) == {"files": "poster.png: sha256 differs from the manifest's"}


def test_a_number_changed_together_with_its_hash_is_found_by_its_copies(folder: Path) -> None:
    results = json.loads((folder / "results.json").read_text())
    results[0]["accuracy"]["mean"] = 0.99
    (folder / "results.json").write_text(json.dumps(results))
    told(folder, "results.json")

    assert "results.json: does not agree with the manifest" in failed(folder)["agreement"]


def test_a_damaged_image_is_found_behind_a_true_hash(folder: Path) -> None:
    def cut(images: list[Any]) -> list[Any]:
        images[2]["bytes"] = images[2]["bytes"][:60]
        return images

    changed_rows(folder, "data", "image", cut)

    assert "row 2: its image cannot be decoded" in failed(folder)["images"]


def test_labels_that_contradict_their_soft_labels_are_found(folder: Path) -> None:
    changed_rows(folder, "data", "label", lambda labels: [(label + 1) % 3 for label in labels])

    assert "the label of 6 rows is not the largest share" in failed(folder)["load_dataset"]


def test_exact_rows_that_are_not_those_of_default_are_found(folder: Path) -> None:
    changed_rows(folder, "exact", "pixel_values", lambda rows: rows[::-1])

    assert "exact differs from default by" in failed(folder)["exact"]


def test_a_file_beside_is_named_and_is_no_fault(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")

    beside = next(check for check in looks(folder) if check.name == "files beside")
    assert beside.passed and "notes.txt" in beside.words
    assert failed(folder) == {}
