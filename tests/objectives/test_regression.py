"""Ridge regression: the closed form, its gradient, and what it makes of labels and real images."""

from typing import Any

import numpy as np
import pytest
import torch
from support.tiny import (
    CPU,
    NET,
    POSTER,
    TOY,
    assert_pure,
    distilled_of,
    double_distilled,
    double_networks,
    double_real,
    spent_and_counted,
    toy_real,
)

from distill_datasets.canvases.pixels import Pixels
from distill_datasets.distilled import Distilled
from distill_datasets.labels.fixed import Area
from distill_datasets.labels.learned import Vectors
from distill_datasets.networks.network import FreshSource
from distill_datasets.objectives.objective import Estimate
from distill_datasets.objectives.regression import Regression, ridge_prediction
from distill_datasets.optimizers import Adam
from distill_datasets.runtime.draws import LaneDraw, rng_for

PIXELS, VECTORS = "canvas.trained_CHW", "labels.vectors_NK"
NET_SOURCE = FreshSource(NET, TOY, CPU)
STEP = 1e-6
DRAW = LaneDraw(3, 0, 0, 10)


def regression(**fields: Any) -> Regression:  # noqa: ANN401
    return Regression(**{"real_batch": 30, "ridge": 0.01, **fields})


def estimate(objective: Regression, distilled: Distilled) -> Estimate:
    return objective.estimate(distilled, double_networks(), double_real(), DRAW)


def test_the_prediction_is_that_of_the_ridge_problem_solved_by_least_squares() -> None:
    rng = rng_for(3)
    real_BD, ours_ND = (torch.randn(n, 5, generator=rng, dtype=torch.float64) for n in (7, 4))
    vectors_NK = torch.randn(4, 3, generator=rng, dtype=torch.float64)
    penalty = 0.1 * ours_ND.square().sum().item() / 4
    # |F w - y|^2 + penalty |w|^2 as one least-squares problem with more rows
    rows = np.vstack([ours_ND.numpy(), np.sqrt(penalty) * np.eye(5)])
    wanted = np.vstack([vectors_NK.numpy(), np.zeros((5, 3))])
    layer = np.linalg.lstsq(rows, wanted, rcond=None)[0]
    found = ridge_prediction(real_BD, ours_ND, vectors_NK, 0.1)
    np.testing.assert_allclose(found.numpy(), real_BD.numpy() @ layer, rtol=1e-9)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("name", [PIXELS, VECTORS])
def test_the_gradient_is_that_of_finite_differences(name: str, loss: str) -> None:
    objective = regression(loss=loss, sharpness=4.0)
    distilled = double_distilled(double_real(), POSTER, Vectors(sharpness=4.0))
    found = estimate(objective, distilled).grads[name].flatten()
    for place in (0, 7, 20):
        ends = []
        for sign in (1, -1):
            other = distilled.to()
            with torch.no_grad():
                other.parameters[name].view(-1)[place] += sign * STEP
            ends.append(estimate(objective, other).loss)
        difference = (ends[0] - ends[1]) / (2 * STEP)
        assert found[place].item() == pytest.approx(difference, rel=1e-5, abs=1e-9)


def test_a_learned_sharpness_is_what_the_cross_entropy_pulls_at() -> None:
    labels = Vectors(sharpness=4.0, learn_sharpness=True)
    objective = regression(loss="cross_entropy", sharpness=4.0)
    name, distilled = "labels.log_sharpness", double_distilled(double_real(), POSTER, labels)
    found = estimate(objective, distilled)
    ends = []
    for sign in (1, -1):
        other = distilled.to()
        with torch.no_grad():
            other.parameters[name] += sign * STEP
        ends.append(estimate(objective, other).loss)
    difference = (ends[0] - ends[1]) / (2 * STEP)
    assert found.grads[name].item() == pytest.approx(difference, rel=1e-5) != 0
    # a fixed one of this value gives the same loss and targets
    value = distilled.parameters[name].exp().item()
    fixed = double_distilled(double_real(), POSTER, Vectors(sharpness=value))
    with torch.no_grad():
        for other_name, parameter in fixed.parameters.items():
            parameter.copy_(distilled.parameters[other_name])
    assert estimate(objective, fixed).loss == pytest.approx(found.loss)
    torch.testing.assert_close(fixed.stored_labels(), distilled.stored_labels())
    assert distilled.stored_labels().sum(dim=1).tolist() == pytest.approx([1.0] * 12)


def test_a_last_layer_that_reaches_the_answers_is_the_ridge_solution() -> None:
    real = double_real()
    labels = Vectors(sharpness=3.0)
    objective = regression(sharpness=3.0, ridge=0.3, answers=1)
    distilled, networks = double_distilled(real, POSTER, labels), double_networks()
    rows_N = torch.arange(distilled.count)
    vectors_NK = objective._vectors(distilled.targets(rows_N), trained=True).detach()
    found_NK = objective.last_targets(distilled, networks, [DRAW])
    assert found_NK is not None
    answers_NK = objective._vectors(found_NK, trained=True)
    assert float(answers_NK.norm()) < 0.9 * float(vectors_NK.norm())
    network = networks.sample(DRAW)
    shown_ND = network.embedding(network.weights_P, distilled(rows_N).images_BCHW).detach()
    real_BCHW, _ = real.batch(DRAW("real"), 7)
    real_BD = network.embedding(network.weights_P, real_BCHW)
    reached_BK = ridge_prediction(real_BD, shown_ND, answers_NK, 1e-12)
    torch.testing.assert_close(
        reached_BK, ridge_prediction(real_BD, shown_ND, vectors_NK, 0.3), atol=1e-5, rtol=1e-4
    )


def test_the_answers_of_several_networks_are_averaged_and_taken_as_labels() -> None:
    objective, labels = regression(sharpness=3.0, answers=2), Vectors(sharpness=3.0)
    distilled = double_distilled(double_real(), POSTER, labels)
    draws = [LaneDraw(3, step, 0, 10) for step in (10, 11)]
    networks = double_networks()
    each = [objective.last_targets(distilled, networks, [draw]) for draw in draws]
    both_NK = objective.last_targets(distilled, networks, draws)
    assert each[0] is not None and each[1] is not None and both_NK is not None
    mean_NK = (each[0].log() + each[1].log()) / 2
    torch.testing.assert_close(both_NK, mean_NK.softmax(dim=1))
    distilled.take_targets(both_NK)
    torch.testing.assert_close(distilled.stored_labels(), both_NK)
    assert regression().last_steps == 0


def test_label_vectors_are_what_the_labels_train() -> None:
    real = double_real()
    distilled = double_distilled(real, POSTER, Vectors(sharpness=3.0))
    targets_NK = distilled.targets(torch.arange(distilled.count))
    vectors_NK = distilled.parameters[VECTORS]
    centered_NK = vectors_NK - vectors_NK.mean(dim=1, keepdim=True)
    torch.testing.assert_close(
        regression(sharpness=3.0)._vectors(targets_NK, trained=True), centered_NK
    )


def test_hard_labels_are_centered_as_real_ones_are() -> None:
    vectors_NK = regression()._vectors(torch.eye(3), trained=False)
    torch.testing.assert_close(vectors_NK, torch.eye(3) - 1 / 3)


def test_the_loss_is_half_the_squared_distance_to_centered_labels() -> None:
    objective, real_BK = regression(), torch.eye(3)[[0, 2]]
    nothing_BK = torch.zeros(2, 3)
    # (2/3)^2 + 2 (1/3)^2 = 2/3 for every image
    assert objective._loss(nothing_BK, real_BK, toy_real()).item() == pytest.approx(1 / 3)


def test_the_ridge_falls_geometrically() -> None:
    objective = regression(ridge=0.001, ridge_start=0.1)
    draws = [LaneDraw(0, step, 0, 10) for step in (0, 5, 10)]
    assert [objective._ridge(draw) for draw in draws] == pytest.approx([0.1, 0.01, 0.001])
    assert regression()._ridge(draws[1]) == 0.01


def test_an_estimate_is_a_pure_function() -> None:
    real, augment = toy_real(), {"operations": ["flip", "shift"]}
    objective = regression(augment=augment, precision="bfloat16")
    assert_pure(
        lambda distilled: objective.estimate(distilled, NET_SOURCE, real, DRAW),
        distilled_of(real, POSTER, Vectors()),
    )


def test_bfloat16_gives_nearly_the_gradient_of_float32() -> None:
    real = toy_real()
    distilled = distilled_of(real, POSTER, Vectors())
    exact, rounded = (
        regression(precision=precision).estimate(distilled, NET_SOURCE, real, DRAW).grads[PIXELS]
        for precision in ("float32", "bfloat16")
    )
    assert torch.cosine_similarity(exact.flatten(), rounded.flatten(), dim=0) > 0.98


@pytest.mark.parametrize("labels", [Vectors(), Area()])
def test_steps_down_the_gradient_predict_real_images_better(labels: Any) -> None:  # noqa: ANN401
    real, objective, rule = toy_real(), regression(sharpness=5.0), Adam(lr=0.1)
    distilled = distilled_of(real, Pixels(ipc=1), labels)
    losses = []
    states = {name: rule.start(value.detach()) for name, value in distilled.parameters.items()}
    for step in range(40):
        found = objective.estimate(distilled, NET_SOURCE, real, DRAW)
        losses.append(found.loss)
        with torch.no_grad():
            for name, value in distilled.parameters.items():
                moved, states[name] = rule.step(value, states[name], found.grads[name], step + 1)
                value.copy_(moved)
    assert losses[-1] < 0.7 * losses[0]


def test_work_is_about_what_the_counter_of_torch_counts() -> None:
    spent, counted = spent_and_counted(regression(real_batch=24))
    assert counted == pytest.approx(spent, rel=0.15)


def test_a_network_that_shows_nothing_predicts_nothing() -> None:
    nothing_ND, vectors_NK = torch.zeros(3, 4), torch.eye(3)
    assert not ridge_prediction(torch.ones(2, 4), nothing_ND, vectors_NK, 0.1).any()
