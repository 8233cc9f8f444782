"""Groups of images beside their classes: read, drawn equally often, and measured at their worst.

Shape suffixes: N rows, K classes.
"""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from pydantic import ValidationError
from support.colored_digits import colored_digits
from support.image_sets import dataset, draw
from support.tiny import toy_real

from distill_datasets.data.decoding import Split
from distill_datasets.data.real import RealData
from distill_datasets.data.source import Source, SourceDataset, open_source
from distill_datasets.errors import DataError
from distill_datasets.evaluation.results import by_group
from distill_datasets.pipeline.run import run
from distill_datasets.recipe import load_recipe
from distill_datasets.runtime.draws import rng_for
from distill_datasets.runtime.processes import Run, Runtime
from distill_datasets.stages.source import load_source
from distill_datasets.training.metrics import Answers

RECIPE = Path(__file__).parent.parent.parent / "recipes" / "domains" / "groups.yaml"


def grounds(rows: datasets.Dataset, groups: list[Any]) -> datasets.Dataset:
    return rows.add_column("ground", groups)


def grouped(**section: Any) -> SourceDataset:  # noqa: ANN401
    """Twenty training rows of which three lie on the other ground, and four test rows."""
    labels = [0, 1] * 10
    train = ["sea" if label else "land" for label in labels]
    train[0] = train[1] = train[2] = "sea"
    splits = datasets.DatasetDict(
        train=grounds(dataset(labels), train),
        test=grounds(dataset([0, 0, 1, 1], first_value=100), ["land", "sea", "sea", "sky"]),
    )
    return open_source(Source(dataset="memory", group="ground", **section), splits)


def test_groups_are_read_by_their_names_and_kept(tmp_path: Path) -> None:
    decoded = grouped().read(draw)
    assert decoded.group_names == ["land", "sea", "sky"]
    assert decoded.test.groups_N is not None and decoded.test.groups_N.tolist() == [0, 1, 1, 2]
    here = Run(0, tmp_path, Runtime())
    for _ in range(2):  # the second time from what the first has left
        real = load_source(grouped(sampling="group_balanced"), here).real
        assert real.group_names == ["land", "sea", "sky"]
        assert real.train.groups_N is not None and real.train.groups_N.bincount().tolist() == [
            8,
            12,
        ]


def test_a_row_without_a_group_is_unusable_and_a_split_without_groups_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rows = grounds(dataset([0, 1, 0, 1]), ["a", None, "b", "b"])
    splits = datasets.DatasetDict(train=rows, test=dataset([0, 1], first_value=100))
    section = Source(dataset="memory", group="ground")
    with pytest.raises(DataError, match=r"train row 1: the group is missing"):
        open_source(section, splits).read(draw)
    decoded = open_source(section.model_copy(update={"skip_bad_rows": True}), splits).read(draw)
    assert decoded.test.groups_N is None
    assert "the test split has no column 'ground': what the worst group gets" in caplog.text


def test_what_names_no_groups_is_refused() -> None:
    splits = datasets.DatasetDict(train=dataset([0, 1]), test=dataset([0, 1], first_value=9))
    for column, words in (("grund", "source.group: no column 'grund'"), ("image", "is Image, ex")):
        with pytest.raises(DataError, match=words):
            open_source(Source(dataset="memory", group=column), splits).peek()
    for section, words in (
        ({"sampling": "group_balanced"}, "set group to the column that has them"),
        ({"sampling": "group_balanced", "group": "x", "calibrate": True}, "sampling: group_bal"),
        ({"group": "x", "task": "labels"}, "group: is about classes, got task: labels"),
    ):
        with pytest.raises(ValidationError, match=words):
            Source.model_validate({"dataset": "memory", **section})


def with_groups(sampling: str) -> RealData:
    """Toy images of three classes, a third of which lies in a second group of two rows."""
    real = toy_real(per_class=20)
    groups_N = torch.zeros(60, dtype=torch.int64)
    for label in (0, 1):
        groups_N[real.rows_of_class[label][:2]] = 1
    train = Split(real.train.images_NCHW, real.train.labels_N, None, groups_N)
    return dataclasses.replace(
        real,
        train=train,
        sampling=sampling,
        group_names=["many", "few"],  # type: ignore[arg-type]
    )


def pairs(real: RealData, rows_N: torch.Tensor) -> Counter[tuple[int, int]]:
    assert real.train.groups_N is not None
    own = (real.train.labels_N[rows_N].tolist(), real.train.groups_N[rows_N].tolist())
    return Counter(zip(*own, strict=True))


def test_every_pair_of_class_and_group_that_is_there_is_drawn_equally_often() -> None:
    real = with_groups("group_balanced")
    found = pairs(real, real.order(rng_for(0)))
    assert found == {(0, 0): 12, (0, 1): 12, (1, 0): 12, (1, 1): 12, (2, 0): 12}
    uniform = with_groups("uniform")
    assert pairs(uniform, uniform.order(rng_for(0)))[0, 1] == 2


def test_images_of_a_class_come_from_its_groups_equally_often() -> None:
    real = with_groups("group_balanced")
    few = real.normalization.apply(real.train.images_NCHW[real.rows_of_class[0][:2]])
    for size in (1, 5, 8):
        drawn = real.class_images(rng_for(0, size), 0, size)
        own = sum(bool((few == image).flatten(1).all(dim=1).any()) for image in drawn)
        assert len(drawn) == size and own in (size // 2, -(-size // 2))


def test_the_worst_pair_is_told_by_students() -> None:
    logits_NK = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1], [1, 0]])
    said = Answers(logits_NK, torch.tensor([0, 0, 0, 1, 1]))
    table = said.by_group(torch.tensor([0, 0, 1, 1, 1]), 3)
    assert table == [[0.5, 1.0, None], [None, 0.5, None]]
    better = [[1.0, 0.75, None], [None, 0.5, None]]
    told = by_group([table, better], ["a", "b", "c"])
    assert told["worst_group"] == {"mean": 0.5, "std": 0.0} and told["groups"] == ["a", "b", "c"]
    assert told["per_group"] == [[0.75, 0.875, None], [None, 0.5, None]]


def test_the_recipe_of_groups_measures_the_worst_one(tmp_path: Path) -> None:
    small = ["distill.steps=2", "evaluate.steps=4", "evaluate.students=1", "evaluate.full_epochs=1"]
    small += ["distill.networks.members=1", "distill.networks.age=3", "evaluate.full_students=1"]
    recipe = load_recipe(RECIPE, [*small, "source.limit=300"])
    outcome = run(recipe, runs=tmp_path, dataset=colored_digits(), quiet=True)
    for row in outcome.results:
        assert row["groups"] == ["green", "red"] and len(row["per_group"]) == 10
        assert row["worst_group"]["mean"] <= row["accuracy"]["mean"]
    card = (outcome.folder / "README.md").read_text(encoding="utf-8")
    assert "| worst group, % |" in card
