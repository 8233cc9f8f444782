"""What distilled images are compared with: which real rows are drawn."""

from types import SimpleNamespace
from typing import cast

import pytest
import torch

from distill_datasets.data.real import RealData
from distill_datasets.evaluation.baselines import random_rows
from distill_datasets.runtime.draws import draws


def one_by_one(labels_N: torch.Tensor, classes: int, images: int, seed: int) -> list[int]:
    """Class after class in a drawn order, each giving its rows in the order of one shuffle."""
    rng = draws(seed, "x")("random_real")
    order = torch.randperm(len(labels_N), generator=rng).tolist()
    turns = torch.randperm(classes, generator=rng).tolist()
    rows = {label: [row for row in order if labels_N[row] == label] for label in turns}
    chosen = []
    for turn in range(images):
        own = rows[turns[turn % classes]]
        chosen.append(own[turn // classes % len(own)])
    return chosen


@pytest.mark.parametrize("images", [1, 3, 5, 12, 40])
def test_random_rows_are_a_shuffles_rows_dealt_class_by_class(images: int) -> None:
    """Beyond the rows of a class its first ones come again."""
    for seed in range(5):
        labels_N = torch.tensor([3, 0, 2, 2, 4, 1, 0, 3, 3, 2, 3, 3, 0, 3])
        real = SimpleNamespace(train=SimpleNamespace(labels_N=labels_N), shape=SimpleNamespace(k=5))
        found = random_rows(cast("RealData", real), images, draws(seed, "x"))
        assert found.tolist() == one_by_one(labels_N, 5, images, seed)
