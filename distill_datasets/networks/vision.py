"""Networks of torchvision by their names, and its ResNet for small images.

Their weights have torchvision's names, so that files made for it or by timm fit; fresh ones are
drawn as torchvision's constructors draw them, from a generator.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, ClassVar, Literal, Self

import torch
import torchvision.models
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from distill_datasets.errors import RecipeError, did_you_mean
from distill_datasets.networks.drawing import OwnRule
from distill_datasets.types import Architecture, Shape

RESNET = "ResNet, arXiv:1512.03385"
BLOCKS: dict[int, tuple[Callable[..., Any], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
}
"""By depth: the block, and how many of it each stage has."""
PAPERS = {
    "alexnet": "AlexNet, arXiv:1404.5997",
    "convnext": "ConvNeXt, arXiv:2201.03545",
    "densenet": "DenseNet, arXiv:1608.06993",
    "efficientnet_b": "EfficientNet, arXiv:1905.11946",
    "efficientnet_v2": "EfficientNetV2, arXiv:2104.00298",
    "googlenet": "GoogLeNet, arXiv:1409.4842",
    "inception_v3": "Inception, arXiv:1512.00567",
    "maxvit": "MaxViT, arXiv:2204.01697",
    "mnasnet": "MNASNet, arXiv:1807.11626",
    "mobilenet_v2": "MobileNetV2, arXiv:1801.04381",
    "mobilenet_v3": "MobileNetV3, arXiv:1905.02244",
    "regnet": "RegNet, arXiv:2003.13678",
    "resnet": RESNET,
    "resnext": "ResNeXt, arXiv:1611.05431",
    "shufflenet_v2": "ShuffleNetV2, arXiv:1807.11164",
    "squeezenet": "SqueezeNet, arXiv:1602.07360",
    "swin_v2": "Swin V2, arXiv:2111.09883",
    "swin": "Swin, arXiv:2103.14030",
    "vgg": "VGG, arXiv:1409.1556",
    "vit": "ViT, arXiv:2010.11929",
    "wide_resnet": "Wide ResNet, arXiv:1605.07146",
}
"""By the beginning of a model's name; the first that fits."""
# the auxiliary classifiers would make the output a tuple while the network trains
WITHOUT_AUXILIARY = {"aux_logits": False, "init_weights": True}
OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": WITHOUT_AUXILIARY,
    "inception_v3": WITHOUT_AUXILIARY | {"transform_input": False},
}


class SmallImageResNet(nn.Module):
    """The layers of torchvision's ResNet of any width, with a stem that keeps small images whole.

    Convolutions start by Kaiming's normal rule (fan out), norms at one and zero, the linear layer
    uniformly within +-1/sqrt(fan in), as in torchvision.
    """

    def __init__(self, depth: int, width: int, shape: Shape) -> None:
        super().__init__()
        block, counts = BLOCKS[depth]
        self.conv1 = nn.Conv2d(shape.c, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        channels, stages = width, []
        for stage, count in enumerate(counts):
            inner, stride = width * 2**stage, 1 if stage == 0 else 2
            blocks = []
            for place in range(count):
                step = stride if place == 0 else 1
                outer = inner * block.expansion  # type: ignore[attr-defined]
                shortcut = None
                if step != 1 or channels != outer:
                    shortcut = nn.Sequential(
                        nn.Conv2d(channels, outer, 1, stride=step, bias=False),
                        nn.BatchNorm2d(outer),
                    )
                blocks.append(block(channels, inner, step, shortcut))
                channels = outer
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, shape.k)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits (B, K)."""
        maps = self.relu(self.bn1(self.conv1(images_BCHW)))
        maps = self.layer4(self.layer3(self.layer2(self.layer1(maps))))
        logits_BK: Tensor = self.fc(self.avgpool(maps).flatten(1))
        return logits_BK


class ResNet(Architecture):
    """A ResNet for small images: its stem is one 3x3 convolution of stride 1, without max pooling.

    With width 64 it is the ResNet of the decoupled methods on CIFAR and Tiny-ImageNet. Weights have
    torchvision's names; depth 18 and 34 are made of its basic blocks, 50 of its bottlenecks.
    """

    paper: ClassVar[str] = RESNET
    name: Literal["resnet"] = "resnet"
    depth: Literal[18, 34, 50] = Field(default=18, description="layers with weights")
    width: int = Field(default=64, ge=1, description="channels of the first stage; each doubles")

    def build(self, shape: Shape) -> nn.Module:
        return _with_rule(partial(SmallImageResNet, self.depth, self.width, shape))


class Torchvision(Architecture):
    """A classification network of torchvision, its classifier fitted to the classes.

    Gray images: the first convolution takes one channel, whose fresh weights are those drawn for
    red times sqrt(3), so that its outputs are as large as with three channels.
    """

    paper: ClassVar[str] = "TorchVision, doi:10.1145/1873951.1874254"
    name: Literal["torchvision"] = "torchvision"
    model: str = Field(description="torchvision's name of it, for example resnet18")
    stem: Literal["imagenet", "small"] = Field(
        default="imagenet",
        description="of a ResNet: torchvision's, or small: 3x3, stride 1, no max pooling",
    )

    @field_validator("model")
    @classmethod
    def _known(cls, model: str) -> str:
        known = torchvision.models.list_models(module=torchvision.models)
        if model not in known:
            raise ValueError(
                f"got {model!r}, expected a classification network of torchvision; "
                f"{did_you_mean(model, known)}"
            )
        return model

    @model_validator(mode="after")
    def _stem_is_of_a_resnet(self) -> Self:
        families = ("resnet", "resnext", "wide_resnet")
        if self.stem == "small" and not self.model.startswith(families):
            raise ValueError(
                f"stem: 'small' is for ResNets, got model: {self.model!r}; leave stem out, or take "
                "a larger source.resolution"
            )
        return self

    def papers(self) -> list[str]:
        found = [paper for start, paper in PAPERS.items() if self.model.startswith(start)]
        return [*super().papers(), *found[:1]]

    def build(self, shape: Shape) -> nn.Module:
        try:
            module = _with_rule(partial(self._made, shape))
            with torch.device("meta"), torch.no_grad():
                self._made(shape).eval()(torch.empty(1, shape.c, shape.h, shape.w))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise RecipeError(
                f"network: torchvision's {self.model} does not take images of {shape.c} x "
                f"{shape.h} x {shape.w} ({error}); raise source.resolution, make it square, or "
                "choose another network"
            ) from error
        return module

    def _made(self, shape: Shape) -> nn.Module:
        options = OPTIONS.get(self.model, {})
        if self.model.startswith("vit_"):
            options = {"image_size": shape.h}
        device = torch.empty(0).device  # the default one, which may hold no values
        # the constructor of a RegNet computes its widths with tensors
        with torch.device("cpu") if self.model.startswith("regnet_") else nullcontext():
            module: nn.Module = torchvision.models.get_model(
                self.model, weights=None, num_classes=shape.k, **options
            ).to(device)
        if self.stem == "small":
            first = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(first.weight, mode="fan_out", nonlinearity="relu")
            module.conv1, module.maxpool = first, nn.Identity()
        if shape.c != 3:
            _take_channels(module, shape.c)
        return module


def _with_rule(make: Callable[[], nn.Module]) -> nn.Module:
    """The network that `make` makes, and how to draw it again."""
    module = make()
    module.add_module("own_rule", OwnRule(make))
    return module


@torch.no_grad()
def _take_channels(module: nn.Module, channels: int) -> None:
    """Let the first convolution take fewer input channels."""
    first = next(layer for layer in module.modules() if isinstance(layer, nn.Conv2d))
    kept = first.weight[:, :channels] * math.sqrt(first.in_channels / channels)
    first.weight, first.in_channels = nn.Parameter(kept), channels
