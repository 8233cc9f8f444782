"""Attacks keep within their bounds and do what mathematics says of a linear network.

Shape suffixes: B N images, C channels, H W pixels, K classes.
"""

import pytest
import torch
import torch.nn.functional as F
from support.tiny import toy_real
from torch import Tensor, nn

from distill_datasets.evaluation.robustness import (
    CORRUPTIONS,
    EPS,
    SEVERITIES,
    blur,
    contrast,
    fgsm,
    pgd,
    probed,
    robustness,
    rotation,
)
from distill_datasets.models.convnets import ConvNet
from distill_datasets.models.initialization import initialize
from distill_datasets.runtime.draws import draws, rng_for
from distill_datasets.training.metrics import Answers

REAL = toy_real()
SPACE = REAL.normalization.input_space


def network() -> nn.Module:
    module = ConvNet(depth=1, width=4).build(REAL.shape)
    initialize(module, rng_for(0))
    return module.eval()


def some_pixels(count: int = 12) -> tuple[Tensor, Tensor]:
    return REAL.test.images_NCHW[:count].float() / 255, REAL.test.labels_N[:count]


def test_fgsm_is_one_step_of_pgd_of_the_same_size_without_a_start() -> None:
    pixels_BCHW, labels_B = some_pixels()
    module = network()
    one = fgsm(module, SPACE.to_student, pixels_BCHW, labels_B, 4 / 255)
    same = pgd(module, SPACE.to_student, pixels_BCHW, labels_B, 4 / 255, None, 1, size=4 / 255)
    torch.testing.assert_close(one, same, atol=1e-6, rtol=0)


@pytest.mark.parametrize("eps", EPS)
def test_attacked_images_stay_within_eps_and_in_range_and_raise_the_loss(eps: int) -> None:
    pixels_BCHW, labels_B = some_pixels()
    pixels_BCHW[:2] = 0.0
    pixels_BCHW[2:4] = 1.0
    module = network()

    @torch.no_grad()
    def loss(shown_BCHW: Tensor) -> float:
        return float(F.cross_entropy(module(SPACE.to_student(shown_BCHW)), labels_B))

    for moved_BCHW in (
        fgsm(module, SPACE.to_student, pixels_BCHW, labels_B, eps / 255),
        pgd(module, SPACE.to_student, pixels_BCHW, labels_B, eps / 255, rng_for(1)),
    ):
        assert float((moved_BCHW - pixels_BCHW).abs().max()) <= eps / 255 + 1e-6
        assert float(moved_BCHW.min()) >= 0 and float(moved_BCHW.max()) <= 1
        assert loss(moved_BCHW) > loss(pixels_BCHW)


def test_the_margin_of_a_linear_network_falls_by_eps_times_the_norm_of_its_weights() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    initialize(module, rng_for(2))
    pixels_BCHW = torch.full((3, 1, 8, 8), 0.5)
    labels_B, eps = torch.tensor([0, 1, 0]), 8 / 255

    def margin_B(shown_BCHW: Tensor) -> Tensor:
        logits_BK = module(shown_BCHW)
        other_B = 1 - labels_B
        rows = torch.arange(3)
        return logits_BK[rows, labels_B] - logits_BK[rows, other_B]

    moved_BCHW = fgsm(module, lambda pixels: pixels, pixels_BCHW, labels_B, eps)
    fall_B = margin_B(pixels_BCHW) - margin_B(moved_BCHW)
    weight_KD = module[1].weight.detach()
    expected = eps * (weight_KD[0] - weight_KD[1]).abs().sum()
    torch.testing.assert_close(fall_B.detach(), expected.expand(3))


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_corruption_changes_images_more_with_its_severity(name: str, channels: int) -> None:
    rng = rng_for(3)
    smooth = F.interpolate(torch.rand(6, channels, 5, 5, generator=rng), (16, 20), mode="bicubic")
    pixels_BCHW = 0.2 + 0.6 * smooth.clamp(0, 1)
    changes = []
    for severity in range(SEVERITIES):
        moved = CORRUPTIONS[name](pixels_BCHW, severity, rng_for(4))
        assert moved.shape == pixels_BCHW.shape
        changes.append(float((moved - pixels_BCHW).abs().mean()))
    assert 0 < changes[0] < changes[-1]


def test_corruptions_do_what_their_names_say() -> None:
    flat = torch.full((2, 1, 9, 9), 0.3)
    for each in (blur, rotation, contrast):
        torch.testing.assert_close(each(flat, 4, rng_for(0)), flat)
    half = torch.zeros(1, 1, 2, 2)
    half[..., 1] = 1.0
    assert contrast(half, 1, rng_for(0)).flatten().tolist() == [0.25, 0.75, 0.25, 0.75]


def test_a_student_is_asked_about_the_same_images_every_time() -> None:
    module, draw = network(), draws(0, "attack")
    images_NCHW, labels_N = REAL.test.images_NCHW[:20], REAL.test.labels_N[:20]
    first, again = (probed(module, SPACE, images_NCHW, labels_N, draw, 8) for _ in range(2))
    assert first == again
    assert all(first["pgd"][size] <= first["clean"] for size in map(str, EPS))
    row = robustness("default/HL", 20, [first, again])
    assert row["clean"]["mean"] == first["clean"] and row["clean"]["half"] == 0
    assert set(row["corruptions"]) == set(CORRUPTIONS) and len(CORRUPTIONS) == 8


def test_calibration_of_probabilities_that_a_hand_computes() -> None:
    # two classes; 0.8 sure of four images, three of them rightly; sure as a coin of the fifth
    probabilities_NK = torch.tensor([[0.8, 0.2]] * 4 + [[0.5, 0.5]])
    labels_N = torch.tensor([0, 0, 0, 1, 0])
    found = Answers(probabilities_NK.log(), labels_N).calibration()
    assert found.ece == pytest.approx((4 * abs(0.75 - 0.8) + abs(1 - 0.5)) / 5, abs=1e-6)
    assert found.brier == pytest.approx((3 * 0.08 + 1.28 + 0.5) / 5, abs=1e-6)
    expected = -torch.tensor([0.8, 0.8, 0.8, 0.2, 0.5]).log().mean()
    assert found.nll == pytest.approx(float(expected), abs=1e-6)
    assert Answers(probabilities_NK.log(), labels_N).confusion_KK().tolist() == [[4, 0], [1, 0]]
