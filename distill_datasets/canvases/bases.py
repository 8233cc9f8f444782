"""Bases that all images share, and coefficients for each: the memory of Remember the Past.

An image is a mixture of few bases of all classes, at half the size, enlarged. An image then costs
as many values as there are bases, and ten images' worth of values hold a thousand of them.

Shape suffixes: N images, B images asked for, J bases, C channels, h w pixels of a basis,
P = C * h * w.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from distill_datasets.canvases.canvas import Tensors
from distill_datasets.canvases.parameterized import ENLARGED, Parameterized, Storage, shrunk
from distill_datasets.errors import RecipeError
from distill_datasets.types import Shape

if TYPE_CHECKING:
    from torch import Tensor

DECODER = f"""\
{ENLARGED}
small = 0.5 + coefficients @ bases.T / (4 * bases.shape[1] ** 0.5)
h, w = (-(-side // {{scale}}) for side in shape[1:])
images = enlarged(small.reshape(len(small), shape[0], h, w)).clip(0, 1)
"""


class Bases(Parameterized):
    """Images that are mixtures of bases which all classes share, enlarged bilinearly.

    Bases start as the principal components of the initial images, and coefficients as what these
    have of them. One unit of a coefficient, or of a basis, is as much as elsewhere one unit of a
    pixel: images are 1/2 + (coefficients x bases) / (4 sqrt(J)).
    """

    paper: ClassVar[str] = "Remember the Past, arXiv:2206.02916"
    storage: ClassVar[dict[str, Storage]] = {"bases": "scaled8", "coefficients": "scaled8"}
    name: Literal["bases"] = "bases"
    bases: int = Field(default=16, ge=1, description="that all images are mixed of")
    scale: int = Field(default=2, ge=1, description="an example's side in sides of a basis")

    @property
    def decoder(self) -> str:
        return DECODER.replace("{scale}", str(self.scale))

    def _side(self, shape: Shape) -> tuple[int, int]:
        return math.ceil(shape.h / self.scale), math.ceil(shape.w / self.scale)

    def count(self, shape: Shape, values: int) -> int:
        height, width = self._side(shape)
        if self.bases > shape.c * height * width:
            raise RecipeError(
                f"distill.canvas.bases: {self.bases} bases for images of {shape.c} x {height} x "
                f"{width} values; set bases to at most {shape.c * height * width}"
            )
        # two scales for each basis, and two for the coefficients of each
        return (values - self.bases * (shape.c * height * width + 4)) // self.bases

    def encode(self, images_NCHW: Tensor, rng: torch.Generator) -> tuple[Tensors, Tensors]:
        channels, *size = images_NCHW.shape[1:]
        height, width = self._side(Shape(channels, size[0], size[1], 1))
        small_NP = (shrunk(images_NCHW, (height, width)) - 0.5).flatten(1)
        # fewer images than bases leave the last ones to noise of a hundredth of a pixel
        kept = min(self.bases, len(small_NP))
        noise_JP = 0.01 * torch.randn(self.bases, small_NP.shape[1], generator=rng)
        left_NJ, sizes_J, right_JP = torch.linalg.svd(small_NP, full_matrices=False)
        root = len(small_NP) ** 0.5
        coefficients_NJ = torch.randn(len(small_NP), self.bases, generator=rng)
        coefficients_NJ[:, :kept] = left_NJ[:, :kept] * root
        noise_JP[:kept] = right_JP[:kept] * sizes_J[:kept, None] / root
        bases_PJ = noise_JP.T.contiguous() * (4 * self.bases**0.5)
        trained = {"bases_PJ": bases_PJ, "coefficients_NJ": coefficients_NJ}
        return trained, {"size": torch.tensor([channels, *size])}

    def numbers(self, tensors: Tensors) -> Tensors:
        return {"bases": tensors["bases_PJ"], "coefficients": tensors["coefficients_NJ"]}

    def draw(self, tensors: Tensors, index_B: Tensor) -> Tensor:
        bases_PJ, (channels, *size) = tensors["bases"], tensors["size"].tolist()
        mixed_BP = tensors["coefficients"].index_select(0, index_B) @ bases_PJ.T
        height, width = self._side(Shape(channels, size[0], size[1], 1))
        small_BChw = 0.5 + mixed_BP.view(-1, channels, height, width) / (4 * self.bases**0.5)
        return F.interpolate(small_BChw, size, mode="bilinear").clamp(0, 1)
