"""Learned labels: distributions of cells, or logits, which a softmax keeps a distribution.

Shape suffixes: B examples of a batch, N all examples, G cells, K classes, M members of the squeeze
stage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from distill_datasets.errors import RecipeError
from distill_datasets.labels.labels import Labels

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.distilled import CanvasModule, LabelModule


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
        from distill_datasets.labels.modules import LearnedLabels

        cells_GK = F.one_hot(canvas.cells_G, classes).to(canvas.mix_NG.dtype)
        return LearnedLabels(canvas.mix_NG, cells_GK, self.floor)


class Logits(Labels):
    """Learned logits, from the right class or from what trained networks say of the images."""

    paper: ClassVar[str] = "DATM, arXiv:2310.05773, soft labels"
    name: Literal["logits"] = "logits"
    init: Literal["one_hot", "squeezed"] = Field(
        default="one_hot",
        description="start from the right class, or from the logits that the networks of the "
        "squeeze stage give the initial images",
    )
    confidence: float = Field(
        default=5.0,
        gt=0,
        description="logit of the right class where labels start from it, all others being 0",
    )
    only_correct: bool = Field(
        default=True,
        description="squeezed: hear only the networks that are right about an image (DATM); an "
        "image that none is right about hears all of them",
    )

    @property
    def needs_squeezed(self) -> bool:
        return self.init == "squeezed"

    def build(
        self, canvas: CanvasModule, classes: int, logits_MNK: Tensor | None = None
    ) -> LabelModule:
        """Learned logits for the cells of `canvas`.

        A cell starts from the mean of the examples that show it, weighted by how much of them it
        fills; a cell that no example shows starts from its class.

        Source: DATM (arXiv:2310.05773), section 4.3.
        """
        from distill_datasets.labels.modules import LogitLabels

        right_GK = F.one_hot(canvas.cells_G, classes).to(canvas.mix_NG.dtype)
        logits_GK = self.confidence * right_GK
        if self.init == "squeezed":
            if logits_MNK is None:
                raise RecipeError(
                    "distill.labels: init 'squeezed' needs networks that are trained on the real "
                    "data first; add a section squeeze, for example squeeze: {epochs: 5}"
                )
            label_N = (canvas.mix_NG @ right_GK).argmax(dim=1)
            heard_NK = _heard(logits_MNK, label_N, self.only_correct).to(right_GK.dtype)
            shown_G1 = canvas.mix_NG.sum(dim=0)[:, None]
            mean_GK = (canvas.mix_NG.T @ heard_NK) / shown_G1.clamp(min=1e-12)
            logits_GK = torch.where(shown_G1 > 0, mean_GK, logits_GK)
        return LogitLabels(canvas.mix_NG, logits_GK)


def _heard(logits_MNK: Tensor, label_N: Tensor, only_correct: bool) -> Tensor:
    """Mean logits (N, K) of the members that are heard for each example."""
    heard_MN = torch.ones_like(logits_MNK[..., 0])
    if only_correct:
        right_MN = logits_MNK.argmax(dim=2) == label_N
        heard_MN = (right_MN | ~right_MN.any(dim=0)).to(logits_MNK.dtype)
    return (logits_MNK * heard_MN[..., None]).sum(dim=0) / heard_MN.sum(dim=0)[:, None]
