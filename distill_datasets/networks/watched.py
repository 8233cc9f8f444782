"""Trained networks with BatchNorm, and what their BatchNorm layers see of a batch on the way.

Shape suffixes: B images, C channels of a layer, K classes.
"""

from __future__ import annotations

import copy
import functools
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import nn

from distill_datasets.errors import RecipeError
from distill_datasets.types import TeacherNetwork

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn.modules.batchnorm import _BatchNorm

Precision = Literal["float32", "bfloat16"]


class Moments(NamedTuple):
    """Mean and variance of every channel, (C,) each."""

    mean_C: Tensor
    var_C: Tensor


class Seen(NamedTuple):
    """What a network says of a batch, and the moments of it before every BatchNorm layer.

    `moments` has None for a layer that the batch did not pass.
    """

    logits_BK: Tensor
    moments: list[Moments | None]


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers that keep statistics, in the order in which they were registered."""
    return [
        layer
        for layer in module.modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None
    ]


class Watched:
    """A teacher of which one thread asks the moments of a batch.

    The module is copied and its tensors are shared: what a layer sees is noted in the module, so
    threads that ask at the same time need modules of their own.
    """

    def __init__(self, teacher: TeacherNetwork, *, channels_last: bool = False) -> None:
        own: dict[int, object] = {
            id(weight): nn.Parameter(weight.detach(), requires_grad=False)
            for weight in teacher.module.parameters()
        }
        own |= {id(buffer): buffer for buffer in teacher.module.buffers()}
        self.teacher = teacher
        self.module: nn.Module = copy.deepcopy(teacher.module, own).eval()
        self._channels_last = channels_last
        if channels_last:
            self.module = self.module.to(memory_format=torch.channels_last)
        layers = batch_norms(self.module)
        if not layers:
            raise RecipeError(
                f"squeeze: a {type(teacher.module).__name__} without a BatchNorm layer that keeps "
                "statistics cannot be matched; choose a network with batch norm, for example "
                "squeeze.network: {name: convnet, norm: batch}"
            )
        self.targets = [_kept(layer) for layer in layers]
        self._moments: list[Moments | None] = [None] * len(layers)
        for place, layer in enumerate(layers):
            layer.register_forward_pre_hook(functools.partial(self._note, place))

    def _note(self, place: int, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # one pass, in float32: the difference of two means of squares is lost in bfloat16
        seen = inputs[0].float()
        dims = [dim for dim in range(seen.ndim) if dim != 1]
        var_C, mean_C = torch.var_mean(seen, dims, correction=0)
        self._moments[place] = Moments(mean_C, var_C)

    def __call__(self, images_BCHW: Tensor, precision: Precision = "float32") -> Seen:
        """Ask about images in the student's input space; differentiable in them.

        The variance is the biased one.
        """
        if self._channels_last:
            images_BCHW = images_BCHW.contiguous(memory_format=torch.channels_last)
        lower = precision == "bfloat16"
        with torch.autocast(images_BCHW.device.type, torch.bfloat16, enabled=lower):
            logits_BK: Tensor = self.module(images_BCHW)
        moments = list(self._moments)
        self._moments[:] = [None] * len(moments)
        return Seen(logits_BK.float(), moments)


def _kept(layer: _BatchNorm) -> Moments:
    assert layer.running_mean is not None and layer.running_var is not None
    return Moments(layer.running_mean.detach(), layer.running_var.detach())
