"""The meta-gradient: exact, and every mistake that is easily made shows.

The reference is a central finite difference in double precision. Only tracked steps are
differentiated, so the warm-up has to see unperturbed values: `AfterWarmUp` takes care of that.
"""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from tiny import double_distilled, double_networks, toy_real
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from distill_datasets.augment import Augment
from distill_datasets.canvases.pixels import PixelImages
from distill_datasets.canvases.poster import Poster
from distill_datasets.data.decoded import RealData
from distill_datasets.inner import Adam, Optimizer, Sgd, State
from distill_datasets.labels.table import Area, LearnedLabels
from distill_datasets.networks.zoo import ConvNet
from distill_datasets.objectives.unrolled import Point, Unrolled
from distill_datasets.runtime import draws, rng_for
from distill_datasets.types import Batch, Distilled, Draw, Estimate, NetworkSource, Sampled, Shape

WARM_UP = 3
WINDOW = 4
PIXELS, CELLS = "canvas.trained_CHW", "labels.cells_GK"
FLIP_ROTATE = Augment(operations=["flip", "rotate"])
PERTURBATION = 1e-6
# top-left corners (y, x) of the crops of the problem's poster: 12 x 16 px, 3 x 4 crops of 8 px
CORNERS = [(y, x) for y in (0, 2, 4) for x in (0, 3, 5, 8)]


class Clock:
    """A `Draw` that remembers which inner step was asked for last."""

    def __init__(self) -> None:
        self.step = 0

    def __call__(self, *what: str | int) -> torch.Generator:
        if what[0] == "inner":
            self.step = int(what[1])
        return rng_for(3, *what)


class AfterWarmUp(Distilled):
    """Shows its own values in tracked steps, and those of `before` during the warm-up."""

    def __init__(self, own: Distilled, before: Distilled, clock: Clock) -> None:
        super().__init__(own.canvas, own.labels, own.mean_C, own.std_C)
        self._before = (before,)  # a tuple, so that its parameters are not ours
        self._clock = clock

    def forward(self, index_B: Tensor) -> Batch:
        if self._clock.step < WARM_UP:
            return self._before[0](index_B)
        return super().forward(index_B)


class Problem:
    """Everything that a meta-gradient is a function of, tiny and in double precision."""

    def __init__(self) -> None:
        self.real = toy_real()
        self.networks: NetworkSource = double_networks()
        self.distilled = double_distilled(self.real)

    def estimate(self, objective: Unrolled, draw: Draw | None = None) -> Estimate:
        return objective.estimate(self.distilled, self.networks, self.real, draw or Clock())

    def slope(self, objective: Unrolled, name: str, direction: Tensor) -> float:
        """The derivative of the loss along a direction of one parameter, without autograd."""
        losses = []
        for size in (PERTURBATION, -PERTURBATION):
            moved, clock = copy.deepcopy(self.distilled), Clock()
            with torch.no_grad():
                moved.get_parameter(name).add_(direction, alpha=size)
            shown = AfterWarmUp(moved, self.distilled, clock)
            losses.append(objective.estimate(shown, self.networks, self.real, clock).loss)
        return (losses[0] - losses[1]) / (2 * PERTURBATION)

    def error(self, objective: Unrolled, name: str, grads: dict[str, Tensor]) -> float:
        """How far `grads` is from the slope of `objective`, relative to it: the worst of two."""
        errors = []
        for seed in range(2):
            rng = rng_for(seed, "direction")
            direction = torch.randn(grads[name].shape, generator=rng, dtype=torch.float64)
            slope = self.slope(objective, name, direction)
            errors.append(abs(float((grads[name] * direction).sum()) - slope) / abs(slope))
        return max(errors)


@pytest.fixture(scope="module")
def problem() -> Problem:
    return Problem()


def unrolled(**changes: object) -> Unrolled:
    """Three steps of warm-up, then a window of four; `changes` replace fields."""
    fields: dict[str, object] = {
        "inner_steps": WARM_UP + WINDOW,
        "window": WINDOW,
        "placement": "end",
        "batch": 7,
        "real_batch": 24,
        "optimizer": Adam(lr=0.01),
        "augment": FLIP_ROTATE,
        "chunk": 10,
    }
    return Unrolled.model_validate(fields | changes)


RULES = {"adam": Adam(lr=0.01), "sgd": Sgd(lr=0.1, momentum=0.9, weight_decay=0.01)}


@pytest.mark.parametrize("name", [PIXELS, CELLS])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("differentiate", ["graph", "recompute"])
def test_meta_gradient_equals_a_finite_difference(
    problem: Problem, differentiate: str, rule: str, name: str
) -> None:
    objective = unrolled(differentiate=differentiate, optimizer=RULES[rule])
    grads = problem.estimate(objective).grads
    assert problem.error(objective, name, grads) < 1e-6


class CurvatureForgotten(Unrolled):
    """Takes the gradient of a step for independent of the weights it was computed at."""

    def _tracked_step(
        self, distilled: Distilled, network: Sampled, point: Point, draw: Draw
    ) -> Point:
        images_BCHW, targets_BK = self._examples(distilled, point.step, draw)
        leaf_P = point.weights_P.detach().requires_grad_()
        loss = F.cross_entropy(network(leaf_P, images_BCHW), targets_BK)
        (grad_P,) = torch.autograd.grad(loss, leaf_P, create_graph=True)
        after = self.optimizer.step(point.weights_P, point.state, grad_P, point.step + 1)
        return Point(after[0], after[1], point.step + 1)


class StateReset(Unrolled):
    """Starts the window with the state of a new optimizer."""

    def _through_graph(
        self, distilled: Distilled, network: Sampled, start: Point, real: RealData, draw: Draw
    ) -> Estimate:
        fresh = start._replace(state=self.optimizer.start(start.weights_P))
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
    objective, right = unrolled(differentiate="recompute"), Distilled.forward
    with monkeypatch.context() as patch:
        patch.setattr(
            Distilled,
            "forward",
            lambda self, index_B: right(self, index_B)._replace(
                targets_BK=right(self, index_B).targets_BK.detach()
            ),
        )
        grads = problem.estimate(objective).grads
    assert problem.error(objective, CELLS, grads) > 1e-3


def test_finite_difference_shows_labels_whose_normalization_is_detached(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(self: LearnedLabels, index_B: Tensor) -> Tensor:
        mixed_BK = self.mix_NG.index_select(0, index_B) @ self.cells_GK
        return mixed_BK / mixed_BK.sum(dim=1, keepdim=True).detach()

    objective = unrolled()
    with monkeypatch.context() as patch:
        patch.setattr(LearnedLabels, "forward", wrong)
        grads = problem.estimate(objective).grads
    assert problem.error(objective, CELLS, grads) > 1e-3


@pytest.mark.parametrize("differentiate", ["graph", "recompute"])
def test_the_scale_of_learned_labels_has_no_gradient(problem: Problem, differentiate: str) -> None:
    grad_GK = problem.estimate(unrolled(differentiate=differentiate)).grads[CELLS]
    cells_GK = problem.distilled.get_parameter(CELLS).detach()
    along_scale = float((cells_GK * grad_GK).sum())
    assert abs(along_scale) < 1e-12 * float(cells_GK.norm() * grad_GK.norm())


class Recorder(Distilled):
    """Remembers which examples were asked for."""

    def __init__(self, own: Distilled) -> None:
        super().__init__(own.canvas, own.labels, own.mean_C, own.std_C)
        self.asked: list[list[int]] = []

    def forward(self, index_B: Tensor) -> Batch:
        self.asked.append(index_B.tolist())
        return super().forward(index_B)


@pytest.mark.parametrize("differentiate", ["graph", "recompute"])
def test_pixels_of_no_sampled_crop_get_a_gradient_of_exactly_zero(
    problem: Problem, differentiate: str
) -> None:
    shown = Recorder(problem.distilled)
    objective = unrolled(inner_steps=1, window=1, batch=1, differentiate=differentiate)
    grad_CHW = objective.estimate(shown, problem.networks, problem.real, Clock()).grads[PIXELS]
    (top, left) = CORNERS[shown.asked[0][0]]
    inside_HW = torch.zeros(grad_CHW.shape[1:], dtype=torch.bool)
    inside_HW[top : top + 8, left : left + 8] = True
    assert grad_CHW[0, ~inside_HW].count_nonzero() == 0
    assert grad_CHW[0, inside_HW].count_nonzero() > 32


def test_a_poster_of_one_crop_has_the_gradient_of_that_image_alone(problem: Problem) -> None:
    canvas = Poster(height=8, width=8, crops=1, init_std=0.05)
    poster = double_distilled(problem.real, canvas, Area())
    image = PixelImages(poster.canvas.originals()[0][None], ipc=1)
    alone = Distilled(image, poster.labels, poster.mean_C, poster.std_C)
    objective = unrolled()
    draw = Clock()
    expected = objective.estimate(alone, problem.networks, problem.real, draw)
    got = objective.estimate(poster, problem.networks, problem.real, draw)
    assert got.loss == pytest.approx(expected.loss, rel=1e-12)
    torch.testing.assert_close(
        got.grads[PIXELS], expected.grads["canvas.trained_NCHW"][0], rtol=1e-9, atol=0
    )


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
    assert graph.loss == recompute.loss and graph.metrics == recompute.metrics
    for name in (PIXELS, CELLS):
        difference = (graph.grads[name] - recompute.grads[name]).norm()
        assert difference < 1e-9 * graph.grads[name].norm()


class Alive:
    """Counts the values that autograd keeps for backward passes, and their largest number."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def pack(self, tensor: Tensor) -> "Kept":
        return Kept(self, tensor)


class Kept:
    """One tensor that autograd keeps."""

    def __init__(self, alive: Alive, tensor: Tensor) -> None:
        self.tensor, self._alive = tensor, alive
        alive.now += tensor.numel()
        alive.most = max(alive.most, alive.now)

    def __del__(self) -> None:
        self._alive.now -= self.tensor.numel()


def most_kept(problem: Problem, differentiate: str, window: int) -> int:
    """The largest number of values kept for backward passes during one estimate."""
    alive = Alive()
    with torch.autograd.graph.saved_tensors_hooks(alive.pack, lambda kept: kept.tensor):
        problem.estimate(unrolled(differentiate=differentiate, inner_steps=window, window=window))
    assert alive.now == 0
    return alive.most


def test_recomputing_keeps_the_graph_of_one_step_whatever_the_window(problem: Problem) -> None:
    assert most_kept(problem, "recompute", 8) == most_kept(problem, "recompute", 2)


def test_keeping_the_graph_grows_with_the_window(problem: Problem) -> None:
    # the reference for the test above: the count does see a graph that grows
    assert most_kept(problem, "graph", 8) > 3 * most_kept(problem, "graph", 2)


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


def test_random_placement_stops_after_every_number_of_steps_from_window_to_the_end(
    problem: Problem,
) -> None:
    objective = unrolled(inner_steps=4, window=2, placement="random", batch=2, real_batch=2)
    stops = [problem.estimate(objective, draws(seed)).metrics["inner_steps"] for seed in range(30)]
    assert set(stops) == {2, 3, 4}


def test_placement_at_the_end_takes_all_steps(problem: Problem) -> None:
    objective = unrolled(inner_steps=5, window=2, batch=2, real_batch=2)
    stops = {problem.estimate(objective, draws(seed)).metrics["inner_steps"] for seed in range(5)}
    assert stops == {5}


@pytest.mark.parametrize("differentiate", ["graph", "recompute"])
def test_estimate_is_a_pure_function(problem: Problem, differentiate: str) -> None:
    before = copy.deepcopy(problem.distilled.state_dict())
    stream = torch.get_rng_state()
    first, second = (problem.estimate(unrolled(differentiate=differentiate)) for _ in range(2))
    assert first.loss == second.loss
    assert all(torch.equal(first.grads[name], second.grads[name]) for name in (PIXELS, CELLS))
    after = problem.distilled.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in problem.distilled.parameters())
    assert torch.equal(stream, torch.get_rng_state())


def test_an_inner_step_takes_different_examples_in_order(problem: Problem) -> None:
    shown = Recorder(problem.distilled)
    unrolled().estimate(shown, problem.networks, problem.real, Clock())
    assert len(shown.asked) == WARM_UP + WINDOW
    for asked in shown.asked:
        assert len(asked) == 7 and asked == sorted(set(asked))
    assert len({tuple(asked) for asked in shown.asked}) > 1


@pytest.mark.parametrize("batch", [None, 12, 13])
def test_a_batch_as_large_as_the_set_takes_all_examples(
    problem: Problem, batch: int | None
) -> None:
    shown = Recorder(problem.distilled)
    objective = unrolled(batch=batch, inner_steps=1, window=1)
    objective.estimate(shown, problem.networks, problem.real, Clock())
    assert shown.asked == [list(range(12))]


def test_both_ways_of_differentiating_see_the_same_examples(problem: Problem) -> None:
    seen = []
    for differentiate in ("graph", "recompute"):
        shown = Recorder(problem.distilled)
        objective = unrolled(differentiate=differentiate)
        objective.estimate(shown, problem.networks, problem.real, Clock())
        seen.append(shown.asked)
    graph, recompute = seen
    # recomputing asks once more for every step of the window, backward
    assert recompute == graph + graph[: WARM_UP - 1 : -1]


def test_chunks_of_the_real_batch_change_only_the_memory(problem: Problem) -> None:
    whole, chunked = (problem.estimate(unrolled(chunk=chunk)) for chunk in (24, 7))
    assert chunked.loss == pytest.approx(whole.loss, rel=1e-12)
    for name in (PIXELS, CELLS):
        torch.testing.assert_close(chunked.grads[name], whole.grads[name], rtol=1e-8, atol=1e-14)


class Seen:
    """Networks that remember the images they were shown."""

    def __init__(self, source: NetworkSource) -> None:
        self._source = source
        self.images: list[Tensor] = []

    def sample(self, rng: torch.Generator) -> Sampled:
        network = self._source.sample(rng)
        images = self.images

        class Remembering:
            weights_P = network.weights_P

            def __call__(self, weights_P: Tensor, images_BCHW: Tensor) -> Tensor:
                images.append(images_BCHW.detach())
                return network(weights_P, images_BCHW)

        return Remembering()


def test_real_images_are_augmented_like_distilled_ones(problem: Problem) -> None:
    networks, draw = Seen(problem.networks), Clock()
    objective = unrolled(augment=Augment(operations=["flip"]), chunk=24)
    objective.estimate(problem.distilled, networks, problem.real, draw)
    plain = problem.real.batch(draw("real"), 24).images_BCHW
    shown = networks.images[-1]
    as_it_was = (shown == plain).flatten(1).all(dim=1)
    flipped = (shown == plain.flip(-1)).flatten(1).all(dim=1)
    assert bool((as_it_was | flipped).all())
    assert 4 < int(flipped.sum()) < 20


def test_a_window_longer_than_the_training_is_refused() -> None:
    with pytest.raises(ValidationError, match="window: 8 steps do not fit into inner_steps: 7"):
        unrolled(window=8)


@pytest.mark.parametrize("differentiate", ["graph", "recompute"])
def test_work_is_what_the_counter_of_torch_counts(differentiate: str) -> None:
    shape = Shape(3, 16, 16, 10)
    real, network = toy_real(shape, per_class=8), ConvNet(depth=2, width=32)
    canvas = Poster(height=20, width=24, crops=[2, 4])
    distilled = double_distilled(real, canvas)
    networks = double_networks(shape, network)
    objective = unrolled(differentiate=differentiate, batch=8, real_batch=16)

    def counted(work: Callable[[], object]) -> int:
        with FlopCounterMode(display=False) as counter:
            work()
        return counter.get_total_flops()

    sampled = networks.sample(rng_for(0))
    image = torch.zeros(1, 3, 16, 16, dtype=torch.float64)
    per_image = counted(lambda: sampled(sampled.weights_P, image))
    spent = counted(lambda: objective.estimate(distilled, networks, real, Clock()))
    assert objective.work(per_image, 8) == pytest.approx(spent, rel=0.1)
