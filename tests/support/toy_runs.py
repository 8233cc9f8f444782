"""A toy recipe, and the command line called in this process: what the tests of whole runs share."""

import contextlib
import copy
import hashlib
import io
import logging
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from distill_datasets.cli import main
from distill_datasets.files.yaml_text import to_yaml
from distill_datasets.recipe import Recipe, recipe_from

CONVNET = {"name": "convnet", "depth": 2, "width": 4}
TOY: dict[str, Any] = {
    "name": "toy",
    "source": {"dataset": "embedded:uci-digits", "limit": 200},
    "distill": {
        "steps": 4,
        "lanes": 2,
        "checkpoint_seconds": 0.0,
        "optimizer": {"name": "adam", "lr": 0.1},
        "canvas": {"name": "poster", "ipc": 0.6, "crops": 12},
        "labels": "learned",
        "networks": {"name": "fresh", "network": CONVNET},
        "objective": {
            "name": "unrolled",
            "inner_steps": 4,
            "window": 2,
            "real_batch": 50,
            "optimizer": {"name": "adam", "lr": 0.003},
        },
    },
    "evaluate": {"network": CONVNET, "students": 2, "steps": 10, "beyond": None},
}


class Answer(NamedTuple):
    """What a command printed and returned."""

    code: int
    out: str
    err: str


def toy_sections() -> dict[str, Any]:
    """The toy recipe as nested dictionaries that a test may change."""
    return copy.deepcopy(TOY)


def toy_recipe(*overrides: str) -> Recipe:
    """The toy recipe with some values changed."""
    return recipe_from(toy_sections(), overrides)


def toy_file(folder: Path) -> str:
    """The toy recipe as a file in `folder`."""
    path = folder / "toy.yaml"
    path.write_text(to_yaml(TOY), encoding="utf-8")
    return str(path)


@contextlib.contextmanager
def logging_as_before() -> Iterator[None]:
    """The command line adds a handler to the library's logger; a process usually has only one."""
    logger = logging.getLogger("distill_datasets")
    handlers, level = list(logger.handlers), logger.level
    try:
        yield
    finally:
        logger.handlers[:] = handlers
        logger.setLevel(level)


def command(*arguments: str | Path, columns: int = 200) -> Answer:
    """Run `distill-datasets` with these arguments, as the installed program does."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        logging_as_before(),
        mock.patch.object(sys, "argv", ["distill-datasets", *map(str, arguments)]),
        mock.patch.dict("os.environ", {"COLUMNS": str(columns), "TERM": "dumb"}),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
    return Answer(code, out.getvalue(), err.getvalue())


def hashes(folder: Path) -> dict[str, str]:
    """The sha256 of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def times(folder: Path) -> dict[str, int]:
    """When each file below a folder was last written, in nanoseconds.

    Locks are left out, which hold nothing: some releases of filelock write them to take them.
    """
    return {
        str(path): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".lock")
    }


def until(there: Callable[[], object]) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + 40
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.02)
