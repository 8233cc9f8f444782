"""What sets that are made of finished ones have in common: what is written of where they come from.

Nothing is distilled anew: rows are the very pixels, floats and labels of the sets that they are
taken from, and what is said beside them names these by their hashes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill_datasets import __version__
from distill_datasets.data.opening import without_places
from distill_datasets.export.folder import MANIFEST, read_manifest, recipe_of
from distill_datasets.files.artifacts import canonical_json, sha256_of, sha256_text
from distill_datasets.files.yaml_text import to_yaml


def part_of(target: str, folder: Path, rows: list[int]) -> dict[str, Any]:
    """One of the sets that a set is made of, as its manifest names it.

    Args:
        target: what the user called it.
        folder: where it lies.
        rows: those of it that were taken, in their order in the new set.
    """
    manifest = read_manifest(folder)
    return {
        "target": without_places({"dataset": target})["dataset"],
        "name": manifest["name"],
        "source": manifest["source"]["dataset"],
        "license": manifest["source"]["license"],
        "manifest_sha256": sha256_of(folder / MANIFEST),
        "recipe_sha256": manifest["recipe_sha256"],
        "recipe": recipe_of(folder),
        "rows": rows,
    }


def identity(
    name: str,
    verb: str,
    facts: dict[str, Any],
    of: list[dict[str, Any]],
    sections: dict[str, Any],
) -> dict[str, Any]:
    """The recipe of a derived set and its hash, as fields of `Content`.

    Args:
        name: title of the card.
        verb: shrink, extend or merge.
        facts: with which settings.
        of: what `part_of` told of every part.
        sections: of a recipe that stay true of the new set, such as `source`.
    """
    parts = [{key: part[key] for key in ("target", "manifest_sha256", "recipe")} for part in of]
    recipe = {"name": name, "derived": {"verb": verb, **facts, "of": parts}, **sections}
    return {
        "name": name,
        "recipe": recipe,
        "recipe_yaml": to_yaml(recipe),
        "recipe_sha256": sha256_text(canonical_json(recipe)),
        "environment": {"distill_datasets": __version__},
        "imported": None,
        "written": {},
    }
