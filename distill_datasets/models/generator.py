"""A generator of images: latents that are decoded, and a flow that makes latents of noise.

A flow goes straight from noise e at time 0 to a latent z at time 1 (flow matching):

    x_t = (1 - t) e + t z,   velocity v = z - e,   so that z is x_t + (1 - t) v at every time t.

Euler's steps over a few times make a latent of noise; run backwards they make noise of a latent. A
model of diffusion that predicts noise is the same flow in other coordinates, see `diffusion`, and
Euler's steps are then those of DDIM.

Shape suffixes: B a batch, C channels and H W pixels of an image, L channels and h w sides of a
latent.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from distill_datasets.types import Shape

if TYPE_CHECKING:
    from torch import Tensor

Guide = Callable[["Tensor", "Tensor", float], "Tensor"]
"""What is added to a step, given x_t, the latent z that the flow heads for, and the time t."""


class Latents(Protocol):
    """Images as latents with a variance of about one, and back."""

    def encode(self, pixels_BCHW: Tensor) -> Tensor:
        """Latents (B, L, h, w) of pixels in [0, 1]."""

    def inner(self, latents_BLhw: Tensor, labels_B: Tensor, layer: int) -> Tensor:
        """Features of latents after a layer of the decoder, counted from 1; differentiable."""

    def decode(self, maps_BLhw: Tensor, labels_B: Tensor, layer: int = 0) -> Tensor:
        """Pixels in [0, 1], (B, C, H, W), of latents, or of features after a layer."""


class Velocity(Protocol):
    """The flow: where a point moves at a time, given its class."""

    def __call__(self, x_BLhw: Tensor, times_B: Tensor, labels_B: Tensor) -> Tensor:
        """Velocities (B, L, h, w); the label after the last one is that of no class."""


@dataclass(frozen=True, eq=False)
class Generator:
    """A finished generator on a device, frozen.

    Attributes:
        latents: encodes and decodes.
        velocity: the flow; None for a generator that only decodes.
        times: of Euler's steps, ascending, the last one 1.
        guidance: scale of classifier-free guidance; 1 asks for the class alone.
        shape: of the images, and the number of classes.
        latent: shape of one latent.
        device: where it lies.
        fingerprint: of all that decides what it makes.
        bytes: of its weights.
    """

    latents: Latents
    velocity: Velocity | None
    times: tuple[float, ...]
    guidance: float
    shape: Shape
    latent: tuple[int, ...]
    device: torch.device
    fingerprint: str
    bytes: int

    def encode(self, pixels_BCHW: Tensor) -> Tensor:
        """Latents (B, L, h, w) on the CPU of pixels in [0, 1], some images at a time."""
        with torch.no_grad():
            chunks = torch.split(pixels_BCHW, ENCODED_AT_ONCE)
            return torch.cat([self.latents.encode(chunk.to(self.device)).cpu() for chunk in chunks])

    def decode(self, maps_BLhw: Tensor, labels_B: Tensor, layer: int = 0) -> Tensor:
        """Pixels in [0, 1], (B, C, H, W), differentiable; everything on the device.

        They are of latents, or of features after a layer of the decoder.
        """
        return self.latents.decode(maps_BLhw, labels_B, layer)

    def inner(self, latents_BLhw: Tensor, labels_B: Tensor, layer: int) -> Tensor:
        """Features on the CPU of latents after a layer of the decoder, some images at a time."""
        pairs = zip(
            *(torch.split(x, DECODED_AT_ONCE) for x in (latents_BLhw, labels_B)), strict=True
        )
        with torch.no_grad():
            return torch.cat(
                [
                    self.latents.inner(z.to(self.device), y.to(self.device), layer).cpu()
                    for z, y in pairs
                ]
            )

    def show(self, latents_BLhw: Tensor, labels_B: Tensor) -> Tensor:
        """Pixels in [0, 1], (B, C, H, W), on the CPU, some images at a time."""
        pairs = zip(
            *(torch.split(x, DECODED_AT_ONCE) for x in (latents_BLhw, labels_B)), strict=True
        )
        with torch.no_grad():
            return torch.cat(
                [self.decode(z.to(self.device), y.to(self.device)).cpu() for z, y in pairs]
            )

    def heads_for(self, x_BLhw: Tensor, time: float, labels_B: Tensor) -> Tensor:
        """The latent at time 1 that the flow heads for, z = x_t + (1 - t) v; differentiable."""
        return x_BLhw + (1 - time) * self.moves(x_BLhw, time, labels_B)

    def moves(self, x_BLhw: Tensor, time: float, labels_B: Tensor) -> Tensor:
        """The guided velocity v_none + s (v_class - v_none).

        Source: classifier-free guidance (arXiv:2207.12598).
        """
        assert self.velocity is not None, "who needs a flow refuses a generator without one"
        times_B = torch.full((len(x_BLhw),), time, device=x_BLhw.device)
        if self.guidance == 1:
            return self.velocity(x_BLhw, times_B, labels_B)
        none_B = torch.full_like(labels_B, self.shape.k)
        both = self.velocity(
            torch.cat([x_BLhw, x_BLhw]), times_B.repeat(2), torch.cat([labels_B, none_B])
        )
        own, none = both.chunk(2)
        return none + self.guidance * (own - none)

    def blended(
        self, latents_BLhw: Tensor, noise_BLhw: Tensor, labels_B: Tensor, steps: int
    ) -> Tensor:
        """Latents that pass some steps of the flow from noise; differentiable, step by step.

        In step i of T = steps - 1, counted down to 0, the latent z that the flow heads for gives
        way to the given one, z <- (1 - i/T) z + (i/T) latents, so that early steps pass a gradient
        straight on and the last one is the flow's own. Steps are checkpointed.

        Source: LD3M (arXiv:2403.03881).
        """
        from torch.utils.checkpoint import checkpoint

        def step(x_BLhw: Tensor, latents: Tensor, time: float, then: float, share: float) -> Tensor:
            velocity_BLhw = self.moves(x_BLhw, time, labels_B)
            clean_BLhw, e_BLhw = (
                x_BLhw + (1 - time) * velocity_BLhw, x_BLhw - time * velocity_BLhw,
            )  # fmt: skip
            mixed_BLhw = (1 - share) * clean_BLhw + share * latents
            return noised(mixed_BLhw, e_BLhw, then)

        first = self.times[0]
        times = [first + (1 - first) * turn / steps for turn in range(steps + 1)]
        x_BLhw = noised(latents_BLhw, noise_BLhw, first)
        for turn, (time, then) in enumerate(itertools.pairwise(times)):
            share = (steps - 1 - turn) / max(1, steps - 1)
            x_BLhw = checkpoint(
                step, x_BLhw, latents_BLhw, time, then, share,
                use_reentrant=False, preserve_rng_state=False,
            )  # fmt: skip
        return x_BLhw

    def start(self, rng: torch.Generator, count: int) -> Tensor:
        """Noise (B, L, h, w) on the device, drawn on the CPU."""
        return torch.randn(count, *self.latent, generator=rng).to(self.device)

    def sample(
        self, x_BLhw: Tensor, labels_B: Tensor, guides: Sequence[Guide] = (), since: float = 0.0
    ) -> Tensor:
        """Latents (B, L, h, w) of noise, or of a point of the flow at a later time.

        Args:
            x_BLhw: where the flow starts.
            labels_B: the class of each.
            guides: what is added to every step.
            since: the time that `x_BLhw` is of; steps before it are left out.
        """
        for time, then in itertools.pairwise(self.times_from(since)):
            with torch.no_grad():
                velocity_BLhw = self.moves(x_BLhw, time, labels_B)
            moved_BLhw = x_BLhw + (then - time) * velocity_BLhw
            clean_BLhw = x_BLhw + (1 - time) * velocity_BLhw
            for guide in guides:
                moved_BLhw = moved_BLhw + guide(x_BLhw, clean_BLhw, time)
            x_BLhw = moved_BLhw.detach()
        return x_BLhw

    def invert(self, latents_BLhw: Tensor, labels_B: Tensor, until: float = 0.0) -> Tensor:
        """The point at time `until` that flows to these latents: Euler's steps backwards.

        Source: DDIM inversion (arXiv:2010.02502), as D3HR uses it.
        """
        x_BLhw = latents_BLhw
        for then, time in itertools.pairwise(reversed(self.times_from(until))):
            with torch.no_grad():
                x_BLhw = x_BLhw - (then - time) * self.moves(x_BLhw, time, labels_B)
        return x_BLhw

    def times_from(self, since: float) -> list[float]:
        """`since` and the times after it; the first of all where that is later."""
        begin = max(since, self.times[0])
        return [begin, *(time for time in self.times if time > begin)]


ENCODED_AT_ONCE = 64
DECODED_AT_ONCE = 16


def halvings(shape: Shape) -> int:
    """How often an autoencoder of ours halves the sides: until 8 px are left, and once at least."""
    return max(1, math.ceil(math.log2(max(shape.h, shape.w) / 8)))


def noised(latents_BLhw: Tensor, noise_BLhw: Tensor, time: float) -> Tensor:
    """The point of the straight way from noise to latents at a time."""
    return (1 - time) * noise_BLhw + time * latents_BLhw
