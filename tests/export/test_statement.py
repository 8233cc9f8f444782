"""The sentence at the end of a run says what its table says, and nothing else."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from support.sample_content import pixels_sample, sample

from distill_datasets.export.folder import write_dataset
from distill_datasets.export.reading import has_hard_labels
from distill_datasets.export.summary import statement
from distill_datasets.training.intervals import Interval


def row(name: str, *accuracies: float, held_out: float | None = None) -> dict[str, Any]:
    runs = [{"seed": seed, "accuracy": accuracy} for seed, accuracy in enumerate(accuracies)]
    found = {"from": name, "accuracy": {"mean": sum(accuracies) / len(accuracies)}, "runs": runs}
    if held_out is not None:
        found["tuned"] = {"held_out": held_out, "runs": runs[:2]}
    return found


OWN = row("default", 0.80, 0.82, 0.81, held_out=0.8)


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ([row("herding", 0.5, 0.52, 0.51), row("webp", 0.7, 0.72, 0.71)], "beat the best of 2"),
        ([row("webp", 0.9, 0.92, 0.91)], "do worse than real images (random real images as lossy"),
        ([row("webp", 0.6, 0.95, 0.85)], "do not beat real images"),
        ([row("webp", 0.2)], "are not shown to beat real images"),
    ],
)
def test_the_interval_decides_between_words(others: list[dict[str, Any]], words: str) -> None:
    said = statement([OWN, *others], hard=True)
    assert said is not None and words in said and said.startswith("With hard labels these images")


def test_the_best_is_the_one_that_held_out_images_like_and_not_test_images() -> None:
    others = [
        row("herding", 0.7, 0.7, 0.72, held_out=0.6), row("webp", 0.5, 0.5, 0.52, held_out=0.9)
    ]  # fmt: skip
    said = statement([OWN, *others], hard=True)
    assert said is not None and "WebP" in said and "+30.3 ± " in said


def test_soft_labels_and_labels_of_views_are_named() -> None:
    soft = statement([OWN, row("herding", 0.5, 0.5, 0.5)], hard=False)
    assert soft is not None
    assert soft.startswith("With the published labels") and "which have hard labels" in soft
    views = [
        OWN, row("hard", 0.40, 0.41, 0.42), row("random_real", 0.80, 0.83, 0.81),
        row("random_real_hard", 0.3, 0.31, 0.32), row("teacher", 0.99),
    ]  # fmt: skip
    said = statement(views, hard=True)
    assert said is not None
    first, second = said.split(". With")
    assert "With hard labels these images beat real images" in first and "+10.0" in first
    assert "the teachers' labels these images do not beat" in second


def test_without_real_images_nothing_is_said() -> None:
    assert statement([OWN, row("full", 0.99)], hard=True) is None


def test_the_interval_is_that_of_welch() -> None:
    one, other = [0.61, 0.64, 0.60, 0.66, 0.63], [0.5, 0.55, 0.52, 0.49, 0.51, 0.53]
    found = Interval.between(one, other)
    theirs = stats.ttest_ind(one, other, equal_var=False).confidence_interval()
    assert found.half == pytest.approx((theirs.high - theirs.low) / 2, rel=0.02)
    assert found.mean == pytest.approx((theirs.high + theirs.low) / 2)
    assert Interval.between([0.5, 0.5], [0.4, 0.4]).verdict == "better"
    assert Interval.between([0.5], [0.4, 0.4]).half is None


def test_a_label_is_hard_where_every_row_is_a_class_alone(tmp_path: Path) -> None:
    write_dataset(tmp_path / "hard", pixels_sample(), None)
    write_dataset(tmp_path / "soft", sample(), None)
    mixed_NK = torch.eye(3).repeat_interleave(2, dim=0)
    mixed_NK[5] = torch.tensor([0.5, 0.5, 0.0])
    write_dataset(tmp_path / "one", replace(pixels_sample(), targets_NK=mixed_NK), None)
    names = ("hard", "soft", "one")
    assert [has_hard_labels(tmp_path / name) for name in names] == [True, False, False]
