"""The verbs around a recipe: run, plan, check and list.

torch and datasets take seconds to import, so nothing here imports them before a verb needs them.
"""

import logging
import sys
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from distill_datasets.cli.as_json import AsJson, print_failure, print_json
from distill_datasets.cli.lazy_imports import put_off, uncollected
from distill_datasets.errors import Interrupted, RecipeError, did_you_mean
from distill_datasets.runtime.launch import is_main_process, processes_to_start, start

if TYPE_CHECKING:
    from distill_datasets.pipeline.run import Outcome
    from distill_datasets.recipe import Recipe


SLOW = (
    *("numpy", "torch", "torch.nn", "torch.nn.functional"),
    *("accelerate", "accelerate.utils"),
    *("safetensors", "safetensors.torch"),
)
"""What the modules of a recipe import and use only to compute."""


def recipe_names(incomplete: str) -> list[str]:
    """The shipped recipes whose names begin so, for the shell; files are completed by the shell."""
    from distill_datasets.files.shipped import shipped

    return [recipe.name for recipe in shipped() if recipe.name.startswith(incomplete)]


RecipeArgument = Annotated[
    str,
    typer.Argument(
        help="A YAML recipe, or the name of one that ships with the package: see "
        "`distill-datasets recipes`.",
        show_default=False,
        autocompletion=recipe_names,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SECTION.KEY=VALUE]...",
        help="Values that win over the recipe's, for example distill.steps=500.",
        show_default=False,
    ),
]
Method = Annotated[
    str | None,
    typer.Option(
        help="Instead of a recipe: a method by its name in the field, for example dm, mtt, frepo, "
        "rded or sre2l; the first argument is then a dataset. `distill-datasets list --methods`.",
        show_default=False,
    ),
]
SkipBadRows = Annotated[
    bool, typer.Option("--skip-bad-rows", help="Leave unusable source rows out, and list them.")
]

Profile = Annotated[
    str | None,
    typer.Option(
        help="One of the recipe's profiles, for example cpu: a setting for two cores.",
        show_default=False,
    ),
]


def run(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    profile: Profile = None,
    method: Method = None,
    runs: Annotated[Path, typer.Option(help="Folder of all runs; resuming looks here.")] = Path(
        "runs"
    ),
    output: Annotated[
        Path | None,
        typer.Option(help="New folder for the finished dataset; default: inside --runs."),
    ] = None,
    track: Annotated[
        list[str] | None,
        typer.Option(help="Log to a tracker of Accelerate: tensorboard, trackio, wandb, ..."),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(help="Processes on this machine that share the work.", show_default=False),
    ] = None,
    skip_bad_rows: SkipBadRows = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, only the result.")] = False,
    as_json: AsJson = False,
) -> None:
    """Distill, measure and write a dataset. Run again to resume: finished work is kept.

    Several processes share the lanes of an outer step and the students: [bold]--processes N[/bold]
    on one machine, [bold]accelerate launch -m distill_datasets run RECIPE[/bold] on several.
    """
    with uncollected():
        loaded = load(recipe, overrides, profile, skip_bad_rows, method)
    if dry_run:
        _print_plan(loaded, as_json=as_json)
        return
    quiet = quiet or as_json
    count = processes_to_start(processes)
    try:
        if count > 1:
            run_in(count)
            return
        log_to_stderr(quiet)
        with uncollected():
            import datasets  # noqa: F401 - which reading the source imports

            from distill_datasets.pipeline.run import run as run_recipe

        outcome = run_recipe(loaded, runs=runs, output=output, quiet=quiet, trackers=track)
    except KeyboardInterrupt as error:  # typer would exit without a word
        raise Interrupted("the same command resumes where it stopped") from error
    if is_main_process() and as_json:
        print_json("run", _outcome_as_json(outcome))
    elif is_main_process():
        _print_outcome(outcome)


def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    profile: Profile = None,
    method: Method = None,
    skip_bad_rows: SkipBadRows = False,
    flops_per_second: Annotated[
        float | None,
        typer.Option(min=1.0, help="Of one GPU, for hours on 1, 8 and 64; for example 2e13."),
    ] = None,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe",
            help="Measure that here, the minutes of a run, and an unrolled window's memory.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print stages, parts, sizes and work of a recipe; reads a few rows and trains nothing.

    With source.expected in the recipe nothing is read, and the dataset need not be there.
    """
    with uncollected():
        loaded = load(recipe, overrides, profile, skip_bad_rows, method)
    _print_plan(loaded, flops_per_second, probe, as_json)


def check(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    profile: Profile = None,
    skip_bad_rows: SkipBadRows = False,
    as_json: AsJson = False,
) -> None:
    """Validate a recipe without reading its data; lists every problem at once.

    Problems between sections show when each section by itself has none.
    """
    with uncollected(), put_off(*SLOW):
        loaded = load(recipe, overrides, profile, skip_bad_rows)
    view = loaded.source.view
    if view is not None and (absent := view.absent()) is not None:
        raise RecipeError(absent)
    if as_json:
        print_json("check", {"recipe": recipe, "valid": True, "sha256": loaded.sha256()})
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{recipe}: valid, sha256 {loaded.sha256()[:12]}", markup=False)


def list_parts(
    axis: Annotated[
        str | None,
        typer.Option(help="The parts of one axis alone, for example canvases.", show_default=False),
    ] = None,
    keys: Annotated[
        bool,
        typer.Option("--keys", help="Every key of a recipe instead: type, default, meaning."),
    ] = False,
    methods: Annotated[
        bool, typer.Option("--methods", help="The names that --method takes instead.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show every part that a recipe can name, axis by axis, with its paper."""
    from distill_datasets.config import BUILT_IN

    if axis is not None and axis not in BUILT_IN:
        raise RecipeError(f"--axis: got {axis!r}; {did_you_mean(axis, BUILT_IN)}")
    if methods:
        _print_methods(as_json)
    elif keys:
        _print_keys(axis, as_json)
    else:
        _print_parts([axis] if axis else list(BUILT_IN), as_json)


def _print_methods(as_json: bool) -> None:
    from distill_datasets.presets import METHODS, SHIPPED

    settings = {method: SHIPPED.get(method, "settings of its own") for method in METHODS}
    if as_json:
        print_json("list", {"methods": settings})
        return
    for method, where in settings.items():
        typer.echo(f"{method:14}{where}")


def _print_keys(axis: str | None, as_json: bool) -> None:
    """Those of the recipe and of all parts, or of the parts of one axis."""
    from distill_datasets.cli.keys import keys_of, tables_of
    from distill_datasets.config import BUILT_IN, names
    from distill_datasets.recipe import Recipe

    parts = {each: names(each) for each in ([axis] if axis else BUILT_IN)}
    recipe = None if axis else Recipe
    if as_json:
        rows = [row._asdict() for table in tables_of(recipe, parts) for row in table.rows]
        print_json("list", {"keys": rows})
    else:
        typer.echo(keys_of(recipe, parts), nl=False)


def _print_parts(axes: list[str], as_json: bool) -> None:
    from distill_datasets.config import load, names

    parts = list[dict[str, str]]()
    with put_off(*SLOW):
        for axis in axes:
            for name in sorted(names(axis)):
                cls = load(axis, name)
                what = " ".join((cls.__doc__ or "").strip().partition("\n\n")[0].split())
                parts.append({"axis": axis, "name": name, "what": what, "paper": cls.paper})
    if as_json:
        print_json("list", {"parts": parts})
        return
    console = Console(highlight=False)
    for axis, members in groupby(parts, key=itemgetter("axis")):
        console.print(f"[bold]{axis}[/bold]")
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True, min_width=max(len(part["name"]) for part in parts) + 2)
        table.add_column()
        for part in members:
            table.add_row(f"  {escape(part['name'])}", escape(part["what"]))
            table.add_row("", f"[dim]{escape(part['paper'])}[/dim]")
        console.print(table)
        console.print()
    console.print(
        "One part's keys: distill-datasets list --keys --axis canvases\n"
        "In a recipe:     distill: {canvas: {name: poster, ipc: 0.5}}",
        soft_wrap=True,
        markup=False,
    )


def load(
    recipe: str,
    overrides: list[str] | None,
    profile: str | None,
    skip_bad_rows: bool,
    method: str | None = None,
) -> "Recipe":
    """The recipe of a file, of the package, or of a method for a dataset, with its overrides."""
    from distill_datasets.recipe import load_recipe, name_from

    extra = ["source.skip_bad_rows=true"] if skip_bad_rows else []
    listed = [*(overrides or []), *extra]
    if method is None:
        return load_recipe(recipe, listed, profile)
    from distill_datasets.presets import recipe_for

    if profile is not None:
        raise RecipeError(f"--profile: got {profile!r} with --method, whose settings have none")
    name = name_from(f"{Path(recipe).stem}-{method}")
    return recipe_for(recipe, method, listed, name=name)


def run_in(processes: int) -> None:
    """Run this command line in several processes, and exit as they do if they fail."""
    try:
        ended = start(processes, [sys.executable, "-m", "distill_datasets", *sys.argv[1:]])
    finally:
        Console(stderr=True).show_cursor()  # one that was ended may have hidden it for its bar
    for message, process in ended.errors.items():
        print_error(message, process)
    if ended.code and ended.errors:
        print_failure("; ".join(ended.errors), ended.code)
    if ended.code:
        raise typer.Exit(ended.code)


def print_error(message: str, process: int) -> None:
    """Print an error, and which process had it unless that is the first."""
    who = f"[process {process}] " if process else ""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"{escape(who)}[red]error:[/red] {escape(_printable(message))}")


def _printable(message: str) -> str:
    """The message without what moves a terminal's cursor or cannot be encoded: it is escaped."""
    return "".join(
        each if each.isprintable() or each == "\n" else each.encode("unicode_escape").decode()
        for each in message
    )


def log_to_stderr(quiet: bool) -> None:
    """Show what the library logs; of a quiet run, and of all processes but one, only warnings."""
    logger = logging.getLogger("distill_datasets")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    main = is_main_process()
    logger.setLevel(logging.WARNING if quiet or not main else logging.INFO)


def _print_plan(
    recipe: "Recipe",
    flops_per_second: float | None = None,
    probe: bool = False,
    as_json: bool = False,
) -> None:
    with uncollected():
        from distill_datasets.planning.plan import plan as plan_recipe

    planned = plan_recipe(recipe, None, flops_per_second, probe)
    if as_json:
        print_json("plan", planned.as_json())
        return
    console = Console(highlight=False)
    for title, lines in planned.tables().items():
        table = Table(title, "", box=None, header_style="bold")
        for name, text in lines:
            table.add_row(escape(name), escape(text))
        console.print(table)
        console.print()


def _print_outcome(outcome: "Outcome") -> None:
    from distill_datasets.export.content import per_class
    from distill_datasets.export.folder import task_of
    from distill_datasets.export.reading import has_hard_labels
    from distill_datasets.export.summary import at_chance, statement

    console = Console(highlight=False, soft_wrap=True)
    print_results(console, outcome.results)
    said = statement(outcome.results, hard=has_hard_labels(outcome.folder))
    if said is not None:
        console.print(f"\n{said}", markup=False)
    warning = at_chance(outcome.results)
    if warning is not None:
        console.print(f"\n[bold red]WARNING, at chance:[/bold red] {escape(warning)}")
    budget = outcome.manifest["budget"]
    needed = budget["bytes"]["needed"]
    kind = "numbers" if "numbers" in budget else "pixels"
    console.print(
        f"\nsize     {budget[kind]:,} {kind} = {per_class(budget, task_of(outcome.manifest))},"
        f" {budget['values']:,} values, {needed:,} bytes to download and train"
    )
    console.print(f"folder   {outcome.folder}", markup=False)
    console.print(f"picture  {outcome.folder / 'poster.png'}", markup=False)
    console.print("\nload it with", markup=False)
    console.print("from datasets import load_dataset", markup=False)
    console.print(
        f'rows = load_dataset("{outcome.folder}", "default", split="train")', markup=False
    )
    labels = "values" if outcome.manifest.get("task") == "values" else "soft_label"
    console.print(
        f'images, {labels.removesuffix("s")}s = rows["image"], rows["{labels}"]', markup=False
    )


def _outcome_as_json(outcome: "Outcome") -> dict[str, Any]:
    """Where a finished dataset lies, and what `distill.json` says of it."""
    from distill_datasets.export.reading import has_hard_labels
    from distill_datasets.export.summary import at_chance, statement

    return {
        "folder": str(outcome.folder),
        "picture": str(outcome.folder / "poster.png"),
        "statement": statement(outcome.results, hard=has_hard_labels(outcome.folder)),
        "warning": at_chance(outcome.results),
        "manifest": outcome.manifest,
    }


def print_results(console: Console, results: list[dict[str, Any]]) -> None:
    """The table of the rows, and that of longer training and of other networks."""
    from distill_datasets.export.summary import (
        further,
        heading,
        percent,
        transfer,
        tuned,
        wider,
        worst,
    )
    from distill_datasets.training.rows import ROWS

    is_tuned = any("tuned" in row for row in results)
    more = ["at its tuned step size"] if is_tuned else []
    grouped = any("worst_group" in row for row in results)
    more += ["worst group"] if grouped else []
    columns = ["trained on", heading(results), *more, "students", "pixels"]
    table = Table(*columns, box=None, header_style="bold")
    for row in results:
        found = [tuned(row)] if is_tuned else []
        found += [f"{percent(row['worst_group'])} %"] if grouped else []
        cells = [
            f"{percent(row['accuracy'])} %",
            *found,
            f"{row['students']}",
            "-" if row["pixels"] is None else f"{row['pixels']:,}",
        ]
        table.add_row(ROWS[row["from"]].printed, *cells)
    console.print(table)
    if (said := further(results)) is not None:
        console.print(f"published rows: {said}", markup=False)
    found_elsewhere = transfer(results)
    if found_elsewhere is not None:
        names, rows = found_elsewhere
        table = Table("on other backbones, %", *map(escape, names), box=None, header_style="bold")
        for name, cells in rows:
            table.add_row(ROWS[name].printed, *cells)
        console.print()
        console.print(table)
    beyond = wider(results)
    if beyond is None:
        return
    names = [ROWS[name].printed for name in beyond.names]
    title = f"longer and on other networks, %: {' / '.join(names)}"
    steps = [f"{multiple} steps" for multiple in beyond.multiples]
    table = Table(title, *steps, box=None, header_style="bold")
    for network, cells in beyond.rows:
        table.add_row(escape(network), *cells)
    console.print()
    console.print(table)
    for row in results:
        if "worst" in row:
            console.print(f"worst    {ROWS[row['from']].printed}: {worst(row)}", markup=False)
