"""The predictions of float32, most of them read off a pass in bfloat16.

A prediction is the class of the largest logit. Let l and m be the logits of an image in float32
and in bfloat16, and e = l - m. Every difference of two logits moves by at most max(e) - min(e),
which is called the error here. Where the two largest of m lie further apart than the error, both
passes name the same class. The errors of a first batch set a bound; images whose two largest logits
lie closer than that are asked again in float32. What is asked again also tells whether the bound
holds: where an error comes near to it, it is raised, and images up to there are asked too.

Shape suffixes: B images of a batch, C channels, H W pixels, K classes, N all images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from distill_datasets.runtime.precision import computing_in, cpu_is_fast

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.types import Batch

CHANNELS = 32
"""Of a convolution, in and out, from which bfloat16 is 1.3 to 2.5 times as fast (AVX512-BF16)."""
BOUND = 3.0
"""Times the largest error that was seen."""
ROOM = 1.5
"""How far every error has to stay below the bound. Of 10,000 images of CIFAR-10 the largest error
was 1.8 to 2.1 times that of the first 48 with instance norm, and more with batch norm."""
ROUNDED = 2.0**-7
"""Logits that lie closer, as a share of the largest, differ by a few steps of bfloat16 alone."""


def pays(module: nn.Module) -> bool:
    """Whether two passes are faster than one: on a CPU that multiplies bfloat16, by the widths."""
    first = next(module.parameters(), None)
    if first is None or first.device.type != "cpu" or first.dtype != torch.float32:
        return False
    widths = [
        min(layer.in_channels, layer.out_channels)
        for layer in module.modules()
        if isinstance(layer, nn.Conv2d)
    ]
    return max(widths, default=0) >= CHANNELS and cpu_is_fast()


class Screened(NamedTuple):
    """Logits whose largest one is that of float32, and the classes of the images."""

    logits_NK: Tensor
    labels_N: Tensor


class _Again:
    """Images that wait to be asked again, and how large the errors of those were that did."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._waiting = list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]()
        self.count = 0
        self.worst = 0.0

    def add(self, images_BCHW: Tensor, low_BK: Tensor, chosen_B: Tensor) -> None:
        """Keep some images of a batch; its logits are put right in place when they are asked."""
        self._waiting.append((images_BCHW[chosen_B], low_BK, chosen_B))
        self.count += int(chosen_B.sum())

    def ask(self) -> None:
        """In float32, all that wait."""
        if self.count:
            exact_BK = self._module(torch.cat([images for images, _, _ in self._waiting]))
            low_BK = torch.cat([low_BK[chosen_B] for _, low_BK, chosen_B in self._waiting])
            self.worst = max(self.worst, largest_error(low_BK, exact_BK))
            counts = [len(images) for images, _, _ in self._waiting]
            for (_, low_BK, chosen_B), piece_BK in zip(
                self._waiting, torch.split(exact_BK, counts), strict=True
            ):
                low_BK[chosen_B] = piece_BK
        self._waiting, self.count = [], 0


def largest_error(low_BK: Tensor, exact_BK: Tensor) -> float:
    """By how much the difference of two logits of one image moves at most; inf where none is."""
    error_BK = exact_BK - low_BK
    worst = float((error_BK.amax(dim=1) - error_BK.amin(dim=1)).max())
    return worst if worst < float("inf") else float("inf")


@torch.no_grad()
def screened(module: nn.Module, ask: Callable[[], Iterable[Batch]]) -> Screened | None:
    """Ask a network about images, most of them in bfloat16 alone.

    Args:
        module: in float32.
        ask: gives batches of images and distributions over at least two classes.

    Returns:
        None where logits are no numbers: ask all of them in float32.
    """
    module.eval()
    # GroupNorm, which instance norm is, takes three times as long in the other order; without it
    # convolutions and pooling win a fifth
    normed = any(isinstance(layer, nn.GroupNorm) for layer in module.modules())
    order = torch.contiguous_format if normed else torch.channels_last
    again, bound = _Again(module), 0.0
    logits, labels, apart = [list[torch.Tensor]() for _ in range(3)]
    for images_BCHW, targets_BK in ask():
        with computing_in("bfloat16", images_BCHW.device):
            low_BK = module(images_BCHW.contiguous(memory_format=order)).float()
        logits.append(low_BK)
        labels.append(targets_BK.argmax(dim=1))
        if len(logits) == 1:
            again.add(images_BCHW, low_BK, torch.ones(len(low_BK), dtype=torch.bool))
            again.ask()
            bound = BOUND * again.worst
            apart.append(torch.full((len(low_BK),), float("inf")))
            continue
        first_B, second_B = low_BK.topk(2, dim=1).values.unbind(dim=1)
        apart.append(first_B - second_B)
        least_B = (ROUNDED * low_BK.abs().amax(dim=1)).clamp(min=bound)
        # written so that logits that are no numbers are asked again
        again.add(images_BCHW, low_BK, ~(apart[-1] > least_B))
        if again.count >= len(logits[0]):
            again.ask()
    again.ask()
    while ROOM * again.worst > bound:
        if again.worst == float("inf"):
            return None
        held, bound = bound, BOUND * again.worst
        for (images_BCHW, _), low_BK, apart_B in zip(ask(), logits, apart, strict=True):
            again.add(images_BCHW, low_BK, (apart_B > held) & (apart_B <= bound))
            if again.count >= len(logits[0]):
                again.ask()
        again.ask()
    return Screened(torch.cat(logits), torch.cat(labels))
