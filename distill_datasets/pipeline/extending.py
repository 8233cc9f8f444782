"""Extend: new classes are distilled by the recipe of a finished set, and join its rows.

The old rows stay what they are, bit for bit. The new ones are distilled for students that see them
through the same mean and deviation.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from distill_datasets.data.columns import plain_form
from distill_datasets.data.opening import without_places
from distill_datasets.data.source import Source, open_source
from distill_datasets.errors import ArtifactError, DataError, cut
from distill_datasets.export.folder import check_writable, made_by_run, read_manifest, recipe_of
from distill_datasets.layouts.merging import merge
from distill_datasets.pipeline.run import run
from distill_datasets.recipe import Recipe, name_from, recipe_from

logger = logging.getLogger("distill_datasets")

Preset = Callable[[str, Sequence[str], str], Recipe]
"""A dataset, overrides and a name become the recipe of a method."""
READ_ALIKE = (
    *("view", "resolution", "image_column", "label_column", "limit"),
    *("train_split", "test_split", "test_share", "white_level"),
)
"""Keys of `source` that new images are read by as the old ones were."""


def extend(
    folder: Path,
    target: str,
    dataset: str,
    to: Path,
    *,
    runs: Path,
    preset: Preset | None = None,
    overrides: Iterable[str] = (),
    quiet: bool = False,
) -> dict[str, Any]:
    """Write a set with more classes.

    Args:
        folder: the finished set.
        target: what the user called it.
        dataset: where real images of the new classes are; of classes that the set has already,
            none is read.
        to: new or empty folder.
        runs: the folder of all runs, where the new classes are distilled; a later call goes on.
        preset: makes the recipe of a method; None takes that of the set itself.
        overrides: `section.key=value` each, of the recipe for the new classes.
        quiet: no progress bars.

    Returns:
        The manifest.

    Raises:
        DistillError: one of its kinds, before anything is distilled where that can be known.
    """
    check_writable(to)
    recipe, everything = extension_of(folder, dataset, preset, list(overrides))
    logger.info("extend: distilling %s", ", ".join(map(str, recipe.source.classes or [])))
    made = run(recipe, runs=runs, quiet=quiet)
    return merge(
        [folder, made.folder],
        [target, dataset],
        to,
        name=f"{read_manifest(folder)['name']}, extended",
        verb="extend",
        source=everything,
    )


def extension_of(
    folder: Path, dataset: str, preset: Preset | None, overrides: Sequence[str]
) -> tuple[Recipe, dict[str, Any] | None]:
    """The recipe for the new classes; and the section that reads real images of all, if any does.

    Raises:
        DistillError: no such recipe fits the set.
    """
    manifest = read_manifest(folder)
    if manifest["input"]["normalization"]["kind"] != "mean_std":
        raise ArtifactError(
            f"{folder}: its rows lie in a whitened space of its own source, and new classes cannot "
            "be distilled into it; distill all classes together"
        )
    if preset is None and not made_by_run(manifest):
        raise ArtifactError(
            f"{folder}: no recipe made it that could distill more classes; name a method: "
            "--method dm"
        )
    source = _source(manifest, {} if preset else recipe_of(folder)["source"], dataset)
    new, old = _classes(folder, manifest["classes"], _peeked(source))
    content = {**source, "classes": new}
    name = name_from(f"{manifest['name']}-extended") or "extended"
    if preset is not None:
        # JSON is YAML: class names stay what they are
        fixed = [f"source.{key}={json.dumps(value)}" for key, value in content.items()]
        recipe = preset(dataset, [*fixed, *overrides], name)
    else:
        sections = _resized(recipe_of(folder), manifest, len(new))
        sections |= {"name": name, "source": content}
        recipe = recipe_from(sections, overrides, title=f"the recipe of {folder}")
    whole = None
    if len(old) == len(manifest["classes"]):
        # the source has the old classes too, and can measure all of them together
        whole = without_places({**source, "classes": [*old, *(recipe.source.classes or [])]})
    return recipe, whole


def _source(manifest: dict[str, Any], section: dict[str, Any], dataset: str) -> dict[str, Any]:
    """The section `source` for new images: seen as those of the set are."""
    channels, height, width = manifest["input"]["shape"]
    found = {key: section[key] for key in READ_ALIKE if section.get(key) is not None}
    if height == width:
        found["resolution"] = height
    if "view" not in found:
        found["channels"] = "gray" if channels == 1 else "rgb"
    return {
        **found,
        "dataset": dataset,
        "mean": manifest["input"]["mean"],
        "std": manifest["input"]["std"],
    }


def _peeked(section: dict[str, Any]) -> list[str]:
    """The classes of a source."""
    _, names = open_source(Source.model_validate(section)).peek()
    return list(names)


def _classes(
    folder: Path, ours: Sequence[str], theirs: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Classes of the source that the set has not; and the names there of those that it has."""
    known = {plain_form(name): name for name in theirs}
    own = {plain_form(name) for name in ours}
    new = [name for name in theirs if plain_form(name) not in own]
    if len(new) < 2:
        got = f"one new class, {new[0]}" if new else "no new class"
        raise DataError(
            f"--source: has {got}; expected at least 2 that are not in {folder}: "
            f"{cut(', '.join(theirs))}. One class alone has nothing to be told from: distill it "
            "with others in a recipe of your own and `merge` the sets"
        )
    return new, [known[form] for name in ours if (form := plain_form(name)) in known]


def _resized(sections: dict[str, Any], manifest: dict[str, Any], classes: int) -> dict[str, Any]:
    """The recipe of the set for other classes: a budget in pixels becomes one for each class."""
    canvas, own = dict(sections["distill"]["canvas"]), len(manifest["classes"])
    if canvas.get("height") is not None:
        share = manifest["budget"]["ipc_equivalent"]
        crops = max(2, round(canvas["crops"] * classes / own))
        canvas = {
            key: value
            for key, value in canvas.items()
            if key not in ("height", "width", "crops", "ipc")
        } | {"ipc": share, "crops": crops}
    if canvas.get("images") is not None:
        canvas["images"] = max(1, round(canvas["images"] * classes / own))
    section = {**sections["distill"], "canvas": canvas}
    return {key: value for key, value in sections.items() if key != "source"} | {"distill": section}
