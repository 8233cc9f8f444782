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

from distill_datasets.canvases.canvas import Tensors, hide
from distill_datasets.canvases.parameterized import Parameterized, Storage
from distill_datasets.errors import RecipeError
from distill_datasets.types import Shape

if TYPE_CHECKING:
    from torch import Tensor

# ITU-R BT.601, as in JPEG: rows are luma, blue and red difference
TO_RGB_33 = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))

DECODER = """\
def enlarged(small, size):
    for axis, long in zip((2, 3), size):
        last = small.shape[axis] - 1
        at = ((np.arange(long) + 0.5) * (last + 1) / long - 0.5).clip(0, last)
        low = np.floor(at).astype(int)
        high, share = np.minimum(low + 1, last), (at - low).reshape((-1, 1)[: 4 - axis])
        small = small.take(low, axis) * (1 - share) + small.take(high, axis) * share
    return small

images = enlarged(luma, shape[1:])
if shape[0] == 3:
    blue, red = np.split(enlarged(chroma - 0.5, shape[1:]), 2, axis=1)
    green = images - 0.344136 * blue - 0.714136 * red
    images = np.concatenate([images + 1.402 * red, green, images + 1.772 * blue], axis=1).clip(0, 1)
"""


class Small(Parameterized):
    """Small images whose colors have half their side, enlarged to examples bilinearly."""

    paper: ClassVar[str] = "IDC, arXiv:2205.14959; chroma subsampling, ITU-T T.81 (JPEG)"
    storage: ClassVar[dict[str, Storage]] = {"luma": "unit8", "chroma": "unit8"}
    decoder: ClassVar[str] = DECODER
    name: Literal["small"] = "small"
    side: int = Field(ge=1, description="of the stored luma, in px; chroma has half of it")

    def count(self, shape: Shape, values: int) -> int:
        if shape.c not in (1, 3):
            raise RecipeError(
                f"distill.canvas: {self.name!r} stores luma and chroma of gray or RGB images, got "
                f"{shape.c} channels; choose pixels or frequency"
            )
        if self.side > min(shape.h, shape.w):
            raise RecipeError(
                f"distill.canvas.side: {self.side} px are not small beside images of {shape.h} x "
                f"{shape.w} px; set side to at most {min(shape.h, shape.w)}"
            )
        chroma = 2 * ((self.side + 1) // 2) ** 2 if shape.c == 3 else 0
        return values // (self.side**2 + chroma)

    def encode(self, images_NCHW: Tensor, rng: torch.Generator) -> tuple[Tensors, Tensors]:
        channels, *size = images_NCHW.shape[1:]
        to_ycc_33 = torch.linalg.inv(torch.tensor(TO_RGB_33)) if channels == 3 else torch.eye(1)
        ycc_NCHW = torch.einsum("yc,nchw->nyhw", to_ycc_33, images_NCHW)
        half = (self.side + 1) // 2
        luma_N1hw = _shrunk(ycc_NCHW[:, :1], self.side)
        trained = {"luma_N1hw": hide(luma_N1hw, "sigmoid")}
        if channels == 3:
            trained["chroma_N2hw"] = hide(_shrunk(ycc_NCHW[:, 1:], half) + 0.5, "sigmoid")
        return trained, {"size": torch.tensor(size)}

    def numbers(self, tensors: Tensors) -> Tensors:
        named = {"luma": "luma_N1hw", "chroma": "chroma_N2hw"}
        return {
            name: torch.sigmoid(tensors[trained])
            for name, trained in named.items()
            if trained in tensors
        }

    def draw(self, tensors: Tensors, index_B: Tensor) -> Tensor:
        size = tensors["size"].tolist()
        parts = [tensors["luma"]] + ([tensors["chroma"] - 0.5] if "chroma" in tensors else [])
        large = [
            F.interpolate(part.index_select(0, index_B), size, mode="bilinear") for part in parts
        ]
        if len(large) == 1:
            return large[0]
        to_rgb_33 = torch.tensor(TO_RGB_33).to(large[0])
        return torch.einsum("cy,byhw->bchw", to_rgb_33, torch.cat(large, dim=1)).clamp(0, 1)


def _shrunk(images_NCHW: Tensor, side: int) -> Tensor:
    return F.interpolate(images_NCHW, (side, side), mode="bilinear", antialias=True)
