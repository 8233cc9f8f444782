"""Sums of two-dimensional Gaussians: images as a few colored blobs each (GSDD).

Shape suffixes: N images, B images asked for, G blobs of an image, D values of one, C channels,
P places, H W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from distill_datasets.canvases.canvas import Tensors
from distill_datasets.canvases.parameterized import Parameterized, Storage, fitted
from distill_datasets.types import Shape

if TYPE_CHECKING:
    from torch import Tensor

DECODER = """\
y, x = (np.linspace(-1, 1, side) for side in shape[1:])
places = np.stack(np.meshgrid(y, x, indexing="ij")).reshape(2, -1)
at_y, at_x, a, b, d = (blobs[:, :, each, None] for each in range(5))
down, right = places[0] - at_y, places[1] - at_x
near = np.exp(-((a * down) ** 2 + (b * down + d * right) ** 2) / 2)
images = (0.5 + np.einsum("ngc,ngp->ncp", blobs[:, :, 5:], near) / 4).clip(0, 1)
images = images.reshape(-1, *shape)
"""


class Gaussians(Parameterized):
    """Images that are sums of colored Gaussians on gray, evaluated at every pixel.

    A blob is center (y, x), the three numbers a, b, d of the Cholesky factor of its inverse
    covariance, and a color: exp(-((a dy)^2 + (b dy + d dx)^2) / 2) times the color. Sides of an
    image go from -1 to 1. Opacity is part of the color, since blobs are added.
    """

    paper: ClassVar[str] = "GSDD, arXiv:2509.26219"
    is_fitted: ClassVar[bool] = True
    storage: ClassVar[dict[str, Storage]] = {"blobs": "scaled8"}
    name: Literal["gaussians"] = "gaussians"
    blobs: int = Field(default=10, ge=1, description="Gaussians of an image")
    fit_steps: int = Field(
        default=500, ge=0, description="steps in which blobs are fitted to initial images"
    )

    @property
    def decoder(self) -> str:
        return DECODER

    def count(self, shape: Shape, values: int) -> int:
        each = 5 + shape.c
        return (values - 2 * each) // (self.blobs * each)  # two scales for each number of a blob

    def encode(self, images_NCHW: Tensor, rng: torch.Generator) -> tuple[Tensors, Tensors]:
        count, _, *size = images_NCHW.shape
        center_NG2 = 2 * torch.rand(count, self.blobs, 2, generator=rng) - 1
        color_NCG = F.grid_sample(images_NCHW, center_NG2[:, None].flip(-1), align_corners=True)
        # together the blobs cover the image about twice
        spread = torch.tensor([self.blobs**0.5, 0.0, self.blobs**0.5])
        spread_NG3 = spread.expand(count, self.blobs, 3)
        color_NGC = 2 * (color_NCG[:, :, 0].transpose(1, 2) - 0.5)
        started = {"blobs_NGD": torch.cat([center_NG2, spread_NG3, color_NGC], dim=2)}
        constants = {"size": torch.tensor(size)}
        trained = fitted(self, started, constants, images_NCHW, self.fit_steps, lr=0.03)
        return trained, constants

    def numbers(self, tensors: Tensors) -> Tensors:
        return {"blobs": tensors["blobs_NGD"]}

    def draw(self, tensors: Tensors, index_B: Tensor) -> Tensor:
        blobs_BGD, size = tensors["blobs"].index_select(0, index_B), tensors["size"].tolist()
        y_H, x_W = (torch.linspace(-1, 1, side).to(blobs_BGD) for side in size)
        y_P, x_P = (each.flatten() for each in torch.meshgrid(y_H, x_W, indexing="ij"))
        at_y, at_x, a, b, d = blobs_BGD[:, :, :5, None].unbind(2)
        down_BGP, right_BGP = y_P - at_y, x_P - at_x
        near_BGP = torch.exp(-((a * down_BGP) ** 2 + (b * down_BGP + d * right_BGP) ** 2) / 2)
        sum_BCP = blobs_BGD[:, :, 5:].transpose(1, 2) @ near_BGP
        return (0.5 + sum_BCP / 4).clamp(0, 1).view(*sum_BCP.shape[:2], *size)
