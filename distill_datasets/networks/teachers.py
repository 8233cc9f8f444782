"""Trained networks with BatchNorm, as they are, and what their BatchNorm layers see of a batch.

What decoupled methods recover images from.

Shape suffixes: B images, K classes, C channels of a layer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import torch
from torch import nn

from distill_datasets.errors import RecipeError, refuse
from distill_datasets.models.architecture import Architecture
from distill_datasets.networks.network import (
    Networks,
    TeacherNetwork,
    Teachers,
    TrainedMembers,
    present,
    skeleton_of,
    squeezed_architecture,
)
from distill_datasets.runtime.precision import Precision, computing_in
from distill_datasets.types import Shape

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn.modules.batchnorm import _BatchNorm


class Moments(NamedTuple):
    """Mean and variance of every channel, (C,) each."""

    mean_C: Tensor
    var_C: Tensor


class ForwardPass(NamedTuple):
    """The logits of a batch, and the moments of it before every BatchNorm layer.

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


def with_hooks(
    module: nn.Module, note: Callable[[int, nn.Module, tuple[Tensor, ...]], None]
) -> nn.Module:
    """A copy in eval mode that calls `note(place, layer, inputs)` before every BatchNorm layer.

    Weights and buffers are shared, the modules are not: a hook belongs to the one thread that asks
    the copy, so threads that ask at the same time need copies of their own.
    """
    shared: dict[int, object] = {
        id(weight): nn.Parameter(weight.detach(), requires_grad=False)
        for weight in module.parameters()
    }
    shared |= {id(buffer): buffer for buffer in module.buffers()}
    own: nn.Module = copy.deepcopy(module, shared).eval()
    for place, layer in enumerate(batch_norms(own)):
        layer.register_forward_pre_hook(partial(note, place))
    return own


class BatchNormProbe:
    """A teacher of which one thread asks the moments of a batch before its BatchNorm layers."""

    def __init__(self, teacher: TeacherNetwork, *, channels_last: bool = False) -> None:
        self.teacher = teacher
        self.module = with_hooks(teacher.module, self._note)
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
        self.targets = [_running_moments(layer) for layer in layers]
        self._moments: list[Moments | None] = [None] * len(layers)

    def _note(self, place: int, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # one pass, in float32: the difference of two means of squares is lost in bfloat16
        features = inputs[0].float()
        dims = [dim for dim in range(features.ndim) if dim != 1]
        var_C, mean_C = torch.var_mean(features, dims, correction=0)
        self._moments[place] = Moments(mean_C, var_C)

    def __call__(self, images_BCHW: Tensor, precision: Precision = "float32") -> ForwardPass:
        """Ask about images in the student's input space; differentiable in them.

        The variance is the biased one.
        """
        if self._channels_last:
            images_BCHW = images_BCHW.contiguous(memory_format=torch.channels_last)
        with computing_in(precision, images_BCHW.device):
            logits_BK: Tensor = self.module(images_BCHW)
        moments = list(self._moments)
        self._moments[:] = [None] * len(moments)
        return ForwardPass(logits_BK.float(), moments)


def _running_moments(layer: _BatchNorm) -> Moments:
    assert layer.running_mean is not None and layer.running_var is not None
    return Moments(layer.running_mean.detach(), layer.running_var.detach())


class TeacherNetworks(Networks):
    """Every member of the squeeze stage with its running statistics, in eval mode and frozen."""

    paper: ClassVar[str] = "SRe2L, arXiv:2306.13092"
    offers: ClassVar[frozenset[str]] = frozenset({"batch_norm", "class_statistics"})
    needs_squeezed: ClassVar[bool] = True
    name: Literal["teachers"] = "teachers"

    def build(
        self, shape: Shape, device: torch.device, squeezed: TrainedMembers | None = None
    ) -> Teachers:
        """The members on the device.

        Raises:
            RecipeError: there are none, one has no BatchNorm, or one knows too little of the test
                images to teach.
        """
        trained = present(squeezed, self)
        refuse(trained.teacher_problems())
        refuse(network_problems(self, trained.architectures, shape))
        members = []
        for member in range(len(trained.architectures)):
            mean, var = trained.class_statistics(member) or (None, None)
            members.append(
                TeacherNetwork(
                    trained.module(member).to(device),
                    None if mean is None else [mean_KC.to(device) for mean_KC in mean],
                    None if var is None else [var_KC.to(device) for var_KC in var],
                )
            )
        return Teachers(members)

    def architecture(self, squeezed: Architecture | None) -> Architecture:
        return squeezed_architecture(squeezed, self)


def network_problems(
    networks: Networks, squeezed: Sequence[Architecture], shape: Shape
) -> Iterator[str]:
    """What does not fit together when the networks of a recipe are built without their weights.

    Args:
        networks: the part `distill.networks`.
        squeezed: the network of every member of the squeeze stage; [] where there is none.
        shape: of the source.
    """
    if networks.asked():
        yield from networks.absent()
        return
    teach = "batch_norm" in networks.offers
    fitting = []
    for architecture in {repr(one): one for one in squeezed}.values():
        try:
            module = architecture.on_meta(shape)
        except RecipeError as error:
            yield str(error)
            continue
        fitting.append(architecture)
        if teach and not batch_norms(module):
            yield (
                f"squeeze.network: {architecture.name!r} keeps no BatchNorm statistics, which "
                "distill.networks: 'teachers' are for; choose a network with BatchNorm, for "
                "example {name: convnet, norm: batch} or {name: resnet}"
            )
    if teach:
        return
    if networks.needs_squeezed and any(one != squeezed[0] for one in squeezed):
        yield (
            f"squeeze.networks: {', '.join(sorted({one.name for one in squeezed}))} with other "
            f"settings each, and distill.networks: {networks.name!r} draws the weights of one "
            "architecture; give squeeze.network and squeeze.members instead, or take "
            "distill.networks: teachers"
        )
        return
    for drawn in networks.architectures(squeezed[0] if squeezed else None):
        if drawn in squeezed and drawn not in fitting:
            continue  # this problem is listed
        try:
            skeleton_of(drawn, shape)
        except RecipeError as error:
            yield str(error)
