"""A number that was changed by hand is found by the places where it was not; prose may change."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.sample_content import RESULTS, sample

from distill_datasets.errors import ArtifactError
from distill_datasets.export.agreement import problems
from distill_datasets.export.folder import read_manifest, write_dataset
from distill_datasets.export.publish import publish
from distill_datasets.files.artifacts import sha256_of, write_json
from distill_datasets.pipeline.checks import check_agreement


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "set", sample(), RESULTS)
    assert problems(tmp_path / "set") == []
    return tmp_path / "set"


def resign(folder: Path) -> None:
    """Bring the sizes and hashes of the manifest up to date, as a forger would."""
    manifest = read_manifest(folder)
    for file in manifest["files"]:
        path = folder / file["path"]
        file.update(bytes=path.stat().st_size, sha256=sha256_of(path))
    write_json(folder / "distill.json", manifest)


def in_results(folder: Path) -> None:
    results = json.loads((folder / "results.json").read_text())
    results[0]["accuracy"]["mean"] = 0.99
    write_json(folder / "results.json", results)


def in_the_manifest(folder: Path) -> None:
    manifest = read_manifest(folder)
    manifest["results"][0]["accuracy"]["mean"] = 0.99
    write_json(folder / "distill.json", manifest)


def in_the_recipe_configuration(folder: Path) -> None:
    path = folder / "recipe" / "train-00000-of-00001.parquet"
    table = pq.read_table(path)
    place = table.schema.get_field_index("results_json")
    results = json.loads(table.column(place)[0].as_py())
    results[0]["accuracy"]["mean"] = 0.99
    column = pa.array([json.dumps(results)], table.schema.field(place).type)
    pq.write_table(table.set_column(place, table.schema.field(place), column), path)


def in_all_of_them_but_the_runs(folder: Path) -> None:
    for change in (in_results, in_the_manifest, in_the_recipe_configuration):
        change(folder)


def on_the_card(folder: Path) -> None:
    path = folder / "README.md"
    text = re.sub(r"(\*\*this dataset\*\*[^|]*\|) [\d.]+", r"\1 99.0", path.read_text())
    assert text != path.read_text()
    path.write_text(text)


def in_the_budget_of_the_card(folder: Path) -> None:
    path = folder / "README.md"
    path.write_text(re.sub(r"- pixels: [\d,]+", "- pixels: 7", path.read_text()))


def in_the_recipe(folder: Path) -> None:
    path = folder / "recipe.yaml"
    path.write_text(path.read_text() + "# seed: 1\n")


FORGED: dict[str, tuple[Callable[[Path], None], str]] = {
    "results.json": (in_results, r"results\.json: does not agree with the manifest"),
    "the manifest": (in_the_manifest, r"results\.json: does not agree with the manifest"),
    "the configuration": (in_the_recipe_configuration, "the configuration recipe: does not agree"),
    "every place": (in_all_of_them_but_the_runs, "'default' is not that of its runs"),
    "the card": (on_the_card, r"README\.md: states '\| \*\*this dataset\*\*.*99\.0"),
    "the budget": (
        in_the_budget_of_the_card,
        r"README\.md: states '- pixels: 7 in 1 trained images', expected",
    ),
    "the recipe": (in_the_recipe, r"recipe\.yaml: does not agree with the configuration recipe"),
}


@pytest.mark.parametrize("where", FORGED)
def test_a_number_that_was_changed_in_one_place_is_refused_and_named(
    folder: Path, where: str
) -> None:
    forge, told = FORGED[where]
    forge(folder)
    resign(folder)
    with pytest.raises(ArtifactError, match=told):
        check_agreement(folder)
    with pytest.raises(ArtifactError, match=told):
        publish(folder, "ann/forged", token="hf_none")


def test_prose_of_a_card_may_be_edited_and_its_tables_left_out(folder: Path) -> None:
    path = folder / "README.md"
    text = path.read_text() + "\nMade for my class of 2026.\n"
    path.write_text(text)
    assert problems(folder) == []
    path.write_text("\n".join(line for line in text.splitlines() if not line.startswith("|")))
    assert problems(folder) == []


def test_a_card_that_is_no_text_any_more_is_named(folder: Path) -> None:
    path = folder / "README.md"
    path.write_bytes(path.read_bytes() + b"\xf4")
    (found,) = problems(folder)
    assert found.startswith("README.md: is no text in UTF-8")


def test_a_damaged_file_is_named_as_before(folder: Path) -> None:
    path = folder / "poster.png"
    content = bytearray(path.read_bytes())
    content[60] ^= 1
    path.write_bytes(content)
    assert problems(folder) == ["poster.png: sha256 differs from the manifest's"]
