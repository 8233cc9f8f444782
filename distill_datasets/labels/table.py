"""Labels read from a table of cells through the area that an example shows of each cell.

An example of a poster shows parts of several cells; an example of its own pixels shows one cell.

Shape suffixes: B examples of a batch, G cells, K classes.
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from distill_datasets.errors import RecipeError
from distill_datasets.types import CanvasModule, LabelModule, Labels


class FixedLabels(LabelModule):
    """Targets that geometry decides."""

    targets_NK: Tensor
    cells_GK: Tensor

    def __init__(self, targets_NK: Tensor, cells_GK: Tensor) -> None:
        super().__init__()
        self.register_buffer("targets_NK", targets_NK)
        self.register_buffer("cells_GK", cells_GK)

    def forward(self, index_B: Tensor) -> Tensor:
        return self.targets_NK[index_B]

    def project(self) -> None:
        """Nothing is trained."""

    def table_GK(self) -> Tensor:
        return self.cells_GK


class LearnedLabels(LabelModule):
    """One trained distribution per cell; an example's target is their mean by area, normalized."""

    mix_NG: Tensor

    def __init__(self, mix_NG: Tensor, cells_GK: Tensor, floor: float) -> None:
        super().__init__()
        self.register_buffer("mix_NG", mix_NG)
        self._floor = floor
        self.cells_GK = nn.Parameter(cells_GK.clamp(min=floor))

    def forward(self, index_B: Tensor) -> Tensor:
        mixed_BK = self.mix_NG.index_select(0, index_B) @ self.cells_GK
        return mixed_BK / mixed_BK.sum(dim=1, keepdim=True)

    @torch.no_grad()
    def project(self) -> None:
        """Clip at a floor above zero: a cell of zeros would make its labels NaN (PoDD's code)."""
        self.cells_GK.clamp_(min=self._floor)

    def table_GK(self) -> Tensor:
        return self.cells_GK.detach()


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
        cells_GK = F.one_hot(canvas.cells_G, classes).to(canvas.mix_NG.dtype)
        areas_NK = canvas.mix_NG @ cells_GK
        if self.rule == "one_hot":
            areas_NK = F.one_hot(areas_NK.argmax(dim=1), classes).to(areas_NK.dtype)
        missing = (areas_NK.sum(dim=0) == 0).nonzero().flatten().tolist()
        if missing:
            raise RecipeError(
                f"distill.labels: the classes {missing} are in no example under the rule "
                f"{self.rule!r}; use the rule 'proportional', 'learned' labels, more crops or a "
                "larger budget"
            )
        return FixedLabels(areas_NK, cells_GK)


class Learned(Labels):
    """Labels trained with the pixels, from the labels that geometry gives (PoDDL)."""

    paper: ClassVar[str] = "PoDD, arXiv:2403.12040, PoDDL; SLDD, arXiv:1910.02551"
    name: Literal["learned"] = "learned"
    floor: float = Field(
        default=0.0001, gt=0, le=0.1, description="smallest value of a cell, so that no sum is zero"
    )

    def build(
        self, canvas: CanvasModule, classes: int, logits_MNK: Tensor | None = None
    ) -> LabelModule:
        cells_GK = F.one_hot(canvas.cells_G, classes).to(canvas.mix_NG.dtype)
        return LearnedLabels(canvas.mix_NG, cells_GK, self.floor)
