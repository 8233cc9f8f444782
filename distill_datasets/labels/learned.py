"""Learned labels: distributions or a vector for each example, distributions or logits of cells.

Shape suffixes: B examples of a batch, N all examples, G cells, K classes, M members of the squeeze
stage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from distill_datasets.canvases.canvas import Cells, Tensors, mix
from distill_datasets.errors import RecipeError
from distill_datasets.labels.labels import Labels, LabelStart
from distill_datasets.targets import as_outputs, as_targets, centered
from distill_datasets.types import Task

if TYPE_CHECKING:
    from torch import Tensor


class Learned(Labels):
    """Labels trained with the pixels, from the labels that geometry gives.

    The mean of a few cells by area caps what the crops of a poster can say: where many cells meet
    no class can be likely. So every crop has a label of its own, unless the paper's is asked for.
    """

    paper: ClassVar[str] = "PoDD, arXiv:2403.12040, PoDDL; SLDD, arXiv:1910.02551"
    name: Literal["learned"] = "learned"
    of: Literal["example", "area"] = Field(
        default="example",
        description="what has a label: every example of a canvas whose examples show several "
        "classes, or every cell, of which an example takes the mean by area (PoDDL)",
    )
    floor: float = Field(
        default=0.0001, gt=0, le=0.1, description="smallest value of a cell, so that no sum is zero"
    )

    def cited(self) -> list[str]:
        poddl, sldd = self.paper.split("; ")
        return [poddl, sldd] if self.of == "area" else [sldd]

    def start(self, cells: Cells, classes: int, logits_MNK: Tensor | None = None) -> LabelStart:
        cells_GK, shown = F.one_hot(cells.classes_G, classes).float(), cells.shown
        if self.of == "example" and shown.dim() > 1:  # from here on an example is its only cell
            cells_GK, shown = mix(shown, cells_GK), torch.arange(len(shown))
        return LabelStart({"cells_GK": cells_GK.clamp(min=self.floor)}, {"shown": shown})

    def targets(self, tensors: Tensors, index_B: Tensor) -> Tensor:
        """The mean of an example's cells by area, normalized."""
        mixed_BK = mix(tensors["shown"].index_select(0, index_B), tensors["cells_GK"])
        return mixed_BK / mixed_BK.sum(dim=1, keepdim=True)

    def project(self, tensors: Tensors) -> None:
        """Clip at a floor above zero: a cell of zeros would make its labels NaN (PoDD's code)."""
        with torch.no_grad():
            tensors["cells_GK"].clamp_(min=self.floor)

    def stored(self, tensors: Tensors) -> Tensor:
        """The cells; where an example shows one of them only, the labels that they make."""
        cells_GK = tensors["cells_GK"].detach()
        alone = tensors["shown"].dim() == 1
        return cells_GK / cells_GK.sum(dim=1, keepdim=True) if alone else cells_GK


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

    def start(self, cells: Cells, classes: int, logits_MNK: Tensor | None = None) -> LabelStart:
        """Logits of the cells.

        A cell starts from the mean of the examples that show it, weighted by how much of them it
        fills; a cell that no example shows starts from its class.

        Source: DATM (arXiv:2310.05773), section 4.3.
        """
        right_GK = F.one_hot(cells.classes_G, classes).float()
        logits_GK = self.confidence * right_GK
        if self.init == "squeezed":
            if logits_MNK is None:
                raise RecipeError(
                    "distill.labels: init 'squeezed' needs networks that are trained on the real "
                    "data first; add a section squeeze, for example squeeze: {epochs: 5}"
                )
            label_N = mix(cells.shown, right_GK).argmax(dim=1)
            heard_NK = _heard(logits_MNK, label_N, self.only_correct).to(right_GK.dtype)
            sum_GK, area_G1 = _sums(cells, heard_NK)
            logits_GK = torch.where(area_G1 > 0, sum_GK / area_G1.clamp(min=1e-12), logits_GK)
        return LabelStart({"logits_GK": logits_GK}, {"shown": cells.shown})

    def targets(self, tensors: Tensors, index_B: Tensor) -> Tensor:
        """The softmax of the mean logits of an example's cells by area."""
        shown = tensors["shown"].index_select(0, index_B)
        return mix(shown, tensors["logits_GK"]).softmax(dim=1)

    def stored(self, tensors: Tensors) -> Tensor:
        return tensors["logits_GK"].detach().softmax(dim=1)


class Vectors(Labels):
    """One learned vector for each example, whatever cells it shows, as ridge regression fits them.

    A target is softmax(sharpness x vector). Where the targets of the source are labels it is
    sigmoid(sharpness x vector), and where they are numbers the vector itself. Unlike labels of
    cells, an example of a poster may say anything: the mean of a few cells by area caps what its
    crops can tell.
    """

    takes_targets: ClassVar[bool] = True
    paper: ClassVar[str] = "FRePo, arXiv:2206.00719"
    name: Literal["vectors"] = "vectors"
    sharpness: float = Field(
        default=10.0, gt=0, description="factor on a vector before the softmax makes it a target"
    )
    task: Task = Field(
        default="classes",
        description="as source.task: a target is the softmax of a vector, its sigmoid (labels), or "
        "the vector (values)",
    )
    learn_sharpness: bool = Field(
        default=False,
        description="train that factor with the vectors, from its value on (the temperature of "
        "RFAD and RCIG); for losses that see it, such as cross_entropy of regression",
    )

    @property
    def targets_are(self) -> Task:
        return self.task

    def start(self, cells: Cells, classes: int, logits_MNK: Tensor | None = None) -> LabelStart:
        """The shares of the classes that an example shows, centered."""
        shares_NK = mix(cells.shown, F.one_hot(cells.classes_G, classes).float())
        if self.task == "classes":
            trained = {"vectors_NK": shares_NK - 1 / classes}
        else:
            trained = {"vectors_NK": centered(self.task, shares_NK)}
        if self.learn_sharpness:
            trained["log_sharpness"] = torch.tensor(self.sharpness).log()
        return LabelStart(trained, {})

    def targets(self, tensors: Tensors, index_B: Tensor) -> Tensor:
        return self._as_targets(tensors, tensors["vectors_NK"].index_select(0, index_B))

    def stored(self, tensors: Tensors) -> Tensor:
        return self._as_targets(tensors, tensors["vectors_NK"]).detach()

    def take(self, tensors: Tensors, targets_NK: Tensor) -> None:
        with torch.no_grad():
            outputs_NK = as_outputs(self.task, targets_NK)
            tensors["vectors_NK"].copy_(outputs_NK / self._sharpness(tensors))

    def _as_targets(self, tensors: Tensors, vectors_BK: Tensor) -> Tensor:
        return as_targets(self.task, self._sharpness(tensors) * vectors_BK)

    def _sharpness(self, tensors: Tensors) -> Tensor | float:
        if self.task == "values":
            return 1.0
        learned = tensors.get("log_sharpness")
        return self.sharpness if learned is None else learned.exp()


def _sums(cells: Cells, values_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Values of the examples summed into the cells that they show, and the area of each, (G, 1)."""
    if cells.shown.dim() > 1:
        return cells.shown.T @ values_NK, cells.shown.sum(dim=0)[:, None]
    zeros_GK = values_NK.new_zeros(len(cells.classes_G), values_NK.shape[1])
    examples_G = torch.bincount(cells.shown, minlength=len(cells.classes_G))
    return zeros_GK.index_add(0, cells.shown, values_NK), examples_G.to(values_NK.dtype)[:, None]


def _heard(logits_MNK: Tensor, label_N: Tensor, only_correct: bool) -> Tensor:
    """Mean logits (N, K) of the members that are heard for each example."""
    heard_MN = torch.ones_like(logits_MNK[..., 0])
    if only_correct:
        right_MN = logits_MNK.argmax(dim=2) == label_N
        heard_MN = (right_MN | ~right_MN.any(dim=0)).to(logits_MNK.dtype)
    return (logits_MNK * heard_MN[..., None]).sum(dim=0) / heard_MN.sum(dim=0)[:, None]
