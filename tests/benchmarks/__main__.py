"""Measure the library beside plain programs: `python -m tests.benchmarks`.

Every side runs in a process of its own. The processes take turns, one run each, round after round,
and the table shows medians; a matrix product and a copy of memory take their turn in every round.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import distill_datasets
from tests.benchmarks.official import LAYOUTS, OFFICIAL, checkout_in
from tests.benchmarks.table import rich_table
from tests.benchmarks.work import REFERENCE, Size
from tests.benchmarks.worker import ceiling
from tests.benchmarks.works import WORKS

ROUNDS: dict[Size, int] = {"tiny": 1, "cpu": 3, "paper": 5}


class Side:
    """A worker and the pipe to it."""

    def __init__(
        self, name: str, side: str, size: str, threads: int, official: Path | None = None
    ) -> None:
        command = [sys.executable, "-m", "tests.benchmarks.worker", name, side, size, str(threads)]
        command += [] if official is None else [str(official)]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.runs: list[dict[str, float]] = []

    def ready(self) -> str:
        """Wait until everything is prepared; the device."""
        return str(self._answer()["device"])

    def ask(self, what: str) -> dict[str, Any]:
        """One line to the worker, and its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended with exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def median(self, key: str) -> float:
        """Over the rounds."""
        return statistics.median(run[key] for run in self.runs)

    def close(self) -> None:
        """End the worker."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def measured(
    name: str, size: Size, threads: int, rounds: int, official: Path | None = None
) -> dict[str, Any]:
    """All sides of one work, in turns; with a folder, the authors' own beside them."""
    work = WORKS[name]
    errors = work.check()
    wrong = {what: error for what, error in errors.items() if not error <= work.bounds[what]}
    if wrong:
        raise SystemExit(f"{name}: the sides differ, nothing was timed: {wrong}")
    sides = {side: Side(name, side, size, threads) for side in work.sides}
    if official is not None:
        sides[OFFICIAL] = Side(name, OFFICIAL, size, threads, official)
    (device,) = {worker.ready() for worker in sides.values()}
    counts = {side: worker.ask("count") for side, worker in sides.items()}
    for _ in range(work.warm_up):
        for worker in sides.values():
            worker.ask("run")
    tops = [ceiling(torch.device(device), size)]
    for _ in range(rounds):
        for worker in sides.values():
            worker.runs.append(worker.ask("run"))
        tops.append(ceiling(torch.device(device), size))
    peaks = {side: worker.ask("peak")["peak_mib"] for side, worker in sides.items()}
    for worker in sides.values():
        worker.close()
    best = {kind: max(top[kind] for top in tops) for kind in tops[0]}
    plain, theirs = sides[REFERENCE], sides.get(OFFICIAL)
    rows = []
    for side, worker in sides.items():
        seconds, processor = worker.median("seconds"), worker.median("processor_seconds")
        given = worker.median("undisturbed_seconds")
        rows.append(
            {
                "side": side,
                "seconds": seconds,
                "processor_seconds": processor,
                "all_seconds": [run["seconds"] for run in worker.runs],
                "peak_mib": peaks[side],
                "own_mib": peaks[side] - counts[side]["before_mib"],
                "ratio": plain.median("seconds") / seconds,
                "processor_ratio": plain.median("processor_seconds") / processor,
                "official_ratio": theirs and theirs.median("processor_seconds") / processor,
                "target": work.target.get(side),
                "flops": counts[side]["flops"],
                "bytes": counts[side]["bytes"],
                "share_of_product": counts[REFERENCE]["flops"] / given / best["float32_flops"],
                "share_of_copy": counts[side]["bytes"] / given / best["bytes"],
            }
        )
    return {
        "work": name, "text": work.text[size], "errors": errors, "device": device,
        "ceiling": best, "rows": rows,
    }  # fmt: skip


def environment(device: str, threads: int) -> dict[str, Any]:
    """What the numbers depend on."""
    found = torch.accelerator.current_accelerator(check_available=True)
    name = torch.get_device_module(found).get_device_name() if found else _processor()
    return {
        "date": datetime.date.today().isoformat(),
        "device": device,
        "device_name": name,
        "threads": threads,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "distill_datasets": distill_datasets.__version__,
        "memory": "peak of the resident set of a side's own process, or of its device allocations",
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main(arguments: list[str] | None = None) -> None:
    """Check, measure, print the table and write the result."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--size", choices=list(ROUNDS), default="cpu")
    parser.add_argument("--only", choices=list(WORKS), action="append", help="may be repeated")
    parser.add_argument("--threads", type=int, default=1, help="per side, and cores to run on")
    parser.add_argument("--rounds", type=int, help="default: 3 on a CPU, 5 at paper size")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument(
        "--official",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="an authors' checkout to time beside ours; may be repeated, and without --only its "
        f"works alone are measured. Known by their files: {LAYOUTS}",
    )
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    folders = {
        name: folder.resolve() for folder in asked.official for name in checkout_in(folder).drivers
    }
    found = []
    for name in asked.only or folders or WORKS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        rounds = asked.rounds or ROUNDS[asked.size]
        found.append(measured(name, asked.size, asked.threads, rounds, folders.get(name)))
    result = {
        "environment": environment(found[0]["device"], asked.threads),
        "size": asked.size,
        "works": found,
    }
    Console(width=None if sys.stdout.isatty() else 150).print(rich_table(result))
    if asked.json is not None:
        asked.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
