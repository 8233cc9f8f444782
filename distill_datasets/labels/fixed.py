"""Fixed labels, read from a table of cells through the area that an example shows of each cell.

An example of a poster shows parts of several cells; an example of its own pixels shows one cell.

Shape suffixes: B examples of a batch, G cells, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field

from distill_datasets.errors import RecipeError
from distill_datasets.labels.labels import Labels

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.canvases.canvas import Canvas
    from distill_datasets.data.real import RealData
    from distill_datasets.distilled import CanvasModule, LabelModule
    from distill_datasets.types import Shape


class Area(Labels):
    """Fixed labels from geometry: which classes an example shows, and how much of each."""

    paper: ClassVar[str] = "PoDD, arXiv:2403.12040, fixed labels"
    name: Literal["area"] = "area"
    rule: Literal["proportional", "one_hot"] = Field(
        default="proportional",
        description="share of the area (the paper's text), or the largest class (its program)",
    )

    def build(
        self, canvas: CanvasModule, classes: int, logits_MNK: Tensor | None = None
    ) -> LabelModule:
        from distill_datasets.labels.modules import FixedLabels

        cells_GK = F.one_hot(canvas.cells_G, classes).to(canvas.mix_NG.dtype)
        return FixedLabels(self._targets_NK(canvas.mix_NG, cells_GK), cells_GK)

    def check(self, canvas: Canvas, shape: Shape, real: RealData | None = None) -> None:
        # an order that the images decide is known with the rows only, and decides ties alone
        shown = canvas.shown(shape, real if self.rule == "one_hot" else None)
        if shown is not None and shown.cells_G is not None:
            cells_GK = F.one_hot(shown.cells_G, shape.k).to(shown.mix_NG.dtype)
            self._targets_NK(shown.mix_NG, cells_GK)

    def _targets_NK(self, mix_NG: Tensor, cells_GK: Tensor) -> Tensor:
        """The target of every example.

        Raises:
            RecipeError: a class is in none of them.
        """
        areas_NK = mix_NG @ cells_GK
        shown_K = (areas_NK > 0).any(dim=0)
        if self.rule == "one_hot":
            areas_NK = F.one_hot(areas_NK.argmax(dim=1), len(shown_K)).to(areas_NK.dtype)
        missing = (areas_NK.sum(dim=0) == 0).nonzero().flatten().tolist()
        if missing:
            raise RecipeError(
                f"distill.labels: the classes {missing} are in no example under the rule "
                f"{self.rule!r}; "
                + (
                    "use the rule 'proportional', 'learned' labels, more crops, a larger budget or "
                    "another order"
                    if shown_K[missing].all()
                    else "give every class an example by a larger budget in distill.canvas (ipc, "
                    f"or a count of at least {len(shown_K)}), or use 'learned' labels"
                )
            )
        return areas_NK
