"""Vector-Jacobian products: what ends pull at what they were made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def vector_jacobian(
    ends: Sequence[Tensor], inputs: Sequence[Tensor], pulls: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The gradient of the inputs, given that of the ends.

    It is that of the ends' sum of products with their pulls, to the bit. `grad_outputs` of
    `torch.autograd.grad` would import sympy first, a tenth of what a run takes to its first step.

    Args:
        ends: any tensors with their graphs; those that have none count for nothing.
        inputs: what is differentiated; one that no end depends on gets zeros.
        pulls: a tensor of the same shape for every end.
    """
    products = [
        (end * pull).sum() for end, pull in zip(ends, pulls, strict=True) if end.requires_grad
    ]
    if not products:
        return tuple(torch.zeros_like(each) for each in inputs)
    return torch.autograd.grad(products, inputs, materialize_grads=True)
