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
from distill_datasets.export.folder import CARD, read_manifest, verify
from distill_datasets.files.artifacts import canonical_json, read_json, sha256_text
from distill_datasets.files.yaml_text import from_yaml

TOLERANCE = 1e-12
"""Means and deviations are recomputed, which may round otherwise."""
BUDGET = re.compile(r"- (pixels|values|numbers|bytes): (\d[\d,]*\d|\d)( in [\d,]+ trained images)?")


def problems(folder: Path) -> list[str]:
    """What keeps a folder from being what a run wrote, a sentence each; [] where nothing does.

    Args:
        folder: what `write_dataset` wrote; the prose of its card may have been edited.

    Raises:
        ArtifactError: there is no manifest, or it is not one of ours.
    """
    manifest, found = read_manifest(folder), damaged(folder)
    if found or "labels_of" in manifest:  # shards have no results of their own
        return found
    return list(_disagreements(folder, manifest))


def damaged(folder: Path) -> list[str]:
    """What `verify` finds, but for a card that was edited: that is no damage."""
    edited = re.compile(rf"{re.escape(CARD)}: (sha256|\d+ bytes)")
    return [each for each in verify(folder) if not edited.match(each)]


def corrected(text: str, manifest: dict[str, Any]) -> str:
    """A card whose tables and budget state the numbers of the manifest, whoever changed them."""
    lines = text.splitlines(keepends=True)
    for number, wrong, right in _misstated(text, manifest):
        lines[number] = lines[number].replace(wrong, right, 1)
    return "".join(lines)


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
    for _, wrong, right in _misstated(text, manifest):
        yield f"{CARD}: states {wrong!r}, expected {right!r}"


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


def _misstated(text: str, manifest: dict[str, Any]) -> Iterator[tuple[int, str, str]]:
    """Where the card's tables and its budget state other numbers than the manifest.

    Yields:
        The number of the line, what it states, and what it should.
    """
    expected = result_lines(manifest["results"] or [], manifest["student"], manifest["relabel"])
    # lines of dashes below the heads of tables are no rows
    about = {name: line for line in expected if (name := _first(line)).strip("-: ")}
    as_wide = {(_first(line), line.count("|")): line for line in expected}
    budget = manifest["budget"]
    numbers = {**budget, "bytes": budget["bytes"]["needed"]}
    for number, line in enumerate(map(str.strip, text.splitlines())):
        if line.startswith("|") and (name := _first(line)) in about and line not in expected:
            yield number, line, as_wide.get((name, line.count("|")), about[name])
        found = BUDGET.match(line)
        if found:
            right = f"- {found[1]}: {numbers.get(found[1], 0):,}"
            right += f" in {budget['images']:,} trained images" if found[3] else ""
            if found[0] != right:
                yield number, found[0], right


def _first(line: str) -> str:
    return line.split("|")[1].strip()


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
