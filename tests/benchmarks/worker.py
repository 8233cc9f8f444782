"""One side of one work in a process of its own, told over a pipe when to run.

A process of its own, so that its peak memory is its own and what the library sets up for a run
(`Runtime`: the allocator, deterministic kernels) does not reach the reference.
"""

import json
import resource
import statistics
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from distill_datasets.runtime.processes import Runtime
from tests.benchmarks.official import OFFICIAL, prepared
from tests.benchmarks.work import REFERENCE, Run, Size
from tests.benchmarks.works import WORKS

MIB = 2**20


class BytesCounter(TorchDispatchMode):
    """Bytes that operations read and write, if every one of them went through memory."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        made = func(*args, **(kwargs or {}))
        if not func.is_view:
            found: list[torch.Tensor] = []
            for values in (args, kwargs or {}, made):
                torch.utils._pytree.tree_map_only(torch.Tensor, found.append, values)
            self.total += sum(tensor.numel() * tensor.element_size() for tensor in found)
        return made


def device_of_choice() -> torch.device:
    """The accelerator if there is one."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return found or torch.device("cpu")


def peak_mib(device: torch.device) -> float:
    """Peak of the resident set since the process began, or of the accelerator's allocations."""
    if device.type != "cpu":
        return torch.accelerator.max_memory_allocated(device) / MIB
    if sys.platform == "linux":
        # the kernel's ru_maxrss starts from that of the process that started this one
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def undisturbed(answer: dict[str, float], device: torch.device) -> float:
    """Seconds of a run; on a CPU those that its threads were given: neighbors count less."""
    if device.type != "cpu":
        return answer["seconds"]
    return min(answer["seconds"], answer["processor_seconds"] / torch.get_num_threads())


def timed(run: Run, device: torch.device) -> dict[str, float]:
    """Seconds by the wall and by the processor, of this process and the children it waited for."""

    def spent() -> float:
        own, children = (
            resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime

    wall, processor = time.perf_counter(), spent()
    run()
    if device.type != "cpu":
        torch.accelerator.synchronize()
    found = {"seconds": time.perf_counter() - wall, "processor_seconds": spent() - processor}
    return found | {"undisturbed_seconds": undisturbed(found, device)}


def counted(run: Run, device: torch.device) -> dict[str, float]:
    """What the first run counts, and the memory that it needs above what was prepared."""
    before = peak_mib(device)
    with FlopCounterMode(display=False) as operations, BytesCounter() as traffic:
        run()
    flops = operations.get_total_flops()
    return {"flops": flops, "bytes": traffic.total, "before_mib": before}


def ceiling(device: torch.device, size: Size) -> dict[str, float]:
    """What a matrix product and a copy reach: operations, and bytes read or written, per second."""
    found = {}
    small = device.type == "cpu"
    side = 64 if size == "tiny" else 1024 if small else 8192
    for kind, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        left, right = torch.randn(2, side, side, device=device).to(dtype)
        # as a convolution too: on AMD's processors torch's matmul is the slower of the two
        as_image, as_kernel = left.T.reshape(1, side, 1, side), right.T[:, :, None, None]
        products = (
            partial(torch.matmul, left, right),
            partial(torch.nn.functional.conv2d, as_image.contiguous(), as_kernel.contiguous()),
        )
        seconds = [
            statistics.median(undisturbed(timed(product, device), device) for _ in range(3))
            for product in products
        ]
        found[f"{kind}_flops"] = 2 * side**3 / min(seconds)
    source = torch.zeros((64 if small else 1024) * MIB // 4, device=device)
    target = torch.empty_like(source)
    seconds = [undisturbed(timed(lambda: target.copy_(source), device), device) for _ in range(6)]
    found["bytes"] = 2 * source.numel() * 4 / statistics.median(seconds[1:])
    return found


def serve(name: str, side: str, size: Size, threads: int, official: Path | None) -> None:
    """Answer every line of the input with a line of JSON."""
    torch.set_num_threads(threads)
    device = device_of_choice()
    with ExitStack() as settings:
        if official is not None:
            run = prepared(official, name, size, device)
        else:
            run = WORKS[name].sides[side](size, device)
        if side not in (REFERENCE, OFFICIAL):
            settings.enter_context(Runtime().reproducible())
            torch.set_num_threads(threads)
        print(json.dumps({"device": str(device)}), flush=True)
        for line in sys.stdin:
            asked = line.strip()
            if asked == "count":
                answer = counted(run, device)
            elif asked == "run":
                answer = timed(run, device)
            else:
                answer = {"peak_mib": peak_mib(device)}
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    assert Path("tests/benchmarks").is_dir(), "started from the root of the repository"
    checkout = Path(sys.argv[5]) if len(sys.argv) > 5 else None
    serve(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), checkout)  # type: ignore[arg-type]
