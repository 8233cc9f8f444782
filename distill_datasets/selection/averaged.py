"""Images that are averages of real ones: class means, and means of clusters within a class.

Shape suffixes: N images of a class, D pixel values of one, J clusters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from distill_datasets.selection.chosen import ByClass, repeated, squared_distances
from distill_datasets.types import Teacher

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.source import RealData

ROUNDS = 10
"""Most updates of the cluster means."""


class ClassMean(ByClass):
    """The mean training image of every class, or the means of as many clusters as are asked for.

    Clusters are found by k-means among normalized pixels, then averaged as displayable ones.
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
        real.warn_of_few(per_class)
        own_N = real.rows_of_class[label]
        pixels_ND = real.select(own_N).images_BCHW.flatten(1).cpu()
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
