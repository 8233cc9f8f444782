"""Kernel ridge regression: what a network's features of the distilled set predict of real images.

With the features F_s (N, D) of all distilled examples, their label vectors Y_s (N, K) and the
features F_t (B, D) of a real batch, the last layer that fits the distilled set best predicts

    P = F_t F_s^T (F_s F_s^T + r I)^-1 Y_s,    r = ridge * trace(F_s F_s^T) / N,

and the loss compares P with the real labels. The layer is solved, not trained: no step is unrolled,
and the gradient goes through F_s and Y_s alone, in a system of N equations.

A label vector is the logarithm of a target, centered over the classes and divided by `sharpness`:
with the labels `vectors` it is what they train. Real labels are centered likewise, 1 - 1/K for the
right class and -1/K for others. Where an image has several labels, a vector is the logit of each,
divided by `sharpness`, and real ones are 1/2 or -1/2; where targets are numbers, it is the target.

Shape suffixes: B real images, N distilled examples, K classes, D values of a feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from distill_datasets.networks.network import NetworkSource, Sampled
from distill_datasets.objectives.objective import Estimate, Needs, Objective
from distill_datasets.runtime.draws import LaneDraw
from distill_datasets.runtime.memory import images_at_once
from distill_datasets.runtime.precision import WHERE_FAST, Precision, computing_in
from distill_datasets.runtime.vector_jacobian import vector_jacobian
from distill_datasets.targets import as_outputs, centered
from distill_datasets.types import Task
from distill_datasets.views.augment import Augment

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.real import RealData
    from distill_datasets.distilled import Distilled


def ridge_prediction(
    real_BD: Tensor, distilled_ND: Tensor, vectors_NK: Tensor, ridge: float
) -> Tensor:
    """What the ridge solution on the distilled features predicts of the real ones, (B, K).

    The system is solved in double precision.

    Source: KIP (arXiv:2011.00050), equation 5; FRePo (arXiv:2206.00719), equation 6.
    """
    kernel_NN = (distilled_ND @ distilled_ND.T).double()
    # features that are all zero leave nothing to solve, and predict nothing
    added = (ridge * kernel_NN.diagonal().mean()).clamp(min=1e-30)
    eye_NN = torch.eye(len(kernel_NN), dtype=kernel_NN.dtype, device=kernel_NN.device)
    kernel_NN = kernel_NN + added * eye_NN
    weights_NK = torch.linalg.solve(kernel_NN, vectors_NK.double())
    predicted_BK: Tensor = (real_BD @ distilled_ND.T).double() @ weights_NK
    return predicted_BK.to(vectors_NK.dtype)


class Regression(Objective):
    """Loss of ridge regression from distilled to real images in a network's features (FRePo)."""

    paper: ClassVar[str] = (
        "FRePo, arXiv:2206.00719; RFAD, arXiv:2210.12067; KIP, arXiv:2011.00050; "
        "UniDD, arXiv:2503.01212"
    )
    tasks: ClassVar[frozenset[Task]] = frozenset({"classes", "labels", "values"})
    name: Literal["regression"] = "regression"
    real_batch: int = Field(gt=0, description="real images that are predicted in a step")
    ridge: float = Field(
        default=0.000001,
        gt=0,
        description="added to the kernel's diagonal, as a share of its mean (lambda); 0.001 or "
        "more where a network has fewer features than there are distilled examples: its gradients "
        "would be all that counts",
    )
    ridge_start: float | None = Field(
        default=None,
        gt=0,
        description="where ridge falls from, geometrically over the run (UniDD); null keeps it",
    )
    loss: Literal["mse", "cross_entropy"] = Field(
        default="mse",
        description="half the squared distance of predictions and real label vectors, or the "
        "cross-entropy of softmax(sharpness x prediction)",
    )
    sharpness: float = Field(
        default=10.0, gt=0, description="of a target: softmax(sharpness x label vector)"
    )
    answers: int = Field(
        default=0,
        ge=0,
        description="networks whose answers on the distilled examples, in the mean, are published "
        "as the labels; 0 publishes the vectors that gave the answers",
    )
    augment: Augment = Field(
        default=Augment(), description="of distilled and of real images, each with its own draw"
    )
    precision: Precision = Field(
        default="float32",
        description=f"of the networks; kernels are float32, solved in float64; {WHERE_FAST}",
    )

    def cited(self) -> list[str]:
        frepo, rfad, kip, unidd = self.paper.split("; ")
        return [frepo, kip, *([rfad] if self.loss == "cross_entropy" else []),
                *([unidd] if self.ridge_start is not None else [])]  # fmt: skip

    @property
    def needs(self) -> Needs:
        return Needs(real_rows=self.real_batch)

    def work(self, flops_per_image: float, examples: int, classes: int) -> float:
        # real images forward, distilled ones forward and back to the pixels
        return flops_per_image * (self.real_batch + 2 * examples)

    def estimate(
        self, distilled: Distilled, networks: NetworkSource, real: RealData, draw: LaneDraw
    ) -> Estimate:
        """Loss of the prediction of one real batch, and its gradient.

        Source: FRePo (arXiv:2206.00719), equations 5 and 6.
        """
        network = networks.sample(draw)
        index_N = torch.arange(distilled.count, device=distilled.device)
        images_NCHW, targets_NK = distilled(index_N)
        images_NCHW = self.augment(images_NCHW, draw("augment"))
        rng = draw("real")
        real_BCHW, real_BK = real.batch(rng, self.real_batch)
        with torch.no_grad():
            seen_BCHW = self.augment(real_BCHW, rng)
            chunks = torch.split(seen_BCHW, images_at_once(real.shape, seen_BCHW.device))
            real_BD = torch.cat([self._features(network, chunk) for chunk in chunks])
        shown_ND = self._features(network, images_NCHW)
        task = real.shape.task
        vectors_NK = self._vectors(targets_NK, task, trained=targets_NK.requires_grad)
        # the loss sees images and labels through these two alone: small leaves, then one way back
        leaf_ND = shown_ND.detach().requires_grad_()
        leaf_NK = vectors_NK.detach().requires_grad_()
        predicted_BK = ridge_prediction(real_BD, leaf_ND, leaf_NK, self._ridge(draw))
        loss = self._loss(predicted_BK, real_BK, real)
        pulls = torch.autograd.grad(loss, [leaf_ND, leaf_NK])
        parameters = list(distilled.parameters.values())
        grads = vector_jacobian([shown_ND, vectors_NK], parameters, pulls)
        named = dict(zip(distilled.parameters, grads, strict=True))
        metrics = {}
        if task == "classes":
            right = (predicted_BK.argmax(dim=1) == real_BK.argmax(dim=1)).float().mean()
            metrics["accuracy"] = right.item()
        return Estimate(loss.item(), named, metrics)

    @property
    def last_steps(self) -> int:
        return self.answers

    def last_targets(
        self, distilled: Distilled, networks: NetworkSource, draws: Sequence[LaneDraw]
    ) -> Tensor:
        """The mean answer of the ridge solutions on the distilled examples themselves.

        With a ridge, label vectors are exaggerated, because the solution does not reach them. A
        student that is trained to its end does, and what they exaggerate is noise to it. If it
        reaches the answers K (K + r I)^-1 Y instead, its last layer is K^-1 times them, which is
        the ridge solution again.
        """
        index_N = torch.arange(distilled.count, device=distilled.device)
        answers = list[torch.Tensor]()
        with torch.no_grad():  # not as a decorator, which would import torch to check a recipe
            images_NCHW, targets_NK = distilled(index_N)
            vectors_NK = self._vectors(targets_NK, trained=True)
            for draw in draws:
                shown_ND = self._features(networks.sample(draw), images_NCHW)
                answers.append(ridge_prediction(shown_ND, shown_ND, vectors_NK, self.ridge))
        mean_NK = torch.stack(answers).mean(dim=0)
        return (self.sharpness * mean_NK).softmax(dim=1)

    def _features(self, network: Sampled, images_BCHW: Tensor) -> Tensor:
        """The inputs of the network's last linear layer, (B, D) in float32 or better."""
        with computing_in(self.precision, images_BCHW.device):
            embedding_BD = network.embedding(network.weights_P.detach(), images_BCHW)
        return embedding_BD.flatten(1).to(images_BCHW.dtype)

    def _vectors(self, targets_NK: Tensor, task: Task = "classes", *, trained: bool) -> Tensor:
        """Label vectors of the targets; hard labels that nobody trains are centered as they are."""
        if not trained:
            return centered(task, targets_NK)
        return as_outputs(task, targets_NK) / (1 if task == "values" else self.sharpness)

    def _ridge(self, draw: LaneDraw) -> float:
        if self.ridge_start is None:
            return self.ridge
        return float(self.ridge_start * (self.ridge / self.ridge_start) ** draw.progress)

    def _loss(self, predicted_BK: Tensor, real_BK: Tensor, real: RealData) -> Tensor:
        if self.loss == "cross_entropy":
            return real.loss(self.sharpness * predicted_BK, real_BK)
        centered_BK = centered(real.shape.task, real_BK)
        return 0.5 * F.mse_loss(predicted_BK, centered_BK, reduction="sum") / len(real_BK)
