"""What a run publishes stays what it was, byte for byte: three recipes against recorded files.

Floating-point bits depend on torch and on the processor, so hashes are compared where both are
those of the recording. The names of files and stages, the keys of the
manifest and the words of the card are compared everywhere.

To record anew, after a change of the published format or of numerics that the CHANGELOG tells:
`python tests/test_golden.py`.
"""

import copy
import json
import platform
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from support.toy_runs import TOY, command, hashes

from distill_datasets.files.yaml_text import to_yaml

FOLDER = Path(__file__).parent / "golden"
NETWORK = {"name": "convnet", "depth": 2, "width": 4}
BATCH_NORM = {**NETWORK, "norm": "batch"}
DISTRIBUTION: dict[str, Any] = {
    **TOY,
    "name": "distribution",
    "distill": {
        "objective": {"name": "distribution", "real_batch": 16},
        "canvas": {"name": "pixels", "ipc": 2, "init": "real", "bounds": "clip"},
        "labels": "area",
        "networks": {"name": "fresh", "network": NETWORK},
        "steps": 3,
        "optimizer": {"name": "sgd", "lr": 1.0, "momentum": 0.5},
    },
    "evaluate": {**TOY["evaluate"], "references": ["random_real", "herding", "class_mean", "full"]},
}
RELABELED: dict[str, Any] = {
    "name": "relabeled",
    "source": TOY["source"],
    "squeeze": {"network": BATCH_NORM, "epochs": 1, "batch": 20, "least_accuracy": 0.0},
    "distill": {
        "objective": {"name": "recover", "match_batch": 10, "roll": 1},
        "canvas": {"name": "pixels", "ipc": 2, "bounds": "clip"},
        "labels": "area",
        "networks": "teachers",
        "steps": 2,
    },
    "relabel": {"epochs": 2, "batch": 10},
    "evaluate": {
        "network": BATCH_NORM,
        "students": 1,
        "steps": 4,
        "batch": 10,
        "loss": "kl",
        "temperature": 4.0,
        "references": ["random_real", "full"],
        "full_epochs": 1,
        "beyond": None,
    },
}
RECIPES: dict[str, dict[str, Any]] = {
    "poster": TOY,
    "distribution": DISTRIBUTION,
    "relabeled": RELABELED,
}
NUMBER = re.compile(r"\b(?:[0-9a-f]{12,64}|\d[\d.,]*(?:e-?\d+)?)\b")


def machine() -> str:
    """What the bits of floating-point numbers depend on: libraries choose kernels by it."""
    about = Path("/proc/cpuinfo")
    text = about.read_text(encoding="utf-8") if about.exists() else ""
    model = re.search(r"(?m)^model name\s*: (.*)$", text)
    named = model[1] if model else platform.processor()
    return f"torch {torch.__version__}, {named}, {torch.backends.cpu.get_cpu_capability()}"


def keys(content: object) -> object:
    """A JSON value with its keys and without its values; of a list the first item's."""
    if isinstance(content, dict):
        return {key: keys(value) for key, value in content.items()}
    return [keys(content[0])] if isinstance(content, list) and content else type(content).__name__


def published(sections: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run a recipe; what is recorded of its published folder and of its stages."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(to_yaml(copy.deepcopy(sections)), encoding="utf-8")
    out, runs = folder / "out", folder / "runs"
    answer = command("run", recipe, "--runs", runs, "--output", out)
    assert answer.code == 0, answer.err
    stages = [*runs.glob("source-*"), *runs.glob(f"{sections['name']}/*-*")]
    # environment lines have the words of this machine
    card = (out / "README.md").read_text(encoding="utf-8")
    card = re.sub(
        r"(?m)^- (python|torch|torchvision|datasets|accelerate|numpy|device): .*$", "", card
    )
    return {
        "machine": machine(),
        # the names of the others carry versions of packages, which no recording knows
        "stages": sorted(
            stage.name for stage in stages if not stage.name.startswith(("evaluate-", "export-"))
        ),
        "hashes": {
            name: value for name, value in hashes(out).items() if not name_of_environment(name)
        },
        "manifest": keys(json.loads((out / "distill.json").read_text(encoding="utf-8"))),
        "card": NUMBER.sub("#", card),
        "recipe": (out / "recipe.yaml").read_text(encoding="utf-8"),
    }


def name_of_environment(name: str) -> bool:
    """Whether a file holds versions of packages, which are not those of the recording."""
    return name in ("README.md", "distill.json") or name.startswith("recipe/")


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_publishes_what_it_did(name: str, tmp_path: Path) -> None:
    got = published(RECIPES[name], tmp_path)
    expected = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    bits = got["machine"] == expected["machine"]
    for what in ("card", "recipe", "manifest", *(("stages", "hashes") if bits else ())):
        assert got[what] == expected[what]
    assert got["hashes"].keys() == expected["hashes"].keys()
    kinds, recorded = (
        [stage.partition("-")[0] for stage in each["stages"]] for each in (got, expected)
    )
    assert kinds == recorded


if __name__ == "__main__":
    for title, content in RECIPES.items():
        with tempfile.TemporaryDirectory() as place:
            text = json.dumps(published(content, Path(place)), indent=1, ensure_ascii=False)
        (FOLDER / f"{title}.json").write_text(text + "\n", encoding="utf-8")
