"""Where an objective gets its networks from, each a pure function of one vector of weights.

Shape suffixes: B images, C channels, H W pixels, K classes, P all weights in one vector.
"""

import copy
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import SerializeAsAny
from torch import Tensor, nn
from torch.func import functional_call

from distill_datasets.networks.zoo import ConvNet, initialize
from distill_datasets.plugins import part
from distill_datasets.types import Architecture, Networks, NetworkSource, Sampled, Shape

ArchitectureField = Annotated[SerializeAsAny[Architecture], part("architectures")]


class FlatNetwork:
    """A module called with all of its weights in one vector.

    One vector makes an optimizer step a handful of operations instead of a handful per layer.
    """

    def __init__(self, skeleton: nn.Module, weights_P: Tensor) -> None:
        # functional_call swaps tensors inside the module while it runs; two lanes that run at the
        # same time must not share it.
        self._module = copy.deepcopy(skeleton)
        self._names = [name for name, _ in skeleton.named_parameters()]
        self._shapes = [parameter.shape for parameter in skeleton.parameters()]
        self._sizes = [parameter.numel() for parameter in skeleton.parameters()]
        self.weights_P = weights_P

    def __call__(self, weights_P: Tensor, images_BCHW: Tensor) -> Tensor:
        """Logits (B, K)."""
        pieces = torch.split(weights_P, self._sizes)
        weights = {
            name: piece.view(shape)
            for name, piece, shape in zip(self._names, pieces, self._shapes, strict=True)
        }
        logits_BK: Tensor = functional_call(self._module, weights, (images_BCHW,))
        return logits_BK


class FreshSource:
    """Draws a new initialization every time."""

    def __init__(self, architecture: Architecture, shape: Shape, device: torch.device) -> None:
        with torch.device("meta"):
            self._skeleton = architecture.build(shape)
        self._device = device

    def sample(self, rng: torch.Generator) -> Sampled:
        module = copy.deepcopy(self._skeleton).to_empty(device="cpu")
        initialize(module, rng)
        weights_P = nn.utils.parameters_to_vector(module.parameters()).detach()
        return FlatNetwork(self._skeleton, weights_P.to(self._device))


class Fresh(Networks):
    """A freshly initialized network for every lane of every outer step."""

    paper: ClassVar[str] = "Dataset Distillation, arXiv:1811.10959, random initialization"
    name: Literal["fresh"] = "fresh"
    network: ArchitectureField = ConvNet()

    def build(self, shape: Shape, device: torch.device) -> NetworkSource:
        return FreshSource(self.network, shape, device)

    def architecture(self) -> Architecture:
        return self.network
