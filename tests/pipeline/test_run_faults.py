"""Kills, flipped bits, cut files and full disks: what is published is the same, or it is told.

Run them with `pytest -m slow tests/pipeline/test_run_faults.py -s`, which prints the counts.
"""

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.families import FAMILIES
from support.toy_runs import command, hashes

from distill_datasets.files.yaml_text import to_yaml

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]
KILLS_OF_A_FAMILY = 13
"""Of four families: 52 kills, half of them by SIGKILL."""
FLIPS_OF_A_FILE = 3
# Lets a parent know that the imports are over, and how long the work took.
PROGRAM = """
import os, sys, time
from distill_datasets.pipeline import run
from distill_datasets.cli import main
print("begun", flush=True)
main()
"""


def arguments(folder: Path, family: str) -> list[str]:
    """The command line of a toy run, everything below `folder`."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(to_yaml(FAMILIES[family]), encoding="utf-8")
    return ["run", str(recipe), "--runs", str(folder / "runs"), "--output", str(folder / "out")]


@contextlib.contextmanager
def begun(folder: Path, family: str) -> Iterator[subprocess.Popen[str]]:
    """A run in a process of its own, which has imported everything."""
    settings = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments(folder, family)],
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "begun\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_that_is_killed_at_random_points_publishes_the_same_bytes(
    tmp_path: Path, family: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    with begun(whole, family) as process:
        start = time.monotonic()
        assert process.wait() == 0
        takes = time.monotonic() - start
    expected, rng = hashes(whole / "out"), random.Random(family)
    counts = Counter[str]()
    for kill in range(KILLS_OF_A_FAMILY):
        if not folder.exists() or (folder / "out").exists():
            shutil.rmtree(folder, ignore_errors=True)  # a finished run starts anew
            folder.mkdir()
        number = signal.SIGKILL if kill % 2 else signal.SIGTERM
        with begun(folder, family) as process:
            time.sleep(rng.uniform(0, takes))
            process.send_signal(number)
            _, err = process.communicate()
        assert process.returncode in (0, -number, 128 + number), err
        assert "Traceback" not in err and "damaged" not in err
        counts[f"{number.name}, {'too late' if process.returncode == 0 else 'in time'}"] += 1
        if (folder / "out").exists():
            assert hashes(folder / "out") == expected
    finished = command(*arguments(folder, family))
    assert finished.code == 0, finished.err
    assert hashes(folder / "out") == expected
    with capsys.disabled():
        print(f"\n{family}: a run takes {takes:.1f} s; {dict(counts)}; 0 differences")


def told(err: str) -> bool:
    """Whether a run says that something was not what was written."""
    return any(words in err for words in ("made anew", "read anew", "is not what a run wrote"))


def finish(folder: Path, family: str, expected: dict[str, str]) -> str:
    """Run again; `the same`, or `told` where damage is said; anything else is a failure."""
    finished = command(*arguments(folder, family))
    assert "Traceback" not in finished.err
    if finished.code != 0:
        assert told(finished.err) or "error:" in finished.err, finished.err
        return "refused"
    found = hashes(folder / "out")
    if told(finished.err) and found | {"README.md": expected["README.md"]} == expected != found:
        return "told and kept, as a card that was edited"
    assert found == expected, "a silent difference"
    return "told and made anew" if told(finished.err) else "harmless"


def damages(content: bytes, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """The content of a file with a bit flipped, cut short, and empty."""
    for _ in range(FLIPS_OF_A_FILE if content else 0):
        bit = rng.randrange(8 * len(content))
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        yield "a flipped bit", bytes(flipped)
    yield "cut short", content[: len(content) // 2]
    yield "empty", b""


@pytest.mark.parametrize("with_output", [False, True], ids=["without results", "finished"])
@pytest.mark.parametrize("family", FAMILIES)
def test_damage_to_any_file_of_a_run_folder_is_told_or_changes_nothing(
    tmp_path: Path, family: str, with_output: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "damaged"
    whole.mkdir()
    assert command(*arguments(whole, family)).code == 0
    expected, rng = hashes(whole / "out"), random.Random(family)
    counts = Counter[str]()
    kept = whole / ("out" if with_output else "runs")
    files = [path.relative_to(whole) for path in sorted(kept.rglob("*")) if path.is_file()]
    for name in files:
        if ".lock" in name.name:
            continue
        for kind, content in damages((whole / name).read_bytes(), rng):
            shutil.copytree(whole, folder)
            if not with_output:
                shutil.rmtree(folder / "out")
            (folder / name).write_bytes(content)
            counts[f"{kind}: {finish(folder, family, expected)}"] += 1
            shutil.rmtree(folder)
    with capsys.disabled():
        print(f"\n{family}: {len(files)} files; {dict(sorted(counts.items()))}; 0 differences")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_disk_that_is_full_at_any_size_is_told_and_gone_on_from(
    tmp_path: Path, family: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "full"
    whole.mkdir(), folder.mkdir()
    assert command(*arguments(whole, family)).code == 0
    expected = hashes(whole / "out")
    sizes = sorted({path.stat().st_size for path in whole.rglob("*") if path.is_file()})
    refused = 0
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for most in (size - 1 for size in sizes if size > 400):
        words = arguments(folder, family)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
        try:
            answer = command(*words)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "Traceback" not in answer.err
        if answer.code:
            refused += 1
            assert "File too large" in answer.err and "is kept" in answer.err, answer.err
    finished = command(*arguments(folder, family))
    assert finished.code == 0, finished.err
    assert hashes(folder / "out") == expected
    with capsys.disabled():
        print(f"\n{family}: {refused} full disks told, all gone on from; 0 differences")
