"""The axis of objectives: what is minimized, and which images are solved together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch

from distill_datasets.config import Part
from distill_datasets.errors import refuse
from distill_datasets.models.architecture import Architecture
from distill_datasets.runtime.draws import LaneDraw
from distill_datasets.runtime.vector_jacobian import vector_jacobian
from distill_datasets.types import Batch, Shape, Task

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.real import RealData
    from distill_datasets.distilled import Distilled


class Needs(NamedTuple):
    """What an objective has to be given, as far as its settings decide it."""

    networks: Literal["drawn", "teachers", "features"] | None = "drawn"
    """What `estimate` takes: a source that draws networks, trained ones as they are, frozen
    backbones, or none of them."""
    offers: frozenset[str] = frozenset()
    """What the networks must offer beyond that; see `Networks.offers`."""
    asked: int | None = None
    """How many teachers a step asks; None for all."""
    class_statistics: bool = False
    """True when teachers have to come with statistics of every class."""
    real_rows: int = 0
    """How many different real images a lane asks for at once; 0 where they may repeat."""


class Context(NamedTuple):
    """What is known of a recipe when it is checked; None for what is not known yet."""

    teachers: int | None = None
    """Networks of the squeeze stage."""
    shape: Shape | None = None
    examples: int | None = None
    """Examples of the distilled set."""
    network: Architecture | None = None
    """The network that is drawn, which fits the shape."""


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


def through_batch(
    batch: Batch, grads: Sequence[Tensor], parameters: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The gradient of the parameters, given that of the images and targets that they became.

    Args:
        batch: what `Distilled` made of the parameters, with its graph.
        grads: of the images, and of the targets, which count where labels are trained.
        parameters: what is differentiated; one that the batch does not depend on gets zeros.
    """
    return vector_jacobian(batch, parameters, grads)


def added(losses: Sequence[Tensor]) -> float:
    """Numbers on a device, added in order in double precision; it is waited for once."""
    total = 0.0
    for loss in torch.stack(list(losses)).tolist() if losses else []:
        total += loss
    return total


Composition = Literal["across", "within", "class_major"]


def match_problems(
    composition: Composition, match_batch: int | None, classes: int, per_class: int
) -> Iterator[str]:
    """Why the images do not fall into whole batches of equal composition; see `match_blocks`."""
    if match_batch is None:
        return
    images = classes * per_class
    if composition == "across":
        fits = images % match_batch == 0 and (match_batch <= classes or match_batch % classes == 0)
        wanted = f"a divisor of the {images} images"
        wanted += f" that is at most {classes} or a multiple of it, the number of classes"
    else:
        whole = per_class if composition == "within" else images
        fits = whole % match_batch == 0
        what = "images of a class" if composition == "within" else "images"
        wanted = f"a divisor of the {whole} {what}"
    if not fits:
        yield (
            f"distill.objective.match_batch: got {match_batch} with classes: {composition!r}, "
            f"expected {wanted}, so that every batch is matched alike; change it or "
            "distill.canvas.ipc"
        )


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
    refuse(match_problems(composition, match_batch, classes, per_class))
    # image i of class c has the place c * per_class + i, so that a class's places stand together
    order = list(range(classes * per_class))
    if composition == "across":
        order = [label * per_class + turn for turn in range(per_class) for label in range(classes)]
    size = match_batch or (classes if composition == "across" else per_class)
    return [Block(tuple(order[start : start + size])) for start in range(0, len(order), size)]


class Objective(Part, ABC):
    """The axis that says what is minimized: `estimate` is all that it has to answer."""

    separable: ClassVar[bool] = False
    """True when `blocks` says how the images fall into pieces that are solved each for itself."""
    tasks: ClassVar[frozenset[Task]] = frozenset({"classes"})
    """What targets of a source it can be asked about."""
    minimizes: ClassVar[bool] = True
    """False when the initial images are what is distilled."""

    @abstractmethod
    def estimate(
        self,
        distilled: Distilled,
        networks: Any,  # noqa: ANN401
        real: RealData,
        draw: LaneDraw,
    ) -> Estimate:
        """The loss and the gradient of one lane, as a pure function of its arguments.

        Args:
            distilled: index -> `Batch`, differentiable in `distilled.parameters`.
            networks: a `NetworkSource`, or `Teachers`, as `needs` says.
            real: the source.
            draw: gives every random number of this lane at this step.
        """

    @property
    def needs(self) -> Needs:
        """What `estimate` has to be given."""
        return Needs()

    def problems(self, context: Context) -> Iterator[str]:
        """What does not fit together, as far as `context` shows, each sentence with its key.

        Asked before anything is read or trained, and again when more is known.
        """
        yield from ()

    def work(self, flops_per_image: float, examples: int, classes: int) -> float | None:
        """Floating-point operations of one lane, one multiplication and addition counting two.

        `flops_per_image` is a forward pass of the network on one image; `examples` counts those of
        the distilled set. None where nobody counted.
        """
        return None

    def blocks(self, classes: int, per_class: int) -> list[Block]:
        """The pieces that can be solved each for itself; [] where all images are solved jointly.

        Every place is in exactly one block. A pure function: it knows of no processes.
        """
        return []

    def step_sizes(self) -> list[float]:
        """Initial values of the step sizes that are learned with the images; [] learns none."""
        return []

    def published_order(self, examples: int) -> list[list[int]]:
        """The examples of every published step, as many steps for any `examples`; [] for none."""
        return []

    def attacks(self) -> tuple[int, int] | None:
        """The class whose images shall be taken for another class, and that one; None for none."""
        return None

    def last_targets(
        self,
        distilled: Distilled,
        networks: Any,  # noqa: ANN401
        draws: Sequence[LaneDraw],
    ) -> Tensor | None:
        """Targets (N, K) that examples have from the end of the loop on; None keeps their own.

        A pure function; `draws` are those of all lanes of the steps that would come next, of as
        many as `last_steps` asks for.
        """
        return None

    @property
    def last_steps(self) -> int:
        """How many steps' draws `last_targets` is given; 0 where it gives none."""
        return 0

    def facts(
        self,
        distilled: Distilled,
        networks: Any,  # noqa: ANN401
    ) -> dict[str, float]:
        """What is worth knowing of a block that is solved: numbers by name."""
        return {}
