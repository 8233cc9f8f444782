"""What an outer step changes, how it moves, and the file that keeps it between two runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import Field

from distill_datasets.config import Section
from distill_datasets.distilled import Distilled
from distill_datasets.files.artifacts import intact, read_tensors, set_aside, write_tensors
from distill_datasets.optimizers import Optimizer

if TYPE_CHECKING:
    from torch import Tensor


class Residual(Section):
    """What began the canvas, mixed back into it between phases (FADRM's data residual)."""

    every: int = Field(gt=0, le=10_000_000, description="outer steps of a phase (FADRM: 500)")
    kept: float = Field(
        default=0.5, gt=0, lt=1, description="share of the trained values; the start has the rest"
    )


class OuterState:
    """Everything that an outer step changes, and how it is saved and restored."""

    def __init__(
        self,
        distilled: Distilled,
        rules: Mapping[str, Optimizer],
        steps: int,
        ema: float | None = None,
        residual: Residual | None = None,
    ) -> None:
        """Where the outer loop begins.

        Args:
            distilled: as it starts; moved in place.
            rules: that move the canvas, labels and step_sizes.
            steps: outer steps in all.
            ema: decay of the moving average that is published; None publishes the last values.
            residual: how the start is mixed back; None never does.
        """
        self.parameters = distilled.parameters
        self._steps = steps
        self.rules = {name: rules[name.partition(".")[0]] for name in self.parameters}
        self.states = {
            name: self.rules[name].start(parameter.detach())
            for name, parameter in self.parameters.items()
        }
        self.ema, self.residual = ema, residual
        averaged = {} if self.ema is None else self.parameters
        self.averages = {name: value.detach().clone() for name, value in averaged.items()}
        self.begins = distilled.begins(steps)
        canvas = [name for name in self.parameters if name.startswith("canvas.") and residual]
        self._starts = {name: self.parameters[name].detach().clone() for name in canvas}
        self.step = 0
        self.mean_norm = 0.0
        self.idle = 0
        """Steps in a row in which no lane counted."""
        self.carried: dict[int, Tensor] = {}

    def save(self, path: Path) -> None:
        """Write everything as one file, atomically."""
        tensors: dict[str, Tensor] = dict(self.parameters)
        for name, state in self.states.items():
            tensors |= {f"{name}/{slot}": value for slot, value in enumerate(state)}
        tensors |= {f"average/{name}": average for name, average in self.averages.items()}
        tensors |= {f"carried/{lane}": values for lane, values in self.carried.items()}
        note = {"step": self.step, "mean_norm": self.mean_norm.hex(), "idle": self.idle}
        write_tensors(path, tensors, note)

    def restore(self, path: Path) -> bool:
        """Read what `save` wrote, into the parameters themselves; False where nothing whole is."""
        saved = intact(path, read_tensors)
        if saved is None:
            return False
        tensors, note = saved
        shapes = {name: tensors[name].shape for name in self.parameters if name in tensors}
        expected = {name: value.shape for name, value in self.parameters.items()}
        if shapes != expected or note["step"] > self._steps:
            set_aside(path, f"{path}: not a state of this recipe, that after step {note['step']}")
            return False
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[name])
                self.states[name] = tuple(
                    tensors[f"{name}/{slot}"].to(parameter.device)
                    for slot in range(len(self.states[name]))
                )
            for name, average in self.averages.items():
                average.copy_(tensors[f"average/{name}"])
            self.step, self.mean_norm = note["step"], float.fromhex(note["mean_norm"])
            self.idle = note.get("idle", 0)
            if self.residual is not None and self.step >= self.residual.every:
                self.begins |= dict.fromkeys(
                    self._starts, self.step - self.step % self.residual.every
                )
            self.carried = {
                int(name.partition("/")[2]): values
                for name, values in tensors.items()
                if name.startswith("carried/")
            }
        return True

    def clip(self, grads: dict[str, Tensor], limit: float | None) -> None:
        """Scale the canvas gradient down to `limit` moving averages of its norm.

        The average (decay 0.9) takes in this step's norm before it is used. Labels are not clipped.

        Source: RaT-BPTT (arXiv:2311.07025), section 4.
        """
        if limit is None:
            return
        canvas = [grad for name, grad in grads.items() if name.startswith("canvas.")]
        norm = math.sqrt(sum(float(grad.double().square().sum()) for grad in canvas))
        self.mean_norm = norm if self.mean_norm == 0 else 0.9 * self.mean_norm + 0.1 * norm
        if norm > limit * self.mean_norm:
            for grad in canvas:
                grad *= limit * self.mean_norm / norm

    def move(self, grads: dict[str, Tensor], rate: float) -> None:
        """One update of every parameter, its step size multiplied by `rate`."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                since = self.step - self.begins.get(name, 0)
                if since < 0:
                    continue
                rule = self.rules[name].model_copy(update={"lr": self.rules[name].lr * rate})
                moved, self.states[name] = rule.step(
                    parameter, self.states[name], grads[name], since + 1
                )
                parameter.copy_(moved)

    def mix_start(self) -> None:
        """At the end of a phase, but not of the last: x <- kept x + (1 - kept) start.

        The rule of the canvas begins anew with the phase, as if no step had been taken.

        Source: FADRM (arXiv:2506.24125), its program, which also resizes; here nothing is resized.
        """
        if self.residual is None or self.step % self.residual.every or self.step == self._steps:
            return
        with torch.no_grad():
            for name, start in self._starts.items():
                parameter = self.parameters[name]
                parameter.lerp_(start, 1 - self.residual.kept)
                self.states[name] = self.rules[name].start(parameter.detach())
                self.begins[name] = self.step

    def average(self) -> None:
        """Take the values of this step into the moving averages.

        The first steps count alike, until they are more than the decay looks back on.
        """
        for name, average in self.averages.items():
            assert self.ema is not None, "there are averages of a decay"
            decay = min(self.ema, self.step / (self.step + 1))
            average.lerp_(self.parameters[name].detach(), 1 - decay)

    def publish(self) -> None:
        """Put the averages, where there are any, in place of the last values."""
        with torch.no_grad():
            for name, average in self.averages.items():
                self.parameters[name].copy_(average)
