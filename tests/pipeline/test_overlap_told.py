"""Images in both splits, from the folder to the card: counted, told, dropped, whoever shares it."""

import io
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.toy_runs import command, hashes, toy_file

from distill_datasets.files.artifacts import read_json

SHARED = "test images are also in training, pixel by pixel, and"
# Compares two test rows at once, so that several processes have something to share.
PIECES = """
from distill_datasets.data import overlap
from distill_datasets.cli import main
overlap.TEST_ROWS = 2
main()
"""


def photograph(seed: int) -> Image.Image:
    """A smooth random color image."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    return coarse.resize((16, 16), Image.Resampling.BICUBIC)


def table(path: Path, images: list[Image.Image]) -> None:
    """A Parquet file of PNG bytes, two classes in turn."""
    cells = list[bytes]()
    for image in images:
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        cells.append(buffer.getvalue())
    labels = [row % 2 for row in range(len(images))]
    pq.write_table(pa.table({"image": cells, "label": labels}), path)


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty training images; of twelve for testing three are among them, two a little darker."""
    root = tmp_path_factory.mktemp("shared") / "pets"
    root.mkdir()
    train = [photograph(seed) for seed in range(40)]
    darker = [train[row].point(lambda value: value * 0.9) for row in (20, 31)]
    strangers = [photograph(seed) for seed in range(100, 107)]
    table(root / "train.parquet", train)
    table(root / "test.parquet", [train[3], *darker, train[8], *strangers, train[35]])
    return root


def arguments(verb: str, folder: Path, pets: Path, *overrides: str) -> list[str]:
    """A short run on these images, everything below `folder`."""
    folder.mkdir()
    values = [
        f"source.dataset={pets}",
        "distill.canvas={name: pixels, ipc: 1}",
        "distill.objective={name: distribution, real_batch: 8}",
        *("distill.steps=2", "evaluate.students=1", "evaluate.steps=2"),
        *overrides,
    ]
    return [verb, toy_file(folder), *values]


def written(folder: Path) -> list[str]:
    return ["--runs", str(folder / "runs"), "--output", str(folder / "out")]


@pytest.mark.timeout(120)
def test_a_plan_that_measures_a_run_and_its_card_say_how_many_images_are_shared(
    tmp_path: Path, pets: Path
) -> None:
    counted = f"3 of 12 {SHARED} 2 nearly"
    with (
        mock.patch("distill_datasets.planning.plan.probe", return_value=1e9),
        mock.patch("distill_datasets.planning.plan.minutes_of", return_value=None),
    ):
        measured = command(*arguments("plan", tmp_path / "plan", pets), "--probe")
    assert measured.code == 0, measured.err
    assert f"overlap {counted}" in " ".join(measured.out.split())
    folder = tmp_path / "run"
    ran = command(*arguments("run", folder, pets), *written(folder))
    assert ran.code == 0, ran.err
    assert f"{counted}: accuracy is better than it would be on new images" in ran.err
    card = (folder / "out" / "README.md").read_text()
    line = "- test images that are also in training: 3 of 12 pixel by pixel, 2 nearly\n"
    assert line in card
    found = read_json(folder / "out" / "distill.json")["source"]["overlap"]
    assert found == {"identical": 3, "near": 2, "test": 12, "dropped": 0}


@pytest.mark.timeout(120)
def test_a_run_that_refuses_shared_images_ends_before_it_trains(tmp_path: Path, pets: Path) -> None:
    folder = tmp_path / "run"
    words = arguments("run", folder, pets, "source.overlap=refuse")
    refused = command(*words, *written(folder))
    assert refused.code == 2
    assert f"source.overlap: 3 of 12 {SHARED} 2 nearly; rows of train: 3, 8, 20, 31, 35" in (
        refused.err
    )
    assert not list((folder / "runs").rglob("distill-*")) and not (folder / "out").exists()


@pytest.mark.gloo
@pytest.mark.timeout(180)
def test_two_processes_drop_the_same_images_and_publish_the_same_bytes(
    tmp_path: Path, pets: Path
) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    one = command(*arguments("run", alone, pets, "source.overlap=drop"), *written(alone))
    assert one.code == 0, one.err
    card = (alone / "out" / "README.md").read_text()
    assert "3 of 12 pixel by pixel, 2 nearly; 5 training images were left out for it" in card
    program = tmp_path / "pieces.py"
    program.write_text(PIECES)
    words = arguments("run", together, pets, "source.overlap=drop")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(program)]
    settings = {"HF_HOME": str(tmp_path), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    two = subprocess.run(
        [sys.executable, *launch, *words, *written(together)],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
    )
    assert two.returncode == 0, two.stderr
    assert hashes(together / "out") == hashes(alone / "out")
    for name in ("train.npy", "test.npy"):
        (ours,), (theirs,) = (
            list(each.rglob(name)) for each in (alone / "runs", together / "runs")
        )
        assert ours.read_bytes() == theirs.read_bytes()
