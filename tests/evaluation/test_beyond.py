"""What is measured beyond the recipe's own student: longer, on other networks, at tuned rates.

Shape suffixes: N rows, C channels, H W pixels.
"""

import dataclasses
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from support.sample_content import sample
from support.tiny import CPU, toy_real

from distill_datasets.data.decoding import Split
from distill_datasets.data.real import RealData
from distill_datasets.errors import DivergedError
from distill_datasets.evaluation import evaluate
from distill_datasets.evaluation.beyond import Beyond, other_networks
from distill_datasets.evaluation.evaluate import run_evaluate
from distill_datasets.evaluation.held_out import holding_out
from distill_datasets.evaluation.protocol import Evaluate
from distill_datasets.evaluation.trials import best_of
from distill_datasets.export.folder import write_dataset
from distill_datasets.models.convnets import ConvNet, Mlp
from distill_datasets.models.vision import ResNet
from distill_datasets.optimizers import Adam, Sgd
from distill_datasets.runtime.draws import draws, rng_for
from distill_datasets.runtime.processes import Run, Runtime
from distill_datasets.training.checkpoint import TrainingCheckpoint
from distill_datasets.training.examples import Whole
from distill_datasets.training.student import students_at, train_student
from distill_datasets.types import Shape

REAL = toy_real()
NET = ConvNet(depth=1, width=4)
SETTINGS = Evaluate(
    network=NET,
    students=2,
    steps=4,
    optimizer=Adam(lr=0.01),
    exact=False,
    references=["random_real", "class_mean"],
    beyond=Beyond(students=1, longer=[2], networks=[Mlp(depth=0)], tuned_steps=12, held_out=12),
)


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "exported", sample(channels=1), None)
    return tmp_path / "exported"


def changed(**fields: Any) -> Evaluate:  # noqa: ANN401
    return SETTINGS.model_copy(update=fields)


def measure(
    settings: Evaluate, exported: Path, real: RealData = REAL, runs: str = "runs"
) -> dict[str, dict[str, Any]]:
    """Evaluate, one student after the other; a result row for each baseline."""
    runtime = Runtime()
    runtime.cores = 1
    run = Run(3, exported.parent / runs, runtime, shown=False)
    rows = run_evaluate(settings, exported, real, identity="", pixels=168, run=run)
    return {row["from"]: row for row in rows}


def test_other_networks_are_of_another_depth_fully_connected_and_linear() -> None:
    digits, color = Shape(1, 8, 8, 10), Shape(3, 32, 32, 10)
    own = ConvNet(depth=1, width=32, norm="none")
    deeper = own.model_copy(update={"depth": 2})
    assert other_networks(own, digits) == [deeper, Mlp(), Mlp(depth=0)]
    shallower = ConvNet(depth=2, width=8)
    assert other_networks(ConvNet(depth=3, width=8), digits)[0] == shallower
    assert other_networks(ConvNet(), color)[0] == ConvNet(depth=4)
    assert other_networks(ConvNet(), color)[-1] == ResNet(width=16)
    assert other_networks(Mlp(), digits)[0] == ConvNet(depth=1, width=64)
    assert Mlp() not in Beyond().others(Mlp(), digits)
    for network in (*other_networks(ConvNet(), color), *other_networks(own, digits)):
        network.build(color)


def test_tuning_goes_to_an_end_that_every_row_reaches() -> None:
    assert Beyond().ladder(10) == [10, 20, 40, 600]
    assert Beyond().ladder(200) == [200, 400, 600]
    assert Beyond().ladder(1000) == [1000]
    assert Beyond(longer=[]).multiples(7) == [7]
    assert best_of({(1.0, 10): 0.5, (1.0, 20): 0.7, (0.3, 10): 0.7}) == (1.0, 20)


def test_held_out_images_are_spread_over_the_classes_and_in_no_reference() -> None:
    labels_N = torch.cat([torch.zeros(30), torch.ones(4), torch.full((1,), 2)]).long()
    images_NCHW = torch.arange(35, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8)
    real = dataclasses.replace(REAL, train=Split(images_NCHW, labels_N))
    found = holding_out(real, 12, rng_for(0, "held out"))
    assert found.test.labels_N.bincount(minlength=3).tolist() == [4, 1, 0]
    assert found.counts_K == [26, 3, 1]
    rows = [split.images_NCHW[:, 0, 0, 0].tolist() for split in (found.train, found.test)]
    assert sorted(rows[0] + rows[1]) == list(range(35))
    assert found.test.labels_N.tolist() == labels_N[rows[1]].tolist()


@pytest.mark.parametrize("batch", [200, 50])  # of 120 rows: a pass has one step or two
def test_a_student_along_its_way_is_the_student_of_fewer_steps(batch: int, tmp_path: Path) -> None:
    settings = Evaluate.model_validate(
        {**SETTINGS.model_dump(), "batch": batch, "augment": {"operations": ["shift"]}}
    )
    draw = draws(0, "student")

    def bits(module: torch.nn.Module) -> list[float]:
        return torch.cat([each.flatten() for each in module.state_dict().values()]).tolist()

    checkpoint = TrainingCheckpoint(tmp_path / "kept.safetensors", 0.0)
    found = {}
    for mark, module in students_at(
        settings, [1, 3, 6], Whole(REAL), REAL.shape, draw, CPU, checkpoint=checkpoint
    ):
        found[mark] = bits(module.eval())
    for mark, weights in found.items():
        assert weights == bits(train_student(settings, mark, Whole(REAL), REAL.shape, draw, CPU))
    # the file is of a pass that ended after three steps
    again = students_at(
        settings, [1, 3, 6], Whole(REAL), REAL.shape, draw, CPU, checkpoint=checkpoint
    )
    assert {mark: bits(module) for mark, module in again} == {6: found[6]}


def test_results_tell_tuned_rows_longer_training_other_networks_and_the_worst(
    exported: Path,
) -> None:
    rows = measure(SETTINGS, exported)
    assert list(rows) == ["default", "random_real", "class_mean"]
    for row in rows.values():
        assert row["tuned"]["rate"] in (1.0, 0.3, 3.3) and row["tuned"]["steps"] in (4, 8, 12)
        assert row["tuned"]["lr"] == pytest.approx(0.01 * row["tuned"]["rate"])
        assert 0 <= row["tuned"]["held_out"] <= 1 and row["chance"] == 1 / 3
    wider = [name for name, row in rows.items() if "beyond" in row]
    assert len(wider) == 2 and wider[0] == "default"
    best = max(
        ("random_real", "class_mean"), key=lambda name: rows[name]["tuned"]["accuracy"]["mean"]
    )
    assert wider[1] == best
    for name in wider:
        row = rows[name]
        assert [(each["network"][:3], each["steps"]) for each in row["beyond"]] == [
            *(("con", 8), ("mlp", 4), ("mlp", 8)),
        ]
        means = [each["accuracy"]["mean"] for each in [row, *row["beyond"]]]
        assert row["worst"]["accuracy"]["mean"] == min(means)


def test_the_longer_students_go_on_from_the_recipes_own(exported: Path) -> None:
    longer = measure(SETTINGS, exported)["default"]["beyond"][0]
    twice = measure(changed(steps=8, beyond=None), exported)["default"]
    assert longer["runs"] == [{key: twice["runs"][0][key] for key in ("seed", "accuracy")}]


def test_plain_rows_are_what_they_are_without_any_of_it(exported: Path) -> None:
    with_it, without = measure(SETTINGS, exported), measure(changed(beyond=None), exported)
    for name, row in without.items():
        assert row["runs"] == with_it[name]["runs"] and "tuned" not in row


def test_test_images_choose_neither_rate_nor_steps(exported: Path) -> None:
    mixed = Split(REAL.test.images_NCHW, REAL.test.labels_N.roll(1))
    found = (
        measure(SETTINGS, exported),
        measure(SETTINGS, exported, dataclasses.replace(REAL, test=mixed), runs="other"),
    )
    for name in found[0]:
        chosen = [
            {key: row[name]["tuned"][key] for key in ("rate", "steps", "held_out")} for row in found
        ]
        assert chosen[0] == chosen[1]
    assert found[0]["default"]["accuracy"] != found[1]["default"]["accuracy"]


def test_what_is_found_is_not_trained_again_and_what_is_lost_is(exported: Path) -> None:
    first = measure(SETTINGS, exported)
    with (
        mock.patch.object(evaluate, "students_at", side_effect=AssertionError),
        mock.patch.object(evaluate, "train_student", side_effect=AssertionError),
    ):
        assert measure(SETTINGS, exported) == first
    lost = sorted(exported.parent.glob("runs/*/*-at-*.json"))
    for path in lost[::3]:
        path.unlink()
    assert measure(SETTINGS, exported) == first


def test_a_schedule_that_ends_is_trained_to_its_end_every_time(exported: Path) -> None:
    settings = Evaluate.model_validate({**SETTINGS.model_dump(), "schedule": "cosine"})
    with mock.patch.object(evaluate, "students_at", wraps=students_at) as training:
        longer = measure(settings, exported)["default"]["beyond"][0]
    assert {len(call.args[1]) for call in training.call_args_list} == {1}
    twice = measure(settings.model_copy(update={"steps": 8, "beyond": None}), exported)["default"]
    assert longer["runs"][0]["accuracy"] == twice["runs"][0]["accuracy"]


def test_a_rate_at_which_training_diverges_is_a_guess_and_no_error(exported: Path) -> None:
    settings = Evaluate.model_validate(
        {
            **changed(optimizer=Sgd(lr=0.01)).model_dump(),
            "beyond": {**SETTINGS.model_dump()["beyond"], "rates": [1.0, 1e30]},
        }
    )
    with pytest.raises(DivergedError, match="lower its"):
        train_student(
            settings.model_copy(update={"optimizer": Sgd(lr=1e28)}),
            8, Whole(REAL), REAL.shape, draws(0, "x"), CPU,
        )  # fmt: skip
    rows = measure(settings, exported)
    assert all(row["tuned"]["rate"] == 1.0 for row in rows.values())


def test_without_rates_nothing_is_tuned(exported: Path) -> None:
    beyond = SETTINGS.beyond.model_copy(update={"rates": [], "networks": []})  # type: ignore[union-attr]
    rows = measure(changed(beyond=beyond), exported)
    assert not any("tuned" in row for row in rows.values())
    assert [each["steps"] for each in rows["default"]["beyond"]] == [8]
