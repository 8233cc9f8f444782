"""Scores of difficulty know what is hard, and choices by them take what they say.

Shape suffixes: N images, C channels, H W pixels.
"""

import pytest
import torch
from support.tiny import CPU, toy_real

from distill_datasets.data.decoding import Split
from distill_datasets.data.real import RealData
from distill_datasets.evaluation.protocol import Evaluate
from distill_datasets.models.convnets import Mlp
from distill_datasets.optimizers import Adam
from distill_datasets.runtime.draws import draws, rng_for
from distill_datasets.selection.difficulty import (
    ByDifficulty,
    difficulty,
    easiest,
    stratified,
)

SETTINGS = Evaluate(network=Mlp(), batch=16, optimizer=Adam(lr=0.003), epochs=1, beyond=None)


def mislabeled(count: int) -> RealData:
    """Toy images, the first of which bear the label of another class."""
    real = toy_real()
    labels_N = real.train.labels_N.clone()
    labels_N[:count] = (labels_N[:count] + 1) % 3
    train = Split(real.train.images_NCHW, labels_N)
    return RealData(train, real.test, real.class_names, real.normalization, real.shape)


def test_mislabeled_images_are_the_hardest_by_both_scores() -> None:
    real = mislabeled(6)
    found = difficulty(real, SETTINGS, 6, draws(0, "proxy"), CPU)
    for scores_N in (found.el2n_N, found.forgotten_N):
        assert float(scores_N[:6].mean()) > 2 * float(scores_N[6:].mean())
    assert float(found.el2n_N.max()) <= 2**0.5 + 1e-6 and not found.module.training
    again = difficulty(real, SETTINGS, 6, draws(0, "proxy"), CPU)
    assert torch.equal(found.el2n_N, again.el2n_N)


def test_strata_give_alike_and_the_hardest_give_nothing() -> None:
    # 90 easy, 6 middle, 4 hard images; the hardest tenth is dropped
    scores_N = torch.cat([torch.zeros(90), torch.full((6,), 0.9), torch.full((4,), 5.0)])
    chosen = stratified(scores_N, 10, rng_for(0), strata=2, dropped=0.1)
    assert sorted(chosen) == sorted(set(chosen)) and max(chosen) < 90
    kept = stratified(scores_N, 10, rng_for(0), strata=2, dropped=0.04)
    assert [
        sum(low <= place < high for place in kept) for low, high in ((0, 90), (90, 96), (96, 100))
    ] == [5, 5, 0]
    # a small stratum gives all it has and the others the rest
    many = stratified(scores_N, 40, rng_for(0), strata=2, dropped=0.04)
    assert sum(place >= 90 for place in many) == 6 and len(many) == 40


@pytest.mark.parametrize("count", [1, 7, 20])
def test_as_many_are_chosen_as_are_asked_for(count: int) -> None:
    scores_N = torch.rand(20, generator=rng_for(1))
    assert len(set(stratified(scores_N, count, rng_for(2)))) == count
    assert easiest(scores_N, count) == scores_N.argsort()[:count].tolist()


def test_every_class_has_its_easiest_images() -> None:
    real = toy_real()
    scores_N = torch.arange(len(real.train.labels_N), 0, -1).float()
    images_NCHW = ByDifficulty("easy", scores_N, easy=True).images(real, 2, rng_for(0))
    rows = [own_N.flip(0)[:2] for own_N in real.rows_of_class]
    assert torch.equal(images_NCHW, real.displayable(torch.cat(rows)))
