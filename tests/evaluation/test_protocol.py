"""The evaluate section: its keys in order, and the rows of the results that it asks for."""

from typing import get_args

import pytest

from distill_datasets.evaluation.protocol import Evaluate
from distill_datasets.training.rows import ROWS, Reference
from distill_datasets.views.relabel import Relabel

REFERENCES = list(get_args(Reference))


def names(settings: Evaluate, *, relabeled: bool = False, exact: bool = True) -> list[str]:
    return [row.name for row in settings.compared(relabeled=relabeled, exact=exact)]


def test_keys_stand_in_the_order_of_published_recipes() -> None:
    training = "network batch optimizer schedule augment precision"
    loss = "loss temperature scale_by_temperature hard_weight label_smoothing hard_passes"
    pace = "smoothing warmup_epochs ema"
    compared = (
        "students steps epochs order start exact hard references full_epochs full_students beyond"
    )
    assert " ".join(Evaluate.model_fields) == f"{training} {loss} {pace} {compared} " + (
        "checkpoint_seconds"
    )


def test_every_reference_is_a_row_and_every_pair_too() -> None:
    assert set(REFERENCES) < ROWS.keys()
    assert {row.pair for row in ROWS.values()} - {None} < ROWS.keys()


def test_rows_are_those_asked_for_in_the_order_of_the_table() -> None:
    everything = Evaluate(steps=1, references=REFERENCES[::-1])
    real = [*("random_real", "herding", "k_center", "nearest"), *("class_mean", "k_means")]
    real += ["webp", "full"]
    assert names(everything) == ["default", "exact", *real]
    assert names(everything, exact=False) == ["default", *real]
    paired = ["default", "hard", "random_real", "random_real_hard", *real[1:], "teacher"]
    assert names(everything, relabeled=True) == paired
    only = Evaluate(steps=1, exact=False, hard=False)
    assert names(only) == ["default"]
    assert names(only, relabeled=True) == ["default", "teacher"]
    assert names(Evaluate(steps=1, exact=False, start="distilled")) == ["default", "start"]


@pytest.mark.parametrize("name", ["hard", "random_real_hard", "full"])
def test_labels_of_classes_alone_stand_in_the_table(name: str) -> None:
    assert ROWS[name].classes_alone


def test_every_reason_why_students_do_not_fit_is_listed() -> None:
    settings = Evaluate.model_validate(
        {"epochs": 2, "augment": {"operations": ["flip"]}, "order": "published"}
        | {"start": "distilled", "references": ["k_means", "webp"]}
    )
    problems = list(settings.problems(Relabel()))
    keys = [problem.partition(":")[0] for problem in problems]
    assert keys == [
        *("evaluate.references", "evaluate.references", "evaluate.augment"),
        *("evaluate.order", "evaluate.start"),
    ]
    assert list(settings.problems(None)) == []
