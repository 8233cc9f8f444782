"""Where the time of a work goes: `python -m tests.benchmarks.profiles --output FILE.md`.

Every side of the library runs once unseen and once under torch's profiler, with one thread; the
table shows what an operator took itself as a share of all of them. Shares bear with neighbors on
the machine; seconds do not, so that they are those of the processor without the profiler.
"""

import argparse
import datetime
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile

from distill_datasets.runtime.processes import Runtime
from tests.benchmarks.__main__ import environment
from tests.benchmarks.work import REFERENCE, SIZES, Run, Size
from tests.benchmarks.worker import timed
from tests.benchmarks.works import WORKS

SHOWN = ("unrolled-96", "regression", "students-convnet")
"""An outer step of PoDD, one of ridge regression, and a few steps of students."""
TOP = 12


class Operator(NamedTuple):
    """One of torch's operators in a profile; `share` is of the time of all."""

    name: str
    share: float
    calls: int


def operators(run: Run) -> list[Operator]:
    """Every operator of a work in all of its threads, the longest first."""
    everywhere = _ExperimentalConfig(profile_all_threads=True)
    with profile(activities=[ProfilerActivity.CPU], experimental_config=everywhere) as found:
        run()
    rows = [row for row in found.key_averages() if row.self_cpu_time_total > 0]
    total = sum(row.self_cpu_time_total for row in rows)
    named = [Operator(row.key, row.self_cpu_time_total / total, row.count) for row in rows]
    return sorted(named, key=lambda each: -each.share)


def section(name: str, side: str, size: Size) -> str:
    """The profile of one side as Markdown."""
    cpu = torch.device("cpu")
    run = WORKS[name].sides[side](size, cpu)
    run()
    seconds = min(timed(run, cpu)["processor_seconds"] for _ in range(3))
    found = operators(run)
    lines = [
        f"## {WORKS[name].text[size]}: {side}",
        "",
        f"{seconds:.3g} s of processor time; the {TOP} longest of {len(found)} operators.",
        "",
        "| operator | share | calls |",
        "|---|---|---|",
        *(f"| `{each.name}` | {100 * each.share:.1f} % | {each.calls} |" for each in found[:TOP]),
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Profile and write."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.profiles", description=__doc__
    )
    parser.add_argument("--only", choices=list(WORKS), action="append", help="may be repeated")
    parser.add_argument("--size", choices=SIZES, default="cpu")
    parser.add_argument("--output", type=Path, required=True, help="a Markdown file to write")
    asked = parser.parse_args(arguments)
    with Runtime().reproducible():
        sections = [
            section(name, side, asked.size)
            for name in asked.only or SHOWN
            for side in WORKS[name].sides
            if side != REFERENCE
        ]
    place = environment("cpu", 1)
    head = (
        "# Where the time goes\n\n"
        f"{place['device_name']}, one thread, torch {place['torch']}, {datetime.date.today()}, "
        "made by `python -m tests.benchmarks.profiles`. A share is what an operator took itself of "
        "the time of all."
    )
    asked.output.write_text("\n\n".join([head, *sections]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    # one core, as a run takes all that it sees
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    main()
