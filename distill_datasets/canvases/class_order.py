"""Which classes are neighbors on a poster: PoCO (arXiv:2403.12040), with pluggable similarity.

Shape suffixes: K classes, D features.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field

from distill_datasets.config import Part
from distill_datasets.errors import RecipeError
from distill_datasets.models.backbones import BackboneField

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.real import RealData


WITHOUT_TRANSFORMERS = (
    "distill.canvas.order: 'clip' needs transformers; run "
    "`pip install 'distill_datasets[clip]'`, or use 'visual'"
)


class ClassOrder(Part, ABC):
    """Assigns a class to every position of the class grid."""

    @abstractmethod
    def arrange(self, real: RealData, rows: list[int]) -> list[int]:
        """The class of every position, row by row.

        Args:
            real: the source: class names and images.
            rows: number of positions in each row of the grid.
        """

    def problems(self, classes: int) -> Iterable[str]:
        """Why the order cannot serve this many classes, or not on this machine."""
        return []

    def known(self) -> list[int] | None:
        """The class of every position where no source is needed to tell; None where one is."""
        return None


def neighbors_before(rows: list[int]) -> list[list[int]]:
    """For every position the earlier ones that it touches: the left one and those above.

    Rows may hold different numbers of positions; two positions of neighboring rows touch when
    their spans of the width overlap.
    """
    before: list[list[int]] = []
    start = 0
    for row, count in enumerate(rows):
        above = rows[row - 1] if row else 0
        for column in range(count):
            near = [start + column - 1] if column else []
            near += [
                start - above + other
                for other in range(above)
                if other * count < (column + 1) * above and column * above < (other + 1) * count
            ]
            before.append(near)
        start += count
    return before


def place_greedily(similarity_KK: Tensor, rows: list[int]) -> list[int]:
    """Fill the grid row by row, each time with the class most similar to the placed neighbors.

    The first position gets the class with the largest total similarity. Ties go to the lower class.

    Source: PoCO, PoDD (arXiv:2403.12040), section 3.2.
    """
    similarity_KK = similarity_KK.double()
    placed: list[int] = []
    for near in neighbors_before(rows):
        others = [placed[position] for position in near] or list(range(len(similarity_KK)))
        score_K = similarity_KK[others].mean(dim=0)
        score_K[placed] = -torch.inf
        placed.append(int(score_K.argmax()))
    return placed


def cosine(features_KD: Tensor) -> Tensor:
    """Cosine similarity of all pairs of rows, (K, K)."""
    unit_KD = torch.nn.functional.normalize(features_KD.double(), dim=1)
    return unit_KD @ unit_KD.T


class Visual(ClassOrder):
    """Classes whose mean images are alike are neighbors; needs nothing but the dataset."""

    paper: ClassVar[str] = "PoDD, arXiv:2403.12040, PoCO with class prototypes"
    name: Literal["visual"] = "visual"

    def arrange(self, real: RealData, rows: list[int]) -> list[int]:
        mean_KD = real.prototypes_KCHW().flatten(1).cpu()
        return place_greedily(cosine(mean_KD - mean_KD.mean(dim=0)), rows)


class ByFeatures(ClassOrder):
    """Classes whose images are alike to a frozen backbone are neighbors."""

    paper: ClassVar[str] = "PoDD, arXiv:2403.12040, PoCO with features of images"
    name: Literal["features"] = "features"
    backbone: BackboneField

    def arrange(self, real: RealData, rows: list[int]) -> list[int]:
        centers_KD = real.features_of(self.backbone).moments.centers_KD
        return place_greedily(cosine(centers_KD), rows)

    def problems(self, classes: int) -> Iterable[str]:
        missing = self.backbone.absent()
        if missing is not None:
            yield missing


class Clip(ClassOrder):
    """Classes whose names are alike to a CLIP text encoder are neighbors, as in the paper."""

    paper: ClassVar[str] = "PoDD, arXiv:2403.12040, PoCO; CLIP, arXiv:2103.00020"
    name: Literal["clip"] = "clip"
    model: str = Field(
        default="openai/clip-vit-base-patch32", description="Hub id or folder of a CLIP model"
    )
    prompt: str = Field(default="a photo of a {}", description="{} becomes the class name")

    def arrange(self, real: RealData, rows: list[int]) -> list[int]:
        try:
            from transformers import AutoTokenizer, CLIPTextModelWithProjection
        except ImportError as error:
            raise RecipeError(WITHOUT_TRANSFORMERS) from error
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.model)
            encoder = CLIPTextModelWithProjection.from_pretrained(
                self.model, use_safetensors=True
            ).eval()
        except OSError as error:
            raise RecipeError(
                f"distill.canvas.order.model: cannot load {self.model!r} ({error}); give a Hub id "
                "or a folder with safetensors weights, or use 'visual'"
            ) from error
        prompts = [self.prompt.format(name) for name in real.class_names]
        with torch.no_grad():
            tokens = tokenizer(prompts, padding=True, truncation=True, return_tensors="pt")
            text_KD: Tensor = encoder(**tokens).text_embeds
        return place_greedily(cosine(text_KD), rows)

    def problems(self, classes: int) -> Iterable[str]:
        if importlib.util.find_spec("transformers") is None:
            yield WITHOUT_TRANSFORMERS


class Listed(ClassOrder):
    """Classes in a given order, row by row."""

    paper: ClassVar[str] = "PoDD, arXiv:2403.12040, a fixed order"
    name: Literal["list"] = "list"
    classes: list[int] = Field(description="every class index once, row by row of the grid")

    def arrange(self, real: RealData, rows: list[int]) -> list[int]:
        return self.known()

    def known(self) -> list[int]:
        return list(self.classes)

    def problems(self, classes: int) -> Iterable[str]:
        if sorted(self.classes) != list(range(classes)):
            yield (
                f"distill.canvas.order.classes: expected every class 0..{classes - 1} once, got "
                f"{self.classes}"
            )
