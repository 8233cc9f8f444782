"""One folder of runs, and two things that want to be in it: an earlier state, or another run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.toy_runs import command, hashes, toy_file, until

from distill_datasets.files.artifacts import done, read_tensors
from distill_datasets.stages.distill import STATE

QUICK = ["distill.steps=3", "evaluate.students=1", "evaluate.steps=2"]
# The run is sent TERM as soon as the state after its first outer step is saved.
STOPPED = """
import os, signal
from distill_datasets.cli import main
from distill_datasets.stages.outer_state import OuterState

save = OuterState.save

def saved(state, path):
    save(state, path)
    if state.step == 1:
        os.kill(os.getpid(), signal.SIGTERM)

OuterState.save = saved
main()
"""
# Says that it is imported, and begins when it is told to.
TOGETHER = """
import sys
from distill_datasets.pipeline import run
from distill_datasets.cli import main
print("imported", flush=True)
sys.stdin.readline()
main()
"""


def process(program: str, recipe: str, folder: Path) -> subprocess.Popen[str]:
    """A run in a process of its own."""
    settings = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "COLUMNS": "200"}
    words = ["run", recipe, *QUICK, "--runs", str(folder / "runs"), "--output", str(folder / "out")]
    return subprocess.Popen(
        [sys.executable, "-c", program, *words],
        env={**os.environ, **settings},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.timeout(180)
def test_an_earlier_state_in_a_finished_folder_is_told_and_gone_on_from(tmp_path: Path) -> None:
    recipe, places = toy_file(tmp_path), [tmp_path / "runs", tmp_path / "out"]
    words = ["run", recipe, *QUICK, "--runs", str(places[0]), "--output"]
    stopped = process(STOPPED, recipe, tmp_path)
    _, err = stopped.communicate()
    assert stopped.returncode != 0 and "Traceback" not in err, err
    (folder,) = places[0].rglob("distill-*")
    earlier = (folder / STATE).read_bytes()
    assert read_tensors(folder / STATE)[1]["step"] == 1 and done(folder) is None
    assert command(*words, places[1]).code == 0
    finished, last = hashes(places[1]), (folder / STATE).read_bytes()
    assert done(folder) is not None and last != earlier
    # the state is whole and of this recipe, so that no checksum tells: only its step is wrong
    (folder / STATE).write_bytes(earlier)
    for made in [*places[0].rglob("export-*"), *places[0].rglob("evaluate-*")]:
        shutil.rmtree(made)
    shutil.rmtree(places[1])
    again = command(*words, places[1])
    assert again.code == 0, again.err
    assert "says that all 3 steps are done, but its state is that after 1; it goes on" in again.err
    assert hashes(places[1]) == finished and (folder / STATE).read_bytes() == last


@pytest.mark.timeout(180)
def test_two_runs_of_one_recipe_at_once_do_the_work_once_and_agree(tmp_path: Path) -> None:
    recipe, alone = toy_file(tmp_path), tmp_path / "alone"
    words = ["run", recipe, *QUICK, "--runs", str(alone / "runs"), "--output"]
    assert command(*words, alone / "out").code == 0
    runs = [process(TOGETHER, recipe, tmp_path) for _ in range(2)]
    for each in runs:
        assert each.stdout is not None and each.stdout.readline() == "imported\n"
    for each in runs:
        assert each.stdin is not None
        each.stdin.write("go\n")
        each.stdin.flush()
    said = [each.communicate()[1] for each in runs]
    assert [each.returncode for each in runs] == [0, 0], "".join(said)
    assert not any("Traceback" in err or "damaged" in err for err in said)
    # whoever came second has waited at least once, for a process that it names
    waits = [re.findall(r"another run \(process (\d+) on .*this run waits for it", e) for e in said]
    assert any(waits), said
    for each, found in zip(runs, waits, strict=True):
        assert str(each.pid) not in found
    assert hashes(tmp_path / "out") == hashes(alone / "out")
    for stage in ("source", "distill", "export", "evaluate"):
        pattern = f"{stage}-*"
        assert len(list((tmp_path / "runs").rglob(pattern))) == len(
            list((alone / "runs").rglob(pattern))
        )
    until(lambda: not list((tmp_path / "runs").rglob(".lock.json")))
