"""What is measured beyond the recipe's own student: longer, on other networks, at tuned rates.

A distilled set may suit one network, one step size and one number of steps. Published rows and the
best reference are therefore also given to students that train longer and to students of other
networks, and every row to students at a step size and a number of steps of its own. These are
chosen by as many trials for every row, on training images that the trials' references do not show;
test images choose nothing.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from distill_datasets.config import Section
from distill_datasets.models.architecture import Architecture, ArchitectureField
from distill_datasets.models.convnets import ConvNet, Mlp
from distill_datasets.models.vision import ResNet
from distill_datasets.types import Shape

RESNET_FROM = 32
"""From this side on, in pixels, a narrow ResNet is among the other networks."""


class Beyond(Section):
    """What is measured beyond the recipe's own student."""

    students: int = Field(default=2, gt=0, description="of every row here, each with its own seed")
    longer: list[Annotated[int, Field(gt=1)]] = Field(
        default=[2, 4],
        description="multiples of the steps, for the published rows and the best reference",
    )
    networks: list[ArchitectureField] | None = Field(
        default=None,
        description="other networks for these two; null: a convnet of another depth, an mlp, a "
        "linear classifier and from 32 px on a narrow resnet",
    )
    rates: list[Annotated[float, Field(gt=0)]] = Field(
        default=[1.0, 0.3, 3.3],
        description="factors on the step size that every row is tuned over; [] tunes none",
    )
    tuned_steps: int = Field(
        default=600,
        gt=0,
        description="tuning also tries as many steps, and the multiples of longer up to them",
    )
    held_out: int = Field(
        default=1000,
        gt=0,
        description="training images that tuning is scored on, at most a fifth of a class's",
    )

    def multiples(self, steps: int) -> list[int]:
        """The numbers of steps that the two are measured at on other networks, rising."""
        return sorted({steps, *(times * steps for times in self.longer)})

    def ladder(self, steps: int) -> list[int]:
        """The numbers of steps that tuning tries, rising."""
        within = {tried for tried in self.multiples(steps) if tried <= self.tuned_steps}
        return sorted({steps, *within, max(steps, self.tuned_steps)})

    def others(self, own: Architecture, shape: Shape) -> list[Architecture]:
        """The other networks, without the student's own."""
        found = other_networks(own, shape) if self.networks is None else self.networks
        return [network for network in found if network != own]


def other_networks(own: Architecture, shape: Shape) -> list[Architecture]:
    """A convnet of another depth, a perceptron, a linear classifier, and where it fits a ResNet."""
    like = own if isinstance(own, ConvNet) else ConvNet(width=64)
    depth, side = like.blocks(shape), min(shape.h, shape.w)
    if isinstance(own, ConvNet):
        # deeper where the image has the pixels for it
        depth += 1 if side >= 2 ** (depth + 1) else -1
    convnets = [like.model_copy(update={"depth": depth})] if depth else []
    resnets = [ResNet(width=16)] if side >= RESNET_FROM else []
    return [*convnets, Mlp(), Mlp(depth=0), *resnets]
