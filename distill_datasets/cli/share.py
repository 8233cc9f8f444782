"""The verbs that share datasets: publish a finished one, its card, and import those of others."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from distill_datasets.cli import run
from distill_datasets.cli.as_json import AsJson, print_json
from distill_datasets.cli.evaluate import RUNS, RunsOption, TargetArgument
from distill_datasets.errors import ArtifactError, cut


def publish(
    folder: Annotated[Path, typer.Argument(help="A folder that `run` finished.")],
    repo: Annotated[
        str | None,
        typer.Argument(
            metavar="[ORG/NAME]", help="Dataset repository; default: the recipe's publish.repo."
        ),
    ] = None,
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Of a new repository.")
    ] = None,
    tag: Annotated[str | None, typer.Option(help="Default: v and the manifest's hash.")] = None,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    allow_license: Annotated[
        bool,
        typer.Option(
            "--allow-license",
            help="Publish openly although the source's license is unknown or restricts it.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Put a finished folder on the Hub: one commit, then a tag.

    Log in with [bold]hf auth login[/bold] or set HF_TOKEN. Publishing the same bytes again changes
    nothing.
    """
    from distill_datasets.export.folder import recipe_of
    from distill_datasets.export.publish import publish as publish_folder

    run.log_to_stderr(quiet=as_json)
    repo = repo or recipe_of(folder).get("publish", {}).get("repo")
    if not repo:
        raise ArtifactError(
            f"{folder}: its recipe names no repository; say where: "
            f"distill-datasets publish {folder} ORG/NAME"
        )
    published = publish_folder(
        folder, repo, private=private, tag=tag, message=message, allow_license=allow_license
    )
    if as_json:
        print_json("publish", {"repo": repo, **asdict(published)})
        return
    console = Console(highlight=False, soft_wrap=True)
    state = "already there, nothing changed" if published.unchanged else "published"
    console.print(f"{state}: {published.url}")
    console.print(f'load_dataset("{repo}", revision="{published.tag}")', markup=False)


def card(
    target: TargetArgument,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; the exit code is 1 where it would.")
    ] = False,
    message: Annotated[str | None, typer.Option(help="Of the commit, on the Hub.")] = None,
    runs: RunsOption = RUNS,
    as_json: AsJson = False,
) -> None:
    """Write the card of a set anew, and keep what people wrote in it.

    Its tables, programs and configurations become those of this release and of the numbers that lie
    beside them. Paragraphs, sentences and keys that others added or rewrote stay where they are. Of
    a set on the Hub it is one commit, then a tag.

    [bold]distill-datasets card owner/name --check[/bold]
    """
    from distill_datasets.export.folder import CARD
    from distill_datasets.export.publish import publish_card
    from distill_datasets.layouts.rewriting import rewritten, write_card
    from distill_datasets.layouts.target import on_the_hub, resolve_target

    run.log_to_stderr(quiet=True)
    there = on_the_hub(target, runs)
    if there is not None and there[1] is not None and not check:
        raise ArtifactError(
            f"{target}: a revision is never changed; name {there[0]} to write its newest card, or "
            "take --check"
        )
    folder = resolve_target(target, runs, check=False)
    made = rewritten(folder)
    place = str(folder / CARD)
    if made.changed and not check:
        if there is None:
            write_card(folder, made)
        else:
            place = publish_card(folder, there[0], made.text, made.own, message=message).url
    if as_json:
        print_json("card", {"card": place, "changed": made.changed, "kept": made.kept})
    else:
        state = "would be written anew" if check else "written anew"
        typer.echo(f"card     {place}, {state if made.changed else 'nothing to write'}")
        for block in made.kept:
            typer.echo(f"kept     {cut(block.splitlines()[0], 70)}")
    if check and made.changed:
        raise typer.Exit(1)


def import_set(
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="PATH", help="A file or folder, or a dataset on the Hub.", show_default=False
        ),
    ],
    to: Annotated[
        Path, typer.Option("--to", help="New folder for the dataset.", show_default=False)
    ],
    layout: Annotated[
        str | None,
        typer.Option(help="mtt, dc, npz, imagefolder, parquet or hub; default: found out."),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(help="Floats are normalized as for cifar10, mnist, imagenet, ...; or pixels."),
    ] = None,
    mean: Annotated[
        str | None, typer.Option(help="Or by this mean of every channel: 0.49,0.48,0.45.")
    ] = None,
    std: Annotated[str | None, typer.Option(help="And this deviation: 0.25,0.24,0.26.")] = None,
    classes: Annotated[
        str | None,
        typer.Option(help="Names in the order of the labels: cat,dog,... or a file, a line each."),
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="The dataset it was distilled from: Hub id or path.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Title of the card.")] = None,
    method: Annotated[str | None, typer.Option(help="In words, for example MTT.")] = None,
    paper: Annotated[str | None, typer.Option(help="Address, or words with arXiv:1234.56789.")] = (
        None
    ),
    license_name: Annotated[
        str | None, typer.Option("--license", help="An identifier of the Hub, for example mit.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="Folder epoch_0, epoch_1, ... of soft labels of views (FKD, SRe2L)."),
    ] = None,
    experiment: Annotated[
        int | None, typer.Option(min=0, help="Of a file of DC, DSA or DM with several.")
    ] = None,
    config: Annotated[str | None, typer.Option(help="Of a Hub dataset with several.")] = None,
    revision: Annotated[str | None, typer.Option(help="Of a Hub dataset.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a distilled set of others a published folder: to evaluate, verify, compare or publish.

    Read are the files of MTT, TESLA and DATM; of DC, DSA and DM; of RFAD; folders of images as of
    SRe2L, RDED and Minimax; Parquet; and datasets on the Hub. Nothing in a file is run.

    [bold]distill-datasets import images_best.pt --to mtt --like cifar10 --source uoft-cs/cifar10
    --method MTT --paper arXiv:2203.11932[/bold]
    """
    from distill_datasets.layouts.importing import Told, read_names
    from distill_datasets.layouts.importing import import_set as import_folder
    from distill_datasets.layouts.values import mean_std, numbers_of

    run.log_to_stderr(quiet=as_json)
    told = Told(
        name=name,
        source=source,
        method=method,
        paper=paper,
        license=license_name,
        classes=None if classes is None else read_names(classes),
    )
    space = mean_std(like, numbers_of(mean, "--mean"), numbers_of(std, "--std"))
    manifest = import_folder(
        dataset,
        to,
        layout=layout,
        told=told,
        space=space,
        experiment=experiment,
        config=config,
        revision=revision,
        labels=labels,
    )
    if as_json:
        print_json("import", {"folder": str(to), "manifest": manifest})
        return
    console = Console(highlight=False, soft_wrap=True)
    budget, (c, h, w) = manifest["budget"], manifest["input"]["shape"]
    console.print(
        f"imported {budget['examples']:,} images of {c} x {h} x {w} in "
        f"{len(manifest['classes']):,} classes, {budget['bytes']['needed']:,} bytes"
    )
    console.print(f"folder   {to}", markup=False)
    console.print(f"picture  {to / 'poster.png'}", markup=False)
    console.print(f"measure  distill-datasets evaluate {to}", markup=False)
