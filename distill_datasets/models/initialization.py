"""How fresh weights of any network are drawn, from a generator instead of global state.

`models.layers` is imported by the functions: it subclasses torch's modules, and recipes whose
networks are only checked import this file.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import nn

from distill_datasets.errors import RecipeError

if TYPE_CHECKING:
    from distill_datasets.models.layers import OwnRule


def initialize(module: nn.Module, rng: torch.Generator) -> None:
    """Draw fresh weights by torch's default rule, from a generator instead of global state.

    Convolutions and linear layers: weight and bias uniform within +-1/sqrt(fan in), or Xavier's
    rule in a `XavierChain`. Norms: one and zero; running statistics: zero mean, unit variance, no
    batch seen. Networks with an `OwnRule` (torchvision's) are drawn as their makers draw them:
    a generator with the seed of torch's global one gives the same bits as their constructor.

    Args:
        module: on a real device, for example after `to_empty`; changed in place.
        rng: a generator on the CPU, so that every device gets the same draw.

    Raises:
        RecipeError: a layer with weights of a kind that this rule does not know.
    """
    from distill_datasets.models.layers import XavierChain

    with torch.no_grad():
        rule = own_rule(module)
        if rule is not None:
            module.load_state_dict(rule.drawn(rng).state_dict())
            return
        for layer in module.modules():
            own = dict(layer.named_parameters(recurse=False))
            if not own:
                continue
            if isinstance(layer, nn.Conv2d | nn.Linear) and isinstance(module, XavierChain):
                # N(0, 2 / (fan in + fan out))
                drawn = nn.init.xavier_normal_(torch.empty(layer.weight.shape), generator=rng)
                layer.weight.copy_(drawn)
                if layer.bias is not None:
                    layer.bias.zero_()
            elif isinstance(layer, nn.Conv2d | nn.Linear):
                bound = 1 / math.sqrt(layer.weight[0].numel())
                for parameter in own.values():
                    drawn = torch.empty(parameter.shape).uniform_(-bound, bound, generator=rng)
                    parameter.copy_(drawn)
            elif isinstance(layer, nn.BatchNorm2d):
                layer.reset_parameters()  # draws nothing
            elif isinstance(layer, nn.GroupNorm):
                layer.weight.fill_(1)
                layer.bias.fill_(0)
            else:
                raise RecipeError(
                    f"no rule to draw fresh weights of a {type(layer).__name__}; "
                    "known: Conv2d, Linear, GroupNorm, BatchNorm2d and torchvision's networks"
                )


def own_rule(module: nn.Module) -> OwnRule | None:
    """How a network's makers draw its weights; None where torch's rule for its layers holds."""
    from distill_datasets.models.layers import OwnRule

    return next((child for child in module.children() if isinstance(child, OwnRule)), None)


def drawing(module: nn.Module, rng: torch.Generator) -> AbstractContextManager[object]:
    """Around a training step: what the network drops out is drawn from `rng`.

    The networks that draw nothing while they train are left alone.
    """
    from distill_datasets.models.layers import DrawsFrom

    return nullcontext() if own_rule(module) is None else DrawsFrom(rng)
