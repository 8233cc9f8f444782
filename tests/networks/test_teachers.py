"""Trained networks with BatchNorm: what recover gets, and which networks it does not get."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from support.tiny import CPU, NET, TOY
from torch import Tensor, nn

from distill_datasets.errors import RecipeError
from distill_datasets.models.architecture import Architecture
from distill_datasets.models.convnets import ConvNet
from distill_datasets.models.initialization import initialize
from distill_datasets.models.vision import ResNet
from distill_datasets.models.weights import built, frozen
from distill_datasets.networks.experts import Pretrained, Trajectories
from distill_datasets.networks.network import Fresh, Networks, Teachers
from distill_datasets.networks.teachers import TeacherNetworks, network_problems
from distill_datasets.runtime.draws import rng_for

BATCHED = ConvNet(depth=2, width=4, norm="batch")
KNOWN = (BATCHED, ResNet(width=4))


@dataclass(frozen=True)
class Store:
    """One trained member of every known network."""

    epochs: int = 1
    keep: Literal["every", "last"] = "last"
    architectures: tuple[Architecture, ...] = KNOWN
    refused: bool = False

    def weights(self, member: int, epoch: int) -> Tensor:
        raise AssertionError("teachers are no vectors of weights")

    def module(self, member: int) -> nn.Module:
        module = built(self.architectures[member], TOY)
        initialize(module, rng_for(member))
        module(torch.randn(9, 1, 8, 8, generator=rng_for(9)))  # moves the running statistics
        return frozen(module)

    def class_statistics(self, member: int) -> tuple[list[Tensor], list[Tensor]] | None:
        return None if member else ([torch.zeros(3, 4)], [torch.ones(3, 4)])

    def teacher_problems(self) -> Iterator[str]:
        if self.refused:
            yield "knows too little"


@pytest.fixture
def teachers() -> Iterator[Teachers]:
    yield TeacherNetworks().build(TOY, CPU, Store())


def test_teachers_are_all_members_in_eval_mode_and_frozen(teachers: Teachers) -> None:
    assert len(teachers.members) == 2
    for member, (module, *_) in enumerate(teachers.members):
        assert not module.training and not any(layer.training for layer in module.modules())
        assert not any(weight.requires_grad for weight in module.parameters())
        expected = Store().module(member).state_dict()
        assert all(torch.equal(kept, expected[name]) for name, kept in module.state_dict().items())
        statistics = [name for name in expected if name.endswith("running_mean")]
        assert statistics and all(bool(expected[name].any()) for name in statistics)


def test_looking_leaves_the_statistics_alone_and_gradients_reach_the_pixels(
    teachers: Teachers,
) -> None:
    module = teachers.members[0].module
    before = {name: kept.clone() for name, kept in module.state_dict().items()}
    images_BCHW = torch.randn(4, 1, 8, 8, generator=rng_for(0)).requires_grad_()
    module(images_BCHW).square().sum().backward()
    assert images_BCHW.grad is not None and bool(images_BCHW.grad.any())
    assert all(torch.equal(kept, before[name]) for name, kept in module.state_dict().items())
    assert all(weight.grad is None for weight in module.parameters())


def test_class_statistics_come_with_the_member_that_has_them(teachers: Teachers) -> None:
    (mean_KC,), (var_KC,) = teachers.members[0].class_mean, teachers.members[0].class_var
    assert mean_KC.tolist() == [[0] * 4] * 3 and var_KC.tolist() == [[1] * 4] * 3
    assert teachers.members[1].class_mean is None and teachers.members[1].class_var is None


def test_teachers_offer_what_recover_needs() -> None:
    assert TeacherNetworks().offers == {"batch_norm", "class_statistics"}


def test_members_that_know_too_little_teach_nothing() -> None:
    with pytest.raises(RecipeError, match="knows too little"):
        TeacherNetworks().build(TOY, CPU, Store(refused=True))


def test_networks_without_batch_norm_are_no_teachers() -> None:
    with pytest.raises(RecipeError, match=r"'convnet' keeps no BatchNorm statistics.*norm: batch"):
        TeacherNetworks().build(TOY, CPU, Store(architectures=(BATCHED, NET)))
    with pytest.raises(RecipeError, match=r"needs networks .*squeeze: {epochs: 5}"):
        TeacherNetworks().build(TOY, CPU)


def test_what_cannot_work_is_refused_before_anything_is_trained() -> None:
    def problems(networks: Networks, *squeezed: Architecture) -> list[str]:
        return list(network_problems(networks, squeezed, TOY))

    assert problems(TeacherNetworks(), *KNOWN) == problems(Pretrained(), NET, NET) == []
    assert problems(Fresh(network=NET), *KNOWN) == []  # squeezed for something else
    (sentence,) = problems(TeacherNetworks(), BATCHED, NET)
    assert "'convnet' keeps no BatchNorm" in sentence
    (sentence,) = problems(Trajectories(last=1), BATCHED)
    assert "running statistics" in sentence
    (sentence,) = problems(Pretrained(), NET, ConvNet(depth=1, width=3))
    assert "convnet with other settings each" in sentence and "squeeze.members" in sentence


def test_every_network_that_does_not_fit_the_shape_is_listed_once() -> None:
    deep = [ConvNet(depth=depth, norm="batch") for depth in (5, 5, 6)]
    for networks in (TeacherNetworks(), Fresh(network=deep[0])):
        five, six = network_problems(networks, deep, TOY)
        assert "halves the sides 5 times" in five and "halves the sides 6 times" in six
    (five,) = network_problems(Pretrained(), deep[:2], TOY)
    assert "halves the sides 5 times" in five
