"""The layouts that are known, and which of them a path has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from distill_datasets.errors import ArtifactError, RecipeError, did_you_mean
from distill_datasets.layouts import npz, rows, tensors

ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")


class KnownLayout(NamedTuple):
    """A way in which distilled sets lie: in words, and whether a path has it."""

    title: str
    holds: Callable[[Path], bool]


LAYOUTS = {
    tensors.PAIR: KnownLayout(
        "MTT, TESLA, DATM: images_best.pt, labels_best.pt and lr_best.pt, or a file images_N.pt",
        tensors.is_pair,
    ),
    tensors.EXPERIMENTS: KnownLayout(
        "DC, DSA, DM: a .pt whose `data` has [images, labels] for every experiment",
        tensors.is_experiments,
    ),
    npz.NPZ: KnownLayout("RFAD: an .npz of images, labels and k", npz.is_npz),
    rows.FOLDERS: KnownLayout(
        "SRe2L, RDED, Minimax: a folder of images for each class", rows.is_folder_of_images
    ),
    rows.TABLE: KnownLayout("Parquet files with images and labels or soft labels", rows.is_table),
    rows.HUB: KnownLayout("a dataset on the Hub, as owner/name", lambda path: False),
}
"""By name, in the order in which they are looked for."""


def layout_of(path: Path) -> str:
    """The layout that a file or folder has.

    Raises:
        ArtifactError: none that is known.
    """
    if path.is_file() and path.suffix.lower() in ARCHIVES:
        raise ArtifactError(
            f"{path}: an archive, and nothing in one is read; unpack it and import the folder"
        )
    for name, layout in LAYOUTS.items():
        if layout.holds(path):
            return name
    known = "\n  ".join(f"{name}: {layout.title}" for name, layout in LAYOUTS.items())
    held = sorted(entry.name for entry in path.iterdir())[:5] if path.is_dir() else []
    inside = f" (it holds {', '.join(held) or 'nothing'})" if path.is_dir() else ""
    raise ArtifactError(
        f"{path}: has none of the layouts that are read{inside}; they are\n  {known}"
    )


def known_layout(name: str) -> str:
    """A layout that a user names.

    Raises:
        RecipeError: there is none of that name.
    """
    if name not in LAYOUTS:
        raise RecipeError(f"--layout: no layout {name!r}; {did_you_mean(name, LAYOUTS)}")
    return name
