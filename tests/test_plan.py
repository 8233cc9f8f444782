"""A plan's numbers are those that a hand computes, and nothing is trained for them."""

import datasets
import pytest
from image_sets import dataset
from toy_runs import toy_recipe

from distill_datasets.errors import RecipeError
from distill_datasets.networks.zoo import ConvNet
from distill_datasets.plan import cost, plan
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


def test_references_are_planned_with_students_of_their_own() -> None:
    text = stages("evaluate.references=[random_real, full]", "evaluate.exact=false")["evaluate"]
    assert text.startswith("2 students of 10 steps for default, random_real, ")
    assert text.endswith("; 2 of 20 epochs for full")
    assert numbers("evaluate.references=[full]")["work in all"].endswith("and the full reference")


def test_every_part_is_named_with_its_class_and_file() -> None:
    parts = dict(plan(toy_recipe("distill.objective.optimizer={name: sgd, lr: 0.1}")).parts)
    assert parts["distill.objective: unrolled"] == (
        "Unrolled, distill_datasets/objectives/unrolled.py"
    )
    assert parts["distill.objective.optimizer: sgd"] == "Sgd, distill_datasets/inner.py"
    assert parts["evaluate.network: convnet"] == "ConvNet, distill_datasets/networks/zoo.py"


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
