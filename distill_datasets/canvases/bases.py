"""Bases that all images share, and coefficients for each: the memory of Remember the Past.

An image is a mixture of few bases of all classes, at half the size, enlarged. An image then costs
as many values as there are bases, and ten images' worth of values hold a thousand of them.

Shape suffixes: N images, B images asked for, J bases, C channels, h w pixels of a basis, k l those
of its chromas, P the values of a basis: C * h * w, or h * w of luma and then 2 * k * l of chroma.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field

from distill_datasets.canvases.canvas import Tensors
from distill_datasets.canvases.parameterized import (
    ENLARGED,
    TO_RGB,
    Parameterized,
    Storage,
    shrunk,
    to_rgb,
    to_ycc,
)
from distill_datasets.errors import RecipeError
from distill_datasets.types import Shape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

DECODER = f"""\
{ENLARGED}
small = 0.5 + coefficients @ bases.T / (4 * bases.shape[1] ** 0.5)
h, w = (-(-side // {{scale}}) for side in shape[1:])
images = enlarged(small.reshape(len(small), shape[0], h, w)).clip(0, 1)
"""

HALF_DECODER = f"""\
{ENLARGED}
mixed = coefficients @ bases.T / (4 * bases.shape[1] ** 0.5)
h, w = (-(-side // {{scale}}) for side in shape[1:])
k, l = (h + 1) // 2, (w + 1) // 2
luma = mixed[:, : h * w].reshape(-1, 1, h, w)
chroma = mixed[:, h * w :].reshape(-1, 2, k, l)
images = np.concatenate([enlarged(luma), enlarged(chroma)], axis=1)
{TO_RGB}
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
    colors: Literal["full", "half"] = Field(
        default="full",
        description="of RGB bases: red, green and blue of their size, or luma of their size and "
        "two chromas of half of it, which take half of the values",
    )

    @property
    def decoder(self) -> str:
        decoder = HALF_DECODER if self.colors == "half" else DECODER
        return decoder.replace("{scale}", str(self.scale))

    def _planes(self, channels: int, size: Sequence[int]) -> list[_Plane]:
        """What a basis is made of, one after another, for images of this size."""
        height, width = (math.ceil(side / self.scale) for side in size)
        if self.colors == "full":
            return [_Plane(channels, height, width)]
        return [_Plane(1, height, width), _Plane(2, (height + 1) // 2, (width + 1) // 2)]

    def values_of_one(self, shape: Shape) -> int:
        """Values of a basis for images of this shape."""
        return sum(plane.values for plane in self._planes(shape.c, (shape.h, shape.w)))

    def count(self, shape: Shape, values: int) -> int:
        if self.colors == "half" and shape.c != 3:
            raise RecipeError(
                f"distill.canvas.colors: 'half' is of RGB images, got {shape.c} channel"
                f"{'s' * (shape.c > 1)}; leave it out"
            )
        of_one = self.values_of_one(shape)
        if self.bases > of_one:
            planes = self._planes(shape.c, (shape.h, shape.w))
            sizes = " and ".join(" x ".join(map(str, plane)) for plane in planes)
            raise RecipeError(
                f"distill.canvas.bases: {self.bases} bases for images of {sizes} values; set bases "
                f"to at most {of_one}"
            )
        # two scales for each basis, and two for the coefficients of each
        return (values - self.bases * (of_one + 4)) // self.bases

    def encode(self, images_NCHW: Tensor, rng: torch.Generator) -> tuple[Tensors, Tensors]:
        channels, *size = images_NCHW.shape[1:]
        planes_NCHW = to_ycc(images_NCHW) + 0.5 if self.colors == "half" else images_NCHW
        planes = self._planes(channels, size)
        pieces = torch.split(planes_NCHW, [plane.channels for plane in planes], dim=1)
        small_NP = torch.cat(
            [
                shrunk(piece, (plane.height, plane.width)).flatten(1) - 0.5
                for piece, plane in zip(pieces, planes, strict=True)
            ],
            dim=1,
        )
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
        small_BP, planes = 0.5 + mixed_BP / (4 * self.bases**0.5), self._planes(channels, size)
        pieces = torch.split(small_BP, [plane.values for plane in planes], dim=1)
        large = [
            F.interpolate(piece.reshape(-1, *plane), size, mode="bilinear")
            for piece, plane in zip(pieces, planes, strict=True)
        ]
        if self.colors == "half":
            return to_rgb(torch.cat(large, dim=1) - 0.5)
        return large[0].clamp(0, 1)


class _Plane(NamedTuple):
    """Channels of a basis that have one size."""

    channels: int
    height: int
    width: int

    @property
    def values(self) -> int:
        return self.channels * self.height * self.width
