"""Gradient matching: the distance by hand, its gradient against finite differences, who is matched.

Shape suffixes: B a batch, N all examples, K classes, P all weights of a network.
"""

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.tiny import (
    LEARNED,
    NET,
    POSTER,
    TOY,
    DoubleReal,
    Recorder,
    assert_pure,
    double_distilled,
    double_networks,
    images_of,
    spent_and_counted,
    toy_real,
)
from torch import Tensor, nn

from distill_datasets.canvases.pixels import Pixels
from distill_datasets.data.decoding import Split
from distill_datasets.distilled import Distilled
from distill_datasets.labels.fixed import Area
from distill_datasets.networks.network import Sampled
from distill_datasets.objectives.gradient import Distance, Gradient, Matched, gradient_distance
from distill_datasets.objectives.objective import Estimate
from distill_datasets.runtime.draws import LaneDraw, rng_for
from distill_datasets.selection.random import Noise
from distill_datasets.types import Shape
from distill_datasets.views.augment import Augment

DRAW = LaneDraw(3, 5, 0)
FLIP_ROTATE = Augment(operations=["flip", "rotate"], choose="all")
TWO_EACH = Pixels(ipc=2, init=Noise(std=0.2))
CELLS = "labels.cells_GK"
# a convolution of two outputs, its bias, and a classifier of one
SHAPES = [torch.Size([2, 1, 1, 2]), torch.Size([2]), torch.Size([1, 2])]
OURS = torch.tensor([3.0, 4, 1, 0, 5, 6, 1, 1], dtype=torch.float64)
THEIRS = torch.tensor([4.0, 3, 0, 1, -5, 0, 1, 0], dtype=torch.float64)


class DoubleClasses(DoubleReal):
    """Real images whose classes are in double precision."""

    def class_images(self, rng: torch.Generator, label: int, size: int) -> Tensor:
        return super().class_images(rng, label, size).double()


def double_real(shape: Shape = TOY, per_class: int = 40) -> DoubleClasses:
    return DoubleClasses(**vars(toy_real(shape, per_class)))


def gradient(**changes: object) -> Gradient:
    return Gradient.model_validate({"real_batch": 6, "chunk": 4, **changes})


def estimate(objective: Gradient, distilled: Distilled, draw: LaneDraw = DRAW) -> Estimate:
    return objective.estimate(distilled, double_networks(), double_real(), draw)


@pytest.mark.parametrize(
    ("distance", "layers", "expected"),
    [
        # 3 * 4 + 4 * 3 over 5 * 5; perpendicular; the bias not; 1 over the root of 2
        ("rows_cosine", "all", (1 - 24 / 25) + 1 + (1 - 1 / math.sqrt(2))),
        ("rows_cosine", "convolutions", (1 - 24 / 25) + 1),
        ("mse", "all", 4 + (100 + 36) + 1),
        ("mse", "convolutions", 4),
        ("l1", "all", 4 + (10 + 6) + 1),
        ("l1", "convolutions", 4),
    ],
)
def test_distances_are_those_a_hand_computes(
    distance: Distance, layers: Matched, expected: float
) -> None:
    got = gradient_distance(OURS, THEIRS, SHAPES, distance, layers)
    assert float(got) == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("distance", ["rows_cosine", "mse", "l1"])
def test_equal_gradients_have_no_distance(distance: Distance) -> None:
    got = gradient_distance(OURS, OURS, SHAPES, distance, "all")
    assert float(got) == pytest.approx(0, abs=2e-6)


def test_the_cosine_of_a_row_does_not_see_its_length() -> None:
    lengths = torch.tensor([3.0, 3, 50, 50, 1, 1, 7, 7], dtype=torch.float64)
    near, far = (
        float(gradient_distance(ours, THEIRS, SHAPES, "rows_cosine", "all"))
        for ours in (OURS, OURS * lengths)
    )
    assert far == pytest.approx(near, abs=2e-6)


def test_convolutions_alone_see_neither_the_classifier_nor_biases() -> None:
    other = torch.where(torch.arange(8) < 4, OURS, -9.0)
    for distance in ("rows_cosine", "mse", "l1"):
        near, far = (
            gradient_distance(ours, THEIRS, SHAPES, distance, "convolutions")
            for ours in (OURS, other)
        )
        assert near == far


@pytest.mark.parametrize(
    "fields",
    [
        {"augment": FLIP_ROTATE},
        {"distance": "mse"},
        {"distance": "l1", "layers": "convolutions", "match_batch": 5},
    ],
)
def test_gradients_of_pixels_and_labels_are_those_of_finite_differences(
    fields: dict[str, object],
) -> None:
    objective = gradient(**fields)
    distilled = double_distilled(double_real(), POSTER, LEARNED)
    grads = estimate(objective, distilled).grads
    for name in ("canvas.trained_CHW", CELLS):
        direction = torch.randn(
            grads[name].shape, generator=rng_for(1, "direction"), dtype=torch.float64
        )
        losses = []
        for size in (1e-6, -1e-6):
            moved = copy.deepcopy(distilled)
            with torch.no_grad():
                moved.parameters[name].add_(direction, alpha=size)
            losses.append(estimate(objective, moved).loss)
        derivative = (losses[0] - losses[1]) / 2e-6
        assert float((grads[name] * direction).sum()) == pytest.approx(derivative, rel=1e-5)
        assert abs(derivative) > 1e-4


def class_gradient(module: nn.Module, images_BCHW: Tensor, label: int) -> list[Tensor]:
    """Gradients of the mean cross-entropy of one class, layer by layer."""
    targets_B = torch.full((len(images_BCHW),), label)
    loss = F.cross_entropy(module(images_BCHW), targets_B)
    return list(torch.autograd.grad(loss, list(module.parameters()), create_graph=True))


def test_hard_labels_give_the_class_batches_of_dc() -> None:
    real, distilled = double_real(), double_distilled(double_real(), TWO_EACH, Area())
    network = double_networks().sample(DRAW)
    module = NET.build(TOY).double()
    nn.utils.vector_to_parameters(network.weights_P, module.parameters())
    expected = torch.zeros((), dtype=torch.float64)
    for label in range(3):
        theirs = class_gradient(module, real.class_images(DRAW("real", label), label, 6), label)
        own = distilled(torch.tensor([2 * label, 2 * label + 1])).images_BCHW
        for ours, target in zip(class_gradient(module, own, label), theirs, strict=True):
            if ours.dim() > 1:
                ours, target = ours.flatten(1), target.detach().flatten(1)
                lengths = ours.norm(dim=1) * target.norm(dim=1) + 1e-6
                expected = expected + (1 - (ours * target).sum(dim=1) / lengths).sum()
    got = estimate(gradient(), distilled)
    (trained,) = distilled.parameters.values()
    (grad,) = torch.autograd.grad(expected, trained)
    assert got.loss == pytest.approx(float(expected.detach()), rel=1e-9)
    torch.testing.assert_close(got.grads["canvas.trained_NCHW"], grad, rtol=1e-7, atol=1e-12)


def test_soft_labels_weight_the_examples_by_their_share_of_the_class() -> None:
    real, distilled = double_real(), double_distilled(double_real(), TWO_EACH, LEARNED)
    network = double_networks().sample(DRAW)
    weights_P = network.weights_P.requires_grad_()
    images_NCHW, targets_NK = (tensor.detach() for tensor in distilled(torch.arange(6)))
    expected = 0.0
    for label in range(3):
        theirs = F.cross_entropy(
            network(weights_P, real.class_images(DRAW("real", label), label, 6)),
            torch.full((6,), label),
        )
        shares_N = targets_NK[:, label] / targets_NK[:, label].sum()
        log_NK = network(weights_P, images_NCHW).log_softmax(dim=1)
        ours = -(shares_N[:, None] * targets_NK * log_NK).sum()
        (ours_P,), (theirs_P,) = (torch.autograd.grad(loss, weights_P) for loss in (ours, theirs))
        expected += float((ours_P - theirs_P).square().sum())
    assert estimate(gradient(distance="mse"), distilled).loss == pytest.approx(expected, rel=1e-9)


def test_class_by_class_there_is_no_long_tail_to_correct_for() -> None:
    tail = double_real()
    kept_N = torch.cat(
        [tail.rows_of_class[0], tail.rows_of_class[1][:9], tail.rows_of_class[2][:6]]
    )
    train = Split(tail.train.images_NCHW[kept_N], tail.train.labels_N[kept_N])
    distilled = double_distilled(tail, TWO_EACH, Area())
    losses = []
    for calibrate in (False, True):
        fields = {**vars(toy_real()), "train": train, "calibrate": calibrate}
        real = DoubleClasses(**fields)
        losses.append(gradient().estimate(distilled, double_networks(), real, DRAW).loss)
    assert losses[0] == losses[1]


@pytest.mark.parametrize("operations", [["flip"], ["rotate"], ["color"], ["crop"], ["cutout"]])
def test_real_and_distilled_images_are_moved_alike(operations: list[str]) -> None:
    # the distilled set is the real one, so that only a difference between the moves is left
    real = double_real(per_class=6)
    order_N = torch.cat(real.rows_of_class)
    shown_NCHW = real.train.images_NCHW[order_N] / 255
    targets_NK = torch.eye(3).repeat_interleave(6, dim=0)
    distilled = images_of(shown_NCHW, targets_NK, real.normalization.input_space)
    distilled = distilled.to(dtype=torch.float64)
    objective = gradient(distance="mse", augment=Augment.model_validate({"operations": operations}))
    for step in range(3):
        draw = LaneDraw(0, step, 0)
        assert objective.estimate(distilled, double_networks(), real, draw).loss < 1e-8


def test_every_class_has_a_move_of_its_own() -> None:
    asked: list[tuple[Any, ...]] = []

    class Asked(LaneDraw):
        def __call__(self, *what: str | int) -> torch.Generator:
            asked.append(what)
            return super().__call__(*what)

    estimate(gradient(), double_distilled(double_real(), TWO_EACH, Area()), Asked(0, 0, 0))
    for words in ("augment", "real"):
        assert {what for what in asked if what[0] == words} == {(words, 0), (words, 1), (words, 2)}


def test_a_class_is_matched_by_its_own_examples_alone_under_hard_labels() -> None:
    shown = Recorder(double_distilled(double_real(), TWO_EACH, Area()))
    estimate(gradient(), shown)
    assert shown.asked == [[0, 1], [2, 3], [4, 5]]


def test_a_class_that_no_example_shows_is_left_out() -> None:
    own = double_distilled(double_real(), TWO_EACH, Area())
    own.constants["labels.targets_NK"] = torch.eye(3)[[0, 0, 0, 2, 2, 2]].double()
    shown = Recorder(own)
    got = estimate(gradient(), shown)
    assert shown.asked == [[0, 1, 2], [3, 4, 5]]
    assert math.isfinite(got.loss)


@pytest.mark.parametrize("spread", [0.0, 0.0001])
def test_a_bound_on_the_examples_takes_some_of_the_class_and_others_later(spread: float) -> None:
    own = double_distilled(double_real(), Pixels(ipc=7, init=Noise(std=0.2)), Area())
    own.constants["labels.targets_NK"].mul_(1 - spread).add_(spread / 3)
    shown = Recorder(own)
    for step in range(3):
        estimate(gradient(match_batch=4), shown, LaneDraw(0, step, 0))
    assert len({tuple(asked) for asked in shown.asked}) > 3
    for place, asked in enumerate(shown.asked):
        assert len(asked) == 4 and asked == sorted(set(asked))
        assert {index // 7 for index in asked} == {place % 3}


def test_a_bound_larger_than_the_class_takes_all_of_it() -> None:
    distilled = double_distilled(double_real(), TWO_EACH, Area())
    free, bound = (estimate(gradient(match_batch=most), distilled) for most in (None, 2))
    assert free.loss == bound.loss


def test_chunks_of_the_real_images_change_only_the_memory() -> None:
    distilled = double_distilled(double_real(), POSTER, LEARNED)
    whole, chunked = (estimate(gradient(chunk=chunk), distilled) for chunk in (6, 4))
    assert chunked.loss == pytest.approx(whole.loss, rel=1e-12)
    for name, grad in whole.grads.items():
        torch.testing.assert_close(chunked.grads[name], grad, rtol=1e-8, atol=1e-12)


def test_units_that_never_fire_leave_the_gradient_finite() -> None:
    distilled = double_distilled(double_real(), TWO_EACH, Area())

    class Dead:
        def sample(self, draw: LaneDraw) -> Sampled:
            network = double_networks().sample(draw)
            pieces = list(torch.split(network.weights_P, [size.numel() for size in network.shapes]))
            pieces[2] = torch.full_like(pieces[2], -100.0)  # the bias of the first norm
            network.weights_P = torch.cat(pieces)
            return network

    got = gradient().estimate(distilled, Dead(), double_real(), DRAW)  # type: ignore[arg-type]
    assert math.isfinite(got.loss) and all(
        bool(grad.isfinite().all()) for grad in got.grads.values()
    )


def test_step_sizes_that_the_objective_does_not_use_get_a_gradient_of_zero() -> None:
    distilled = double_distilled(double_real(), TWO_EACH, Area(), step_sizes=[0.1, 0.2])
    assert estimate(gradient(), distilled).grads["step_sizes.raw_T"].tolist() == [0, 0]


def test_estimate_is_a_pure_function() -> None:
    objective = gradient(augment=FLIP_ROTATE)
    distilled = double_distilled(double_real(), POSTER, LEARNED)
    assert_pure(lambda given: estimate(objective, given), distilled)


@pytest.mark.parametrize("match_batch", [None, 2])
def test_work_is_what_the_counter_of_torch_counts(match_batch: int | None) -> None:
    spent, counted = spent_and_counted(gradient(match_batch=match_batch))
    assert counted == pytest.approx(spent, rel=0.1)
