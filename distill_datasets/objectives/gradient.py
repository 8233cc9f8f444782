"""Gradient matching: what a network would learn from distilled images and from real ones.

Class by class, the gradient of the weights on distilled examples is pulled toward the gradient on
real images: the objective of DC, of DSA (both sides augmented alike) and of IDC (convolutions).

Shape suffixes: B examples of a batch, N all distilled examples, K classes, P all weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from distill_datasets.models.flops import IMAGES_OF_WEIGHT_GRADIENT, WEIGHT_GRADIENT
from distill_datasets.networks.network import NetworkSource, Sampled
from distill_datasets.objectives.objective import Estimate, Objective, added
from distill_datasets.runtime.draws import LaneDraw
from distill_datasets.runtime.precision import WHERE_FAST, Precision, computing_in
from distill_datasets.views.augment import Augment

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.real import RealData
    from distill_datasets.distilled import Distilled

Distance = Literal["rows_cosine", "mse", "l1"]
Matched = Literal["all", "convolutions"]


def gradient_distance(
    distilled_P: Tensor,
    real_P: Tensor,
    shapes: Sequence[torch.Size],
    distance: Distance,
    layers: Matched,
) -> Tensor:
    """How far two gradients of all weights are apart, summed over layers.

    `rows_cosine` sums 1 - cosine over output units, a convolution's weights seen as one row per
    output channel; tensors of one dimension (biases, norms) count nothing. `mse` and `l1` sum the
    squared and the absolute differences of all values.

    Args:
        distilled_P: differentiable.
        real_P: what it is compared with.
        shapes: of the layers' weights, in the order of the vectors.
        distance: see above.
        layers: all, or the weights of convolutions alone.

    Returns:
        One number.

    Source: DC (arXiv:2006.05929), gradient matching loss; IDC (arXiv:2205.14959), the authors'
    `matchloss`.
    """
    sizes = [shape.numel() for shape in shapes]
    total = distilled_P.new_zeros(())
    for ours, theirs, shape in zip(
        torch.split(distilled_P, sizes), torch.split(real_P, sizes), shapes, strict=True
    ):
        if layers == "convolutions" and len(shape) != 4:
            continue
        if distance == "mse":
            total = total + (ours - theirs).square().sum()
        elif distance == "l1":
            total = total + (ours - theirs).abs().sum()
        elif len(shape) > 1:
            # sum over rows of 1 - <a, b> / (|a||b|); the 1e-6 is that of the authors' program
            ours_rows, theirs_rows = ours.view(shape[0], -1), theirs.view(shape[0], -1)
            norms = torch.linalg.vector_norm(ours_rows, dim=1) * torch.linalg.vector_norm(
                theirs_rows, dim=1
            )
            total = total + (1 - (ours_rows * theirs_rows).sum(dim=1) / (norms + 1e-6)).sum()
    return total


class Gradient(Objective):
    """Distance of the weights' gradients on distilled and on real images (DC, DSA, IDC)."""

    paper: ClassVar[str] = "DC, arXiv:2006.05929; DSA, arXiv:2102.08259; IDC, arXiv:2205.14959"
    name: Literal["gradient"] = "gradient"
    distance: Distance = Field(
        default="rows_cosine",
        description="of two gradients: 1 - cosine of every output unit (DC, DSA), or the sum of "
        "squared or of absolute differences (IDC)",
    )
    layers: Matched = Field(
        default="all", description="what is matched; convolutions leaves out all else (IDC)"
    )
    real_batch: int = Field(
        gt=0, description="real images of every class; one that has fewer repeats them"
    )
    match_batch: int | None = Field(
        default=None,
        gt=0,
        description="most distilled examples of a class in one step, drawn in proportion to their "
        "label; null takes all of them",
    )
    augment: Augment = Field(
        default=Augment(), description="one draw per class moves real and distilled images alike"
    )
    real_precision: Precision = Field(
        default="float32",
        description=f"of the network on real images; weights are float32; {WHERE_FAST}",
    )
    chunk: int | None = Field(
        default=None,
        gt=0,
        description="real images differentiated at once; bounds memory. null: 32 on a CPU, whose "
        "cache they stay in, and 256 elsewhere",
    )

    def cited(self) -> list[str]:
        dc, dsa, idc = self.paper.split("; ")
        if self.distance != "rows_cosine":
            return [idc]
        return [dc, dsa] if self.augment.operations else [dc]

    def work(self, flops_per_image: float, examples: int, classes: int) -> float:
        """See `Objective.work`; every example is taken to belong to one class.

        With learned labels every example has a share of every class, and without `match_batch` the
        distilled side costs up to `classes` times as much.
        """
        matched = min(examples, classes * (self.match_batch or examples))
        real = WEIGHT_GRADIENT * self.real_batch * classes
        return flops_per_image * (real + IMAGES_OF_WEIGHT_GRADIENT * matched)

    def estimate(
        self, distilled: Distilled, networks: NetworkSource, real: RealData, draw: LaneDraw
    ) -> Estimate:
        """Sum over classes of the distance, and its gradient.

        A class that no example has a share of is left out.

        Source: DC (arXiv:2006.05929), algorithm 1; DSA (arXiv:2102.08259), algorithm 1.
        """
        network = networks.sample(draw)
        names, parameters = zip(*distilled.parameters.items(), strict=True)
        grads = [torch.zeros_like(parameter) for parameter in parameters]
        losses = list[torch.Tensor]()
        with torch.no_grad():
            shares_NK = distilled.targets(torch.arange(distilled.count, device=distilled.device))
            shares_NK = shares_NK.cpu()  # what is decided by them is decided here, for all classes
        for label in range(real.shape.k):
            index_B = self._examples(shares_NK[:, label], draw("match", label))
            if not len(index_B):
                continue
            real_P = self._real_gradient(network, real, label, draw)
            distilled_P = self._distilled_gradient(network, distilled, index_B, label, draw)
            apart = gradient_distance(
                distilled_P, real_P, network.shapes, self.distance, self.layers
            )
            pulled = torch.autograd.grad(apart, parameters, materialize_grads=True)
            for grad, share in zip(grads, pulled, strict=True):
                grad += share
            losses.append(apart.detach())
        loss = added(losses)
        return Estimate(loss, dict(zip(names, grads, strict=True)), {})

    def _examples(self, shares_N: Tensor, rng: torch.Generator) -> Tensor:
        """The examples that stand for a class, in order: those whose label has a share of it."""
        index_B = shares_N.nonzero().flatten()
        if self.match_batch is None or self.match_batch >= len(index_B):
            return index_B
        drawn = torch.multinomial(shares_N[index_B], self.match_batch, generator=rng)
        return index_B[drawn.sort().values]

    def _real_gradient(
        self, network: Sampled, real: RealData, label: int, draw: LaneDraw
    ) -> Tensor:
        """Gradient of the mean cross-entropy on real images of a class, (P,), chunk by chunk."""
        images_BCHW = real.class_images(draw("real", label), label, self.real_batch)
        images_BCHW = self.augment(images_BCHW, draw("augment", label), shared=True)
        leaf_P = network.weights_P.detach().requires_grad_()
        summed_P = torch.zeros_like(leaf_P)
        on_cpu = images_BCHW.device.type == "cpu"
        for images in torch.split(images_BCHW, self.chunk or (32 if on_cpu else 256)):
            targets_B = torch.full((len(images),), label, device=images.device)
            with computing_in(self.real_precision, images.device):
                logits_BK = network(leaf_P, images)
            # not `real.loss`: images that come class by class have no long tail
            summed = F.cross_entropy(logits_BK.to(images.dtype), targets_B, reduction="sum")
            summed_P += torch.autograd.grad(summed, leaf_P)[0]
        return summed_P / len(images_BCHW)

    def _distilled_gradient(
        self, network: Sampled, distilled: Distilled, index_B: Tensor, label: int, draw: LaneDraw
    ) -> Tensor:
        """The same on distilled examples, each weighted by its share of the class; has a graph."""
        images_BCHW, targets_BK = distilled(index_B)
        images_BCHW = self.augment(images_BCHW, draw("augment", label), shared=True)
        leaf_P = network.weights_P.detach().requires_grad_()
        losses_B = F.cross_entropy(network(leaf_P, images_BCHW), targets_BK, reduction="none")
        weights_B = targets_BK[:, label] / targets_BK[:, label].sum()
        (grad_P,) = torch.autograd.grad((weights_B * losses_B).sum(), leaf_P, create_graph=True)
        return grad_P
