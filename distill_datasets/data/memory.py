"""How much memory can still be spent, so that a refusal comes before the machine stalls."""

import os
from pathlib import Path

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
