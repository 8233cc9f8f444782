"""A toy program in one process or several, on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

from support import TESTS


def launch(program: Path, *words: object, processes: int) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; several processes are started by torchrun."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    settings = {
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(TESTS),
    }
    return subprocess.run(
        [*command, str(program), *map(str, words)],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
    )
