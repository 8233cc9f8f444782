"""Matching of training trajectories: the objective of MTT, TESLA and DATM.

A network starts where an expert stood, takes a few steps of gradient descent on the distilled set,
and should end where the expert stood some epochs later. The gradient goes back through those steps:
by their graph where it is small, or by repeating each of them, which takes the memory of one step
and one vector of weights for every step, whatever their number.

Shape suffixes: B examples of a step, N all training examples, K classes, P all weights of a
network, T learned step sizes.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field

from distill_datasets.errors import DistillError
from distill_datasets.models.flops import IMAGES_OF_WEIGHT_GRADIENT, TRACKED_STEP, WEIGHT_GRADIENT
from distill_datasets.networks.inner_steps import (
    counting_saved,
    graph_fits,
    mean_gradient,
    pulled_back,
)
from distill_datasets.networks.network import NetworkSource, Sampled
from distill_datasets.objectives.objective import Estimate, Needs, Objective, through_batch
from distill_datasets.runtime.draws import Draw, LaneDraw
from distill_datasets.runtime.precision import WHERE_FAST, Precision
from distill_datasets.runtime.vector_jacobian import vector_jacobian
from distill_datasets.types import Batch
from distill_datasets.views.augment import Augment

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.real import RealData
    from distill_datasets.distilled import Distilled


class Trajectory(Objective):
    """Distance to an expert's later weights, after a few steps of descent on the distilled set."""

    paper: ClassVar[str] = (
        "MTT, arXiv:2203.11932; TESLA, arXiv:2211.10586; DATM, arXiv:2310.05773; "
        "PAD, arXiv:2408.03360"
    )
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
    differentiate: Literal["auto", "graph", "recompute", "first_order"] = Field(
        default="auto",
        description="keep the graph of all steps (memory grows with them), or recompute each step "
        "on the way back (a vector of weights each, a third more work); auto keeps a graph of up "
        "to 2 GiB on a CPU and of a quarter of an accelerator's memory; first_order recomputes and "
        "leaves out how a step changes the gradients of later ones (TESLA's form: little less "
        "work, another gradient)",
    )
    chunk: int | None = Field(
        default=None,
        gt=0,
        description="examples differentiated at once; null: 32 on a CPU, whose cache they stay in, "
        "and 512 elsewhere",
    )
    precision: Precision = Field(
        default="float32",
        description=f"of the network in every step; weights are float32; {WHERE_FAST}",
    )
    ignored: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the weights whose distance does not count, those of the first layers "
        "(PAD: up to 0.75 where a set is large)",
    )
    skip_above: float | None = Field(
        default=None,
        gt=0,
        description="a lane whose loss is above this, or not finite, does not count in its step "
        "(DATM: 1.0); null takes every lane",
    )

    def cited(self) -> list[str]:
        mtt, tesla, datm, pad = self.paper.split("; ")
        also = {
            tesla: self.differentiate == "first_order",
            datm: self.skip_above is not None,
            pad: self.ignored > 0,
        }
        return [mtt, *(paper for paper, used in also.items() if used)]

    @property
    def needs(self) -> Needs:
        return Needs(offers=frozenset({"trajectory"}))

    def work(self, flops_per_image: float, examples: int, classes: int) -> float:
        # without a graph every step is taken once on the way there, and repeated on the way back
        first_order = self.differentiate == "first_order"
        each = WEIGHT_GRADIENT + (IMAGES_OF_WEIGHT_GRADIENT if first_order else TRACKED_STEP)
        if self.differentiate in ("auto", "graph"):
            each = TRACKED_STEP
        batch = min(self.batch or examples, examples)
        passes, left = divmod(self.steps, -(-examples // batch))
        images = passes * examples + left * batch
        work = images * each
        if self.differentiate in ("auto", "graph"):
            # nobody asks for the derivative in the first weights
            work -= batch * (TRACKED_STEP - IMAGES_OF_WEIGHT_GRADIENT)
        return flops_per_image * work

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
        target_P, away = _target(network, self.ignored)
        learned = distilled.step_sizes()
        size = self.step_size if learned is None else learned[0]
        moved = self.step_size if learned is None else learned[0].item()
        metrics = {"step_size": moved}
        taken: list[torch.Tensor] | None = None
        if self.differentiate in ("auto", "graph"):
            taken = self._tracked(distilled, network, size, draw)
        if taken is None:
            taken = self._plain(distilled, network, moved, draw)
        # |w_N - w*|^2 / |w_0 - w*|^2, and its gradient in w_N, 2 (w_N - w*) / |w_0 - w*|^2
        end_P = taken.pop()
        left_P = end_P.detach() - target_P
        left_P[: int(self.ignored * len(left_P))] = 0
        distance = float(left_P.square().sum() / away)
        adjoint_P = 2 * left_P / away
        names, parameters = zip(*distilled.parameters.items(), strict=True)
        if self.skip_above is not None and not distance <= self.skip_above:
            grads = [torch.zeros_like(parameter) for parameter in parameters]
            return Estimate(distance, dict(zip(names, grads, strict=True)), metrics, False)
        if end_P.requires_grad:
            grads = list(vector_jacobian([end_P], parameters, [adjoint_P]))
        else:
            grads = self._sweep(distilled, network, taken, adjoint_P, moved, draw)
        return Estimate(distance, dict(zip(names, grads, strict=True)), metrics)

    def _plain(
        self, distilled: Distilled, network: Sampled, size: float, draw: Draw
    ) -> list[Tensor]:
        """The weights before every step and after the last, without a graph."""
        visited = [network.weights_P]
        for step in range(self.steps):
            leaf_P = visited[-1].detach().requires_grad_()
            with torch.no_grad():
                batch = self._examples(distilled, step, draw)
            grad_P = mean_gradient(
                network, leaf_P, batch, self.chunk, self.precision, tracked=False
            )
            visited.append(visited[-1] - size * grad_P)
        return visited

    def _tracked(
        self, distilled: Distilled, network: Sampled, size: Tensor | float, draw: Draw
    ) -> list[Tensor] | None:
        """The weights after the last step with the graph of all; None if `auto` finds it large."""
        weights_P = network.weights_P.detach().requires_grad_()
        for step in range(self.steps):
            with counting_saved() if step == 0 else nullcontext() as saved:
                batch = self._examples(distilled, step, draw)
                grad_P = mean_gradient(
                    network, weights_P, batch, self.chunk, self.precision, tracked=True
                )
                weights_P = weights_P - size * grad_P
            if saved is None or self.differentiate == "graph":
                continue
            if not graph_fits(saved.bytes, self.steps, distilled.device):
                return None
        return [weights_P]

    def _sweep(
        self,
        distilled: Distilled,
        network: Sampled,
        visited: list[Tensor],
        adjoint_P: Tensor,
        size: float,
        draw: Draw,
    ) -> list[Tensor]:
        """Walk back from the last step to the first; the gradient of every parameter.

        A step takes the weights w to w - s g(w, x), with g the gradient on the examples x and s the
        step size. With a the adjoint of the weights after it, everything is a derivative of the
        number g.a: x gets -s d(g.a)/dx, s gets -g.a, and the adjoint before the step is
        a - s d(g.a)/dw, a Hessian-vector product, or a alone in the first-order form.
        """
        parameters = list(distilled.parameters.values())
        totals = [torch.zeros_like(parameter) for parameter in parameters]
        size_grad = adjoint_P.new_zeros(())
        for step in reversed(range(self.steps)):
            weights_P = visited.pop().detach().requires_grad_()
            batch = self._examples(distilled, step, draw)
            curved = self.differentiate != "first_order"
            back = pulled_back(
                network, weights_P, batch, adjoint_P, self.chunk, self.precision, curved=curved
            )
            size_grad -= back.along
            for total, part in zip(
                totals, through_batch(batch, back.batch, parameters), strict=True
            ):
                total -= size * part
            if back.weights_P is not None:
                adjoint_P = adjoint_P - size * back.weights_P
        if (learned := distilled.step_sizes()) is not None:
            pulled = vector_jacobian([learned[0]], parameters, [size_grad])
            for total, part in zip(totals, pulled, strict=True):
                total += part
        return totals

    def _examples(self, distilled: Distilled, step: int, draw: Draw) -> Batch:
        """Augmented examples of a step and their targets; the same whenever they are asked for."""
        count = distilled.count
        order_N = torch.arange(count, device=distilled.device)
        batch = min(self.batch or count, count)
        passes, place = divmod(step, -(-count // batch))
        if batch < count:
            order_N = torch.randperm(count, generator=draw("order", passes))
        index_B = order_N[place * batch : (place + 1) * batch]
        images_BCHW, targets_BK = distilled(index_B)
        return Batch(self.augment(images_BCHW, draw("inner", step)), targets_BK)


def _target(network: Sampled, ignored: float) -> tuple[Tensor, Tensor]:
    """Where the expert went, and the squared length of its way, a share of the weights left out."""
    if network.target_P is None:
        raise DistillError(
            "trajectory: the networks offer trajectories and gave one without a target; choose "
            "distill.networks: trajectories, or mend the package they come from"
        )
    way_P = network.weights_P - network.target_P
    away = way_P[int(ignored * len(way_P)) :].square().sum()
    if not bool(away > 0):
        raise DistillError(
            "trajectory: an expert's start and target are the same weights, so there is no way to "
            "match; train the experts again with a larger squeeze.optimizer.lr, or raise "
            "distill.networks.gap"
        )
    return network.target_P, away
