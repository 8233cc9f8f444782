"""Whether all files of a published folder say the same.

A result stands in four places: `results.json`, the manifest, the configuration `recipe` and the
card; a recipe in three. Whoever changes a number by hand in one of them is told which others say
something else, before anything is published or given out as the result of a run. The words of a
card are its owner's: only the numbers that it states are compared.
"""

import json
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from distill_datasets.export.card import result_lines
from distill_datasets.export.folder import read_manifest, verify
from distill_datasets.files.artifacts import canonical_json, read_json, sha256_text
from distill_datasets.files.yaml_text import from_yaml

CARD = "README.md"
TOLERANCE = 1e-12
"""Means and deviations are recomputed, which may round otherwise."""


def problems(folder: Path) -> list[str]:
    """What keeps a folder from being what a run wrote, a sentence each; [] where nothing does.

    Args:
        folder: what `write_dataset` wrote; the prose of its card may have been edited.

    Raises:
        ArtifactError: there is no manifest, or it is not one of ours.
    """
    found = [each for each in verify(folder) if not each.startswith(f"{CARD}: sha256")]
    found = [each for each in found if not re.match(rf"{CARD}: \d+ bytes", each)]
    manifest = read_manifest(folder)
    if found or "labels_of" in manifest:  # shards have no results of their own
        return found
    return list(_disagreements(folder, manifest))


def _disagreements(folder: Path, manifest: dict[str, Any]) -> Iterator[str]:
    row = pq.read_table(folder / manifest["configs"]["recipe"]["path"]).to_pylist()[0]
    in_row = "the configuration recipe"
    results = manifest["results"]
    if results is not None:
        yield from _different("results.json", read_json(folder / "results.json"), results)
    yield from _different(in_row, json.loads(row["results_json"]), results)
    yield from _different("recipe.yaml", _text(folder / "recipe.yaml"), row["recipe_yaml"], in_row)
    yield from _different(
        "student.yaml", _text(folder / "student.yaml"), row["student_yaml"], in_row
    )
    for key, said in {
        "student": json.loads(row["student_json"]),
        "source": json.loads(row["provenance_json"]),
        "geometry": json.loads(row["geometry_json"]),
        "environment": json.loads(row["environment_json"]),
        "seed": row["seed"],
        "recipe_sha256": row["recipe_sha256"],
    }.items():
        yield from _different(f"{in_row}, {key},", said, manifest[key])
    recipe = json.loads(row["recipe_json"])
    if from_yaml(row["recipe_yaml"]) != recipe or from_yaml(row["student_yaml"]) != json.loads(
        row["student_json"]
    ):
        yield f"{in_row}: its YAML and its JSON differ"
    if sha256_text(canonical_json(recipe)) != manifest["recipe_sha256"]:
        yield "recipe.yaml: its sha256 is not the manifest's recipe_sha256"
    yield from _miscounted(results or [])
    try:  # the one file whose hash may differ
        text = _text(folder / CARD)
    except UnicodeDecodeError as error:
        yield f"{CARD}: is no text in UTF-8 ({error})"
        return
    yield from _wrong_on_card(text, manifest)


def _different(
    where: str, said: object, expected: object, by: str = "the manifest"
) -> Iterator[str]:
    if said != expected:
        yield f"{where}: does not agree with {by}"


def _miscounted(results: list[dict[str, Any]]) -> Iterator[str]:
    """Rows whose mean, deviation or number of students is not that of their runs."""
    for row in results:
        runs = [run["accuracy"] for run in row["runs"]]
        std = statistics.stdev(runs) if len(runs) > 1 else None
        said = row["accuracy"]
        close = abs(said["mean"] - statistics.fmean(runs)) < TOLERANCE and (
            said["std"] is None
            if std is None
            else said["std"] is not None and abs(said["std"] - std) < TOLERANCE
        )
        if len(runs) != row["students"] or not close:
            yield f"results.json: the accuracy of {row['from']!r} is not that of its runs"


def _wrong_on_card(text: str, manifest: dict[str, Any]) -> Iterator[str]:
    """Lines of the card's tables, and of its budget, that state other numbers than the manifest."""
    expected = result_lines(manifest["results"] or [], manifest["student"], manifest["relabel"])
    # lines of dashes below the heads of tables are no rows
    about = {name: line for line in expected if (name := _first(line)).strip("-: ")}
    stated = [line.strip() for line in text.splitlines()]
    for line in stated:
        if line.startswith("|") and _first(line) in about and line not in expected:
            yield f"{CARD}: states {line!r}, expected {about[_first(line)]!r}"
    budget = manifest["budget"]
    numbers = {**budget, "bytes": budget["bytes"]["needed"]}
    for line in stated:
        found = re.match(r"- (pixels|values|numbers|bytes): (\d[\d,]*\d|\d)", line)
        if found and found[2] != f"{numbers.get(found[1], 0):,}":
            yield f"{CARD}: states {found[0]!r}, expected {numbers.get(found[1], 0):,}"


def _first(line: str) -> str:
    return line.split("|")[1].strip()


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
