"""Matching of trajectories: the gradient is exact, cheap in memory, and mistakes show."""

import copy
import itertools
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from support.tiny import (
    CPU,
    NET,
    POSTER,
    Recorder,
    bits_of,
    double_distilled,
    double_real,
    flops,
)
from support.unrolled_problem import FLIP_ROTATE, Clock
from torch import Tensor

from distill_datasets.canvases.bases import Bases
from distill_datasets.canvases.canvas import Canvas
from distill_datasets.canvases.field import NeuralField
from distill_datasets.canvases.frequency import Frequency
from distill_datasets.canvases.gaussians import Gaussians
from distill_datasets.canvases.parameterized import Parameterized
from distill_datasets.canvases.poster import Poster
from distill_datasets.canvases.small import Small
from distill_datasets.distilled import Distilled
from distill_datasets.errors import DistillError
from distill_datasets.labels.fixed import Area
from distill_datasets.models.convnets import ConvNet
from distill_datasets.networks import inner_steps
from distill_datasets.networks.network import FlatNetwork, FreshSource, NetworkSource, Sampled
from distill_datasets.objectives.objective import Estimate
from distill_datasets.objectives.trajectory import Trajectory
from distill_datasets.runtime.draws import Draw, LaneDraw, rng_for
from distill_datasets.types import Batch, Shape
from distill_datasets.views.augment import Augment

PIXELS, CELLS, SIZE = "canvas.trained_CHW", "labels.cells_GK", "step_sizes.raw_T"
ALPHA = 0.1


class Expert(NetworkSource):
    """One expert in double precision, on a way of ten steps on real images."""

    def __init__(self, shape: Shape, network: ConvNet = NET) -> None:
        fresh = FreshSource(network, shape, CPU).sample(Clock())
        assert isinstance(fresh, FlatNetwork)
        self.network = fresh
        self.start_P = fresh.weights_P.double()
        self.target_P: Tensor | None = self.start_P
        images_BCHW, targets_BK = double_real(shape).batch(rng_for(5), 60)
        for _ in range(10):
            leaf_P = self.target_P.detach().requires_grad_()
            loss = F.cross_entropy(fresh(leaf_P, images_BCHW), targets_BK)
            self.target_P = self.target_P - 0.1 * torch.autograd.grad(loss, leaf_P)[0]

    def sample(self, draw: LaneDraw) -> Sampled:
        network = copy.deepcopy(self.network)
        network.weights_P, network.target_P = self.start_P, self.target_P
        return network


class Problem(NamedTuple):
    """Everything that the gradient is a function of, tiny and in double precision."""

    distilled: Distilled
    expert: Expert

    def estimate(self, objective: Trajectory, distilled: Distilled | None = None) -> Estimate:
        return objective.estimate(distilled or self.distilled, self.expert, double_real(), Clock())


def problem_of(canvas: Canvas | None = None, learned: bool = True) -> Problem:
    real = double_real()
    sizes = [ALPHA] if learned else []
    distilled = double_distilled(real, canvas or POSTER, step_sizes=sizes)
    return Problem(distilled, Expert(real.shape))


@pytest.fixture(scope="module")
def problem() -> Problem:
    return problem_of()


def trajectory(**changes: object) -> Trajectory:
    fields = {
        "steps": 5, "batch": 7, "step_size": ALPHA, "augment": FLIP_ROTATE,
        "differentiate": "recompute", "chunk": 5,
    }  # fmt: skip
    return Trajectory.model_validate(fields | changes)


def unrolled(problem: Problem, objective: Trajectory) -> dict[str, Tensor]:
    """The gradient through the whole graph, with the examples of `objective`."""
    distilled, network = problem.distilled, problem.expert.sample(Clock())
    start_P = weights_P = network.weights_P.detach().requires_grad_()
    learned = distilled.step_sizes()
    assert network.target_P is not None and learned is not None
    size = learned[0]
    for step in range(objective.steps):
        images_BCHW, targets_BK = objective._examples(distilled, step, Clock())
        loss = F.cross_entropy(network(weights_P, images_BCHW), targets_BK)
        (grad_P,) = torch.autograd.grad(loss, weights_P, create_graph=True)
        weights_P = weights_P - size * grad_P
    start_P = start_P.detach()
    far = int(objective.ignored * len(start_P))
    end_P, way_P = (each - network.target_P for each in (weights_P, start_P))
    loss = end_P[far:].norm() ** 2 / way_P[far:].norm() ** 2
    names, parameters = zip(*distilled.parameters.items(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


@pytest.mark.parametrize("differentiate", ["auto", "graph", "recompute"])
@pytest.mark.parametrize("batch", [None, 7])
@pytest.mark.parametrize("steps", [1, 5])
def test_every_way_gives_the_gradient_of_the_whole_graph(
    problem: Problem, steps: int, batch: int | None, differentiate: str
) -> None:
    objective = trajectory(steps=steps, batch=batch, differentiate=differentiate)
    expected, got = unrolled(problem, objective), problem.estimate(objective).grads
    assert got.keys() == expected.keys() == {PIXELS, CELLS, SIZE}
    for name, grad in expected.items():
        assert float(grad.norm()) > 0
        assert relative(got[name], grad) < 1e-10


def error(problem: Problem, objective: Trajectory, name: str, grad: Tensor) -> float:
    """How far a gradient is from a finite difference of the loss, relative to it."""
    rng = rng_for(0, "direction")
    direction = torch.randn(grad.shape, generator=rng, dtype=torch.float64)
    losses = []
    for size in (1e-6, -1e-6):
        moved = copy.deepcopy(problem.distilled)
        with torch.no_grad():
            moved.parameters[name].add_(direction, alpha=size)
        losses.append(problem.estimate(objective, moved).loss)
    derivative = (losses[0] - losses[1]) / 2e-6
    return abs(float((grad * direction).sum()) - derivative) / abs(derivative)


@pytest.mark.parametrize("name", [PIXELS, CELLS, SIZE])
def test_gradient_equals_a_finite_difference(problem: Problem, name: str) -> None:
    objective = trajectory()
    assert error(problem, objective, name, problem.estimate(objective).grads[name]) < 1e-6


@pytest.mark.parametrize("differentiate", ["graph", "recompute"])
def test_ignored_weights_move_and_do_not_count(problem: Problem, differentiate: str) -> None:
    objective = trajectory(ignored=0.4, differentiate=differentiate)
    expected, got = unrolled(problem, objective), problem.estimate(objective).grads
    for name, grad in expected.items():
        assert relative(got[name], grad) < 1e-10
    whole = problem.estimate(trajectory(differentiate=differentiate)).grads
    assert relative(whole[PIXELS], got[PIXELS]) > 0.01


DRAWN = [
    Small(ipc=1, side=5),
    Bases(ipc=1, bases=3),
    Frequency(ipc=1, kept=12),
    NeuralField(ipc=1, width=4, fit_steps=20),
    Gaussians(ipc=1, blobs=4, fit_steps=20),
]


@pytest.mark.parametrize("canvas", DRAWN, ids=lambda canvas: canvas.name)
def test_numbers_that_images_are_drawn_from_have_the_gradient_of_differences(
    canvas: Parameterized,
) -> None:
    problem, objective = problem_of(canvas), trajectory()
    grads = problem.estimate(objective).grads
    numbers = [name for name in grads if name.startswith("canvas.")]
    assert numbers
    for name in numbers:
        assert error(problem, objective, name, grads[name]) < 1e-5, name


def test_auto_keeps_a_graph_that_is_small_and_no_other(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways = {}
    for room in (0, inner_steps.GRAPH_BYTES):
        monkeypatch.setattr(inner_steps, "GRAPH_BYTES", room)
        shown = Recorder(problem.distilled)
        problem.estimate(trajectory(differentiate="auto", steps=3), shown)
        ways[room > 0] = len(shown.asked)
    assert ways == {True: 3, False: 1 + 3 + 3}  # the first step is tried, then all there and back


class AugmentedAnew(Trajectory):
    """Draws other motions on the way back than on the way there."""

    def _examples(self, distilled: Distilled, step: int, draw: Draw) -> Batch:
        images_BCHW, targets_BK = super()._examples(distilled, step, draw)
        if torch.is_grad_enabled():
            images_BCHW = images_BCHW.flip(-1)
        return Batch(images_BCHW, targets_BK)


class OrderForgotten(Trajectory):
    """Walks forward through the examples on the way back."""

    def _examples(self, distilled: Distilled, step: int, draw: Draw) -> Batch:
        back = torch.is_grad_enabled()
        return super()._examples(distilled, self.steps - 1 - step if back else step, draw)


class LabelsDetached(Trajectory):
    """Takes the labels for constants."""

    def _examples(self, distilled: Distilled, step: int, draw: Draw) -> Batch:
        images_BCHW, targets_BK = super()._examples(distilled, step, draw)
        return Batch(images_BCHW, targets_BK.detach() + 0 * targets_BK)


MISTAKES = {
    "second order in the weights left out": (PIXELS, trajectory(differentiate="first_order")),
    "one step fewer": (PIXELS, trajectory(steps=4)),
    "other step size": (PIXELS, trajectory(batch=6)),
    "augmented anew": (PIXELS, AugmentedAnew(**dict(trajectory()))),
    "order of the way back": (PIXELS, OrderForgotten(**dict(trajectory()))),
    "labels detached": (CELLS, LabelsDetached(**dict(trajectory()))),
    "step size to first order": (SIZE, trajectory(differentiate="first_order")),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_finite_difference_shows_a_planted_mistake(problem: Problem, mistake: str) -> None:
    name, wrong = MISTAKES[mistake]
    assert error(problem, trajectory(), name, problem.estimate(wrong).grads[name]) > 1e-3


def test_first_order_is_exact_for_one_step_and_near_for_ten(problem: Problem) -> None:
    cosines = {}
    for steps in (1, 10):
        exact, first = (
            problem.estimate(trajectory(steps=steps, differentiate=how)).grads
            for how in ("graph", "first_order")
        )
        for name in (PIXELS, CELLS, SIZE):
            if steps == 1:
                assert relative(first[name], exact[name]) < 1e-12
        cosines[steps] = float(
            F.cosine_similarity(first[PIXELS].flatten(), exact[PIXELS].flatten(), dim=0)
        )
    assert cosines[1] == pytest.approx(1)
    assert 0.9 < cosines[10] < 0.9999


def test_first_order_is_the_closed_form_of_tesla(problem: Problem) -> None:
    # with G the sum of all gradients: D L = |a|^2 + 2 b (t - s).G + b^2 |G|^2, and
    # every gradient is differentiated at weights that are held still
    objective = trajectory(differentiate="first_order")
    network = problem.expert.sample(Clock())
    learned = problem.distilled.step_sizes()
    assert learned is not None
    size = learned[0].item()
    start_P, target_P = network.weights_P, network.target_P
    assert target_P is not None
    weights_P, gradients = start_P, []
    for step in range(objective.steps):
        leaf_P = weights_P.detach().requires_grad_()
        images_BCHW, targets_BK = objective._examples(problem.distilled, step, Clock())
        loss = F.cross_entropy(network(leaf_P, images_BCHW), targets_BK)
        gradients.append(torch.autograd.grad(loss, leaf_P, create_graph=True)[0])
        weights_P = weights_P - size * gradients[-1]
    sum_P = torch.stack(gradients).sum(dim=0)
    away = (start_P - target_P).square().sum()
    linear = 2 * size * (target_P - start_P).dot(sum_P)
    loss = 1 + (linear + size**2 * sum_P.dot(sum_P)) / away
    estimate = problem.estimate(objective)
    assert estimate.loss == pytest.approx(loss.item(), rel=1e-9)
    (expected,) = torch.autograd.grad(loss, problem.distilled.parameters[PIXELS])
    assert relative(estimate.grads[PIXELS], expected) < 1e-10


class TheExperts(Distilled):
    """Shows the images that the expert was trained on."""

    def __init__(self, own: Distilled) -> None:
        vars(self).update(vars(own), count=60)
        self.images_NCHW, self.targets_NK = double_real().batch(rng_for(5), 60)

    def __call__(self, index_B: Tensor) -> Batch:
        return Batch(self.images_NCHW[index_B], self.targets_NK[index_B])


def test_loss_is_the_share_of_the_way_that_is_left() -> None:
    still = problem_of(learned=False)
    expert_images = TheExperts(still.distilled)

    def left(distilled: Distilled, **changes: object) -> float:
        objective = trajectory(
            batch=None, chunk=60, augment=Augment(), learn_step_size=False, **changes
        )
        return still.estimate(objective, distilled).loss

    # steps of no length leave the whole way, the expert's own steps leave nothing of it
    assert left(still.distilled, steps=10, step_size=1e-12) == pytest.approx(1)
    assert left(expert_images, steps=10) < 1e-20
    network = still.expert.sample(Clock())
    leaf_P = network.weights_P.detach().requires_grad_()
    loss = F.cross_entropy(network(leaf_P, expert_images.images_NCHW), expert_images.targets_NK)
    moved_P = leaf_P.detach() - ALPHA * torch.autograd.grad(loss, leaf_P)[0]
    assert network.target_P is not None
    far, near = (float((one_P - network.target_P).norm()) for one_P in (leaf_P.detach(), moved_P))
    assert left(expert_images, steps=1) == pytest.approx((near / far) ** 2, rel=1e-9)


def test_a_constant_step_size_moves_as_a_learned_one_of_that_value(problem: Problem) -> None:
    still = problem_of(learned=False).estimate(trajectory(learn_step_size=False))
    moved = problem.estimate(trajectory(step_size=0.7))  # the learned value counts
    assert still.loss == pytest.approx(moved.loss, rel=1e-6)
    assert still.metrics["step_size"] == ALPHA
    assert moved.metrics["step_size"] == pytest.approx(ALPHA, rel=1e-6)
    assert trajectory(step_size=0.7).step_sizes() == [0.7]
    assert trajectory(learn_step_size=False).step_sizes() == []


def test_every_pass_visits_all_examples_in_an_order_of_its_own(problem: Problem) -> None:
    shown = Recorder(problem.distilled)  # 12 examples: passes of 5, 5 and 2
    problem.estimate(trajectory(steps=6, batch=5), shown)
    there, back = shown.asked[:6], shown.asked[6:]
    assert back == there[::-1]
    assert [len(asked) for asked in there] == [5, 5, 2, 5, 5, 2]
    one, two = itertools.chain(*there[:3]), itertools.chain(*there[3:])
    assert sorted(one) == sorted(two) == list(range(12)) and there[:3] != there[3:]


@pytest.mark.parametrize("batch", [None, 12, 40])
def test_a_batch_as_large_as_the_set_takes_all_examples(
    problem: Problem, batch: int | None
) -> None:
    shown = Recorder(problem.distilled)
    problem.estimate(trajectory(steps=1, batch=batch), shown)
    assert shown.asked == [list(range(12))] * 2


def test_every_step_is_moved_by_its_own_draw(problem: Problem) -> None:
    objective = trajectory(batch=None, augment=Augment(operations=["flip"]))
    shown = [objective._examples(problem.distilled, step, Clock())[0] for step in (0, 1, 0)]
    assert torch.equal(shown[0], shown[2]) and not torch.equal(shown[0], shown[1])


def test_a_lane_above_the_limit_does_not_count(problem: Problem) -> None:
    loss = problem.estimate(trajectory()).loss
    skipped = problem.estimate(trajectory(skip_above=loss * 0.999))
    assert skipped.loss == loss and not skipped.counts
    assert all(not grad.any() for grad in skipped.grads.values())
    assert skipped.grads.keys() == {PIXELS, CELLS, SIZE}
    taken = problem.estimate(trajectory(skip_above=loss * 1.001))
    assert taken.counts and taken.grads[PIXELS].any()


@pytest.mark.parametrize(
    ("target", "message"),
    [("start", "the same weights.*raise distill.networks.gap"), ("none", "without a target")],
)
def test_an_expert_that_went_nowhere_is_refused(target: str, message: str) -> None:
    problem = problem_of()
    problem.expert.target_P = problem.expert.start_P.clone() if target == "start" else None
    with pytest.raises(DistillError, match=message):
        problem.estimate(trajectory())


def test_estimate_is_a_pure_function(problem: Problem) -> None:
    before = bits_of(problem.distilled)
    stream = torch.get_rng_state()
    first, second = (problem.estimate(trajectory()) for _ in range(2))
    assert first.loss == second.loss
    assert all(torch.equal(first.grads[name], second.grads[name]) for name in first.grads)
    assert all(torch.equal(before[name], now) for name, now in bits_of(problem.distilled).items())
    assert torch.equal(stream, torch.get_rng_state())


def most_kept(problem: Problem, steps: int) -> int:
    """The largest number of values that autograd keeps at once during one estimate."""
    now = most = 0

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal now, most
            self.tensor = tensor
            now += tensor.numel()
            most = max(most, now)

        def __del__(self) -> None:
            nonlocal now
            now -= self.tensor.numel()

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        problem.estimate(trajectory(steps=steps, batch=None))
    assert now == 0
    return most


def test_autograd_keeps_the_graph_of_one_step_whatever_their_number(problem: Problem) -> None:
    assert most_kept(problem, 8) == most_kept(problem, 2)


@pytest.mark.parametrize("differentiate", ["graph", "recompute", "first_order"])
@pytest.mark.parametrize(("steps", "batch"), [(3, None), (3, 3)])
def test_work_is_what_the_counter_of_torch_counts(
    differentiate: str, steps: int, batch: int | None
) -> None:
    shape, network = Shape(3, 16, 16, 10), ConvNet(depth=2, width=32)
    real = double_real(shape)
    distilled = double_distilled(real, Poster(height=20, width=24, crops=[2, 4]), Area())
    expert = Expert(shape, network)
    objective = trajectory(
        steps=steps, batch=batch, differentiate=differentiate, learn_step_size=False
    )
    sampled = expert.sample(Clock())
    image = torch.zeros(1, 3, 16, 16, dtype=torch.float64)
    per_image = flops(lambda: sampled(sampled.weights_P, image))
    spent = flops(lambda: objective.estimate(distilled, expert, real, Clock()))
    assert objective.work(per_image, 8, 10) == pytest.approx(spent, rel=0.1)


def test_numbers_that_make_no_sense_are_refused() -> None:
    for wrong in ({"steps": 0}, {"batch": 0}, {"step_size": 0.0}, {"skip_above": -1.0}):
        with pytest.raises(ValidationError, match="greater than 0"):
            trajectory(**wrong)
