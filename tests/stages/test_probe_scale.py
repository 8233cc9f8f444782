"""Linear matching of many classes: memory that does not grow with them, and equal bits."""

from pathlib import Path

import pytest
from support import TESTS
from support.launch import launch

PROGRAM = TESTS / "support" / "probe_scale.py"


def finish(folder: Path, classes: int, images: int, processes: int = 1) -> tuple[int, str]:
    """Bytes of memory at most, and the hash of the images."""
    folder.mkdir()
    finished = launch(PROGRAM, folder, classes, images, processes=processes)
    assert finished.returncode == 0, finished.stderr
    size, digest = finished.stdout.split()
    return int(size), digest


@pytest.mark.gloo
@pytest.mark.timeout(240)
def test_two_processes_make_the_same_images_as_one(tmp_path: Path) -> None:
    alone, shared = finish(tmp_path / "one", 12, 48), finish(tmp_path / "two", 12, 48, processes=2)
    assert alone[1] == shared[1]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ten_times_the_classes_take_no_more_memory_than_their_centers(tmp_path: Path) -> None:
    few, many = (finish(tmp_path / f"{classes}", classes, 4000)[0] for classes in (100, 1000))
    # 512 features of 900 classes more, once in float64 and some times in float32
    assert many - few < 30 * 2**20
