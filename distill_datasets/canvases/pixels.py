"""Every example is its own trained image: the canvas of RaT-BPTT and of most methods.

Shape suffixes: N examples, K classes, C channels, H W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, SerializeAsAny, model_validator

from distill_datasets.canvases.canvas import Bounds, Canvas, CanvasSize, Shown
from distill_datasets.config import part
from distill_datasets.selection.random import Noise
from distill_datasets.selection.selection import Selection, Teacher
from distill_datasets.types import Shape

if TYPE_CHECKING:
    from distill_datasets.data.real import RealData
    from distill_datasets.distilled import CanvasModule


class Pixels(Canvas):
    """Trained images, each its own training example: `ipc` of every class, or a number of them."""

    paper: ClassVar[str] = "Dataset Distillation, arXiv:1811.10959; RaT-BPTT, arXiv:2311.07025"
    name: Literal["pixels"] = "pixels"
    ipc: int | None = Field(default=None, ge=1, description="images per class")
    count: int | None = Field(
        default=None,
        ge=1,
        description="images in all, instead of ipc: the first classes have one more than the last, "
        "or one and none (SLDD: fewer images than classes, with learned labels)",
    )
    init: Annotated[SerializeAsAny[Selection], part("selections")] = Field(
        default=Noise(), description="initial images"
    )
    bounds: Bounds = Field(
        default="sigmoid", description="how pixels are kept displayable; clip suits real images"
    )

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if (self.ipc is None) == (self.count is None):
            raise ValueError("expected either ipc or count")
        return self

    def cited(self) -> list[str]:
        own = self.paper.split("; ")
        return own if self.init.effort != "file" else [*own, *self.init.papers()]

    @property
    def needs_squeezed(self) -> bool:
        return self.init.needs_squeezed

    def _of_class(self, classes: int) -> list[int]:
        """How many images each class has."""
        if self.ipc is not None:
            return [self.ipc] * classes
        assert self.count is not None
        return [self.count // classes + (label < self.count % classes) for label in range(classes)]

    def size(self, shape: Shape) -> CanvasSize:
        count = sum(self._of_class(shape.k))
        return CanvasSize([(shape.h, shape.w)] * count, count)

    def shown(self, shape: Shape, real: RealData | None = None) -> Shown | None:
        count = sum(self._of_class(shape.k))
        if count >= shape.k:
            return None
        return Shown(torch.eye(count), torch.arange(count))

    def build(
        self, real: RealData, rng: torch.Generator, teacher: Teacher | None = None
    ) -> CanvasModule:
        from distill_datasets.canvases.modules import PixelImages

        counts_K = self._of_class(real.shape.k)
        each = max(counts_K)
        drawn_NCHW = self.init.images(real, each, rng, teacher)
        kept = [label * each + place for label, of in enumerate(counts_K) for place in range(of)]
        classes_N = torch.arange(real.shape.k).repeat_interleave(torch.tensor(counts_K))
        return PixelImages(drawn_NCHW[kept], classes_N, self.bounds)
