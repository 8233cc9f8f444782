"""The verbs that lead to a recipe: recipes, recipes show, and init for data of one's own."""

from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from distill_datasets.cli.as_json import AsJson, print_json
from distill_datasets.cli.run import recipe_names
from distill_datasets.errors import RecipeError
from distill_datasets.files.shipped import ShippedRecipe, near, recipe_file, shipped

app = typer.Typer(
    help="List the recipes that ship with the package; `recipes show NAME` prints one.",
    invoke_without_command=True,
)
HEAD = """# Recipes

Made by `distill-datasets recipes --markdown` from the headers of the files. Run one by its name,
`distill-datasets run cifar10/regression-poster`; `distill-datasets recipes show NAME` prints it, a
comment on how it was measured included. Accuracy is in percent, of fresh students trained on the
published 8-bit rows; "profile" says that it was measured with `--profile cpu`.
"""


@app.callback()
def recipes(
    context: typer.Context,
    dataset: Annotated[
        str | None,
        typer.Option(help="Those of one data set alone, for example mnist.", show_default=False),
    ] = None,
    as_json: AsJson = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="As the page that lies beside the recipes.")
    ] = False,
) -> None:
    """List the recipes that ship with the package: what each is and what it measured."""
    if context.invoked_subcommand is not None:
        return
    listed = _of(dataset)
    if as_json:
        print_json("recipes", {"recipes": [_as_json(recipe) for recipe in listed]})
    elif markdown:
        typer.echo("\n".join(_page(listed)))
    else:
        _print(listed)


@app.command()
def show(
    recipe: Annotated[
        str, typer.Argument(help="Its name, for example cifar10/podd.", autocompletion=recipe_names)
    ],
    path: Annotated[bool, typer.Option("--path", help="Where the file lies instead.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print a recipe, to read or to change: recipes show mnist/podd > mine.yaml."""
    file = recipe_file(recipe)
    if not file.is_file():
        raise RecipeError(f"recipes show: no recipe {recipe!r}; {near(recipe)}")
    if as_json:
        print_json(
            "recipes show",
            {"name": recipe, "path": str(file), "text": file.read_text(encoding="utf-8")},
        )
        return
    typer.echo(file if path else file.read_text(encoding="utf-8"), nl=path)


def init(
    dataset: Annotated[
        str, typer.Argument(help="A Hub id, a folder of pictures, or another local dataset.")
    ],
    use: Annotated[
        str | None,
        typer.Option(
            "--for",
            help="probe: a linear classifier on a frozen network; scratch: networks that are "
            "trained on nothing else; poster: the same below one image per class. Default: by the "
            "size of the images.",
            show_default=False,
        ),
    ] = None,
    minutes: Annotated[
        float, typer.Option(help="Of one core here, for reading, distilling and measuring.")
    ] = 5.0,
    ipc: Annotated[
        float | None,
        typer.Option(
            help="Images per class; default: 1, and 0.5 for a poster.", show_default=False
        ),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(help="New file; default: by the dataset's name.", show_default=False),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Of a dataset on the Hub.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look at a dataset, time a little of the work, and write a recipe for it with comments.

    Then [bold]distill-datasets run FILE[/bold].
    """
    file = to or Path(f"{Path(dataset).name or 'mine'}.yaml")
    if file.exists():
        raise RecipeError(f"--to: {file} is already there; name a new file")
    if not file.parent.is_dir():
        raise RecipeError(f"--to: no folder {file.parent}; make it, or name another")
    from distill_datasets.planning.costs import time_in_words
    from distill_datasets.planning.starter import starter

    console = Console(highlight=False, soft_wrap=True)
    with Console(stderr=True).status("looking at the data, and timing a little of the work"):
        made = starter(dataset, file, use, ipc=ipc, minutes=minutes, revision=revision)
    with file.open("x", encoding="utf-8") as written:
        written.write(made.text)
    if as_json:
        seconds = {**asdict(made.minutes), "total": made.minutes.total}
        print_json("init", {"file": str(file), "found": made.found, "seconds": seconds})
        return
    console.print(f"found    {made.found}", markup=False)
    console.print(f"time     about {time_in_words(made.minutes.total)} of one core", markup=False)
    console.print(f"wrote    {file}", markup=False)
    console.print(f"next     distill-datasets run {file}", markup=False)


def _of(dataset: str | None) -> list[ShippedRecipe]:
    listed = shipped()
    groups = dict.fromkeys(recipe.group for recipe in listed if recipe.group)
    if dataset is None:
        return listed
    if dataset not in groups:
        raise RecipeError(f"--dataset: got {dataset!r}; valid names: {', '.join(groups)}")
    return [recipe for recipe in listed if recipe.group == dataset]


def _print(listed: list[ShippedRecipe]) -> None:
    console = Console(highlight=False)
    names = [recipe.name.rpartition("/")[2] for recipe in listed]
    table = Table.grid(padding=(0, 2))
    table.add_column(min_width=max(map(len, names)) + 2, no_wrap=True)
    table.add_column(min_width=max(len(_measured(recipe)) for recipe in listed), no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis")
    group = ""
    for name, recipe in zip(names, listed, strict=True):
        if recipe.group != group:
            group = recipe.group
            table.add_row(f"[bold]{group}/[/bold]")
        table.add_row("  " * bool(group) + name, _measured(recipe), escape(recipe.what))
    console.print(table)
    console.print(
        "\nMeasured: accuracy in percent from the published rows; cpu: with --profile cpu.\n"
        "Run one:  distill-datasets run mnist/podd source.dataset=path/to/mnist\n"
        "Read it:  distill-datasets recipes show mnist/podd",
        soft_wrap=True,
        markup=False,
    )


def _measured(recipe: ShippedRecipe) -> str:
    accuracy = recipe.accuracy or "-"
    profile = " cpu" * (recipe.profile and recipe.accuracy is not None)
    return accuracy.replace("+-", "±").replace(" %", "") + profile


def _as_json(recipe: ShippedRecipe) -> dict[str, str | None]:
    header = {title.lower(): text for title, text in recipe.header.items()}
    return {"name": recipe.name, "accuracy": recipe.accuracy} | header


def _page(listed: list[ShippedRecipe]) -> Iterator[str]:
    yield HEAD
    for group, members in groupby(listed, key=lambda recipe: recipe.group):
        yield f"## {group or 'to start with'}\n"
        yield "| recipe | what | measured | cost |\n|---|---|---|---|"
        for recipe in members:
            profile = ", profile" * (recipe.profile and recipe.accuracy is not None)
            measured = (recipe.accuracy or "not yet").replace("+-", "±") + profile
            name = recipe.name.rpartition("/")[2]
            link = f"[{name}]({recipe.name}.yaml)"
            cells = [link, recipe.what, measured, recipe.header.get("Cost", "")]
            yield f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
        yield ""
