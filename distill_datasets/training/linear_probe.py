"""Students that are a linear classifier on the features of a frozen backbone.

Images are asked for once; what is trained is a network of one layer whose examples are features,
in the one training loop. Features are centered and scaled by what the student trains on itself: ten
images know no other mean.

Shape suffixes: N examples, B a batch, D features, K classes, C channels, H W pixels.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F

from distill_datasets.data.features import AT_ONCE
from distill_datasets.models.backbones import Backbone
from distill_datasets.models.convnets import Mlp
from distill_datasets.runtime.draws import Draw
from distill_datasets.runtime.memory import images_at_once
from distill_datasets.training.examples import Examples, Whole
from distill_datasets.types import Batch, Shape

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.features import Features
    from distill_datasets.data.real import RealData
    from distill_datasets.models.frozen import FrozenBackbone

CLASSIFIER = Mlp(depth=0)
"""What is trained: one linear layer."""
START_STD = 0.01


class Scale(NamedTuple):
    """Features minus their mean, divided by the root mean square of what is left."""

    mean_D: Tensor
    root: Tensor

    @classmethod
    def of(cls, features_ND: Tensor) -> Scale:
        """That of the features that a student trains on, some thousand rows at a time."""
        rows, size = features_ND.shape
        chunks = torch.split(features_ND, AT_ONCE)
        mean_D = sum(chunk.double().sum(dim=0) for chunk in chunks) / rows
        squares = sum((chunk.double() - mean_D).square().sum() for chunk in chunks)
        root = torch.as_tensor(squares / (rows * size)).sqrt().clamp(min=1e-12)
        return cls(torch.as_tensor(mean_D).float(), root.float())

    def __call__(self, features_BD: Tensor) -> Tensor:
        """Scaled features (B, D, 1, 1), which is how a network takes them."""
        scaled_BD = (features_BD - self.mean_D.to(features_BD)) / self.root.to(features_BD)
        return scaled_BD[:, :, None, None]


class FeatureExamples(Examples):
    """The features of other examples, drawn and judged as these are."""

    def __init__(self, own: Examples, features_ND: Tensor, targets_NK: Tensor | None) -> None:
        """Put features in the place of images.

        Args:
            own: the examples.
            features_ND: of each of them.
            targets_NK: of each of them; None where `own` tells them by labels, without images.
        """
        self._own, self._features_ND, self._targets_NK = own, features_ND, targets_NK
        self.scale = Scale.of(features_ND)

    @property
    def count(self) -> int:
        return self._own.count

    def __call__(self, index_B: Tensor) -> Batch:
        chosen_B = index_B.to(self._features_ND.device)
        features_BCHW = self.scale(self._features_ND[chosen_B].to(index_B.device))
        if self._targets_NK is not None:
            return Batch(features_BCHW, self._targets_NK[index_B])
        assert isinstance(self._own, Whole), "other examples give their targets"
        real = self._own.real
        targets_BK = F.one_hot(real.train.labels_N[index_B], real.shape.k).float()
        return Batch(features_BCHW, targets_BK)

    def order(self, rng: torch.Generator, batch: int, turn: int) -> Tensor:
        return self._own.order(rng, batch, turn)

    def loss(self, logits_BK: Tensor, targets_BK: Tensor) -> Tensor:
        return self._own.loss(logits_BK, targets_BK)


class Probed:
    """A source as a frozen backbone sees it: what students train on, and what measures them."""

    def __init__(self, backbone: Backbone, real: RealData) -> None:
        self._backbone, self._real = backbone, real
        self._known: Features = real.features_of(backbone)
        self._loaded: FrozenBackbone | None = None
        self._lock = threading.Lock()

    def start(self, draw: Draw) -> Tensor:
        """All weights (P,) of a fresh classifier: N(0, 0.01^2), biases of zero.

        What of them lies outside the span of ten images' features is never trained away, so they
        are smaller than by torch's own rule.

        Source: MoCo (arXiv:1911.05722), the linear classifier of its program.
        """
        size, classes = self.shape.c, self.shape.k
        weight_KD = START_STD * torch.randn(classes, size, generator=draw("network"))
        start_P = torch.cat([weight_KD.flatten(), torch.zeros(classes)])
        return start_P.to(self._real.train.labels_N.device)

    @property
    def shape(self) -> Shape:
        """Of an example: its features."""
        return Shape(self._known.train_ND.shape[1], 1, 1, self._real.shape.k)

    def examples(self, own: Examples) -> FeatureExamples:
        """Other examples, seen by the backbone; those of the whole source are known."""
        if isinstance(own, Whole):
            return FeatureExamples(own, self._known.train_ND, None)
        device = self._real.train.labels_N.device
        side = self._asked.preprocessing.size
        at_once = images_at_once(Shape(3, side, side, 1), device)
        features, targets = list[torch.Tensor](), list[torch.Tensor]()
        space = self._real.normalization.input_space
        with torch.no_grad():
            for index_B in torch.split(torch.arange(own.count, device=device), at_once):
                images_BCHW, targets_BK = own(index_B)
                pixels_BCHW = space.to_pixels(images_BCHW).clamp(0, 1)
                features.append(self._asked(pixels_BCHW))
                targets.append(targets_BK)
        return FeatureExamples(own, torch.cat(features), torch.cat(targets))

    def test_batches(self, scale: Scale, size: int) -> Iterator[Batch]:
        """The features of the test images in order, scaled as those that a student trained on."""
        labels_N = self._real.test.labels_N
        for start in range(0, len(labels_N), size):
            own_B = labels_N[start : start + size]
            features_BD = self._known.test_ND[start : start + size].to(own_B.device)
            yield Batch(scale(features_BD), F.one_hot(own_B, self._real.shape.k).float())

    @property
    def _asked(self) -> FrozenBackbone:
        with self._lock:  # students ask side by side, and one copy is enough for all
            if self._loaded is None:
                self._loaded = self._backbone.load(self._real.train.labels_N.device)
            return self._loaded
