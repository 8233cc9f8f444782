"""Ctrl-C, SIGTERM and SIGHUP: a run saves what it has before it goes.

The first signal sets a flag. Work that can be gone on from looks at it between two steps, saves its
state and raises `Interrupted`; all other work is left at once, since nothing of it would be kept.
The second signal ends the program wherever it is, in the middle of a long operation too.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

from rich.console import Console

from distill_datasets.errors import Interrupted
from distill_datasets.runtime.launch import SIGNALS, is_one_of_several

logger = logging.getLogger("distill_datasets")

SAME_SECONDS = 1.0
"""Of several processes each may be told twice, by the terminal and by what started them."""


class Stop:
    """Whether a signal has asked this run to end; one for all threads of a process."""

    def __init__(self) -> None:
        self._number: int | None = None
        self._first_at = 0.0
        self._saving = 0
        self._lock = threading.Lock()

    @property
    def asked(self) -> bool:
        """True from the first signal on."""
        return self._number is not None

    def error(self, saved: str) -> Interrupted:
        """What to raise where something is saved that the same command goes on from."""
        kept = f"the same command resumes where it stopped: {saved}"
        return Interrupted(kept, self._number or signal.SIGTERM)

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Work that looks at `asked` itself, in any thread: it is not broken off here."""
        self._leave_if_asked()
        with self._lock:
            self._saving += 1
        try:
            yield
        finally:
            with self._lock:
                self._saving -= 1
        self._leave_if_asked()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals of this process, where its main thread asks for it.

        What the process was told to ignore, as by nohup, it goes on ignoring.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        taken = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        # A handler in Python waits for the operation that runs, which may take minutes. The number
        # of a signal is written into this pipe at once, and a thread reads it there.
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        handlers = {number: signal.signal(number, self._handle) for number in taken}
        watch = threading.Thread(target=self._watch, args=(reader, taken), daemon=True)
        watch.start()
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(before)
            os.close(writer)  # the thread reads its end and is done
            watch.join()
            os.close(reader)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._note(number)
        if not self._saving:
            self._leave_if_asked()

    def _leave_if_asked(self) -> None:
        if self._number is not None:
            raise Interrupted(
                "what was finished is kept, and the same command resumes from there", self._number
            )

    def _note(self, number: int) -> None:
        if self._number is None:
            self._number, self._first_at = number, time.monotonic()

    def _watch(self, reader: int, taken: list[signal.Signals]) -> None:
        asked = 0
        while numbers := os.read(reader, 1):
            if numbers[0] not in taken:
                continue
            passed = time.monotonic() - self._first_at
            if asked and not (is_one_of_several() and passed < SAME_SECONDS):
                self._leave(numbers[0])
            asked += 1
            self._note(numbers[0])
            if asked == 1 and self._saving:
                logger.warning("interrupted: saving the state; once more leaves at once")

    def _leave(self, number: int) -> None:
        """End the process here: files are whole at any time."""
        if sys.stderr.isatty():
            Console(stderr=True).show_cursor()  # a bar may have hidden it
        os._exit(128 + number)
