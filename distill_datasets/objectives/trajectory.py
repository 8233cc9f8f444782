"""Matching of training trajectories: the objective of MTT, TESLA and DATM.

A network starts where an expert stood, takes a few steps of gradient descent on the distilled set,
and should end where the expert stood some epochs later. The gradient walks back through those steps
and recomputes each of them on the way, so memory is that of one step and one vector of weights for
every step, whatever their number.

Shape suffixes: B examples of a step, N all training examples, K classes, P all weights of a
network, T learned step sizes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from distill_datasets.errors import DistillError
from distill_datasets.models.flops import IMAGES_OF_WEIGHT_GRADIENT, TRACKED_STEP, WEIGHT_GRADIENT
from distill_datasets.networks.network import NetworkSource, Sampled
from distill_datasets.objectives.objective import Estimate, Needs, Objective
from distill_datasets.runtime.draws import Draw, LaneDraw
from distill_datasets.views.augment import Augment

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.real import RealData
    from distill_datasets.distilled import Distilled


class Trajectory(Objective):
    """Distance to an expert's later weights, after a few steps of descent on the distilled set."""

    paper: ClassVar[str] = "MTT, arXiv:2203.11932; TESLA, arXiv:2211.10586; DATM, arXiv:2310.05773"
    name: Literal["trajectory"] = "trajectory"
    steps: int = Field(gt=0, le=100_000, description="steps on the distilled set (N)")
    batch: int | None = Field(
        default=None,
        gt=0,
        description="examples of a step, a pass visits all in an order of its own; null takes all",
    )
    step_size: float = Field(
        default=0.01, gt=0, description="of the steps; where it starts, if it is learned"
    )
    learn_step_size: bool = Field(
        default=True, description="move the step size with the images, by distill.rate_optimizer"
    )
    augment: Augment = Field(
        default=Augment(), description="of the distilled images, drawn anew for every step"
    )
    differentiate: Literal["exact", "first_order"] = Field(
        default="exact",
        description="walk back through every step, or leave out how a step changes the gradients "
        "of later ones (TESLA's form: as much memory, little less work, another gradient)",
    )
    skip_above: float | None = Field(
        default=None,
        gt=0,
        description="a lane whose loss is above this, or not finite, does not count in its step "
        "(DATM: 1.0); null takes every lane",
    )

    def cited(self) -> list[str]:
        mtt, tesla, datm = self.paper.split("; ")
        own = [mtt, tesla] if self.differentiate == "first_order" else [mtt]
        return own if self.skip_above is None else [*own, datm]

    @property
    def needs(self) -> Needs:
        return Needs(offers=frozenset({"trajectory"}))

    def work(self, flops_per_image: float, examples: int, classes: int) -> float:
        # every step is taken once on the way there and repeated and differentiated on the way back
        exact = self.differentiate == "exact"
        back = TRACKED_STEP if exact else IMAGES_OF_WEIGHT_GRADIENT
        batch = min(self.batch or examples, examples)
        passes, left = divmod(self.steps, -(-examples // batch))
        images = passes * examples + left * batch
        return flops_per_image * images * (WEIGHT_GRADIENT + back)

    def step_sizes(self) -> list[float]:
        return [self.step_size] if self.learn_step_size else []

    def estimate(
        self, distilled: Distilled, networks: NetworkSource, real: RealData, draw: LaneDraw
    ) -> Estimate:
        """The squared distance that is left, as a share of the one at the start, and its gradient.

        Raises:
            DistillError: the expert did not move between start and target.

        Source: MTT (arXiv:2203.11932), equation 2 and algorithm 1. The way back is the adjoint
        recursion of descent; without the second-order term in the weights it is TESLA's
        (arXiv:2211.10586), equation 7.
        """
        network = networks.sample(draw)
        target_P, away = _target(network)
        learned = distilled.step_sizes()
        size = self.step_size if learned is None else learned[0].item()
        visited = [network.weights_P]
        for step in range(self.steps):
            leaf_P = visited[-1].detach().requires_grad_()
            with torch.no_grad():
                images_BCHW, targets_BK = self._examples(distilled, step, draw)
            loss = F.cross_entropy(network(leaf_P, images_BCHW), targets_BK)
            (grad_P,) = torch.autograd.grad(loss, leaf_P)
            visited.append(visited[-1] - size * grad_P)
        # |w_N - w*|^2 / |w_0 - w*|^2, and its gradient in w_N, 2 (w_N - w*) / |w_0 - w*|^2
        left_P = visited.pop() - target_P
        distance = float(left_P.square().sum() / away)
        counts = self.skip_above is None or distance <= self.skip_above
        grads = {name: torch.zeros_like(value) for name, value in distilled.parameters.items()}
        if counts:
            self._sweep(distilled, network, visited, 2 * left_P / away, size, draw, grads)
        return Estimate(distance, grads, {"step_size": size}, counts)

    def _sweep(
        self,
        distilled: Distilled,
        network: Sampled,
        visited: list[Tensor],
        adjoint_P: Tensor,
        size: float,
        draw: Draw,
        grads: dict[str, Tensor],
    ) -> None:
        """Walk back from the last step to the first and add up the gradient in `grads`.

        A step takes the weights w to w - s g(w, x), with g the gradient on the examples x and s the
        step size. With a the adjoint of the weights after it, everything is a derivative of the
        number g.a: x gets -s d(g.a)/dx, s gets -g.a, and the adjoint before the step is
        a - s d(g.a)/dw, a Hessian-vector product, or a alone in the first-order form.
        """
        parameters = list(distilled.parameters.values())
        size_grad = adjoint_P.new_zeros(())
        for step in reversed(range(self.steps)):
            weights_P = visited.pop().detach().requires_grad_()
            images_BCHW, targets_BK = self._examples(distilled, step, draw)
            loss = F.cross_entropy(network(weights_P, images_BCHW), targets_BK)
            (grad_P,) = torch.autograd.grad(loss, weights_P, create_graph=True)
            along = torch.dot(grad_P, adjoint_P)
            size_grad -= along.detach()
            exact = self.differentiate == "exact"
            pulled = torch.autograd.grad(
                along, [*parameters, *([weights_P] if exact else [])], materialize_grads=True
            )
            for total, part in zip(grads.values(), pulled, strict=False):
                total -= size * part
            if exact:
                adjoint_P = adjoint_P - size * pulled[-1]
        if (learned := distilled.step_sizes()) is not None:
            raw_T = distilled.parameters["step_sizes.raw_T"]
            (pulled_T,) = torch.autograd.grad(learned[0], raw_T)
            grads["step_sizes.raw_T"] += size_grad * pulled_T

    def _examples(self, distilled: Distilled, step: int, draw: Draw) -> tuple[Tensor, Tensor]:
        """Augmented examples of a step and their targets; the same whenever they are asked for."""
        count = distilled.count
        order_N = torch.arange(count, device=distilled.device)
        batch = min(self.batch or count, count)
        passes, place = divmod(step, -(-count // batch))
        if batch < count:
            order_N = torch.randperm(count, generator=draw("order", passes))
        index_B = order_N[place * batch : (place + 1) * batch]
        images_BCHW, targets_BK = distilled(index_B)
        return self.augment(images_BCHW, draw("inner", step)), targets_BK


def _target(network: Sampled) -> tuple[Tensor, Tensor]:
    """Where the expert went, and the squared length of its way."""
    if network.target_P is None:
        raise DistillError(
            "trajectory: the networks offer trajectories and gave one without a target; choose "
            "distill.networks: trajectories, or mend the package they come from"
        )
    away = (network.weights_P - network.target_P).square().sum()
    if not bool(away > 0):
        raise DistillError(
            "trajectory: an expert's start and target are the same weights, so there is no way to "
            "match; train the experts again with a larger squeeze.optimizer.lr, or raise "
            "distill.networks.gap"
        )
    return network.target_P, away
