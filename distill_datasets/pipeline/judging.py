"""What measuring a published folder needs around it: real images, processes, signals, a folder.

The real images are read as the folder asks, into the folder of all runs, where a run of the same
source has put them too; what is measured is kept in a folder of its own and found again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from distill_datasets.errors import refuse
from distill_datasets.evaluation.levels import Standard
from distill_datasets.export.folder import MANIFEST, read_manifest
from distill_datasets.files.artifacts import sha256_of, told_when_full
from distill_datasets.hub.pinned import library_bars
from distill_datasets.layouts.real_images import real_images, seed_of
from distill_datasets.layouts.target import resolve_target
from distill_datasets.models.backbones import backbones_of
from distill_datasets.pipeline.checks import check_outside, check_runs
from distill_datasets.recipe import load_recipe, parsed, problem_lines, put
from distill_datasets.runtime.processes import Run, Runtime
from distill_datasets.runtime.stopping import Stop
from distill_datasets.stages.features import run_features
from distill_datasets.stages.source import LoadedSource, load_source

if TYPE_CHECKING:
    from distill_datasets.data.real import RealData

EVALUATIONS = "evaluations"


@dataclass(frozen=True)
class RealImages:
    """Where a user says that the real images of a target are; nothing: where the target says.

    Attributes:
        dataset: a Hub id or a local path.
        recipe: a recipe whose `source` section reads them.
        overrides: `source.key=value` each.
    """

    dataset: str | None = None
    recipe: Path | None = None
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judged:
    """A published folder, its real images, and the run that measures it.

    `shared` is the run in the folder of all runs, where what depends on the source alone lies.
    """

    folder: Path
    source: LoadedSource
    run: Run
    shared: Run

    @property
    def real(self) -> RealData:
        """The real images."""
        return self.source.real

    def see(self, settings: Standard) -> None:
        """Let the frozen backbones of the protocol's networks look at the real images, once.

        Those that are not installed are left out; the protocol says so.
        """
        shape = self.real.shape
        own = settings.students_network(settings.numbers(max(shape.h, shape.w)))
        networks = [own, *settings.others(own, shape)]
        frozen = [each for network in networks for each in backbones_of(network)]
        there = {each.key: each for each in frozen if each.absent() is None}
        run_features(list(there.values()), self.source, self.shared)


@contextmanager
def judging(
    target: str,
    runs: Path,
    images: RealImages | None = None,
    *,
    seed: int = 0,
    quiet: bool = False,
) -> Iterator[Judged]:
    """Find a target and its real images, and listen to signals while it is measured.

    Args:
        target: see `resolve_target`.
        runs: the folder of all runs.
        images: where the real images are.
        seed: decides every random draw but that of test images from a source without a test split.
        quiet: no progress bars.

    Raises:
        DistillError: one of its kinds, with a message for the user.
    """
    images = images or RealImages()
    stop = Stop()
    with library_bars(shown=not quiet):
        folder = resolve_target(target, runs, source=images.dataset)
        section = None
        if images.recipe is not None:
            section = load_recipe(images.recipe).source.model_dump()
        source = real_images(folder, images.dataset, images.overrides, section)
        check_outside(source.section.dataset, {"--runs": runs})
        check_runs(runs / EVALUATIONS)
    runtime = Runtime(None, None, stop)
    with (
        stop.listening(),
        told_when_full(),
        runtime.reproducible(),
        library_bars(shown=not quiet),
    ):
        # the same seed as of the run that distilled cuts off the same test images
        shared = Run(seed_of(folder), runs, runtime, shown=not quiet)
        loaded = load_source(source, shared)
        own = runs / EVALUATIONS / name_of(folder)
        yield Judged(folder, loaded, Run(seed, own, runtime, shown=not quiet), shared)
    runtime.accelerator.end_training()


def files_alone(folder: Path, runs: Path, seed: int) -> Run:
    """The run of a look at the files of a folder, which needs no real images."""
    return Run(seed, runs / EVALUATIONS / folder.name, Runtime(None, None, Stop()))


def standard_from(overrides: Iterable[str]) -> Standard:
    """The settings of the standard protocol.

    Args:
        overrides: `key=value` each, as `network=resnet18` or `network.width=64`.

    Raises:
        RecipeError: lists every problem.
    """
    content = dict[str, Any]()
    for override in overrides:
        path, value = parsed(override)
        put(content, path, value, f"standard.{override}")
    try:
        return Standard.model_validate(content)
    except ValidationError as error:
        refuse(problem_lines(error.errors(), Standard, ("standard",)))
        raise


def name_of(folder: Path) -> str:
    """A name for what is measured of a published folder, told apart by its manifest."""
    name = re.sub(r"[^\w.-]+", "-", str(read_manifest(folder)["name"])).strip("-.") or "set"
    return f"{name[:60]}-{sha256_of(folder / MANIFEST)[:8]}"
