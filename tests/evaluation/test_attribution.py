"""Shares of images and labels, DD-Ranking's scores, and intervals, against what a hand computes."""

import math

import pytest
from scipy import stats

from distill_datasets.evaluation.attribution import (
    augmentation_robust_score,
    dd_ranking,
    image_share,
    label_robust_score,
    label_share,
    of_a_draw,
)
from distill_datasets.training.intervals import Interval, paired, student_t


@pytest.mark.parametrize("freedom", [1, 2, 4, 7, 30, 31, 60, 1000])
def test_quantiles_of_t_are_those_of_scipy(freedom: int) -> None:
    assert student_t(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=2e-5)


def test_an_interval_is_that_of_a_t_test() -> None:
    values = [0.61, 0.64, 0.60, 0.66, 0.63]
    low, high = stats.t.interval(0.95, 4, stats.tmean(values), stats.sem(values))
    found = Interval.of(values).as_json()
    assert found["low"] == pytest.approx(low, rel=1e-5)
    assert found["high"] == pytest.approx(high, rel=1e-5)
    assert Interval.of([0.5]) == Interval(0.5, None, None)


def test_differences_are_taken_seed_by_seed() -> None:
    one, other = {0: 0.9, 1: 0.5, 2: 0.7}, {1: 0.4, 0: 0.8, 5: 0.0}
    assert paired(one, other).mean == pytest.approx(0.1)
    assert paired(one, other).half == pytest.approx(0, abs=1e-12)
    assert paired(one, one) == Interval(0.0, 0.0, 0.0)
    assert paired(one, one).verdict == "equal"


@pytest.mark.parametrize(
    ("values", "verdict"),
    [([0.1, 0.11, 0.12], "better"), ([-0.1, -0.11, -0.12], "worse"), ([-0.1, 0.2], "undecided")],
)
def test_an_interval_without_zero_decides(values: list[float], verdict: str) -> None:
    assert Interval.of(values).verdict == verdict


def test_scores_of_dd_ranking_are_those_of_its_paper_and_not_of_its_program() -> None:
    assert label_robust_score(0, 0) == pytest.approx(1 / (1 + math.e))
    assert round(label_robust_score(0, 0), 3) == 0.269
    assert round(label_robust_score(0.05, 0.30), 3) == 0.219
    assert round(label_robust_score(0.20, 0.12), 3) == 0.286
    assert round(label_robust_score(20, 12), 2) == 23.07
    assert label_robust_score(1, -1) == pytest.approx(1) and label_robust_score(-1, 1) == 0
    assert augmentation_robust_score(0.1, 0.3) == pytest.approx(label_robust_score(0.4, 0))


def test_the_four_scores_of_a_set() -> None:
    def all_at(value: float) -> dict[int, float]:
        return {0: value - 0.01, 1: value + 0.01}

    found = dd_ranking(
        "SL-1",
        whole=all_at(0.9),
        hard=all_at(0.6),
        own=all_at(0.7),
        random=all_at(0.65),
        augmented=(all_at(0.72), all_at(0.66)),
        still=(all_at(0.69), all_at(0.65)),
    )
    assert found["hlr"] == pytest.approx(0.3) and found["ior"] == pytest.approx(0.05)
    assert found["lrs"] == pytest.approx(label_robust_score(0.05, 0.3))
    assert found["ars"] == pytest.approx(augmentation_robust_score(0.06, 0.04))
    assert found["percent"]["lrs"] == pytest.approx(label_robust_score(5, 30))


def test_the_label_share_is_the_part_of_the_gain_that_labels_have() -> None:
    random = {seed: 0.30 + 0.01 * seed for seed in range(4)}
    hard = {seed: value + 0.08 for seed, value in random.items()}
    soft = {seed: value + 0.20 for seed, value in random.items()}
    share = label_share(soft, hard, random)
    assert share is not None and share.mean == pytest.approx(0.12 / 0.20)
    assert share.half == pytest.approx(0, abs=1e-9)
    assert label_share(random, random, random) is None


def test_a_lucky_draw_is_told_from_images_that_are_better_than_any_draw() -> None:
    # differences to ten draws: 0.02 above their mean, but draws differ by as much
    draws = {seed: 0.5 + 0.02 * (seed % 5 - 2) for seed in range(10)}
    lucky = image_share(dict.fromkeys(draws, 0.53), draws)
    assert lucky["verdict"] == "better" and lucky["draw"]["verdict"] == "undecided"
    better = image_share(dict.fromkeys(draws, 0.7), draws)
    assert better["draw"]["verdict"] == "better"
    wide, narrow = of_a_draw(list(draws.values())), Interval.of(list(draws.values()))
    assert wide.half == pytest.approx((narrow.half or 0) * math.sqrt(11))
