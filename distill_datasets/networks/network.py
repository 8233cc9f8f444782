"""The axis that says which networks an objective sees, and networks drawn as vectors of weights.

Shape suffixes: B images, C channels, H W pixels, K classes, P all weights in one vector.
"""

from __future__ import annotations

import copy
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from pydantic import Field
from torch import nn

from distill_datasets.config import Part
from distill_datasets.errors import RecipeError, refuse
from distill_datasets.models.architecture import Architecture, ArchitectureField, last_linear
from distill_datasets.models.convnets import ConvNet
from distill_datasets.models.initialization import initialize
from distill_datasets.runtime.draws import Draw, LaneDraw
from distill_datasets.runtime.memory import to_device
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

    def embedding(self, weights_P: Tensor, images_BCHW: Tensor) -> Tensor:
        """The classifier's input (B, D) alone."""

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
        """The network that is drawn, given that of the squeeze stage; the first of several."""

    def others(self) -> Sequence[Architecture]:
        """Networks that are drawn beside the first, each as often."""
        return ()

    def architectures(self, squeezed: Architecture | None) -> Sequence[Architecture]:
        """All networks that are drawn."""
        return [self.architecture(squeezed), *self.others()]

    def asked(self) -> list[Architecture]:
        """The networks that are asked at every step, where they come from no squeeze stage."""
        return []

    def absent(self) -> Iterator[str]:
        """Why the networks cannot be had on this machine, for the user."""
        yield from ()

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
        # a call puts tensors into the module; two lanes that run at the same time must not share it
        self._module = copy.deepcopy(skeleton).eval()
        self.shapes = [parameter.shape for parameter in skeleton.parameters()]
        self._sizes = [shape.numel() for shape in self.shapes]
        self._places = _places(self._module)
        self._body = _body(self._module)
        self.weights_P = weights_P
        self.target_P = target_P

    def __call__(self, weights_P: Tensor, images_BCHW: Tensor) -> Tensor:
        return self._run(self._module, weights_P, images_BCHW)

    def embedding(self, weights_P: Tensor, images_BCHW: Tensor) -> Tensor:
        """The classifier's input (B, D) alone."""
        if self._body is None:
            return self.layers(weights_P, images_BCHW).embedding_BD
        return self._run(self._body, weights_P, images_BCHW)

    def _run(self, module: nn.Module, weights_P: Tensor, images_BCHW: Tensor) -> Tensor:
        """Call the module, or a part of it, with these weights.

        The same as `torch.func.functional_call`, which looks up every weight by its name and puts
        the old ones back: two thirds of the time of a network on 8 x 8 images.
        """
        # layer after layer, as `nn.utils.parameters_to_vector` puts them: weight, bias, weight, ...
        pieces = torch.split(weights_P, self._sizes)
        shaped = [piece.view(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]
        try:
            for table, name, which in self._places:
                table[name] = shaped[which]
            found: Tensor = module(images_BCHW)
        finally:
            for table, name, _ in self._places:  # a graph lives no longer than who asked for it
                table[name] = None
        return found

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


def _places(module: nn.Module) -> list[tuple[dict[str, Any], str, int]]:
    """Where each parameter stands in a module: a layer's table, its name there, and its number.

    Numbers are those of `parameters()`; a parameter that layers share has several places.
    """
    numbers = {id(parameter): number for number, parameter in enumerate(module.parameters())}
    return [
        (layer._parameters, name, numbers[id(parameter)])
        for layer in module.modules()
        for name, parameter in layer._parameters.items()
        if parameter is not None
    ]


def _body(module: nn.Module) -> nn.Module | None:
    """The layers before the classifier of a plain chain that ends with it; else None."""
    if isinstance(module, nn.Sequential) and len(module) > 1 and type(module[-1]) is nn.Linear:
        return module[:-1]
    return None


def skeleton_of(architecture: Architecture, shape: Shape) -> nn.Module:
    """The module without memory for its weights, for `FlatNetwork`.

    Raises:
        RecipeError: the network keeps more than weights, which no vector of weights tells, or it
            does not fit the shape.
    """
    module = architecture.on_meta(shape)
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
    module = copy.deepcopy(skeleton)
    # not by `to_empty`, which imports an algebra system to copy a shape
    own = [nn.Parameter(torch.empty(each.shape, dtype=each.dtype)) for each in module.parameters()]
    for table, name, which in _places(module):
        table[name] = own[which]
    initialize(module, rng)
    return to_device(nn.utils.parameters_to_vector(module.parameters()).detach(), device)


class FreshSource(NetworkSource):
    """Draws a new initialization every time, of one architecture or of one among several."""

    def __init__(
        self,
        architecture: Architecture,
        shape: Shape,
        device: torch.device,
        others: Sequence[Architecture] = (),
    ) -> None:
        self._skeletons = [skeleton_of(one, shape) for one in (architecture, *others)]
        self._device = device

    def sample(self, draw: LaneDraw) -> Sampled:
        kinds, which = len(self._skeletons), 0
        if kinds > 1:
            which = int(torch.randint(kinds, (), generator=draw("architecture")))
        skeleton = self._skeletons[which]
        return FlatNetwork(skeleton, fresh_weights(skeleton, draw("network"), self._device))


class Fresh(Networks):
    """A freshly initialized network for every lane of every outer step."""

    paper: ClassVar[str] = "Dataset Distillation, arXiv:1811.10959, random initialization"
    name: Literal["fresh"] = "fresh"
    network: ArchitectureField = ConvNet()
    networks: list[ArchitectureField] | None = Field(
        default=None,
        min_length=1,
        description="architectures in place of network; a lane of a step draws one of them",
    )

    def build(
        self, shape: Shape, device: torch.device, squeezed: TrainedMembers | None = None
    ) -> NetworkSource:
        return FreshSource(self.architecture(None), shape, device, self.others())

    def architecture(self, squeezed: Architecture | None) -> Architecture:
        return self.networks[0] if self.networks else self.network

    def others(self) -> Sequence[Architecture]:
        return self.networks[1:] if self.networks else ()


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
    count: int = Field(
        default=1, gt=0, le=10_000, description="initializations; a lane draws one of them"
    )

    def build(
        self, shape: Shape, device: torch.device, squeezed: TrainedMembers | None = None
    ) -> NetworkSource:
        return FixedSource(self.network, self.count, shape, device)

    def architecture(self, squeezed: Architecture | None) -> Architecture:
        return self.network
