"""Several processes on one machine, and which of them this one is.

`accelerate launch --cpu --num_processes N` starts a single process where there is no MPI and does
not tell it of N (accelerate 1.15). That is refused here: the run would take N times as long as was
asked for and say nothing.

Processes that were started here leave their errors in a folder instead of printing them: the one
that started them tells each error once, and by whom.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

from distill_datasets.errors import DistillError, Interrupted, RecipeError

RANKS = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK")
SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
REPORTS = "DISTILL_DATASETS_REPORTS"
"""Names the folder of the errors of processes that were started here."""
GRACE_SECONDS = 10.0
"""How long the others may go on, or take to end, when one has failed."""
SIGNALS = tuple(
    number
    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", None))
    if number is not None
)
"""What a run answers by saving what it has; not every system knows the last one."""
SET_PARENT_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of Linux's prctl.h."""
LOST_PEER = (
    *("Connection closed by peer", "Connection reset by peer", "Broken pipe"),
    *("Connection was likely closed", "Socket Timeout", "recvValue failed"),
)
"""What gloo and the store of torch.distributed say when another process is gone."""


class PeerLost(DistillError):
    """Another process of this run has ended, for a reason that it told itself."""

    def __init__(self) -> None:
        super().__init__(
            "lost the connection to another process of this run; what ended that one is told above "
            "or in its own output"
        )


@dataclass(frozen=True)
class Ended:
    """How several processes ended: one exit code, and each error with the first that had it."""

    code: int
    errors: dict[str, int]


def is_main_process() -> bool:
    """True in the one process that prints; known before torch is imported."""
    return all(os.environ.get(name, "0") == "0" for name in RANKS)


def process_index() -> int:
    """Which of several processes this one is, as its launcher says; 0 where there is none."""
    return max(int(os.environ.get(name, "0")) for name in RANKS)


def is_one_of_several() -> bool:
    """Whether several processes share the work, as their launcher says."""
    return any(os.environ.get(name, "1") != "1" for name in SIZES)


def means_lost_peer(error: Exception) -> bool:
    """Whether an error of torch.distributed only says that another process of this run is gone."""
    return is_one_of_several() and any(words in str(error) for words in LOST_PEER)


def report(error: DistillError) -> bool:
    """Leave an error to the process that started this one; False when no such process waits."""
    folder = os.environ.get(REPORTS)
    if folder is None:
        return False
    kind = "lost" if isinstance(error, PeerLost) else "error"
    kind = "interrupted" if isinstance(error, Interrupted) else kind
    path = Path(folder) / f"{process_index()}.{kind}"
    path.write_text(str(error), encoding="utf-8")
    return True


def processes_to_start(asked: int | None) -> int:
    """How many processes this one has to start; 1 when they run already or none were asked for.

    Args:
        asked: the `--processes` option.

    Raises:
        RecipeError: fewer than one or more than there are cores; or Accelerate was asked for
            several and has started this one.
    """
    cores = os.cpu_count() or 1
    if asked is not None and not 1 <= asked <= cores:
        raise RecipeError(
            f"--processes: got {asked}, expected 1 to {cores}: this machine has {cores} cores, "
            "and more processes than cores only wait for each other"
        )
    if any(name in os.environ for name in SIZES):
        return 1
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    # the launcher names a main process when more than one was asked for
    if asked is None and on_cpu and "MASTER_ADDR" in os.environ:
        raise RecipeError(
            "accelerate launch: was asked for several processes on a CPU and has started one, "
            "without MPI; start them with `distill-datasets run ... --processes N`, or with "
            "`torchrun --nproc_per_node N -m distill_datasets run ...`; --processes 1 stays with "
            "one"
        )
    return asked or 1


def start(processes: int, command: list[str]) -> Ended:
    """Run a command in several processes that share the work, until all of them have ended.

    When one fails, or this process is killed, the others are ended as well. The first signal that
    this process gets asks them to save what they have and to end, the second ends them at once.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryDirectory(prefix="distill-datasets-") as folder:
        settings = _settings(processes) | {REPORTS: folder}
        workers = list[subprocess.Popen[bytes]]()
        with _passing_on(workers) as asked:
            try:
                for rank in range(processes):
                    place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                    workers.append(_worker(command, os.environ | settings | place))
                codes = _wait(workers, asked)
            finally:
                _end(workers)
        return _ended(codes, Path(folder), asked)


def _settings(processes: int) -> dict[str, str]:
    """What torch.distributed reads in the environment, the same for all processes."""
    threads = max(1, (os.cpu_count() or 1) // processes)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _worker(command: list[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start one process. It leaves Ctrl-C to this one, and on Linux ends when this one does."""
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
    return subprocess.Popen(command, env=environment, preexec_fn=partial(_bind_to_parent, prctl))


def _bind_to_parent(prctl: "ctypes._NamedFuncPointer | None") -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if prctl is not None:
        prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)


@contextlib.contextmanager
def _passing_on(workers: list[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Pass on to workers what this process is told; gives the signals that have come."""
    asked = list[int]()

    def handle(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        for worker in workers:
            if len(asked) == 1:
                worker.terminate()
            else:
                worker.kill()

    taken = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in taken}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(workers: list[subprocess.Popen[bytes]], asked: list[int]) -> list[int | None]:
    """The exit codes when all have ended, or some time after one failed: None of those that run.

    Those that save because they were asked to end may take their time.
    """
    deadline = float("inf")
    while True:
        codes = [worker.poll() for worker in workers]
        if None not in codes or (time.monotonic() > deadline and not asked):
            return codes
        if deadline == float("inf") and any(codes):
            deadline = time.monotonic() + GRACE_SECONDS
        time.sleep(0.05)


def _end(workers: list[subprocess.Popen[bytes]]) -> None:
    """Leave no process behind."""
    for worker in workers:
        worker.terminate()  # nothing where it has ended
    for worker in workers:
        try:
            worker.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def _ended(codes: list[int | None], folder: Path, asked: list[int]) -> Ended:
    """What there is to say, and the exit code of the first process that says it."""
    if asked:
        saved = _reported(folder, "interrupted")
        kept = "interrupted; what was saved before is kept, and the same command resumes from there"
        return Ended(128 + asked[0], _reported(folder, "error") or saved or {kept: 0})
    killed = {_killed(-code): rank for rank, code in enumerate(codes) if code and code < 0}
    # what another process has lost says less than why
    errors = _reported(folder, "error") or killed or _reported(folder, "lost")
    errors = errors or _reported(folder, "interrupted")
    code = next((code for code in [*(codes[rank] for rank in errors.values()), *codes] if code), 0)
    return Ended(1 if code < 0 else code, errors)


def _reported(folder: Path, kind: str) -> dict[str, int]:
    """The errors that processes have left, each with the first that has left it."""
    first = dict[str, int]()
    for path in sorted(folder.glob(f"*.{kind}"), key=lambda path: int(path.stem)):
        first.setdefault(path.read_text(encoding="utf-8"), int(path.stem))
    return first


def _killed(number: int) -> str:
    name = signal.Signals(number).name
    likely = ", perhaps because the memory was full" if number == signal.SIGKILL else ""
    return f"ended by {name}{likely}; the same command resumes where it stopped"
