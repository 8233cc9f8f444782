"""ResNets of torchvision's blocks for small images.

A module of its own: importing torchvision imports torch's compiler, a third of what a run needs
before its first step, and most networks do without.

Shape suffixes: B images, C channels, H W pixels, K classes.
"""

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from distill_datasets.types import Shape

BLOCKS: dict[int, tuple[Callable[..., Any], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
}
"""By depth: the block, and how many of it each stage has."""


def instance_norm(channels: int) -> nn.Module:
    """A norm of every channel of an image alone, with a scale and a shift of its own."""
    return nn.GroupNorm(channels, channels)


class SmallImageResNet(nn.Module):
    """The layers of torchvision's ResNet of any width, with a stem that keeps small images whole.

    Convolutions start by Kaiming's normal rule (fan out), norms at one and zero, the linear layer
    uniformly within +-1/sqrt(fan in), as in torchvision.
    """

    def __init__(
        self, depth: int, width: int, norm: Literal["batch", "instance"], shape: Shape
    ) -> None:
        super().__init__()
        block, counts = BLOCKS[depth]
        normed: Callable[[int], nn.Module] = nn.BatchNorm2d if norm == "batch" else instance_norm
        self.conv1 = nn.Conv2d(shape.c, width, 3, padding=1, bias=False)
        self.bn1 = normed(width)
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
                        normed(outer),
                    )
                blocks.append(block(channels, inner, step, shortcut, norm_layer=normed))
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
