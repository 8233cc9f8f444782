"""Small images with smaller colors, enlarged: many examples from the values of few.

Eyes see, and networks need, less detail in color than in brightness. An image is stored as its luma
at one size and its two chromas at half of it: at 12 px that is 216 values where an image of 32 px
in color has 3,072. This is what a JPEG's chroma subsampling does, and IDC's enlargement.

Shape suffixes: N images, B images asked for, C channels, H W pixels of an example, h w of a luma.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from distill_datasets.canvases.canvas import Tensors, hide, show
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
    from torch import Tensor

DECODER = f"""\
{ENLARGED}
images = enlarged(luma - 0.5)
if shape[0] == 3:
    images = np.concatenate([images, enlarged(chroma - 0.5)], axis=1)
{TO_RGB}
"""


class Small(Parameterized):
    """Small images whose colors have half their side, enlarged to examples bilinearly."""

    paper: ClassVar[str] = "IDC, arXiv:2205.14959; chroma subsampling, ITU-T T.81 (JPEG)"
    storage: ClassVar[dict[str, Storage]] = {"luma": "unit8", "chroma": "unit8"}
    name: Literal["small"] = "small"
    side: int = Field(ge=1, description="of the stored luma, in px; chroma has half of it")

    @property
    def decoder(self) -> str:
        return DECODER

    def count(self, shape: Shape, values: int) -> int:
        if shape.c not in (1, 3):
            raise RecipeError(
                f"distill.canvas: {self.name!r} stores luma and chroma of gray or RGB images, got "
                f"{shape.c} channels; choose pixels"
            )
        if self.side > min(shape.h, shape.w):
            raise RecipeError(
                f"distill.canvas.side: {self.side} px are not small beside images of {shape.h} x "
                f"{shape.w} px; set side to at most {min(shape.h, shape.w)}"
            )
        chroma = 2 * ((self.side + 1) // 2) ** 2 if shape.c == 3 else 0
        return values // (self.side**2 + chroma)

    def encode(self, images_NCHW: Tensor, rng: torch.Generator) -> tuple[Tensors, Tensors]:
        half, ycc_NCHW = (self.side + 1) // 2, to_ycc(images_NCHW) + 0.5
        luma_N1hw = shrunk(ycc_NCHW[:, :1], (self.side, self.side))
        trained = {"luma_N1hw": hide(luma_N1hw, "sigmoid")}
        if images_NCHW.shape[1] == 3:
            chroma_N2hw = shrunk(ycc_NCHW[:, 1:], (half, half))
            trained["chroma_N2hw"] = hide(chroma_N2hw, "sigmoid")
        return trained, {"size": torch.tensor(images_NCHW.shape[2:])}

    def numbers(self, tensors: Tensors) -> Tensors:
        named = {"luma": "luma_N1hw", "chroma": "chroma_N2hw"}
        return {
            name: show(tensors[trained], "sigmoid")
            for name, trained in named.items()
            if trained in tensors
        }

    def draw(self, tensors: Tensors, index_B: Tensor) -> Tensor:
        size = tensors["size"].tolist()
        parts = [tensors[name] - 0.5 for name in self.storage if name in tensors]
        large = [
            F.interpolate(part.index_select(0, index_B), size, mode="bilinear") for part in parts
        ]
        return to_rgb(torch.cat(large, dim=1))
