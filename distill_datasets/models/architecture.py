"""The axis of architectures: a network as a recipe describes it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import SerializeAsAny
from torch import nn

from distill_datasets.config import Part, part
from distill_datasets.errors import RecipeError
from distill_datasets.types import Shape

if TYPE_CHECKING:
    from distill_datasets.models.backbones import Backbone

MOST_WEIGHTS = 10_000_000_000
"""Of one network: 40 GB in float32, sixteen times the largest vision transformer of torchvision."""


class Architecture(Part, ABC):
    """A network as a recipe describes it."""

    @abstractmethod
    def build(self, shape: Shape) -> nn.Module:
        """The module for this shape; weights are unset until `initialize` draws them.

        Raises:
            RecipeError: the network does not fit the shape.
        """

    def on_meta(self, shape: Shape) -> nn.Module:
        """The module without memory for its weights: how a network is looked at before it is made.

        Raises:
            RecipeError: the network does not fit the shape, or has more weights than any machine
                would train.
        """
        with torch.device("meta"):
            module = self.build(shape)
        count = sum(weight.numel() for weight in module.parameters())
        if count > MOST_WEIGHTS:
            raise RecipeError(
                f"the network ({self}) has {count:,} weights, expected at most "
                f"{MOST_WEIGHTS:,}; lower its width or depth, or source.resolution"
            )
        return module

    def frozen(self) -> Backbone | None:
        """What lies below all that is trained and is never trained itself; None for nothing."""
        return None

    def beside(self) -> list[Architecture]:
        """Other networks that every row of the results is measured on as well."""
        return []


def last_linear(module: nn.Module) -> tuple[str, nn.Linear] | None:
    """The last linear layer, which is taken for the classifier, by its name; None without any."""
    linear = [(name, own) for name, own in module.named_modules() if isinstance(own, nn.Linear)]
    return linear[-1] if linear else None


ArchitectureField = Annotated[SerializeAsAny[Architecture], part("architectures")]
