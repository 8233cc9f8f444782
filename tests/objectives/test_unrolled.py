"""The unrolled objective: what it looks at, when it stops, what it keeps, and what it costs."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from support.tiny import (
    Recorder,
    bits_of,
    double_distilled,
    double_networks,
    double_real,
    flops,
    images_of,
)
from support.unrolled_problem import (
    CELLS,
    PIXELS,
    WARM_UP,
    WINDOW,
    Clock,
    Problem,
    unrolled,
)
from torch import Tensor

from distill_datasets.canvases.poster import Poster
from distill_datasets.labels.fixed import Area
from distill_datasets.models.convnets import ConvNet
from distill_datasets.networks.network import NetworkSource, Sampled
from distill_datasets.runtime.draws import draws
from distill_datasets.selection.random import Noise
from distill_datasets.types import Shape
from distill_datasets.views.augment import Augment

# top-left corners (y, x) of the crops of the problem's poster: 12 x 16 px, 3 x 4 crops of 8 px
CORNERS = [(y, x) for y in (0, 2, 4) for x in (0, 3, 5, 8)]


@pytest.fixture(scope="module")
def problem() -> Problem:
    return Problem()


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
    canvas = Poster(height=8, width=8, crops=1, init=Noise(std=0.05))
    poster = double_distilled(problem.real, canvas, Area())
    alone = images_of(
        poster.stored()[0][None], poster.targets(torch.arange(1)), poster.space, "sigmoid"
    )
    objective = unrolled()
    draw = Clock()
    expected = objective.estimate(alone, problem.networks, problem.real, draw)
    got = objective.estimate(poster, problem.networks, problem.real, draw)
    assert got.loss == pytest.approx(expected.loss, rel=1e-12)
    torch.testing.assert_close(
        got.grads[PIXELS], expected.grads["canvas.trained_NCHW"][0], rtol=1e-9, atol=0
    )


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


@pytest.mark.parametrize("differentiate", ["graph", "recompute"])
def test_chunks_of_a_batch_change_nothing_but_rounding(
    problem: Problem, differentiate: str
) -> None:
    # 7 distilled and 24 real images of unequal chunks: 3 + 3 + 1 and 8 times 3
    whole, chunked = (
        problem.estimate(unrolled(differentiate=differentiate, chunk=chunk)) for chunk in (100, 3)
    )
    assert chunked.loss == pytest.approx(whole.loss, rel=1e-12)
    for name, expected in whole.grads.items():
        torch.testing.assert_close(chunked.grads[name], expected, rtol=1e-8, atol=1e-12)


def test_recomputing_keeps_the_graph_of_one_chunk(problem: Problem) -> None:
    kept = {}
    for chunk in (6, 2):
        alive = Alive()
        with torch.autograd.graph.saved_tensors_hooks(alive.pack, lambda kept: kept.tensor):
            problem.estimate(
                unrolled(differentiate="recompute", batch=6, real_batch=6, chunk=chunk)
            )
        kept[chunk] = alive.most
    assert kept[2] < 0.5 * kept[6]


def test_recomputing_keeps_the_graph_of_one_step_whatever_the_window(problem: Problem) -> None:
    assert most_kept(problem, "recompute", 8) == most_kept(problem, "recompute", 2)


def test_keeping_the_graph_grows_with_the_window(problem: Problem) -> None:
    # the reference for the test above: the count does see a graph that grows
    assert most_kept(problem, "graph", 8) > 3 * most_kept(problem, "graph", 2)


def test_random_placement_stops_after_every_number_of_steps_from_window_to_the_end(
    problem: Problem,
) -> None:
    objective = unrolled(inner_steps=4, window=2, placement="random", batch=2, real_batch=2)
    stops = [problem.estimate(objective, draws(seed)).metrics["inner_steps"] for seed in range(30)]
    assert set(stops) == {2, 3, 4}


def test_a_shortest_run_is_never_undercut_and_no_other_number_of_steps_is_left_out(
    problem: Problem,
) -> None:
    objective = unrolled(
        inner_steps=6, window=2, shortest=4, placement="random", batch=2, real_batch=2
    )
    stops = [problem.estimate(objective, draws(seed)).metrics["inner_steps"] for seed in range(30)]
    assert set(stops) == {4, 5, 6}
    # 5 steps on average, of which 2 are differentiated
    common = {"inner_steps": 5, "window": 2, "placement": "end", "batch": 2, "real_batch": 2}
    assert objective.work(1.0, 9, 3) == unrolled(**common).work(1.0, 9, 3)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"shortest": 1}, "got 1, expected at least the window of 2 and at most inner_steps: 4"),
        ({"shortest": 5}, "got 5, expected at least the window of 2 and at most inner_steps: 4"),
        ({"shortest": 3, "placement": "end"}, "set placement: random, or leave it out"),
    ],
)
def test_a_shortest_run_that_cannot_be_is_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        unrolled(**{"inner_steps": 4, "window": 2, "placement": "random", **fields})


def test_placement_at_the_end_takes_all_steps(problem: Problem) -> None:
    objective = unrolled(inner_steps=5, window=2, batch=2, real_batch=2)
    stops = {problem.estimate(objective, draws(seed)).metrics["inner_steps"] for seed in range(5)}
    assert stops == {5}


@pytest.mark.parametrize("differentiate", ["graph", "recompute"])
def test_estimate_is_a_pure_function(problem: Problem, differentiate: str) -> None:
    before = bits_of(problem.distilled)
    stream = torch.get_rng_state()
    first, second = (problem.estimate(unrolled(differentiate=differentiate)) for _ in range(2))
    assert first.loss == second.loss
    assert all(torch.equal(first.grads[name], second.grads[name]) for name in (PIXELS, CELLS))
    after = bits_of(problem.distilled)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in problem.distilled.parameters.values())
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
    real, network = double_real(shape), ConvNet(depth=2, width=32)
    canvas = Poster(height=20, width=24, crops=[2, 4])
    distilled = double_distilled(real, canvas)
    networks = double_networks(shape, network)
    objective = unrolled(differentiate=differentiate, batch=8, real_batch=16)
    sampled = networks.sample(Clock())
    image = torch.zeros(1, 3, 16, 16, dtype=torch.float64)
    per_image = flops(lambda: sampled(sampled.weights_P, image))
    spent = flops(lambda: objective.estimate(distilled, networks, real, Clock()))
    assert objective.work(per_image, 8, 10) == pytest.approx(spent, rel=0.1)
