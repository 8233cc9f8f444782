"""Tiny objects for the tests of the mathematics: toy images, and the same in double precision.

Shape suffixes: N rows, B a batch, K classes, C channels, H W pixels, P all weights of a network.
"""

from collections.abc import Callable, Sequence
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from distill_datasets.canvases.canvas import Bounds, Canvas
from distill_datasets.canvases.pixels import Pixels
from distill_datasets.canvases.poster import Poster
from distill_datasets.data.decoding import Split
from distill_datasets.data.normalization import InputSpace, Normalization
from distill_datasets.data.real import RealData
from distill_datasets.distilled import Distilled
from distill_datasets.labels.fixed import Area
from distill_datasets.labels.labels import Labels, LabelStart
from distill_datasets.labels.learned import Learned
from distill_datasets.models.convnets import ConvNet
from distill_datasets.models.layers import AvgPool2d
from distill_datasets.networks.network import FreshSource, NetworkSource, Sampled
from distill_datasets.objectives.objective import Estimate, Objective
from distill_datasets.runtime.draws import LaneDraw, rng_for
from distill_datasets.selection.random import Noise
from distill_datasets.types import Batch, Shape

CPU = torch.device("cpu")
TOY = Shape(1, 8, 8, 3)
NET = ConvNet(depth=2, width=6)
POSTER = Poster(height=12, width=16, crops=[3, 4], init=Noise(std=0.2))
LEARNED = Learned()
AS_IS = InputSpace(torch.zeros(1), torch.ones(1))


class DoubleReal(RealData):
    """Real images whose batches are in double precision."""

    def batch(self, rng: torch.Generator, size: int) -> Batch:
        images_BCHW, targets_BK = super().batch(rng, size)
        return Batch(images_BCHW.double(), targets_BK.double())

    def class_images(self, rng: torch.Generator, label: int, size: int) -> Tensor:
        return super().class_images(rng, label, size).double()


class DoubleNetworks(NetworkSource):
    """The networks of another source, in double precision."""

    def __init__(self, source: NetworkSource) -> None:
        self._source = source

    def sample(self, draw: LaneDraw) -> Sampled:
        network = self._source.sample(draw)
        network.weights_P = network.weights_P.double()
        return network


def toy_real(shape: Shape = TOY, per_class: int = 40, noise: float = 30.0) -> RealData:
    """Images of `shape.k` classes: 3 x 3 random patches for each class, under noise per image."""
    rng = rng_for(0, "toy")
    patches = torch.rand(shape.k, shape.c, 3, 3, generator=rng)
    pattern_KCHW = F.interpolate(patches, (shape.h, shape.w))

    def split() -> Split:
        labels_N = torch.arange(shape.k).repeat(per_class)
        noise_NCHW = torch.randn(len(labels_N), shape.c, shape.h, shape.w, generator=rng)
        images_NCHW = 128 + 80 * (pattern_KCHW[labels_N] - 0.5) + noise * noise_NCHW
        return Split(images_NCHW.clamp(0, 255).byte(), labels_N)

    train = split()
    names = [f"class {label}" for label in range(shape.k)]
    return RealData(train, split(), names, Normalization.fit(train, "mean_std", 0.1), shape)


def double_real(shape: Shape = TOY) -> DoubleReal:
    """The toy images, with batches in double precision."""
    return DoubleReal(**vars(toy_real(shape)))


def flat_real(colors: list[int], side: int = 8) -> RealData:
    """One image per class, of one gray value each; the student's input space is [0, 1]."""
    images_NCHW = torch.tensor(colors, dtype=torch.uint8)[:, None, None, None].repeat(
        1, 1, side, side
    )
    rows = Split(images_NCHW, torch.arange(len(colors)))
    as_is = Normalization(torch.zeros(1), torch.ones(1))
    names = [f"gray {color}" for color in colors]
    return RealData(rows, rows, names, as_is, Shape(1, side, side, len(colors)))


def double_networks(shape: Shape = TOY, network: ConvNet = NET) -> DoubleNetworks:
    """Fresh networks in double precision."""
    return DoubleNetworks(FreshSource(network, shape, CPU))


def distilled_of(
    real: RealData,
    canvas: Canvas,
    labels: Labels,
    rng: torch.Generator | None = None,
    step_sizes: Sequence[float] = (),
) -> Distilled:
    """Canvas and labels where they start."""
    images = canvas.start(real, rng or rng_for(0, "canvas"))
    targets = labels.start(images.cells, real.shape.k)
    return Distilled(canvas, labels, real.normalization.input_space, images, targets, step_sizes)


def double_distilled(
    real: RealData,
    canvas: Canvas = POSTER,
    labels: Labels = LEARNED,
    step_sizes: Sequence[float] = (),
) -> Distilled:
    """Canvas and labels in double precision; learned cells are moved off their sparse start."""
    distilled = distilled_of(real, canvas, labels, rng_for(1, "canvas"), step_sizes)
    distilled = distilled.to(dtype=torch.float64)
    rng = rng_for(2, "cells")
    with torch.no_grad():
        for name, parameter in distilled.parameters.items():
            if name.startswith("labels."):
                parameter += 0.1 + torch.rand(parameter.shape, generator=rng, dtype=torch.float64)
    return distilled


def images_of(
    pixels_NCHW: Tensor,
    targets_NK: Tensor,
    space: InputSpace = AS_IS,
    bounds: Bounds = "clip",
    step_sizes: Sequence[float] = (),
) -> Distilled:
    """Images that are trained as they are, given as pixels, with fixed targets."""
    canvas = Pixels(ipc=1, bounds=bounds)
    alone = canvas.alone()
    assert alone is not None
    images = alone.start(pixels_NCHW, targets_NK.argmax(dim=1))
    targets = LabelStart({}, {"targets_NK": targets_NK, "cells_GK": targets_NK})
    return Distilled(canvas, Area(), space, images, targets, step_sizes)


def bits_of(distilled: Distilled) -> dict[str, Tensor]:
    """A copy of every tensor."""
    both = {**distilled.parameters, **distilled.constants}
    return {name: tensor.detach().clone() for name, tensor in both.items()}


class Recorder(Distilled):
    """Remembers which examples were asked for."""

    def __init__(self, own: Distilled) -> None:
        vars(self).update(vars(own))
        self.asked: list[list[int]] = []

    def __call__(self, index_B: Tensor) -> Batch:
        self.asked.append(index_B.tolist())
        return super().__call__(index_B)


def flops(work: Callable[[], object]) -> int:
    """Floating-point operations that torch counts while `work` runs.

    Pooling is torch's own, as on an accelerator: the product that the library takes for it on a CPU
    is fast, and none of a method's operations.
    """
    with (
        mock.patch.object(AvgPool2d, "forward", nn.AvgPool2d.forward),
        FlopCounterMode(display=False) as counter,
    ):
        work()
    return counter.get_total_flops()


def spent_and_counted(objective: Objective) -> tuple[float, float]:
    """What an estimate on twelve hard-labeled images of four classes costs, and `work` of it."""
    shape = Shape(3, 16, 16, 4)
    real, draw = toy_real(shape), LaneDraw(0, 0, 0)
    distilled = distilled_of(real, Pixels(ipc=3), Area())
    networks = FreshSource(ConvNet(depth=2, width=32), shape, CPU)
    sampled = networks.sample(draw)
    per_image = flops(lambda: sampled(sampled.weights_P, torch.zeros(1, 3, 16, 16)))
    spent = flops(lambda: objective.estimate(distilled, networks, real, draw))
    return spent, objective.work(per_image, 12, 4)


def assert_pure(estimate: Callable[[Distilled], Estimate], distilled: Distilled) -> None:
    """Two estimates are the same bits, and leave the distilled set and torch's state alone."""
    before, stream = bits_of(distilled), torch.get_rng_state()
    first, second = (estimate(distilled) for _ in range(2))
    assert first.loss == second.loss
    assert all(torch.equal(first.grads[name], second.grads[name]) for name in first.grads)
    assert all(torch.equal(value, before[name]) for name, value in bits_of(distilled).items())
    assert all(parameter.grad is None for parameter in distilled.parameters.values())
    assert torch.equal(stream, torch.get_rng_state())


def values(tensor: Tensor) -> list[float]:
    """All values of a tensor in a row, short enough to compare with what a hand computes."""
    return [round(value, 6) for value in tensor.flatten().tolist()]
