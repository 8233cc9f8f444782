"""Training towards flat minima: gradients that are taken a little way uphill."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import nn

from distill_datasets.config import Section

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.training.loop import Gradient


class Flatness(Section):
    """How far uphill, and how much of the gradient here is taken away again."""

    radius: float = Field(gt=0, description="rho, how far uphill the gradient is taken (FTD: 0.01)")
    surrogate: float = Field(
        default=0.3,
        ge=0,
        description="alpha, of the part of the gradient here that the one uphill lacks (FTD: 0.3); "
        "0 is sharpness-aware minimization",
    )


def uphill(settings: Flatness, gradient: Gradient, module: nn.Module) -> Gradient:
    """A gradient that leads to flat minima, of two of `gradient` at every step.

    With g the gradient at the weights w and u that at w + rho g / |g|, it is u - alpha g', where g'
    is what of g is orthogonal to u. Buffers are those that the weights w have seen.

    Args:
        settings: rho and alpha.
        gradient: of the loss of a batch, put into the weights' `grad`.
        module: whose weights these are.

    Source: GSAM (arXiv:2203.08065); experts of FTD (arXiv:2211.11004).
    """
    weights = list(module.parameters())

    def flat(index_B: Tensor, step: int) -> Tensor:
        loss = gradient(index_B, step)
        here = _taken(weights)
        length = _dot(here, here).sqrt()
        if not bool(length > 0):
            for weight, grad in zip(weights, here, strict=True):
                weight.grad = grad
            return loss
        kept = [value.detach().clone() for value in (*weights, *module.buffers())]
        with torch.no_grad():
            for weight, grad in zip(weights, here, strict=True):
                weight.add_(settings.radius / length * grad)
        gradient(index_B, step)
        there = _taken(weights)
        with torch.no_grad():
            for value, before in zip((*weights, *module.buffers()), kept, strict=True):
                value.copy_(before)
        # g' = g - (g.u / u.u) u
        along = _dot(here, there) / _dot(there, there).clamp(min=torch.finfo(length.dtype).tiny)
        for weight, own, other in zip(weights, here, there, strict=True):
            weight.grad = other - settings.surrogate * (own - along * other)
        return loss

    return flat


def _taken(weights: list[nn.Parameter]) -> list[Tensor]:
    """The gradients, taken away from the weights; zeros for a weight that has none."""
    grads = [torch.zeros_like(one) if one.grad is None else one.grad for one in weights]
    for weight in weights:
        weight.grad = None
    return grads


def _dot(left: list[Tensor], right: list[Tensor]) -> Tensor:
    """The inner product of two vectors in pieces."""
    return torch.stack([(a * b).sum() for a, b in zip(left, right, strict=True)]).sum()
