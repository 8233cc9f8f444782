"""Linear probes: what they train on, and that nothing known is asked for again."""

from pathlib import Path
from unittest import mock

import pytest
import torch
from support.probe_problem import probed, tiny_backbone
from support.tiny import CPU

from distill_datasets.data.features import Features
from distill_datasets.models.frozen import FrozenBackbone
from distill_datasets.runtime.draws import draws
from distill_datasets.training.examples import Stored, Whole
from distill_datasets.training.linear_probe import Probed, Scale


def test_the_scale_is_that_of_what_a_student_trains_on() -> None:
    features_ND = torch.tensor([[1.0, 5.0], [3.0, 5.0], [2.0, 8.0]])
    scale = Scale.of(features_ND)
    assert scale.mean_D.tolist() == [2.0, 6.0]
    # the mean square of -1, -1, 1, -1, 0, 2 is 8 / 6
    assert float(scale.root) == pytest.approx((8 / 6) ** 0.5)
    assert scale(features_ND).shape == (3, 2, 1, 1)


def test_published_images_are_seen_by_the_backbone_as_pixels(tmp_path: Path) -> None:
    real, backbone = probed(tmp_path)
    images_NCHW, space = real.train.images_NCHW[:5], real.normalization.input_space
    own = Stored(images_NCHW, torch.eye(4)[real.train.labels_N[:5]], space)
    found = Probed(backbone, real).examples(own)
    wanted_ND = backbone.load(CPU)(images_NCHW.float() / 255)
    batch = found(torch.tensor([2, 0]))
    torch.testing.assert_close(
        batch.images_BCHW.flatten(1),
        Scale.of(wanted_ND)(wanted_ND)[[2, 0]].flatten(1),
        atol=1e-4,
        rtol=1e-3,
    )
    assert torch.equal(batch.targets_BK, own.targets_NK[[2, 0]])


def test_the_whole_source_and_the_test_images_are_not_asked_for_again(tmp_path: Path) -> None:
    real, backbone = probed(tmp_path)
    with mock.patch.object(FrozenBackbone, "forward", side_effect=AssertionError):
        whole = Probed(backbone, real).examples(Whole(real))
        features_BCHW, targets_BK = whole(torch.arange(6))
        tested = list(Probed(backbone, real).test_batches(whole.scale, 20))
    known: Features = real.features_of(backbone)
    torch.testing.assert_close(features_BCHW.flatten(1), whole.scale(known.train_ND[:6]).flatten(1))
    assert targets_BK.argmax(dim=1).tolist() == real.train.labels_N[:6].tolist()
    assert [len(batch.targets_BK) for batch in tested] == [20, 12]
    assert torch.equal(tested[1].images_BCHW, whole.scale(known.test_ND[20:]))


def test_fresh_classifiers_begin_small_and_differ_by_their_draw(tmp_path: Path) -> None:
    real, backbone = probed(tmp_path)
    asked = Probed(backbone, real)
    first_P, second_P = asked.start(draws(0, "a")), asked.start(draws(0, "b"))
    assert len(first_P) == 24 * 4 + 4 and first_P[-4:].tolist() == [0.0] * 4
    assert 0.005 < float(first_P[:-4].std()) < 0.015 and not torch.equal(first_P, second_P)


def test_backbones_with_other_settings_have_other_features(tmp_path: Path) -> None:
    real, backbone = probed(tmp_path)
    other = tiny_backbone(tmp_path, crop=0.5)
    assert backbone.key in real.features and other.key not in real.features
