"""Few coefficients of a cosine transform for each image: FreD's canvas with orthonormal waves.

Shape suffixes: N images, B images asked for, C channels, H W pixels, U V frequencies, M kept ones
of luma, m those of each chroma.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field

from distill_datasets.canvases.canvas import Tensors
from distill_datasets.canvases.parameterized import TO_RGB, Parameterized, Storage, to_rgb, to_ycc
from distill_datasets.errors import RecipeError
from distill_datasets.types import Shape

if TYPE_CHECKING:
    from torch import Tensor

DECODER = f"""\
def waves(length):
    u, x = np.arange(length)[:, None], np.arange(length) + 0.5
    return np.cos(np.pi * u * x / length) * np.where(u > 0, 2, 1) ** 0.5 / length**0.5

h, w = shape[1:]
far = (np.arange(h)[:, None] / h) ** 2 + (np.arange(w) / w) ** 2
order = np.argsort(far.ravel(), kind="stable")
spectrum = np.zeros((len(luma), shape[0], h * w))
spectrum[:, 0, order[: luma.shape[1]]] = luma
if shape[0] == 3:
    spectrum[:, 1:, order[: chroma.shape[1] // 2]] = chroma.reshape(len(luma), 2, -1)
spectrum = spectrum.reshape(-1, *shape) * (h * w / luma.shape[1]) ** 0.5 / 4
images = waves(h).T @ spectrum @ waves(w)
{TO_RGB}
"""


class Frequency(Parameterized):
    """Images of the lowest frequencies alone: `kept` of luma, fewer of color.

    Which ones are kept follows from the sizes, so that no place has to be stored; FreD keeps those
    that vary most among real images, for each class. One unit of every coefficient moves pixels by
    a quarter of the range in the mean, as elsewhere one unit of a pixel.
    """

    paper: ClassVar[str] = "FreD, arXiv:2311.08819"
    storage: ClassVar[dict[str, Storage]] = {"luma": "scaled8", "chroma": "scaled8"}
    name: Literal["frequency"] = "frequency"
    kept: int = Field(default=64, ge=1, description="coefficients of luma")
    kept_color: int | None = Field(
        default=None, ge=1, description="coefficients of each chroma; null: a quarter of luma's"
    )

    def _kept(self, channels: int) -> tuple[int, int]:
        """Coefficients of luma and of each chroma."""
        color = self.kept_color or max(1, self.kept // 4)
        return self.kept, color if channels == 3 else 0

    @property
    def decoder(self) -> str:
        return DECODER

    def count(self, shape: Shape, values: int) -> int:
        if shape.c not in (1, 3):
            raise RecipeError(
                f"distill.canvas: {self.name!r} stores luma and chroma of gray or RGB images, got "
                f"{shape.c} channels; choose pixels"
            )
        luma, chroma = self._kept(shape.c)
        if max(luma, chroma) > shape.h * shape.w:
            raise RecipeError(
                f"distill.canvas.kept: {max(luma, chroma)} coefficients of images of {shape.h} x "
                f"{shape.w} px, which have {shape.h * shape.w}; keep fewer"
            )
        each = luma + 2 * chroma
        return (values - 2 * each) // each  # two scales for each coefficient

    def encode(self, images_NCHW: Tensor, rng: torch.Generator) -> tuple[Tensors, Tensors]:
        channels, height, width = images_NCHW.shape[1:]
        luma, chroma = self._kept(channels)
        ycc_NCHW = to_ycc(images_NCHW) * 4 / (height * width / luma) ** 0.5
        spectrum_NCUV = waves(height) @ ycc_NCHW @ waves(width).T
        spectrum_NCD = spectrum_NCUV.flatten(2)[:, :, lowest(height, width)]
        trained = {"luma_NM": spectrum_NCD[:, 0, :luma].contiguous()}
        if channels == 3:
            trained["chroma_Nm"] = spectrum_NCD[:, 1:, :chroma].flatten(1)
        return trained, {"size": torch.tensor([height, width])}

    def numbers(self, tensors: Tensors) -> Tensors:
        named = {"luma": "luma_NM", "chroma": "chroma_Nm"}
        return {name: tensors[trained] for name, trained in named.items() if trained in tensors}

    def draw(self, tensors: Tensors, index_B: Tensor) -> Tensor:
        height, width = tensors["size"].tolist()
        luma_BM = tensors["luma"].index_select(0, index_B)
        planes = [luma_BM]
        if "chroma" in tensors:
            planes += tensors["chroma"].index_select(0, index_B).chunk(2, dim=1)
        order_D = lowest(height, width).to(luma_BM.device)
        spectrum_BCD = luma_BM.new_zeros(len(luma_BM), len(planes), height * width)
        for plane, kept_BM in enumerate(planes):
            spectrum_BCD[:, plane, order_D[: kept_BM.shape[1]]] = kept_BM
        rows_HH, columns_WW = (waves(side).to(spectrum_BCD) for side in (height, width))
        spectrum_BCUV = spectrum_BCD.view(*spectrum_BCD.shape[:2], height, width)
        ycc_BCHW: Tensor = rows_HH.T @ spectrum_BCUV @ columns_WW
        return to_rgb(ycc_BCHW * (height * width / self.kept) ** 0.5 / 4)


def waves(length: int) -> Tensor:
    """The orthonormal DCT-II: row u is a cosine of u half waves over so many pixels."""
    u_U1 = torch.arange(length, dtype=torch.float64)[:, None]
    x_X = torch.arange(length, dtype=torch.float64) + 0.5
    scale_U1 = torch.where(u_U1 > 0, 2.0, 1.0).sqrt() / length**0.5
    waves_UX: Tensor = torch.cos(torch.pi * u_U1 * x_X / length) * scale_U1
    return waves_UX.float()


def lowest(height: int, width: int) -> Tensor:
    """The places of a spectrum in a row, from the lowest frequency to the highest."""
    u_H1, v_W = torch.arange(height)[:, None] / height, torch.arange(width) / width
    far_HW = u_H1.double() ** 2 + v_W.double() ** 2
    return far_HW.flatten().argsort(stable=True)
