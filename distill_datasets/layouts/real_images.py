"""The real images of a published folder: where they are read, and so that they fit its rows.

The folder says which source it was distilled from; a user may name it where it has moved, or where
nobody knows. Size, channels, classes and normalization are those of the folder, whoever made it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from distill_datasets.data.columns import plain_form
from distill_datasets.data.opening import EMBEDDED, HUB_ID
from distill_datasets.data.provenance import SourceFile
from distill_datasets.data.source import Source, SourceDataset, open_source
from distill_datasets.errors import ArtifactError, DataError, RecipeError, cut, did_you_mean
from distill_datasets.export.folder import read_manifest, recipe_of
from distill_datasets.files.yaml_text import from_yaml
from distill_datasets.layouts.importing import AND, UNKNOWN
from distill_datasets.layouts.rows import numbered
from distill_datasets.types import Shape

logger = logging.getLogger("distill_datasets")


def real_images(
    folder: Path,
    dataset: str | None = None,
    overrides: Iterable[str] = (),
    recipe: dict[str, Any] | None = None,
) -> SourceDataset:
    """The source of a published folder, found, and as its rows ask for it.

    Args:
        folder: in the published layout.
        dataset: the source; None is the one that the folder names.
        overrides: `source.key=value` each.
        recipe: the `source` section of a recipe, instead of the folder's own.

    Raises:
        ArtifactError: the folder does not say how students see its rows.
        DataError: the source is not known, has moved, or is another one.
        RecipeError: an override is none of the source.
    """
    manifest = read_manifest(folder)
    kind = manifest["input"]["normalization"]["kind"]
    if kind == "whitened":
        raise ArtifactError(
            f"{folder}: its values were whitened by a matrix that is not in its files, so that no "
            "real image can be seen alike; import what its authors have made of it in pixels"
        )
    section = _section(folder, manifest, recipe)
    if dataset is not None and dataset != section.get("dataset"):
        section |= {"dataset": dataset, "revision": None}
        if recipe is None:
            section |= {"config": None}
    given = _overridden(section, overrides)
    _check_known(folder, manifest, section, named=dataset is not None or recipe is not None)
    channels, height, width = manifest["input"]["shape"]
    if kind == "mean_std" and "mean" not in given:
        section |= {"mean": manifest["input"]["mean"], "std": manifest["input"]["std"]}
    if "source" not in recipe_of(folder):
        section |= {"channels": "gray" if channels == 1 else "rgb"}
        if height == width and "resolution" not in given:
            section |= {"resolution": height}
    source = open_source(_validated(section))
    shape, names = source.peek()
    if "classes" not in given and (order := _classes(folder, manifest["classes"], names, manifest)):
        source = open_source(_validated(section | {"classes": order}))
        shape, names = source.peek()
    _check_shape(folder, Shape(channels, height, width, len(manifest["classes"])), shape)
    _compare(source, manifest)
    return source


def seed_of(folder: Path) -> int:
    """The seed that cuts the source of a folder into training and test images."""
    return max(0, int(read_manifest(folder)["seed"]))


def _section(
    folder: Path, manifest: dict[str, Any], recipe: dict[str, Any] | None
) -> dict[str, Any]:
    """The section `source` to start from."""
    if recipe is not None:
        return dict(recipe)
    if "source" in (own := recipe_of(folder)):
        section = dict(own["source"])
        # the commit that was read, where the recipe names a branch or none
        return section | {"revision": manifest["source"]["revision"]}
    source = manifest["source"]
    return {key: source[key] for key in ("dataset", "config", "revision")}


def _overridden(section: dict[str, Any], overrides: Iterable[str]) -> set[str]:
    """Put overrides into a section; the names of the keys that they give."""
    given = set[str]()
    for override in overrides:
        path, equals, text = override.partition("=")
        room, _, key = path.partition(".")
        if not equals or room != "source" or not key:
            raise RecipeError(
                f"{cut(override)}: expected source.key=value, for example source.resolution=32"
            )
        if key not in Source.model_fields:
            raise RecipeError(
                f"source.{key}: no such key; {did_you_mean(key, Source.model_fields)}"
            )
        section[key] = from_yaml(text)
        given.add(key)
    return given


def _check_known(
    folder: Path, manifest: dict[str, Any], section: dict[str, Any], *, named: bool
) -> None:
    """Refuse a source that nobody knows, or a local one that is not there."""
    dataset = section.get("dataset")
    give = f"name it: --source with a Hub id or a path (evaluate {folder} --source DATASET)"
    if dataset in (None, UNKNOWN):
        raise DataError(
            f"{folder}: nobody has told what it was distilled from, and real images are needed to "
            f"measure it; {give}"
        )
    on_hub = section.get("revision") is not None or manifest["source"]["card_url"] is not None
    if not named and "derived" in manifest and AND in str(dataset):
        raise DataError(
            f"{folder}: was made of sets of several sources ({dataset}), and real images of all of "
            f"its classes are needed to measure it; {give}"
        )
    if named or dataset in EMBEDDED or on_hub or Path(str(dataset)).expanduser().exists():
        return
    if "imported" in manifest and HUB_ID.fullmatch(str(dataset)):
        return
    raise DataError(
        f"{folder}: its source {dataset!r} lay on the machine that made it and is not here "
        f"(published folders keep no paths); {give}"
    )


def _validated(section: dict[str, Any]) -> Source:
    try:
        return Source.model_validate(section)
    except ValidationError as error:
        lines = [
            f"source.{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()
        ]
        raise RecipeError("; ".join(lines)) from error


def _classes(
    folder: Path, ours: Sequence[str], theirs: Sequence[str], manifest: dict[str, Any]
) -> list[str] | None:
    """The source's classes in the order of the folder's; None where they are in it already.

    Raises:
        DataError: which class is which cannot be told.
    """
    if list(ours) == list(theirs):
        return None
    by_form = {plain_form(name): name for name in theirs}
    found = [by_form.get(plain_form(name)) for name in ours]
    if len(by_form) == len(theirs) and all(name is not None for name in found):
        order = [name for name in found if name is not None]
        return None if order == list(theirs) else order
    if "imported" in manifest and len(ours) == len(theirs) and numbered(ours):
        logger.warning(
            "%s: its classes have numbers and no names; they are taken in the order of the "
            "source's: %s",
            folder,
            cut(", ".join(theirs)),
        )
        return None
    raise DataError(
        f"{folder}: its classes are {cut(', '.join(ours))}, those of the source "
        f"{cut(', '.join(theirs))}, and which is which cannot be told; name the source's in the "
        'order of the labels: source.classes="[cat, dog]", or import it with --classes'
    )


def _check_shape(folder: Path, ours: Shape, theirs: Shape) -> None:
    if ours == theirs:
        return
    raise DataError(
        f"{folder}: its images are {ours.c} x {ours.h} x {ours.w} in {ours.k} classes, those of "
        f"the source {theirs.c} x {theirs.h} x {theirs.w} in {theirs.k}; read the source alike, "
        f"for example source.resolution={ours.h}, or name the right one with --source"
    )


def _compare(source: SourceDataset, manifest: dict[str, Any]) -> None:
    """Say where the real images are not those that the folder was distilled from."""
    files = [SourceFile(**file) for file in manifest["source"]["files"]]
    provenance = source.provenance
    recorded = manifest["source"]["revision"]
    same = (
        provenance.revision == recorded
        if recorded is not None
        else sorted(file.sha256 for file in files)
        == sorted(file.sha256 for file in provenance.files)
    )
    if files and not same:
        logger.warning(
            "the real images are not the very files that this set was distilled from (%s, %s): "
            "what its authors held out may be among those for training, or the other way round",
            manifest["source"]["dataset"],
            recorded[:12] if recorded else f"{len(files)} files",
        )
