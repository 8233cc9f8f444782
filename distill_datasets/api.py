"""Distilling from Python: a `datasets.Dataset` in, a `datasets.Dataset` out."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_datasets.data.source import Source
from distill_datasets.errors import DataError, RecipeError
from distill_datasets.pipeline import Outcome, run
from distill_datasets.presets import preset
from distill_datasets.recipe import recipe_from
from distill_datasets.stages.reading import load_rows

if TYPE_CHECKING:
    from datasets import Dataset

    from distill_datasets.stages.publish import Published

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
        """One row per contestant; accuracies in [0, 1]."""
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
    ) -> "Published":
        """Publish the folder as one commit and a tag; see `distill_datasets.stages.publish`."""
        from distill_datasets.stages.publish import publish

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
    ipc: float = 0.5,
    seed: int = 0,
    runs: str | Path = "runs",
    quiet: bool = False,
    overrides: Iterable[str] | None = None,
) -> Distillation:
    """Distill a dataset that is already in memory.

    Args:
        dataset: a `datasets.Dataset`, or a `DatasetDict` with its own test split.
        method: `podd`, `rat-bptt` or `dm`.
        ipc: budget in images per class.
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
    sections = preset(method, ipc) | {"seed": seed, "source": {"dataset": IN_MEMORY}}
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
