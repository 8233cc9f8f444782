"""The labels as torch modules: fixed ones, learned distributions, learned logits.

Shape suffixes: B examples of a batch, N all examples, G cells, K classes.
"""

import torch
from torch import Tensor, nn

from distill_datasets.distilled import LabelModule


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

    def project(self) -> None:
        """Clip at a floor above zero: a cell of zeros would make its labels NaN (PoDD's code)."""
        with torch.no_grad():
            self.cells_GK.clamp_(min=self._floor)

    def table_GK(self) -> Tensor:
        return self.cells_GK.detach()


class LogitLabels(LabelModule):
    """Trained logits per cell; an example's target is the softmax of their mean by area."""

    mix_NG: Tensor

    def __init__(self, mix_NG: Tensor, logits_GK: Tensor) -> None:
        super().__init__()
        self.register_buffer("mix_NG", mix_NG)
        self.logits_GK = nn.Parameter(logits_GK)

    def forward(self, index_B: Tensor) -> Tensor:
        return (self.mix_NG.index_select(0, index_B) @ self.logits_GK).softmax(dim=1)

    def project(self) -> None:
        """Any logits make a distribution."""

    def table_GK(self) -> Tensor:
        return self.logits_GK.detach().softmax(dim=1)
