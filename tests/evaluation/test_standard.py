"""The standard protocol tells images from labels, and chance from a difference.

Shape suffixes: N images, K classes, C channels, H W pixels.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.published import alone, digits, publish, some_real

from distill_datasets.data.real import RealData
from distill_datasets.evaluation.levels import Standard
from distill_datasets.evaluation.standard import STANDARD, run_standard
from distill_datasets.models.convnets import Mlp

SHORT = Standard(network=Mlp(), students=4, steps=40, references=[])


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> RealData:
    return digits(tmp_path_factory.mktemp("digits"))


def soft(labels_N: torch.Tensor) -> torch.Tensor:
    """Labels of which every other class has a little."""
    return F.one_hot(labels_N, 10).float() * 0.8 + 0.02


def difference(found: dict[str, Any], key: str) -> dict[str, Any]:
    (one,) = [each for each in found["differences"] if each["against"] == key]
    return dict(one)


def test_images_that_show_other_classes_than_their_labels_say_are_worse_than_random_ones(
    tmp_path: Path, real: RealData
) -> None:
    images_NCHW, labels_N = some_real(real, 3, seed=1)
    swapped = publish(tmp_path / "swapped", real, images_NCHW.roll(3, dims=0), soft(labels_N))
    found = run_standard(swapped, real, alone(tmp_path / "runs"), SHORT)
    for regime in ("HL", "SL-1"):
        assert difference(found, f"random_rows/{regime}")["verdict"] == "worse"


def test_bytes_of_references_are_those_of_the_set_and_not_more(
    tmp_path: Path, real: RealData
) -> None:
    images_NCHW, labels_N = some_real(real, 20, seed=1)
    folder = publish(tmp_path / "set", real, images_NCHW, soft(labels_N))
    lossy = ["jpeg", "webp", "webp_half"]
    settings = Standard(network=Mlp(), students=1, steps=1, references=lossy)
    found = run_standard(folder, real, alone(tmp_path / "runs"), settings)
    total = {row["key"]: row["bytes"]["total"] for row in found["rows"]}
    for regime in ("HL", "SL-1"):
        own = total[f"default/{regime}"]
        for kind in lossy:
            assert 0.98 * own <= total[f"{kind}/{regime}"] <= own


def test_a_finished_evaluation_is_read_and_not_trained_again(
    tmp_path: Path, real: RealData, monkeypatch: pytest.MonkeyPatch
) -> None:
    images_NCHW, labels_N = some_real(real, 1)
    folder = publish(tmp_path / "set", real, images_NCHW, F.one_hot(labels_N, 10).float())
    settings = Standard(network=Mlp(), students=2, steps=2, references=[])
    first = run_standard(folder, real, alone(tmp_path / "runs"), settings)
    monkeypatch.setattr("distill_datasets.evaluation.students.train_student", None)
    again = run_standard(folder, real, alone(tmp_path / "runs"), settings)
    (written,) = (tmp_path / "runs").glob(f"*/{STANDARD}")
    assert first == again == json.loads(written.read_text())
