"""Every example is its own trained image: the canvas of RaT-BPTT and of most methods.

Shape suffixes: N examples, K classes, C channels, H W pixels.
"""

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from distill_datasets.canvases.bounded import hide, show
from distill_datasets.types import Canvas, CanvasModule, CanvasSize, Shape

if TYPE_CHECKING:
    from distill_datasets.data.source import RealData


class PixelImages(CanvasModule):
    """`ipc` images of every class, classes in order."""

    examples_are_originals: ClassVar[bool] = True

    def __init__(self, pixels_NCHW: Tensor, ipc: int) -> None:
        super().__init__()
        self.count = len(pixels_NCHW)
        self.trained_NCHW = nn.Parameter(hide(pixels_NCHW))
        self.register_buffer("mix_NG", torch.eye(self.count))
        self.register_buffer("cells_G", torch.arange(self.count // ipc).repeat_interleave(ipc))

    def forward(self, index_B: Tensor) -> Tensor:
        return show(self.trained_NCHW.index_select(0, index_B))

    def originals(self) -> list[Tensor]:
        return list(show(self.trained_NCHW.detach()))

    def geometry(self) -> dict[str, object]:
        return {"canvas": "pixels"}


class Pixels(Canvas):
    """`ipc` trained images per class, each its own training example."""

    paper: ClassVar[str] = "Dataset Distillation, arXiv:1811.10959; RaT-BPTT, arXiv:2311.07025"
    name: Literal["pixels"] = "pixels"
    ipc: int = Field(ge=1, description="images per class")
    init: Literal["noise", "real"] = Field(default="noise", description="initial images")
    init_std: float = Field(
        default=0.0045, ge=0, description="standard deviation of noise, in units of [0, 1]"
    )

    def size(self, shape: Shape) -> CanvasSize:
        count = self.ipc * shape.k
        return CanvasSize([(shape.h, shape.w)] * count, count)

    def build(self, real: "RealData", rng: torch.Generator) -> CanvasModule:
        shape = real.shape
        if self.init == "real":
            pixels_NCHW = real.examples(rng, self.ipc)
        else:
            count = self.size(shape).examples
            noise_NCHW = torch.randn(count, shape.c, shape.h, shape.w, generator=rng)
            pixels_NCHW = 0.5 + self.init_std * noise_NCHW
        return PixelImages(pixels_NCHW, self.ipc)
