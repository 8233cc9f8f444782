"""A pool of networks: whose turn it is, how old they are, what trains them; and runs resume.

Shape suffixes: P all weights of a network.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.outer_loop_problem import Counting, run, same_bits, settings
from support.tiny import CPU, NET, TOY, distilled_of, flops, toy_real
from torch import Tensor, nn

from distill_datasets.canvases.pixels import Pixels
from distill_datasets.distilled import Distilled
from distill_datasets.files.artifacts import read_tensors
from distill_datasets.labels.learned import Vectors
from distill_datasets.models.convnets import ConvNet, Mlp
from distill_datasets.networks.network import fresh_weights
from distill_datasets.networks.pool import Pool, PoolSource
from distill_datasets.objectives.regression import Regression
from distill_datasets.optimizers import Sgd
from distill_datasets.runtime.draws import LaneDraw
from distill_datasets.stages.distill import STATE
from distill_datasets.views.augment import Augment

LINEAR = Mlp(depth=0)
REAL = toy_real()


def pool(**fields: Any) -> Pool:  # noqa: ANN401
    return Pool(**{"networks": [NET, LINEAR], "members": 3, "age": 4, **fields})


def source(**fields: Any) -> PoolSource:  # noqa: ANN401
    made = pool(**fields).build(TOY, CPU)
    assert isinstance(made, PoolSource)
    return made


@pytest.fixture
def distilled() -> Distilled:
    return distilled_of(REAL, Pixels(ipc=2), Vectors())


def advanced(networks: PoolSource, distilled: Distilled, steps: int, lane: int = 0) -> list[Tensor]:
    """The weights that every step uses while the pool is trained."""
    used = []
    for step in range(steps):
        draw = LaneDraw(0, step, lane, steps)
        used.append(networks.sample(draw).weights_P.clone())
        networks.carry(lane, networks.advance(distilled, REAL, draw))
    return used


def test_members_have_turns_and_take_the_architectures_in_turn(distilled: Distilled) -> None:
    used = advanced(source(), distilled, 6)
    sizes = [len(weights_P) for weights_P in used]
    assert sizes == 2 * [sizes[0], 8 * 8 * 3 + 3, sizes[0]]


def test_a_member_is_drawn_anew_when_it_is_old_and_members_are_of_different_ages() -> None:
    networks = source()
    ages = [
        [networks._member(LaneDraw(0, 3 * turn + number, 0, 1)).age for turn in range(8)]
        for number in range(3)
    ]
    assert ages == [[0, 1, 2, 3, 0, 1, 2, 3], [0, 1, 2, 0, 1, 2, 3, 0], [0, 1, 0, 1, 2, 3, 0, 1]]


def test_a_fresh_member_is_a_new_draw(distilled: Distilled) -> None:
    networks = source(networks=[LINEAR], members=1, age=2)
    used = advanced(networks, distilled, 4)
    for step in (0, 2):
        skeleton = networks._skeletons[0]
        fresh_P = fresh_weights(skeleton, LaneDraw(0, step, 0, 4)("network"), CPU)
        torch.testing.assert_close(used[step], fresh_P, rtol=0, atol=0)
    assert not torch.equal(used[0], used[2])


def test_a_member_is_trained_on_the_distilled_set_as_torch_would(distilled: Distilled) -> None:
    rule = Sgd(lr=0.1, momentum=0.9)
    networks = source(networks=[LINEAR], members=1, age=4, optimizer=rule)
    used = advanced(networks, distilled, 4)
    module = LINEAR.build(TOY)
    nn.utils.vector_to_parameters(used[0], module.parameters())
    optimizer = torch.optim.SGD(module.parameters(), 0.1, 0.9)
    with torch.no_grad():
        images_NCHW, targets_NK = distilled(torch.arange(distilled.count))
    for expected_P in used[1:]:
        optimizer.zero_grad()
        F.cross_entropy(module(images_NCHW), targets_NK).backward()
        optimizer.step()
        found_P = nn.utils.parameters_to_vector(module.parameters()).detach()
        torch.testing.assert_close(found_P, expected_P)


def test_a_batch_of_the_distilled_set_may_train(distilled: Distilled) -> None:
    some, whole = (
        advanced(source(networks=[LINEAR], members=1, batch=batch), distilled, 2)[1]
        for batch in (2, None)
    )
    assert not torch.equal(some, whole)


def test_training_images_are_augmented(distilled: Distilled) -> None:
    plain, moved = (
        advanced(source(members=1, augment=augment), distilled, 2)[1]
        for augment in (Augment(), Augment(operations=["shift"]))
    )
    assert not torch.equal(plain, moved)


def test_a_lower_precision_trains_nearly_alike_and_keeps_weights_in_float32(
    distilled: Distilled,
) -> None:
    exact, rounded = (
        advanced(source(networks=[NET], members=1, precision=precision), distilled, 3)
        for precision in ("float32", "bfloat16")
    )
    assert rounded[2].dtype == torch.float32 and not torch.equal(exact[2], rounded[2])
    ours, theirs = (used[2] - used[0] for used in (exact, rounded))
    assert torch.cosine_similarity(ours, theirs, dim=0) > 0.8


def test_lanes_have_pools_of_their_own(distilled: Distilled) -> None:
    networks = source(networks=[LINEAR], members=2)
    ours, theirs = (advanced(networks, distilled, 5, lane) for lane in (0, 1))
    assert all(weights_P.any() for weights_P in (*ours, *theirs))
    assert not any(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


def test_work_is_what_the_counter_of_torch_counts(distilled: Distilled) -> None:
    wide, draw = [ConvNet(depth=2, width=32)], LaneDraw(0, 0, 0, 1)
    networks = source(networks=wide, members=1)
    sampled = networks.sample(draw)
    images_BCHW = torch.zeros(1, TOY.c, TOY.h, TOY.w)
    per_image = flops(lambda: sampled(sampled.weights_P, images_BCHW))
    spent = flops(lambda: networks.advance(distilled, REAL, draw))
    assert pool(networks=wide).work(per_image, 6) == pytest.approx(spent, rel=0.1)


@pytest.mark.parametrize("stop_after", [1, 4, 6])
def test_a_run_stopped_at_any_step_ends_with_the_bits_of_one_that_was_not(
    tmp_path: Path, stop_after: int
) -> None:
    given = settings(
        objective=Regression(real_batch=20, ridge=0.01, answers=3),
        canvas=Pixels(ipc=1),
        labels=Vectors(),
        networks=pool(age=2),
        steps=8,
        ema=0.5,
    )
    through = run(given, tmp_path / "through")
    with pytest.raises(KeyboardInterrupt):
        run(given, tmp_path / "stopped", bar=Counting(stop_after))
    assert same_bits(through, run(given, tmp_path / "stopped"))
    assert same_bits(through, run(given, tmp_path / "through")), "a finished run says the same"
    ends = [read_tensors(tmp_path / name / STATE)[0] for name in ("through", "stopped")]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
