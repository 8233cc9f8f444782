"""Real images that are chosen or averaged: herding, k-center, nearest, correct ones, class means.

Distances are those of normalized pixels, as a student sees them, or of the features of a frozen
backbone, in double precision.

Shape suffixes: N images of a class, D pixel values of one, M networks, B a batch, K classes,
J clusters.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field

from distill_datasets.errors import DataError
from distill_datasets.models.backbones import BackboneField
from distill_datasets.selection.selection import (
    AT_ONCE,
    Selection,
    Teacher,
    present,
    repeated,
)

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.real import RealData


logger = logging.getLogger("distill_datasets")


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


class Measured(Selection, ABC):
    """Training images of a class, by the distances between them."""

    space: BackboneField | None = Field(
        default=None,
        description="a frozen backbone between whose features distances are; null: between pixels",
    )

    def own(self, real: RealData, label: int, per_class: int) -> tuple[Tensor, Tensor]:
        """The rows (N,) of a class and what is measured of each (N, D), on the CPU."""
        real.warn_of_few(per_class)
        own_N = real.rows_of_class[label]
        if self.space is not None:
            return own_N, real.features_of(self.space).train_ND[own_N.cpu()]
        return own_N, real.select(own_N).images_BCHW.flatten(1).cpu()


class Greedy(Measured, ABC):
    """Training images of a class, chosen one after another by what is measured of them."""

    @abstractmethod
    def places(self, pixels_ND: Tensor, count: int, rng: torch.Generator) -> list[int]:
        """Which of the images (N, D) are chosen; of no more images than there are."""

    def of_class(
        self,
        real: RealData,
        label: int,
        per_class: int,
        rng: torch.Generator,
        teacher: Teacher | None = None,
    ) -> Tensor:
        own_N, pixels_ND = self.own(real, label, per_class)
        places = self.places(pixels_ND, min(per_class, len(own_N)), rng)
        return real.displayable(own_N.cpu()[repeated(places, per_class)])


class Herding(Greedy):
    """Training images of every class whose mean is greedily kept at the class mean."""

    paper: ClassVar[str] = "iCaRL, arXiv:1611.07725; DC, arXiv:2006.05929"
    name: Literal["herding"] = "herding"

    def places(self, pixels_ND: Tensor, count: int, rng: torch.Generator) -> list[int]:
        return herded(pixels_ND, count)


class KCenter(Greedy):
    """Training images of every class, the most central one and then each time the farthest."""

    paper: ClassVar[str] = "core-set selection, arXiv:1708.00489; DC, arXiv:2006.05929"
    name: Literal["k_center"] = "k_center"

    def places(self, pixels_ND: Tensor, count: int, rng: torch.Generator) -> list[int]:
        return spread_out(pixels_ND, count)


class Nearest(Greedy):
    """The training image nearest to each k-means center of a class; one is nearest to its mean."""

    paper: ClassVar[str] = "Linear Gradient Matching, NeurIPS 2025, arXiv:2511.16674, baselines"
    name: Literal["nearest"] = "nearest"

    def places(self, pixels_ND: Tensor, count: int, rng: torch.Generator) -> list[int]:
        cluster_N = k_means(pixels_ND, count, rng)
        chosen: list[int] = []
        for cluster in range(count):
            mean_D = pixels_ND[cluster_N == cluster].mean(dim=0, dtype=torch.float64)
            # its own images only: none is chosen twice
            distances_N = squared_distances(pixels_ND, mean_D)
            distances_N[cluster_N != cluster] = torch.inf
            chosen.append(_first(distances_N == distances_N.min()))
        return chosen


class Correct(Selection):
    """Random training images that the networks of the squeeze stage classify correctly."""

    paper: ClassVar[str] = "DATM, arXiv:2310.05773"
    name: Literal["correct"] = "correct"
    share: float = Field(
        default=1.0, gt=0, le=1, description="smallest share of the networks that have to be right"
    )

    @property
    def needs_squeezed(self) -> bool:
        return True

    def together(
        self, real: RealData, per_class: int, rng: torch.Generator, teacher: Teacher | None
    ) -> Tensor:
        """Class after class, with one warning that names all classes that repeat images.

        Raises:
            DataError: of some class, no training image is classified correctly.
        """
        return self._repeated(real, range(real.shape.k), per_class, rng, present(teacher, self))

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
        correct: list[int] = []
        for places_B in torch.split(order_N, AT_ONCE):
            images_BCHW = real.select(own_N[places_B.to(own_N.device)]).images_BCHW
            right_MB = teacher(images_BCHW).argmax(dim=2) == label
            enough_B = right_MB.sum(dim=0) >= self.share * len(right_MB)
            correct += places_B[enough_B.cpu()].tolist()
            if len(correct) >= count:
                break
        return correct[:count]


ROUNDS = 10
"""Most updates of the cluster means."""


class ClassMean(Measured):
    """The mean training image of every class, or the means of as many clusters as are asked for.

    Clusters are found by k-means, then averaged as displayable images.
    """

    paper: ClassVar[str] = "Dataset Distillation, arXiv:1811.10959, baselines"
    name: Literal["class_mean"] = "class_mean"

    def of_class(
        self,
        real: RealData,
        label: int,
        per_class: int,
        rng: torch.Generator,
        teacher: Teacher | None = None,
    ) -> Tensor:
        own_N, pixels_ND = self.own(real, label, per_class)
        clusters = min(per_class, len(own_N))
        cluster_N = k_means(pixels_ND, clusters, rng)
        shown_NCHW = real.displayable(own_N)
        means_JCHW = torch.stack(
            [
                shown_NCHW[cluster_N == cluster].mean(dim=0, dtype=torch.float64)
                for cluster in range(clusters)
            ]
        )
        return means_JCHW[repeated(range(clusters), per_class)].float()


def k_means(pixels_ND: Tensor, clusters: int, rng: torch.Generator) -> Tensor:
    """The cluster of every image, (N,); none is empty, for there are at least as many images.

    Centers start as in k-means++, each drawn with a probability in proportion to the squared
    distance from the centers before it, and move at most `ROUNDS` times. A cluster that loses all
    its images gets the one that is farthest from its own center.
    """
    centers_JD = pixels_ND[_seeds(pixels_ND, clusters, rng)].double()
    cluster_N = torch.full((len(pixels_ND),), -1)
    for _ in range(ROUNDS):
        distances_JN = torch.stack([squared_distances(pixels_ND, center) for center in centers_JD])
        nearest_N = _without_empty(distances_JN)
        if torch.equal(nearest_N, cluster_N):
            break
        cluster_N = nearest_N
        centers_JD = torch.stack(
            [
                pixels_ND[cluster_N == cluster].mean(dim=0, dtype=torch.float64)
                for cluster in range(clusters)
            ]
        )
    return cluster_N


def _seeds(pixels_ND: Tensor, clusters: int, rng: torch.Generator) -> list[int]:
    """Different images to start from."""
    seeds = [int(torch.randint(len(pixels_ND), (), generator=rng))]
    nearest_N = squared_distances(pixels_ND, pixels_ND[seeds[0]].double())
    while len(seeds) < clusters:
        # images equal to a seed are drawn when no others are left
        chances_N = nearest_N if bool(nearest_N.any()) else torch.ones_like(nearest_N)
        chances_N = chances_N.index_fill(0, torch.tensor(seeds), 0)
        seeds.append(int(torch.multinomial(chances_N, 1, generator=rng)))
        to_last_N = squared_distances(pixels_ND, pixels_ND[seeds[-1]].double())
        nearest_N = torch.minimum(nearest_N, to_last_N)
    return seeds


def _without_empty(distances_JN: Tensor) -> Tensor:
    """The nearest center of every image, where a center without images takes the farthest one."""
    own_N, cluster_N = distances_JN.min(dim=0)
    for cluster in range(len(distances_JN)):
        sizes_J = cluster_N.bincount(minlength=len(distances_JN))
        if sizes_J[cluster] == 0:
            may_leave_N = sizes_J[cluster_N] > 1
            farthest = int(own_N.masked_fill(~may_leave_N, -1).argmax())
            cluster_N[farthest] = cluster
            own_N[farthest] = 0
    return cluster_N
