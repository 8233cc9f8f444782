"""The verbs for a finished set, of whomever: show, diff, pull and export."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from distill_datasets.cli import run
from distill_datasets.cli.as_json import AsJson, print_json
from distill_datasets.cli.evaluate import RUNS, RunsOption, TargetArgument
from distill_datasets.errors import ArtifactError

if TYPE_CHECKING:
    from PIL import Image

PICTURES = ("classes.png", "poster.png")
"""What is shown of a set: the first that it has."""


def show(
    target: TargetArgument,
    png: Annotated[
        Path | None, typer.Option(help="Also copy the picture into this new file.")
    ] = None,
    runs: RunsOption = RUNS,
    as_json: AsJson = False,
) -> None:
    """Show a distilled set: its picture in the terminal, what it is, and what it measured."""
    from PIL import Image

    from distill_datasets.export.content import per_class
    from distill_datasets.export.folder import read_manifest, task_of
    from distill_datasets.layouts.target import resolve_target
    from distill_datasets.targets import OUTPUTS

    if png is not None and png.exists():
        raise ArtifactError(f"--png: {png} is already there; name a new file")
    run.log_to_stderr(quiet=True)
    folder = resolve_target(target, runs)
    manifest = read_manifest(folder)
    picture = next(folder / name for name in PICTURES if (folder / name).is_file())
    if png is not None:
        shutil.copyfile(picture, png)
    if as_json:
        print_json("show", {"folder": str(folder), "picture": str(picture), "manifest": manifest})
        return
    console = Console(highlight=False, soft_wrap=True)
    if console.is_terminal and console.color_system is not None:
        with Image.open(picture) as image:
            console.print(half_blocks(image, console.width))
    task, budget = task_of(manifest), manifest["budget"]
    outputs = f"{len(manifest['classes'])} {OUTPUTS[task].many}"
    facts = {
        "name": manifest["name"],
        "method": manifest["method"],
        "source": f"{manifest['source']['dataset']}, {outputs}",
        "rows": f"{manifest['configs']['default']['rows']:,}",
        "size": f"{budget['values']:,} values = {per_class(budget, task)}",
        "folder": str(folder),
    }
    for name, text in facts.items():
        console.print(f"{name:8} {text}", markup=False)
    if manifest["results"]:
        console.print()
        run.print_results(console, manifest["results"])


def diff(
    first: TargetArgument,
    second: TargetArgument,
    runs: RunsOption = RUNS,
    as_json: AsJson = False,
) -> None:
    """Say where two distilled sets differ: size, recipe, results, rows.

    The exit code is 1 where they do. For pictures and intervals see [bold]compare[/bold].
    """
    from distill_datasets.layouts.difference import differences
    from distill_datasets.layouts.target import resolve_target

    run.log_to_stderr(quiet=True)
    found = differences(*(resolve_target(each, runs) for each in (first, second)))
    if as_json:
        print_json("diff", {"differences": [line._asdict() for line in found]})
    elif found:
        table = Table("", escape(first), escape(second), box=None, header_style="bold")
        for line in found:
            table.add_row(*map(escape, line))
        Console(highlight=False).print(table)
    else:
        typer.echo("no difference")
    if found:
        raise typer.Exit(1)


def pull(
    target: TargetArgument,
    to: Annotated[Path, typer.Option("--to", help="New folder.")],
    runs: RunsOption = RUNS,
    as_json: AsJson = False,
) -> None:
    """Copy a set, of the Hub or of a run, into a folder of yours; every hash is compared.

    [bold]distill-datasets pull owner/name@v1 --to name[/bold]
    """
    from distill_datasets.export.agreement import problems
    from distill_datasets.export.content import sibling_of
    from distill_datasets.export.folder import appearing, check_writable
    from distill_datasets.layouts.target import resolve_target

    run.log_to_stderr(quiet=as_json)
    check_writable(to)
    check_writable(sibling_of(to))
    folder = resolve_target(target, runs)
    with appearing(to.absolute()) as partial:
        shutil.copytree(folder, partial, dirs_exist_ok=True)
        if found := problems(partial):
            raise ArtifactError(f"{target}: is damaged: {'; '.join(found[:3])}")
        if (shards := sibling_of(folder)).exists():  # large labels of views lie beside their set
            shutil.copytree(shards, sibling_of(to.absolute()))
    if as_json:
        print_json("pull", {"folder": str(to)})
        return
    typer.echo(f'load_dataset("{to}", "default", split="train")')


def export(
    target: TargetArgument,
    layout: Annotated[str, typer.Option(help="imagefolder, npz, pt or webdataset.")],
    to: Annotated[Path, typer.Option("--to", help="New folder.")],
    runs: RunsOption = RUNS,
    as_json: AsJson = False,
) -> None:
    """Write the rows of a set, with labels and soft labels, as other programs read them.

    imagefolder: train/CLASS/ROW.png and soft_labels.npy; npz and pt: one file of arrays or tensors;
    webdataset: tars of KEY.png, KEY.cls and KEY.soft.npy. info.json has the names of the classes
    and the mean and deviation by which a student sees the images.
    """
    from distill_datasets.layouts.target import resolve_target
    from distill_datasets.layouts.written import write_layout

    run.log_to_stderr(quiet=False)
    folder = resolve_target(target, runs)
    written = write_layout(folder, layout, to)
    if as_json:
        print_json("export", {"written": str(written), "layout": layout})
        return
    typer.echo(str(written))


def half_blocks(image: "Image.Image", width: int) -> Text:
    """A picture as text: a character is two pixels, the upper one its color, the lower its ground.

    Args:
        image: any picture.
        width: in characters, at most.
    """
    columns = min(width, image.width)
    rows = max(2, round(image.height * columns / image.width))
    small = image.convert("RGB").resize((columns, rows + rows % 2))
    pixels = small.load()
    assert pixels is not None
    text = Text()
    for y in range(0, small.height, 2):
        for x in range(columns):
            upper, lower = (
                "#{:02x}{:02x}{:02x}".format(*pixels[x, y + down])  # type: ignore[misc]
                for down in (0, 1)
            )
            text.append("▀", style=f"{upper} on {lower}")
        text.append("\n")
    return text
