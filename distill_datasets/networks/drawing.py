"""Randomness inside torch's own functions, taken from a generator instead of global state.

torchvision draws fresh weights in its constructors and drops out while it trains, both from the
state that all threads of a process share. Here the same calls get a generator.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

DRAWING = {
    Tensor.normal_,
    Tensor.uniform_,
    nn.init.kaiming_normal_,
    nn.init.kaiming_uniform_,
    nn.init.normal_,
    nn.init.trunc_normal_,
    nn.init.uniform_,
    nn.init.xavier_normal_,
    nn.init.xavier_uniform_,
}
"""Functions that fill a tensor and take a generator."""


class DrawsFrom(TorchFunctionMode):
    """While it is entered, by this thread alone, what torch draws comes from `rng`.

    A generator seeded like torch's global one gives the very same draws. Those of dropout and of
    stochastic depth are made on the CPU, so that every device gets the same.
    """

    def __init__(self, rng: torch.Generator) -> None:
        super().__init__()
        self._rng = rng

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        given = dict(kwargs or {})
        if func is F.dropout:
            return self._dropped(*args, **given)
        if func is Tensor.bernoulli_:  # stochastic depth
            target, share = args
            drawn = torch.empty(target.shape, dtype=target.dtype)
            return target.copy_(drawn.bernoulli_(share, generator=self._rng))
        if func in DRAWING:
            given["generator"] = self._rng
        return func(*args, **given)

    def _dropped(
        self, values: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if not training or p == 0:
            return values
        kept = torch.empty(values.shape).bernoulli_(1 - p, generator=self._rng)
        return values * (kept / (1 - p)).to(values)


class OwnRule(nn.Module):
    """Rides in a network whose constructor draws its weights: the way to draw them again.

    It has no weights itself, so the names of the network's weights stay those of its makers.
    """

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self._make = make

    def drawn(self, rng: torch.Generator) -> nn.Module:
        """The network with weights drawn from `rng`, a generator on the CPU."""
        with torch.device("cpu"), DrawsFrom(rng):
            return self._make()


def own_rule(module: nn.Module) -> OwnRule | None:
    """How a network's makers draw its weights; None where torch's rule for its layers holds."""
    return next((child for child in module.children() if isinstance(child, OwnRule)), None)


def drawing(module: nn.Module, rng: torch.Generator) -> AbstractContextManager[object]:
    """Around a training step: what the network drops out is drawn from `rng`.

    The networks that draw nothing while they train are left alone.
    """
    return nullcontext() if own_rule(module) is None else DrawsFrom(rng)
