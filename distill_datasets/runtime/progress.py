"""Bars for long work: the stage, how far it is, its loss, its speed and the time left.

Drawn only by the main process, on a terminal or in a notebook, unless the user asked for quiet;
elsewhere a line goes to the log about ten times per bar, so that a log file still tells how far the
work is.
"""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

logger = logging.getLogger("distill_datasets")


class Bar(Protocol):
    """What a stage sees of its progress bar."""

    def advance(self, steps: int, **numbers: float) -> None:
        """Say that `steps` more are done, with numbers worth showing."""
        ...

    def expect(self, total: int) -> None:
        """Say how many steps there are, where that shows only after the start."""
        ...


class TerminalBar:
    """A bar of rich."""

    def __init__(self, progress: Progress, task: TaskID, started: float) -> None:
        self._progress, self._task, self._started = progress, task, started
        self._done = 0

    def advance(self, steps: int, **numbers: float) -> None:
        self._done += steps
        speed = self._done / max(time.monotonic() - self._started, 1e-9)
        shown = [f"{name} {value:.4g}" for name, value in numbers.items()]
        self._progress.update(
            self._task,
            advance=steps,
            numbers="  ".join([*shown, f"{speed:.2f}/s"]),
        )

    def expect(self, total: int) -> None:
        self._progress.update(self._task, total=total)


class NotebookBar:
    """A bar of tqdm, which draws in the output of a cell."""

    def __init__(self, bar: Any) -> None:  # noqa: ANN401 - tqdm has no types
        self._bar = bar

    def advance(self, steps: int, **numbers: float) -> None:
        self._bar.set_postfix({name: f"{value:.4g}" for name, value in numbers.items()}, False)
        self._bar.update(steps)

    def expect(self, total: int) -> None:
        self._bar.total = total


class LogBar:
    """About ten log lines."""

    def __init__(self, stage: str, total: int) -> None:
        self._stage, self._total, self._done, self._said = stage, total, 0, 0

    def advance(self, steps: int, **numbers: float) -> None:
        self._done += steps
        tenth = 10 * self._done // max(1, self._total)
        if tenth > self._said:
            self._said = tenth
            shown = "".join(f", {name} {value:.4g}" for name, value in numbers.items())
            logger.info("%s: %d of %d%s", self._stage, self._done, self._total, shown)

    def expect(self, total: int) -> None:
        self._total = total


class NoBar:
    """Nothing: another process shows the bar, or the user asked for quiet."""

    def advance(self, steps: int, **numbers: float) -> None:
        """Ignored."""

    def expect(self, total: int) -> None:
        """Ignored."""


@contextmanager
def progress_bar(stage: str, total: int, *, shown: bool) -> Iterator[Bar]:
    """A bar for one stage.

    Args:
        stage: its name.
        total: number of steps.
        shown: False on other processes than the main one and when the user asked for quiet.
    """
    if shown and Console().is_jupyter:
        # tqdm.auto warns where the widgets of notebooks are not installed, and draws text then
        if find_spec("ipywidgets") is not None:
            from tqdm.notebook import tqdm
        else:
            from tqdm import tqdm
        with tqdm(desc=stage, total=total) as drawn:
            yield NotebookBar(drawn)
        return
    if not (shown and sys.stderr.isatty()):
        yield LogBar(stage, total) if shown else NoBar()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(stage, total=total, numbers="")
        yield TerminalBar(progress, task, time.monotonic())
