"""A thousand classes in shards through every stage, by one process and by several: equal bytes.

The shape of ImageNet-1K at toy size: WebDataset tars, match batches of different classes, labels of
views published as shards of their own.
"""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.image_sets import png
from support.toy_runs import hashes

from distill_datasets.export.content import sibling_of
from distill_datasets.export.folder import verify
from distill_datasets.files.artifacts import read_json
from distill_datasets.files.yaml_text import to_yaml

CLASSES, SHARDS, SIDE, IPC = 1000, 8, 8, 1
NETWORK = {"name": "convnet", "depth": 1, "width": 8, "norm": "batch"}
RECIPE: dict[str, Any] = {
    "name": "scale",
    "source": {"dataset": "shards", "channels": "gray"},
    "squeeze": {"network": NETWORK, "epochs": 1, "least_accuracy": 0.0},
    "distill": {
        "objective": {"name": "recover", "match_batch": 250, "roll": 1},
        "canvas": {
            "name": "pixels",
            "ipc": IPC,
            "bounds": "clip",
            "init": {"name": "noise", "std": 0.25},
        },
        "labels": "area",
        "networks": "teachers",
        "steps": 2,
        "previews": 1,
    },
    "relabel": {
        "epochs": 2,
        "batch": 100,
        "store": "top_k",
        "top_k": 10,
        "parquet_below_bytes": 1000,
    },
    "evaluate": {
        "network": NETWORK,
        "students": 2,
        "steps": 4,
        "batch": 100,
        "loss": "kl",
        "temperature": 20.0,
        "references": [],
    },
}
pytestmark = pytest.mark.timeout(240)


def write_shards(folder: Path) -> None:
    """Two training images and one test image of every class, mixed over the tars."""
    folder.mkdir()
    rng = torch.Generator().manual_seed(0)
    for split, per_class in (("train", 2), ("test", 1)):
        order = torch.randperm(CLASSES * per_class, generator=rng).tolist()
        for shard in range(SHARDS):
            with tarfile.open(folder / f"{split}-{shard:03d}.tar", "w") as tar:
                for number in order[shard::SHARDS]:
                    pixels = torch.randint(0, 256, (SIDE, SIDE), generator=rng).byte().numpy()
                    label = str(number % CLASSES).encode()
                    for suffix, data in (("png", png(Image.fromarray(pixels))), ("cls", label)):
                        member = tarfile.TarInfo(f"{number:06d}.{suffix}")
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    write_shards(folder / "shards")
    return folder


def finish(shards: Path, folder: Path, processes: int) -> dict[str, str]:
    """Run the recipe by so many processes; the hashes of everything that is published."""
    recipe = folder / "scale.yaml"
    recipe.write_text(to_yaml(RECIPE), encoding="utf-8")
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    program = [sys.executable, *(launch if processes > 1 else [])]
    arguments = [
        "run",
        str(recipe),
        "--runs",
        str(folder / "runs"),
        "--output",
        str(folder / "out"),
    ]
    settings = {"HF_HOME": str(folder / "home"), "ACCELERATE_USE_CPU": "true"}
    finished = subprocess.run(
        [*program, "-m", "distill_datasets", *arguments],
        env={**os.environ, **settings},
        cwd=shards,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    out = folder / "out"
    return hashes(out) | {f"labels/{name}": h for name, h in hashes(sibling_of(out)).items()}


@pytest.fixture(scope="module")
def alone(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("alone")
    return folder, finish(shards, folder, 1)


def test_a_thousand_classes_go_through_every_stage(alone: tuple[Path, dict[str, str]]) -> None:
    folder, _ = alone
    out = folder / "out"
    assert verify(out) == [] and verify(sibling_of(out)) == []
    manifest = read_json(out / "distill.json")
    assert manifest["budget"]["images"] == CLASSES * IPC
    assert manifest["source"]["splits"] == {"train": 2 * CLASSES, "test": CLASSES}
    assert "exact" not in manifest["configs"] and manifest["quantization"]["max_abs_error"] == 0
    assert manifest["relabel"]["labels"] == 2 * CLASSES * IPC
    assert manifest["budget"]["view_labels"] == 2 * CLASSES * IPC
    blocks = list((folder / "runs" / "scale").glob("distill-*/block-*.safetensors"))
    assert len(blocks) == CLASSES * IPC // 250
    results = json.loads((out / "results.json").read_text())
    assert {row["from"] for row in results} >= {"default", "hard"}


@pytest.mark.gloo
@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_publish_the_same_bytes(
    shards: Path, tmp_path: Path, alone: tuple[Path, dict[str, str]], processes: int
) -> None:
    assert finish(shards, tmp_path, processes) == alone[1]
