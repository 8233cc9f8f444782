"""The card of a finished set made anew from what lies beside it, with what people wrote in it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from distill_datasets.errors import ArtifactError
from distill_datasets.export.agreement import corrected, damaged
from distill_datasets.export.card import PLACEHOLDER, card
from distill_datasets.export.edited import merged, own_parts
from distill_datasets.export.folder import (
    CARD,
    MANIFEST,
    manifest_text,
    read_manifest,
    rows_hash,
)
from distill_datasets.files.artifacts import sha256_of, write_text
from distill_datasets.files.yaml_text import to_yaml
from distill_datasets.layouts.stored import as_written

_LOADED = re.compile(r'load_dataset\("([^"]+)"')


class Rewritten(NamedTuple):
    """A card made anew.

    Attributes:
        text: of `README.md`.
        own: the hashes of our parts of it, for the manifest.
        changed: whether it is another text than that which lies there.
        kept: what others wrote: blocks, and keys of the front matter.
    """

    text: str
    own: dict[str, Any]
    changed: bool
    kept: list[str]


def rewritten(folder: Path) -> Rewritten:
    """What the card of a finished set is when our parts of it are written anew.

    Numbers that the tables and the budget state are those of the manifest afterwards, in edited
    parts too. Without a card, all of it is written.

    Args:
        folder: in the published layout.

    Raises:
        ArtifactError: it is none, another file than the card is damaged, or nothing tells which
            parts of an edited card are ours.
    """
    manifest = read_manifest(folder)
    if "labels_of" in manifest:
        raise ArtifactError(
            f"{folder}: holds the labels of views that belong to a dataset; name that dataset"
        )
    if found := [each for each in damaged(folder) if each != f"{CARD}: missing"]:
        raise ArtifactError(f"{folder}: is damaged: {'; '.join(found[:3])}")
    path = folder / CARD
    with _beside_a_plain_card(folder, manifest) as copy:
        content = as_written(copy)
    new = card(content, manifest["results"], manifest["budget"], rows_hash(folder))
    if not path.exists():
        return Rewritten(new, own_parts(new), True, [])
    try:
        edited = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path}: is no text in UTF-8 ({error}); mend it") from error
    loaded = _LOADED.search(edited)
    new = new.replace(PLACEHOLDER, PLACEHOLDER if loaded is None else loaded[1])
    text, kept = merged(_parts_of(path, edited, manifest), edited, new)
    text = corrected(text, manifest)
    return Rewritten(text, own_parts(new), text != edited, kept)


def write_card(folder: Path, made: Rewritten) -> None:
    """Put a card that was made anew into its folder, and its hash into the manifest.

    Raises:
        ArtifactError: the folder is a copy that the Hub's client keeps, or cannot be written.
    """
    if (folder / MANIFEST).is_symlink():
        raise ArtifactError(
            f"{folder}: is a copy that the Hub's client keeps; name it as owner/name, or pull it"
        )
    # first the card: a manifest of another one would call it edited by people
    write_text(folder / CARD, made.text)
    manifest = read_manifest(folder) | {"card": made.own}
    for entry in manifest["files"]:
        if entry["path"] == CARD:
            path = folder / CARD
            entry.update(bytes=path.stat().st_size, sha256=sha256_of(path))
    write_text(folder / MANIFEST, manifest_text(manifest))


@contextmanager
def _beside_a_plain_card(folder: Path, manifest: dict[str, Any]) -> Iterator[Path]:
    """The set with a card that only names its configurations: `datasets` finds rows by the card."""
    named = [
        {"config_name": name, "data_files": f"{Path(config['path']).parent}/train-*"}
        for name, config in manifest["configs"].items()
    ]
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary, "set")
        for file in manifest["files"]:
            path = copy / file["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            if file["path"] != CARD:
                path.symlink_to((folder / file["path"]).resolve())
        write_text(copy / CARD, f"---\n{to_yaml({'configs': named})}---\n")
        write_text(copy / MANIFEST, manifest_text(manifest))
        yield copy


def _parts_of(path: Path, edited: str, manifest: dict[str, Any]) -> dict[str, Any]:
    """The hashes of our parts of the card as it was written."""
    if "card" in manifest:
        return dict(manifest["card"])
    (written,) = (file["sha256"] for file in manifest["files"] if file["path"] == CARD)
    if sha256_of(path) != written:
        raise ArtifactError(
            f"{path}: was edited, and its {MANIFEST}, of an earlier release, does not say which "
            "parts of it are not; keep it under another name, write the card anew with the same "
            "command, and put the words of yours back"
        )
    return own_parts(edited)
