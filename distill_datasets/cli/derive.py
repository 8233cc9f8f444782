"""The verbs that make sets of finished ones: shrink, extend and merge."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from distill_datasets.cli import run
from distill_datasets.cli.as_json import AsJson, print_json
from distill_datasets.cli.evaluate import RUNS, Quiet, TargetArgument
from distill_datasets.errors import Interrupted, RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from distill_datasets.recipe import Recipe

NewFolder = Annotated[
    Path, typer.Option("--output", help="New folder for the dataset.", show_default=False)
]
RunsAlone = Annotated[
    Path, typer.Option("--runs", help="Folder of all runs; what is downloaded lies below it.")
]


def shrink(
    target: TargetArgument,
    budget: Annotated[
        str,
        typer.Argument(metavar="ipc=N", help="Rows that every class keeps.", show_default=False),
    ],
    output: NewFolder,
    networks: Annotated[int, typer.Option(min=1, help="That train on the set and rank it.")] = 3,
    passes: Annotated[int, typer.Option(min=1, help="Of each over the set.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Of these networks.")] = 0,
    runs: RunsAlone = RUNS,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make a smaller set of a finished one: of every class the rows that are learned most easily.

    The ranking is that of YOCO (arXiv:2310.14019): networks train on the set alone, no other image
    is looked at, and nothing is distilled anew. With the same seed a smaller set is part of a
    larger one.

    [bold]distill-datasets shrink owner/name ipc=5 --output name-5[/bold]
    """
    found = re.fullmatch(r"ipc=(\d{1,9})", budget)
    if found is None:
        raise RecipeError(f"{budget!r}: expected ipc=N with a whole number, for example ipc=5")
    run.log_to_stderr(quiet or as_json)
    from distill_datasets.layouts.shrinking import shrink as shrink_folder
    from distill_datasets.layouts.target import resolve_target

    _make(
        lambda: shrink_folder(
            resolve_target(target, runs),
            target,
            int(found[1]),
            output,
            networks=networks,
            passes=passes,
            seed=seed,
            shown=not (quiet or as_json),
        ),
        output,
        as_json,
    )


def extend(
    target: TargetArgument,
    output: NewFolder,
    source: Annotated[
        str,
        typer.Option(
            help="Real images of the new classes: a Hub id or a path; classes that the set has are "
            "not read.",
            show_default=False,
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SECTION.KEY=VALUE]...",
            help="Of the recipe for the new classes, for example distill.steps=500.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="By its name in the field; default: the recipe of the set itself."),
    ] = None,
    runs: RunsAlone = RUNS,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Distill more classes by the recipe of a finished set, and put their rows behind its own.

    The old rows stay what they are. After an interruption the same command goes on.

    [bold]distill-datasets extend owner/name --source path/to/more --output name-more[/bold]
    """
    run.log_to_stderr(quiet or as_json)
    from distill_datasets.layouts.target import resolve_target
    from distill_datasets.pipeline.extending import extend as extend_folder
    from distill_datasets.presets import recipe_for

    def of_method(dataset: str, listed: "Sequence[str]", name: str) -> "Recipe":
        assert method is not None, "asked for one"
        return recipe_for(dataset, method, listed, name=name)

    preset = None if method is None else of_method
    _make(
        lambda: extend_folder(
            resolve_target(target, runs),
            target,
            source,
            output,
            runs=runs,
            preset=preset,
            overrides=overrides or [],
            quiet=quiet or as_json,
        ),
        output,
        as_json,
    )


def merge(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="TARGET TARGET...",
            help="Published folders, runs, or Hub ids (owner/name@revision).",
            show_default=False,
        ),
    ],
    output: NewFolder,
    name: Annotated[
        str | None, typer.Option(help="Title of the card; default: those of all.")
    ] = None,
    view_labels: Annotated[
        bool,
        typer.Option(
            "--view-labels/--no-view-labels",
            help="Without: merge sets that have labels of views, and leave these out.",
        ),
    ] = True,
    runs: RunsAlone = RUNS,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Join finished sets: all rows of all of them, classes of one name together.

    Everybody distills what they have and nobody shares a real image (one-shot federated). What the
    sets disagree about is told, and stands on the card.

    [bold]distill-datasets merge ann/north bob/south --output both[/bold]
    """
    run.log_to_stderr(quiet or as_json)
    from distill_datasets.layouts.merging import merge as merge_folders
    from distill_datasets.layouts.target import resolve_target

    _make(
        lambda: merge_folders(
            [resolve_target(target, runs) for target in targets],
            targets,
            output,
            name=name,
            view_labels=view_labels,
        ),
        output,
        as_json,
    )


def _make(derive: "Callable[[], dict[str, Any]]", output: Path, as_json: bool) -> None:
    """Make a set, and say what it is and what to do with it."""
    try:
        manifest = derive()
    except KeyboardInterrupt as error:
        raise Interrupted("the same command begins the ranking anew, and goes on with runs") from (
            error
        )
    if as_json:
        print_json(manifest["derived"]["verb"], {"folder": str(output), "manifest": manifest})
        return
    from distill_datasets.export.content import per_class

    budget, console = manifest["budget"], Console(highlight=False, soft_wrap=True)
    console.print(
        f"{budget['examples']:,} rows of {len(manifest['classes']):,} classes, "
        f"{budget['pixels']:,} pixels = {per_class(budget, 'classes')}, "
        f"{budget['bytes']['needed']:,} bytes"
    )
    for note in manifest["derived"]["notes"]:
        console.print(f"note     {note}", markup=False)
    console.print(f"folder   {output}", markup=False)
    console.print(f"picture  {output / 'classes.png'}", markup=False)
    measured = output.with_name(f"{output.name}-measured")
    console.print(f"measure  distill-datasets evaluate {output} --to {measured}", markup=False)
