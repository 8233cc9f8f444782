"""Pixels that cannot leave the displayable range while they are optimized.

A trained value u is shown as sigmoid(u), in (0, 1). Near mid-gray one unit of u is a quarter of the
range, which with the usual standard deviation of images is about one unit of the student's input
space, so step sizes of the papers carry over.
"""

import torch
from torch import Tensor

EDGE = 0.02
"""Real pixels are pulled this far inside the range, where the sigmoid still has a slope."""


def show(trained: Tensor) -> Tensor:
    """Trained values as pixels in [0, 1]."""
    return torch.sigmoid(trained)


def hide(pixels: Tensor) -> Tensor:
    """The inverse of `show`, for pixels in [0, 1]."""
    return torch.logit(pixels.clamp(EDGE, 1 - EDGE))
