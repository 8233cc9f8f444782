"""The plain networks that recipes name: the field's ConvNet, LeNet, VGG-11 and a perceptron."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from distill_datasets.errors import RecipeError
from distill_datasets.models.architecture import Architecture
from distill_datasets.types import Shape


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
        le=16,
        description="blocks, each halves the sides; null: until about 4 px are left, 3 at 32 px",
    )
    width: int = Field(default=128, ge=1, le=16_384, description="channels of every block")
    norm: Literal["instance", "batch", "none"] = Field(
        default="instance", description="after convolutions; batch keeps running statistics"
    )

    first_padding: int = Field(
        default=1,
        ge=1,
        le=64,
        description="of the first convolution; 3 makes 32 px of 28, as the papers do with MNIST",
    )

    def cited(self) -> list[str]:
        batch = ["BatchNorm, arXiv:1502.03167"] if self.norm == "batch" else []
        return [*self.paper.split("; "), *batch]

    def blocks(self, shape: Shape) -> int:
        """How many blocks it has for this shape."""
        side = min(shape.h, shape.w) + 2 * (self.first_padding - 1)
        return self.depth or max(1, round(math.log2(side / 4)))

    def build(self, shape: Shape) -> nn.Module:
        from distill_datasets.models.layers import AvgPool2d

        more = 2 * (self.first_padding - 1)
        side_h, side_w = shape.h + more, shape.w + more
        depth = self.blocks(shape)
        if min(side_h, side_w) < 2**depth:
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
        from distill_datasets.models.layers import XavierChain

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


class Vgg(Architecture):
    """VGG-11 as the field trains it on small images: a norm after convolutions, one linear layer.

    Pooling by maxima halves the sides five times, or until one pixel is left; what is left is
    averaged.
    """

    paper: ClassVar[str] = "VGG, arXiv:1409.1556"
    name: Literal["vgg"] = "vgg"
    width: int = Field(
        default=64, ge=1, le=4_096, description="channels of the first stage, up to eight times it"
    )
    norm: Literal["instance", "batch"] = Field(
        default="instance", description="after convolutions; batch keeps running statistics"
    )

    def build(self, shape: Shape) -> nn.Module:
        # channels of every convolution, in units of the width; each stage ends with pooling
        stages = ((1,), (2,), (4, 4), (8, 8), (8, 8))
        layers: list[nn.Module] = []
        channels, side = shape.c, min(shape.h, shape.w)
        for stage in stages:
            for factor in stage:
                wide = factor * self.width
                # the instance norm of a single pixel would be zero, whatever the image
                normed = self.norm == "batch" or side > 1
                layers.append(nn.Conv2d(channels, wide, 3, padding=1, bias=not normed))
                if self.norm == "batch":
                    layers.append(nn.BatchNorm2d(wide))
                elif normed:
                    layers.append(nn.GroupNorm(wide, wide))
                layers.append(nn.ReLU())
                channels = wide
            if side > 1:
                layers.append(nn.MaxPool2d(2))
                side //= 2
        layers.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, shape.k)])
        return nn.Sequential(*layers)


class Mlp(Architecture):
    """Linear layers with ReLU on the pixels in a row; without a hidden layer it is linear."""

    paper: ClassVar[str] = "multilayer perceptron, doi:10.1038/323533a0"
    name: Literal["mlp"] = "mlp"
    depth: int = Field(default=1, ge=0, le=256, description="hidden layers; 0: a linear classifier")
    width: int = Field(default=128, ge=1, le=65_536, description="units of a hidden layer")

    def build(self, shape: Shape) -> nn.Module:
        layers: list[nn.Module] = [nn.Flatten()]
        features = shape.c * shape.h * shape.w
        for _ in range(self.depth):
            layers.extend([nn.Linear(features, self.width), nn.ReLU()])
            features = self.width
        return nn.Sequential(*layers, nn.Linear(features, shape.k))
