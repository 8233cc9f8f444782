"""Networks with BatchNorm and those of torchvision: what is built, and how weights are drawn."""

import copy
import sys
import types
from typing import Any

import pytest
import torch
import torchvision.models
from pydantic import ValidationError
from support.tiny import CPU, TOY
from torch import nn

from distill_datasets.errors import RecipeError
from distill_datasets.models.architecture import Architecture
from distill_datasets.models.convnets import ConvNet, Vgg
from distill_datasets.models.initialization import drawing, initialize, own_rule
from distill_datasets.models.layers import AvgPool2d, DrawsFrom
from distill_datasets.models.vision import USUAL, ResNet, Timm, Torchvision, Vit
from distill_datasets.networks.network import Fixed, Fresh, skeleton_of
from distill_datasets.networks.online import TrainedOnReal
from distill_datasets.runtime.draws import rng_for
from distill_datasets.types import Shape

SMALL = Shape(3, 32, 32, 10)
BATCHED = ConvNet(depth=2, width=4, norm="batch")


def same(first: nn.Module, second: nn.Module) -> bool:
    """Whether two networks keep the same tensors by the same names, bit for bit."""
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(mine[0] == its[0] and torch.equal(mine[1], its[1]) for mine, its in pairs)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_pooling_is_that_of_torch_in_both_orders_of_memory(order: torch.memory_format) -> None:
    images_BCHW = torch.randn(2, 3, 5, 6, dtype=torch.float64).contiguous(memory_format=order)
    images_BCHW.requires_grad_()
    ours, theirs = AvgPool2d()(images_BCHW), nn.AvgPool2d(2)(images_BCHW)
    torch.testing.assert_close(ours, theirs)
    assert ours.is_contiguous(memory_format=order)
    pull = torch.randn_like(theirs)
    grads = [torch.autograd.grad(each, images_BCHW, pull)[0] for each in (ours, theirs)]
    torch.testing.assert_close(*grads)


def test_a_convnet_with_batch_norm_has_it_where_instance_norm_was() -> None:
    kinds = [type(layer).__name__ for layer in BATCHED.build(TOY).children()]
    block = ["Conv2d", "BatchNorm2d", "ReLU", "AvgPool2d"]
    assert kinds == [*block, *block, "Flatten", "Linear"]
    assert all(layer.bias is None for layer in BATCHED.build(TOY) if isinstance(layer, nn.Conv2d))
    assert "BatchNorm, arXiv:1502.03167" in BATCHED.papers()
    assert "BatchNorm, arXiv:1502.03167" not in ConvNet().papers()


def test_batch_norm_starts_as_the_identity_with_no_batch_seen() -> None:
    module = BATCHED.build(TOY)
    module(5 * torch.randn(6, 1, 8, 8, generator=rng_for(0)))  # moves the running statistics
    norm = module[1]
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None
    with torch.no_grad():
        norm.weight.fill_(3)
    assert bool(norm.running_mean.any())
    initialize(module, rng_for(1))
    for layer in module:
        if isinstance(layer, nn.BatchNorm2d):
            kept = [value.tolist() for value in layer.state_dict().values()]
            assert kept == [[1] * 4, [0] * 4, [0] * 4, [1] * 4, 0]


@pytest.mark.parametrize(
    "model",
    ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "efficientnet_b0", "densenet121",
     "squeezenet1_1", "googlenet", "mnasnet0_5", "regnet_y_400mf"],
)  # fmt: skip
def test_fresh_weights_are_those_that_torchvision_draws_from_the_same_seed(model: str) -> None:
    before = torch.get_rng_state()
    torch.manual_seed(7)
    options = {"aux_logits": False, "init_weights": True} if model == "googlenet" else {}
    theirs = torchvision.models.get_model(model, num_classes=10, **options)
    ours = Torchvision(model=model).build(SMALL)
    with torch.device("meta"):  # what check and plan look at
        assert all(kept.is_meta for kept in Torchvision(model=model).build(SMALL).parameters())
    torch.set_rng_state(before)
    initialize(ours, torch.Generator().manual_seed(7))
    assert torch.equal(before, torch.get_rng_state())
    assert same(ours, theirs)


def test_initializing_draws_again_whatever_the_network_held() -> None:
    module = Torchvision(model="resnet18", stem="small").build(SMALL)
    module(torch.randn(4, 3, 32, 32, generator=rng_for(0)))
    other = copy.deepcopy(module)
    for one in (module, other):
        initialize(one, rng_for(3))
    assert same(module, other)
    initialize(other, rng_for(4))
    assert not torch.equal(module.fc.weight, other.fc.weight)
    assert not bool(module.bn1.running_mean.any())
    assert float(module.conv1.weight.detach().std()) == pytest.approx(
        (2 / (9 * 64)) ** 0.5, rel=0.1
    )


def test_models_that_are_taken_for_known_are_in_torchvision() -> None:
    assert set(torchvision.models.list_models(module=torchvision.models)) > USUAL


@pytest.mark.parametrize("depth", [18, 50])
def test_the_small_resnet_is_the_one_of_torchvision_with_another_stem(depth: int) -> None:
    theirs = Torchvision(model=f"resnet{depth}", stem="small").build(SMALL).eval()
    ours = ResNet(depth=depth).build(SMALL).eval()
    ours.load_state_dict(theirs.state_dict())
    images_BCHW = torch.randn(2, 3, 32, 32, generator=rng_for(0))
    assert torch.equal(ours(images_BCHW), theirs(images_BCHW))
    assert ours.conv1.stride == (1, 1) and ours.conv1.kernel_size == (3, 3)
    # no pooling before the stages: the maps of the first one are as large as the image
    assert ours.layer1(ours.conv1(images_BCHW)).shape[2:] == (32, 32)


def test_a_narrow_resnet_has_its_widths_and_its_rule() -> None:
    module = ResNet(width=8).build(Shape(1, 8, 12, 3))
    assert [stage[-1].conv2.out_channels for stage in (
        module.layer1, module.layer2, module.layer3, module.layer4
    )] == [8, 16, 32, 64]  # fmt: skip
    assert module(torch.ones(2, 1, 8, 12)).shape == (2, 3)
    initialize(module, rng_for(0))
    spread = float(module.layer4[1].conv1.weight.detach().std())
    assert spread == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.05)  # Kaiming's rule, fan out


@pytest.mark.parametrize("model", ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5"])
def test_gray_images_fit_and_weights_are_as_large_as_three_channels_make_them(model: str) -> None:
    gray, color = (
        Torchvision(model=model).build(Shape(channels, 32, 32, 7)) for channels in (1, 3)
    )
    for module in (gray, color):
        initialize(module, rng_for(0))
    assert gray.eval()(torch.zeros(2, 1, 32, 32)).shape == (2, 7)
    first, second = (next(module.parameters()).detach() for module in (gray, color))
    torch.testing.assert_close(first, second[:, :1] * 3**0.5)


def test_unknown_models_and_stems_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValidationError, match=r"got 'resnet19'.*did you mean 'resnet1"):
        Torchvision(model="resnet19")
    with pytest.raises(ValidationError, match="'small' is for ResNets, got model: 'vgg11'"):
        Torchvision(model="vgg11", stem="small")


def test_images_that_a_network_cannot_take_are_refused_with_a_remedy() -> None:
    with pytest.raises(RecipeError, match=r"inception_v3 does not take images of 3 x 32 x 32"):
        Torchvision(model="inception_v3").build(SMALL)


def test_papers_are_of_the_family() -> None:
    for model, paper in {
        "wide_resnet50_2": "Wide ResNet, arXiv:1605.07146",
        "swin_v2_t": "Swin V2, arXiv:2111.09883",
        "efficientnet_b0": "EfficientNet, arXiv:1905.11946",
    }.items():
        assert Torchvision(model=model).papers()[1:] == [paper]


def test_a_small_resnet_of_instance_norm_looks_at_every_image_alone() -> None:
    network = ResNet(width=4, norm="instance")
    module = network.build(SMALL)
    initialize(module, rng_for(0, "network"))
    images = torch.rand(3, SMALL.c, SMALL.h, SMALL.w, generator=rng_for(0, "images"))
    together = module.train()(images)
    alone = torch.cat([module.train()(one[None]) for one in images])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert not list(module.buffers()) and together.std() > 0


@pytest.mark.parametrize("network", [BATCHED, ResNet(width=4)])
def test_networks_with_buffers_are_no_vector_of_weights(network: Architecture) -> None:
    with pytest.raises(RecipeError, match=r"running statistics.*distill\.networks: teachers"):
        skeleton_of(network, TOY)
    for networks in (
        Fresh(network=network),
        Fixed(network=network),
        TrainedOnReal(network=network, real_images=8),
    ):
        with pytest.raises(RecipeError, match="cannot be drawn as one vector of weights"):
            networks.build(TOY, CPU)


def test_dropout_and_stochastic_depth_are_drawn_from_the_generator() -> None:
    module = Torchvision(model="efficientnet_b0").build(SMALL)
    initialize(module, rng_for(0))
    images_BCHW = torch.randn(3, 3, 32, 32, generator=rng_for(1))
    before = torch.get_rng_state()

    def logits(seed: int) -> torch.Tensor:
        with drawing(module, rng_for(seed)):
            return module(images_BCHW)

    first, again, other = logits(2), logits(2), logits(3)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert own_rule(BATCHED.build(TOY)) is None


def test_dropped_values_are_zero_and_the_others_are_larger() -> None:
    values = torch.ones(200, 200)
    with DrawsFrom(rng_for(0)):
        dropped = nn.functional.dropout(values, 0.25, training=True)
        left = nn.functional.dropout(values, 0.25, training=False)
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert float((dropped == 0).float().mean()) == pytest.approx(0.25, abs=0.02)
    assert torch.equal(left, values)


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("side", [1, 8, 28, 32])
def test_a_vgg_takes_small_images_and_tells_them_apart(norm: Any, side: int) -> None:  # noqa: ANN401
    shape = Shape(1, side, side, 3)
    module = Vgg(width=4, norm=norm).build(shape)
    assert sum(isinstance(layer, nn.Conv2d) for layer in module) == 8
    initialize(module, rng_for(0))
    logits_BK = module.eval()(torch.randn(2, 1, side, side, generator=rng_for(1)))
    assert logits_BK.shape == (2, 3) and not torch.equal(logits_BK[0], logits_BK[1])


def test_a_vgg_11_of_32_px_has_as_many_weights_as_that_of_dc() -> None:
    # its convolutions have 9,217,728 weights, norms 2 x 2,752, the classifier 5,130
    norms = [layer.num_channels for layer in Vgg().build(SMALL) if isinstance(layer, nn.GroupNorm)]
    count = sum(weight.numel() for weight in Vgg().build(SMALL).parameters())
    assert count == 9_217_728 + 2 * sum(norms) + 5_130


def test_a_small_vit_is_drawn_as_torchvision_draws_it() -> None:
    ours, state = Vit(depth=1, width=12, heads=2).build(SMALL), torch.get_rng_state()
    torch.manual_seed(7)
    theirs = torchvision.models.VisionTransformer(32, 4, 1, 2, 12, 48, num_classes=10)
    torch.set_rng_state(state)
    initialize(ours, torch.Generator().manual_seed(7))
    assert same(ours, theirs)


@pytest.mark.parametrize(("side", "patch"), [(8, 1), (28, 4), (32, 4), (64, 8), (31, 1)])
def test_patches_of_a_vit_fit_the_image(side: int, patch: int) -> None:
    assert Vit().patch_of(side) == patch
    images_BCHW = torch.zeros(2, 1, side, side)
    module = Vit(depth=1, width=4, heads=1).build(Shape(1, side, side, 5))
    assert module(images_BCHW).shape == (2, 5)


def test_a_vit_refuses_what_it_cannot_cut() -> None:
    with pytest.raises(RecipeError, match=r"square images into patches of 4 px, got 28 x 32"):
        Vit().build(Shape(1, 28, 32, 5))
    with pytest.raises(ValidationError, match="expected a divisor"):
        Vit(width=10, heads=3)


class Flat(nn.Module):
    """A linear classifier of pixels."""

    def __init__(self, values: int, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(values, classes)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        logits_BK: torch.Tensor = self.head(images_BCHW.flatten(1))
        return logits_BK


def test_networks_of_timm_come_by_name_or_say_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def create_model(model: str, num_classes: int, in_chans: int, **more: int) -> nn.Module:
        if model == "conv" and more:
            raise TypeError("img_size")
        assert model == "conv" or more == {"img_size": 8}
        return Flat(64 * in_chans, num_classes)

    known = types.SimpleNamespace(list_models=lambda: ["conv", "vit"], create_model=create_model)
    monkeypatch.setitem(sys.modules, "timm", known)
    for model in ("conv", "vit"):
        module = Timm(model=model).build(TOY)
        initialize(module, rng_for(0))
        assert module(torch.zeros(1, 1, 8, 8)).shape == (1, 3)
    with pytest.raises(RecipeError, match="timm has no 'vot'; did you mean 'vit'"):
        Timm(model="vot").build(TOY)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(RecipeError, match=r"pip install 'distill_datasets\[timm\]'"):
        Timm(model="vit").build(TOY)
