"""Costs of a separable recipe against the arithmetic of the papers' ImageNet-1K setting."""

import math
from typing import Any
from unittest import mock

import pytest
from support.toy_runs import command

from distill_datasets.errors import DataError, RecipeError
from distill_datasets.files.yaml_text import to_yaml
from distill_datasets.models.convnets import ConvNet
from distill_datasets.planning.costs import Cost, costs, lines, probe
from distill_datasets.planning.plan import plan
from distill_datasets.recipe import Recipe, recipe_from
from distill_datasets.types import Shape

RESNET = {"name": "torchvision", "model": "resnet18"}
IMAGENET: dict[str, Any] = {
    "name": "imagenet",
    "source": {
        "dataset": "nobody/not-there",
        "resolution": 224,
        "channels": "rgb",
        "expected": {"classes": 1000, "rows": 1_281_167},
    },
    "squeeze": {"network": RESNET, "epochs": 90},
    "distill": {
        "objective": {"name": "recover", "match_batch": 100},
        "canvas": {"name": "pixels", "ipc": 50, "bounds": "clip"},
        "labels": "area",
        "networks": "teachers",
        "steps": 4000,
    },
    "relabel": {"epochs": 300, "batch": 100},
    "evaluate": {
        "network": RESNET,
        "students": 1,
        "steps": 150_000,
        "batch": 100,
        "loss": "kl",
        "temperature": 20.0,
        "references": [],
        "hard": False,
    },
}
SHAPE = Shape(3, 224, 224, 1000)


def imagenet(*overrides: str) -> Recipe:
    return recipe_from(IMAGENET, overrides)


def by_stage(recipe: Recipe) -> dict[str, Cost]:
    return {each.stage: each for each in costs(recipe, SHAPE, 1_281_167)}


def test_imagenet_costs_what_the_papers_arithmetic_says() -> None:
    found = by_stage(imagenet())
    assert found["distill"].units == 500
    # 7.256 GFLOP an image and step
    assert found["distill"].work == pytest.approx(7.256e9 * 50_000 * 4000, rel=1e-3)
    assert found["distill"].stored == 2 * 50_000 * 3 * 224 * 224
    assert found["squeeze"].work == pytest.approx(1.25e18, rel=0.02)
    assert found["relabel"].work == pytest.approx(0.054e18, rel=0.02)
    # files of 80 batches of 100 views, each of 2074 bytes
    assert found["relabel"].units == 1875
    assert found["relabel"].stored == pytest.approx(30e9 + 15e6 * 74, rel=1e-6)
    assert found["evaluate"].work == pytest.approx(0.163e18, rel=0.03)


def test_students_beside_the_published_ones_are_counted() -> None:
    alone = by_stage(imagenet())["evaluate"]
    beside = by_stage(imagenet("evaluate.hard=true", "evaluate.references=[random_real]"))
    # hard, random_real and random_real_hard; the teacher labels one of them while it trains
    live = 3.628e9 * 150_000 * 100
    assert beside["evaluate"].work == pytest.approx(4 * alone.work + live, rel=1e-3)
    assert (alone.units, beside["evaluate"].units) == (1, 4)


def test_whole_units_are_dealt() -> None:
    block = by_stage(imagenet())["distill"]
    alone = block.seconds(1, 2e13)
    assert alone == pytest.approx(1.45e18 / 2e13, rel=0.01)
    # 500 blocks on 64: eight rounds instead of 7.8
    assert block.seconds(64, 2e13) == pytest.approx(alone * 8 / 500)
    few = by_stage(imagenet("distill.canvas.ipc=10"))["distill"]
    assert few.units / 64 / math.ceil(few.units / 64) == pytest.approx(0.78, abs=0.01)


def test_codes_change_the_bytes_and_teachers_the_work() -> None:
    stored = by_stage(imagenet())["relabel"].stored
    halved = by_stage(imagenet("relabel.store=features"))["relabel"].stored
    assert stored - halved == 15e6 * (2000 - 1024)
    few = by_stage(imagenet("relabel.store=top_k", "relabel.top_k=100"))["relabel"].stored
    assert few == 15e6 * (74 + 400)
    pruned = by_stage(imagenet("relabel.keep=0.1"))["relabel"]
    assert pruned.stored == stored / 10
    networks = (
        f"squeeze={{networks: [{RESNET}, {{name: torchvision, model: resnet50}}], epochs: 1}}"
    )
    both = by_stage(imagenet(networks))["distill"].work
    turns = by_stage(imagenet(networks, "distill.objective.teachers=in_turn"))["distill"].work
    assert both == 2 * turns == pytest.approx((7.256e9 + 16.36e9) * 2e8, rel=2e-3)


def test_a_plan_does_not_look_at_a_dataset_whose_shape_is_told() -> None:
    planned = plan(imagenet(), None, 2e13)
    assert dict(planned.stages)["source"] == "read nobody/not-there; 1000 classes"
    by_name = dict(planned.costs)
    assert by_name["distill"].startswith("500 pieces, 1.45 EFLOP, 15.1 GB written, 20.2 h on 1; ")
    assert by_name["distill"].endswith("; 2.54 h on 8; 19.4 min on 64")
    assert set(by_name) >= {"source", "squeeze", "distill", "relabel", "evaluate", "all stages"}


def test_a_dataset_that_is_not_there_need_not_be() -> None:
    with (
        mock.patch(
            "distill_datasets.planning.plan.open_source", side_effect=DataError("no network")
        ),
        pytest.raises(DataError, match=r"no network; or tell plan what it looks like, for example"),
    ):
        plan(imagenet("source.expected=null"))


def test_the_shape_needs_a_size() -> None:
    with pytest.raises(RecipeError, match=r"source: expected.side: missing"):
        imagenet("source.resolution=null")
    recipe = imagenet("source.resolution=null", "source.expected.side=64")
    assert recipe.source.expected_shape() == Shape(3, 64, 64, 1000)


def test_the_command_prints_hours(tmp_path: Any) -> None:  # noqa: ANN401
    (tmp_path / "imagenet.yaml").write_text(to_yaml(IMAGENET))
    answer = command("plan", tmp_path / "imagenet.yaml", "--flops-per-second", "2e13")
    assert answer.code == 0, answer.err
    assert "costs by stage" in answer.out and "20.2 h on 1" in answer.out
    assert "20 TFLOP per second and GPU" in answer.out


def test_a_probe_measures_this_machine() -> None:
    measured = probe(ConvNet(depth=1, width=4), Shape(1, 8, 8, 3), 0.05)
    assert 1e6 < measured < 1e15
    (line, *_) = lines([Cost("distill", 3, 6 * measured, 0.0)], measured)
    assert line == ("distill", line[1]) and "6 s on 1; 2 s on 8; 2 s on 64" in line[1]
