"""The verb that shares a finished dataset: publish."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from distill_datasets.cli import run
from distill_datasets.errors import ArtifactError


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
) -> None:
    """Put a finished folder on the Hub: one commit, then a tag.

    Log in with [bold]hf auth login[/bold] or set HF_TOKEN. Publishing the same bytes again changes
    nothing.
    """
    from distill_datasets.export.folder import recipe_of
    from distill_datasets.export.publish import publish as publish_folder

    run.log_to_stderr(quiet=False)
    repo = repo or recipe_of(folder)["publish"]["repo"]
    if repo is None:
        raise ArtifactError(
            f"{folder}: its recipe names no repository; say where: "
            f"distill-datasets publish {folder} ORG/NAME"
        )
    published = publish_folder(
        folder, repo, private=private, tag=tag, message=message, allow_license=allow_license
    )
    console = Console(highlight=False, soft_wrap=True)
    state = "already there, nothing changed" if published.unchanged else "published"
    console.print(f"{state}: {published.url}")
    console.print(f'load_dataset("{repo}", revision="{published.tag}")', markup=False)
