"""The meta-gradient is exact, and every mistake that is easily made shows."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from support.tiny import TOY, double_distilled
from support.unrolled_problem import CELLS, PIXELS, RULES, WARM_UP, WINDOW, Clock, Problem, unrolled
from torch import Tensor

from distill_datasets.canvases.canvas import Tensors, mix
from distill_datasets.data.real import RealData
from distill_datasets.distilled import Distilled
from distill_datasets.labels.learned import Learned, Vectors
from distill_datasets.networks.inner_steps import mean_gradient
from distill_datasets.networks.network import NetworkSource, Sampled
from distill_datasets.objectives.objective import Estimate
from distill_datasets.objectives.unrolled import InnerState, Unrolled
from distill_datasets.optimizers import Adam, Optimizer, State
from distill_datasets.runtime.draws import Draw, draws, rng_for
from distill_datasets.types import Task


@pytest.fixture(scope="module")
def problem() -> Problem:
    return Problem()


@pytest.mark.parametrize("name", [PIXELS, CELLS])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("differentiate", ["graph", "recompute"])
def test_meta_gradient_equals_a_finite_difference(
    problem: Problem, differentiate: str, rule: str, name: str
) -> None:
    objective = unrolled(differentiate=differentiate, optimizer=RULES[rule])
    grads = problem.estimate(objective).grads
    assert problem.error(objective, name, grads) < 1e-6


@pytest.mark.parametrize("task", ["labels", "values"])
@pytest.mark.parametrize("differentiate", ["graph", "recompute"])
def test_meta_gradient_of_labels_and_values_equals_a_finite_difference(
    differentiate: str, task: Task
) -> None:
    problem, rng = Problem(), rng_for(0, task)
    targets_NK = torch.rand(len(problem.real.train.labels_N), TOY.k, generator=rng)
    problem.real = replace(
        problem.real,
        train=problem.real.train._replace(targets_NK=targets_NK.round()),
        shape=replace(TOY, task=task),
    )
    problem.distilled = double_distilled(problem.real, labels=Vectors(task=task))
    objective = unrolled(differentiate=differentiate)
    found = problem.estimate(objective)
    assert problem.error(objective, PIXELS, found.grads) < 1e-6
    assert problem.error(objective, "labels.vectors_NK", found.grads) < 1e-6
    # and the inner steps lower the loss of the task
    network, batch = problem.networks.sample(Clock()), problem.distilled(torch.arange(4))
    leaf_P = network.weights_P.detach().requires_grad_()
    followed_P = mean_gradient(network, leaf_P, batch, 3, tracked=False, task=task)
    outputs_BK, wanted_BK = network(leaf_P, batch.images_BCHW), batch.targets_BK
    each_BK = (
        F.binary_cross_entropy_with_logits(outputs_BK, wanted_BK, reduction="none")
        if task == "labels"
        else 0.5 * (outputs_BK - wanted_BK) ** 2
    )
    (expected_P,) = torch.autograd.grad(each_BK.sum() / 4, leaf_P)
    torch.testing.assert_close(followed_P, expected_P)


class CurvatureForgotten(Unrolled):
    """Takes the gradient of a step for independent of the weights it was computed at."""

    def _tracked_step(
        self, distilled: Distilled, network: Sampled, inner: InnerState, draw: Draw
    ) -> InnerState:
        images_BCHW, targets_BK = self._examples(distilled, inner.step, draw)
        leaf_P = inner.weights_P.detach().requires_grad_()
        loss = F.cross_entropy(network(leaf_P, images_BCHW), targets_BK)
        (grad_P,) = torch.autograd.grad(loss, leaf_P, create_graph=True)
        after = self.optimizer.step(inner.weights_P, inner.slots, grad_P, inner.step + 1)
        return InnerState(*after, inner.step + 1)


class StateReset(Unrolled):
    """Starts the window with the state of a new optimizer."""

    def _through_graph(
        self, distilled: Distilled, network: Sampled, start: InnerState, real: RealData, draw: Draw
    ) -> Estimate:
        fresh = start._replace(slots=self.optimizer.start(start.weights_P))
        return super()._through_graph(distilled, network, fresh, real, draw)


class BiasCorrectionRestarted(Adam):
    """Counts the steps of the window from one."""

    def step(
        self, weights_P: Tensor, state: State, grad_P: Tensor, step: int
    ) -> tuple[Tensor, State]:
        return super().step(weights_P, state, grad_P, step - WARM_UP if step > WARM_UP else step)


class SecondMomentConstant(Adam):
    """Differentiates through the first moment only."""

    def step(
        self, weights_P: Tensor, state: State, grad_P: Tensor, step: int
    ) -> tuple[Tensor, State]:
        _, (_, second_P) = super().step(weights_P, state, grad_P, step)
        first_P = self.beta1 * state[0] + (1 - self.beta1) * grad_P
        rate = self.lr * (1 - self.beta2**step) ** 0.5 / (1 - self.beta1**step)
        root_P = second_P.detach().sqrt()
        return weights_P - rate * first_P / (root_P + self.epsilon), (first_P, second_P)


MISTAKES = {
    "no second order in the weights": CurvatureForgotten,
    "optimizer state reset at the boundary": StateReset,
    "window of one step": lambda **fields: Unrolled(**fields | {"window": 1}),
    "warm-up differentiated": lambda **fields: Unrolled(**fields | {"window": WARM_UP + WINDOW}),
    "bias correction restarted": lambda **fields: Unrolled(
        **fields | {"optimizer": BiasCorrectionRestarted(lr=0.01)}
    ),
    "second moment taken for a constant": lambda **fields: Unrolled(
        **fields | {"optimizer": SecondMomentConstant(lr=0.01)}
    ),
}


@pytest.mark.parametrize("name", [PIXELS, CELLS])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_finite_difference_shows_a_planted_mistake(
    problem: Problem, mistake: str, name: str
) -> None:
    right = unrolled()
    wrong = MISTAKES[mistake](**dict(right))
    assert problem.error(right, name, problem.estimate(wrong).grads) > 1e-3


class Fickle(Clock):
    """Gives another stream when the draw of an inner step is asked for a second time."""

    def __init__(self) -> None:
        super().__init__()
        self._asked: set[tuple[str | int, ...]] = set()

    def __call__(self, *what: str | int) -> torch.Generator:
        again = what in self._asked
        self._asked.add(what)
        return super().__call__(*what, *(["again"] if again else []))


@pytest.mark.parametrize("name", [PIXELS, CELLS])
def test_finite_difference_shows_augmentation_that_is_drawn_anew(
    problem: Problem, name: str
) -> None:
    # all examples in every step, so that nothing but the augmentation is drawn
    objective = unrolled(differentiate="recompute", batch=None)
    assert problem.error(objective, name, problem.estimate(objective).grads) < 1e-6
    assert problem.error(objective, name, problem.estimate(objective, Fickle()).grads) > 1e-3


def test_finite_difference_shows_detached_labels(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, right = unrolled(differentiate="recompute"), Distilled.__call__
    with monkeypatch.context() as patch:
        patch.setattr(
            Distilled,
            "__call__",
            lambda self, index_B: right(self, index_B)._replace(
                targets_BK=right(self, index_B).targets_BK.detach()
            ),
        )
        grads = problem.estimate(objective).grads
    assert problem.error(objective, CELLS, grads) > 1e-3


def test_finite_difference_shows_labels_whose_normalization_is_detached(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(self: Learned, tensors: Tensors, index_B: Tensor) -> Tensor:
        mixed_BK = mix(tensors["shown"].index_select(0, index_B), tensors["cells_GK"])
        return mixed_BK / mixed_BK.sum(dim=1, keepdim=True).detach()

    objective = unrolled()
    with monkeypatch.context() as patch:
        patch.setattr(Learned, "targets", wrong)
        grads = problem.estimate(objective).grads
    assert problem.error(objective, CELLS, grads) > 1e-3


@pytest.mark.parametrize("differentiate", ["graph", "recompute"])
def test_the_scale_of_learned_labels_has_no_gradient(problem: Problem, differentiate: str) -> None:
    grad_GK = problem.estimate(unrolled(differentiate=differentiate)).grads[CELLS]
    cells_GK = problem.distilled.parameters[CELLS].detach()
    along_scale = float((cells_GK * grad_GK).sum())
    assert abs(along_scale) < 1e-12 * float(cells_GK.norm() * grad_GK.norm())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rule", RULES)
def test_keeping_the_graph_and_recomputing_agree(problem: Problem, rule: str, seed: int) -> None:
    graph, recompute = (
        problem.estimate(
            unrolled(differentiate=how, optimizer=RULES[rule], placement="random", inner_steps=9),
            draws(seed),
        )
        for how in ("graph", "recompute")
    )
    assert graph.loss == pytest.approx(recompute.loss, rel=1e-12)
    assert graph.metrics == recompute.metrics
    for name in (PIXELS, CELLS):
        difference = (graph.grads[name] - recompute.grads[name]).norm()
        assert difference < 1e-9 * graph.grads[name].norm()


class DeadChannel:
    """Networks whose first channel is negative everywhere before its ReLU."""

    def __init__(self, source: NetworkSource) -> None:
        self._source = source

    def sample(self, rng: torch.Generator) -> Sampled:
        network = self._source.sample(rng)
        # width 6 on one channel: 6 * 9 weights of the convolution, 6 scales, 6 shifts of the norm
        network.weights_P[54], network.weights_P[60] = 0, -1
        return network


class NaiveAdam(Adam):
    """Adam as `higher` has it: the root of a second moment of exactly zero is differentiated."""

    def step(
        self, weights_P: Tensor, state: State, grad_P: Tensor, step: int
    ) -> tuple[Tensor, State]:
        first_P = self.beta1 * state[0] + (1 - self.beta1) * grad_P
        second_P = self.beta2 * state[1] + (1 - self.beta2) * grad_P * grad_P
        rate = self.lr * (1 - self.beta2**step) ** 0.5 / (1 - self.beta1**step)
        return weights_P - rate * first_P / (second_P.sqrt() + self.epsilon), (first_P, second_P)


@pytest.mark.parametrize("differentiate", ["graph", "recompute"])
def test_a_dead_channel_leaves_the_gradient_finite(problem: Problem, differentiate: str) -> None:
    def finite(rule: Optimizer) -> bool:
        objective = unrolled(
            inner_steps=WINDOW, window=WINDOW, differentiate=differentiate, optimizer=rule
        )
        networks = DeadChannel(problem.networks)
        grads = objective.estimate(problem.distilled, networks, problem.real, Clock()).grads
        return all(bool(grad.isfinite().all()) for grad in grads.values())

    assert finite(Adam(lr=0.01))
    assert not finite(NaiveAdam(lr=0.01))
