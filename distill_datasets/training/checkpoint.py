"""The file that a training which was killed goes on from."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from distill_datasets.files.artifacts import intact, read_tensors, write_tensors
from distill_datasets.runtime.stopping import Stop

if TYPE_CHECKING:
    from torch import Tensor


def state_of(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights, buffers and the optimizer's state under names of their own."""
    tensors = {f"module/{name}": kept for name, kept in module.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {
            f"optimizer/{number}/{name}": value
            for name, value in state.items()
            if isinstance(value, torch.Tensor)
        }
    return tensors


def restore_state(
    module: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Put back what `state_of` gave; other names are left alone."""
    kept: dict[str, Tensor] = {}
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        group, _, rest = name.partition("/")
        if group == "module":
            kept[rest] = tensor
        elif group == "optimizer":
            number, _, slot = rest.partition("/")
            state.setdefault(int(number), {})[slot] = tensor
    with torch.no_grad():
        # not by load_state_dict: some of torchvision's networks want to know the version of a file
        for name, own in module.state_dict().items():
            own.copy_(kept[name])
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


class TrainingCheckpoint:
    """What a training that was killed goes on from; written atomically.

    Args:
        path: the file.
        seconds: the shortest time between two of them, which are written between passes.
        stop: whether a signal has asked the run to end; then one more is written, at any step.
    """

    def __init__(self, path: Path, seconds: float, stop: Stop | None = None) -> None:
        self._path, self._seconds, self._saved_at = path, seconds, time.monotonic()
        self.stop = stop or Stop()

    def read(self) -> tuple[dict[str, Tensor], int] | None:
        """The tensors that were written last and the steps done by then; None before the first."""
        saved = intact(self._path, read_tensors)
        return None if saved is None else (saved[0], int(saved[1]["steps"]))

    def forget_after(self, steps: int) -> None:
        """Delete what was written after more steps than these, whose result is asked for anew."""
        saved = self.read()
        if saved is not None and saved[1] > steps:
            self.remove()

    @property
    def is_due(self) -> bool:
        """Whether the time since the last one is over."""
        return time.monotonic() - self._saved_at >= self._seconds

    def write(self, tensors: dict[str, Tensor], steps: int) -> None:
        """Write the state after so many steps."""
        write_tensors(self._path, tensors, {"steps": steps})
        self._saved_at = time.monotonic()

    def remove(self) -> None:
        """Delete the file: the training is done and its result is kept elsewhere."""
        self._path.unlink(missing_ok=True)
