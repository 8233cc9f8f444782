"""What programs read: `--json` of every verb prints one object, and nothing else, to stdout.

Its first key, `verb`, says who speaks; the others are the verb's own. A verb that fails prints
`error` and `exit_code` beside it, and the same sentence to stderr as ever.
"""

import json
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

OPTION = "--json"
AsJson = Annotated[bool, typer.Option(OPTION, help="Print one JSON object, for programs.")]


def print_json(verb: str, found: Mapping[str, Any]) -> None:
    """Print what a verb found."""
    typer.echo(json.dumps({"verb": verb, **found}, indent=2, ensure_ascii=False, default=str))


def print_failure(message: str, exit_code: int) -> None:
    """Print why the verb of this command line failed, where it was asked for JSON."""
    arguments = sys.argv[1:]
    if OPTION in arguments:
        verb = next((each for each in arguments if not each.startswith("-")), "")
        print_json(verb, {"error": message, "exit_code": exit_code})
