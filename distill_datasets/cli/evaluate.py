"""The verbs that judge a distilled set, of whatever origin: evaluate, audit, verify, reproduce.

Like those of the recipe, none imports torch or datasets before it needs them.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from distill_datasets.cli import run
from distill_datasets.cli.as_json import AsJson, print_json
from distill_datasets.cli.lazy_imports import uncollected
from distill_datasets.errors import Interrupted, RecipeError, did_you_mean
from distill_datasets.runtime.launch import is_main_process, processes_to_start

if TYPE_CHECKING:
    from collections.abc import Callable

    from distill_datasets.evaluation.audit.findings import Finding
    from distill_datasets.pipeline.judging import RealImages
    from distill_datasets.pipeline.reproduce import Reproduction

TargetArgument = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="A published folder, a run, a Hub id (owner/name@revision), or a set to import.",
        show_default=False,
    ),
]
RunsOption = Annotated[
    Path, typer.Option("--runs", "--output", help="Folder of all runs; what is done is kept here.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SECTION.KEY=VALUE]...",
        help="Of the source, for example source.test_split=val, or of the protocol, for example "
        "standard.network=resnet18.",
        show_default=False,
    ),
]
SourceOption = Annotated[
    str | None,
    typer.Option("--source", help="The real images, where the target does not tell: id or path."),
]
RecipeOption = Annotated[
    Path | None, typer.Option("--recipe", help="Or a recipe whose source section reads them.")
]
Processes = Annotated[
    int | None, typer.Option(help="Processes on this machine that share the work.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, only the result.")]
RUNS = Path("runs")


def evaluate(
    target: TargetArgument,
    overrides: Overrides = None,
    source: SourceOption = None,
    recipe: RecipeOption = None,
    level: Annotated[
        str | None, typer.Option(help="quick (the default): minutes on two cores; full: hours.")
    ] = None,
    students: Annotated[int | None, typer.Option(min=1, help="Of every row.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Of every student.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all students.")] = 0,
    use: Annotated[
        str | None,
        typer.Option(
            help="Instead: replay, as the memory of a network that learns classes in tasks; or "
            "search, to put 24 networks in order."
        ),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(
            "--to", help="New folder for a set that no run made, with its results, to publish."
        ),
    ] = None,
    processes: Processes = None,
    runs: RunsOption = RUNS,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure any distilled set by the standard protocol, beside real images in its regimes.

    Every row has the same steps and trials, chosen on held-out training images; accuracies are
    those of the last step, with 95 % intervals over students, paired by seed.

    After an interruption the same command goes on.

    [bold]distill-datasets evaluate owner/name@v1[/bold]

    [bold]distill-datasets evaluate syn_data/ --source uoft-cs/cifar10 --students 5[/bold]
    """
    if use is not None:
        _check_use(use, overrides or [], level, to)
    given = {"level": level, "students": students, "steps": steps}
    standard = [f"standard.{key}={value}" for key, value in given.items() if value is not None]
    images, settings = _sorted_out([*(overrides or []), *standard], source, recipe)
    if _shared(processes):
        return
    run.log_to_stderr(quiet or as_json)
    with uncollected():
        import datasets  # noqa: F401 - which reading a set imports

        from distill_datasets.evaluation.standard import run_standard
        from distill_datasets.layouts.measured import check_unmeasured, write_measured
        from distill_datasets.pipeline.judging import judging, standard_from
        from distill_datasets.planning.construction import construction

    numbers = {"students": students, "steps": steps}
    asked = standard_from(settings)
    try:
        with judging(target, runs, images, seed=seed, quiet=quiet or as_json) as judged:
            if use is not None:
                chosen = {name: value for name, value in numbers.items() if value is not None}
                found = _use(use)(judged.folder, judged.real, judged.run, **chosen)
            else:
                if to is not None:
                    check_unmeasured(judged.folder, to)
                judged.see(asked)
                shape, rows = judged.real.shape, len(judged.real.train.labels_N)
                made = construction(judged.folder, shape, rows)
                found = run_standard(judged.folder, judged.real, judged.run, asked, made)
    except KeyboardInterrupt as error:
        raise Interrupted("the same command goes on from the students that are done") from error
    if is_main_process():
        if to is not None:
            write_measured(judged.folder, found, to)
        if as_json:
            print_json("evaluate", found)
        elif use is not None:
            _print_use(found)
        else:
            _print_standard(found)
            if to is not None:
                typer.echo(f"written to {to}; share it: distill-datasets publish {to} ORG/NAME")


def audit(
    target: TargetArgument,
    overrides: Overrides = None,
    source: SourceOption = None,
    recipe: RecipeOption = None,
    tiers: Annotated[
        str | None,
        typer.Option(
            help="T0: files; T1: beside the source; T2: students; T3: privacy; default: T0,T1,T2,T3"
            ", and T0 alone without a source.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all draws.")] = 0,
    processes: Processes = None,
    runs: RunsOption = RUNS,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Look for faults, leaks and backdoors in anybody's distilled set; nothing in it is run.

    What is found stands beside the same number of clean sets of its shape, and beside what could be
    innocent. What is not found may be there all the same.
    """
    images, _ = _sorted_out(overrides or [], source, recipe, rooms=("source",))
    if _shared(processes):
        return
    run.log_to_stderr(quiet or as_json)
    from distill_datasets.evaluation.audit.audit import audit as audit_folder
    from distill_datasets.evaluation.audit.findings import TIERS
    from distill_datasets.layouts.target import resolve_target
    from distill_datasets.pipeline.judging import files_alone, judging

    chosen = TIERS if tiers is None else tuple(each.strip() for each in tiers.split(","))
    try:
        if set(chosen) == {"T0"}:
            folder = resolve_target(target, runs, source=source, check=False)
            findings = audit_folder(folder, None, files_alone(folder, runs, seed), chosen)
        else:
            with judging(target, runs, images, seed=seed, quiet=quiet or as_json) as judged:
                folder = judged.folder
                findings = audit_folder(folder, judged.real, judged.run, chosen)
    except KeyboardInterrupt as error:
        raise Interrupted("the same command goes on from what is done") from error
    if is_main_process():
        if as_json:
            listed = [each.as_json() for each in findings]
            print_json("audit", {"folder": str(folder), "findings": listed})
        else:
            _print_findings(findings)


def reproduce(
    target: TargetArgument,
    overrides: Overrides = None,
    source: SourceOption = None,
    processes: Processes = None,
    runs: RunsOption = RUNS,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run the recipe that lies in a dataset again, and say whether bytes, then accuracies, agree.

    The exit code is 1 where the bytes differ and an accuracy differs beyond its 95 % interval.
    """
    if _shared(processes):
        return
    run.log_to_stderr(quiet or as_json)
    from distill_datasets.layouts.target import resolve_target
    from distill_datasets.pipeline.reproduce import reproduce as run_again

    try:
        folder = resolve_target(target, runs, source=source)
        found = run_again(
            folder, runs, dataset=source, overrides=overrides or [], quiet=quiet or as_json
        )
    except KeyboardInterrupt as error:
        raise Interrupted("the same command goes on where it stopped") from error
    if is_main_process():
        if as_json:
            print_json("reproduce", found.as_json())
        else:
            _print_reproduction(found)
    if not found.rows_agree and not found.accuracy_agrees:
        raise typer.Exit(1)


def verify(target: TargetArgument, runs: RunsOption = RUNS, as_json: AsJson = False) -> None:
    """Look whether a dataset is what it says: hashes, copies of numbers, every row and image.

    Prints a line for each look; the exit code is 1 where one of them failed. Of a dataset on the
    Hub the files of one commit are downloaded and looked at.
    """
    from distill_datasets.export.verification import looks
    from distill_datasets.layouts.target import resolve_target

    run.log_to_stderr(quiet=as_json)
    folder = resolve_target(target, runs, check=False)
    found = []
    console = Console(highlight=False, soft_wrap=True)
    for check in looks(folder):
        found.append(check)
        if not as_json:
            mark = "[green]ok[/green]    " if check.passed else "[bold red]FAILED[/bold red]"
            console.print(f"{mark} {check.name}: {escape(check.words)}")
    passed = all(check.passed for check in found)
    if as_json:
        said = {
            "folder": str(folder),
            "passed": passed,
            "checks": [check._asdict() for check in found],
        }
        print_json("verify", said)
    if not passed:
        raise typer.Exit(1)


def _sorted_out(
    overrides: list[str],
    source: str | None,
    recipe: Path | None,
    rooms: tuple[str, ...] = ("source", "standard"),
) -> tuple["RealImages", list[str]]:
    """Overrides of the source with what else tells of it, and those of the protocol."""
    from distill_datasets.pipeline.judging import RealImages

    for override in overrides:
        if override.partition("=")[0].partition(".")[0] not in rooms or "=" not in override:
            valid = " or ".join(f"{room}.key=value" for room in rooms)
            raise RecipeError(f"{override!r}: expected {valid}")
    of_source = tuple(each for each in overrides if each.startswith("source."))
    rest = [each.removeprefix("standard.") for each in overrides if each not in of_source]
    return RealImages(source, recipe, of_source), rest


USES = ("replay", "search")


def _check_use(use: str, overrides: list[str], level: str | None, to: Path | None) -> None:
    """Refuse what a use does not take."""
    if use not in USES:
        raise RecipeError(f"--use: no use {use!r}; {did_you_mean(use, USES)}")
    if (
        level is not None
        or to is not None
        or any(not one.startswith("source.") for one in overrides)
    ):
        raise RecipeError(
            f"--use {use}: takes --students, --steps, --seed and source.key=value; leave --level, "
            "--to and standard.key=value out"
        )


def _use(name: str) -> "Callable[..., dict[str, Any]]":
    from distill_datasets.evaluation.uses.replay import run_replay
    from distill_datasets.evaluation.uses.search import run_search

    return run_replay if name == "replay" else run_search


def _shared(processes: int | None) -> bool:
    """Whether several processes were started, and have done what this one was asked for."""
    count = processes_to_start(processes)
    if count > 1:
        run.run_in(count)
    return count > 1


def _print_standard(found: dict[str, Any]) -> None:
    """The rows with their intervals, what they are minus the published ones, and the sentence."""
    console = Console(highlight=False, soft_wrap=True)
    apart = {each["against"]: each for each in found["differences"]}
    for regime in found["target"]["regimes"]:
        columns = (f"labels {regime}", "accuracy, %", "published minus it", "bytes")
        table = Table(*columns, box=None, header_style="bold")
        for row in found["rows"]:
            difference = apart.get(row["key"])
            if row["regime"] == regime:
                table.add_row(
                    escape(row["words"]),
                    _percent(row["accuracy"]),
                    difference and f"{_percent(difference, '+')} {difference['verdict']}",
                    f"{row['bytes']['total']:,}",
                )
        console.print(table)
        console.print()
    protocol = found["protocol"]
    changed = ", changed: " + ", ".join(protocol["changed"]) if protocol["changed"] else ""
    console.print(
        f"{protocol['name']} ({protocol['level']}{changed}): {protocol['students']} students of "
        f"{protocol['steps']:,} steps, {protocol['network']}; intervals are 95 %",
        markup=False,
    )
    for line in (found.get("statement"), *found.get("missing", [])):
        if line:
            console.print(line, markup=False)


def _print_use(found: dict[str, Any]) -> None:
    """What a set is worth as a memory, or in a search, beside what stands for it."""
    console = Console(highlight=False, soft_wrap=True)
    apart = {each["against"]: _percent(each, "+") for each in found["differences"]}
    kept = f"{found['bytes']:,} bytes; {found['real_per_class']} real images of each class"
    if found["use"] == "replay":
        table = Table("memory", "mean, %", "at the end, %", "published minus it", box=None)
        for row in found["rows"]:
            cells = (_percent(row["average"]), _percent(row["final"]), apart.get(row["memory"]))
            table.add_row(row["words"], *cells)
        said = f"{found['tasks']} tasks of {found['steps']} steps, accuracy on the classes seen"
    else:
        table = Table("trained on", "Spearman", "Kendall", "regret, %", "best of 3, %", box=None)
        for row in found["rows"]:
            table.add_row(
                row["words"],
                _correlation(row["spearman"]),
                _correlation(row["kendall"]),
                f"{100 * row['regret']:.1f}",
                f"{100 * row['regret_of_three']:.1f}",
            )
        said = f"{len(found['networks'])} networks, truth after {found['whole_steps']} steps"
    console.print(table)
    console.print(
        f"\n{said}, {found['students']} students; {kept}; intervals are 95 %", markup=False
    )


def _correlation(interval: dict[str, Any]) -> str:
    half = "" if interval["half"] is None else f" ± {interval['half']:.2f}"
    return f"{interval['mean']:.2f}{half}"


def _percent(interval: dict[str, Any], sign: str = "") -> str:
    half = interval["half"]
    width = "" if half is None else f" ± {100 * half:.1f}"
    return f"{100 * interval['mean']:{sign}.1f}{width}"


def _print_findings(findings: "list[Finding]") -> None:
    from distill_datasets.evaluation.audit.findings import closing

    console = Console(highlight=False, soft_wrap=True)
    colors = {"found": "bold red", "not found": "green", "not looked at": "dim"}
    for finding in findings:
        color = colors[finding.state]
        console.print(
            f"{finding.check.tier} [{color}]{finding.check.name}[/{color}]: "
            f"{escape(finding.in_words())}"
        )
        if finding.state == "found":
            if finding.where:
                console.print(f"   where: {', '.join(finding.where[:10])}", markup=False)
            console.print(f"   may be innocent: {finding.check.innocent}", markup=False)
    console.print(f"\n{closing(findings)}", markup=False)


def _print_reproduction(found: "Reproduction") -> None:
    console = Console(highlight=False, soft_wrap=True)
    for name, (then, now) in found.environment.items():
        console.print(f"then and now: {name} {then}, {now}", markup=False)
    for path, state in found.files.items():
        color = "green" if state == "same" else "yellow"
        console.print(f"[{color}]{state}[/{color}] {escape(path)}")
    table = Table("trained on", "then", "now", "now minus then", box=None, header_style="bold")
    for name, (then, now, difference) in found.rows.items():
        cells = (f"{100 * each['mean']:.1f} %" for each in (then, now))
        table.add_row(name, *cells, _percent(difference.as_json(), "+"))
    console.print(table)
    console.print(f"made    {found.made}", markup=False)
    console.print(f"\n{found.verdict()}", markup=False)
