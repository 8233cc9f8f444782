"""How networks are computed: what a recipe asks for, on the device that is there.

In which precision, and whether torch's compiler makes one program of a step.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from torch import Tensor

Precision = Literal["float32", "bfloat16", "auto"]
Compile = bool | Literal["auto"]
WORTH_STEPS = 1000
"""Compiling takes a CPU one or two minutes, which so many steps save again."""
WHERE_FAST = "auto: bfloat16 where the device multiplies it faster than float32, else float32"
FAST_FLAGS = {"avx512_bf16", "amx_bf16"}
"""What the kernel calls instructions of a CPU that multiply bfloat16."""


@functools.cache
def cpu_is_fast() -> bool:
    """Whether this CPU multiplies bfloat16 faster than float32; False where nothing tells."""
    if sys.platform != "linux":
        return False
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    flags = next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")
    return bool(FAST_FLAGS & set(flags.split()))


def is_lower(precision: Precision, device: torch.device) -> bool:
    """Whether networks are computed in bfloat16, given the kind of device alone."""
    if precision == "auto":
        return cpu_is_fast() if device.type == "cpu" else True
    return precision == "bfloat16"


def at_least_float32(tensor: Tensor) -> Tensor:
    """The same values, for a loss that is to be taken in full; double ones stay double."""
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def computing_in(precision: Precision, device: torch.device) -> torch.autocast:
    """Around a call of a network: weights stay as they are, products are in this precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=is_lower(precision, device))


@functools.cache
def has_compiler(kind: str) -> bool:
    """Whether torch's compiler finds on this machine what it needs for a kind of device."""
    if kind != "cpu":
        return find_spec("triton") is not None
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return shutil.which(os.environ.get("CXX", "g++")) is not None and header.is_file()


def is_compiled(compile_: Compile, device: torch.device, steps: int | None) -> bool:
    """Whether steps are compiled; `steps` are those of one block, None where nobody knows."""
    if compile_ != "auto":
        return compile_
    worth = device.type != "cpu" or (steps or 0) >= WORTH_STEPS
    return worth and has_compiler(device.type)
