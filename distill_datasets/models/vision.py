"""Networks of torchvision and timm by their names; ResNet and ViT of torchvision for small images.

Their weights have torchvision's names, so that files made for it or by timm fit; fresh ones are
drawn as torchvision's constructors draw them, from a generator. torchvision is imported where a
network is made of it: it imports torch's compiler, a third of what a run needs before its first
step.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import nn

from distill_datasets.errors import RecipeError, did_you_mean
from distill_datasets.models.architecture import Architecture
from distill_datasets.types import Shape

RESNET = "ResNet, arXiv:1512.03385"
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
RESNETS = {"resnet18", "resnet34", "resnet50", "resnet101", "resnet152"}
USUAL = RESNETS | {"densenet121", "efficientnet_b0", "mobilenet_v2", "shufflenet_v2_x0_5"}
"""Models that every torchvision has; other names are looked up in it, which takes seconds."""
# the auxiliary classifiers would make the output a tuple while the network trains
WITHOUT_AUXILIARY = {"aux_logits": False, "init_weights": True}
OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": WITHOUT_AUXILIARY,
    "inception_v3": WITHOUT_AUXILIARY | {"transform_input": False},
}


class ResNet(Architecture):
    """A ResNet for small images: its stem is one 3x3 convolution of stride 1, without max pooling.

    With width 64 it is the ResNet of the decoupled methods on CIFAR and Tiny-ImageNet. Weights have
    torchvision's names; depth 18 and 34 are made of its basic blocks, 50 of its bottlenecks.
    """

    paper: ClassVar[str] = RESNET
    name: Literal["resnet"] = "resnet"
    depth: Literal[18, 34, 50] = Field(default=18, description="layers with weights")
    width: int = Field(
        default=64, ge=1, le=4_096, description="channels of the first stage; each doubles"
    )
    norm: Literal["batch", "instance"] = Field(
        default="batch",
        description="after convolutions; batch keeps running statistics, instance is what papers "
        "of matching measure with",
    )

    def build(self, shape: Shape) -> nn.Module:
        from distill_datasets.models.resnets import SmallImageResNet

        return _with_rule(partial(SmallImageResNet, self.depth, self.width, self.norm, shape))


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
        if model in USUAL:
            return model
        import torchvision.models

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

    def cited(self) -> list[str]:
        papers = [paper for start, paper in PAPERS.items() if self.model.startswith(start)]
        return [*self.paper.split("; "), *papers[:1]]

    def build(self, shape: Shape) -> nn.Module:
        return _tried(partial(self._made, shape), shape, f"torchvision's {self.model}")

    def _made(self, shape: Shape) -> nn.Module:
        import torchvision.models

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


class Vit(Architecture):
    """A vision transformer for small images: torchvision's, with patches that fit them.

    With the defaults and 32 px it has 2.7 million weights: DeiT-Tiny at half its depth, on 64
    patches of 4 x 4 px.
    """

    paper: ClassVar[str] = "ViT, arXiv:2010.11929; DeiT, arXiv:2012.12877"
    name: Literal["vit"] = "vit"
    patch: int | None = Field(
        default=None, ge=1, le=256, description="side of a patch, in px; null: at least 7 a side"
    )
    depth: int = Field(default=6, ge=1, le=64, description="blocks of attention and perceptron")
    width: int = Field(default=192, ge=1, le=4_096, description="numbers of a token")
    heads: int = Field(default=3, ge=1, le=64, description="of attention; they divide the width")

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(
                f"heads: got {self.heads} for a width of {self.width}, expected a divisor of it"
            )
        return self

    def patch_of(self, side: int) -> int:
        """The side of a patch in an image of this side."""
        fitting = (patch for patch in range(max(1, side // 7), 0, -1) if side % patch == 0)
        return self.patch or next(fitting)

    def build(self, shape: Shape) -> nn.Module:
        patch = self.patch_of(shape.h)
        if shape.h != shape.w or shape.h % patch:
            raise RecipeError(
                f"a vit cuts square images into patches of {patch} px, got {shape.h} x {shape.w}; "
                "choose a patch that divides the side, or set source.resolution, which crops to a "
                "square"
            )
        return _with_rule(partial(self._made, shape, patch))

    def _made(self, shape: Shape, patch: int) -> nn.Module:
        import torchvision.models

        module: nn.Module = torchvision.models.VisionTransformer(
            shape.h, patch, self.depth, self.heads, self.width, 4 * self.width, num_classes=shape.k
        )
        if shape.c != 3:
            _take_channels(module, shape.c)
        return module


class Timm(Architecture):
    """A classification network of timm by its name, with fresh weights."""

    paper: ClassVar[str] = "timm, doi:10.5281/zenodo.4414861"
    name: Literal["timm"] = "timm"
    model: str = Field(
        description="timm's name of it, for example resnet18 or vit_tiny_patch16_224"
    )

    def build(self, shape: Shape) -> nn.Module:
        timm = self._timm()
        known = timm.list_models()
        if self.model not in known:
            raise RecipeError(
                f"network: timm has no {self.model!r}; {did_you_mean(self.model, known)}"
            )
        return _tried(partial(self._made, shape), shape, f"timm's {self.model}")

    def _timm(self) -> Any:  # noqa: ANN401
        try:
            return importlib.import_module("timm")
        except ImportError as error:
            raise RecipeError(
                f"network: timm's {self.model} needs timm; run `pip install "
                "'distill_datasets[timm]'`, or choose a network of torchvision"
            ) from error

    def _made(self, shape: Shape) -> nn.Module:
        timm, options = self._timm(), {"num_classes": shape.k, "in_chans": shape.c}
        try:
            made = timm.create_model(self.model, img_size=shape.h, **options)
        except TypeError:  # a convolutional one takes every side
            made = timm.create_model(self.model, **options)
        module: nn.Module = made
        return module


def _tried(make: Callable[[], nn.Module], shape: Shape, name: str) -> nn.Module:
    """A network of a library, after one without values has seen an image of this size.

    Raises:
        RecipeError: it does not take such images.
    """
    try:
        module = _with_rule(make)
        with torch.device("meta"), torch.no_grad():
            make().eval()(torch.empty(1, shape.c, shape.h, shape.w))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise RecipeError(
            f"network: {name} does not take images of {shape.c} x {shape.h} x {shape.w} "
            f"({error}); raise source.resolution, make it square, or choose another network"
        ) from error
    return module


def _with_rule(make: Callable[[], nn.Module]) -> nn.Module:
    """The network that `make` makes, and how to draw it again."""
    from distill_datasets.models.layers import OwnRule

    module = make()
    module.add_module("own_rule", OwnRule(make))
    return module


def _take_channels(module: nn.Module, channels: int) -> None:
    """Let the first convolution take fewer input channels."""
    with torch.no_grad():
        first = next(layer for layer in module.modules() if isinstance(layer, nn.Conv2d))
        kept = first.weight[:, :channels] * math.sqrt(first.in_channels / channels)
        first.weight, first.in_channels = nn.Parameter(kept), channels
