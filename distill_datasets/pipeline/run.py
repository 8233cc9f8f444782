"""From a recipe to a finished dataset: the stages in order, each done at most once."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from distill_datasets.distilled import Distilled, DistilledImages
from distill_datasets.evaluation.evaluate import run_evaluate
from distill_datasets.export.content import Content, sibling_of
from distill_datasets.export.folder import MANIFEST, read_manifest, verify, write_dataset
from distill_datasets.files.artifacts import (
    done,
    fingerprint,
    mark_done,
    set_aside,
    sha256_of,
    told_when_full,
)
from distill_datasets.hub.pinned import library_bars
from distill_datasets.models.backbones import backbones_of
from distill_datasets.pipeline.checks import (
    Inputs,
    check_inputs,
    check_results_of,
    check_rows,
    check_rows_of,
)
from distill_datasets.pipeline.content import digest, publishable, student_starts
from distill_datasets.recipe import Recipe
from distill_datasets.runtime.locks import one_run
from distill_datasets.runtime.processes import Run, Runtime
from distill_datasets.runtime.stopping import Stop
from distill_datasets.selection.selection import privacy
from distill_datasets.soft_labels.replay import Pictures
from distill_datasets.stages.blocks import run_blocks
from distill_datasets.stages.class_statistics import run_statistics
from distill_datasets.stages.distill import run_distill
from distill_datasets.stages.features import run_features
from distill_datasets.stages.generator import run_generator
from distill_datasets.stages.relabel import RelabelFolder, run_relabel
from distill_datasets.stages.source import LoadedSource, load_source
from distill_datasets.stages.squeeze import SqueezedFolder, run_squeeze

logger = logging.getLogger("distill_datasets")


VERSION = 1
DISTILLING = frozenset({"seed", "source", "squeeze", "generator", "distill"})
"""What of a recipe decides its distilled images."""


@dataclass(frozen=True)
class Outcome:
    """A finished dataset: where it is, and what `distill.json` says of it."""

    folder: Path
    previews: Path
    manifest: dict[str, Any]

    @property
    def results(self) -> list[dict[str, Any]]:
        """One row per baseline, as in `results.json`."""
        return list(self.manifest["results"])


def run(
    recipe: Recipe,
    *,
    runs: str | Path = "runs",
    output: str | Path | None = None,
    quiet: bool = False,
    trackers: list[str] | None = None,
    dataset: Any = None,  # noqa: ANN401
) -> Outcome:
    """Do everything a recipe says; what an earlier run has finished is not done again.

    Args:
        recipe: what to do.
        runs: the folder that holds all runs; stages lie under the recipe's name.
        output: where the finished dataset is put, a new or empty folder; by default beside the
            stages. A folder that already holds the dataset of this recipe is left as it is.
        quiet: no progress bars.
        trackers: names of Accelerate's trackers that log the run, for example `tensorboard`.
        dataset: a `datasets.Dataset` or `DatasetDict` to read instead of `source.dataset`.

    Returns:
        The folder of the finished dataset and its manifest.

    Raises:
        DistillError: one of its kinds, with a message for the user; `Interrupted` where Ctrl-C,
            SIGTERM or SIGHUP has ended the run, which has saved what it had.
    """
    runs, output = Path(runs), None if output is None else Path(output)
    own = runs / recipe.name
    stop = Stop()
    with library_bars(shown=not quiet):
        inputs = check_inputs(recipe, own, output, dataset)
    shown = privacy(recipe.distill)
    if shown is not None:
        logger.info("privacy: %s", shown)
    runtime = Runtime(trackers, str(own / "logs"), stop)
    this = Run(recipe.seed, own, runtime, shown=not quiet)
    runtime.accelerator.init_trackers(recipe.name)
    with (
        stop.listening(),
        told_when_full(),
        runtime.reproducible(),
        library_bars(shown=not quiet),
    ):
        source = load_source(inputs.source, this.beside)
        check_rows(recipe, source)
        run_features(backbones_of(recipe), source, this.beside)
        run_generator(recipe.generator, source, this.beside)
        with one_run("distill", lock_of(recipe, own, DISTILLING), runtime):
            teachers = squeeze(recipe, inputs, source, this)
            distilled, stage = distill(recipe, source, teachers, this)
        with one_run("evaluate", lock_of(recipe, own), runtime):
            relabeled = relabel(recipe, source, distilled, teachers, this)
            exported = export(recipe, source, teachers, distilled, relabeled, this)
            results = evaluate(recipe, source, teachers, exported, this)
            finished = finish(exported, results, output, this)
    # another host may not see the folder: the main process has written it and reads it
    (manifest,) = broadcast_object_list([read_manifest(finished) if runtime.is_main else None])
    runtime.accelerator.end_training()
    return Outcome(finished, stage / "previews", manifest)


def lock_of(recipe: Recipe, own: Path, sections: frozenset[str] | None = None) -> Path:
    """The lock of runs that do the same in a folder: by the whole recipe, or by some sections."""
    resolved = recipe.resolved()
    deciding = {name: resolved[name] for name in sorted(sections or resolved) if name in resolved}
    return own / f".lock-{fingerprint(deciding)}"


def squeeze(
    recipe: Recipe, inputs: Inputs, source: LoadedSource, this: Run
) -> SqueezedFolder | None:
    """Train the teachers, on `squeeze.source` where it is given; None when nobody asks for any."""
    if recipe.squeeze is None:
        return None
    taught = source if inputs.teaching is None else load_source(inputs.teaching, this.beside)
    squeezed = run_squeeze(recipe.squeeze, taught, this, files=inputs.weights)
    if recipe.distill.objective.needs.class_statistics:
        return run_statistics(squeezed, source, this)
    return squeezed


def distill(
    recipe: Recipe,
    source: LoadedSource,
    squeezed: SqueezedFolder | None,
    this: Run,
) -> tuple[Distilled | DistilledImages, Path]:
    """Distill as a whole or block by block, as the objective asks; and the folder of the stage."""
    if not recipe.distill.objective.separable:
        return run_distill(recipe.distill, source, this, squeezed=squeezed)
    recovered = run_blocks(recipe.distill, source, this, squeezed=squeezed)
    return recovered, recovered.folder


def relabel(
    recipe: Recipe,
    source: LoadedSource,
    distilled: Distilled | DistilledImages,
    squeezed: SqueezedFolder | None,
    this: Run,
) -> RelabelFolder | None:
    """Let the networks of squeeze label views of the 8-bit images; None when nobody asks."""
    if recipe.relabel is None:
        return None
    assert isinstance(distilled, DistilledImages) and squeezed is not None, "the recipe was checked"
    real = source.real
    pictures = Pictures(
        distilled.images_NCHW, distilled.classes_N, real.normalization.input_space, real.shape.k
    )
    return run_relabel(recipe.relabel, pictures, squeezed, this)


@dataclass(frozen=True)
class Exported:
    """What was distilled, as a folder that is not measured yet.

    Attributes:
        folder: where it lies.
        content: what is in it.
        measured: a fingerprint of rows, source and packages, which decide the results.
        identity: a fingerprint of these and of the recipe.
    """

    folder: Path
    content: Content
    measured: str
    identity: str


def export(
    recipe: Recipe,
    source: LoadedSource,
    teachers: SqueezedFolder | None,
    distilled: Distilled | DistilledImages,
    relabeled: RelabelFolder | None,
    this: Run,
) -> Exported:
    """Write what was distilled in the published layout, without results."""
    starts_SP = student_starts(recipe, source, teachers, this.runtime.device)
    views = None if relabeled is None else relabeled.published()
    content = publishable(recipe, distilled, source, this.runtime.device, starts_SP, views)
    deciding = [digest(content), source.fingerprint, content.environment]
    deciding += [] if relabeled is None else [relabeled.folder.name]
    # hosts may differ in what `environment` says; all look for the main process's folder
    (measured,) = broadcast_object_list([fingerprint(deciding)])
    identity = fingerprint([VERSION, recipe.sha256(), measured])
    folder = this.folder / f"export-{identity}"
    if this.runtime.is_main and not holds_export(folder):
        write_dataset(folder, content, None)
        mark_done(folder, {"manifests": manifests(folder)})
    this.runtime.wait()
    return Exported(folder, content, measured, identity)


def holds_export(folder: Path) -> bool:
    """Whether a dataset without results lies there as it was written; a damaged one is set aside.

    It names its files and their hashes itself, and beside them lies the hash of what names them.
    """
    if not folder.exists():
        return False
    said, problems = done(folder), ["distill.json: missing"]
    if (folder / MANIFEST).exists():
        found = manifests(folder)
        problems = ["distill.json: sha256 differs"]
        # a run that was killed before it could say so has written all the same
        if said is None or said["manifests"] == found:
            problems = [problem for place in with_sibling(folder) for problem in verify(place)]
    if problems:
        set_aside(folder, f"{folder}: {'; '.join(problems[:3])}")
        return False
    if said is None:
        mark_done(folder, {"manifests": found})
    return True


def manifests(folder: Path) -> list[str]:
    """The sha256 of the manifest of a dataset, and of that of its label shards."""
    return [sha256_of(place / MANIFEST) for place in with_sibling(folder)]


def with_sibling(folder: Path) -> list[Path]:
    """The folder of a dataset, and that of its label shards where it has some."""
    return [folder, *(place for place in [sibling_of(folder)] if (place / MANIFEST).exists())]


def evaluate(
    recipe: Recipe,
    source: LoadedSource,
    teachers: SqueezedFolder | None,
    exported: Exported,
    this: Run,
) -> list[dict[str, Any]]:
    """Train students on what `load_dataset` returns of the exported folder: rows of results."""
    return run_evaluate(
        recipe.evaluate,
        exported.folder,
        source.real,
        this,
        identity=exported.measured,
        pixels=read_manifest(exported.folder)["budget"]["pixels"],
        attack=exported.content.attack,
        relabel=recipe.relabel,
        squeezed=teachers,
    )


def finish(
    exported: Exported, results: list[dict[str, Any]], output: Path | None, this: Run
) -> Path:
    """Write the dataset with its results; a folder that holds them already is left as it is."""
    finished = output or this.folder / f"dataset-{exported.identity}"
    check_rows_of(finished, exported.folder)
    check_results_of(finished, results)
    if this.runtime.is_main:
        if not (finished / MANIFEST).exists():
            write_dataset(finished, exported.content, results, exported.folder)
        this.runtime.accelerator.log(
            {f"accuracy/{row['from']}": row["accuracy"]["mean"] for row in results}
        )
    this.runtime.wait()
    return finished
