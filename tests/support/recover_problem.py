"""Small networks with BatchNorm and blocks of toy images: what tests of recover share."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill_datasets.data.normalization import InputSpace
from distill_datasets.distilled import Distilled
from distill_datasets.networks.network import TeacherNetwork, Teachers
from distill_datasets.runtime.draws import rng_for
from support.tiny import images_of


class Residual(nn.Module):
    """A small residual network: three convolutions, each before a BatchNorm, one of them around."""

    def __init__(self, classes: int = 4, width: int = 6, channels: int = 3) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.around = nn.Conv2d(width, width, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        found = F.relu(self.norm1(self.first(images_BCHW)))
        found = F.relu(self.norm2(self.second(found)) + self.norm3(self.around(found)))
        logits_BK: Tensor = self.head(found.mean(dim=(2, 3)))
        return logits_BK


def residual(seed: int = 0, classes: int = 4, channels: int = 3) -> Residual:
    """The network with drawn weights and statistics, in eval mode."""
    rng = rng_for(seed, "network")
    module = Residual(classes, channels=channels)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.randn(weight.shape, generator=rng) * 0.4)
        for layer in (module.norm1, module.norm2, module.norm3):
            assert layer.running_mean is not None and layer.running_var is not None
            layer.running_mean.copy_(torch.randn(6, generator=rng) * 0.3)
            layer.running_var.copy_(0.5 + torch.rand(6, generator=rng))
            layer.weight.copy_(0.5 + torch.rand(6, generator=rng))
    return module.eval().requires_grad_(False)


def teachers(*modules: nn.Module) -> Teachers:
    """Teachers without statistics of classes."""
    return Teachers([TeacherNetwork(module) for module in modules])


def block(classes: list[int], seed: int = 0, side: int = 8, of: int = 4) -> Distilled:
    """A block of random images of these classes, as trained values that are clipped."""
    pixels = torch.rand(len(classes), 3, side, side, generator=rng_for(seed, "pixels"))
    targets_BK = F.one_hot(torch.tensor(classes), of).float()
    space = InputSpace(torch.tensor([0.5, 0.4, 0.45]), torch.tensor([0.25, 0.2, 0.3]))
    return images_of(pixels, targets_BK, space)
