"""Predictions of float32 that are read off a pass in bfloat16 where they are sure."""

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from distill_datasets.models.convnets import ConvNet, LeNet
from distill_datasets.models.initialization import initialize
from distill_datasets.training import screening
from distill_datasets.training.metrics import answers, measure
from distill_datasets.types import Batch, Shape

SHAPE, COUNT, AT_ONCE = Shape(3, 16, 16, 10), 640, 32


class Counting(nn.Module):
    """Counts images that it is asked about in float32, and those whose channels lie together."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.exact, self.turned = module, 0, 0

    def forward(self, images_BCHW: Tensor) -> Tensor:
        self.turned += 0 if images_BCHW.is_contiguous() else len(images_BCHW)
        self.exact += 0 if torch.is_autocast_enabled("cpu") else len(images_BCHW)
        return self.module(images_BCHW)


def network(norm: Literal["instance", "batch"] = "instance") -> Counting:
    module = ConvNet(depth=2, width=32, norm=norm).build(SHAPE)
    initialize(module, torch.Generator().manual_seed(0))
    return Counting(module)


def batches(images_NCHW: Tensor) -> list[Batch]:
    targets_NK = torch.eye(10)[torch.arange(len(images_NCHW)) % 10]
    pairs = (torch.split(each, AT_ONCE) for each in (images_NCHW, targets_NK))
    return [Batch(*pair) for pair in zip(*pairs, strict=True)]


def images() -> Tensor:
    """Smooth ones: those of noise are all alike to a network."""
    seeds = torch.randn(COUNT, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    return nn.functional.interpolate(seeds, (16, 16), mode="bilinear")


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_every_prediction_is_that_of_float32_and_few_images_are_asked_in_it(
    norm: Literal["instance", "batch"],
) -> None:
    module, asked = network(norm), batches(images())
    low = answers(module, asked, "bfloat16").logits_NK.argmax(dim=1)
    full = answers(module, asked).logits_NK.argmax(dim=1)
    assert 0 < int((low != full).sum()) < COUNT / 10
    module.exact = 0
    found = screening.screened(module, lambda: asked)
    assert found is not None
    assert torch.equal(found.logits_NK.argmax(dim=1), full)
    assert torch.equal(found.labels_N, torch.arange(COUNT) % 10)
    assert module.exact < COUNT / 2
    assert module.turned == (COUNT if norm == "batch" else 0)


def test_results_are_the_same_bits_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    module, asked, found = network(), batches(images()), []
    for fast in (True, False):
        monkeypatch.setattr(screening, "cpu_is_fast", lambda fast=fast: fast)
        module.exact = 0
        found.append(measure(module, lambda: asked, "classes"))
        assert (module.exact < COUNT) == fast
    assert found[0] == found[1]


def test_errors_that_outgrow_the_first_batch_raise_the_bound() -> None:
    images_NCHW = images()
    images_NCHW[:AT_ONCE] *= 0.01  # little is rounded where the network sees little
    module, asked, times = network("batch"), batches(images_NCHW), []
    found = screening.screened(module, lambda: times.append(1) or asked)
    assert found is not None and len(times) > 1
    full = answers(module, asked).logits_NK.argmax(dim=1)
    assert torch.equal(found.logits_NK.argmax(dim=1), full)


def test_logits_that_are_no_numbers_are_asked_in_float32() -> None:
    images_NCHW = images()
    images_NCHW[-1] = float("nan")
    assert screening.screened(network(), lambda: batches(images_NCHW)) is None


def test_small_networks_and_other_kinds_of_numbers_are_not_screened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(screening, "cpu_is_fast", lambda: True)
    assert screening.pays(network())
    assert not screening.pays(network().double())
    assert not screening.pays(LeNet().build(Shape(1, 28, 28, 10)))
    assert not screening.pays(nn.Flatten())
    monkeypatch.setattr(screening, "cpu_is_fast", lambda: False)
    assert not screening.pays(network())
