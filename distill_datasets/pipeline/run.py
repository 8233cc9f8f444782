"""From a recipe to a finished dataset: the stages in order, each done at most once."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from distill_datasets.data.source import open_source
from distill_datasets.distilled import Distilled, Recovered
from distill_datasets.evaluation.evaluate import run_evaluate
from distill_datasets.export.folder import MANIFEST, read_manifest, write_dataset
from distill_datasets.files.artifacts import fingerprint
from distill_datasets.hub.pinned import library_bars
from distill_datasets.networks.network import NetworkSource
from distill_datasets.pipeline.checks import (
    check_output,
    check_outside,
    check_parts,
    check_rows,
    check_rows_of,
    check_runs,
    check_source_of,
    check_teaching,
    open_teaching,
)
from distill_datasets.pipeline.content import digest, publishable
from distill_datasets.recipe import Recipe
from distill_datasets.runtime.draws import draws
from distill_datasets.runtime.processes import Run, Runtime
from distill_datasets.soft_labels.replay import Pictures
from distill_datasets.stages.blocks import run_blocks
from distill_datasets.stages.class_statistics import run_statistics
from distill_datasets.stages.distill import run_distill
from distill_datasets.stages.relabel import RelabelFolder, run_relabel
from distill_datasets.stages.source import LoadedSource, load_source
from distill_datasets.stages.squeeze import SqueezedFolder, find_weights, run_squeeze

logger = logging.getLogger("distill_datasets")


VERSION = 1


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
        DistillError: one of its kinds, with a message for the user.
    """
    runs = Path(runs)
    own = runs / recipe.name
    output = None if output is None else Path(output)
    if output is not None:
        check_output(output, recipe)
    if dataset is None:
        written = {"--runs": own} | ({} if output is None else {"--output": output})
        check_outside(recipe.source.dataset, written)
    with library_bars(shown=not quiet):
        opened = open_source(recipe.source, dataset)
        if output is not None:
            check_source_of(output, opened)
        shape, names = opened.peek()
        check_parts(recipe, shape)
        teaching = open_teaching(recipe)
        check_teaching(teaching, shape, names)
        files = [] if recipe.squeeze is None else find_weights(recipe.squeeze, shape)
    check_runs(own)
    runtime = Runtime(trackers, str(own / "logs"))
    this = Run(recipe.seed, own, runtime, shown=not quiet)
    runtime.accelerator.init_trackers(recipe.name)
    with runtime.reproducible(), library_bars(shown=not quiet):
        beside = replace(this, folder=runs)
        source = load_source(opened, beside)
        check_rows(recipe, source)
        squeezed = None
        if recipe.squeeze is not None:
            taught = source if teaching is None else load_source(teaching, beside)
            squeezed = run_squeeze(recipe.squeeze, taught, this, files=files)
            if recipe.distill.objective.needs.class_statistics:
                squeezed = run_statistics(squeezed, source, this)
        starts_SP = starts(recipe, source, squeezed, runtime.device)
        distilled, folder = distill(recipe, source, squeezed, this)
        relabeled = relabel(recipe, source, distilled, squeezed, this)
        views = None if relabeled is None else relabeled.published()
        content = publishable(recipe, distilled, source, runtime.device, starts_SP, views)
        deciding = [digest(content), source.fingerprint, content.environment]
        deciding += [] if relabeled is None else [relabeled.folder.name]
        # hosts may differ in what `environment` says; all look for the main process's folder
        (measured,) = broadcast_object_list([fingerprint(deciding)])
        identity = fingerprint([VERSION, recipe.sha256(), measured])
        exported = own / f"export-{identity}"
        if runtime.is_main and not (exported / MANIFEST).exists():
            write_dataset(exported, content, None)
        runtime.wait()
        results = run_evaluate(
            recipe.evaluate,
            exported,
            source.real,
            this,
            identity=measured,
            pixels=read_manifest(exported)["budget"]["pixels"],
            attack=content.attack,
            relabel=recipe.relabel,
            squeezed=squeezed,
        )
        finished = output or own / f"dataset-{identity}"
        check_rows_of(finished, exported)
        if runtime.is_main:
            if not (finished / MANIFEST).exists():
                write_dataset(finished, content, results, exported)
            runtime.accelerator.log(
                {f"accuracy/{row['from']}": row["accuracy"]["mean"] for row in results}
            )
        runtime.wait()
    runtime.accelerator.end_training()
    return Outcome(finished, folder / "previews", read_manifest(finished))


def distill(
    recipe: Recipe,
    source: LoadedSource,
    squeezed: SqueezedFolder | None,
    this: Run,
) -> tuple[Distilled | Recovered, Path]:
    """Distill as a whole or block by block, as the objective asks; and the folder of the stage."""
    if not recipe.distill.objective.separable:
        return run_distill(recipe.distill, source, this, squeezed=squeezed)
    recovered = run_blocks(recipe.distill, source, this, squeezed=squeezed)
    return recovered, recovered.folder


def relabel(
    recipe: Recipe,
    source: LoadedSource,
    distilled: Distilled | Recovered,
    squeezed: SqueezedFolder | None,
    this: Run,
) -> RelabelFolder | None:
    """Let the networks of squeeze label views of the 8-bit images; None when nobody asks."""
    if recipe.relabel is None:
        return None
    assert isinstance(distilled, Recovered) and squeezed is not None, "the recipe was checked"
    real = source.real
    pictures = Pictures(
        distilled.images_NCHW, distilled.classes_N, real.normalization.input_space, real.shape.k
    )
    return run_relabel(recipe.relabel, pictures, squeezed, this)


def starts(
    recipe: Recipe, source: LoadedSource, squeezed: SqueezedFolder | None, device: torch.device
) -> Tensor | None:
    """The weights (S, P) that students start from: student s takes row s modulo S.

    One row where all students start from the same; None where they draw their own.
    """
    if recipe.evaluate.start == "fresh":
        return None
    networks = recipe.distill.networks.build(source.real.shape, device, squeezed)
    assert isinstance(networks, NetworkSource), "networks with `has_start` are drawn"
    rows = list[Tensor]()
    for student in range(recipe.evaluate.students):
        start_P = networks.start(student, draws(recipe.seed, "distill"))
        assert start_P is not None, "networks with `has_start` give one"
        rows.append(start_P.cpu())
    one = all(torch.equal(row, rows[0]) for row in rows)
    return torch.stack(rows[:1] if one else rows)
