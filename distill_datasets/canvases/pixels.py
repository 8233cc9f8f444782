"""Every example is its own trained image: the canvas of RaT-BPTT and of most methods.

Shape suffixes: N examples, B examples asked for, K classes, C channels, H W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, SerializeAsAny, model_validator

from distill_datasets.canvases.canvas import (
    Alone,
    Bounds,
    Canvas,
    CanvasSize,
    CanvasStart,
    Cells,
    Tensors,
    check_count,
    evenly,
    hide,
    initial,
    keep_inside,
    show,
)
from distill_datasets.config import part
from distill_datasets.selection.random import Noise
from distill_datasets.selection.selection import Selection, Teacher
from distill_datasets.types import Shape

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.real import RealData


class Pixels(Canvas):
    """Trained images, each its own training example: `ipc` of every class, or a number of them."""

    examples_are_stored: ClassVar[bool] = True
    paper: ClassVar[str] = (
        "Dataset Distillation, arXiv:1811.10959; RaT-BPTT, arXiv:2311.07025; "
        "SelMatch, arXiv:2406.18561"
    )
    name: Literal["pixels"] = "pixels"
    ipc: int | None = Field(default=None, ge=1, le=100_000, description="images per class")
    count: int | None = Field(
        default=None,
        ge=1,
        le=10_000_000,
        description="images in all, instead of ipc: the first classes have one more than the last, "
        "or one and none (SLDD: fewer images than classes, with learned labels)",
    )
    init: Annotated[SerializeAsAny[Selection], part("selections")] = Field(
        default=Noise(), description="initial images"
    )
    bounds: Bounds = Field(
        default="sigmoid", description="how pixels are kept displayable; clip suits real images"
    )
    frozen: int = Field(
        default=0,
        ge=0,
        description="last images of every class that stay as they began, beside trained ones "
        "(SelMatch)",
    )

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if (self.ipc is None) == (self.count is None):
            raise ValueError("expected either ipc or count")
        if self.frozen and (self.ipc is None or self.bounds != "clip"):
            raise ValueError(
                f"frozen: got {self.frozen}, which takes ipc: and bounds: clip, as real images "
                f"stay what they are; got ipc: {self.ipc}, bounds: {self.bounds}"
            )
        if self.ipc is not None and self.frozen >= self.ipc:
            raise ValueError(
                f"frozen: got {self.frozen} of ipc: {self.ipc} images, expected fewer: some are "
                "trained"
            )
        return self

    def cited(self) -> list[str]:
        *own, selmatch = self.paper.split("; ")
        own += [selmatch] if self.frozen else []
        return own if self.init.effort != "file" else [*own, *self.init.papers()]

    @property
    def needs_squeezed(self) -> bool:
        return self.init.needs_squeezed

    def _of_class(self, classes: int) -> list[int]:
        """How many images each class has."""
        if self.ipc is not None:
            return [self.ipc] * classes
        assert self.count is not None
        return evenly(self.count, classes)

    def size(self, shape: Shape) -> CanvasSize:
        count = self.count or shape.k * (self.ipc or 0)
        check_count(count, "ipc" if self.count is None else "count")
        return CanvasSize([(shape.h, shape.w)] * count, count)

    def shown(self, shape: Shape, real: RealData | None = None) -> Cells:
        classes_N = self._classes_N(shape.k)
        return Cells(torch.arange(len(classes_N)), classes_N)

    def _classes_N(self, classes: int) -> Tensor:
        counts_K = torch.tensor(self._of_class(classes))
        return torch.arange(classes).repeat_interleave(counts_K)

    def start(
        self, real: RealData, rng: torch.Generator, teacher: Teacher | None = None
    ) -> CanvasStart:
        counts_K = self._of_class(real.shape.k)
        pixels_NCHW = initial(self.init, real, counts_K, rng, teacher)
        return self._start_from(pixels_NCHW, self._classes_N(real.shape.k))

    def _start_from(self, pixels_NCHW: Tensor, classes_N: Tensor) -> CanvasStart:
        cells = Cells(torch.arange(len(classes_N)), classes_N)
        values_NCHW = hide(pixels_NCHW, self.bounds)
        if not self.frozen:
            return CanvasStart({"trained_NCHW": values_NCHW}, {}, cells)
        assert self.ipc is not None
        stays_N = torch.arange(len(classes_N)) % self.ipc >= self.ipc - self.frozen
        # row n of all lies at place_N[n] of the trained ones followed by those that stay
        place_N = torch.cat([(~stays_N).nonzero(), stays_N.nonzero()]).flatten().argsort()
        constants = {"frozen_NCHW": values_NCHW[stays_N], "place_N": place_N}
        return CanvasStart({"trained_NCHW": values_NCHW[~stays_N]}, constants, cells)

    def decode(self, tensors: Tensors, index_B: Tensor) -> Tensor:
        values_NCHW = tensors["trained_NCHW"]
        if self.frozen:
            values_NCHW = torch.cat([values_NCHW, tensors["frozen_NCHW"]])
            index_B = tensors["place_N"].index_select(0, index_B)
        return show(values_NCHW.index_select(0, index_B), self.bounds)

    def project(self, tensors: Tensors) -> None:
        keep_inside(tensors["trained_NCHW"], self.bounds)

    def stored(self, tensors: Tensors) -> list[Tensor]:
        if self.frozen:
            place_N = tensors["place_N"]
            return list(self.decode(tensors, torch.arange(len(place_N)).to(place_N)).detach())
        return list(show(tensors["trained_NCHW"].detach(), self.bounds))

    def preview(self, tensors: Tensors) -> list[Tensor]:
        return self.stored(tensors)

    def alone(self) -> Alone | None:
        if self.ipc is None or self.frozen:
            return None
        altered = None
        if self.bounds != "clip":
            altered = (
                f"canvas.bounds: got {self.bounds!r}, expected 'clip': it shows the initial images "
                "as they are"
            )
        return Alone(self.ipc, self.init, self._start_from, altered)
