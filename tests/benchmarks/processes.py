"""Two processes against one: the two lanes of an outer step, summed in order.

Every process has one thread and, where there are two, a core of its own.
"""

import atexit
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor

from distill_datasets.objectives.unrolled import Unrolled
from distill_datasets.runtime.draws import LaneDraw
from distill_datasets.runtime.processes import Runtime
from tests.benchmarks.outer_steps import TINY, Problem, Window
from tests.benchmarks.work import REFERENCE, Size, Work, relative_error

ROOT = Path(__file__).parents[2]
LANES = 2
SETTINGS: dict[Size, Window] = {
    "tiny": TINY,
    "cpu": Window(64, 32, 5, 5, 128, 100),
    "paper": Window(128, 96, 70, 60, 5000, 5000),
}
CPU = torch.device("cpu")


def lane_gradient(problem: Problem, objective: Unrolled, lane: int) -> Tensor:
    """What one lane adds to the gradient of an outer step."""
    draw = LaneDraw(0, 0, lane)
    estimate = objective.estimate(problem.distilled, problem.networks, problem.real, draw)
    (grad,) = estimate.grads.values()
    return grad


def in_one(size: Size, device: torch.device) -> Callable[[], Tensor]:
    """Both lanes in this process."""
    problem, objective = SETTINGS[size].problem(device), SETTINGS[size].objective("recompute")

    def run() -> Tensor:
        total = torch.zeros(())
        for lane in range(LANES):
            total = total + lane_gradient(problem, objective, lane)
        return total

    return run


def own_lane(size: Size, rank: int) -> Callable[[], Tensor]:
    """This process's lane, and the sum of both."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    runtime = Runtime()
    atexit.register(PartialState().destroy_process_group)  # as the end of a run does
    assert runtime.mine(LANES) == [rank]
    assert torch.get_num_threads() == 1
    problem, objective = SETTINGS[size].problem(CPU), SETTINGS[size].objective("recompute")

    def run() -> Tensor:
        grad = lane_gradient(problem, objective, rank)
        return runtime.sum_in_order({rank: grad}, LANES, grad)

    return run


def in_two(size: Size, device: torch.device) -> Callable[[], Tensor]:
    """A lane in this process and one in another, which this one starts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(LANES)}
    place |= {"ACCELERATE_USE_CPU": "true", "LOCAL_RANK": "0", "RANK": "0"}
    # else accelerate gives every process as many threads as there are cores for all of them
    place["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, "-m", "tests.benchmarks.processes", size]
    peer = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | place | {"RANK": "1", "LOCAL_RANK": "1"},
    )
    os.environ.update(place)
    own = own_lane(size, 0)

    def run() -> Tensor:
        assert peer.stdin is not None
        peer.stdin.write("run\n")
        peer.stdin.flush()
        return own()

    return run


def check() -> dict[str, float]:
    """In a process of its own: this one shall not become one of two."""
    command = [sys.executable, "-m", "tests.benchmarks.processes", "check"]
    said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert said.returncode == 0, said.stderr
    return {"gradient": float(said.stdout.split()[-1])}


PROCESSES = Work(
    "processes",
    {
        size: f"two lanes in two processes of one thread: {window.text()}"
        for size, window in SETTINGS.items()
    },
    {REFERENCE: in_one, "two": in_two},
    {"two": 1.7},
    check,
    {"gradient": 0.0},
    # two allocators settle more slowly than one
    warm_up=3,
)

if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "check":
        expected = in_one("tiny", CPU)()
        print(relative_error(in_two("tiny", CPU)(), expected), flush=True)
    else:
        work = own_lane(sys.argv[1], int(os.environ["RANK"]))  # type: ignore[arg-type]
        for _ in sys.stdin:
            work()
