"""The axis of objectives: what is minimized, and which images are solved together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from distill_datasets.config import Part
from distill_datasets.errors import RecipeError
from distill_datasets.models.architecture import Architecture
from distill_datasets.networks.network import NetworkSource
from distill_datasets.runtime.draws import LaneDraw
from distill_datasets.types import Shape

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.real import RealData
    from distill_datasets.distilled import Distilled


class Block(NamedTuple):
    """Places in the class-major distilled set (label * ipc + i) that are solved together."""

    places_N: tuple[int, ...]


class Estimate(NamedTuple):
    """What an objective returns for one lane: a gradient per parameter of the distilled set."""

    loss: float
    grads: dict[str, Tensor]
    metrics: dict[str, float]
    """Numbers that trackers log beside the loss, of lane 0."""
    counts: bool = True
    """False leaves the lane out of this step's mean; a step in which none counts moves nothing."""


Composition = Literal["across", "within", "class_major"]


def match_blocks(
    composition: Composition, match_batch: int | None, classes: int, per_class: int
) -> list[Block]:
    """Every place of the distilled set in exactly one block; all blocks are of one size.

    Args:
        composition: `across`: one image of every class, then the next one of every class, cut into
            batches, so that a batch has each class at most once, or each equally often; `within`:
            images of one class alone; `class_major`: class after class, cut into batches.
        match_batch: images of a block; None: one of every class, or all of one class.
        classes: number of classes.
        per_class: images of each.

    Raises:
        RecipeError: the images do not fall into whole blocks of equal composition.

    Source: SRe2L (arXiv:2306.13092), LPLD (arXiv:2410.15919) and G-VBSM (arXiv:2311.17950).
    """
    if match_batch is None:
        match_batch = classes if composition == "across" else per_class
    images = classes * per_class
    if composition == "across":
        order = [label * per_class + turn for turn in range(per_class) for label in range(classes)]
        fits = images % match_batch == 0 and (match_batch <= classes or match_batch % classes == 0)
        wanted = f"a divisor of the {images} images"
        wanted += f" that is at most {classes} or a multiple of it, the number of classes"
    else:
        order = list(range(images))
        whole = per_class if composition == "within" else images
        fits = whole % match_batch == 0
        what = "images of a class" if composition == "within" else "images"
        wanted = f"a divisor of the {whole} {what}"
    if not fits:
        raise RecipeError(
            f"distill.objective.match_batch: got {match_batch} with classes: {composition!r}, "
            f"expected {wanted}, so that every batch is matched alike; change it or "
            "distill.canvas.ipc"
        )
    return [
        Block(tuple(order[start : start + match_batch])) for start in range(0, images, match_batch)
    ]


class Objective(Part, ABC):
    """The axis that says what is minimized. `needs` must be among what the networks offer."""

    needs: ClassVar[frozenset[str]] = frozenset()
    separable: ClassVar[bool] = False
    """True when `blocks` says how the images fall into pieces that are solved each for itself."""
    minimizes: ClassVar[bool] = True
    """False when the initial images are what is distilled."""

    @property
    def needs_class_statistics(self) -> bool:
        """True when the teachers have to come with statistics of every class."""
        return False

    def blocks(self, classes: int, per_class: int) -> list[Block]:
        """The pieces that can be solved each for itself; [] where all images are solved jointly.

        Every place is in exactly one block. A pure function: it knows of no processes.
        """
        return []

    @abstractmethod
    def estimate(
        self, distilled: Distilled, networks: NetworkSource, real: RealData, draw: LaneDraw
    ) -> Estimate:
        """The loss and the gradient of one lane, as a pure function of its arguments."""

    @abstractmethod
    def work(self, flops_per_image: float, examples: int, classes: int) -> float:
        """Floating-point operations of one lane, one multiplication and addition counting two.

        `flops_per_image` is a forward pass of the network on one image; `examples` counts those of
        the distilled set.
        """

    def real_rows(self) -> int:
        """How many different real images one lane asks for at once; 0 where they may repeat."""
        return 0

    def step_sizes(self) -> list[float]:
        """Initial values of the step sizes that are learned with the images; [] learns none."""
        return []

    def published_order(self, examples: int) -> list[list[int]]:
        """The examples of every published step, as many steps for any `examples`; [] for none."""
        return []

    def attacks(self) -> tuple[int, int] | None:
        """The class whose images shall be taken for another class, and that one; None for none."""
        return None

    def refusal(self, teachers: int) -> str | None:
        """Why so many networks of a squeeze stage would not do, for the user; None if they will."""
        return None

    def facts(self, distilled: Distilled, networks: NetworkSource) -> dict[str, float]:
        """What is worth knowing of a block that is solved: numbers by name."""
        return {}

    def check(self, shape: Shape, examples: int) -> None:
        """Raise `RecipeError` where a field does not fit the source or the number of examples."""

    def check_network(self, architecture: Architecture, shape: Shape) -> None:
        """Raise `RecipeError` where the networks that are drawn lack a layer that is looked at."""
