"""Fixed labels, read from a table of cells through the area that an example shows of each cell.

An example of a poster shows parts of several cells; an example of its own pixels shows one cell.

Shape suffixes: B examples of a batch, G cells, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from distill_datasets.canvases.canvas import Canvas, Cells, Tensors, mix
from distill_datasets.labels.labels import Labels, LabelStart
from distill_datasets.types import Shape

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.real import RealData


class Area(Labels):
    """Fixed labels from geometry: which classes an example shows, and how much of each."""

    keep_classes: ClassVar[bool] = True
    paper: ClassVar[str] = "PoDD, arXiv:2403.12040, fixed labels"
    name: Literal["area"] = "area"
    rule: Literal["proportional", "one_hot"] = Field(
        default="proportional",
        description="share of the area (the paper's text), or the largest class (its program)",
    )

    def start(self, cells: Cells, classes: int, logits_MNK: Tensor | None = None) -> LabelStart:
        cells_GK = F.one_hot(cells.classes_G, classes).float()
        targets_NK = self._largest(mix(cells.shown, cells_GK))
        return LabelStart({}, {"targets_NK": targets_NK, "cells_GK": cells_GK})

    def targets(self, tensors: Tensors, index_B: Tensor) -> Tensor:
        return tensors["targets_NK"][index_B]

    def stored(self, tensors: Tensors) -> Tensor:
        return tensors["cells_GK"]

    def _largest(self, areas_NK: Tensor) -> Tensor:
        """The areas as they are, or the largest class alone under the rule `one_hot`."""
        if self.rule == "proportional":
            return areas_NK
        return F.one_hot(areas_NK.argmax(dim=1), areas_NK.shape[1]).to(areas_NK.dtype)

    def problems(self, canvas: Canvas, shape: Shape, real: RealData | None = None) -> Iterator[str]:
        # an order that the images decide is known with the rows only, and decides ties alone
        cells = canvas.shown(shape, real if self.rule == "one_hot" else None)
        if cells is None:
            return
        if cells.shown.dim() == 1:  # every example is of one class, and there may be many
            shown_K = labeled_K = (
                torch.bincount(cells.classes_G[cells.shown], minlength=shape.k) > 0
            )
        else:
            areas_NK = mix(cells.shown, F.one_hot(cells.classes_G, shape.k).float())
            shown_K = (areas_NK > 0).any(dim=0)
            labeled_K = self._largest(areas_NK).sum(dim=0) > 0
        missing = (~labeled_K).nonzero().flatten().tolist()
        if missing:
            yield (
                f"distill.labels: the classes {missing} are in no example under the rule "
                f"{self.rule!r}; "
                + (
                    "use the rule 'proportional', 'learned' labels, more crops, a larger budget or "
                    "another order"
                    if shown_K[missing].all()
                    else "give every class an example by a larger budget in distill.canvas (ipc, "
                    f"or a count of at least {shape.k}), or use 'learned' labels"
                )
            )
