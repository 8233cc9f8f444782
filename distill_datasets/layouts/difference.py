"""What two published folders have in common, and where they differ."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from distill_datasets.export.folder import read_manifest, task_of
from distill_datasets.export.reading import load_rows
from distill_datasets.export.summary import percent
from distill_datasets.targets import METRICS, OUTPUTS


class Discrepancy(NamedTuple):
    """One value that differs: where it stands, and what each folder has there."""

    what: str
    first: str
    second: str


def differences(first: Path, second: Path) -> list[Discrepancy]:
    """The values that differ: of the set, its recipe, its results and its files.

    Args:
        first: a published folder.
        second: another.

    Raises:
        ArtifactError: one of them is none.
    """
    left, right = _facts(first), _facts(second)
    keys = [*left, *(key for key in right if key not in left)]
    return [
        Discrepancy(key, left.get(key, "-"), right.get(key, "-"))
        for key in keys
        if left.get(key) != right.get(key)
    ]


def _facts(folder: Path) -> dict[str, str]:
    """Everything that is compared, as text, in the order in which it is shown."""
    manifest = read_manifest(folder)
    task = task_of(manifest)
    facts = {
        "name": manifest["name"],
        "method": manifest["method"],
        "source": manifest["source"]["dataset"],
        "source revision": str(manifest["source"]["revision"]),
        OUTPUTS[task].many: f"{len(manifest['classes'])}: {', '.join(manifest['classes'][:20])}",
        "rows": str(manifest["configs"]["default"]["rows"]),
    }
    facts |= {f"budget.{key}": text for key, text in _leaves(manifest["budget"])}
    recipe = json.loads(load_rows(folder, "recipe")[0]["recipe_json"])
    facts |= {f"recipe.{key}": text for key, text in _leaves(recipe)}
    for row in manifest["results"] or []:
        facts[f"{METRICS[task]} of {row['from']}"] = f"{percent(row['accuracy'])} %"
    rows = [file for file in manifest["files"] if file["path"].startswith("data/")]
    facts["bytes of the rows"] = " ".join(file["sha256"][:12] for file in rows)
    return facts


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:  # noqa: ANN401
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else key)
    else:
        yield path, json.dumps(value, ensure_ascii=False)
