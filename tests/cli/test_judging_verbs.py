"""The verbs that judge a set: of others or of a run, as a user calls them."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from support.outside_sets import (
    DIGITS,
    MEAN,
    STD,
    save_datm,
    save_dm,
    save_folders,
    save_mtt,
    save_rfad,
)
from support.toy_runs import TOY, command, times

from distill_datasets.evaluation.audit.networks import Effort
from distill_datasets.files.yaml_text import to_yaml

TINY = ("--students", "2", "--steps", "3", "standard.references=[random_real]", "--quiet")
SPACE = ("--mean", str(MEAN), "--std", str(STD))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs whose source was read once."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, runs: Path) -> Path:
    """What a run of the toy recipe has made."""
    recipe = tmp_path_factory.mktemp("recipe") / "toy.yaml"
    recipe.write_text(to_yaml(TOY), encoding="utf-8")
    assert command("run", recipe, "--runs", runs, "--quiet").code == 0
    (folder,) = (runs / "toy").glob("dataset-*")
    return folder


@pytest.mark.parametrize(
    ("save", "space"),
    [
        (save_dm, SPACE),
        (save_mtt, SPACE),
        (save_datm, SPACE),
        (save_rfad, SPACE),
        (save_folders, ()),
    ],
)
def test_sets_of_other_layouts_are_imported_and_measured(
    tmp_path: Path, runs: Path, save: Callable[[Path], Path], space: tuple[str, ...]
) -> None:
    (tmp_path / "theirs").mkdir()
    theirs, to = save(tmp_path / "theirs"), tmp_path / "set"

    imported = command("import", theirs, "--to", to, *space, "--source", DIGITS)
    assert imported.code == 0, imported.err
    assert command("verify", to, "--runs", runs).code == 0
    answer = command("evaluate", to, *TINY, "--runs", runs, "--json")

    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    keys = [row["key"] for row in found["rows"]]
    assert {"default/HL", "random_real/HL"} <= set(keys)
    assert [run["seed"] for run in found["rows"][0]["runs"]] == [0, 1]
    assert found["source"]["classes"] == 10


def test_a_folder_of_images_is_measured_without_an_import_first(tmp_path: Path, runs: Path) -> None:
    theirs = save_folders(tmp_path / "syn")

    answer = command("evaluate", theirs, *TINY, "--runs", runs, "--source", DIGITS)

    assert answer.code == 0, answer.err
    assert "random real images" in answer.out
    assert "standard-1 (quick, changed: students, steps)" in answer.out


def test_the_same_command_goes_on_with_the_students_that_are_done(
    published: Path, runs: Path
) -> None:
    first = command("evaluate", published, *TINY, "--runs", runs, "--json")
    done = {path: at for path, at in times(runs / "evaluations").items() if "-HL-" in path}
    again = command("evaluate", "toy", *TINY, "--runs", runs, "--json")

    assert json.loads(again.out) == json.loads(first.out)
    assert done.items() <= times(runs / "evaluations").items() and done


def test_an_override_of_another_section_is_refused_before_any_work(
    published: Path, runs: Path
) -> None:
    answer = command("evaluate", published, "distill.steps=3", "--runs", runs)
    assert answer.code == 2
    assert "expected source.key=value or standard.key=value" in answer.err

    answer = command("evaluate", published, "standard.stepps=3", "--runs", runs)
    assert answer.code == 2 and "did you mean 'steps'" in answer.err


def test_verify_tells_what_was_changed_and_fails(tmp_path: Path, runs: Path) -> None:
    assert command("import", save_dm(tmp_path), "--to", tmp_path / "set", *SPACE).code == 0
    card = tmp_path / "set" / "README.md"
    card.write_text(card.read_text().replace("in 20 trained", "in 21 trained"))

    answer = command("verify", tmp_path / "set", "--runs", runs)
    assert answer.code == 1
    assert "README.md, which was edited" in answer.out
    assert "in 21 trained images', expected '- pixels:" in answer.out.replace("\n", " ")

    rows = next((tmp_path / "set" / "data").rglob("*.parquet"))
    rows.write_bytes(rows.read_bytes() + b"0")
    answer = command("verify", tmp_path / "set", "--runs", runs)
    assert answer.code == 1 and "FAILED files: data/" in answer.out

    said = json.loads(command("verify", tmp_path / "set", "--runs", runs, "--json").out)
    assert said["passed"] is False


def test_reproduce_makes_the_same_bytes_again(published: Path, runs: Path) -> None:
    answer = command("reproduce", published, "--runs", runs, "--quiet")

    assert answer.code == 0, answer.err
    assert "reproduced to the bit" in answer.out
    assert str(runs / "reproduced") in answer.out.replace("\n", "")


def test_reproduce_says_where_another_seed_leads(published: Path, runs: Path) -> None:
    answer = command("reproduce", published, "seed=1", "--runs", runs, "--json")

    found: dict[str, Any] = json.loads(answer.out)
    assert found["bits_agree"] is False and found["rows_agree"] is False
    assert found["files"]["data/train-00000-of-00001.parquet"] == "differs"
    assert found["verdict"].startswith("the bytes differ")
    assert answer.code == (0 if found["accuracy_agrees"] else 1)


def test_an_import_has_nothing_to_reproduce(tmp_path: Path, runs: Path) -> None:
    assert command("import", save_dm(tmp_path), "--to", tmp_path / "set", *SPACE).code == 0

    answer = command("reproduce", tmp_path / "set", "--runs", runs)
    assert answer.code == 2 and "no recipe came with it" in answer.err


def test_files_are_audited_without_a_source(tmp_path: Path, runs: Path) -> None:
    images = torch.rand(4, 1, 8, 8)
    torch.save({"data": [[images[[0, 1, 2, 0]], torch.tensor([0, 1, 0, 1])]]}, tmp_path / "x.pt")
    assert command("import", tmp_path / "x.pt", "--to", tmp_path / "set").code == 0

    answer = command("audit", tmp_path / "set", "--tiers", "T0", "--runs", runs)
    assert answer.code == 0, answer.err
    assert "T0 duplicates: found: 1 rows whose pixels are those of an earlier row" in answer.out
    assert "what was not found may be there all the same" in answer.out


def test_an_audit_beside_the_source_finds_copied_images(tmp_path: Path, runs: Path) -> None:
    theirs = save_dm(tmp_path)
    imported = command("import", theirs, "--to", tmp_path / "set", *SPACE, "--source", DIGITS)
    assert imported.code == 0

    little = partial(Effort, clean_sets=2, reference_steps=2)
    with mock.patch("distill_datasets.evaluation.audit.audit.Effort", little):
        answer = command("audit", tmp_path / "set", "--tiers", "T0,T1", "--runs", runs, "--json")
    assert answer.code == 0, answer.err
    found = {each["check"]: each for each in json.loads(answer.out)["findings"]}
    assert found["training images"]["state"] == "found"
    assert found["training images"]["value"] == 20


def test_an_unknown_tier_is_refused(published: Path, runs: Path) -> None:
    answer = command("audit", published, "--tiers", "T9", "--runs", runs)
    assert answer.code == 2 and "valid names: T0, T1, T2, T3" in answer.err
