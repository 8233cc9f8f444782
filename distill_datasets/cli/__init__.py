"""The command line: few verbs, and errors without a traceback."""

import inspect
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from distill_datasets.cli import derive, evaluate, job, pages, recipes, run, sets, share
from distill_datasets.cli.as_json import print_failure
from distill_datasets.errors import DistillError
from distill_datasets.runtime.launch import PeerLost, means_lost_peer, process_index, report

EXTENSION = "hf-distill"
"""What the Hub's client calls as `hf distill`."""


def _version(asked: bool) -> None:
    if asked:
        typer.echo(version("distill_datasets"))
        raise typer.Exit


def _agent_help(asked: bool) -> None:
    if asked:
        file = Path(__file__).with_name("agent_help.md")
        typer.echo(file.read_text(encoding="utf-8"), nl=False)
        raise typer.Exit


app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Start with: distill-datasets run quickstart. With --install-completion the shell "
    "completes verbs, options and names of recipes (bash, zsh, fish, PowerShell).",
)


@app.callback()
def distill_datasets(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and stop.", callback=_version, is_eager=True
        ),
    ] = False,
    agent_help: Annotated[
        bool,
        typer.Option(
            "--agent-help",
            help="Print how to write, check, plan, run, read and share, in full and briefly: a "
            "text for agents.",
            callback=_agent_help,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Distill an image dataset into a few trained images that `load_dataset` opens."""


FIND, MAKE, JUDGE, SHARE = "Find a recipe", "Make a set", "Judge a set", "Look at and share a set"
DERIVE = "Make a set of finished ones"
VERBS: dict[str, dict[str, Callable[..., None]]] = {
    MAKE: {
        "run": run.run,
        "job": job.job,
        "plan": run.plan,
        "check": run.check,
        "list": run.list_parts,
    },
    DERIVE: {"shrink": derive.shrink, "extend": derive.extend, "merge": derive.merge},
    FIND: {"init": recipes.init},
    JUDGE: {
        "evaluate": evaluate.evaluate,
        "audit": evaluate.audit,
        "verify": evaluate.verify,
        "reproduce": evaluate.reproduce,
    },
    SHARE: {
        "show": sets.show,
        "report": pages.report,
        "compare": pages.compare,
        "gallery": pages.gallery,
        "diff": sets.diff,
        "publish": share.publish,
        "card": share.card,
        "pull": sets.pull,
        "import": share.import_set,
        "export": sets.export,
    },
}
"""By the panel of the help that they stand in."""


def _flowing(verb: Callable[..., None]) -> str:
    """What a verb says of itself, a line to a paragraph: where it breaks is the terminal's."""
    paragraphs = (inspect.getdoc(verb) or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


for panel, verbs in VERBS.items():
    for name, verb in verbs.items():
        app.command(name, help=_flowing(verb), rich_help_panel=panel)(verb)
app.add_typer(recipes.app, name="recipes", rich_help_panel=FIND)


def main() -> None:
    """Run the command line; the exit code is 0, 2 for bad input, 130 for Ctrl-C, or 1."""
    try:
        # `hf distill` starts a program called hf-distill
        extension = Path(sys.argv[0]).stem == EXTENSION
        app(standalone_mode=True, prog_name="hf distill" if extension else None)
    except DistillError as error:
        _fail(error)
    except RuntimeError as error:
        if not means_lost_peer(error):
            raise
        _fail(PeerLost())


def _fail(error: DistillError) -> NoReturn:
    if not report(error):
        run.print_error(str(error), process_index())
        if process_index() == 0:
            print_failure(str(error), error.exit_code)
    sys.exit(error.exit_code)
