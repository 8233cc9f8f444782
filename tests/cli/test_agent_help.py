"""The text for agents: every command in it is one, every key and file is there, and it is short."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from support.toy_runs import command

from distill_datasets import cli
from distill_datasets.cli.keys import tables_of
from distill_datasets.config import BUILT_IN
from distill_datasets.recipe import Recipe, load_recipe

TEXT = Path(cli.__file__).with_name("agent_help.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^distill-datasets (.*?)(?: +#.*)?$", TEXT, re.MULTILINE)


def test_it_is_what_the_option_prints_and_it_is_short() -> None:
    assert command("--agent-help").out == TEXT
    assert len(TEXT.splitlines()) <= 110


def test_it_names_most_verbs() -> None:
    group: Any = typer.main.get_command(cli.app)
    named = {line.split()[0] for line in COMMANDS}
    assert named <= set(group.commands)
    assert {"init", "check", "plan", "run", "show", "evaluate", "publish"} <= named


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_is_one_that_the_program_takes(line: str) -> None:
    group: Any = typer.main.get_command(cli.app)
    name, *arguments = shlex.split(line)
    verb = group.commands[name]
    inner = getattr(verb, "commands", {})
    if arguments and arguments[0] in inner:
        verb = inner[arguments.pop(0)]
    verb.make_context(name, list(arguments))


def test_a_key_is_one_of_a_recipe() -> None:
    keys = {row.path for table in tables_of(Recipe, BUILT_IN) for row in table.rows}
    named = set(re.findall(r"`((?:source|distill|evaluate)\.[a-z_]+)[`=]", TEXT))
    assert len(named) >= 10 and named - {"distill.json"} <= keys


def test_what_it_tells_to_write_check_plan_and_run_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (init,) = (line for line in COMMANDS if line.startswith("init"))
    assert command(*shlex.split(init)).code == 0
    for start in ("check", "plan mine.yaml --json", "list", "recipes", "run"):
        for line in (each for each in COMMANDS if each.startswith(start)):
            small = ["distill.steps=2", "evaluate.steps=4"] if start == "run" else []
            answer = command(*shlex.split(line), *small)
            assert answer.code == 0, answer.err
    assert load_recipe("mine.yaml").source.dataset == "embedded:uci-digits"


def test_the_shell_completes_verbs_and_names_of_recipes() -> None:
    def completed(words: str) -> list[str]:
        asked = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
        done = subprocess.run(
            [sys.executable, "-c", "import sys; sys.argv = ['distill-datasets']; "
             "from distill_datasets.cli import main; main()"],
            env=os.environ | asked | {"_DISTILL_DATASETS_COMPLETE": "complete_bash"},
            capture_output=True,
            text=True,
        )  # fmt: skip
        return done.stdout.split()

    assert completed("distill-datasets rep") == ["reproduce", "report"]
    assert "mnist/regression-bases" in completed("distill-datasets run mnist/reg")
