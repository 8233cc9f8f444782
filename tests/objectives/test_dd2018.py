"""Dataset Distillation and SLDD: learned step sizes, a fixed order, attacks, few soft labels.

Shape suffixes: N examples, B a batch, K classes, C channels, H W pixels, P all weights.
"""

import copy
import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from support.tiny import (
    CPU,
    distilled_of,
    double_distilled,
    double_real,
    flat_real,
    images_of,
    toy_real,
)
from support.unrolled_problem import (
    CELLS,
    FLIP_ROTATE,
    PERTURBATION,
    PIXELS,
    Clock,
    Problem,
    unrolled,
)
from torch import Tensor

from distill_datasets.canvases.pixels import Pixels
from distill_datasets.distilled import Distilled
from distill_datasets.labels.fixed import Area
from distill_datasets.labels.learned import Learned
from distill_datasets.models.convnets import ConvNet
from distill_datasets.networks.network import FreshSource, Layers, NetworkSource
from distill_datasets.objectives.objective import Context
from distill_datasets.objectives.unrolled import Attack, Unrolled
from distill_datasets.optimizers import Optimizer, Sgd
from distill_datasets.runtime.draws import LaneDraw, draws, rng_for
from distill_datasets.types import Batch, Shape

STEPS = 5
RATES = "step_sizes.raw_T"
PLAIN = Sgd(lr=0.3, momentum=0.0)


def descent(**changes: Any) -> Unrolled:  # noqa: ANN401
    """Five steps of gradient descent in a fixed order of three batches, all differentiated."""
    fields: dict[str, Any] = {
        "inner_steps": STEPS,
        "window": STEPS,
        "batch": 4,
        "optimizer": PLAIN,
        "learn_step_sizes": True,
        "order": "fixed",
    }
    return unrolled(**fields | changes)


@pytest.fixture(scope="module")
def problem() -> Problem:
    """The problem of the meta-gradient, and five different step sizes."""
    found = Problem()
    sizes = [0.1, 0.4, 0.2, 0.3, 0.25]
    found.distilled = double_distilled(found.real, step_sizes=sizes)
    return found


def derivative(problem: Problem, objective: Unrolled, name: str, direction: Tensor) -> float:
    """The derivative of the loss along a direction of one parameter, without autograd."""
    losses = []
    for size in (PERTURBATION, -PERTURBATION):
        moved = copy.deepcopy(problem.distilled)
        with torch.no_grad():
            moved.parameters[name].add_(direction, alpha=size)
        losses.append(objective.estimate(moved, problem.networks, problem.real, Clock()).loss)
    return (losses[0] - losses[1]) / (2 * PERTURBATION)


def error(problem: Problem, objective: Unrolled, wrong: Unrolled | None = None) -> float:
    """How far the gradients of the step sizes are from the derivatives, relative to the largest."""
    grad_T = problem.estimate(wrong or objective).grads[RATES]
    derivatives = [derivative(problem, objective, RATES, one) for one in torch.eye(STEPS).double()]
    expected_T = torch.tensor(derivatives, dtype=torch.float64)
    return float((grad_T - expected_T).abs().max() / expected_T.abs().max())


@pytest.mark.parametrize("differentiate", ["graph", "recompute"])
def test_gradients_of_the_step_sizes_equal_finite_differences(
    problem: Problem, differentiate: str
) -> None:
    assert error(problem, descent(differentiate=differentiate)) < 1e-6
    decayed = Sgd(lr=0.3, momentum=0.0, weight_decay=0.05)
    assert error(problem, descent(differentiate=differentiate, optimizer=decayed)) < 1e-6


@pytest.mark.parametrize("name", [PIXELS, CELLS])
def test_gradients_of_pixels_and_labels_hold_with_learned_step_sizes(
    problem: Problem, name: str
) -> None:
    objective = descent()
    grad = problem.estimate(objective).grads[name]
    direction = torch.randn(grad.shape, generator=rng_for(0, "x"), dtype=torch.float64)
    expected = derivative(problem, objective, name, direction)
    assert float((grad * direction).sum()) == pytest.approx(expected, rel=1e-6)


class OneLate(Unrolled):
    """Takes the step size of the step before."""

    def _rule(self, distilled: Distilled, step: int) -> Optimizer:
        return super()._rule(distilled, max(0, step - 1))


class Detached(Unrolled):
    """Takes the last step size for a constant."""

    def _rule(self, distilled: Distilled, step: int) -> Optimizer:
        rule = super()._rule(distilled, step)
        last = step == self.inner_steps - 1
        return rule.model_copy(update={"lr": rule.lr.detach()}) if last else rule  # type: ignore[attr-defined]


@pytest.mark.parametrize("mistake", [OneLate, Detached])
@pytest.mark.parametrize("differentiate", ["graph", "recompute"])
def test_finite_differences_show_a_planted_mistake(
    problem: Problem, differentiate: str, mistake: type[Unrolled]
) -> None:
    right = descent(differentiate=differentiate)
    assert error(problem, right, mistake(**dict(right))) > 1e-3


def test_keeping_the_graph_and_recomputing_agree(problem: Problem) -> None:
    graph, recompute = (
        problem.estimate(descent(differentiate=how), draws(4)) for how in ("graph", "recompute")
    )
    assert graph.loss == pytest.approx(recompute.loss, rel=1e-12)
    for name, grad in graph.grads.items():
        assert (grad - recompute.grads[name]).norm() < 1e-9 * grad.norm()
    assert set(graph.grads) == {PIXELS, CELLS, RATES}


class Slopes:
    """Logits are the mean pixel times one weight per class."""

    def __init__(self) -> None:
        self.weights_P = torch.zeros(2)
        self.shapes = [torch.Size([2])]
        self.target_P = None

    def __call__(self, weights_P: Tensor, images_BCHW: Tensor) -> Tensor:
        return images_BCHW.mean(dim=(1, 2, 3))[:, None] * weights_P

    def layers(self, weights_P: Tensor, images_BCHW: Tensor) -> Layers:
        raise AssertionError


class SlopesSource(NetworkSource):
    """The same zero weights every time."""

    def sample(self, draw: LaneDraw) -> Slopes:
        return Slopes()


@pytest.mark.parametrize("differentiate", ["graph", "recompute"])
def test_one_step_is_what_a_hand_computes(differentiate: str) -> None:
    """Examples of 1/4 (class 0) and 3/4 (class 1), real images of 0 (class 0) and 1 (class 1).

    At zero weights the gradient is (1/8, -1/8), so that after the step the black image has the
    loss log 2 and the white one log(1 + exp(-rate / 4)).
    """
    rate = 0.4
    flat_NCHW = torch.tensor([0.25, 0.75])[:, None, None, None].repeat(1, 1, 8, 8)
    distilled = images_of(flat_NCHW, torch.eye(2), step_sizes=[rate])
    objective = descent(
        inner_steps=1, window=1, batch=None, real_batch=2, differentiate=differentiate, augment={}
    )
    found = objective.estimate(distilled, SlopesSource(), flat_real([0, 255]), Clock())
    white = math.exp(-rate / 4) / (1 + math.exp(-rate / 4))
    assert found.loss == pytest.approx((math.log(2) + math.log1p(math.exp(-rate / 4))) / 2)
    of_rate = -white / 8
    raw = of_rate * (1 - math.exp(-rate))  # the derivative of a softplus whose value is the rate
    assert found.grads[RATES].tolist() == pytest.approx([raw])


def test_step_sizes_start_at_the_rate_of_the_optimizer() -> None:
    assert descent().step_sizes() == [0.3] * STEPS
    assert descent(learn_step_sizes=False).step_sizes() == []
    learned = double_distilled(double_real(), step_sizes=[0.3, 0.001]).step_sizes()
    assert learned is not None and learned.tolist() == pytest.approx([0.3, 0.001], rel=1e-5)


def test_a_batch_of_the_fixed_order_takes_every_so_manyth_example() -> None:
    order = descent(batch=4).published_order(12)
    assert order[:3] == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
    assert order[3:] == order[:2]
    assert descent(batch=None).published_order(3) == [[0, 1, 2]] * STEPS
    assert descent(batch=9).published_order(3) == [[0, 1, 2]] * STEPS
    assert descent(order="shuffled").published_order(12) == []


def test_every_batch_of_the_fixed_order_has_every_class_and_no_example_is_left_out() -> None:
    order = descent(batch=3).published_order(12)  # four examples of three classes in order
    assert all(sorted(index // 4 for index in step) == [0, 1, 2] for step in order)
    rest = descent(batch=4).published_order(14)
    assert sorted(index for step in rest[:3] for index in step) == list(range(14))


class Asked(Distilled):
    """Remembers which examples were asked for."""

    def __init__(self, own: Distilled) -> None:
        vars(self).update(vars(own))
        self.seen: list[list[int]] = []

    def __call__(self, index_B: Tensor) -> Batch:
        self.seen.append(index_B.tolist())
        return super().__call__(index_B)


def test_inner_steps_follow_the_published_order(problem: Problem) -> None:
    shown, objective = Asked(problem.distilled), descent()
    objective.estimate(shown, problem.networks, problem.real, Clock())
    assert shown.seen == objective.published_order(12)


def test_an_attack_is_the_loss_on_real_images_with_changed_labels(problem: Problem) -> None:
    labels_N = problem.real.train.labels_N
    changed = copy.copy(problem.real)
    changed.train = problem.real.train._replace(labels_N=torch.where(labels_N == 1, 2, labels_N))
    attack = problem.estimate(descent(attack=Attack(attacked=1, target=2)))
    expected = descent().estimate(problem.distilled, problem.networks, changed, Clock())
    assert attack.loss == pytest.approx(expected.loss, rel=1e-12)
    assert torch.equal(attack.grads[PIXELS], expected.grads[PIXELS])
    assert attack.loss != pytest.approx(problem.estimate(descent()).loss, rel=1e-3)


def test_an_attack_names_two_classes_of_the_source() -> None:
    with pytest.raises(ValidationError, match="expected two classes, got 1"):
        Attack(attacked=1, target=1)
    objective = descent(attack=Attack(attacked=0, target=3), order="shuffled")
    assert not list(objective.problems(Context(shape=Shape(1, 8, 8, 4))))
    (problem,) = objective.problems(Context(shape=Shape(1, 8, 8, 3)))
    assert "attack.target: class 3 of a source with 3" in problem and "0..2" in problem
    assert objective.attacks() == (0, 3) and descent().attacks() is None


def test_a_fixed_order_that_never_comes_to_some_examples_is_refused() -> None:
    assert not list(descent(batch=2).problems(Context(examples=10)))
    (problem,) = descent(batch=2).problems(Context(examples=12))
    assert "order: 12 examples make 6 batches of 2, and 5 inner" in problem
    assert not list(descent(batch=2, order="shuffled").problems(Context(examples=12)))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"optimizer": {"name": "adam", "lr": 0.1}}, r"'name': 'adam'.*set optimizer: \{name: sgd"),
        ({"optimizer": {"name": "sgd", "lr": 0.1}}, r"'momentum': 0.9.*without momentum"),
        ({"window": 4}, "got window 4 of 5 inner_steps with placement 'end', expected window 5"),
        ({"placement": "random"}, "placement 'random', expected window 5 with placement 'end'"),
    ],
)
def test_step_sizes_that_cannot_be_learned_are_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        descent(**changes)


def test_fewer_images_than_classes_learn_labels_of_all_classes() -> None:
    """SLDD: two images, three classes; the labels' gradients reach the class without an image."""
    real = toy_real()
    distilled = distilled_of(real, Pixels(count=2), Learned(), step_sizes=[0.1] * STEPS)
    objective = descent(batch=None, augment=FLIP_ROTATE)
    networks = FreshSource(ConvNet(depth=1, width=4), real.shape, CPU)
    found = objective.estimate(distilled, networks, real, Clock())
    grad_GK = found.grads["labels.cells_GK"]
    assert grad_GK.shape == (2, 3)
    assert bool((grad_GK[:, 2] < 0).all())  # more of class 2 helps
    (problem,) = Area().problems(Pixels(count=2), real.shape)
    assert "the classes [2] are in no example" in problem
