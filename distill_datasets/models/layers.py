"""Subclasses of torch's own modules, imported when a network is built and not before.

Beside layers these are the pieces that let torchvision's networks draw from a generator:
torchvision draws fresh weights in its constructors and drops out while it trains, both from the
state that all threads of a process share. Here the same calls get a generator.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class AvgPool2d(nn.AvgPool2d):
    """Means of 2x2 pixels; on a CPU two rows at a time by a matrix product.

    torch's own kernel took a third of a ConvNet's forward pass there (AVX-512, torch 2.15), and the
    product is three to twelve times as fast, forward and backward. Where channels lie next to each
    other torch's kernel is the faster one.
    """

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, input: Tensor) -> Tensor:
        """The input (..., H, W) at half the sides; an odd last row or column is left out."""
        rows = input.is_contiguous() or not input.is_contiguous(memory_format=torch.channels_last)
        if input.device.type != "cpu" or not rows:
            return super().forward(input)
        high, wide = input.shape[-2] // 2, input.shape[-1] // 2
        pairs = input[..., : 2 * high, : 2 * wide].reshape(-1, 4 * wide)
        quarters = torch.eye(wide, dtype=input.dtype, device=input.device) / 4
        means = pairs @ quarters.repeat_interleave(2, dim=0).repeat(2, 1)
        return means.view(*input.shape[:-2], high, wide)


class XavierChain(nn.Sequential):
    """Layers whose fresh weights are drawn by Xavier's normal rule, with biases of zero."""


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


_PLAIN = {nn.AvgPool2d, nn.Conv2d, nn.Flatten, nn.GroupNorm, nn.Linear, nn.MaxPool2d, nn.ReLU}
_PLAIN |= {AvgPool2d, nn.BatchNorm2d}
"""Layers whose `repr` is the call that makes them."""


def chain(module: nn.Module) -> list[str]:
    """The layers of a plain chain as constructors of `torch.nn`; [] for any other network.

    A bias is the default, which old versions of torch do not let every layer be told.
    """
    if not isinstance(module, nn.Sequential) or not all(type(layer) in _PLAIN for layer in module):
        return []
    return [repr(layer).replace(", bias=True", "") for layer in module]
