"""Merge: the union of finished sets, each row as it was published, classes joined by their names.

One-shot federated distillation: everybody distills what they have, once, and only these sets meet.
Students see all rows through the normalization of the first set.

Shape suffixes: N examples, K classes, C channels, H W pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill_datasets.data.columns import plain_form
from distill_datasets.data.normalization import InputSpace
from distill_datasets.errors import ArtifactError, RecipeError, cut
from distill_datasets.export.content import Content, DisplayPixels
from distill_datasets.export.folder import check_writable, write_dataset
from distill_datasets.files.artifacts import sha256_tensors
from distill_datasets.layouts.derivation import identity, part_of
from distill_datasets.layouts.importing import AND, UNKNOWN
from distill_datasets.layouts.rows import numbered
from distill_datasets.layouts.stored import content_of

logger = logging.getLogger("distill_datasets")

MOST_NAMED = 20


@dataclass(frozen=True)
class MergedPart:
    """One of the sets: what the user called it, where it lies, what it holds."""

    target: str
    folder: Path
    content: Content

    @property
    def count(self) -> int:
        """Number of its rows."""
        return len(self.content.images_NCHW)

    @property
    def whole_sources(self) -> tuple[str, str | None]:
        """Which source it was distilled from."""
        return self.content.provenance["dataset"], self.content.provenance["revision"]


def merge(
    folders: Sequence[Path],
    targets: Sequence[str],
    to: Path,
    *,
    name: str | None = None,
    verb: str = "merge",
    source: dict[str, Any] | None = None,
    view_labels: bool = True,
) -> dict[str, Any]:
    """Write the union of finished sets.

    Args:
        folders: where they lie, at least two.
        targets: what the user called them.
        to: new or empty folder.
        name: title of the card; None: made of theirs.
        verb: merge or extend.
        source: the `source` section of a recipe that reads real images of all of their classes,
            where one is known.
        view_labels: False leaves labels of views out, which cannot be joined.

    Returns:
        The manifest; what was done about sets that differ is in its `derived.notes`.

    Raises:
        RecipeError: fewer than two sets.
        ArtifactError: one cannot be read, they cannot be joined, or the folder cannot be written.
    """
    if len(folders) < 2:
        raise RecipeError(f"{verb}: got {len(folders)} set, expected at least 2")
    check_writable(to)
    parts = [
        MergedPart(target, folder, content_of(folder))
        for target, folder in zip(targets, folders, strict=True)
    ]
    _check_alike(parts, view_labels)
    names, labels = _joined_classes([part.content.class_names for part in parts])
    notes = [*_on_classes(parts, names), *_on_the_rest(parts)]
    for note in notes:
        logger.info("%s: %s", verb, note)
    found, first = list[dict[str, Any]](), 0
    for part in parts:
        found.append(part_of(part.target, part.folder, list(range(first, first + part.count))))
        first += part.count
    section = source if source is not None else _common_source(parts)
    title = name or " and ".join(dict.fromkeys(part.content.name for part in parts))
    written = replace(
        _union(parts, names, labels),
        **identity(
            cut(title, 200), verb, {}, found, {} if section is None else {"source": section}
        ),
        derived={"verb": verb, "of": found, "notes": notes},
    )
    return write_dataset(to, written, None)


def _union(parts: Sequence[MergedPart], names: list[str], labels: list[list[int]]) -> Content:
    """All rows, those of the first set first; what students need is that of the first set."""
    contents = [part.content for part in parts]
    first = contents[0]
    images_NCHW = torch.cat([each.images_NCHW for each in contents])
    all_posters = all(each.label_cells for each in contents)
    alike = all(each.student == first.student for each in contents)
    paced = alike and all(each.step_sizes == first.step_sizes for each in contents)
    student = {key: value for key, value in first.student.items() if key != "follows"}
    follows = {
        name: text
        for name, text in first.student.get("follows", {}).items()
        if name == "start" or (name == "step_sizes" and paced)
    }
    return replace(
        first,
        method=AND.join(dict.fromkeys(each.method for each in contents)),
        papers=sorted({paper for each in contents for paper in each.papers}),
        class_names=names,
        images_NCHW=images_NCHW,
        exact_NCHW=_exact(contents),
        targets_NK=torch.cat(
            [
                _embedded(each.targets_NK, own, len(names))
                for each, own in zip(contents, labels, strict=True)
            ]
        ),
        originals=[image for each in contents for image in each.originals]
        if all_posters
        else DisplayPixels(images_NCHW),
        label_cells=[
            _embedded(table_GK, own, len(names))
            for each, own in zip(contents, labels, strict=True)
            for table_GK in each.label_cells
        ]
        if all_posters
        else [],
        geometry={
            "canvas": "posters" if all_posters else "pixels",
            **({"parts": [each.geometry for each in contents]} if all_posters else {}),
        },
        step_sizes=first.step_sizes if paced else [],
        order=[],
        student=student | ({"follows": follows} if follows else {}),
        layers=_resized(first, len(names)),
        attack=next(
            (
                (own[each.attack[0]], own[each.attack[1]])
                for each, own in zip(contents, labels, strict=True)
                if each.attack is not None
            ),
            None,
        ),
        seed=first.seed if all(each.seed == first.seed for each in contents) else -1,
        provenance=_provenance(parts),
        relabel=None,
        privacy="; ".join(dict.fromkeys(each.privacy for each in contents if each.privacy)) or None,
    )


def _check_alike(parts: Sequence[MergedPart], view_labels: bool) -> None:
    """Refuse sets that no network could be trained on together, and what would be lost silently."""
    first = parts[0]
    for part in parts[1:]:
        own, other = (each.content.images_NCHW.shape[1:] for each in (first, part))
        if own != other:
            raise ArtifactError(
                f"{part.target}: images of {' x '.join(map(str, other))} (channels, height, "
                f"width), those of {first.target} are {' x '.join(map(str, own))}; distill one of "
                f"them again with source.resolution={own[1]}, or leave it out"
            )
    kinds = [part.content.normalization["kind"] for part in parts]
    if set(kinds) != {"mean_std"} and any(
        not _same_tensors(part.content.constants, first.content.constants)
        or part.content.normalization != first.content.normalization
        for part in parts
    ):
        raise ArtifactError(
            f"normalization: {', '.join(dict.fromkeys(kinds))}: rows that are whitened by "
            "different matrices lie in different spaces and cannot be joined; distill both with "
            "source.normalization=mean_std"
        )
    seen = dict[str, str]()
    for part in parts:
        # clients of one recipe have recipes of one hash: what tells sets apart are their rows
        rows = sha256_tensors([part.content.images_NCHW, part.content.targets_NK])
        if rows in seen:
            raise ArtifactError(
                f"{part.target}: has the same rows as {seen[rows]}; name every set once"
            )
        seen[rows] = part.target
    viewed = [part.target for part in parts if part.content.relabel is not None]
    if viewed and view_labels:
        raise ArtifactError(
            f"{', '.join(viewed)}: its labels of views are of its own classes and epochs, and "
            "those of several sets cannot be joined; --no-view-labels merges images with their "
            "classes alone"
        )
    started = [part.target for part in parts[1:] if part.content.starts_SP is not None]
    if started:
        raise ArtifactError(
            f"{', '.join(started)}: its students start from weights that were published with it, "
            "and no network has those of two sets; leave it out, or name it first"
        )


def _same_tensors(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(tensor, second[name]) for name, tensor in first.items()
    )


def _joined_classes(named: Sequence[Sequence[str]]) -> tuple[list[str], list[list[int]]]:
    """The classes of all, those of the first in their order, and where each set's own lie there."""
    names, places, labels = list[str](), dict[str, int](), list[list[int]]()
    for own in named:
        found = []
        for name in own:
            form = plain_form(name)
            if form not in places:
                places[form] = len(names)
                names.append(name)
            found.append(places[form])
        labels.append(found)
    return names, labels


def _embedded(table_NK: Tensor, own: Sequence[int], classes: int) -> Tensor:
    """Labels of a set's own classes among all of them."""
    embedded_NK = torch.zeros(len(table_NK), classes, dtype=torch.float32)
    embedded_NK[:, list(own)] = table_NK.float().cpu()
    return embedded_NK


def _exact(contents: Sequence[Content]) -> Tensor | None:
    """The values before rounding as a student of the first set sees them."""
    first = contents[0]
    if all(each.exact_NCHW is None for each in contents):
        return None
    space = InputSpace(torch.tensor(first.mean), torch.tensor(first.std))
    parts = []
    for each in contents:
        if each.exact_NCHW is None:
            parts.append(space.to_student(each.images_NCHW.float() / 255))
        elif (each.mean, each.std) == (first.mean, first.std):
            parts.append(each.exact_NCHW)
        else:
            own = InputSpace(torch.tensor(each.mean), torch.tensor(each.std))
            parts.append(space.to_student(own.to_pixels(each.exact_NCHW)))
    return torch.cat(parts)


def _resized(content: Content, classes: int) -> list[str]:
    """The student's layers with a last one for so many classes; [] where there is no such one."""
    old, layers = f"out_features={len(content.class_names)})", content.layers
    if not layers or not layers[-1].startswith("Linear("):
        return []
    return [*layers[:-1], layers[-1].replace(old, f"out_features={classes})")]


def _provenance(parts: Sequence[MergedPart]) -> dict[str, Any]:
    """Where the real images of all come from; the source of the first where all have the same."""
    told = [part.content.provenance for part in parts]
    if len({part.whole_sources for part in parts}) == 1:
        return told[0]
    licenses = [each["license"] or UNKNOWN for each in told]
    return {
        "dataset": AND.join(dict.fromkeys(each["dataset"] for each in told)),
        "config": None,
        "revision": None,
        "files": [file for each in told for file in each["files"]],
        "license": ", ".join(dict.fromkeys(licenses)),
        "card_url": None,
        "splits": {},
        "overlap": {},
    }


def _common_source(parts: Sequence[MergedPart]) -> dict[str, Any] | None:
    """The `source` section of all of their recipes, where it is one."""
    sections = [part.content.recipe.get("source") for part in parts]
    return sections[0] if all(each == sections[0] for each in sections) else None


def _on_classes(parts: Sequence[MergedPart], names: list[str]) -> list[str]:
    """What is said of classes that several sets have."""
    notes = []
    owners = {
        name: [
            part for part in parts if plain_form(name) in map(plain_form, part.content.class_names)
        ]
        for name in names
    }
    shared = [name for name, own in owners.items() if len(own) > 1]
    if shared:
        notes.append(f"classes of several sets, joined by name: {_listed(shared)}")
    spelled = [
        name
        for name in shared
        if len(
            {
                own
                for part in owners[name]
                for own in part.content.class_names
                if plain_form(own) == plain_form(name)
            }
        )
        > 1
    ]
    if spelled:
        notes.append(f"spelled in several ways, taken for the same: {_listed(spelled)}")
    several = len({part.whole_sources for part in parts}) > 1
    if several and shared and numbered(shared):
        notes.append(
            "these classes have numbers for names and the sets have several sources: that one "
            "number means one class is taken for granted here, and nothing can check it"
        )
    return notes


def _on_the_rest(parts: Sequence[MergedPart]) -> list[str]:
    """What is said of rows, normalization, students and budget."""
    notes, first = [], parts[0]
    others = [part.content.name for part in parts[1:] if _space(part) != _space(first)]
    if others:
        notes.append(
            f"students see all rows through the mean and deviation of {first.content.name}; those "
            f"of {_listed(others)} were distilled for their own"
        )
    if any(part.content.student != first.content.student for part in parts):
        notes.append(f"the student described here is that of {first.content.name}")
    if any(part.content.step_sizes or part.content.order for part in parts):
        notes.append("step sizes and orders that were learned with one set are of that set alone")
    cut_from_posters = all(part.content.label_cells for part in parts)
    if not cut_from_posters and any(part.content.geometry["canvas"] != "pixels" for part in parts):
        notes.append(
            "rows that were cut from posters or drawn from numbers stand for themselves here, and "
            "the budget counts their pixels"
        )
    rows = [sha256_tensors([row]) for part in parts for row in part.content.images_NCHW]
    if twice := len(rows) - len(set(rows)):
        notes.append(f"{twice} rows are pixel by pixel like another one, and stay")
    return notes


def _space(part: MergedPart) -> tuple[list[float], list[float]]:
    return part.content.mean, part.content.std


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
