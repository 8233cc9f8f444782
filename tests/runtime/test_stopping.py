"""Ctrl-C, SIGTERM and SIGHUP: the state there is is saved, and what is said of it is true."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from support.families import FAMILIES
from support.launch import launch
from support.toy_runs import Answer, command, hashes, until

from distill_datasets.errors import Interrupted
from distill_datasets.files.artifacts import read_tensors
from distill_datasets.files.yaml_text import to_yaml
from distill_datasets.runtime.stopping import Stop
from distill_datasets.stages.outer_state import OuterState
from distill_datasets.training.loop import SupervisedTraining

NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def not_ignored() -> Any:  # noqa: ANN401
    """A test run in a shell's background inherits that Ctrl-C is ignored."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in NUMBERS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", NUMBERS)
def test_work_that_saves_is_asked_and_other_work_is_broken_off(number: signal.Signals) -> None:
    stop = Stop()
    with pytest.raises(Interrupted, match="what was finished is kept") as broken, stop.listening():
        with stop.saving():
            os.kill(os.getpid(), number)
            until(lambda: stop.asked)
        raise AssertionError("nothing is begun after it")
    assert broken.value.exit_code == 128 + number
    stop = Stop()
    with pytest.raises(Interrupted), stop.listening():
        os.kill(os.getpid(), number)
        threading.Event().wait(30)


def test_handlers_are_as_before_afterwards_and_what_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    before = [signal.getsignal(number) for number in NUMBERS]
    stop = Stop()
    with stop.listening():
        os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGTERM) is not before[1]
    assert not stop.asked and [signal.getsignal(number) for number in NUMBERS] == before


def test_another_thread_than_the_main_one_takes_no_signals() -> None:
    def run() -> None:
        with Stop().listening():
            seen.append(signal.getsignal(signal.SIGTERM))

    seen: list[object] = []
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]


# In one long operation that no handler in Python can break into, as a matrix decomposition is.
BUSY = """
import hashlib, sys
from distill_datasets.runtime.stopping import Stop

stop = Stop()
with stop.listening(), stop.saving():
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""


def test_a_second_signal_leaves_in_the_middle_of_a_long_operation() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", BUSY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            assert process.stdout.readline() == "busy\n"
            process.send_signal(signal.SIGINT)
            assert process.stderr.readline() == (
                "interrupted: saving the state; once more leaves at once\n"
            )
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
        finally:
            process.kill()


def arguments(folder: Path, family: str) -> list[str]:
    """The command line of a toy run, everything below `folder`."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(to_yaml(FAMILIES[family]), encoding="utf-8")
    return ["run", str(recipe), "--runs", str(folder / "runs"), "--output", str(folder / "out")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, str]]:
    """What a run of a family makes that nobody disturbs."""
    known: dict[str, dict[str, str]] = {}

    def files(family: str) -> dict[str, str]:
        if family not in known:
            folder = tmp_path_factory.mktemp(family)
            assert command(*arguments(folder, family)).code == 0
            known[family] = hashes(folder / "out")
        return known[family]

    return files


def interrupted(
    folder: Path, family: str, place: type, name: str, call: int, number: signal.Signals
) -> Answer:
    """A run that gets a signal in the given call of a method."""
    method, calls = getattr(place, name), 0

    def counted(self: object, *given: object, **named: object) -> object:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), number)
        return method(self, *given, **named)

    with mock.patch.object(place, name, counted):
        return command(*arguments(folder, family))


# of a family: the method in which the signal comes, in which call of it, and what is told
PLACES: dict[str, tuple[str, type, str, int, str, str]] = {
    "the outer loop": (
        *("poster", OuterState, "move", 2),
        *("distill is saved after step 2 of 4", "distill: resumed after 2 of 4 steps"),
    ),
    "matching": (
        *("distribution", OuterState, "move", 4),
        *("distill is saved after step 4 of 6", "distill: resumed after 4 of 6 steps"),
    ),
    "a block": ("decoupled", OuterState, "move", 3, "distill is saved after step", "resumed after"),
    # 200 images in batches of 50 by two members in two threads or in one
    "a teacher": ("decoupled", SupervisedTraining, "_moved", 6, "squeeze is saved after step", ""),
    "an expert": ("trajectory", SupervisedTraining, "_moved", 6, "squeeze is saved after step", ""),
    # 10 rows in batches of 4; four students train for 12 steps each
    "a student": (
        *("poster", SupervisedTraining, "_moved", 7),
        *("every student is saved after its last step", ""),
    ),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("where", PLACES)
def test_a_signal_saves_the_state_there_is_and_the_same_bits_follow(
    tmp_path: Path,
    undisturbed: Callable[[str], dict[str, str]],
    where: str,
    number: signal.Signals,
) -> None:
    family, place, name, call, told, again = PLACES[where]
    answer = interrupted(tmp_path, family, place, name, call, number)
    assert answer.code == 128 + number, answer.err
    assert f"interrupted; the same command resumes where it stopped: {told}" in answer.err
    assert "Traceback" not in answer.err and not (tmp_path / "out").exists()
    states = [path for path in tmp_path.rglob("*.safetensors") if is_begun(path)]
    assert states and all(read_tensors(path)[1] for path in states)
    finished = command(*arguments(tmp_path, family))
    assert finished.code == 0, finished.err
    assert again in finished.err and "damaged" not in finished.err
    assert hashes(tmp_path / "out") == undisturbed(family)


def is_begun(path: Path) -> bool:
    """Whether a file holds the state of something that is not finished."""
    of_a_student = path.parent.name.startswith("evaluate-")
    return path.name == "state.safetensors" or "checkpoint" in path.name or of_a_student


# Sends its signal, when the second outer step is moved, to one process or to all of them.
TOLD = """
import os, signal, sys
from distill_datasets.cli import main
from distill_datasets.stages.outer_state import OuterState

who, move = sys.argv[1], OuterState.move

def moved(self, *given):
    if self.step == 1 and who in ("all", os.environ["RANK"]):
        os.kill(os.getpid(), signal.SIGTERM)
    return move(self, *given)

OuterState.move = moved
sys.argv[1:] = sys.argv[2:]
main()
"""


@pytest.mark.gloo
@pytest.mark.timeout(180)
@pytest.mark.parametrize("who", ["0", "1", "all"])
def test_processes_stop_at_the_same_step_whoever_is_told(
    tmp_path: Path, undisturbed: Callable[[str], dict[str, str]], who: str
) -> None:
    (tmp_path / "told.py").write_text(TOLD)
    ended = launch(tmp_path / "told.py", who, *arguments(tmp_path, "poster"), processes=2)
    assert ended.returncode != 0
    assert "resumes where it stopped: distill is saved after step 3 of 4" in ended.stderr
    assert "[error" not in ended.stderr
    finished = command(*arguments(tmp_path, "poster"))
    assert finished.code == 0 and "resumed after 3 of 4 steps" in finished.err
    assert hashes(tmp_path / "out") == undisturbed("poster")
