"""One run at a time in the same folder.

Two runs that do the same work do it once: the second waits for the first, says who that is, and
finds everything done. The main process holds the lock for all processes of its run. The kernel
takes it back from a process that ends, however it ends, so that a dead run stands in nobody's way;
the empty file stays.
"""

import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from distill_datasets.runtime.processes import Runtime

logger = logging.getLogger("distill_datasets")

LOCK = ".lock"
LOOKS_EVERY_SECONDS = 0.5


@contextmanager
def one_run(stage: str, path: Path, runtime: Runtime, *, needed: bool = True) -> Iterator[None]:
    """Keep other runs from doing the same meanwhile; wait for one that does.

    Every process of a run makes this call and waits here for the main one.

    Args:
        stage: its name, for the message.
        path: the lock; its folder is made.
        runtime: this run.
        needed: False where this process sees that nothing is left to be written.
    """
    lock = FileLock(path)
    if needed:
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        if needed and runtime.is_main:
            _acquire(stage, lock)
        runtime.wait()
        yield
    finally:
        if lock.is_locked:
            _holder(lock).unlink(missing_ok=True)
        lock.release()


def _acquire(stage: str, lock: FileLock) -> None:
    """Take a lock, however long another run holds it."""
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info(
                "%s: %s works in %s; this run waits for it and goes on with what is done then",
                stage,
                _described(_holder(lock)),
                lock.lock_file,
            )
            lock.acquire(poll_interval=LOOKS_EVERY_SECONDS)
        with suppress(OSError):  # a full disk costs those that wait a name, no more
            _holder(lock).write_text(json.dumps(_own_name()), encoding="utf-8")
    except (OSError, NotImplementedError) as error:
        logger.warning(
            "%s: cannot lock this file (%s); start no other run of the same recipe until this one "
            "has ended, or choose a folder on another file system with --runs",
            lock.lock_file,
            error,
        )


def _holder(lock: FileLock) -> Path:
    """Who holds a lock, for those that wait; beside it, since who tries a lock may empty it."""
    return Path(f"{lock.lock_file}.json")


def _own_name() -> dict[str, str | int]:
    return {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": " ".join(sys.argv),
    }


def _described(holder: Path) -> str:
    """Another run in words; who it is shows a moment after it has taken the lock."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        name = json.loads(holder.read_text(encoding="utf-8"))
        return (
            f"another run (process {name['process']} on {name['host']}, since {name['since']}: "
            f"{name['command']})"
        )
    return "another run"
