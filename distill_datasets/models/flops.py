"""What it costs to ask a network, and to differentiate it, in forward passes of the same images.

Floating-point operations that torch's counter finds on ConvNet-3; every kind of pass has one factor
here, for all that plan with it.
"""

from collections.abc import Callable

import torch

from distill_datasets.models.architecture import Architecture
from distill_datasets.types import Shape

IMAGE_GRADIENT = 2.0
"""Forward, and back to the images through weights that are frozen."""
WEIGHT_GRADIENT = 2.93
"""Forward, and back to the weights: a step of training."""
IMAGES_OF_WEIGHT_GRADIENT = 7.79
"""A gradient of the weights, and that differentiated in the images."""
TRACKED_STEP = 8.79
"""A gradient of the weights, and that differentiated in images and weights."""
STEP_BACK = 7.93
"""A Hessian-vector product for a step whose gradient is known: its forward pass is repeated."""


def cost(architecture: Architecture, shape: Shape) -> tuple[float, int]:
    """Floating-point operations of one forward pass on one image, and the number of weights."""
    module = architecture.on_meta(shape).eval()
    with torch.device("meta"):
        image = torch.empty(1, shape.c, shape.h, shape.w)
        flops = flops_of(lambda: module(image))
    return flops, sum(parameter.numel() for parameter in module.parameters())


def flops_of(call: Callable[[], object]) -> float:
    """Floating-point operations of a call, without a graph."""
    from torch.utils.flop_counter import FlopCounterMode  # recipes that are checked import no torch

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return float(counter.get_total_flops())
