"""Trained networks with BatchNorm, as they are, and what their BatchNorm layers see of a batch.

What decoupled methods recover images from.

Shape suffixes: B images, K classes, C channels of a layer.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import torch
from torch import nn

from distill_datasets.errors import RecipeError
from distill_datasets.models.architecture import Architecture
from distill_datasets.networks.experts import present, squeezed_architecture
from distill_datasets.networks.network import (
    Networks,
    NetworkSource,
    Squeezed,
    TeacherNetwork,
    Teachers,
    skeleton_of,
)
from distill_datasets.types import Shape

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


class TeacherNetworks(Networks):
    """Every member of the squeeze stage with its running statistics, in eval mode and frozen."""

    paper: ClassVar[str] = "SRe2L, arXiv:2306.13092"
    offers: ClassVar[frozenset[str]] = frozenset({"batch_norm", "class_statistics"})
    needs_squeezed: ClassVar[bool] = True
    name: Literal["teachers"] = "teachers"

    def build(
        self, shape: Shape, device: torch.device, squeezed: Squeezed | None = None
    ) -> NetworkSource:
        """The members on the device.

        Raises:
            RecipeError: there are none, or one has no BatchNorm.
            DistillError: one knows too little of the test images to teach.
        """
        found = present(squeezed, self)
        found.check_teachers()
        members = []
        for member, architecture in enumerate(found.architectures):
            check_teacher(architecture, shape)
            statistics = found.class_statistics(member)
            mean, var = (None, None) if statistics is None else statistics
            members.append(
                TeacherNetwork(
                    found.module(member).to(device),
                    None if mean is None else [mean_KC.to(device) for mean_KC in mean],
                    None if var is None else [var_KC.to(device) for var_KC in var],
                )
            )
        return Teachers(members)

    def architecture(self, squeezed: Architecture | None) -> Architecture:
        return squeezed_architecture(squeezed, self)


def check_teacher(architecture: Architecture, shape: Shape) -> None:
    """Refuse a network that keeps no statistics which images could be matched with.

    Raises:
        RecipeError: it has no BatchNorm, or does not fit the shape.
    """
    with torch.device("meta"):
        module = architecture.build(shape)
    if not batch_norms(module):
        raise RecipeError(
            f"squeeze.network: {architecture.name!r} keeps no BatchNorm statistics, which "
            "distill.networks: 'teachers' are for; choose a network with BatchNorm, for example "
            "{name: convnet, norm: batch} or {name: resnet}"
        )


def check_networks(networks: Networks, squeezed: Sequence[Architecture], shape: Shape) -> None:
    """Build the networks of a recipe without their weights, before anything is trained.

    Args:
        networks: the part `distill.networks`.
        squeezed: the network of every member of the squeeze stage; [] where there is none.
        shape: of the source.

    Raises:
        RecipeError: a network does not fit the shape, or not what `networks` makes of it.
    """
    for architecture in {repr(one): one for one in squeezed}.values():
        with torch.device("meta"):
            architecture.build(shape)
        if "batch_norm" in networks.offers:
            check_teacher(architecture, shape)
    if "batch_norm" in networks.offers:
        return
    if networks.needs_squeezed and any(one != squeezed[0] for one in squeezed):
        raise RecipeError(
            f"squeeze.networks: {', '.join(sorted({one.name for one in squeezed}))} with other "
            f"settings each, and distill.networks: {networks.name!r} draws the weights of one "
            "architecture; give squeeze.network and squeeze.members instead, or take "
            "distill.networks: teachers"
        )
    skeleton_of(networks.architecture(squeezed[0] if squeezed else None), shape)
