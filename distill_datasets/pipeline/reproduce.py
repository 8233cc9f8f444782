"""Whether a published dataset can be made again: its own recipe is run, and both are compared.

What must agree is the published bytes. Where they do not, as on another kind of processor or with
another torch, the accuracies of the same students decide whether the result is the same one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill_datasets.data.opening import EMBEDDED, locate
from distill_datasets.errors import ArtifactError, DataError
from distill_datasets.export.folder import MANIFEST, read_manifest, recipe_of
from distill_datasets.pipeline.content import environment
from distill_datasets.pipeline.run import run
from distill_datasets.recipe import Recipe, recipe_from
from distill_datasets.runtime.processes import Runtime
from distill_datasets.training.intervals import Interval, paired

logger = logging.getLogger("distill_datasets")

REPRODUCED = "reproduced"
SAYING = frozenset({"README.md", "results.json", "recipe.yaml", "student.yaml", "poster.png"})
"""Files that say something about the rows, and are none of them."""


@dataclass(frozen=True)
class Reproduction:
    """A published folder beside the one that its recipe made now.

    Attributes:
        published: the folder that was given.
        made: the folder that was made.
        environment: what differs between then and now: then, and now.
        files: every file of both: same, differs, only published, only made.
        rows: every result of both: then, now, and the interval of now minus then.
    """

    published: Path
    made: Path
    environment: dict[str, tuple[Any, Any]]
    files: dict[str, str]
    rows: dict[str, tuple[dict[str, Any], dict[str, Any], Interval]] = field(default_factory=dict)

    @property
    def rows_agree(self) -> bool:
        """Whether all rows are the same bytes."""
        rows = [path for path in self.files if not _says(path)]
        return all(self.files[path] == "same" for path in rows)

    @property
    def all_agree(self) -> bool:
        """Whether all files are the same bytes."""
        return set(self.files.values()) <= {"same"}

    @property
    def accuracy_agrees(self) -> bool:
        """Whether no accuracy differs beyond its interval."""
        return all(row[2].verdict not in ("better", "worse") for row in self.rows.values())

    def verdict(self) -> str:
        """What was found, a sentence."""
        if self.all_agree:
            return f"reproduced to the bit: all {len(self.files)} files are the same bytes"
        differing = sorted(path for path, state in self.files.items() if state != "same")
        if self.rows_agree:
            return (
                "reproduced: all rows are the same bytes; files that say something about them "
                f"differ: {', '.join(differing)}"
            )
        if not self.rows:
            return "the bytes differ, and there are no results in common to compare"
        agree = "agree within their intervals" if self.accuracy_agrees else "do not agree"
        return f"the bytes differ ({', '.join(differing[:4])}), and the accuracies {agree}"

    def as_json(self) -> dict[str, Any]:
        """Everything, for `--json`."""
        return {
            "published": str(self.published),
            "made": str(self.made),
            "environment": {
                name: {"then": then, "now": now} for name, (then, now) in self.environment.items()
            },
            "files": self.files,
            "rows": {
                name: {"then": then, "now": now, "difference": difference.as_json()}
                for name, (then, now, difference) in self.rows.items()
            },
            "bits_agree": self.all_agree,
            "rows_agree": self.rows_agree,
            "accuracy_agrees": self.accuracy_agrees,
            "verdict": self.verdict(),
        }


def reproduce(
    folder: Path,
    runs: Path,
    *,
    dataset: str | None = None,
    overrides: Iterable[str] = (),
    quiet: bool = False,
) -> Reproduction:
    """Run the recipe of a published folder in a runs folder of its own, and compare.

    Args:
        folder: what a run wrote.
        runs: the folder of all runs; the new one lies below it, and a later call goes on there.
        dataset: the source, where it has moved.
        overrides: `section.key=value` each; what they change cannot agree.
        quiet: no progress bars.

    Raises:
        ArtifactError: the folder was imported, and has no recipe.
        DataError: its source is not here.
    """
    recipe = published_recipe(folder, dataset, overrides)
    differing = differences(read_manifest(folder)["environment"], environment(Runtime().device))
    for name, (then, now) in differing.items():
        logger.warning("environment: %s was %s and is %s here: bits may differ", name, then, now)
    own = runs / REPRODUCED / read_manifest(folder)["recipe_sha256"][:12]
    outcome = run(recipe, runs=own, quiet=quiet)
    return compared(folder, outcome.folder, differing)


def published_recipe(folder: Path, dataset: str | None, overrides: Iterable[str]) -> Recipe:
    """The recipe of a folder, whose source is where it can be read here.

    Raises:
        ArtifactError: the folder was imported, or made of others.
        DataError: the source is not here.
    """
    manifest = read_manifest(folder)
    if "imported" in manifest:
        raise ArtifactError(
            f"{folder}: others made it, and no recipe came with it; `evaluate` and `verify` need "
            "none"
        )
    if "derived" in manifest:
        names = ", ".join(each["target"] for each in manifest["derived"]["of"])
        raise ArtifactError(
            f"{folder}: it was made of finished sets ({names}) by {manifest['derived']['verb']}; "
            "reproduce those"
        )
    content = recipe_of(folder)
    source, said = content["source"], manifest["source"]
    if dataset is not None:
        source["dataset"] = dataset
    elif said["revision"] is not None and source["revision"] is None:
        # the branch may have moved since
        source["revision"] = said["revision"]
    elif said["revision"] is None and source["dataset"] not in EMBEDDED:
        _check_here(folder, source["dataset"])
    return recipe_from(content, overrides, title=str(folder / "recipe.yaml"))


def _check_here(folder: Path, dataset: str) -> None:
    try:
        there = locate(dataset) is not None
    except DataError:
        there = False
    if not there:
        raise DataError(
            f"{folder}: its source {dataset!r} lay on the machine that made it and is not here "
            "(published folders keep no paths); name it with --source"
        )


def differences(then: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What of an environment is not as it was."""
    names = [*then, *(name for name in now if name not in then)]
    return {
        name: (then.get(name), now.get(name)) for name in names if then.get(name) != now.get(name)
    }


def compared(published: Path, made: Path, environment: dict[str, tuple[Any, Any]]) -> Reproduction:
    """Both folders, file by file and result by result."""
    then, now = read_manifest(published), read_manifest(made)
    ours, theirs = (
        {file["path"]: file["sha256"] for file in each["files"]} for each in (now, then)
    )
    files = {}
    for path in sorted(ours.keys() | theirs.keys()):
        if path in ours and path in theirs:
            files[path] = "same" if ours[path] == theirs[path] else "differs"
        else:
            files[path] = "only made" if path in ours else "only published"
    earlier = {row["from"]: row for row in then["results"] or []}
    later = {row["from"]: row for row in now["results"] or []}
    rows = {
        name: (
            earlier[name]["accuracy"],
            later[name]["accuracy"],
            paired(_by_seed(later[name]), _by_seed(earlier[name])),
        )
        for name in earlier
        if name in later
    }
    return Reproduction(published, made, environment, files, rows)


def _by_seed(row: dict[str, Any]) -> dict[int, float]:
    return {run["seed"]: float(run["accuracy"]) for run in row["runs"]}


def _says(path: str) -> bool:
    """Whether a file says something about the rows, or holds some."""
    return path in SAYING or path == MANIFEST or path.startswith("recipe/")
