"""`--json` of every verb: one object of one shape on stdout, whatever becomes of the command."""

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from support.sample_content import RESULTS, sample
from support.toy_runs import command, toy_file

from distill_datasets import cli
from distill_datasets.export.folder import write_dataset

NOTHING = "no/such/thing"
REFUSED: dict[str, list[str]] = {
    "run": [NOTHING],
    "job": [NOTHING, "--flavor", "cpu-basic"],
    "plan": [NOTHING],
    "check": [NOTHING],
    "list": ["--axis", "canvasses"],
    "init": [NOTHING],
    "evaluate": [NOTHING],
    "audit": [NOTHING],
    "verify": [NOTHING],
    "reproduce": [NOTHING],
    "show": [NOTHING],
    "report": [NOTHING],
    "gallery": [NOTHING],
    "compare": [NOTHING],
    "diff": [NOTHING, NOTHING],
    "publish": [NOTHING],
    "card": [NOTHING],
    "pull": [NOTHING, "--to", "new"],
    "import": [NOTHING, "--to", "new"],
    "export": [NOTHING, "--layout", "npz", "--to", "new"],
    "recipes": ["--dataset", "mnits"],
    "shrink": [NOTHING, "ipc=1", "--output", "new"],
    "extend": [NOTHING, "--source", NOTHING, "--output", "new"],
    "merge": [NOTHING, NOTHING, "--output", "new"],
}
"""Arguments that each verb refuses."""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two rows of results."""
    folder = tmp_path_factory.mktemp("published") / "set"
    write_dataset(folder, sample(), RESULTS)
    return folder


def verbs() -> set[str]:
    group: Any = typer.main.get_command(cli.app)
    return set(group.commands)


def told(verb: str, *arguments: str | Path, code: int = 0) -> dict[str, Any]:
    """What a verb prints as JSON."""
    answer = command(*verb.split(), *arguments, "--json")
    assert answer.code == code, answer
    found = json.loads(answer.out)
    assert isinstance(found, dict) and next(iter(found)) == "verb"
    return found


@pytest.mark.parametrize("verb", sorted(verbs()))
def test_every_verb_says_as_json_why_it_failed(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = told(verb, *REFUSED[verb], code=2)
    assert found["verb"] == verb and found["exit_code"] == 2
    assert len(found["error"]) > 20


def test_verbs_about_recipes_print_their_findings(tmp_path: Path) -> None:
    recipe = toy_file(tmp_path)
    assert told("check", recipe)["valid"] is True
    assert "source" in told("plan", recipe)
    assert {"name", "what", "accuracy"} <= told("recipes")["recipes"][0].keys()
    assert "PoDD" in told("recipes show", "mnist/podd")["text"]
    assert told("list", "--methods")["methods"]["mtt"] == "cifar10/mtt-ipc1"
    keys = {key["path"]: key for key in told("list", "--keys")["keys"]}
    assert keys["source.limit"]["type"] == "integer or null, > 0"
    assert "canvases/poster.crops" in keys and "ipc" not in keys
    (axis,) = {part["axis"] for part in told("list", "--axis", "labels")["parts"]}
    assert axis == "labels"


def test_a_run_prints_where_it_lies_and_what_it_measured(tmp_path: Path) -> None:
    found = told("run", toy_file(tmp_path), "--runs", tmp_path / "runs")
    assert Path(found["folder"], "distill.json").is_file()
    assert found["manifest"]["results"][0]["from"] == "default"


def test_verbs_about_a_set_print_their_findings(published: Path, tmp_path: Path) -> None:
    runs = ["--runs", tmp_path]
    assert told("show", published, *runs)["manifest"]["name"] == "quickstart"
    assert told("diff", published, published, *runs)["differences"] == []
    assert told("verify", published, *runs)["passed"] is True
    assert told("pull", published, "--to", tmp_path / "a", *runs)["folder"] == str(tmp_path / "a")
    written = told("export", published, "--layout", "npz", "--to", tmp_path / "b", *runs)
    assert Path(written["written"]).exists()
    page = ["--output", tmp_path / "page.html"]
    assert told("report", published, *page, *runs)["page"] == str(tmp_path / "page.html")
    both = told("compare", published, published, "--output", tmp_path / "both.html", *runs)
    assert both["rows"]["accuracy, %"][0] == both["rows"]["accuracy, %"][1]
