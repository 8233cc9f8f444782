"""A plan's numbers are those that a hand computes, and nothing is trained for them."""

import importlib.util
from pathlib import Path
from typing import ClassVar, Literal
from unittest import mock

import datasets
import pytest
from support.image_sets import dataset
from support.toy_runs import toy_recipe

from distill_datasets.config import BUILT_IN
from distill_datasets.data.real import RealData
from distill_datasets.distilled import Distilled
from distill_datasets.errors import DataError, DistillError, RecipeError
from distill_datasets.models.convnets import ConvNet
from distill_datasets.models.flops import cost
from distill_datasets.networks.network import NetworkSource
from distill_datasets.objectives.objective import Block, Estimate, Objective
from distill_datasets.pipeline.run import run
from distill_datasets.planning.plan import plan
from distill_datasets.runtime import precision
from distill_datasets.runtime.draws import LaneDraw
from distill_datasets.types import Shape


def numbers(*overrides: str) -> dict[str, str]:
    return dict(plan(toy_recipe(*overrides)).numbers)


def stages(*overrides: str) -> dict[str, str]:
    return dict(plan(toy_recipe(*overrides)).stages)


@pytest.mark.parametrize(
    ("network", "shape", "flops", "weights"),
    [
        # convolution 2 * 64 px * 3 * 9, linear 2 * 48 * 10; weights 27 + 6 of the norm + 480 + 10
        (ConvNet(depth=1, width=3), Shape(1, 8, 8, 10), 3456 + 960, 27 + 6 + 490),
        # without a norm the convolution has a bias, which the convention does not count as work
        (ConvNet(depth=1, width=3, norm="none"), Shape(1, 8, 8, 10), 3456 + 960, 27 + 3 + 490),
        (ConvNet(depth=1, width=3), Shape(3, 8, 8, 10), 3 * 3456 + 960, 81 + 6 + 490),
        # ConvNet-3 of the papers: 320,010 weights less 384 biases
        (ConvNet(depth=3, width=128), Shape(3, 32, 32, 10), 101_490_688, 320_010 - 384),
    ],
)
def test_work_and_weights_of_a_network_are_those_of_a_hand(
    network: ConvNet, shape: Shape, flops: float, weights: int
) -> None:
    assert cost(network, shape) == (flops, weights)


def test_a_poster_is_counted_in_pixels() -> None:
    found = numbers()
    assert found["one example"] == "1 x 8 x 8 px"
    assert found["originals"] == "1 of 12 x 32 px"
    assert found["budget"] == "384 px = 0.6 per class"
    assert found["trained pixel values"] == "384"
    assert found["float originals"] == "1,536 bytes"
    assert found["rows, before PNG"] == "768 bytes"  # 12 crops of 8 x 8


def test_separate_images_are_counted_in_pixels() -> None:
    found = numbers("distill.canvas={name: pixels, ipc: 2}", "source.channels=rgb")
    assert found["one example"] == "3 x 8 x 8 px"
    assert found["originals"] == "20 of 8 x 8 px"
    assert found["budget"] == "1,280 px = 2 per class"  # pixels count once, whatever the channels
    assert found["trained pixel values"] == "3,840"
    assert found["rows, before PNG"] == "3,840 bytes"


@pytest.mark.parametrize("fast", [True, False])
def test_what_auto_stands_for_here_is_told(monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    monkeypatch.setattr(precision, "cpu_is_fast", lambda: fast)
    monkeypatch.setattr("distill_datasets.planning.plan.has_compiler", lambda kind: fast)
    monkeypatch.setattr(precision, "has_compiler", lambda kind: fast)
    teaching = [
        "squeeze={epochs: 1, precision: auto, network: {name: convnet, depth: 2, norm: batch}}",
        "distill.objective={name: recover, precision: auto, compile: auto}",
        "distill.networks=teachers", "distill.labels=area",
        "distill.optimizer={name: adam, lr: 0.1}",
        "distill.canvas={name: pixels, ipc: 1, bounds: clip}", "distill.lanes=1",
    ]  # fmt: skip
    found = numbers(*teaching, "distill.steps=1000")
    taken = "bfloat16" if fast else "float32"
    assert found["computed here"] == f"in {taken}: squeeze.precision, distill.objective.precision"
    done = "compiled" if fast else "not compiled"
    assert found["compiled here"].startswith(f"{done}: distill.objective.compile")
    few = numbers(*teaching, "distill.steps=999")["compiled here"]
    assert few.startswith("not compiled") and few.endswith("999 steps do not pay for it")
    assert "computed here" not in numbers()


def test_work_is_counted_per_lane_and_step() -> None:
    # 9,536 FLOP an image; 12 crops: 1 plain step of 2.93 and 2 tracked ones of 8.79 on average,
    # then 2.93 for each of 50 real images; 2 lanes, 4 outer steps
    step = 2 * 9536 * (12 * (2.93 + 2 * 8.79) + 50 * 2.93)
    student = 9536 * 2.93 * 10 * 12
    found = numbers()
    assert found["network"] == "366 weights, 9536 FLOP per image"
    assert found["work of an outer step"] == f"{step / 1e6:.3g} MFLOP" == "7.49 MFLOP"
    assert found["work in all"] == f"{(4 * step + 2 * 2 * student) / 1e6:.3g} MFLOP"
    assert stages()["distill"] == f"4 outer steps of 2 lanes, {4 * step / 1e6:.3g} MFLOP"
    assert stages()["evaluate"].endswith(f"{student / 1e6:.3g} MFLOP each")


def test_a_set_that_is_not_trained_is_planned() -> None:
    assert numbers("distill.steps=0")["work of an outer step"] == "7.49 MFLOP"
    assert stages("distill.steps=0")["distill"] == "0 outer steps of 2 lanes, 0 FLOP"


def test_references_are_planned_with_students_of_their_own() -> None:
    text = stages("evaluate.references=[random_real, full]", "evaluate.exact=false")["evaluate"]
    assert text.startswith("2 students of 10 steps for default, random_real, ")
    assert text.endswith("; 2 of 20 epochs for full")
    assert numbers("evaluate.references=[full]")["work in all"].endswith("and the full reference")


class Plain(Objective):
    """The smallest objective of another package: it has an estimate, and nothing else."""

    paper: ClassVar[str] = "none"
    name: Literal["plain"] = "plain"

    def estimate(
        self, distilled: Distilled, networks: NetworkSource, real: RealData, draw: LaneDraw
    ) -> Estimate:
        raise AssertionError("a plan estimates nothing")


class PlainBlocks(Plain):
    """The same, solved image by image."""

    separable: ClassVar[bool] = True
    name: Literal["plain_blocks"] = "plain_blocks"  # type: ignore[assignment]

    def blocks(self, classes: int, per_class: int) -> list[Block]:
        return [Block((place,)) for place in range(classes * per_class)]


def test_an_objective_that_counts_no_work_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUILT_IN["objectives"], "plain", f"{__name__}:Plain")
    found = plan(toy_recipe("distill.objective={name: plain}"))
    assert dict(found.stages)["distill"] == "4 outer steps of 2 lanes, work unknown"
    assert dict(found.numbers)["work of an outer step"] == "work unknown"
    assert dict(found.numbers)["work in all"] == "work unknown"
    parts = dict(found.parts)
    assert parts["distill.objective: plain"] == f"Plain, {Path(__file__).name}"


def test_blocks_of_unknown_work_have_costs_without_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUILT_IN["objectives"], "plain_blocks", f"{__name__}:PlainBlocks")
    blocks = ["distill.objective={name: plain_blocks}", "distill.labels=area"]
    recipe = toy_recipe(*blocks, "distill.canvas={name: pixels, ipc: 2, bounds: clip}")
    by_name = dict(plan(recipe, flops_per_second=1e12).costs)
    assert by_name["distill"] == "20 pieces, work unknown, 2.56 kB written"
    assert by_name["all stages"] == "work unknown" and " on 8; " in by_name["evaluate"]


def test_every_part_is_named_with_its_class_and_file() -> None:
    parts = dict(plan(toy_recipe("distill.objective.optimizer={name: sgd, lr: 0.1}")).parts)
    assert parts["distill.objective: unrolled"] == (
        "Unrolled, distill_datasets/objectives/unrolled.py"
    )
    assert parts["distill.objective.optimizer: sgd"] == "Sgd, distill_datasets/optimizers.py"
    assert parts["evaluate.network: convnet"] == "ConvNet, distill_datasets/models/convnets.py"


def test_a_plan_of_an_object_in_memory_needs_no_name() -> None:
    rows = dataset([0, 1, 0, 1])
    network = "{name: convnet, depth: 1, width: 2}"
    recipe = toy_recipe(
        "distill.canvas={name: pixels, ipc: 1}",
        f"distill.networks.network={network}",
        f"evaluate.network={network}",
    )
    found = plan(recipe, datasets.DatasetDict(train=rows, test=rows))
    assert dict(found.stages)["source"] == "read in memory; 2 classes"
    assert dict(found.numbers)["budget"] == "8 px = 1 per class"


SMALL = "network: {name: convnet, depth: 2, width: 4}"
SQUEEZED = f"squeeze={{epochs: 1, members: 1, {SMALL}}}"
DIGITS = "dataset: 'embedded:uci-digits'"
TEACHING = f"{{epochs: 1, members: 1, {SMALL}, source: {{%s}}}}"


def refusal_of_plan_and_run(folder: Path, *overrides: str) -> str:
    """The message of both, which come before any image but the first few is read."""
    recipe, messages = toy_recipe(*overrides), []
    with mock.patch("distill_datasets.data.source.SourceDataset.read", side_effect=AssertionError):
        for refused in (lambda: plan(recipe), lambda: run(recipe, runs=folder, quiet=True)):
            with pytest.raises(DistillError) as caught:
                refused()
            messages.append(str(caught.value))
    assert messages[0] == messages[1]
    return messages[0]


@pytest.mark.parametrize(
    "canvas", ["name: pixels, ipc: 1", "name: poster, ipc: 0.6, crops: 12", "name: mosaic, ipc: 1"]
)
def test_a_start_that_cannot_be_made_is_refused_before_the_source_is_read(
    canvas: str, tmp_path: Path
) -> None:
    def refused(init: str) -> str:
        return refusal_of_plan_and_run(
            tmp_path / "runs",
            SQUEEZED,
            "distill.networks=pretrained",
            f"distill.canvas={{{canvas}, init: {init}}}",
        )

    why = refused("{name: rded, factor: 9}")
    assert why.startswith("distill.canvas.init.factor: 9 tiles along a side of 8 px; set it to at")
    (tmp_path / "other").mkdir()
    dataset([0, 1]).to_parquet(tmp_path / "other" / "train.parquet")
    for folder, cause in (("none", "no file or folder"), ("other", "no config 'recipe'")):
        why = refused(f"{{name: published, dataset: '{tmp_path / folder}'}}")
        assert why.startswith(f"distill.canvas.init.dataset: cannot read '{tmp_path / folder}' as")
        assert cause in why and "source." not in why


def test_the_shape_that_the_plan_of_an_absent_dataset_asks_for_is_one_that_it_takes() -> None:
    absent = DataError("source.dataset: cannot be reached")
    overrides = ["source.dataset=org/absent", "source.limit=null"]
    with mock.patch("distill_datasets.planning.plan.open_source", side_effect=absent):
        with pytest.raises(DataError) as caught:
            plan(toy_recipe(*overrides))
        example = str(caught.value).split('"')[1]
        found = plan(toy_recipe(*overrides, example, "distill.canvas={name: pixels, ipc: 1}"))
    assert dict(found.numbers)["one example"] == "3 x 224 x 224 px"


MATCHED = "distill.objective={name: distribution, statistic: %s}"
SQUEEZENET = "{name: torchvision, model: squeezenet1_0}"


@pytest.mark.parametrize(
    ("words", "overrides"),
    [
        (
            "distill.labels: the classes [5, 6, 7, 8, 9] are in no example",
            ["distill.labels=area", "distill.canvas={name: pixels, count: 5}"],
        ),
        (
            "model='squeezenet1_0' stem='imagenet') has no Linear layer",
            [
                MATCHED % "mean",
                "source.resolution=32",
                f"distill.networks.network={SQUEEZENET}",
            ],
        ),
        (
            "has 1 ReLU layers after which there are maps, expected at least two",
            [MATCHED % "attention", "distill.networks.network.depth=1"],
        ),
    ],
)
def test_what_only_the_stage_that_distills_needs_is_looked_at_before_the_source_is_read(
    words: str, overrides: list[str], tmp_path: Path
) -> None:
    assert words in refusal_of_plan_and_run(tmp_path, *overrides)


def test_an_order_whose_package_is_not_there_is_refused_before_the_source_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, package=None: None if name == "transformers" else found(name, package),
    )
    refusal = refusal_of_plan_and_run(tmp_path, "distill.canvas.order=clip")
    assert refusal.startswith("distill.canvas.order: 'clip' needs transformers; run `pip install ")


def test_the_network_of_experts_is_looked_at_before_they_are_trained(tmp_path: Path) -> None:
    refusal = refusal_of_plan_and_run(
        tmp_path,
        f"squeeze={{epochs: 1, members: 1, network: {SQUEEZENET}}}",
        *("distill.networks=pretrained", MATCHED % "characteristic", "source.resolution=32"),
    )
    assert "model='squeezenet1_0' stem='imagenet') has no Linear layer" in refusal


def test_an_order_that_hides_a_class_is_refused_before_networks_are_trained(
    tmp_path: Path,
) -> None:
    recipe = toy_recipe(
        *(SQUEEZED, "distill.networks=pretrained", "source.classes=['8', '1', '3']"),
        "distill.canvas={name: poster, height: 8, width: 12, crops: [1, 3]}",
        "distill.labels={name: area, rule: one_hot}",
    )
    plan(recipe)
    with (
        mock.patch("distill_datasets.pipeline.run.run_squeeze", side_effect=AssertionError),
        pytest.raises(RecipeError, match=r"labels: the classes \[\d\] are in .* or another order$"),
    ):
        run(recipe, runs=tmp_path, quiet=True)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (f"{DIGITS}, resolution: 4", "squeeze.source: images of 1 x 4 x 4 in 10 classes, expected"),
        (
            f"{DIGITS}, classes: [0, 1]",
            "squeeze.source: images of 1 x 8 x 8 in 2 classes, expected",
        ),
        (
            f"{DIGITS}, classes: [1, 0, 2, 3, 4, 5, 6, 7, 8, 9]",
            'would swap labels; set squeeze.source.classes to ["0", "1", "2", ',
        ),
    ],
)
def test_another_source_to_train_on_is_compared_before_either_is_read(
    source: str, words: str, tmp_path: Path
) -> None:
    refusal = refusal_of_plan_and_run(
        tmp_path, f"squeeze={TEACHING % source}", "distill.networks=pretrained"
    )
    assert words in refusal


def test_another_source_of_the_same_classes_in_order_is_planned() -> None:
    order = list(map(str, range(10)))
    plan(
        toy_recipe(
            f"squeeze={TEACHING % f'{DIGITS}, classes: {order}'}", "distill.networks=pretrained"
        )
    )


def test_all_that_does_not_fit_the_source_is_listed_at_once(tmp_path: Path) -> None:
    first, *problems = refusal_of_plan_and_run(
        tmp_path,
        "distill.canvas.ipc=0.05",
        "distill.networks.network.depth=4",
        "distill.objective.attack={attacked: 0, target: 10}",
    ).splitlines()
    assert first == "3 problems" and "set ipc to at least 0.1" in problems[0]
    assert "lower depth" in problems[1] and "class 10 of a source with 10" in problems[2]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("distill.canvas.ipc=0.05", "set ipc to at least 0.1"),
        ("distill.canvas.crops=[1, 99]", "uncovered"),
        ("distill.networks.network.depth=4", "lower depth"),
        ("evaluate.network.depth=4", "lower depth"),
        ("distill.canvas.order={name: list, classes: [0, 1]}", r"every class 0\.\.9 once"),
    ],
)
def test_what_a_run_would_refuse_is_refused_by_its_plan(override: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        plan(toy_recipe(override))
