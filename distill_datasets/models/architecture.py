"""The axis of architectures: a network as a recipe describes it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated

from pydantic import SerializeAsAny
from torch import nn

from distill_datasets.config import Part, part
from distill_datasets.types import Shape


class Architecture(Part, ABC):
    """A network as a recipe describes it."""

    @abstractmethod
    def build(self, shape: Shape) -> nn.Module:
        """The module for this shape; weights are unset until `initialize` draws them.

        Raises:
            RecipeError: the network does not fit the shape.
        """


ArchitectureField = Annotated[SerializeAsAny[Architecture], part("architectures")]
