"""The verbs that show what was measured: report and compare.

Like all others, none imports torch or datasets before it needs them.
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from distill_datasets.cli import run
from distill_datasets.cli.as_json import AsJson, print_json
from distill_datasets.errors import RecipeError

TargetsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="TARGET...",
        help="Published folders, runs, or Hub ids (owner/name@revision).",
        show_default=False,
    ),
]
RunsOption = Annotated[
    Path,
    typer.Option(help="Folder of all runs; what `evaluate` has measured is looked for here."),
]
OutputOption = Annotated[
    Path, typer.Option("--output", help="The HTML file to make; nothing is overwritten.")
]


def report(
    targets: TargetsArgument,
    output: OutputOption = Path("report.html"),
    runs: RunsOption = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Write one HTML page about a dataset: its images, and all that was measured of it.

    The page holds its pictures, asks for nothing from a network and runs nothing. What
    [bold]distill-datasets evaluate[/bold] has measured is preferred to the results of the recipe's
    own students. Of several datasets it shows them side by side, as compare does.
    """
    _write("report", targets, output, runs, as_json)


def compare(
    targets: TargetsArgument,
    output: OutputOption = Path("compare.html"),
    runs: RunsOption = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Set two or more datasets side by side: here as a table, and as an HTML page.

    Differences are those to the first, with their 95 % interval: student by student where all were
    measured by [bold]distill-datasets evaluate[/bold] in the same way, of independent students
    otherwise.
    """
    if len(targets) < 2:
        raise RecipeError(
            f"compare: got {len(targets)} target, expected at least 2; for one use "
            "distill-datasets report"
        )
    _write("compare", targets, output, runs, as_json)


def _write(verb: str, targets: list[str], output: Path, runs: Path, as_json: bool) -> None:
    run.log_to_stderr(quiet=as_json)
    from distill_datasets.evaluation.report.report import check_free, read_subjects, write_page
    from distill_datasets.layouts.target import resolve_target

    check_free(output)
    subjects = read_subjects([resolve_target(target, runs) for target in targets], runs=runs)
    write_page(subjects, output)
    from distill_datasets.evaluation.report.comparison import aligned_rows, titles

    if as_json:
        aligned = {row.name: row.cells for row in aligned_rows(subjects)}
        found = {"page": str(output), "titles": titles(subjects), "rows": aligned}
        print_json(verb, found | {"statements": [each.statement for each in subjects]})
        return
    console = Console(highlight=False, soft_wrap=True)
    if len(subjects) > 1:
        table = Table("", *map(escape, titles(subjects)), box=None, header_style="bold")
        for row in aligned_rows(subjects):
            table.add_row(row.name, *map(escape, row.cells))
        console.print(table)
    elif subjects[0].statement is not None:
        console.print(subjects[0].statement, markup=False)
    console.print(f"page     {output}", markup=False)


def gallery(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="ORG|FOLDER...",
            help="Users or organizations of the Hub, folders below which sets lie, or Hub ids.",
            show_default=False,
        ),
    ],
    output: OutputOption = Path("gallery.html"),
    title: Annotated[str, typer.Option(help="Of the page.")] = "Distilled datasets",
    as_json: AsJson = False,
) -> None:
    """Write one HTML page of many sets: pictures, bytes, and accuracy beside real images.

    It sorts and filters, by keyboard and on a phone, holds its pictures and asks for nothing from a
    network. Of a set on the Hub two small files are read, its manifest and its picture.

    As a static Space: [bold]hf repos create me/gallery --repo-type space --space-sdk static[/bold]
    and [bold]hf upload me/gallery gallery.html index.html --repo-type space[/bold].
    """
    run.log_to_stderr(quiet=as_json)
    from distill_datasets.evaluation.report.collection import exhibits, write_gallery
    from distill_datasets.evaluation.report.report import check_free

    check_free(output)
    shown = [each for target in targets for each in exhibits(target)]
    write_gallery(shown, output, title)
    if as_json:
        print_json("gallery", {"page": str(output), "sets": [each.place for each in shown]})
        return
    many = "1 set" if len(shown) == 1 else f"{len(shown)} sets"
    typer.echo(f"page     {output}, {many}")
