"""Networks from a squeeze stage, and fixed ones: which weights an objective and a student get."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from pydantic import ValidationError
from support.tiny import CPU, NET, TOY
from support.toy_runs import CONVNET, toy_recipe
from torch import Tensor, nn

from distill_datasets.errors import RecipeError
from distill_datasets.models.architecture import Architecture
from distill_datasets.networks.experts import Pretrained, Trajectories
from distill_datasets.networks.network import (
    Fixed,
    Fresh,
    Networks,
    NetworkSource,
    Sampled,
    fresh_weights,
    skeleton_of,
)
from distill_datasets.runtime.draws import LaneDraw, draws

SIZE = len(fresh_weights(skeleton_of(NET, TOY), torch.Generator(), CPU))


@dataclass(frozen=True)
class Store:
    """Members whose weights say which member and which epoch they are of."""

    members: int = 3
    epochs: int = 6
    keep: Literal["every", "last"] = "every"

    @property
    def architectures(self) -> tuple[Architecture, ...]:
        return (NET,) * self.members

    def weights(self, member: int, epoch: int) -> Tensor:
        assert 0 <= member < self.members and 0 <= epoch <= self.epochs
        assert self.keep == "every" or epoch in (0, self.epochs)
        return torch.full((SIZE,), 100.0 * member + epoch)

    def module(self, member: int) -> nn.Module:
        return NET.build(TOY)

    def class_statistics(self, member: int) -> None:
        return None

    def teacher_problems(self) -> Iterator[str]:
        yield from ()


def place(weights_P: Tensor | None) -> tuple[int, int]:
    """The member and the epoch of weights of `Store`."""
    assert weights_P is not None
    member, epoch = divmod(int(weights_P[0]), 100)
    return member, epoch


def source_of(networks: Networks, store: Store | None = None) -> NetworkSource:
    source = networks.build(TOY, CPU, store)
    assert isinstance(source, NetworkSource)
    return source


def sampled(networks: Networks, store: Store, step: int, lanes: int = 60) -> list[Sampled]:
    source = source_of(networks, store)
    return [source.sample(LaneDraw(0, step, lane)) for lane in range(lanes)]


def starts(networks: Trajectories, step: int) -> set[int]:
    return {place(one.weights_P)[1] for one in sampled(networks, Store(), step)}


def test_a_trajectory_goes_from_any_epoch_of_any_member_to_the_same_member_later() -> None:
    seen = set()
    for network in sampled(Trajectories(gap=2, first=1, last=4), Store(), 0):
        member, epoch = place(network.weights_P)
        assert place(network.target_P) == (member, epoch + 2)
        seen.add((member, epoch))
    assert seen == {(member, epoch) for member in range(3) for epoch in (1, 2, 3)}


def test_a_trajectory_is_a_working_network_of_the_squeezed_architecture() -> None:
    (network,) = sampled(Trajectories(last=4), Store(), 0, lanes=1)
    assert network(network.weights_P, torch.zeros(5, 1, 8, 8)).shape == (5, 3)


def test_easy_starts_come_first_and_later_ones_join() -> None:
    networks = Trajectories(gap=2, last=5, grow={"start_last": 1, "steps": 8})
    # 1 + 4 * step / 8, rounded down, is the excluded end
    ends = {0: 1, 1: 1, 2: 2, 4: 3, 6: 4, 7: 4, 8: 5, 9: 5, 1000: 5}
    for step, end in ends.items():
        assert networks.upper(step) == end
    for step in (0, 4, 8, 1000):
        assert starts(networks, step) == set(range(ends[step]))
    assert starts(Trajectories(gap=2, last=5), 0) == set(range(5))


def test_the_epoch_before_last_is_reached_and_last_itself_is_not() -> None:
    assert starts(Trajectories(gap=2, last=5), 0) == {0, 1, 2, 3, 4}
    assert starts(Trajectories(gap=2, first=4, last=5), 0) == {4}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"first": 3, "last": 3}, "first: 3 leaves no start epoch below last: 3"),
        ({"last": 3, "grow": {"start_last": 4, "steps": 9}}, "got 4, .*up to last: 3"),
        ({"first": 2, "last": 3, "grow": {"start_last": 2, "steps": 9}}, "got 2, .*above first: 2"),
        ({"last": 0}, "greater than 0"),
        ({"gap": 0, "last": 3}, "greater than 0"),
        ({"last": 3, "grow": {"start_last": 1, "steps": 0}}, "greater than 0"),
    ],
)
def test_epochs_out_of_order_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Trajectories.model_validate(fields)


def test_experts_that_are_too_short_or_not_kept_are_refused() -> None:
    networks = Trajectories(gap=2, last=5)
    networks.build(TOY, CPU, Store(epochs=6))
    with pytest.raises(RecipeError, match=r"squeeze\.epochs: got 5, expected at least 6"):
        networks.build(TOY, CPU, Store(epochs=5))
    with pytest.raises(RecipeError, match=r"squeeze\.keep: got 'last', expected 'every'"):
        networks.build(TOY, CPU, Store(keep="last"))
    with pytest.raises(RecipeError, match=r"'trajectories' needs networks .*squeeze: {epochs: 5}"):
        networks.build(TOY, CPU)


@pytest.mark.parametrize(
    ("squeeze", "networks", "message"),
    [
        ("epochs: 5, keep: every", "trajectories, last: 5", "epochs: got 5, expected at least 6"),
        ("epochs: 6", "trajectories, last: 5", "keep: got 'last', expected 'every'"),
        ("epochs: 6, members: 2", "pretrained, held_out: 2", "held_out: got 2 of .*members: 2"),
    ],
)
def test_a_recipe_refuses_them_before_anything_is_trained(
    squeeze: str, networks: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        toy_recipe(f"squeeze={{{squeeze}}}", f"distill.networks={{name: {networks}}}")


def test_only_trajectories_serve_the_trajectory_objective() -> None:
    objective = "distill.objective={name: trajectory, steps: 2}"
    with pytest.raises(RecipeError, match="'fresh' does not offer trajectory"):
        toy_recipe(objective)
    squeeze = f"squeeze={{epochs: 6, keep: every, network: {CONVNET}}}"
    toy_recipe(objective, squeeze, "distill.networks={name: trajectories, last: 5}")


def test_pretrained_networks_are_members_after_their_last_epoch() -> None:
    found = {place(network.weights_P) for network in sampled(Pretrained(), Store(keep="last"), 0)}
    assert found == {(0, 6), (1, 6), (2, 6)}


def test_students_start_from_the_members_that_were_distilled_with() -> None:
    source = source_of(Pretrained(), Store())
    found = [place(source.start(student, draws(0, "distill"))) for student in range(5)]
    assert found == [(0, 6), (1, 6), (2, 6), (0, 6), (1, 6)]


def test_held_out_members_are_for_students_only() -> None:
    store = Store(members=5)
    networks = Pretrained(held_out=2)
    found = {
        place(network.weights_P) for step in range(3) for network in sampled(networks, store, step)
    }
    assert found == {(0, 6), (1, 6), (2, 6)}
    source = source_of(networks, store)
    begun = [place(source.start(student, draws(0, "distill"))) for student in range(3)]
    assert begun == [(3, 6), (4, 6), (3, 6)]


def test_no_member_left_to_distill_with_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"held_out: got 3 of squeeze.members: 3.*lower held_out"):
        Pretrained(held_out=3).build(TOY, CPU, Store())


@pytest.mark.parametrize("networks", [Trajectories(last=4), Pretrained()])
def test_the_architecture_is_that_of_the_squeeze_stage(networks: Networks) -> None:
    assert networks.architecture(NET) is NET
    with pytest.raises(RecipeError, match=r"takes its architecture from squeeze\.network"):
        networks.architecture(None)


def test_fixed_networks_never_change_and_students_get_the_same() -> None:
    networks = Fixed(network=NET, count=3)
    source = source_of(networks)
    begun = [source.start(student, draws(7, "distill")) for student in range(6)]
    weights = [
        source.sample(LaneDraw(7, step, lane)).weights_P for step in range(4) for lane in range(5)
    ]
    tuples = {tuple(one_P.tolist()) for one_P in weights}
    assert len(tuples) == 3
    assert tuples == {tuple(one_P.tolist()) for one_P in begun if one_P is not None}
    for student in range(3):
        first_P, again_P = begun[student], begun[student + 3]
        assert first_P is not None and again_P is not None and torch.equal(first_P, again_P)
    assert networks.architecture(None) is NET


def test_one_fixed_network_is_the_same_everywhere_and_another_seed_is_another() -> None:
    source = source_of(Fixed(network=NET))
    one_P, other_P, seed_P = (
        source.sample(LaneDraw(seed, step, step)).weights_P
        for seed, step in ((0, 0), (0, 9), (1, 0))
    )
    assert torch.equal(one_P, other_P) and not torch.equal(one_P, seed_P)


def test_fresh_networks_give_students_no_start() -> None:
    assert source_of(Fresh(network=NET)).start(0, draws(0, "distill")) is None
