"""Linear heads on frozen features: the formulas, and images that are matched to them."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.probe_problem import SHAPE, probed
from support.tiny import CPU, assert_pure, distilled_of

from distill_datasets.canvases.pyramid import Pyramid
from distill_datasets.distilled import Distilled
from distill_datasets.labels.fixed import Area
from distill_datasets.networks.pretrained import Backbones
from distill_datasets.objectives.linear import Linear, flow_losses, head_gradient, ridge_losses
from distill_datasets.runtime.draws import LaneDraw, rng_for
from distill_datasets.selection.random import Real

DRAW = LaneDraw(3, 0, 0, 10)
FORMS = ["ridge", "gradient", "flow"]
STILL = {"crop": None, "flip": False}
RNG = rng_for(0, "linear")
FEATURES_BD = torch.randn(9, 5, generator=RNG, dtype=torch.float64)
HEAD_KD = torch.randn(4, 5, generator=RNG, dtype=torch.float64)
CENTERS_KD = torch.randn(4, 5, generator=RNG, dtype=torch.float64)
COVARIANCE_DD = FEATURES_BD.T @ FEATURES_BD / 9


def test_the_gradient_of_a_head_is_that_of_autograd() -> None:
    weight_KD = HEAD_KD.clone().requires_grad_()
    bias_K = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    targets_B = torch.full((9,), 2)
    loss = F.cross_entropy(FEATURES_BD @ weight_KD.T + bias_K, targets_B)
    wanted = torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, (weight_KD, bias_K))])
    torch.testing.assert_close(head_gradient(FEATURES_BD, HEAD_KD, 2), wanted, rtol=1e-10, atol=0)


def test_a_head_of_zeros_asks_for_the_mean_of_the_class() -> None:
    found = head_gradient(FEATURES_BD, torch.zeros(4, 5, dtype=torch.float64), 1)[:20].view(4, 5)
    mean_D = FEATURES_BD.mean(dim=0)
    torch.testing.assert_close(found[1], -0.75 * mean_D)
    torch.testing.assert_close(found[3], 0.25 * mean_D)


def test_ridge_ends_where_ridge_regression_does_and_nowhere_else() -> None:
    metric_DD = COVARIANCE_DD + 0.7 * torch.eye(5, dtype=torch.float64)
    wanted_KD = torch.linalg.solve(metric_DD, CENTERS_KD.T).T

    def losses(direction_KD: torch.Tensor) -> torch.Tensor:
        return ridge_losses(direction_KD, CENTERS_KD, wanted_KD, COVARIANCE_DD, 0.7)

    assert losses(2 * wanted_KD).abs().max() < 1e-12
    other_KD = wanted_KD + 0.1
    d, w = other_KD[0], wanted_KD[0]
    by_hand = 1 - (d @ metric_DD @ w) / (d @ metric_DD @ d * (w @ metric_DD @ w)).sqrt()
    torch.testing.assert_close(losses(other_KD)[0], by_hand)
    assert by_hand > 1e-4


def test_flow_ends_at_the_center_of_the_class_and_nowhere_else() -> None:
    classes_L = torch.tensor([1, 3])
    assert flow_losses(CENTERS_KD[classes_L], CENTERS_KD, classes_L).abs().max() < 1e-12
    assert flow_losses(CENTERS_KD[[3, 1]], CENTERS_KD, classes_L).min() > 0.1


def started(folder: Path, ipc: int = 1) -> tuple[Distilled, Backbones, object]:
    real, backbone = probed(folder)
    canvas = Pyramid(ipc=ipc, init=Real(), start_px=None)
    return distilled_of(real, canvas, Area()), Backbones(backbones=[backbone]), real


@pytest.mark.parametrize("form", FORMS)
def test_an_estimate_is_a_pure_function_that_falls_along_its_gradient(
    form: str, tmp_path: Path
) -> None:
    distilled, networks, real = started(tmp_path)
    teachers, objective = networks.build(SHAPE, CPU), Linear(form=form, **STILL)  # type: ignore[arg-type]
    assert_pure(lambda own: objective.estimate(own, teachers, real, DRAW), distilled)  # type: ignore[arg-type]
    before = objective.estimate(distilled, teachers, real, DRAW)  # type: ignore[arg-type]
    with torch.no_grad():
        for name, grad in before.grads.items():
            distilled.parameters[name] -= 0.02 * grad / sum(g.norm() for g in before.grads.values())
    after = objective.estimate(distilled, teachers, real, DRAW)  # type: ignore[arg-type]
    assert after.loss < before.loss - 1e-4
    assert before.metrics["cosine_0"] == pytest.approx(1 - before.loss, abs=1e-6)


def test_classes_that_are_solved_together_do_not_change_each_other(tmp_path: Path) -> None:
    distilled, networks, real = started(tmp_path, ipc=2)
    teachers, objective = networks.build(SHAPE, CPU), Linear(**STILL)
    together = objective.estimate(distilled, teachers, real, DRAW)  # type: ignore[arg-type]
    alone = Pyramid(ipc=2, init=Real(), start_px=None).alone()
    pixels_NCHW = torch.stack(distilled.stored())
    for label in range(4):
        places = slice(2 * label, 2 * label + 2)
        images = alone.start(pixels_NCHW[places], torch.full((2,), label))
        targets = Area().start(images.cells, 4)
        own = Distilled(Pyramid(ipc=2), Area(), distilled.space, images, targets)
        found = objective.estimate(own, teachers, real, DRAW)  # type: ignore[arg-type]
        for name, grad in found.grads.items():
            torch.testing.assert_close(grad, together.grads[name][places], rtol=1e-3, atol=1e-6)


def test_every_image_is_in_one_block_of_whole_classes() -> None:
    blocks = Linear(classes_at_once=3).blocks(7, 2)
    assert [len(block.places_N) for block in blocks] == [6, 6, 2]
    assert [place for block in blocks for place in block.places_N] == list(range(14))
