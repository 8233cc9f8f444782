"""From a recipe to a finished dataset: the stages in order, each done at most once.

Everything that can be refused is refused before the first stage that takes long.
"""

import json
import logging
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from distill_datasets.artifacts import fingerprint
from distill_datasets.contents import digest, publishable
from distill_datasets.data.opening import library_bars, locate
from distill_datasets.data.provenance import Provenance
from distill_datasets.data.source import peek, resolve
from distill_datasets.distilled import Recovered
from distill_datasets.distilled_modules import Distilled
from distill_datasets.errors import ArtifactError, RecipeError
from distill_datasets.networks.teachers import check_networks
from distill_datasets.networks.voters import check_voters
from distill_datasets.published import sibling_of
from distill_datasets.recipe import Recipe
from distill_datasets.runtime import Runtime, draws
from distill_datasets.stages.blocks import run_blocks
from distill_datasets.stages.distill import run_distill
from distill_datasets.stages.evaluate import run_evaluate
from distill_datasets.stages.export import MANIFEST, check_writable, read_manifest, write_dataset
from distill_datasets.stages.label_shards import check_shards
from distill_datasets.stages.relabel import Relabeled, run_relabel
from distill_datasets.stages.source import LoadedSource, load_source
from distill_datasets.stages.squeeze import SqueezedFolder, find_weights, run_squeeze
from distill_datasets.stages.statistics import run_statistics
from distill_datasets.types import Selection, Shape

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
        """One row per contestant, as in `results.json`."""
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
        provenance = resolve(recipe.source, dataset)
        if output is not None:
            check_source_of(output, provenance)
        shape, names = peek(recipe.source, dataset)
        check_parts(recipe, shape)
        check_teaching(recipe, shape, names)
        files = [] if recipe.squeeze is None else find_weights(recipe.squeeze, shape)
    check_runs(own)
    runtime = Runtime(trackers, str(own / "logs"))
    runtime.accelerator.init_trackers(recipe.name)
    with runtime.reproducible(), library_bars(shown=not quiet):
        load = partial(load_source, seed=recipe.seed, runs=runs, runtime=runtime, quiet=quiet)
        source = load(recipe.source, provenance, dataset=dataset)
        check_rows(recipe, source)
        squeezed = None
        if recipe.squeeze is not None:
            teaching = source
            if recipe.squeeze.source is not None:
                teaching = load(recipe.squeeze.source, resolve(recipe.squeeze.source))
            squeezed = run_squeeze(
                recipe.squeeze, teaching, seed=recipe.seed, runs=own, runtime=runtime, quiet=quiet,
                files=files,
            )  # fmt: skip
            if recipe.distill.objective.needs_class_statistics:
                squeezed = run_statistics(squeezed, source, runs=own, runtime=runtime, quiet=quiet)
        starts_SP = starts(recipe, source, squeezed, runtime.device)
        distilled, folder = distill(
            recipe, source, squeezed, runs=own, runtime=runtime, quiet=quiet
        )
        relabeled = relabel(
            recipe, source, distilled, squeezed, runs=own, runtime=runtime, quiet=quiet
        )
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
            identity=measured,
            pixels=read_manifest(exported)["budget"]["pixels"],
            seed=recipe.seed,
            runs=own,
            runtime=runtime,
            quiet=quiet,
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
    *,
    runs: Path,
    runtime: Runtime,
    quiet: bool,
) -> tuple[Distilled | Recovered, Path]:
    """Distill as a whole or block by block, as the objective asks; and the folder of the stage."""
    if not recipe.distill.objective.separable:
        return run_distill(
            recipe.distill, source, seed=recipe.seed, runs=runs, runtime=runtime, quiet=quiet,
            squeezed=squeezed,
        )  # fmt: skip
    recovered = run_blocks(
        recipe.distill, source, seed=recipe.seed, runs=runs, runtime=runtime, quiet=quiet,
        squeezed=squeezed,
    )  # fmt: skip
    return recovered, recovered.folder


def relabel(
    recipe: Recipe,
    source: LoadedSource,
    distilled: Distilled | Recovered,
    squeezed: SqueezedFolder | None,
    *,
    runs: Path,
    runtime: Runtime,
    quiet: bool,
) -> Relabeled | None:
    """Let the networks of squeeze label views of the 8-bit images; None when nobody asks."""
    if recipe.relabel is None:
        return None
    assert isinstance(distilled, Recovered) and squeezed is not None, "the recipe was checked"
    normalization = source.real.normalization
    return run_relabel(
        recipe.relabel,
        distilled.images_NCHW,
        distilled.classes_N,
        squeezed,
        mean_C=normalization.display_mean_C,
        std_C=normalization.display_std_C,
        seed=recipe.seed,
        runs=runs,
        runtime=runtime,
        quiet=quiet,
    )


def check_output(output: Path, recipe: Recipe) -> None:
    """Refuse an output folder that holds anything but the dataset of this very recipe."""
    if (output / MANIFEST).exists():
        manifest = read_manifest(output)
        if manifest["recipe_sha256"] == recipe.sha256() and manifest["results"] is not None:
            return
        raise ArtifactError(
            f"{output}: holds the dataset {manifest['name']!r} of another recipe, and nothing of "
            "it will be overwritten; choose a new folder with --output"
        )
    check_writable(output)
    if recipe.relabel is not None:
        check_shards(sibling_of(output.absolute()), recipe.sha256())


def check_source_of(output: Path, provenance: Provenance) -> None:
    """Refuse an output folder whose dataset was made from other images."""
    if not (output / MANIFEST).exists():
        return
    made_from = Provenance.from_json(read_manifest(output)["source"])
    if made_from.identity() != provenance.identity():
        raise ArtifactError(
            f"{output}: holds what this recipe made of {made_from.dataset!r} when its images were "
            "others, and nothing of it will be overwritten; choose a new folder with --output"
        )


def check_rows_of(finished: Path, exported: Path) -> None:
    """Refuse to tell results of a folder that holds other rows than were distilled now."""
    if (finished / MANIFEST).exists() and rows_of(finished) != rows_of(exported):
        raise ArtifactError(
            f"{finished}: holds other rows, which an earlier run of this recipe distilled with "
            "other packages or on another device, and nothing of them will be overwritten; choose "
            "a new folder with --output"
        )


def rows_of(folder: Path) -> dict[str, str]:
    """The sha256 of every file of the configuration `default` of a published folder."""
    manifest = read_manifest(folder)
    own = Path(manifest["configs"]["default"]["path"]).parent
    return {
        file["path"]: file["sha256"]
        for file in manifest["files"]
        if Path(file["path"]).parent == own
    }


def check_runs(own: Path) -> None:
    """Refuse a runs folder that cannot be written to: that of a recipe, or that of all."""
    for folder in (own.parent, own):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise ArtifactError(
                f"{folder}: cannot write here ({error.strerror}); choose another with --runs"
            ) from error


def check_outside(dataset: str, folders: dict[str, Path]) -> None:
    """Refuse to write into the folder of the source, which could not be read again afterwards."""
    read_from = locate(dataset)
    for option, folder in folders.items():
        if (
            read_from is not None
            and read_from.is_dir()
            and folder.resolve().is_relative_to(read_from)
        ):
            raise RecipeError(
                f"{option}: {folder.resolve()} lies in the source {read_from}, whose files are "
                f"read again at every start; choose a folder beside it with {option}"
            )


def check_parts(recipe: Recipe, shape: Shape) -> None:
    """Build every part of the recipe for this shape without its data.

    Raises:
        RecipeError: a budget too small, a network too deep or without a layer that the objective
            looks at, an order of other classes, a class without an example.
        DataError: the dataset that the initial images are taken from cannot be read.
    """
    canvas = recipe.distill.canvas
    recipe.distill.objective.check(shape, canvas.size(shape).examples)
    for field in type(canvas).model_fields:
        if isinstance(part := getattr(canvas, field), Selection):
            part.check(shape)
    squeezed = recipe.squeeze.architectures if recipe.squeeze is not None else ()
    recipe.distill.labels.check(canvas, shape)
    check_networks(recipe.distill.networks, squeezed, shape)
    drawn = recipe.distill.networks.architecture(squeezed[0] if squeezed else None)
    recipe.distill.objective.check_network(drawn, shape)
    if recipe.relabel is not None:
        check_voters(recipe.relabel, squeezed, shape)
    with torch.device("meta"):
        recipe.evaluate.network.build(shape)


def check_teaching(recipe: Recipe, expected: Shape, names: list[str]) -> None:
    """Look at a few rows of `squeeze.source`, where networks are trained on another source.

    Raises:
        RecipeError: its images have another shape than those that are distilled, or its classes
            are the same ones in another order.
        DataError: it cannot be read.
    """
    if recipe.squeeze is None or recipe.squeeze.source is None:
        return
    got, theirs = peek(recipe.squeeze.source)
    if got != expected:
        raise RecipeError(
            f"squeeze.source: images of {got.c} x {got.h} x {got.w} in {got.k} classes, expected "
            f"{expected.c} x {expected.h} x {expected.w} in {expected.k} as in source; set "
            "squeeze.source.resolution, channels and classes"
        )
    if theirs != names and set(theirs) == set(names):
        raise RecipeError(
            "squeeze.source: the classes are those of source in another order, which would swap "
            f"labels; set squeeze.source.classes to {json.dumps(names, ensure_ascii=False)}"
        )


def check_rows(recipe: Recipe, source: LoadedSource) -> None:
    """Refuse what only the rows tell: too few for a batch, or an order without room for a class.

    The order is looked at where networks are trained on these rows before anything needs it.
    """
    rows = len(source.real.train.labels_N)
    wanted = recipe.distill.objective.real_rows()
    if wanted > rows:
        raise RecipeError(
            f"distill.objective: asks for {wanted} real images at once and the training split has "
            f"{rows}; lower distill.objective.real_batch to at most {rows}"
        )
    if recipe.squeeze is not None:
        recipe.distill.labels.check(recipe.distill.canvas, source.real.shape, source.real)


def starts(
    recipe: Recipe, source: LoadedSource, squeezed: SqueezedFolder | None, device: torch.device
) -> Tensor | None:
    """The weights (S, P) that students start from: student s takes row s modulo S.

    One row where all students start from the same; None where they draw their own.
    """
    if recipe.evaluate.start == "fresh":
        return None
    networks = recipe.distill.networks.build(source.real.shape, device, squeezed)
    rows = list[Tensor]()
    for student in range(recipe.evaluate.students):
        start_P = networks.start(student, draws(recipe.seed, "distill"))
        assert start_P is not None, "networks with `has_start` give one"
        rows.append(start_P.cpu())
    one = all(torch.equal(row, rows[0]) for row in rows)
    return torch.stack(rows[:1] if one else rows)
