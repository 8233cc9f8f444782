"""Real images that are chosen: close to the class mean, far from each other, or well recognized.

Distances are those of normalized pixels, as a student sees them, in double precision.

Shape suffixes: N images of a class, D pixel values of one, M networks, B a batch, K classes.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field

from distill_datasets.errors import DataError, RecipeError
from distill_datasets.types import Selection, Teacher

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.source import RealData

logger = logging.getLogger("distill_datasets")

AT_ONCE = 256


def squared_distances(pixels_ND: Tensor, point_D: Tensor) -> Tensor:
    """Of every image to one point, (N,), in double precision."""
    chunks = torch.split(pixels_ND, AT_ONCE)
    return torch.cat([(chunk.double() - point_D).square().sum(dim=1) for chunk in chunks])


def herded(pixels_ND: Tensor, count: int) -> list[int]:
    """Indices whose running mean stays as close to the mean of all as each next one can keep it.

    Ties go to the first image.

    Source: iCaRL (arXiv:1611.07725), algorithm 4.
    """
    mean_D = pixels_ND.mean(dim=0, dtype=torch.float64)
    sum_D = torch.zeros_like(mean_D)
    chosen: list[int] = []
    for turn in range(count):
        # |mean - (sum + x) / n| is smallest where x is closest to n * mean - sum
        distances_N = squared_distances(pixels_ND, (turn + 1) * mean_D - sum_D)
        distances_N[chosen] = torch.inf
        chosen.append(_first(distances_N == distances_N.min()))
        sum_D += pixels_ND[chosen[-1]]
    return chosen


def spread_out(pixels_ND: Tensor, count: int) -> list[int]:
    """Indices of which each next one is the farthest from those before; first the most central.

    Ties go to the first image.

    Source: core-set selection (arXiv:1708.00489), algorithm 1.
    """
    mean_D = pixels_ND.mean(dim=0, dtype=torch.float64)
    to_mean_N = squared_distances(pixels_ND, mean_D)
    chosen = [_first(to_mean_N == to_mean_N.min())]
    nearest_N = torch.full_like(to_mean_N, torch.inf)
    while len(chosen) < count:
        to_last_N = squared_distances(pixels_ND, pixels_ND[chosen[-1]].double())
        nearest_N = torch.minimum(nearest_N, to_last_N)
        nearest_N[chosen] = -1
        chosen.append(_first(nearest_N == nearest_N.max()))
    return chosen


def _first(true_N: Tensor) -> int:
    return int(true_N.nonzero()[0])


def repeated(places: Sequence[int], count: int) -> list[int]:
    """The places, over and over, until there are `count`."""
    return [places[turn % len(places)] for turn in range(count)]


def present(teacher: Teacher | None, selection: Selection) -> Teacher:
    """The networks of the squeeze stage.

    Raises:
        RecipeError: the recipe has no such stage.
    """
    if teacher is None:
        raise RecipeError(
            f"init: {selection.name!r} asks networks that are trained on the real data first; add "
            "a section squeeze, for example squeeze: {epochs: 5}"
        )
    return teacher


class ByClass(Selection):
    """Images that are made class by class, all classes from one stream of draws."""

    def images(
        self, real: RealData, per_class: int, rng: torch.Generator, teacher: Teacher | None = None
    ) -> Tensor:
        labels = range(real.shape.k)
        return torch.cat([self.of_class(real, label, per_class, rng, teacher) for label in labels])

    @abstractmethod
    def of_class(
        self,
        real: RealData,
        label: int,
        per_class: int,
        rng: torch.Generator,
        teacher: Teacher | None = None,
    ) -> Tensor:
        """See `Selection.of_class`."""


class Greedy(ByClass):
    """Training images of a class, chosen one after another by their normalized pixels."""

    @abstractmethod
    def places(self, pixels_ND: Tensor, count: int) -> list[int]:
        """Which of the images (N, D) are chosen; of no more images than there are."""

    def of_class(
        self,
        real: RealData,
        label: int,
        per_class: int,
        rng: torch.Generator,
        teacher: Teacher | None = None,
    ) -> Tensor:
        real.warn_of_few(per_class)
        own_N = real.rows_of_class[label]
        pixels_ND = real.select(own_N).images_BCHW.flatten(1).cpu()
        places = self.places(pixels_ND, min(per_class, len(own_N)))
        return real.displayable(own_N.cpu()[repeated(places, per_class)])


class Herding(Greedy):
    """Training images of every class whose mean is greedily kept at the class mean."""

    paper: ClassVar[str] = "iCaRL, arXiv:1611.07725; DC, arXiv:2006.05929"
    name: Literal["herding"] = "herding"

    def places(self, pixels_ND: Tensor, count: int) -> list[int]:
        return herded(pixels_ND, count)


class KCenter(Greedy):
    """Training images of every class, the most central one and then each time the farthest."""

    paper: ClassVar[str] = "core-set selection, arXiv:1708.00489; DC, arXiv:2006.05929"
    name: Literal["k_center"] = "k_center"

    def places(self, pixels_ND: Tensor, count: int) -> list[int]:
        return spread_out(pixels_ND, count)


class Correct(Selection):
    """Random training images that the networks of the squeeze stage classify correctly."""

    paper: ClassVar[str] = "DATM, arXiv:2310.05773"
    needs_squeezed: ClassVar[bool] = True
    name: Literal["correct"] = "correct"
    share: float = Field(
        default=1.0, gt=0, le=1, description="smallest share of the networks that have to be right"
    )

    def images(
        self, real: RealData, per_class: int, rng: torch.Generator, teacher: Teacher | None = None
    ) -> Tensor:
        """Displayable images (K * per_class, C, H, W); a class with fewer correct ones repeats.

        Raises:
            DataError: of some class, no training image is classified correctly.
        """
        asked = present(teacher, self)
        labels = range(real.shape.k)
        return self._repeated(real, labels, per_class, rng, asked)

    def of_class(
        self,
        real: RealData,
        label: int,
        per_class: int,
        rng: torch.Generator,
        teacher: Teacher | None = None,
    ) -> Tensor:
        return self._repeated(real, [label], per_class, rng, present(teacher, self))

    def _repeated(
        self,
        real: RealData,
        labels: Sequence[int],
        per_class: int,
        rng: torch.Generator,
        teacher: Teacher,
    ) -> Tensor:
        rows, few = [], []
        for label in labels:
            right = self._correct(real, label, per_class, rng, teacher)
            if not right:
                raise DataError(
                    f"init: 'correct' found no training image of the class "
                    f"{real.class_names[label]!r} that {self.share:.0%} of the squeezed networks "
                    "classify correctly; raise squeeze.epochs or lower init.share"
                )
            if len(right) < per_class:
                few.append(f"{real.class_names[label]} ({len(right)})")
            rows.append(real.rows_of_class[label].cpu()[repeated(right, per_class)])
        if few:
            logger.warning(
                "%d correctly classified images of every class were asked for; these have fewer "
                "and repeat them: %s", per_class, ", ".join(few),
            )  # fmt: skip
        return real.displayable(torch.cat(rows))

    def _correct(
        self, real: RealData, label: int, count: int, rng: torch.Generator, teacher: Teacher
    ) -> list[int]:
        """The first `count` correct images of a class in random order, or all there are."""
        own_N = real.rows_of_class[label]
        order_N = torch.randperm(len(own_N), generator=rng)
        found: list[int] = []
        for places_B in torch.split(order_N, AT_ONCE):
            images_BCHW = real.select(own_N[places_B.to(own_N.device)]).images_BCHW
            right_MB = teacher(images_BCHW).argmax(dim=2) == label
            enough_B = right_MB.sum(dim=0) >= self.share * len(right_MB)
            found += places_B[enough_B.cpu()].tolist()
            if len(found) >= count:
                break
        return found[:count]
