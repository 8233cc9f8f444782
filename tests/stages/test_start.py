"""The start that a canvas fits to real images: made once, and the same where it is taken again."""

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from support.toy_runs import command, hashes, toy_file

from distill_datasets.canvases import gaussians

FITTED = "distill.canvas={name: gaussians, ipc: 1, blobs: 3, fit_steps: 5}"


@pytest.fixture
def fits() -> Iterator[mock.Mock]:
    """Counts how often numbers are fitted to images."""
    with mock.patch.object(gaussians, "fitted", wraps=gaussians.fitted) as counted:
        yield counted


def toy(folder: Path, name: str, steps: int, *overrides: str) -> dict[str, str]:
    """The hashes of what a toy run publishes."""
    out = folder / f"{name}-{steps}"
    where = ["--runs", folder / name, "--output", out, "--quiet"]
    answer = command("run", toy_file(folder), FITTED, f"distill.steps={steps}", *overrides, *where)
    assert answer.code == 0, answer.err
    return hashes(out)


def test_a_start_that_is_fitted_is_made_once_and_is_the_same_again(
    tmp_path: Path, fits: mock.Mock
) -> None:
    toy(tmp_path, "kept", 1)
    again = toy(tmp_path, "kept", 2)
    assert fits.call_count == 1
    assert toy(tmp_path, "anew", 2) == again
    assert fits.call_count == 2


def test_another_seed_has_a_start_of_its_own(tmp_path: Path, fits: mock.Mock) -> None:
    toy(tmp_path, "kept", 1)
    toy(tmp_path, "kept", 2, "seed=1")
    assert fits.call_count == 2


def test_a_damaged_start_is_made_again(tmp_path: Path, fits: mock.Mock) -> None:
    toy(tmp_path, "kept", 1)
    (start,) = (tmp_path / "kept").rglob("start-*.safetensors")
    start.write_bytes(start.read_bytes()[:-1])
    toy(tmp_path, "kept", 2)
    assert fits.call_count == 2
