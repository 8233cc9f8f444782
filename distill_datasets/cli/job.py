"""The verb that hands a run to the Hub's machines: job."""

import shlex
import subprocess
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from distill_datasets.cli import run
from distill_datasets.cli.as_json import AsJson, print_json
from distill_datasets.errors import PublishError


def job(
    recipe: run.RecipeArgument,
    flavor: Annotated[
        str,
        typer.Option(help="Of the machine: see `hf jobs hardware`.", show_default=False),
    ],
    overrides: run.Overrides = None,
    profile: run.Profile = None,
    method: run.Method = None,
    keep: Annotated[
        str | None,
        typer.Option(
            help="Where the run is kept: a private dataset repository, owner/name, or a bucket, "
            "hf://buckets/owner/name; default: publish.repo with -run.",
            show_default=False,
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=1.0, help="Planned on that machine; for the price and the timeout."),
    ] = None,
    timeout: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Minutes after which the job is stopped; default: twice those planned, at least "
            "60, or 720.",
        ),
    ] = None,
    package: Annotated[
        str | None,
        typer.Option(help="What pip installs there; default: what is installed here."),
    ] = None,
    image: Annotated[str | None, typer.Option(help="A container image with uv in it.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Submit it; it costs money.")] = False,
    runs: Annotated[Path, typer.Option(help="Folder of all runs; scripts lie in its jobs.")] = Path(
        "runs"
    ),
    as_json: AsJson = False,
) -> None:
    """Write a run as one script for the Hub's machines, and say what it would cost.

    Nothing is submitted without [bold]--yes[/bold]; what is printed is what --yes does. The script
    carries the recipe, names its package, machine, timeout and the secret HF_TOKEN, and keeps what
    is finished on the Hub every five minutes and when it is stopped: submit it again and it goes
    on. Where publish.repo is set the finished dataset is published. On a machine with several
    accelerators it starts a process for each.

    [bold]distill-datasets job cifar10/podd --flavor a10g-small --keep me/run --minutes 90[/bold]

    On a cluster of your own the same recipe runs under Slurm:

    [bold]srun --nodes 2 --ntasks-per-node 1 torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend
    c10d --rdzv-endpoint $(scontrol show hostnames $SLURM_JOB_NODELIST | head -n 1):29500 -m
    distill_datasets run recipe.yaml --runs /shared/runs[/bold]

    Hosts share the folder of --runs and nothing else: same path, one file system that all of them
    read and write. Every host has its own copy of recipe and source, its own caches (HF_HOME) and
    temporary files; --output is written by the first process alone, where its host sees it.
    """
    loaded = run.load(recipe, overrides, profile, False, method)
    from distill_datasets.planning.costs import time_in_words
    from distill_datasets.planning.job import IMAGE, job_of

    made = job_of(
        loaded,
        flavor,
        runs / "jobs",
        keep=keep,
        package=package,
        image=image or IMAGE,
        minutes=minutes,
        timeout_minutes=timeout,
    )
    if as_json:
        print_json("job", {**made.as_json(), "submitted": yes})
    else:
        console = Console(highlight=False, soft_wrap=True)
        planned = "not planned; --minutes says how long it may take"
        if minutes is not None:
            planned = f"about {time_in_words(60 * minutes)}: {made.price(minutes)}"
        console.print(f"machine  {flavor}", markup=False)
        console.print(f"time     {planned}", markup=False)
        console.print(
            f"timeout  {time_in_words(60 * made.timeout_minutes)}, at most: "
            f"{made.price(made.timeout_minutes)}",
            markup=False,
        )
        console.print("secret   HF_TOKEN, of `hf auth login`", markup=False)
        console.print(f"kept in  {made.keep}", markup=False)
        console.print(f"publish  {made.publish or 'nowhere; set publish.repo'}", markup=False)
        console.print(f"script   {made.script}", markup=False)
        console.print(f"command  {shlex.join(made.command)}", markup=False)
    if not yes:
        if not as_json:
            console.print("\nnothing was submitted; add --yes, or run that command", markup=False)
        return
    try:
        subprocess.run(made.command, check=True)
    except FileNotFoundError as error:
        raise PublishError(
            "hf: not found; install huggingface_hub 1.0 or later, which brings it"
        ) from error
    except subprocess.CalledProcessError as error:
        raise PublishError(
            f"the Hub did not take the job: `{shlex.join(made.command)}` ended with "
            f"{error.returncode}; what it printed says why"
        ) from error
