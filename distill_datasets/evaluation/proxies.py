"""Networks that are trained on the source to choose among its images: EL2N, forgetting, RDED.

They learn what is left when the tenth that tuning looks at is held out, one unit file each.

Shape suffixes: M networks, B a batch, N training images, K classes, P all weights of a network.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from distill_datasets.evaluation.protocol import Evaluate
from distill_datasets.evaluation.trials import dealt
from distill_datasets.files.artifacts import holds_tensors, read_tensors, write_tensors
from distill_datasets.models.convnets import ConvNet
from distill_datasets.optimizers import Adam
from distill_datasets.runtime.draws import draws
from distill_datasets.runtime.processes import Run
from distill_datasets.selection.difficulty import ByDifficulty, difficulty
from distill_datasets.selection.rded import Rded
from distill_datasets.types import Shape

if TYPE_CHECKING:
    from torch import Tensor, nn

    from distill_datasets.data.real import RealData

CHOSEN_BY_PROXIES = ("forgetting", "el2n", "easy", "rded")
"""Rows whose images are chosen by such networks."""
TILES_FROM = 128
"""From this side on, in pixels, an image of RDED has 2 x 2 crops, below it one."""


@dataclass(frozen=True)
class Proxies:
    """How many networks learn the source, and how long.

    Attributes:
        members: networks.
        passes: over the training images.
        width: of these ConvNets.
        lr: step size of Adam, which falls to zero.
        batch: of a step.
    """

    members: int
    passes: int
    width: int
    lr: float = 0.003
    batch: int = 256

    @property
    def settings(self) -> Evaluate:
        """How they are trained."""
        return Evaluate(
            network=ConvNet(width=self.width),
            batch=self.batch,
            optimizer=Adam(lr=self.lr),
            schedule="cosine",
            epochs=self.passes,
            beyond=None,
        )


class Consulted:
    """The proxies after training, and the choices that they make among the source's images."""

    def __init__(self, proxies: Proxies, real: RealData, run: Run, folder: Path) -> None:
        """Train those that no earlier run has finished, dealt to processes and threads."""
        self._proxies, self._real = proxies, real
        self._shape, self._device = real.shape, run.runtime.device
        self.network = proxies.settings.network
        paths = [
            folder / f"proxy-{proxies.width}-{proxies.passes}-{proxies.lr:g}-{member}.safetensors"
            for member in range(proxies.members)
        ]

        def learn(member: int) -> None:
            if holds_tensors(paths[member]):
                return
            draw = draws(run.seed, "standard", "proxy", member)
            found = difficulty(real, proxies.settings, proxies.passes, draw, self._device)
            weights_P = parameters_to_vector(found.module.parameters())
            tensors = {"el2n_N": found.el2n_N, "forgotten_N": found.forgotten_N}
            write_tensors(paths[member], {**tensors, "weights_P": weights_P})

        dealt(run, "difficulty", range(proxies.members), learn)
        self._found = [read_tensors(path)[0] for path in paths]
        self.modules = list(self._built())

    def _built(self) -> Iterator[nn.Module]:
        for found in self._found:
            module = self._proxies.settings.network.build(self._shape).to(self._device)
            vector_to_parameters(found["weights_P"].to(self._device), module.parameters())
            yield module.eval()

    @torch.no_grad()
    def __call__(self, images_BCHW: Tensor) -> Tensor:
        """Logits (M, B, K) of every network for images in the student's input space."""
        return torch.stack([module(images_BCHW) for module in self.modules])

    @property
    def bytes(self) -> int:
        """Of all weights, as float32."""
        return sum(4 * found["weights_P"].numel() for found in self._found)

    def mean(self, name: str) -> Tensor:
        """A score of every training image (N,), the mean over the networks."""
        return torch.stack([found[name] for found in self._found]).mean(dim=0)

    def choice(self, name: str) -> ByDifficulty | Crops:
        """The choice that a row is called by."""
        if name == "rded":
            return Crops(self, rded_of(self._shape))
        score = "forgotten_N" if name == "forgetting" else "el2n_N"
        return ByDifficulty(name, self.mean(score), easy=name == "easy")


def rded_of(shape: Shape) -> Rded:
    """RDED as its authors set it for images of this size."""
    return Rded(factor=2 if min(shape.h, shape.w) >= TILES_FROM else 1)


@dataclass(frozen=True)
class Crops:
    """RDED, with the networks that it asks."""

    asked: Consulted
    rded: Rded
    name: str = "rded"

    def images(self, real: RealData, per_class: int, rng: torch.Generator) -> Tensor:
        """Displayable mosaics (K * per_class, C, H, W) of all classes in order."""
        return self.rded.images(real, per_class, rng, self.asked)
