"""Several processes share the students of the standard protocol and find what one finds."""

import json
import sys
from pathlib import Path

import pytest
import torch.nn.functional as F
from support.launch import launch
from support.published import alone, digits, publish, some_real

from distill_datasets.evaluation.levels import Standard
from distill_datasets.evaluation.standard import STANDARD, run_standard
from distill_datasets.models.convnets import Mlp

SETTINGS = Standard(
    network=Mlp(),
    networks=[],
    references=["random_real", "easy", "webp"],
    times=[1],
    teacher=True,
    robustness=False,
    students=2,
    steps=3,
)


@pytest.mark.gloo
def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    real = digits(tmp_path / "source")
    images_NCHW, labels_N = some_real(real, 1)
    folder = publish(tmp_path / "set", real, images_NCHW, F.one_hot(labels_N, 10).float())
    one = run_standard(folder, real, alone(tmp_path / "one"), SETTINGS)
    ended = launch(Path(__file__), tmp_path, processes=2)
    assert ended.returncode == 0, ended.stderr
    (written,) = (tmp_path / "two").glob(f"*/{STANDARD}")
    assert json.loads(written.read_text()) == json.loads(json.dumps(one))


if __name__ == "__main__":
    place = Path(sys.argv[1])
    run_standard(place / "set", digits(place / "source"), alone(place / "two"), SETTINGS)
