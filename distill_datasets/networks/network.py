"""The axis that says which networks an objective sees, and networks drawn as vectors of weights.

Shape suffixes: B images, C channels, H W pixels, K classes, P all weights in one vector.
"""

from __future__ import annotations

import copy
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Protocol

import torch
from pydantic import Field
from torch import nn

from distill_datasets.config import Part
from distill_datasets.errors import RecipeError, refuse
from distill_datasets.models.architecture import Architecture, ArchitectureField, last_linear
from distill_datasets.models.convnets import ConvNet
from distill_datasets.models.initialization import initialize
from distill_datasets.runtime.draws import Draw, LaneDraw
from distill_datasets.types import Shape

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.real import RealData
    from distill_datasets.distilled import Distilled


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
    """Where an objective draws its networks from."""

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
    """Length of the vector that a lane carries."""

    @abstractmethod
    def advance(self, distilled: Distilled, real: RealData, draw: LaneDraw) -> Tensor:
        """What this lane carries from this step, after the update, into the next."""

    @abstractmethod
    def carry(self, lane: int, values: Tensor) -> None:
        """Take what `advance` returned for a lane, on this process or another."""


class MemberSettings(Protocol):
    """What is known of the members of a squeeze stage before it has run."""

    @property
    def architectures(self) -> tuple[Architecture, ...]:
        """The network of every member."""

    @property
    def epochs(self) -> int:
        """Passes over the real data."""

    @property
    def keep(self) -> Literal["every", "last"]:
        """Whether weights are kept after every epoch, or after none and the last."""


class TrainedMembers(MemberSettings, Protocol):
    """Networks that a squeeze stage has trained on real data."""

    def weights(self, member: int, epoch: int) -> Tensor:
        """Weights (P,) of a member after `epoch` epochs, on the CPU; 0 is its initialization."""

    def module(self, member: int) -> nn.Module:
        """A member after its last epoch, with its buffers: on the CPU, in eval mode, frozen."""

    def class_statistics(self, member: int) -> tuple[list[Tensor], list[Tensor]] | None:
        """Those of `TeacherNetwork`, on the CPU; None where nobody computed them."""

    def teacher_problems(self) -> Iterator[str]:
        """Which members know too little of the test images to teach, for the user."""


class TeacherNetwork(NamedTuple):
    """A trained network with BatchNorm: in eval mode, frozen, on the device.

    The class statistics are per BatchNorm layer, in module order, what its inputs look like over
    the real images of each class: mean and biased variance, (classes, channels) each.
    """

    module: nn.Module
    class_mean: list[Tensor] | None = None
    class_var: list[Tensor] | None = None


class Teachers:
    """Trained networks that are asked as they are, not drawn as vectors of weights.

    Blocks are solved by threads that share these modules. `kept` is a place for what an objective
    makes of them once and asks again and again, one for each thread; `compiling` is held by the one
    thread that compiles.
    """

    def __init__(self, members: list[TeacherNetwork]) -> None:
        self.members = members
        self.kept = threading.local()
        self.compiling = threading.Lock()


class Networks(Part, ABC):
    """The axis that says which networks an objective sees: to draw from, or trained teachers."""

    offers: ClassVar[frozenset[str]] = frozenset()
    needs_squeezed: ClassVar[bool] = False
    has_start: ClassVar[bool] = False

    @abstractmethod
    def build(
        self, shape: Shape, device: torch.device, squeezed: TrainedMembers | None = None
    ) -> NetworkSource | Teachers:
        """The networks on a device; `squeezed` is there when `needs_squeezed`."""

    def problems(self, squeezed: MemberSettings) -> Iterator[str]:
        """Why what a squeeze stage leaves would not do, for the user."""
        yield from ()

    @abstractmethod
    def architecture(self, squeezed: Architecture | None) -> Architecture:
        """The network that is drawn, given that of the squeeze stage."""

    def work(self, flops_per_image: float, examples: int) -> float:
        """What a lane costs between two outer steps on average, counted as in `Objective.work`."""
        return 0.0


def present(squeezed: TrainedMembers | None, networks: Networks) -> TrainedMembers:
    """The members of the squeeze stage, when they are there and will do.

    Raises:
        RecipeError: there are none, or they do not fit.
    """
    if squeezed is None:
        raise RecipeError(
            f"distill.networks: {networks.name!r} needs networks that are trained on the real data "
            "first; add a section squeeze, for example squeeze: {epochs: 5}"
        )
    refuse(networks.problems(squeezed))
    return squeezed


def squeezed_architecture(squeezed: Architecture | None, networks: Networks) -> Architecture:
    """The network of the squeeze stage.

    Raises:
        RecipeError: the recipe has no such stage.
    """
    if squeezed is None:
        raise RecipeError(
            f"distill.networks: {networks.name!r} takes its architecture from squeeze.network; add "
            "a section squeeze, for example squeeze: {epochs: 5}"
        )
    return squeezed


class FlatNetwork:
    """A module called with all of its weights in one vector.

    One vector makes an optimizer step a handful of operations instead of a handful per layer.
    Nothing is dropped (dropout, stochastic depth): what is asked twice is the same network.
    """

    def __init__(
        self, skeleton: nn.Module, weights_P: Tensor, target_P: Tensor | None = None
    ) -> None:
        # functional_call swaps tensors inside the module while it runs; two lanes that run at the
        # same time must not share it.
        self._module = copy.deepcopy(skeleton).eval()
        self._names = [name for name, _ in skeleton.named_parameters()]
        self.shapes = [parameter.shape for parameter in skeleton.parameters()]
        self._sizes = [parameter.numel() for parameter in skeleton.parameters()]
        self.weights_P = weights_P
        self.target_P = target_P

    def __call__(self, weights_P: Tensor, images_BCHW: Tensor) -> Tensor:
        logits_BK: Tensor = torch.func.functional_call(
            self._module, self._named(weights_P), (images_BCHW,)
        )
        return logits_BK

    def layers(self, weights_P: Tensor, images_BCHW: Tensor) -> Layers:
        maps = list[torch.Tensor]()
        hooks = [
            layer.register_forward_hook(lambda _, inputs, output: maps.append(output))
            for layer in self._module.modules()
            if isinstance(layer, nn.ReLU)
        ]
        embedded = list[torch.Tensor]()
        last = last_linear(self._module)
        assert last is not None, "objectives that look at layers refuse a network without one"
        _, classifier = last
        hooks.append(
            classifier.register_forward_pre_hook(lambda _, inputs: embedded.append(inputs[0]))
        )
        try:
            logits_BK = self(weights_P, images_BCHW)
        finally:
            for hook in hooks:
                hook.remove()
        return Layers(maps, embedded[0], logits_BK)

    def _named(self, weights_P: Tensor) -> dict[str, Tensor]:
        # layer after layer, as `nn.utils.parameters_to_vector` puts them: weight, bias, weight, ...
        pieces = torch.split(weights_P, self._sizes)
        return {
            name: piece.view(shape)
            for name, piece, shape in zip(self._names, pieces, self.shapes, strict=True)
        }


def skeleton_of(architecture: Architecture, shape: Shape) -> nn.Module:
    """The module without memory for its weights, for `FlatNetwork`.

    Raises:
        RecipeError: the network keeps more than weights, which no vector of weights tells, or it
            does not fit the shape.
    """
    with torch.device("meta"):
        module = architecture.build(shape)
    if any(True for _ in module.buffers()):
        raise RecipeError(
            f"the network {architecture.name!r} keeps running statistics (BatchNorm) beside its "
            "weights and cannot be drawn as one vector of weights; take it in squeeze.network with "
            "distill.networks: teachers, or in evaluate.network, and here a network without them, "
            "for example {name: convnet, norm: instance}"
        )
    return module


def fresh_weights(skeleton: nn.Module, rng: torch.Generator, device: torch.device) -> Tensor:
    """A fresh initialization of a skeleton, as one vector (P,)."""
    module = copy.deepcopy(skeleton).to_empty(device="cpu")
    initialize(module, rng)
    return nn.utils.parameters_to_vector(module.parameters()).detach().to(device)


class FreshSource(NetworkSource):
    """Draws a new initialization every time."""

    def __init__(self, architecture: Architecture, shape: Shape, device: torch.device) -> None:
        self._skeleton = skeleton_of(architecture, shape)
        self._device = device

    def sample(self, draw: LaneDraw) -> Sampled:
        return FlatNetwork(
            self._skeleton, fresh_weights(self._skeleton, draw("network"), self._device)
        )


class Fresh(Networks):
    """A freshly initialized network for every lane of every outer step."""

    paper: ClassVar[str] = "Dataset Distillation, arXiv:1811.10959, random initialization"
    name: Literal["fresh"] = "fresh"
    network: ArchitectureField = ConvNet()

    def build(
        self, shape: Shape, device: torch.device, squeezed: TrainedMembers | None = None
    ) -> NetworkSource:
        return FreshSource(self.network, shape, device)

    def architecture(self, squeezed: Architecture | None) -> Architecture:
        return self.network


class FixedSource(NetworkSource):
    """Draws one of a few initializations that never change."""

    def __init__(
        self, architecture: Architecture, count: int, shape: Shape, device: torch.device
    ) -> None:
        self._skeleton = skeleton_of(architecture, shape)
        self._count = count
        self._device = device

    def sample(self, draw: LaneDraw) -> Sampled:
        which = int(torch.randint(self._count, (), generator=draw("choice")))
        rng = draw.always("network", which)
        return FlatNetwork(self._skeleton, fresh_weights(self._skeleton, rng, self._device))

    def start(self, student: int, draw: Draw) -> Tensor:
        rng = draw("network", student % self._count)
        return fresh_weights(self._skeleton, rng, self._device)


class Fixed(Networks):
    """A few initializations, the same in every outer step, that students start from as well."""

    paper: ClassVar[str] = "Dataset Distillation, arXiv:1811.10959, fixed initialization"
    has_start: ClassVar[bool] = True
    name: Literal["fixed"] = "fixed"
    network: ArchitectureField = ConvNet()
    count: int = Field(default=1, gt=0, description="initializations; a lane draws one of them")

    def build(
        self, shape: Shape, device: torch.device, squeezed: TrainedMembers | None = None
    ) -> NetworkSource:
        return FixedSource(self.network, self.count, shape, device)

    def architecture(self, squeezed: Architecture | None) -> Architecture:
        return self.network
