"""Meta-gradient through a window of training steps: Dataset Distillation, SLDD, RaT-BPTT, PoDD.

A fresh network is trained on the distilled set; the loss of the trained network on real images is
differentiated with respect to the distilled set, through the last `window` steps. Two ways of
differentiating give the same gradient: keeping the whole graph, or recomputing each step on the way
back, where one Hessian-vector product per step keeps memory flat in the window. Both go through a
batch in chunks.

Shape suffixes: B examples of a step, K classes, P all weights of a network.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import Field, SerializeAsAny, model_validator

from distill_datasets.config import Section, part
from distill_datasets.models.flops import STEP_BACK, TRACKED_STEP, WEIGHT_GRADIENT
from distill_datasets.networks.inner_steps import (
    Differentiate,
    chunks,
    counting_saved,
    graph_fits,
    mean_gradient,
    pulled_back,
)
from distill_datasets.networks.network import NetworkSource, Sampled
from distill_datasets.objectives.objective import (
    Context,
    Estimate,
    Needs,
    Objective,
    added,
    through_batch,
)
from distill_datasets.optimizers import Adam, Optimizer, Sgd, State
from distill_datasets.runtime.draws import Draw, LaneDraw
from distill_datasets.runtime.precision import WHERE_FAST, Precision
from distill_datasets.runtime.vector_jacobian import vector_jacobian
from distill_datasets.types import Batch, Task
from distill_datasets.views.augment import Augment

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.real import RealData
    from distill_datasets.distilled import Distilled


class InnerState(NamedTuple):
    """Everything that an inner step changes: weights, and the optimizer's own vectors beside them.

    `step` counts the steps that were taken.
    """

    weights_P: Tensor
    slots: State
    step: int

    def leaf(self) -> InnerState:
        """The same values, cut from their past and ready to be differentiated."""
        weights_P, *slots = (tensor.detach().requires_grad_() for tensor in self.tensors())
        return InnerState(weights_P, tuple(slots), self.step)

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.weights_P, *self.slots)


class Attack(Section):
    """A class that trained networks shall take for another one: an audit of robustness.

    Source: Dataset Distillation (arXiv:1811.10959), its experiments on data poisoning.
    """

    attacked: int = Field(ge=0, description="class whose real images are judged as the target")
    target: int = Field(ge=0, description="class that they shall be taken for")

    @model_validator(mode="after")
    def _two_classes(self) -> Self:
        if self.attacked == self.target:
            raise ValueError(f"expected two classes, got {self.target} as attacked and as target")
        return self

    def judged(self, targets_BK: Tensor) -> Tensor:
        """Targets (B, K) in which whatever the attacked class had is the target's."""
        moved_BK = targets_BK.clone()
        moved_BK[:, self.target] += moved_BK[:, self.attacked]
        moved_BK[:, self.attacked] = 0
        return moved_BK


class Unrolled(Objective):
    """Meta-gradient through a window of training steps, placed at random or at their end.

    Random placement is RaT-BPTT's. With learned step sizes, a fixed order and a window of all steps
    it is Dataset Distillation: a few steps of gradient descent, each with its own batch and size.
    """

    paper: ClassVar[str] = (
        "Dataset Distillation, arXiv:1811.10959; RaT-BPTT, arXiv:2311.07025; PoDD, arXiv:2403.12040"
    )
    tasks: ClassVar[frozenset[Task]] = frozenset({"classes", "labels", "values"})
    name: Literal["unrolled"] = "unrolled"
    inner_steps: int = Field(gt=0, le=100_000, description="longest training run judged, in steps")
    shortest: int | None = Field(
        default=None,
        gt=0,
        description="shortest training run judged, in steps, where the placement is random; null: "
        "the window",
    )
    window: int = Field(gt=0, le=100_000, description="last steps kept differentiable")
    placement: Literal["random", "end"] = Field(
        default="random",
        description="stop after a random number of steps up to inner_steps, or at the end",
    )
    batch: int | None = Field(
        default=None, gt=0, description="examples of an inner step; null takes all of them"
    )
    real_batch: int = Field(gt=0, description="real images that judge the trained network")
    optimizer: Annotated[SerializeAsAny[Optimizer], part("optimizers")] = Field(
        default=Adam(lr=0.001), description="rule of the inner loop"
    )
    learn_step_sizes: bool = Field(
        default=False,
        description="learn one step size for every inner step, from optimizer.lr on; needs sgd "
        "with momentum 0 and a window of all steps",
    )
    order: Literal["shuffled", "fixed"] = Field(
        default="shuffled",
        description="draw the examples of every inner step, or fix them: of S batches, batch s has "
        "the examples s, s + S, s + 2 S, ..., and inner step t takes batch t modulo S",
    )
    attack: Attack | None = Field(
        default=None, description="judge the images of one class as another's; null attacks none"
    )
    augment: Augment = Field(default=Augment(), description="of distilled and of real images")
    differentiate: Differentiate = Field(
        default="graph",
        description="keep the graph of the window (memory grows with it), or recompute each step "
        "on the way back (memory flat, about a third more work); auto keeps a graph of up to 2 GiB "
        "on a CPU and of a quarter of an accelerator's memory",
    )
    warm_up_precision: Precision = Field(
        default="float32",
        description=f"of the network in the steps before the window, which nobody differentiates; "
        f"weights are float32; {WHERE_FAST}",
    )
    chunk: int | None = Field(
        default=None,
        gt=0,
        description="images differentiated at once, distilled or real; bounds memory. null: 32 on "
        "a CPU, whose cache they stay in, and 512 elsewhere",
    )

    @model_validator(mode="after")
    def _window_fits(self) -> Self:
        if self.window > self.inner_steps:
            raise ValueError(
                f"window: {self.window} steps do not fit into inner_steps: {self.inner_steps}"
            )
        if self.shortest is None:
            return self
        if not self.window <= self.shortest <= self.inner_steps:
            raise ValueError(
                f"shortest: got {self.shortest}, expected at least the window of {self.window} and "
                f"at most inner_steps: {self.inner_steps}"
            )
        if self.placement != "random":
            raise ValueError(
                f"shortest: got {self.shortest} with placement {self.placement!r}, which always "
                "trains for inner_steps; set placement: random, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _step_sizes_can_be_learned(self) -> Self:
        if not self.learn_step_sizes:
            return self
        if not (isinstance(self.optimizer, Sgd) and self.optimizer.momentum == 0):
            got = self.optimizer.model_dump(include={"name", "momentum"})
            raise ValueError(
                f"learn_step_sizes: got the inner optimizer {got}, expected gradient descent "
                "without momentum; set optimizer: {name: sgd, momentum: 0, lr: 0.02}"
            )
        if self.placement != "end" or self.window != self.inner_steps:
            raise ValueError(
                f"learn_step_sizes: every step is differentiated; got window {self.window} of "
                f"{self.inner_steps} inner_steps with placement {self.placement!r}, expected "
                f"window {self.inner_steps} with placement 'end'"
            )
        return self

    @property
    def needs(self) -> Needs:
        return Needs(real_rows=self.real_batch)

    def problems(self, context: Context) -> Iterator[str]:
        shape, examples = context.shape, context.examples
        if shape is not None and self.attack is not None and shape.task != "classes":
            yield (
                f"distill.objective.attack: is about classes, got source.task: {shape.task}; leave "
                "it out"
            )
        elif shape is not None and self.attack is not None:
            for field, label in self.attack:
                if label >= shape.k:
                    yield (
                        f"distill.objective.attack.{field}: class {label} of a source with "
                        f"{shape.k} classes; choose one of 0..{shape.k - 1}"
                    )
        if examples is not None and self.order == "fixed":
            batches = self._batches(examples)
            if batches > self.inner_steps:
                yield (
                    f"distill.objective.order: {examples} examples make {batches} batches of "
                    f"{self.batch}, and {self.inner_steps} inner_steps would never see the last; "
                    "raise inner_steps or batch, or take the order 'shuffled'"
                )

    @property
    def _shortest(self) -> int:
        """Steps of the shortest training run."""
        if self.placement == "end":
            return self.inner_steps
        return self.window if self.shortest is None else self.shortest

    def step_sizes(self) -> list[float]:
        return [self.optimizer.lr] * self.inner_steps if self.learn_step_sizes else []

    def published_order(self, examples: int) -> list[list[int]]:
        if self.order == "shuffled":
            return []
        return [list(self._fixed_batch(examples, step)) for step in range(self.inner_steps)]

    def attacks(self) -> tuple[int, int] | None:
        return None if self.attack is None else (self.attack.attacked, self.attack.target)

    def _batches(self, examples: int) -> int:
        """How many batches the examples make; a rest is spread over the first ones."""
        return max(1, examples // (self.batch or examples))

    def _fixed_batch(self, examples: int, step: int) -> range:
        """The examples of an inner step in the fixed order."""
        batches = self._batches(examples)
        return range(step % batches, examples, batches)

    def work(self, flops_per_image: float, examples: int, classes: int) -> float:
        batch = min(self.batch or examples, examples)
        mean_steps = (self.inner_steps + self._shortest) / 2
        recomputed = WEIGHT_GRADIENT + STEP_BACK
        tracked = recomputed if self.differentiate == "recompute" else TRACKED_STEP
        inner = batch * ((mean_steps - self.window) * WEIGHT_GRADIENT + self.window * tracked)
        return flops_per_image * (inner + WEIGHT_GRADIENT * self.real_batch)

    def estimate(
        self, distilled: Distilled, networks: NetworkSource, real: RealData, draw: LaneDraw
    ) -> Estimate:
        """Loss on real images after a random number of steps, and its gradient.

        Source: RaT-BPTT (arXiv:2311.07025), algorithm 1.
        """
        network = networks.sample(draw)
        start = InnerState(network.weights_P, self.optimizer.start(network.weights_P), 0)
        warm_up, more = self._shortest - self.window, self.inner_steps - self._shortest
        if more:
            warm_up += int(torch.randint(more + 1, (), generator=draw("placement")))
        for _ in range(warm_up):
            start, _ = self._plain_step(distilled, network, start, draw, self.warm_up_precision)
        if self.differentiate == "recompute":
            return self._through_recomputation(distilled, network, start, real, draw)
        with counting_saved() if self.differentiate == "auto" else nullcontext() as saved:
            first = self._tracked_step(distilled, network, start.leaf(), draw)
        if saved is None or graph_fits(saved.bytes, self.window, distilled.device):
            return self._through_graph(distilled, network, first, real, draw)
        del first  # and its graph
        return self._through_recomputation(distilled, network, start, real, draw)

    def _through_graph(
        self, distilled: Distilled, network: Sampled, inner: InnerState, real: RealData, draw: Draw
    ) -> Estimate:
        """The estimate, given the window's first tracked step."""
        for _ in range(self.window - 1):
            inner = self._tracked_step(distilled, network, inner, draw)
        loss, adjoint_P = self._judge(network, inner.weights_P, real, draw)
        names, parameters = zip(*distilled.parameters.items(), strict=True)
        grads = vector_jacobian([inner.weights_P], parameters, [adjoint_P])
        return Estimate(loss, dict(zip(names, grads, strict=True)), {"inner_steps": inner.step})

    def _through_recomputation(
        self, distilled: Distilled, network: Sampled, start: InnerState, real: RealData, draw: Draw
    ) -> Estimate:
        # the trail holds vectors of weights only: no activation outlives its step
        inner, trail = start, list[tuple[InnerState, torch.Tensor]]()
        for _ in range(self.window):
            before = inner
            inner, grad_P = self._plain_step(distilled, network, before, draw)
            trail.append((before, grad_P))
        loss, adjoint_P = self._judge(network, inner.weights_P, real, draw)
        # the loss is of the weights alone, so the optimizer's vectors have an adjoint of zero
        adjoint = (adjoint_P, *(torch.zeros_like(slot) for slot in inner.slots))
        names, parameters = zip(*distilled.parameters.items(), strict=True)
        totals = [torch.zeros_like(parameter) for parameter in parameters]
        while trail:
            adjoint, grads = self._step_back(distilled, network, *trail.pop(), adjoint, draw)
            for total, grad in zip(totals, grads, strict=True):
                total += grad
        return Estimate(loss, dict(zip(names, totals, strict=True)), {"inner_steps": inner.step})

    def _step_back(
        self,
        distilled: Distilled,
        network: Sampled,
        start: InnerState,
        grad_P: Tensor,
        adjoint: tuple[Tensor, ...],
        draw: Draw,
    ) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        """Pull the adjoint of a step's end back to its start and to the distilled set.

        A step takes w to u(w, g(w, x), x), with w the weights and the optimizer's vectors, g the
        gradient on the batch, and x the distilled set. With a the adjoint of its end, that of its
        start is u_w'a + g_w'(u_g'a), and the distilled set gets u_x'a + g_x'(u_g'a); g_w' is the
        Hessian, which meets one vector only.
        """
        parameters = list(distilled.parameters.values())
        start, grad_P = start.leaf(), grad_P.detach().requires_grad_()
        # through the rule: u_w'a, u_g'a, and u_x'a, which only learned step sizes have
        inputs = [*start.tensors(), grad_P, *parameters]
        ends = self._moved(distilled, start, grad_P).tensors()
        pulled = vector_jacobian(ends, inputs, adjoint)
        (adjoint_P, *slots), pull_P = pulled[: len(adjoint)], pulled[len(adjoint)]
        of_rule = pulled[len(adjoint) + 1 :]
        # through the gradient: g_w'(u_g'a), and g_x'(u_g'a) as far as the pixels
        batch = self._examples(distilled, start.step, draw)
        back = pulled_back(network, start.weights_P, batch, pull_P, self.chunk, task=distilled.task)
        assert back.weights_P is not None, "it was asked for"
        adjoint_P = adjoint_P + back.weights_P
        of_examples = through_batch(batch, back.batch, parameters)
        grads = [own + other for own, other in zip(of_rule, of_examples, strict=True)]
        return (adjoint_P, *slots), grads

    def _examples(self, distilled: Distilled, step: int, draw: Draw) -> Batch:
        """Augmented examples of inner step `step`; the same draw whenever they are asked for."""
        rng = draw("inner", step)
        if self.order == "fixed":
            index_B = torch.tensor(self._fixed_batch(distilled.count, step))
        elif self.batch is None or self.batch >= distilled.count:
            index_B = torch.arange(distilled.count, device=distilled.device)
        else:
            order_N = torch.randperm(distilled.count, generator=rng)
            index_B = order_N[: self.batch].sort().values
        images_BCHW, targets_BK = distilled(index_B)
        return Batch(self.augment(images_BCHW, rng), targets_BK)

    def _plain_step(
        self,
        distilled: Distilled,
        network: Sampled,
        inner: InnerState,
        draw: Draw,
        precision: Precision = "float32",
    ) -> tuple[InnerState, Tensor]:
        """A step of training that leaves no graph, and the gradient that it followed."""
        with torch.no_grad():
            batch = self._examples(distilled, inner.step, draw)
        leaf_P = inner.weights_P.detach().requires_grad_()
        grad_P = mean_gradient(
            network, leaf_P, batch, self.chunk, precision, tracked=False, task=distilled.task
        )
        with torch.no_grad():
            return self._moved(distilled, inner, grad_P), grad_P

    def _tracked_step(
        self, distilled: Distilled, network: Sampled, inner: InnerState, draw: Draw
    ) -> InnerState:
        """A step of training, differentiable in the inner state and the distilled set."""
        batch = self._examples(distilled, inner.step, draw)
        grad_P = mean_gradient(
            network, inner.weights_P, batch, self.chunk, tracked=True, task=distilled.task
        )
        return self._moved(distilled, inner, grad_P)

    def _moved(self, distilled: Distilled, inner: InnerState, grad_P: Tensor) -> InnerState:
        """The inner state after a step of the optimizer along a gradient."""
        rule, step = self._rule(distilled, inner.step), inner.step + 1
        return InnerState(*rule.step(inner.weights_P, inner.slots, grad_P, step), step)

    def _rule(self, distilled: Distilled, step: int) -> Optimizer:
        """The inner optimizer of a step; a learned step size takes the place of its own."""
        learned = distilled.step_sizes()
        if learned is None:
            return self.optimizer
        return self.optimizer.model_copy(update={"lr": learned[step]})

    def _judge(
        self, network: Sampled, weights_P: Tensor, real: RealData, draw: Draw
    ) -> tuple[float, Tensor]:
        """The source's loss on one real batch, and its gradient, chunk by chunk."""
        rng = draw("real")
        images_BCHW, targets_BK = real.batch(rng, self.real_batch)
        if self.attack is not None:
            targets_BK = self.attack.judged(targets_BK)
        images_BCHW = self.augment(images_BCHW, rng)
        leaf_P = weights_P.detach().requires_grad_()
        losses, adjoint_P = list[torch.Tensor](), torch.zeros_like(leaf_P)
        for images, targets in chunks(Batch(images_BCHW, targets_BK), self.chunk):
            summed = real.loss(network(leaf_P, images), targets, reduction="sum")
            share = summed / len(images_BCHW)
            adjoint_P += torch.autograd.grad(share, leaf_P)[0]
            losses.append(share.detach())
        return added(losses), adjoint_P
