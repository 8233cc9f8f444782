"""Several processes on one machine, and which of them this one is.

`accelerate launch --cpu --num_processes N` starts a single process where there is no MPI and does
not tell it of N (accelerate 1.15). The program finds the launcher's command line and starts the
others itself, so that the command does what it says.
"""

import os
import sys
from pathlib import Path

from distill_datasets.errors import RecipeError

RANKS = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK")
SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
# `accelerate launch`, `accelerate-launch` and `python -m accelerate.commands.launch`
LAUNCHERS = ("launch", "accelerate-launch", "accelerate.commands.launch")


def is_main_process() -> bool:
    """True in the one process that prints; known before torch is imported."""
    return all(os.environ.get(name, "0") == "0" for name in RANKS)


def processes_to_start(asked: int | None) -> int:
    """How many processes this one has to become; 1 when they run already or none were asked for.

    Args:
        asked: the `--processes` option.

    Raises:
        RecipeError: fewer than one.
    """
    if asked is not None and asked < 1:
        raise RecipeError(f"--processes: got {asked}, expected at least 1")
    if any(name in os.environ for name in SIZES):
        return 1
    return asked or _asked_of_accelerate()


def become(processes: int) -> None:
    """Replace this process by `processes` that run the same command line."""
    cores = os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    sys.stdout.flush()
    sys.stderr.flush()
    command = [sys.executable, *launcher, "-m", "distill_datasets", *sys.argv[1:]]
    os.execv(sys.executable, command)


def _asked_of_accelerate() -> int:
    """N of `accelerate launch --cpu --num_processes N` when that started this process, or 1."""
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    # set by the launcher when more than one process was asked for
    if not (on_cpu and "MASTER_ADDR" in os.environ):
        return 1
    import psutil
    from accelerate.commands.launch import launch_command_parser

    parent = psutil.Process().parent()
    words = parent.cmdline() if parent else []
    launcher = next((i for i, word in enumerate(words) if Path(word).name in LAUNCHERS), None)
    if launcher is None:
        return 1
    given = launch_command_parser().parse_args(words[launcher + 1 :])
    return int(given.num_processes or 1)
