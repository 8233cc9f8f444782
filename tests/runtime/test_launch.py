"""How many processes a command starts, which of them prints, and how they end together."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from support.toy_runs import toy_file, until

from distill_datasets.errors import RecipeError
from distill_datasets.runtime import launch
from distill_datasets.runtime.launch import (
    RANKS,
    REPORTS,
    SIZES,
    Ended,
    PeerLost,
    is_main_process,
    means_lost_peer,
    process_index,
    processes_to_start,
    start,
)

# What a process may do; `rank` is which one it is.
WORKER = """
import os, signal, sys, time
from pathlib import Path
from distill_datasets.errors import DataError, Interrupted, RecipeError
from distill_datasets.runtime.launch import PeerLost, report

rank = int(os.environ["RANK"])

def fail(error):
    report(error)
    sys.exit(error.exit_code)
"""
# Writes down which process it is and never ends; what starts two of them.
ENDLESS = """
import os, pathlib, sys, time
here = pathlib.Path(sys.argv[1])
(here / "unfinished").with_suffix("." + os.environ["RANK"]).write_text(str(os.getpid()))
(here / "unfinished").with_suffix("." + os.environ["RANK"]).rename(here / os.environ["RANK"])
time.sleep(1000)
"""
PARENT = """
import sys
from distill_datasets.runtime.launch import start
start(2, [sys.executable, "-c", sys.argv[1], sys.argv[2]])
"""
# One process finds something wrong with the rows that it has read.
ONE_FAILS = """
import os, sys
from distill_datasets.pipeline import run as pipeline
from distill_datasets.cli import main
from distill_datasets.errors import DataError

def distill(*_, **__):
    raise DataError("row 1550 is unlike the others")

if os.environ["RANK"] == sys.argv[1]:
    pipeline.distill = distill
sys.argv[1:] = sys.argv[2:]
main()
"""


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*RANKS, *SIZES, REPORTS, "ACCELERATE_USE_CPU", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 4)


def test_one_process_stays_one_unless_more_are_asked_for() -> None:
    assert processes_to_start(None) == 1
    assert processes_to_start(3) == 3


@pytest.mark.parametrize("name", SIZES)
def test_a_process_that_a_launcher_started_starts_no_others(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "2")
    assert processes_to_start(2) == 1


@pytest.mark.parametrize("asked", [-1, 0, 5, 1000])
def test_fewer_processes_than_one_and_more_than_there_are_cores_are_refused(asked: int) -> None:
    with pytest.raises(RecipeError, match=rf"--processes: got {asked}, expected 1 to 4: .* cores"):
        processes_to_start(asked)


def test_a_launcher_of_one_process_on_the_cpu_is_taken_at_its_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert processes_to_start(None) == 1


def test_a_launcher_that_started_one_of_several_processes_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(RecipeError, match=r"`distill-datasets run \.\.\. --processes N`, or with"):
        processes_to_start(None)
    assert [processes_to_start(asked) for asked in (1, 2)] == [1, 2]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert processes_to_start(None) == 1


@pytest.mark.parametrize("name", RANKS)
def test_only_the_first_rank_of_any_launcher_prints(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert is_main_process()
    monkeypatch.setenv(name, "0")
    assert is_main_process()
    monkeypatch.setenv(name, "1")
    assert not is_main_process()


def test_a_process_knows_which_one_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert process_index() == 0
    monkeypatch.setenv("LOCAL_RANK", "1")  # of its host only
    assert process_index() == 0
    monkeypatch.setenv("RANK", "3")
    assert process_index() == 3


def test_a_lost_peer_is_recognized_among_several_processes_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lost = RuntimeError("[gloo/transport/tcp/pair.cc:544] Connection closed by peer [127.0.0.1]")
    assert not means_lost_peer(lost)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert means_lost_peer(lost)
    assert not means_lost_peer(RuntimeError("failed to bind, EADDRINUSE: address already in use"))


# processes that are started


def together(program: str) -> Ended:
    """How two processes end that run this after `WORKER`."""
    return start(2, [sys.executable, "-c", WORKER + program])


def test_processes_know_their_place_and_end_well(tmp_path: Path) -> None:
    names = "'WORLD_SIZE', 'LOCAL_WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR'"
    write = f"Path({str(tmp_path)!r}, str(rank)).write_text(' '.join(os.environ[n] for n in names))"
    assert together(f"names = ({names})\n{write}") == Ended(0, {})
    assert (tmp_path / "0").read_text() == "2 2 0 127.0.0.1"
    assert (tmp_path / "1").read_text() == "2 2 1 127.0.0.1"


def test_an_error_of_all_processes_is_told_once() -> None:
    assert together("fail(RecipeError('set steps'))") == Ended(2, {"set steps": 0})


def test_errors_of_two_processes_are_both_told() -> None:
    ended = together("fail(DataError(f'row {rank}'))")
    assert ended == Ended(2, {"row 0": 0, "row 1": 1})


def test_the_error_of_one_process_is_told_and_not_that_another_lost_it() -> None:
    ended = together("fail(DataError('row 9') if rank == 1 else PeerLost())")
    assert ended == Ended(2, {"row 9": 1})


def test_a_process_that_goes_on_is_ended_when_another_has_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launch, "GRACE_SECONDS", 0.3)
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    program = f"if rank == 1: fail(DataError('row 9'))\n{ignore}\ntime.sleep(1000)"
    assert together(program) == Ended(2, {"row 9": 1})


def test_a_process_that_was_killed_is_told_of() -> None:
    ended = together("os.kill(os.getpid(), signal.SIGKILL) if rank == 1 else fail(PeerLost())")
    (message,) = ended.errors
    assert ended == Ended(1, {message: 1})
    assert message.startswith("ended by SIGKILL, perhaps because the memory was full; the same")


def test_one_that_was_ended_because_another_failed_does_not_say_that_it_was_interrupted() -> None:
    ended = together("fail(DataError('row 9') if rank == 1 else Interrupted('all is saved'))")
    assert ended == Ended(2, {"row 9": 1})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_passed_on_once_and_what_the_processes_saved_is_told(
    number: signal.Signals,
) -> None:
    parent = f"os.kill(os.getppid(), {int(number)}) if rank == 0 else None"
    program = f"""
def saves(*_):
    fail(Interrupted(f'saved by {{rank}}'))
signal.signal(signal.SIGTERM, saves)
Path({{ready!r}}, str(rank)).touch()
while not all(Path({{ready!r}}, name).exists() for name in '01'): time.sleep(0.01)
{parent}
time.sleep(1000)
"""
    before = signal.signal(number, signal.SIG_DFL)  # a shell's background ignores Ctrl-C
    try:
        with tempfile.TemporaryDirectory() as ready:
            ended = together(program.replace("{ready!r}", repr(ready)))
    finally:
        signal.signal(number, before)
    saved = {f"interrupted; saved by {rank}": rank for rank in (0, 1)}
    assert ended == Ended(128 + number, saved)


def test_a_loss_is_told_when_the_other_process_has_left_no_message() -> None:
    ended = together("sys.exit(1) if rank == 1 else fail(PeerLost())")
    assert ended == Ended(1, {str(PeerLost()): 0})


def runs(process: int) -> bool:
    """Whether a process is there and not merely unburied."""
    try:
        return ") Z" not in Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_is_left_behind(tmp_path: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, ENDLESS, str(tmp_path)],
        stderr=subprocess.DEVNULL,
        # a test run in a shell's background inherits that the signal is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as parent:
        try:
            until(lambda: all((tmp_path / rank).exists() for rank in "01"))
            workers = [int((tmp_path / rank).read_text()) for rank in "01"]
            assert all(map(runs, workers))
            os.kill(parent.pid, number)
            parent.wait(20)
            until(lambda: not any(map(runs, workers)))
        finally:
            parent.kill()


@pytest.mark.gloo
@pytest.mark.timeout(120)
@pytest.mark.parametrize("rank", [0, 1])
def test_what_only_one_process_of_a_run_finds_is_the_only_thing_told(
    tmp_path: Path, rank: int, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one_fails.py").write_text(ONE_FAILS)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    command = [sys.executable, str(tmp_path / "one_fails.py"), str(rank), "run"]
    ended = start(2, [*command, toy_file(tmp_path), "--runs", str(tmp_path / "runs"), "--quiet"])
    assert ended == Ended(2, {"row 1550 is unlike the others": rank})
    assert "Traceback" not in capfd.readouterr().err
