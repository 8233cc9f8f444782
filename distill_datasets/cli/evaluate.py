"""The verbs that judge a distilled set, of whatever origin: verify, reproduce, evaluate.

Like those of the recipe, none imports torch or datasets before it needs them.
"""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from distill_datasets.cli import run

TargetArgument = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="A published folder, a run, a Hub id (owner/name@revision), or a set to import.",
        show_default=False,
    ),
]
RunsOption = Annotated[
    Path, typer.Option("--runs", "--output", help="Folder of all runs; what is done is kept here.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]
RUNS = Path("runs")


def verify(target: TargetArgument, runs: RunsOption = RUNS, as_json: AsJson = False) -> None:
    """Look whether a dataset is what it says: hashes, copies of numbers, every row and image.

    Prints a line for each look; the exit code is 1 where one of them failed. Of a dataset on the
    Hub the files of one commit are downloaded and looked at.
    """
    from distill_datasets.export.verification import checks
    from distill_datasets.layouts.target import resolve_target

    run.log_to_stderr(quiet=as_json)
    folder = resolve_target(target, runs, check=False)
    found = []
    console = Console(highlight=False, soft_wrap=True)
    for check in checks(folder):
        found.append(check)
        if not as_json:
            mark = "[green]ok[/green]    " if check.passed else "[bold red]FAILED[/bold red]"
            console.print(f"{mark} {check.name}: {escape(check.words)}")
    passed = all(check.passed for check in found)
    if as_json:
        said = {
            "folder": str(folder),
            "passed": passed,
            "checks": [check._asdict() for check in found],
        }
        typer.echo(json.dumps(said, indent=2, ensure_ascii=False))
    if not passed:
        raise typer.Exit(1)
