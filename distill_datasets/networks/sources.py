"""Where an objective gets its networks from, each a pure function of one vector of weights.

Shape suffixes: B images, C channels, H W pixels, K classes, P all weights in one vector.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field, SerializeAsAny
from torch import nn

from distill_datasets.errors import RecipeError
from distill_datasets.networks.zoo import ConvNet, initialize
from distill_datasets.plugins import part
from distill_datasets.types import (
    Architecture,
    Draw,
    LaneDraw,
    Layers,
    Networks,
    NetworkSource,
    Sampled,
    Shape,
    Squeezed,
)

if TYPE_CHECKING:
    from torch import Tensor

ArchitectureField = Annotated[SerializeAsAny[Architecture], part("architectures")]


class FlatNetwork:
    """A module called with all of its weights in one vector.

    One vector makes an optimizer step a handful of operations instead of a handful per layer.
    Nothing is dropped (dropout, stochastic depth): what is asked twice is the same network.
    """

    def __init__(
        self, skeleton: nn.Module, weights_P: Tensor, target_P: Tensor | None = None
    ) -> None:
        # functional_call swaps tensors inside the module while it runs; two lanes that run at the
        # same time must not share it.
        self._module = copy.deepcopy(skeleton).eval()
        self._names = [name for name, _ in skeleton.named_parameters()]
        self.shapes = [parameter.shape for parameter in skeleton.parameters()]
        self._sizes = [parameter.numel() for parameter in skeleton.parameters()]
        self.weights_P = weights_P
        self.target_P = target_P

    def __call__(self, weights_P: Tensor, images_BCHW: Tensor) -> Tensor:
        logits_BK: Tensor = torch.func.functional_call(
            self._module, self._named(weights_P), (images_BCHW,)
        )
        return logits_BK

    def layers(self, weights_P: Tensor, images_BCHW: Tensor) -> Layers:
        kept = list[torch.Tensor]()
        hooks = [
            layer.register_forward_hook(lambda _, inputs, output: kept.append(output))
            for layer in self._module.modules()
            if isinstance(layer, nn.ReLU)
        ]
        embedded = list[torch.Tensor]()
        *_, classifier = (layer for layer in self._module.modules() if isinstance(layer, nn.Linear))
        hooks.append(
            classifier.register_forward_pre_hook(lambda _, inputs: embedded.append(inputs[0]))
        )
        try:
            logits_BK = self(weights_P, images_BCHW)
        finally:
            for hook in hooks:
                hook.remove()
        return Layers(kept, embedded[0], logits_BK)

    def _named(self, weights_P: Tensor) -> dict[str, Tensor]:
        pieces = torch.split(weights_P, self._sizes)
        return {
            name: piece.view(shape)
            for name, piece, shape in zip(self._names, pieces, self.shapes, strict=True)
        }


def skeleton_of(architecture: Architecture, shape: Shape) -> nn.Module:
    """The module without memory for its weights, for `FlatNetwork`.

    Raises:
        RecipeError: the network keeps more than weights, which no vector of weights tells.
    """
    with torch.device("meta"):
        module = architecture.build(shape)
    if any(True for _ in module.buffers()):
        raise RecipeError(
            f"the network {architecture.name!r} keeps running statistics (BatchNorm) beside its "
            "weights and cannot be drawn as one vector of weights; take it in squeeze.network with "
            "distill.networks: teachers, or in evaluate.network, and here a network without them, "
            "for example {name: convnet, norm: instance}"
        )
    return module


def fresh_weights(skeleton: nn.Module, rng: torch.Generator, device: torch.device) -> Tensor:
    """A fresh initialization of a skeleton, as one vector (P,)."""
    module = copy.deepcopy(skeleton).to_empty(device="cpu")
    initialize(module, rng)
    return nn.utils.parameters_to_vector(module.parameters()).detach().to(device)


class FreshSource(NetworkSource):
    """Draws a new initialization every time."""

    def __init__(self, architecture: Architecture, shape: Shape, device: torch.device) -> None:
        self._skeleton = skeleton_of(architecture, shape)
        self._device = device

    def sample(self, draw: LaneDraw) -> Sampled:
        return FlatNetwork(
            self._skeleton, fresh_weights(self._skeleton, draw("network"), self._device)
        )


class Fresh(Networks):
    """A freshly initialized network for every lane of every outer step."""

    paper: ClassVar[str] = "Dataset Distillation, arXiv:1811.10959, random initialization"
    name: Literal["fresh"] = "fresh"
    network: ArchitectureField = ConvNet()

    def build(
        self, shape: Shape, device: torch.device, squeezed: Squeezed | None = None
    ) -> NetworkSource:
        return FreshSource(self.network, shape, device)

    def architecture(self, squeezed: Architecture | None) -> Architecture:
        return self.network


class FixedSource(NetworkSource):
    """Draws one of a few initializations that never change."""

    def __init__(
        self, architecture: Architecture, count: int, shape: Shape, device: torch.device
    ) -> None:
        self._skeleton = skeleton_of(architecture, shape)
        self._count = count
        self._device = device

    def sample(self, draw: LaneDraw) -> Sampled:
        which = int(torch.randint(self._count, (), generator=draw("choice")))
        rng = draw.always("network", which)
        return FlatNetwork(self._skeleton, fresh_weights(self._skeleton, rng, self._device))

    def start(self, student: int, draw: Draw) -> Tensor:
        rng = draw("network", student % self._count)
        return fresh_weights(self._skeleton, rng, self._device)


class Fixed(Networks):
    """A few initializations, the same in every outer step, that students start from as well."""

    paper: ClassVar[str] = "Dataset Distillation, arXiv:1811.10959, fixed initialization"
    has_start: ClassVar[bool] = True
    name: Literal["fixed"] = "fixed"
    network: ArchitectureField = ConvNet()
    count: int = Field(default=1, gt=0, description="initializations; a lane draws one of them")

    def build(
        self, shape: Shape, device: torch.device, squeezed: Squeezed | None = None
    ) -> NetworkSource:
        return FixedSource(self.network, self.count, shape, device)

    def architecture(self, squeezed: Architecture | None) -> Architecture:
        return self.network
