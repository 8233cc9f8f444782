"""What a training changes as it goes on: saved between two epochs, and read again to go on.

Order, augmentation and dropout are pure functions of the seed and the step, so weights, buffers,
the optimizer's moments and averages are all there is.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from distill_datasets.files.artifacts import read_tensors, write_tensors

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


class Average:
    """The exponential moving average of a network's weights; buffers are not averaged.

    Source: EDC (arXiv:2404.13733), whose students are measured so.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._live, self._decay = list(module.parameters()), decay
        self.weights = [weight.detach().clone() for weight in self._live]

    def follow(self) -> None:
        """Take in the weights after a step: decay x average + (1 - decay) x weights."""
        with torch.no_grad():
            live = [weight.detach() for weight in self._live]
            torch._foreach_lerp_(self.weights, live, 1 - self._decay)

    def put(self) -> None:
        """Make the average the network's weights."""
        with torch.no_grad():
            for weight, average in zip(self._live, self.weights, strict=True):
                weight.copy_(average)


class Checkpoint:
    """The file that a training goes on from when it was killed; written at ends of passes."""

    def __init__(self, path: Path, seconds: float) -> None:
        self._path, self._seconds, self._saved_at = path, seconds, time.monotonic()

    def restore(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, average: Average | None
    ) -> int:
        """Take the state that lies in the file; returns how many steps it has done."""
        if not self._path.exists():
            return 0
        tensors, note = read_tensors(self._path)
        restore_state(module, optimizer, tensors)
        for number, weight in enumerate(average.weights if average is not None else []):
            weight.copy_(tensors[f"average/{number}"])
        return int(note["steps"])

    def save(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: Average | None,
        steps: int,
    ) -> None:
        """Write the state after `steps` steps, unless the last one was written just before."""
        if time.monotonic() - self._saved_at < self._seconds:
            return
        averages = enumerate(average.weights if average is not None else [])
        tensors = state_of(module, optimizer)
        tensors |= {f"average/{number}": weight for number, weight in averages}
        write_tensors(self._path, tensors, {"steps": steps})
        self._saved_at = time.monotonic()

    def remove(self) -> None:
        """Delete the file: the training is done and its result is kept elsewhere."""
        self._path.unlink(missing_ok=True)
