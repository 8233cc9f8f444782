"""Memory of this machine: how much can still be spent, and how freed memory is kept."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from distill_datasets.types import Shape

if TYPE_CHECKING:
    from torch import Tensor

GIB = 1024**3


def _number_in(path: str) -> int | None:
    try:
        text = Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _free_by_kernel() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def _free_by_container() -> int | None:
    limit = _number_in("/sys/fs/cgroup/memory.max")
    used = _number_in("/sys/fs/cgroup/memory.current")
    return None if limit is None or used is None else max(0, limit - used)


def available_bytes() -> int:
    """Memory that can be allocated now without swapping: the kernel's and the container's view.

    Where neither says (no `/proc`), the whole physical memory is the answer.
    """
    known = [free for free in (_free_by_kernel(), _free_by_container()) if free is not None]
    if known:
        return min(known)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Names and values of glibc's malloc.h."""


def keep_freed_memory() -> None:
    """Ask glibc to keep what is freed for the next step; other C libraries are left as they are.

    By default a block of some megabytes goes back to the kernel when it is freed and is faulted in
    page by page a step later: 39 % of the time of a ConvNet student of 10 images on a CPU.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_TRIM_THRESHOLD, 2**30)
        libc.mallopt(M_MMAP_THRESHOLD, 2**25)  # the largest that glibc takes


def images_at_once(shape: Shape, device: torch.device) -> int:
    """How many images a network that does not learn is asked about together.

    On a CPU so few that 128 channels of them are less than the largest block that
    `keep_freed_memory` keeps: 1,460 digits a second in a ConvNet-3 instead of 540 by 500.
    """
    if device.type != "cpu":
        return 256
    return max(16, 50_000 // (shape.h * shape.w))


def to_device(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor that was made on the CPU, such as a draw, on the device that needs it.

    Through memory that the device reads by itself, so that nobody waits for what the device has
    yet to do: an ordinary copy waits for all of it.
    """
    if dtype is not None:
        tensor = tensor.to(dtype)
    if device.type != "cpu" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
