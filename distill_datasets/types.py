"""The nouns of dataset distillation and the axes that a method is a point on.

A method is `objective x canvas x labels x networks`. Each axis is an abstract `Part`: a frozen
pydantic model that is the section of the recipe and the callable at once. Parts are stateless. What
is distilled, as tensors, is in `distilled.py`, named here as well, and `distilled_modules.py`.

Shape suffixes: B a batch, N all training examples, K classes, C channels, H W pixels, P all weights
of a network in one vector.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict

from distill_datasets.distilled import Batch as Batch
from distill_datasets.distilled import Block as Block
from distill_datasets.distilled import CanvasSize as CanvasSize
from distill_datasets.distilled import Estimate as Estimate
from distill_datasets.distilled import Shown as Shown

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from distill_datasets.data.source import RealData
    from distill_datasets.distilled_modules import CanvasModule, Distilled, LabelModule


class Section(BaseModel):
    """A piece of a recipe: frozen, no unknown keys, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, ser_json_inf_nan="strings")


class Part(Section):
    """A section that a name selects. Subclasses declare `name: Literal["..."] = "..."`."""

    name: str
    paper: ClassVar[str]

    def papers(self) -> list[str]:
        """The papers that these very settings are from."""
        return self.paper.split("; ")


@dataclass(frozen=True)
class Shape:
    """One real example and the classes: channels, height and width in pixels, number of classes."""

    c: int
    h: int
    w: int
    k: int


class Draw(Protocol):
    """Randomness as a pure function: the same words give the same stream, on any process."""

    def __call__(self, *what: str | int) -> torch.Generator: ...


class LaneDraw(Draw, Protocol):
    """The randomness of one lane of one outer step, and which lane and step that is."""

    @property
    def step(self) -> int:
        """Outer step, from 0."""

    @property
    def progress(self) -> float:
        """The share of the outer steps that are done, in [0, 1)."""

    @property
    def lane(self) -> int:
        """Lane, from 0."""

    def always(self, *what: str | int) -> torch.Generator:
        """A stream that is the same in every lane of every step."""


class Layers(NamedTuple):
    """What a network makes of images on the way: every map after its ReLU, then the ends."""

    maps: list[Tensor]
    embedding_BD: Tensor
    logits_BK: Tensor


class Sampled(Protocol):
    """A network whose weights are one vector: a pure function of weights and images.

    `shapes` are the shapes of its layers' weights, in the order of the vector. `target_P` is where
    an expert went from `weights_P`; None where networks do not come from trajectories.
    """

    weights_P: Tensor
    shapes: list[torch.Size]
    target_P: Tensor | None

    def __call__(self, weights_P: Tensor, images_BCHW: Tensor) -> Tensor:
        """Logits (B, K)."""

    def layers(self, weights_P: Tensor, images_BCHW: Tensor) -> Layers:
        """Maps, embedding (the classifier's input) and logits of the images."""


class NetworkSource(ABC):
    """Where an objective gets its networks from."""

    @abstractmethod
    def sample(self, draw: LaneDraw) -> Sampled:
        """The network of this lane at this step."""

    def start(self, student: int, draw: Draw) -> Tensor | None:
        """Weights (P,) that a student has to start from; None where any fresh one will do."""
        return None


class CarryingSource(NetworkSource):
    """A source that carries a vector per lane from an outer step to the next.

    Such as a network that is trained on the way: the loop asks `advance` for the new vector after
    every update, gives it to every process with `carry`, and saves it.
    """

    carried_values: int
    """Length of the vector that a lane carries; 0 where these settings carry nothing."""

    @abstractmethod
    def advance(self, distilled: Distilled, real: RealData, draw: LaneDraw) -> Tensor:
        """What this lane carries from this step, after the update, into the next."""

    @abstractmethod
    def carry(self, lane: int, values: Tensor) -> None:
        """Take what `advance` returned for a lane, on this process or another."""


@dataclass(frozen=True)
class Squeezed(ABC):
    """Networks trained on real data, with weights after every epoch or the first and the last."""

    architecture: Architecture
    members: int
    epochs: int
    keep: Literal["every", "last"]

    @abstractmethod
    def weights(self, member: int, epoch: int) -> Tensor:
        """Weights (P,) of a member after `epoch` epochs; 0 is its initialization."""

    @property
    def architectures(self) -> tuple[Architecture, ...]:
        """The network of every member."""
        return (self.architecture,) * self.members

    @abstractmethod
    def module(self, member: int) -> nn.Module:
        """A member after its last epoch, with its buffers: on the CPU, in eval mode, frozen."""

    def class_statistics(self, member: int) -> tuple[list[Tensor], list[Tensor]] | None:
        """Those of `TeacherNetwork`, on the CPU; None where nobody computed them."""
        return None

    def check_teachers(self) -> None:  # noqa: B027
        """Raise a `DistillError` where a member knows too little of the test images to teach."""


class TeacherNetwork(NamedTuple):
    """A trained network with BatchNorm: in eval mode, frozen, on the device.

    The class statistics are per BatchNorm layer, in module order, what its inputs look like over
    the real images of each class: mean and biased variance, (classes, channels) each.
    """

    module: nn.Module
    class_mean: list[Tensor] | None = None
    class_var: list[Tensor] | None = None


class Teachers(NetworkSource):
    """Trained networks that are asked as they are, not drawn as vectors of weights.

    `kept` is a place for what an objective makes of them once and asks again and again, one for
    each thread; `compiling` is held by the one thread that compiles.
    """

    def __init__(self, members: list[TeacherNetwork]) -> None:
        self.members = members
        self.kept = threading.local()
        self.compiling = threading.Lock()

    def sample(self, draw: LaneDraw) -> Sampled:
        raise AssertionError("teachers keep buffers and are not drawn; take them from `members`")


class Teacher(Protocol):
    """The trained members of a squeeze stage, asked for their opinion."""

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        """Logits (M, B, K) of every member for images in the student's input space."""


class Architecture(Part, ABC):
    """A network as a recipe describes it."""

    @abstractmethod
    def build(self, shape: Shape) -> nn.Module:
        """The module for this shape; weights are unset until `initialize` draws them.

        Raises:
            RecipeError: the network does not fit the shape.
        """


class Networks(Part, ABC):
    """The axis that says which networks an objective sees."""

    offers: ClassVar[frozenset[str]] = frozenset()
    needs_squeezed: ClassVar[bool] = False
    has_start: ClassVar[bool] = False

    @abstractmethod
    def build(
        self, shape: Shape, device: torch.device, squeezed: Squeezed | None = None
    ) -> NetworkSource:
        """The source of networks on a device; `squeezed` is there when `needs_squeezed`."""

    def refusal(self, members: int, epochs: int, keep: Literal["every", "last"]) -> str | None:
        """Why what a squeeze stage leaves would not do, for the user; None when it will."""
        return None

    @abstractmethod
    def architecture(self, squeezed: Architecture | None) -> Architecture:
        """The network that is drawn, given that of the squeeze stage."""

    def work(self, flops_per_image: float, examples: int) -> float:
        """What a lane costs between two outer steps on average, counted as in `Objective.work`."""
        return 0.0


class Selection(Part, ABC):
    """Images to start from, or to compare with: drawn, chosen or made from the real ones."""

    needs_squeezed: ClassVar[bool] = False
    effort: ClassVar[Literal["image", "class", "file"]] = "file"
    """What images made class by class cost: `image`, each is drawn for itself; `class`, those of a
    class are drawn together; `file`, they are worked out, so that it pays to keep them."""
    outside: ClassVar[bool] = False
    """True when they depend on more than the recipe, the source and the squeezed networks."""

    @abstractmethod
    def images(
        self, real: RealData, per_class: int, rng: torch.Generator, teacher: Teacher | None = None
    ) -> Tensor:
        """Displayable images (K * per_class, C, H, W) in [0, 1] on the CPU, classes in order.

        A class with fewer than `per_class` images repeats them; `rng` decides all that is drawn.
        `teacher` are the networks of the squeeze stage; there when `needs_squeezed`.
        """

    def of_class(
        self,
        real: RealData,
        label: int,
        per_class: int,
        rng: torch.Generator,
        teacher: Teacher | None = None,
    ) -> Tensor:
        """The same for one class alone: (per_class, C, H, W); `rng` is for this class only."""
        start = label * per_class
        return self.images(real, per_class, rng, teacher)[start : start + per_class]

    def check(self, shape: Shape) -> None:
        """Raise a `DistillError` where no `images` could be made, before the source is read."""


class Canvas(Part, ABC):
    """The axis that says what is trained and how it becomes images."""

    @property
    def needs_squeezed(self) -> bool:
        """True when its initial images are made with the networks of the squeeze stage."""
        return False

    @abstractmethod
    def build(
        self, real: RealData, rng: torch.Generator, teacher: Teacher | None = None
    ) -> CanvasModule:
        """Trainable tensors at their initial values.

        Raises:
            RecipeError: the budget or the sizes cannot hold the classes or one example.
        """

    @abstractmethod
    def size(self, shape: Shape) -> CanvasSize:
        """What `build` will make, without making it; raises the same errors."""

    def shown(self, shape: Shape, real: RealData | None = None) -> Shown | None:
        """What the examples of `build` show of the classes, where it is not one class each of all.

        Whose cells they are may depend on the images, which only `real` tells.
        """
        return None


class Labels(Part, ABC):
    """The axis that says which targets the training examples have."""

    @property
    def needs_squeezed(self) -> bool:
        """True when labels are made with the networks of the squeeze stage."""
        return False

    @abstractmethod
    def build(
        self, canvas: CanvasModule, classes: int, logits_MNK: Tensor | None = None
    ) -> LabelModule:
        """Targets for the examples of `canvas`.

        `logits_MNK` is what every network of the squeeze stage says of every example; there when
        `needs_squeezed`.
        """

    def check(self, canvas: Canvas, shape: Shape, real: RealData | None = None) -> None:
        """Raise `RecipeError` where `build` would, as far as it shows, with or without `real`."""


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
