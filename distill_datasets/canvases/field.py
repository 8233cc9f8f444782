"""A small network for each image, from coordinates to colors: DDiF's synthetic neural fields.

All fields are evaluated at once, as batched matrix products.

Shape suffixes: N images, B images asked for, D weights of a field, C channels, P places,
I O inputs and outputs of a layer.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field

from distill_datasets.canvases.canvas import Tensors
from distill_datasets.canvases.parameterized import Parameterized, Storage, fitted
from distill_datasets.types import Shape

if TYPE_CHECKING:
    from torch import Tensor

FIRST, HIDDEN = 30.0, 10.0
"""Factors before the sines of the first and of other layers (w_0 of SIREN, arXiv:2006.09661)."""

DECODER = """\
(c, h, w), first, sizes = shape, 0, [2] + [{width}] * {depth} + [shape[0]]
y, x = (np.linspace(-1, 1, side) for side in (h, w))
layer = np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1).reshape(1, h * w, 2)
for number, (i, o) in enumerate(zip(sizes, sizes[1:])):
    matrix = weights[:, first : first + i * o].reshape(-1, i, o)
    bias = weights[:, None, first + i * o : first + i * o + o]
    layer, first = layer @ matrix + bias, first + i * o + o
    if number < {depth}:
        layer = np.sin((10 if number else 30) * layer)
images = (0.5 + layer / 2).clip(0, 1).transpose(0, 2, 1).reshape(-1, c, h, w)
"""


class NeuralField(Parameterized):
    """Images that are small networks with sines (SIREN), each of its own.

    Weights are published as half floats: the first layer multiplies them by 30, and 8 bits of them
    change what is seen.
    """

    paper: ClassVar[str] = "DDiF, arXiv:2503.03259; SIREN, arXiv:2006.09661"
    is_fitted: ClassVar[bool] = True
    storage: ClassVar[dict[str, Storage]] = {"weights": "float16"}
    name: Literal["field"] = "field"
    width: int = Field(default=6, ge=1, description="units of a hidden layer")
    depth: int = Field(default=2, ge=1, description="hidden layers")
    fit_steps: int = Field(
        default=1000, ge=0, description="steps in which fields are fitted to initial images"
    )

    @property
    def decoder(self) -> str:
        return DECODER.replace("{width}", str(self.width)).replace("{depth}", str(self.depth))

    def _layers(self, channels: int) -> list[tuple[int, int]]:
        return list(pairwise([2, *[self.width] * self.depth, channels]))

    def count(self, shape: Shape, values: int) -> int:
        return values // sum((inputs + 1) * outputs for inputs, outputs in self._layers(shape.c))

    def encode(self, images_NCHW: Tensor, rng: torch.Generator) -> tuple[Tensors, Tensors]:
        count, channels, *size = images_NCHW.shape
        pieces = []
        for number, (inputs, outputs) in enumerate(self._layers(channels)):
            # SIREN, section 3.2: sines stay spread over a period from layer to layer
            bound = (6 / inputs) ** 0.5 / HIDDEN if number else 1 / inputs
            weights = torch.rand(count, (inputs + 1) * outputs, generator=rng)
            pieces.append((2 * weights - 1) * bound)
        constants = {"size": torch.tensor([channels, *size])}
        started = {"weights_ND": torch.cat(pieces, dim=1)}
        trained = fitted(self, started, constants, images_NCHW, self.fit_steps, lr=0.003)
        return trained, constants

    def numbers(self, tensors: Tensors) -> Tensors:
        return {"weights": tensors["weights_ND"]}

    def draw(self, tensors: Tensors, index_B: Tensor) -> Tensor:
        weights_BD, (channels, *size) = tensors["weights"], tensors["size"].tolist()
        weights_BD = weights_BD.index_select(0, index_B)
        y_H, x_W = (torch.linspace(-1, 1, side).to(weights_BD) for side in size)
        places_P2 = torch.stack(torch.meshgrid(y_H, x_W, indexing="ij"), dim=-1).flatten(0, 1)
        layer_BPI, first = places_P2.expand(len(weights_BD), -1, -1), 0
        for number, (inputs, outputs) in enumerate(self._layers(channels)):
            bias, last = first + inputs * outputs, first + (inputs + 1) * outputs
            matrix_BIO = weights_BD[:, first:bias].reshape(-1, inputs, outputs)
            layer_BPI = torch.baddbmm(weights_BD[:, None, bias:last], layer_BPI, matrix_BIO)
            first = last
            if number < self.depth:
                layer_BPI = torch.sin((HIDDEN if number else FIRST) * layer_BPI)
        images_BCP = (0.5 + layer_BPI / 2).clamp(0, 1).transpose(1, 2)
        return images_BCP.reshape(-1, channels, *size)
