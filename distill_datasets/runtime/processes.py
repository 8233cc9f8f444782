"""The machine: one Accelerator, and work dealt to processes and threads.

The same program runs as one process, or as several that `--processes`, torchrun or
`accelerate launch` started, on a CPU or on GPUs. How many processes and threads there are changes
the time and never the result: a unit of work is computed whole by one thread pool slot whose number
of intra-op threads depends on the number of units and on the machine's cores only, and sums over
units are taken in the order of the units.
"""

from __future__ import annotations

import copy
import logging
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import accelerate
import accelerate.utils
import torch

from distill_datasets.errors import RecipeError, did_you_mean
from distill_datasets.runtime.memory import keep_freed_memory
from distill_datasets.runtime.progress import Bar, progress_bar
from distill_datasets.runtime.stopping import Stop

if TYPE_CHECKING:
    from torch import Tensor


logger = logging.getLogger("distill_datasets")


T = TypeVar("T")


class Runtime:
    """Where the work runs. Made once per run and handed to the stages."""

    def __init__(
        self,
        trackers: list[str] | None = None,
        logging_dir: str | None = None,
        stop: Stop | None = None,
    ) -> None:
        self.stop = stop or Stop()
        """Whether a signal has asked this run to end."""
        keep_freed_memory()
        # NCCL, the default between cards, refuses two processes on one
        cards = torch.accelerator.device_count()
        shared = 0 < cards < int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        group = accelerate.InitProcessGroupKwargs(
            backend="gloo" if shared else "nccl", timeout=timedelta(days=7)
        )
        asked = trackers or []
        unknown = sorted(set(asked) - {kind.value for kind in accelerate.utils.LoggerType})
        if unknown:
            raise RecipeError(
                f"--track: no tracker {unknown[0]!r}; "
                f"{did_you_mean(unknown[0], (kind.value for kind in accelerate.utils.LoggerType))}"
            )
        mixed = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        if mixed != "no":
            logger.warning(
                "--mixed_precision: got %r, which changes nothing; a recipe says what is computed "
                "in bfloat16, by the keys precision, real_precision and warm_up_precision",
                mixed,
            )
        self.accelerator = accelerate.Accelerator(
            mixed_precision="no",
            # without this, processes on a machine without a GPU would not know of each other
            cpu=not torch.accelerator.is_available(),
            log_with=asked or None,
            project_dir=logging_dir,
            kwargs_handlers=[group],
        )
        # Accelerate leaves out a tracker that is not installed and says nothing
        absent = sorted(set(asked) - {str(kind) for kind in self.accelerator.log_with})
        if absent and "all" not in asked:
            raise RecipeError(
                f"--track: {', '.join(absent)} is not installed; run `pip install {absent[0]}`"
            )
        self.cores = (
            len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        )
        self._alone = False

    def alone(self) -> Runtime:
        """This process as if there were no other: no call waits, exchanges or starts threads.

        For a unit of work that a whole outer loop solves: everything runs in the calling thread,
        with the threads that it was given, and nothing is told to trackers.
        """
        # a copy: other threads go on with the original, and both share the accelerator
        own = copy.copy(self)
        own._alone = True
        return own

    @property
    def processes(self) -> int:
        """How many processes share the work."""
        return 1 if self._alone else self.accelerator.num_processes

    @property
    def index(self) -> int:
        """Which of them this one is."""
        return 0 if self._alone else self.accelerator.process_index

    @property
    def device(self) -> torch.device:
        device: torch.device = self.accelerator.device
        return device

    @property
    def is_main(self) -> bool:
        """True on the one process that writes shared files."""
        return self._alone or bool(self.accelerator.is_main_process)

    def wait(self) -> None:
        """Return when every process has come here."""
        if not self._alone:
            self.accelerator.wait_for_everyone()

    def agreed(self, holds: bool) -> bool:
        """Whether something holds as every process sees it; all of them ask."""
        seen = torch.tensor([int(holds)], device=self.device)
        return int(self.sum_in_order({self.index: seen}, self.processes, seen)) == self.processes

    def log(self, numbers: dict[str, float], step: int) -> None:
        """Tell the trackers."""
        if not self._alone:
            self.accelerator.log(numbers, step=step)

    def mine(self, units: int) -> list[int]:
        """The units that this process works on, out of `units`."""
        return list(range(self.index, units, self.processes))

    @contextmanager
    def reproducible(self) -> Iterator[None]:
        """Deterministic kernels and all cores for the calling thread; settings are restored."""
        import torch.utils.deterministic as deterministic_settings

        threads = torch.get_num_threads()
        deterministic = torch.get_deterministic_debug_mode()
        torch.set_num_threads(self.cores)
        # Several GPU kernels have no deterministic form; there the promise of equal bits is not
        # given and the fast kernels are kept.
        # not by use_deterministic_algorithms, which imports torch's compiler: a second, for nothing
        torch.set_deterministic_debug_mode("error" if self.device.type == "cpu" else "default")
        # What float32 is on a card: convolutions in TF32, with 10 bits of mantissa, as in the
        # programs of the papers; products of matrices, whose systems are solved, with all 23.
        cards = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = True, False
        filling = deterministic_settings.fill_uninitialized_memory  # type: ignore[attr-defined]
        # every allocation would be written twice, and nothing here reads what it has not written
        deterministic_settings.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        try:
            yield
        finally:
            deterministic_settings.fill_uninitialized_memory = filling  # type: ignore[attr-defined]
            torch.set_num_threads(threads)
            torch.set_deterministic_debug_mode(deterministic)
            torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = cards

    @contextmanager
    def pool(
        self, units: int, *, breaks: bool = True
    ) -> Iterator[Callable[[Callable[[int], T], list[int]], list[T]]]:
        """Threads that compute units side by side on a CPU; one at a time on an accelerator.

        Args:
            units: how many units there are in all, over all processes. It alone decides how many
                intra-op threads a unit gets, so that its bits do not depend on who computes it.
                How many are computed side by side is up to the processes that share these cores.
            breaks: whether a run that was asked to end begins no further unit. Otherwise whoever
                asks for units looks at `stop`; a unit that takes long does so in any case.

        Yields:
            A function that maps a function of a unit over a list of units, in order.
        """

        def begun(work: Callable[[int], T], unit: int) -> T:
            if breaks and self.stop.asked:
                raise self.stop.error("what is finished of this stage is saved")
            return work(unit)

        if self._alone:  # in a thread of its own, which nobody breaks off
            yield lambda work, chosen: [begun(work, unit) for unit in chosen]
            return
        if self.device.type != "cpu":
            with self.stop.saving():
                yield lambda work, chosen: [begun(work, unit) for unit in chosen]
            return
        threads_per_unit = max(1, self.cores // units)
        share = max(1, len(self.mine(units)))
        # launchers of several processes say how many of them are on this host
        here = int(os.environ.get("LOCAL_WORLD_SIZE", self.processes)) if self.processes > 1 else 1
        side_by_side = max(1, self.cores // threads_per_unit // here)
        threads = torch.get_num_threads()
        try:
            with (
                self.stop.saving(),
                ThreadPoolExecutor(
                    min(share, side_by_side),
                    thread_name_prefix="unit",
                    initializer=torch.set_num_threads,
                    initargs=(threads_per_unit,),
                ) as executor,
            ):
                yield lambda work, chosen: list(executor.map(partial(begun, work), chosen))
        finally:
            torch.set_num_threads(threads)

    def exchange(self, parts: dict[int, Tensor], units: int, like: Tensor) -> list[Tensor]:
        """The tensor of every unit of every process, in the order of the units, on all of them.

        Args:
            parts: the tensors of this process's units, each shaped like `like`.
            units: how many units there are in all.
            like: any tensor of that shape; a process without units has no other way to know it.
        """
        processes = self.processes
        if processes == 1:
            return [parts[unit] for unit in range(units)]
        # Unit u belongs to process u mod P and is its slot u // P there. A gather wants tensors of
        # one shape from everyone, so that a process with fewer units fills its last slot with
        # zeros, which nobody reads. All P processes make this call, even without a unit.
        slots = -(-units // processes)
        first = self.index
        own = [parts.get(first + slot * processes, torch.zeros_like(like)) for slot in range(slots)]
        gathered: Tensor = self.accelerator.gather(torch.stack(own)[None])
        return [gathered[unit % processes, unit // processes] for unit in range(units)]

    def sum_in_order(self, parts: dict[int, Tensor], units: int, like: Tensor) -> Tensor:
        """The sum over all units of every process, added in the order of the units.

        Args:
            parts: the tensors of this process's units, each shaped like `like`.
            units: how many units there are in all.
            like: any tensor of that shape; a process without units has no other way to know it.

        Returns:
            The same bits on every process, and for every number of processes.
        """
        # An all-reduce would add in an order that depends on the number of processes, and float
        # addition is not associative: (a + b) + c differs from a + (b + c) in the last bits.
        rows = self.exchange(parts, units, like)
        total = rows[0].clone()
        for row in rows[1:]:
            total += row
        return total


@dataclass(frozen=True)
class Run:
    """One run of a recipe, as its stages see it.

    Attributes:
        seed: the recipe's seed.
        folder: where the stages of this recipe lie; the source lies beside it.
        runtime: processes, threads and device.
        shown: whether progress is shown, by the main process.
    """

    seed: int
    folder: Path
    runtime: Runtime
    shown: bool = True

    @property
    def beside(self) -> Run:
        """The same run in the folder of all recipes, for stages that they share."""
        return replace(self, folder=self.folder.parent)

    def bar(self, stage: str, total: int) -> AbstractContextManager[Bar]:
        """The progress bar of a stage of so many steps."""
        return progress_bar(stage, total, shown=self.runtime.is_main and self.shown)
