"""The axis of selections: images to start from, or to compare with, drawn, chosen or made.

Shape suffixes: B images, C channels, H W pixels, K classes, M networks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import torch
from pydantic import BaseModel

from distill_datasets.config import Part
from distill_datasets.errors import RecipeError
from distill_datasets.types import Shape

if TYPE_CHECKING:
    from torch import Tensor, nn

    from distill_datasets.data.real import RealData


class Teacher(Protocol):
    """The trained members of a squeeze stage, asked for their opinion."""

    @property
    def modules(self) -> Sequence[nn.Module]:
        """The networks themselves, on the device, for those that differentiate them."""

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        """Logits (M, B, K) of every member for images in the student's input space."""


class Selection(Part, ABC):
    """Images to start from, or to compare with: drawn, chosen or made from the real ones."""

    needs_generator: ClassVar[bool] = False
    """True when a generator makes the images, or the space in which real ones are chosen."""
    samples: ClassVar[bool] = False
    """True when its images come from a generator, which then has to be a trained one."""
    effort: ClassVar[Literal["image", "class", "file"]] = "file"
    """What images made class by class cost: `image`, each is drawn for itself; `class`, those of a
    class are drawn together; `file`, they are worked out, so that it pays to keep them."""
    shows_real: ClassVar[bool] = True
    """Whether what it gives are images of the source, pieces of these or means of a few."""
    outside: ClassVar[bool] = False
    """True when they depend on more than the recipe, the source and the squeezed networks."""

    @property
    def needs_squeezed(self) -> bool:
        """True when it asks the networks of the squeeze stage."""
        return False

    @abstractmethod
    def of_class(
        self,
        real: RealData,
        label: int,
        per_class: int,
        rng: torch.Generator,
        teacher: Teacher | None = None,
    ) -> Tensor:
        """Displayable images of one class, (per_class, C, H, W) in [0, 1] on the CPU.

        A class with fewer than `per_class` images repeats them; `rng` decides all that is drawn.
        `teacher` are the networks of the squeeze stage; there when `needs_squeezed`.
        """

    def together(
        self, real: RealData, per_class: int, rng: torch.Generator, teacher: Teacher | None
    ) -> Tensor | None:
        """All classes in order, where that is not one class after another; None where it is."""
        return None

    def problems(self, shape: Shape) -> Iterator[str]:
        """Why no images could be made, for the user, before the source is read."""
        yield from ()

    def sampling_problems(self, steps: int, *, unconditional: bool) -> Iterator[str]:
        """Why a generator does not suit it, for the user.

        Args:
            steps: of the generator's sampling.
            unconditional: whether it was ever shown latents of no class.
        """
        yield from ()

    def images(
        self, real: RealData, per_class: int, rng: torch.Generator, teacher: Teacher | None = None
    ) -> Tensor:
        """Displayable images (K * per_class, C, H, W) of all classes in order, from one stream."""
        images = self.together(real, per_class, rng, teacher)
        if images is not None:
            return images
        labels = range(real.shape.k)
        return torch.cat([self.of_class(real, label, per_class, rng, teacher) for label in labels])


AT_ONCE = 256
"""Images that networks are asked about at once."""


def repeated(places: Sequence[int], count: int) -> list[int]:
    """The places, over and over, until there are `count`."""
    return [places[turn % len(places)] for turn in range(count)]


def present(teacher: Teacher | None, selection: Selection) -> Teacher:
    """The networks of the squeeze stage.

    Raises:
        RecipeError: the recipe has no such stage.
    """
    if teacher is None:
        raise RecipeError(
            f"init: {selection.name!r} asks networks that are trained on the real data first; add "
            "a section squeeze, for example squeeze: {epochs: 5}"
        )
    return teacher


def real_starts(section: BaseModel) -> list[str]:
    """The selections in a section, and below, whose images are real ones: `init: real`."""
    found = list[str]()
    for key in type(section).model_fields:
        value = getattr(section, key)
        if isinstance(value, Selection) and value.shows_real:
            found.append(f"{key}: {value.name}")
        elif isinstance(value, BaseModel):
            found += real_starts(value)
    return found


def privacy(section: BaseModel) -> str | None:
    """What is said of distilled images that start from real ones; None where none do."""
    starts = real_starts(section)
    if not starts:
        return None
    return (
        f"the distilled images start from real images of the source ({', '.join(starts)}) and may "
        "show them"
    )
