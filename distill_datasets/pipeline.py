"""From a recipe to a finished dataset: the stages in order, each done at most once.

Everything that can be refused is refused before the first stage that takes long.
"""

import importlib.metadata
import json
import logging
import platform
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import distill_datasets
from distill_datasets.artifacts import fingerprint, sha256_tensors
from distill_datasets.data.opening import library_bars
from distill_datasets.data.source import peek, resolve
from distill_datasets.errors import ArtifactError, RecipeError
from distill_datasets.networks.zoo import AvgPool2d
from distill_datasets.pictures import to_bytes
from distill_datasets.published import STARTS, Content
from distill_datasets.recipe import Recipe
from distill_datasets.runtime import Runtime, draws
from distill_datasets.stages.distill import run_distill
from distill_datasets.stages.evaluate import run_evaluate
from distill_datasets.stages.export import MANIFEST, check_writable, read_manifest, write_dataset
from distill_datasets.stages.source import LoadedSource, load_source
from distill_datasets.stages.squeeze import SqueezedFolder, run_squeeze
from distill_datasets.students import Evaluate
from distill_datasets.types import Distilled, Selection, Shape

logger = logging.getLogger("distill_datasets")

VERSION = 1
_PLAIN = {nn.AvgPool2d, nn.Conv2d, nn.Flatten, nn.GroupNorm, nn.Linear, nn.MaxPool2d, nn.ReLU}
_PLAIN |= {AvgPool2d}
"""Layers whose `repr` is the call that makes them."""


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
    with library_bars(shown=not quiet):
        provenance = resolve(recipe.source, dataset)
        shape, names = peek(recipe.source, dataset)
        check_parts(recipe, shape)
        check_teaching(recipe, shape, names)
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
                recipe.squeeze, teaching, seed=recipe.seed, runs=own, runtime=runtime, quiet=quiet
            )
        starts_SP = starts(recipe, source, squeezed, runtime.device)
        distilled, folder = run_distill(
            recipe.distill,
            source,
            seed=recipe.seed,
            runs=own,
            runtime=runtime,
            quiet=quiet,
            squeezed=squeezed,
        )
        content = publishable(recipe, distilled, source, starts_SP)
        measured = fingerprint([_digest(content), source.fingerprint, content.environment])
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
        )
        finished = output or own / f"dataset-{identity}"
        if runtime.is_main:
            if not (finished / MANIFEST).exists():
                write_dataset(finished, content, results)
            runtime.accelerator.log(
                {f"accuracy/{row['from']}": row["accuracy"]["mean"] for row in results}
            )
        runtime.wait()
    runtime.accelerator.end_training()
    return Outcome(finished, folder / "previews", read_manifest(finished))


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


def check_runs(own: Path) -> None:
    """Refuse a runs folder that cannot be written to."""
    try:
        own.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(
            f"{own}: cannot make this folder ({error.strerror}); choose another with --runs"
        ) from error
    check_writable(own / ".write-test")


def check_parts(recipe: Recipe, shape: Shape) -> None:
    """Build every part of the recipe for this shape without its data.

    Raises:
        RecipeError: a budget too small, a network too deep, an order of other classes.
        DataError: the dataset that the initial images are taken from cannot be read.
    """
    canvas = recipe.distill.canvas
    recipe.distill.objective.check(shape, canvas.size(shape).examples)
    for field in type(canvas).model_fields:
        if isinstance(part := getattr(canvas, field), Selection):
            part.check(shape)
    squeezed = recipe.squeeze.network if recipe.squeeze is not None else None
    with torch.device("meta"):
        recipe.distill.networks.architecture(squeezed).build(shape)
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
    """Refuse a batch of real images that is larger than the training split."""
    rows = len(source.real.train.labels_N)
    wanted = recipe.distill.objective.real_rows()
    if wanted > rows:
        raise RecipeError(
            f"distill.objective: asks for {wanted} real images at once and the training split has "
            f"{rows}; lower distill.objective.real_batch to at most {rows}"
        )


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


@torch.no_grad()
def publishable(
    recipe: Recipe, distilled: Distilled, source: LoadedSource, starts_SP: Tensor | None = None
) -> Content:
    """Everything that the published folder says, before it is measured."""
    canvas = distilled.canvas
    index_N = torch.arange(distilled.count, device=distilled.mean_C.device)
    chunks = torch.split(index_N, 1024)
    exact = [distilled(index_B) for index_B in chunks]
    section = recipe.distill
    parts = [section.objective, section.canvas, section.labels, section.networks]
    measuring = {"students", "exact", "references", "full_epochs", "full_students"}
    student = recipe.evaluate.model_dump(mode="json", exclude=measuring)
    with torch.device("meta"):
        layers = chain(recipe.evaluate.network.build(source.real.shape))
    return Content(
        name=recipe.publish.title or recipe.name,
        method=(
            f"{section.canvas.name} canvas, {section.labels.name} labels, "
            f"{section.objective.name} objective, {section.networks.name} networks"
        ),
        papers=sorted({paper for part in parts for paper in part.papers()}),
        class_names=source.real.class_names,
        images_NCHW=torch.cat([to_bytes(canvas(index_B)) for index_B in chunks]).cpu(),
        exact_NCHW=torch.cat([batch.images_BCHW for batch in exact]).cpu(),
        targets_NK=torch.cat([batch.targets_BK for batch in exact]).cpu(),
        originals=[image.cpu() for image in canvas.originals()],
        label_cells=_label_cells(distilled),
        geometry=canvas.geometry(),
        mean=distilled.mean_C.tolist(),
        std=distilled.std_C.tolist(),
        normalization=source.real.normalization.describe(),
        constants={
            name: tensor
            for name, tensor in source.real.normalization.to_tensors().items()
            if name == "whitening"
        },
        step_sizes=[] if distilled.step_sizes is None else distilled.step_sizes().tolist(),
        order=section.objective.published_order(distilled.count),
        starts_SP=starts_SP,
        student=student | follows(recipe.evaluate),
        layers=layers,
        attack=section.objective.attacks(),
        recipe=recipe.resolved(),
        recipe_yaml=recipe.resolved_yaml(),
        recipe_sha256=recipe.sha256(),
        seed=recipe.seed,
        provenance=source.provenance.as_json(),
        environment=environment(distilled.mean_C.device),
        real_shape=(source.real.shape.c, source.real.shape.h, source.real.shape.w),
    )


def follows(settings: Evaluate) -> dict[str, Any]:
    """What the published description of a student says of how it follows the published files."""
    said = {
        "step_sizes": "step t, counted from 0, takes the value at t modulo their number of the "
        "column step_sizes of the configuration recipe",
        "order": "step t trains on the rows of default that order_json of the configuration "
        "recipe lists at t",
        "start": f"student s starts from row s modulo their number of weights_SP in {STARTS}, "
        "all weights in the order of torch's parameters()",
    }
    asked = {
        "step_sizes": settings.schedule == "published",
        "order": settings.order == "published",
        "start": settings.start == "distilled",
    }
    found = {name: text for name, text in said.items() if asked[name]}
    return {"follows": found} if found else {}


def chain(module: nn.Module) -> list[str]:
    """The layers of a plain chain as constructors of `torch.nn`; [] for any other network.

    A bias is the default, which old versions of torch do not let every layer be told.
    """
    if not isinstance(module, nn.Sequential) or not all(type(layer) in _PLAIN for layer in module):
        return []
    return [repr(layer).replace(", bias=True", "") for layer in module]


def _label_cells(distilled: Distilled) -> list[Tensor]:
    """The cells that lie on each original: all on the one poster, or one on each of a mosaic."""
    if distilled.canvas.examples_are_originals:
        return []
    table_GK = distilled.labels.table_GK().cpu()
    return list(torch.split(table_GK, len(table_GK) // len(distilled.canvas.originals())))


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and device of a run, as far as they can change its numbers."""
    packages = ["torch", "torchvision", "datasets", "accelerate", "numpy"]
    name_of = getattr(torch.get_device_module(device), "get_device_name", None)
    name = name_of(device) if name_of is not None else platform.machine()
    return {
        "distill_datasets": distill_datasets.__version__,
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in packages},
        "device": f"{device.type} ({name})",
    }


def _digest(content: Content) -> str:
    """The hash of every published number."""
    tensors = [content.images_NCHW, content.exact_NCHW, content.targets_NK]
    tensors += [] if content.starts_SP is None else [content.starts_SP]
    return fingerprint([sha256_tensors(tensors), content.step_sizes, content.order])
