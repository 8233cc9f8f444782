"""The verbs around the recipes that ship with the package: recipes, and recipes show."""

import json
from collections.abc import Iterator
from itertools import groupby
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

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
    as_json: Annotated[bool, typer.Option("--json", help="Headers in full, as JSON.")] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="As the page that lies beside the recipes.")
    ] = False,
) -> None:
    """List the recipes that ship with the package: what each is and what it measured."""
    if context.invoked_subcommand is not None:
        return
    listed = _of(dataset)
    if as_json:
        typer.echo(json.dumps([_as_json(recipe) for recipe in listed], indent=2))
    elif markdown:
        typer.echo("\n".join(_page(listed)))
    else:
        _print(listed)


@app.command()
def show(
    recipe: Annotated[str, typer.Argument(help="Its name, for example cifar10/podd.")],
    path: Annotated[bool, typer.Option("--path", help="Where the file lies instead.")] = False,
) -> None:
    """Print a recipe, to read or to change: recipes show mnist/podd > mine.yaml."""
    file = recipe_file(recipe)
    if not file.is_file():
        raise RecipeError(f"recipes show: no recipe {recipe!r}; {near(recipe)}")
    typer.echo(file if path else file.read_text(encoding="utf-8"), nl=path)


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
