"""The nouns of dataset distillation and the axes that a method is a point on.

A method is `objective x canvas x labels x networks`. Each axis is an abstract `Part`: a frozen
pydantic model that is the section of the recipe and the callable at once. Parts are stateless.

Shape suffixes: B a batch, N all training examples, K classes, C channels, H W pixels, P all weights
of a network in one vector, G cells of the label grid.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

if TYPE_CHECKING:
    from distill_datasets.data.source import RealData


class Section(BaseModel):
    """A piece of a recipe: frozen, no unknown keys, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, ser_json_inf_nan="strings")


class Part(Section):
    """A section that a name selects. Subclasses declare `name: Literal["..."] = "..."`."""

    name: str
    paper: ClassVar[str]


class Batch(NamedTuple):
    """Images in the student's input space and one target distribution each."""

    images_BCHW: Tensor
    targets_BK: Tensor


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


class Estimate(NamedTuple):
    """What an objective returns for one lane: a gradient per parameter of the distilled set."""

    loss: float
    grads: dict[str, Tensor]
    metrics: dict[str, float]


class CanvasModule(nn.Module, ABC):
    """Trainable tensors decoded into displayable images.

    `mix_NG` and `cells_G` say what each training example shows: the share of its area that lies on
    each cell, and the class that owns each cell. Every class owns at least one cell.
    """

    examples_are_originals: ClassVar[bool]
    count: int
    mix_NG: Tensor
    cells_G: Tensor

    @abstractmethod
    def forward(self, index_B: Tensor) -> Tensor:
        """Training examples `index_B` as images in [0, 1], shape (B, C, H, W), differentiable."""

    @abstractmethod
    def originals(self) -> list[Tensor]:
        """The trained images themselves, each (C, H, W) in [0, 1]: where the budget is counted."""

    @abstractmethod
    def geometry(self) -> dict[str, object]:
        """How examples are cut from the originals, as JSON, for the published `recipe` config."""


class LabelModule(nn.Module, ABC):
    """Targets of the training examples."""

    @abstractmethod
    def forward(self, index_B: Tensor) -> Tensor:
        """Targets of the examples `index_B`, (B, K), each row non-negative with sum 1."""

    @abstractmethod
    def project(self) -> None:
        """Move the trained values back into their domain; called after every outer step."""

    @abstractmethod
    def table_GK(self) -> Tensor:
        """The label of every cell, (G, K)."""


class Distilled(nn.Module):
    """Canvas and labels together: the index of an example becomes a differentiable `Batch`.

    `mean_C` and `std_C` take displayable pixels into the student's input space.
    """

    mean_C: Tensor
    std_C: Tensor

    def __init__(
        self, canvas: CanvasModule, labels: LabelModule, mean_C: Tensor, std_C: Tensor
    ) -> None:
        super().__init__()
        self.canvas = canvas
        self.labels = labels
        self.register_buffer("mean_C", mean_C, persistent=False)
        self.register_buffer("std_C", std_C, persistent=False)

    @property
    def count(self) -> int:
        """Number of training examples."""
        return self.canvas.count

    def forward(self, index_B: Tensor) -> Batch:
        """The examples `index_B` as a student sees them."""
        pixels_BCHW = self.canvas(index_B)
        images_BCHW = (pixels_BCHW - self.mean_C[:, None, None]) / self.std_C[:, None, None]
        return Batch(images_BCHW, self.labels(index_B))


class Sampled(Protocol):
    """A network whose weights are one vector: a pure function of weights and images."""

    weights_P: Tensor

    def __call__(self, weights_P: Tensor, images_BCHW: Tensor) -> Tensor: ...


class NetworkSource(Protocol):
    """Where an objective gets its networks from."""

    def sample(self, rng: torch.Generator) -> Sampled:
        """One network, decided by `rng` alone."""
        ...


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

    @abstractmethod
    def build(self, shape: Shape, device: torch.device) -> NetworkSource:
        """The source of networks for this shape."""

    @abstractmethod
    def architecture(self) -> Architecture:
        """The network that is drawn, for counting its work."""


class Canvas(Part, ABC):
    """The axis that says what is trained and how it becomes images."""

    @abstractmethod
    def build(self, real: "RealData", rng: torch.Generator) -> CanvasModule:
        """Trainable tensors at their initial values.

        Raises:
            RecipeError: the budget or the sizes cannot hold the classes or one example.
        """

    @abstractmethod
    def size(self, shape: Shape) -> "CanvasSize":
        """What `build` will make, without making it; raises the same errors."""


class CanvasSize(NamedTuple):
    """A budget before anything is built: trained images as (height, width), and examples."""

    originals: Sequence[tuple[int, int]]
    examples: int


class Labels(Part, ABC):
    """The axis that says which targets the training examples have."""

    @abstractmethod
    def build(self, canvas: CanvasModule, classes: int) -> LabelModule:
        """Targets for the examples of `canvas`."""


class Objective(Part, ABC):
    """The axis that says what is minimized. `needs` must be among what the networks offer."""

    needs: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def estimate(
        self, distilled: Distilled, networks: NetworkSource, real: "RealData", draw: Draw
    ) -> Estimate:
        """The loss and the gradient of one lane, as a pure function of its arguments."""

    @abstractmethod
    def work(self, flops_per_image: float, examples: int) -> float:
        """Floating-point operations of one lane, one multiplication and addition counting two.

        Args:
            flops_per_image: forward pass of the network on one image.
            examples: number of training examples of the distilled set.
        """

    @abstractmethod
    def real_rows(self) -> int:
        """How many different real images one lane asks for at once."""
