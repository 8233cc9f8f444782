"""The plain networks that recipes name, and how fresh weights of any network are drawn."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from distill_datasets.errors import RecipeError
from distill_datasets.types import Architecture, Shape


class ConvNet(Architecture):
    """The field's ConvNet: blocks of 3x3 convolution, norm, ReLU and 2x2 average pooling.

    Convolutions before a norm have no bias: its gradient is exactly zero and in float32 it is
    noise. With depth 3, width 128, 10 classes and 32 px this is the ConvNet-3 of the papers less
    its 384 dead biases.
    """

    paper: ClassVar[str] = "DC, arXiv:2006.05929"
    name: Literal["convnet"] = "convnet"
    depth: int | None = Field(
        default=None,
        ge=1,
        description="blocks, each halves the sides; null: until about 4 px are left, 3 at 32 px",
    )
    width: int = Field(default=128, ge=1, description="channels of every block")
    norm: Literal["instance", "batch", "none"] = Field(
        default="instance", description="after convolutions; batch keeps running statistics"
    )

    first_padding: int = Field(
        default=1,
        ge=1,
        description="of the first convolution; 3 makes 32 px of 28, as the papers do with MNIST",
    )

    def papers(self) -> list[str]:
        batch = ["BatchNorm, arXiv:1502.03167"] if self.norm == "batch" else []
        return [*super().papers(), *batch]

    def build(self, shape: Shape) -> nn.Module:
        from distill_datasets.networks.layers import AvgPool2d

        more = 2 * (self.first_padding - 1)
        side_h, side_w = shape.h + more, shape.w + more
        side = min(side_h, side_w)
        depth = self.depth or max(1, round(math.log2(side / 4)))
        if side < 2**depth:
            raise RecipeError(
                f"a convnet of depth {depth} halves the sides {depth} times and needs images of at "
                f"least {2**depth - more} px, got {shape.h} x {shape.w}; lower depth or raise "
                "source.resolution"
            )
        layers: list[nn.Module] = []
        channels = shape.c
        for block in range(depth):
            plain, padding = self.norm == "none", 1 if block else self.first_padding
            layers.append(nn.Conv2d(channels, self.width, 3, padding=padding, bias=plain))
            if self.norm == "batch":
                layers.append(nn.BatchNorm2d(self.width))
            elif self.norm == "instance":
                # one channel per group is affine instance norm
                layers.append(nn.GroupNorm(self.width, self.width))
            layers.extend([nn.ReLU(), AvgPool2d()])
            channels = self.width
        features = channels * (side_h // 2**depth) * (side_w // 2**depth)
        layers.extend([nn.Flatten(), nn.Linear(features, shape.k)])
        return nn.Sequential(*layers)


class LeNet(Architecture):
    """LeNet of Dataset Distillation: two 5x5 convolutions with max pooling, three linear layers.

    At 28 px in gray with 10 classes it has 61,706 weights. They start by Xavier's normal rule, as
    in the authors' program: with torch's the few steps of a distilled set hardly move it.
    """

    paper: ClassVar[str] = "Dataset Distillation, arXiv:1811.10959"
    name: Literal["lenet"] = "lenet"

    def build(self, shape: Shape) -> nn.Module:
        from distill_datasets.networks.layers import XavierChain

        # the first convolution keeps the sides, each pooling halves them, the second takes 4 px
        sides = [(side // 2 - 4) // 2 for side in (shape.h, shape.w)]
        if min(sides) < 1:
            raise RecipeError(
                f"a lenet needs images of at least 12 px, got {shape.h} x {shape.w}; choose a "
                "convnet or raise source.resolution"
            )
        return XavierChain(
            nn.Conv2d(shape.c, 6, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * sides[0] * sides[1], 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, shape.k),
        )


def initialize(module: nn.Module, rng: torch.Generator) -> None:
    """Draw fresh weights by torch's default rule, from a generator instead of global state.

    Convolutions and linear layers: weight and bias uniform within +-1/sqrt(fan in), or Xavier's
    rule in a `XavierChain`. Norms: one and zero; running statistics: zero mean, unit variance, no
    batch seen. Networks with an `OwnRule` (torchvision's) are drawn as their makers draw them:
    a generator with the seed of torch's global one gives the same bits as their constructor.

    Args:
        module: on a real device, for example after `to_empty`; changed in place.
        rng: a generator on the CPU, so that every device gets the same draw.

    Raises:
        RecipeError: a layer with weights of a kind that this rule does not know.
    """
    from distill_datasets.networks.drawing import own_rule
    from distill_datasets.networks.layers import XavierChain

    with torch.no_grad():
        rule = own_rule(module)
        if rule is not None:
            module.load_state_dict(rule.drawn(rng).state_dict())
            return
        for layer in module.modules():
            own = dict(layer.named_parameters(recurse=False))
            if not own:
                continue
            if isinstance(layer, nn.Conv2d | nn.Linear) and isinstance(module, XavierChain):
                drawn = nn.init.xavier_normal_(torch.empty(layer.weight.shape), generator=rng)
                layer.weight.copy_(drawn)
                if layer.bias is not None:
                    layer.bias.zero_()
            elif isinstance(layer, nn.Conv2d | nn.Linear):
                bound = 1 / math.sqrt(layer.weight[0].numel())
                for parameter in own.values():
                    drawn = torch.empty(parameter.shape).uniform_(-bound, bound, generator=rng)
                    parameter.copy_(drawn)
            elif isinstance(layer, nn.BatchNorm2d):
                layer.reset_parameters()  # draws nothing
            elif isinstance(layer, nn.GroupNorm):
                layer.weight.fill_(1)
                layer.bias.fill_(0)
            else:
                raise RecipeError(
                    f"no rule to draw fresh weights of a {type(layer).__name__}; "
                    "known: Conv2d, Linear, GroupNorm, BatchNorm2d and torchvision's networks"
                )
