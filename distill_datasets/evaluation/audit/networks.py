"""The networks of an audit: one trained on the source, and students of the set.

Shape suffixes: B images, C channels, H W pixels, K classes, D features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from distill_datasets.models.architecture import last_linear
from distill_datasets.models.convnets import ConvNet
from distill_datasets.optimizers import Adam
from distill_datasets.training.examples import Examples, Whole
from distill_datasets.training.student import Student, train_student

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.real import RealData
    from distill_datasets.runtime.draws import Draw


class AuditStudent(Student):
    """How the networks of an audit are trained."""


@dataclass(frozen=True)
class Effort:
    """How much an audit works; the defaults are what its rates were measured with.

    Attributes:
        clean_sets: that the set is compared with.
        students: networks trained on every set.
        steps: of a student.
        reference_steps: of the network that is trained on the source.
        width: channels of the networks.
        search_steps: of the search for a trigger.
    """

    clean_sets: int = 20
    students: int = 3
    steps: int = 100
    reference_steps: int = 600
    width: int = 16
    search_steps: int = 40

    def settings(self) -> AuditStudent:
        """How its networks are trained."""
        return AuditStudent(network=ConvNet(width=self.width), optimizer=Adam(lr=0.003), batch=100)


def student_of(
    examples: Examples, real: RealData, draw: Draw, effort: Effort, steps: int | None = None
) -> nn.Module:
    """A fresh network, trained on examples and ready to be asked."""
    device = real.train.labels_N.device
    settings = effort.settings()
    module = train_student(settings, steps or effort.steps, examples, real.shape, draw, device)
    return module.eval()


def reference_of(real: RealData, draw: Draw, effort: Effort) -> nn.Module:
    """A network trained on the source."""
    return student_of(Whole(real), real, draw, effort, effort.reference_steps)


@torch.no_grad()
def activations(module: nn.Module, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """What the last linear layer reads (B, D), and the logits (B, K)."""
    found = last_linear(module)
    assert found is not None, "a convnet ends in a linear layer"
    read = list[torch.Tensor]()

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        read.append(inputs[0])

    handle = found[1].register_forward_pre_hook(keep)
    try:
        logits_BK = module(images_BCHW)
    finally:
        handle.remove()
    return read[0].flatten(1), logits_BK
