"""The networks of a generator that is trained on the source: an autoencoder, and a flow of latents.

Small on purpose, since they learn in minutes on a CPU. Imported when they are built and not before:
they subclass torch's modules.

Shape suffixes: B a batch, C channels and H W pixels of an image, L channels and h w sides of a
latent, K classes, D features.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill_datasets.models.generator import halvings
from distill_datasets.types import Shape

GROUPS = 8
"""Of a group norm; widths are multiples of it."""
FREQUENCIES = 32
"""Pairs of sine and cosine that tell the time."""


def latent_sides(shape: Shape) -> tuple[int, int]:
    """The sides (h, w) of a latent."""
    times = 2 ** halvings(shape)
    return -(-shape.h // times), -(-shape.w // times)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside the identity; a condition scales and shifts between them."""

    def __init__(self, channels: int, out: int, condition: int = 0) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(GROUPS, channels), _conv(channels, out)
        self.norm2, self.conv2 = nn.GroupNorm(GROUPS, out), _conv(out, out)
        self.film = nn.Linear(condition, 2 * out) if condition else None
        self.skip = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, maps: Tensor, condition_BD: Tensor | None = None) -> Tensor:
        """Maps of `out` channels."""
        inner = self.norm2(self.conv1(F.silu(self.norm1(maps))))
        if self.film is not None:
            scale, shift = self.film(condition_BD)[:, :, None, None].chunk(2, dim=1)
            inner = inner * (1 + scale) + shift
        found: Tensor = self.skip(maps) + self.conv2(F.silu(inner))
        return found


class Autoencoder(nn.Module):
    """A variational autoencoder whose decoder is told the class.

    Images are padded to sides that halve evenly, and cropped again. Latents have mean zero and a
    variance of one in every channel once `standardize` has seen those of the source.
    """

    def __init__(self, shape: Shape, channels: int, width: int) -> None:
        super().__init__()
        self.shape, self.channels = shape, channels
        times = halvings(shape)
        wide = 2 * width if times > 1 else width
        down: list[nn.Module] = [nn.PixelUnshuffle(2), _conv(4 * shape.c, width)]
        up: list[nn.Module] = []
        for turn in range(times - 1):
            narrow = width if turn == 0 else wide
            down += [nn.GroupNorm(GROUPS, narrow), nn.SiLU(), _conv(narrow, wide, stride=2)]
            up = [nn.Upsample(scale_factor=2), _conv(wide, narrow), *_ends(narrow), *up]
        self.encoder = nn.Sequential(*down, ResidualBlock(wide, wide), *_ends(wide))
        self.moments = _conv(wide, 2 * channels)
        self.inward, self.of_class = _conv(channels, wide), nn.Linear(shape.k, wide, bias=False)
        self.decoder = nn.Sequential(
            ResidualBlock(wide, wide),
            *_ends(wide),
            *up,
            _conv(width, 4 * shape.c),
            nn.PixelShuffle(2),
        )
        self.register_buffer("mean_L", torch.zeros(channels))
        self.register_buffer("std_L", torch.ones(channels))

    def distribution(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance (B, L, h, w) of the latents, not standardized."""
        side = 2 ** halvings(self.shape)
        padding = (0, -self.shape.w % side, 0, -self.shape.h % side)
        padded = F.pad(2 * pixels_BCHW - 1, padding, value=-1.0)
        mean, log_variance = self.moments(self.encoder(padded)).chunk(2, dim=1)
        return mean, log_variance.clamp(-20, 5)

    def drawn(self, latents_BLhw: Tensor, targets_BK: Tensor) -> Tensor:
        """Pixels in [0, 1] of latents that are not standardized, and of classes."""
        return self._shown(self.decoder(self._told(latents_BLhw, targets_BK)))

    def _told(self, latents_BLhw: Tensor, targets_BK: Tensor) -> Tensor:
        maps: Tensor = self.inward(latents_BLhw) + self.of_class(targets_BK)[:, :, None, None]
        return maps

    def _shown(self, maps: Tensor) -> Tensor:
        return torch.sigmoid(maps)[:, :, : self.shape.h, : self.shape.w]

    def standardize(self, mean_L: Tensor, std_L: Tensor) -> None:
        """Take what the raw latents of the source have as mean and deviation."""
        self.get_buffer("mean_L").copy_(mean_L)
        self.get_buffer("std_L").copy_(std_L)

    def encode(self, pixels_BCHW: Tensor) -> Tensor:
        """Standardized latents (B, L, h, w) of pixels in [0, 1]."""
        raw, _ = self.distribution(pixels_BCHW)
        return (raw - self._of("mean_L")) / self._of("std_L")

    def inner(self, latents_BLhw: Tensor, labels_B: Tensor, layer: int) -> Tensor:
        """Features after a layer: 1 is the residual block, each later one doubles the sides."""
        targets_BK = F.one_hot(labels_B, self.shape.k).to(latents_BLhw.dtype)
        raw = latents_BLhw * self._of("std_L") + self._of("mean_L")
        maps: Tensor = self.decoder[: modules_until(layer)](self._told(raw, targets_BK))
        return maps

    def decode(self, maps_BLhw: Tensor, labels_B: Tensor, layer: int = 0) -> Tensor:
        """Pixels in [0, 1], (B, C, H, W), of standardized latents, or of `inner`."""
        if layer:
            return self._shown(self.decoder[modules_until(layer) :](maps_BLhw))
        targets_BK = F.one_hot(labels_B, self.shape.k).to(maps_BLhw.dtype)
        return self.drawn(maps_BLhw * self._of("std_L") + self._of("mean_L"), targets_BK)

    def _of(self, name: str) -> Tensor:
        return self.get_buffer(name)[:, None, None]


def modules_until(layer: int) -> int:
    """How many modules of the decoder there are up to the end of a layer, its activation."""
    block, doubling = 1 + len(_ends(GROUPS)), 2 + len(_ends(GROUPS))
    return block + doubling * (layer - 1)


class FlowUNet(nn.Module):
    """The velocity of latents: a U-Net of two levels that is told the time and the class."""

    def __init__(self, channels: int, width: int, classes: int) -> None:
        super().__init__()
        self.classes, wide, told = classes, 2 * width, 2 * width
        self.time = nn.Sequential(
            nn.Linear(2 * FREQUENCIES, told), nn.SiLU(), nn.Linear(told, told)
        )
        self.of_class = nn.Linear(classes + 1, told, bias=False)
        self.inward = _conv(channels, width)
        self.first = ResidualBlock(width, width, told)
        self.down = _conv(width, wide, stride=2)
        self.middle = nn.ModuleList([ResidualBlock(wide, wide, told) for _ in range(2)])
        self.attention = SelfAttention(wide)
        self.up = _conv(wide, width)
        self.last = ResidualBlock(2 * width, width, told)
        self.outward = nn.Sequential(*_ends(width), _conv(width, channels))

    def forward(self, x_BLhw: Tensor, times_B: Tensor, labels_B: Tensor) -> Tensor:
        """Velocities (B, L, h, w); the label `classes` is that of no class."""
        targets = F.one_hot(labels_B, self.classes + 1).to(x_BLhw.dtype)
        # one-hot vectors of K + 1 entries have a variance of 1 / (K + 1)
        class_BD = math.sqrt(self.classes + 1) * self.of_class(targets)
        told_BD = F.silu(self.time(frequencies(times_B)) + class_BD)
        first = self.first(self.inward(x_BLhw), told_BD)
        maps = self.middle[0](self.down(first), told_BD)
        maps = self.middle[1](self.attention(maps), told_BD)
        maps = self.up(F.interpolate(maps, first.shape[2:]))
        velocity: Tensor = self.outward(self.last(torch.cat([maps, first], dim=1), told_BD))
        return velocity


class SelfAttention(nn.Module):
    """Every place of a map looks at all others, beside the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.inward = (
            nn.GroupNorm(GROUPS, channels),
            nn.Conv2d(channels, 3 * channels, 1),
        )
        self.outward = nn.Conv2d(channels, channels, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps of the same shape."""
        query, key, value = self.inward(self.norm(maps)).flatten(2).transpose(1, 2).chunk(3, dim=2)
        # by hand: the fused kernel has no second derivative
        weight = (query @ key.transpose(1, 2) / math.sqrt(maps.shape[1])).softmax(dim=2)
        seen = (weight @ value).transpose(1, 2).reshape(maps.shape)
        found: Tensor = maps + self.outward(seen)
        return found


def frequencies(times_B: Tensor) -> Tensor:
    """Sines and cosines of times in [0, 1] at frequencies from 1 to 1000, (B, D)."""
    steps = torch.arange(FREQUENCIES, device=times_B.device) / FREQUENCIES
    angles = times_B[:, None] * torch.exp(math.log(1000) * steps)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _conv(channels: int, out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, stride=stride, padding=1)


def _ends(channels: int) -> list[nn.Module]:
    return [nn.GroupNorm(GROUPS, channels), nn.SiLU()]
