"""Networks: what is built, how weights are drawn, and the network as a function of one vector."""

import math

import pytest
import torch
from support.tiny import CPU, NET, TOY
from torch import nn
from torch.nn.utils import parameters_to_vector
from torch.utils.flop_counter import FlopCounterMode

from distill_datasets.errors import RecipeError
from distill_datasets.models.convnets import ConvNet, LeNet, Mlp
from distill_datasets.models.initialization import initialize
from distill_datasets.networks.network import FlatNetwork, Fresh, FreshSource
from distill_datasets.runtime.draws import LaneDraw, rng_for
from distill_datasets.types import Shape


def weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_convnet_3_of_the_papers_has_its_weights_less_the_dead_biases() -> None:
    # 320,010 in the papers, of which 3 * 128 are biases in front of a norm
    assert weights(ConvNet().build(Shape(3, 32, 32, 10))) == 319_626


def test_gray_digits_are_padded_to_32_px_as_in_the_papers() -> None:
    # 317,706 in the papers (two channels less in the first convolution), 384 dead biases
    digits = Shape(1, 28, 28, 10)
    padded = ConvNet(depth=3, first_padding=3).build(digits)
    assert weights(padded) == 317_706 - 384
    assert padded(torch.zeros(1, 1, 28, 28)).shape == (1, 10)
    (*_, features) = (layer for layer in padded if isinstance(layer, nn.Linear))
    assert features.in_features == 2048
    convolutions = [layer for layer in padded if isinstance(layer, nn.Conv2d)]
    assert [layer.padding for layer in convolutions] == [(3, 3), (1, 1), (1, 1)]
    with pytest.raises(RecipeError, match="at least 4 px, got 3 x 3"):
        ConvNet(depth=3, first_padding=3).build(Shape(1, 3, 3, 2))


def test_a_convnet_without_norm_keeps_its_biases() -> None:
    # 4 * 9 + 4 of the convolution, 3 * (4 * 4 * 4) + 3 of the linear layer
    assert weights(ConvNet(depth=1, width=4, norm="none").build(TOY)) == 40 + 195


def test_blocks_are_convolution_norm_relu_pooling() -> None:
    kinds = [type(layer).__name__ for layer in ConvNet(depth=2, width=4).build(TOY).children()]
    block = ["Conv2d", "GroupNorm", "ReLU", "AvgPool2d"]
    assert kinds == [*block, *block, "Flatten", "Linear"]


@pytest.mark.parametrize(("high", "wide"), [(8, 8), (7, 9), (28, 14), (3, 2)])
def test_pooling_is_torchs_in_both_derivatives(high: int, wide: int) -> None:
    ours, torchs = ConvNet(depth=1, width=4).build(Shape(1, 4, 4, 3))[3], nn.AvgPool2d(2)
    images_BCHW, weights, pull = (
        torch.randn(2, 3, *sides, generator=rng_for(0), dtype=torch.float64, requires_grad=True)
        for sides in ((high, wide), (high // 2, wide // 2), (high, wide))
    )
    found = []
    for pool in (ours, torchs):
        pooled = pool(images_BCHW)
        loss = (weights * pooled.exp()).sum()
        (grad,) = torch.autograd.grad(loss, images_BCHW, create_graph=True)
        second = torch.autograd.grad((grad * pull).sum(), images_BCHW)
        found.append([pooled, grad, *second])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)


def test_pooling_elsewhere_is_left_to_torch() -> None:
    # a device without memory stands for an accelerator: there the product is not taken
    pool = ConvNet(depth=1, width=4).build(Shape(1, 4, 4, 3))[3]
    with FlopCounterMode(display=False) as counter:
        assert pool(torch.empty(2, 3, 7, 9, device="meta")).shape == (2, 3, 3, 4)
    assert counter.get_total_flops() == 0


def test_norm_takes_every_channel_of_every_image_by_itself() -> None:
    norm = ConvNet(depth=1, width=4).build(TOY)[1]
    images_BCHW = torch.randn(3, 4, 8, 8, generator=rng_for(0))
    expected = nn.InstanceNorm2d(4)(images_BCHW)
    torch.testing.assert_close(norm(images_BCHW), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [Shape(1, 8, 8, 3), Shape(3, 9, 15, 10)])
@pytest.mark.parametrize("norm", ["instance", "none"])
def test_logits_are_one_per_class(shape: Shape, norm: str) -> None:
    module = ConvNet(depth=2, width=4, norm=norm).build(shape)
    assert module(torch.zeros(5, shape.c, shape.h, shape.w)).shape == (5, shape.k)


@pytest.mark.parametrize(
    ("side", "depth"), [(2, 1), (8, 1), (16, 2), (28, 3), (32, 3), (64, 4), (224, 6)]
)
def test_depth_follows_the_side_of_the_images_unless_it_is_given(side: int, depth: int) -> None:
    def blocks(network: ConvNet) -> int:
        layers = network.build(Shape(1, side, side, 2)).children()
        return sum(isinstance(layer, nn.Conv2d) for layer in layers)

    assert blocks(ConvNet(width=2)) == depth
    assert blocks(ConvNet(width=2, depth=1)) == 1


@pytest.mark.parametrize("shape", [Shape(3, 7, 32, 10), Shape(3, 32, 7, 10)])
def test_a_network_too_deep_for_its_images_is_refused_with_a_remedy(shape: Shape) -> None:
    message = rf"at least 8 px, got {shape.h} x {shape.w}; lower depth or raise source.resolution"
    with pytest.raises(RecipeError, match=message):
        ConvNet(depth=3).build(shape)


def test_the_smallest_image_that_a_depth_allows_is_accepted() -> None:
    assert (
        ConvNet(depth=3, width=2).build(Shape(1, 8, 8, 2))(torch.ones(1, 1, 8, 8)).isfinite().all()
    )


def test_weights_are_uniform_within_the_bounds_of_torch() -> None:
    for layer, fan_in in [
        (nn.Conv2d(8, 64, 3), 72),
        (nn.Conv2d(8, 64, 3, groups=4), 18),
        (nn.Linear(50, 400), 50),
    ]:
        bound = 1 / math.sqrt(fan_in)
        # torch's own draw lies within the same bounds, so that is its rule
        for draw in (lambda: None, lambda layer=layer: initialize(layer, rng_for(0))):
            draw()
            for drawn in (layer.weight, layer.bias):
                assert float(drawn.detach().abs().max()) <= bound
            spread = float(layer.weight.detach().std())
            assert spread == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_norms_start_as_the_identity() -> None:
    norm = nn.GroupNorm(2, 4)
    nn.init.uniform_(norm.weight)
    nn.init.uniform_(norm.bias)
    initialize(norm, rng_for(0))
    assert norm.weight.tolist() == [1] * 4 and norm.bias.tolist() == [0] * 4


def test_the_generator_alone_decides_fresh_weights() -> None:
    before = torch.get_rng_state()
    modules = [NET.build(TOY) for _ in range(3)]
    torch.set_rng_state(before)
    for module, seed in zip(modules, (1, 1, 2), strict=True):
        initialize(module, rng_for(seed))
    assert torch.equal(before, torch.get_rng_state())
    first, second, other = (parameters_to_vector(module.parameters()) for module in modules)
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_a_layer_without_a_rule_is_refused_by_its_name() -> None:
    with pytest.raises(RecipeError, match="fresh weights of a LayerNorm; known: Conv2d, Linear"):
        initialize(nn.Sequential(nn.Conv2d(1, 2, 3), nn.LayerNorm(2)), rng_for(0))


def test_the_lenet_has_the_weights_of_the_paper() -> None:
    assert weights(LeNet().build(Shape(1, 28, 28, 10))) == 61_706
    module = LeNet().build(Shape(3, 12, 17, 4))
    assert module(torch.ones(2, 3, 12, 17)).shape == (2, 4)


def test_a_lenet_starts_by_the_rule_of_xavier() -> None:
    module = LeNet().build(Shape(1, 28, 28, 10))
    initialize(module, rng_for(0))
    fans = {"0": 25 * (1 + 6), "3": 25 * (6 + 16), "7": 400 + 120, "9": 120 + 84}
    for name, fan in fans.items():
        layer = module.get_submodule(name)
        assert float(layer.weight.detach().std()) == pytest.approx((2 / fan) ** 0.5, rel=0.2)
        assert not bool(layer.bias.any())


def test_a_lenet_on_too_small_images_is_refused() -> None:
    with pytest.raises(RecipeError, match="at least 12 px, got 8 x 8"):
        LeNet().build(TOY)


def test_a_sampled_network_is_the_module_with_these_weights() -> None:
    module = NET.build(TOY)
    initialize(module, LaneDraw(0, 4, 0)("network"))
    sampled = FreshSource(NET, TOY, CPU).sample(LaneDraw(0, 4, 0))
    images_BCHW = torch.randn(5, 1, 8, 8, generator=rng_for(0))
    assert torch.equal(sampled.weights_P, parameters_to_vector(module.parameters()))
    assert torch.equal(sampled(sampled.weights_P, images_BCHW), module(images_BCHW))


class Shared(nn.Module):
    """Two layers with one weight, and no chain."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
        self.second.weight = self.first.weight
        self.last = nn.Linear(64, 3)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        logits_BK: torch.Tensor = self.last(self.second(self.first(images_BCHW.flatten(1)).relu()))
        return logits_BK


@pytest.mark.parametrize("module", [NET.build(TOY), Mlp(depth=0).build(TOY), Shared()])
def test_a_network_called_with_a_vector_does_what_torch_does_with_its_weights(
    module: nn.Module,
) -> None:
    rng = rng_for(0)
    images_BCHW = torch.randn(5, 1, 8, 8, generator=rng)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng))
    weights_P = parameters_to_vector(module.parameters()).detach()
    network = FlatNetwork(module, weights_P)
    with torch.no_grad():
        assert torch.equal(network(weights_P, images_BCHW), module(images_BCHW))
    layers = network.layers(weights_P, images_BCHW)
    assert torch.equal(network.embedding(weights_P, images_BCHW), layers.embedding_BD)
    assert torch.equal(layers.logits_BK, network(weights_P, images_BCHW))


def test_a_lane_draws_one_of_several_architectures() -> None:
    others = [Mlp(depth=0), ConvNet(depth=1, width=2, norm="none")]
    source = Fresh(networks=[NET, *others]).build(TOY, CPU)
    sizes = [len(source.sample(LaneDraw(0, step, 0)).weights_P) for step in range(30)]
    alone = [
        len(FreshSource(one, TOY, CPU).sample(LaneDraw(0, 0, 0)).weights_P)
        for one in (NET, *others)
    ]
    assert {sizes.count(size) > 3 for size in alone} == {True} and set(sizes) == set(alone)
    again = [len(source.sample(LaneDraw(0, step, 0)).weights_P) for step in range(30)]
    assert again == sizes


def test_one_architecture_that_is_listed_draws_the_weights_of_one_that_is_not() -> None:
    listed, alone = (
        Fresh(**fields).build(TOY, CPU).sample(LaneDraw(0, 4, 0)).weights_P
        for fields in ({"networks": [NET]}, {"network": NET})
    )
    assert torch.equal(listed, alone)


def test_a_sampled_network_is_the_same_whenever_it_is_asked() -> None:
    dropping = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 3))
    network = FlatNetwork(dropping, parameters_to_vector(dropping.parameters()).detach())
    images_BCHW = torch.randn(5, 1, 8, 8, generator=rng_for(0))
    first, second = (network(network.weights_P, images_BCHW) for _ in range(2))
    assert torch.equal(first, second)


def test_a_sampled_network_depends_on_the_vector_it_is_called_with() -> None:
    sampled = FreshSource(NET, TOY, CPU).sample(LaneDraw(0, 4, 0))
    weights_P = torch.zeros_like(sampled.weights_P)
    weights_P[-3:] = torch.tensor([1.0, 2.0, 3.0])  # the biases of the last layer
    assert sampled(weights_P, torch.ones(1, 1, 8, 8)).tolist() == [[1, 2, 3]]


def test_a_sampled_network_is_differentiable_twice_in_its_vector() -> None:
    sampled = FreshSource(ConvNet(depth=1, width=2), Shape(1, 4, 4, 2), CPU).sample(
        LaneDraw(0, 4, 0)
    )
    images_BCHW = torch.randn(2, 1, 4, 4, generator=rng_for(0), dtype=torch.float64)
    weights_P = sampled.weights_P.double().requires_grad_()

    def loss(weights_P: torch.Tensor) -> torch.Tensor:
        return sampled(weights_P, images_BCHW).square().sum()

    torch.autograd.gradgradcheck(loss, (weights_P,))


def test_drawing_a_network_leaves_global_randomness_alone() -> None:
    source = Fresh(network=NET).build(TOY, CPU)
    before = torch.get_rng_state()
    first, second, other = (source.sample(LaneDraw(0, seed, 0)).weights_P for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_networks_of_one_source_do_not_share_weights() -> None:
    source = FreshSource(NET, TOY, CPU)
    first, second = source.sample(LaneDraw(0, 1, 0)), source.sample(LaneDraw(0, 1, 0))
    first.weights_P.zero_()
    assert bool(second.weights_P.any())
