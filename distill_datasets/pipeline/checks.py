"""Everything that can be refused is refused here, before the first stage that takes long."""

import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill_datasets.data.opening import locate
from distill_datasets.data.provenance import Provenance
from distill_datasets.data.real import RealData
from distill_datasets.data.source import SourceDataset, open_source
from distill_datasets.errors import ArtifactError, RecipeError, refuse
from distill_datasets.export.agreement import problems
from distill_datasets.export.content import sibling_of
from distill_datasets.export.folder import (
    CARD,
    MANIFEST,
    check_shards,
    check_writable,
    read_manifest,
    verify,
)
from distill_datasets.networks.teachers import network_problems
from distill_datasets.objectives.objective import Context
from distill_datasets.recipe import Recipe
from distill_datasets.selection.selection import Selection
from distill_datasets.soft_labels.ensemble import ensemble_problems
from distill_datasets.stages.distill import Distill
from distill_datasets.stages.source import LoadedSource
from distill_datasets.stages.squeeze import find_weights
from distill_datasets.types import Shape

logger = logging.getLogger("distill_datasets")


@dataclass(frozen=True)
class Inputs:
    """What a run reads, found before it starts.

    Attributes:
        source: what is distilled.
        teaching: what teachers are trained on, where that is another source.
        weights: the files of `squeeze.weights`.
    """

    source: SourceDataset
    teaching: SourceDataset | None
    weights: list[Path]


def check_inputs(
    recipe: Recipe,
    own: Path,
    output: Path | None,
    dataset: Any,  # noqa: ANN401
) -> Inputs:
    """Find what a run reads, and refuse what it could not finish.

    Args:
        recipe: what shall be done.
        own: the folder of its stages.
        output: where the finished dataset shall be put; None is beside the stages.
        dataset: the object to read instead of what `source.dataset` names.

    Raises:
        DistillError: a folder cannot be used, a source cannot be read, or a part does not fit it.
    """
    if output is not None:
        check_output(output, recipe)
    if dataset is None:
        written = {"--runs": own} | ({} if output is None else {"--output": output})
        check_outside(recipe.source.dataset, written)
    source = open_source(recipe.source, dataset)
    if output is not None:
        check_source_of(output, source)
    shape, names = source.peek()
    check_parts(recipe, shape)
    if recipe.generator is not None:
        refuse(recipe.generator.problems(shape, names))
    teaching = open_teaching(recipe)
    check_teaching(teaching, shape, names)
    weights = [] if recipe.squeeze is None else find_weights(recipe.squeeze, shape)
    check_runs(own)
    return Inputs(source, teaching, weights)


def check_output(output: Path, recipe: Recipe) -> None:
    """Refuse an output folder that holds anything but the dataset of this very recipe."""
    if (output / MANIFEST).exists():
        manifest = read_manifest(output)
        if manifest["recipe_sha256"] == recipe.sha256() and manifest["results"] is not None:
            check_agreement(output)
            return
        raise ArtifactError(
            f"{output}: holds the dataset {manifest['name']!r} of another recipe, and nothing of "
            "it will be overwritten; choose a new folder with --output"
        )
    check_writable(output)
    if recipe.relabel is not None:
        check_shards(sibling_of(output.absolute()), recipe.sha256())


def check_agreement(finished: Path) -> None:
    """Refuse to give out a finished folder in which a number was changed, or a file damaged."""
    found = problems(finished)
    if found:
        raise ArtifactError(
            f"{finished}: is not what a run wrote: {'; '.join(found[:3])}; nothing of it will be "
            "overwritten; move it away and run again, which writes it anew from what the run keeps"
        )


def check_source_of(output: Path, source: SourceDataset) -> None:
    """Refuse an output folder whose dataset was made from other images."""
    if not (output / MANIFEST).exists():
        return
    made_from = Provenance.from_json(read_manifest(output)["source"])
    if made_from.identity() != source.provenance.identity():
        raise ArtifactError(
            f"{output}: holds what this recipe made of {made_from.dataset!r} when its images were "
            "others, and nothing of it will be overwritten; choose a new folder with --output"
        )


def check_rows_of(finished: Path, exported: Path) -> None:
    """Refuse to tell results of a folder that holds other rows than were distilled now."""
    if not (finished / MANIFEST).exists():
        return
    check_agreement(finished)
    if rows_of(finished) != rows_of(exported):
        raise ArtifactError(
            f"{finished}: holds other rows, which an earlier run of this recipe distilled with "
            "other packages or on another device, and nothing of them will be overwritten; choose "
            "a new folder with --output"
        )


def check_results_of(finished: Path, results: list[dict[str, Any]]) -> None:
    """Refuse a finished folder whose results are not those that the run has measured.

    An edited card is kept, and said to be one: damage to its prose looks the same.
    """
    if not (finished / MANIFEST).exists():
        return
    if any(each.startswith(f"{CARD}: ") for each in verify(finished)):
        logger.warning(
            "%s: is not what a run wrote, and is kept as it was edited; to have it made anew, move "
            "the folder away and run again",
            finished / CARD,
        )
    if read_manifest(finished)["results"] != results:
        raise ArtifactError(
            f"{finished}: its results are not those that this run has measured, and nothing of it "
            "will be overwritten; move it away and run again, which writes it anew"
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
        RecipeError: every problem at once: a budget too small, a network too deep or without a
            layer that the objective looks at, an order of other classes, a class without an
            example, an init that cannot be read.
    """
    refuse(part_problems(recipe, shape))


def part_problems(recipe: Recipe, shape: Shape) -> Iterator[str]:
    """What of a recipe does not fit this shape; a part is asked once those before it fit."""
    section = recipe.distill
    squeezed = recipe.squeeze.architectures if recipe.squeeze is not None else ()
    canvas_problems = list(_raised(lambda: section.canvas.size(shape)))
    yield from canvas_problems
    if recipe.generator is not None:
        yield from _told(recipe.generator.layer_problems(section.canvas.decoder_layer, shape))
    for field in type(section.canvas).model_fields:
        if isinstance(part := getattr(section.canvas, field), Selection):
            yield from part.problems(shape)
    if not canvas_problems:
        yield from section.labels.problems(section.canvas, shape)
    unfit = list(network_problems(section.networks, squeezed, shape))
    yield from unfit
    examples = None if canvas_problems else section.canvas.size(shape).examples
    teachers, found = len(squeezed) if squeezed else None, dict[str, None]()
    drawn_from = section.networks.architectures(squeezed[0] if squeezed else None)
    for drawn in squeezed if section.objective.needs.networks == "teachers" else drawn_from:
        context = Context(teachers, shape, examples, None if unfit else drawn)
        found |= dict.fromkeys(section.objective.problems(context))
    yield from found
    if recipe.relabel is not None and not unfit:
        yield from ensemble_problems(recipe.relabel, squeezed, shape)
    yield from _raised(lambda: recipe.evaluate.network.on_meta(shape))


def _raised(check: Callable[[], object]) -> Iterator[str]:
    """The problem that is raised where a canvas is laid out or a network built: the only check."""
    try:
        check()
    except RecipeError as error:
        yield str(error)


def _told(found: Iterator[str]) -> Iterator[str]:
    """Problems, or the one that is raised where what tells them cannot be read."""
    try:
        yield from found
    except RecipeError as error:
        yield str(error)


def open_teaching(recipe: Recipe) -> SourceDataset | None:
    """Find `squeeze.source`; None where networks are trained on what is distilled, or not at all.

    Raises:
        DataError: there is no such dataset or revision, or it may not be read.
    """
    if recipe.squeeze is None or recipe.squeeze.source is None:
        return None
    return open_source(recipe.squeeze.source)


def check_teaching(teaching: SourceDataset | None, expected: Shape, names: list[str]) -> None:
    """Look at a few rows of `squeeze.source`, where networks are trained on another source.

    Raises:
        RecipeError: its images have another shape than those that are distilled, or its classes
            are the same ones in another order.
        DataError: it cannot be read.
    """
    if teaching is None:
        return
    got, theirs = teaching.peek()
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
    """Refuse what only the rows show: too few for a batch, an order without room for a class.

    Raises:
        RecipeError: lists every problem.
    """
    refuse(row_problems(recipe.distill, source.real))


def row_problems(settings: Distill, real: RealData) -> Iterator[str]:
    """What of a recipe does not fit the rows of its source."""
    rows, wanted = len(real.train.labels_N), settings.objective.needs.real_rows
    if wanted > rows:
        yield (
            f"distill.objective: asks for {wanted} real images at once and the training split has "
            f"{rows}; lower distill.objective.real_batch to at most {rows}"
        )
    yield from settings.labels.problems(settings.canvas, real.shape, real)
