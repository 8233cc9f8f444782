"""What a window keeps in memory, against what autograd saves while one is differentiated."""

import pytest
import torch
from support.unrolled_problem import Clock, Problem
from torch import Tensor

from distill_datasets.models.convnets import ConvNet
from distill_datasets.networks import inner_steps
from distill_datasets.objectives.unrolled import Unrolled
from distill_datasets.optimizers import Adam, Sgd
from distill_datasets.planning.memory import Footprint, footprint, in_words, kept
from distill_datasets.types import Batch, Shape

SMALL = ConvNet(depth=1, width=4)


def window(steps: int, optimizer: Adam | Sgd) -> Unrolled:
    return Unrolled(
        inner_steps=steps, window=steps, real_batch=4, optimizer=optimizer, differentiate="graph"
    )


def saved_by_a_run(problem: Problem, objective: Unrolled) -> int:
    """Bytes of all storages that autograd saves in an estimate; none is freed on the way."""
    held = dict[int, torch.UntypedStorage]()

    def keep(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        problem.estimate(objective)
    return sum(storage.nbytes() for storage in held.values())


@pytest.mark.parametrize("optimizer", [Sgd(lr=0.1), Adam(lr=0.01)])
def test_a_step_keeps_what_autograd_saves_for_one_more_step(optimizer: Adam | Sgd) -> None:
    problem = Problem()
    few, many = (saved_by_a_run(problem, window(steps, optimizer)) for steps in (3, 7))
    images_BCHW, targets_BK = problem.distilled(torch.arange(problem.distilled.count))
    batch = Batch(images_BCHW.detach().requires_grad_(), targets_BK.detach().requires_grad_())
    one = kept(window(1, optimizer), problem.networks.sample(Clock()), batch)
    # the canvas and the augmentation of a step come on top
    assert one == pytest.approx((many - few) / 4, rel=0.15)


def test_recomputation_keeps_vectors_of_weights_and_one_chunk() -> None:
    shape = Shape(1, 8, 8, 3)
    steps = [
        footprint(window(count, Adam(lr=0.01)), SMALL, shape, 10).recompute for count in (1, 2)
    ]
    network = SMALL.build(shape)
    weights = sum(parameter.numel() for parameter in network.parameters())
    # weights, two moments, gradient; four bytes each
    assert steps[1] - steps[0] == 4 * 4 * weights


def test_only_the_examples_of_a_step_count() -> None:
    shape = Shape(1, 8, 8, 3)
    whole = window(2, Sgd(lr=0.1))
    part = whole.model_copy(update={"batch": 5})
    assert footprint(part, SMALL, shape, 40) == footprint(whole, SMALL, shape, 5)
    assert footprint(whole, SMALL, shape, 40).graph > 4 * footprint(part, SMALL, shape, 40).graph


@pytest.mark.parametrize(
    ("graph", "device", "expected"),
    [(40, 100, "graph"), (50, 100, "graph"), (51, 100, "recompute")],
)
def test_the_graph_is_chosen_where_half_of_the_memory_holds_it(
    graph: int, device: int, expected: str
) -> None:
    found = Footprint(graph, 1, device)
    assert found.choice == expected
    advice = dict(in_words(window(2, Sgd(lr=0.1)), found))["differentiate by"]
    assert ("set distill.objective.differentiate: recompute" in advice) == (expected == "recompute")


@pytest.mark.parametrize(("room", "way"), [(0, "recompute"), (2**40, "graph")])
def test_a_plan_says_which_way_auto_takes(
    room: int, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inner_steps, "GRAPH_BYTES", room)
    objective = window(2, Adam(lr=0.01)).model_copy(update={"differentiate": "auto"})
    lines = dict(in_words(objective, Footprint(1000, 100, 10**9)))
    assert lines["differentiate by"] == f"{way}, which auto takes here"
