"""Networks and what a file keeps of them: all weights in one vector, and buffers by name.

Shape suffixes: P all weights of a network, E epochs with the initialization.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from distill_datasets.errors import RecipeError
from distill_datasets.networks.drawing import DrawsFrom
from distill_datasets.types import Architecture, Shape

WEIGHTS = "weights_EP"
BUFFERS = "buffers/"
LISTED = 3
COUNTER = ".num_batches_tracked"
"""Some programs leave it out; nothing here reads it."""


def built(architecture: Architecture, shape: Shape) -> nn.Module:
    """The module on the CPU; torch's global random state is left alone."""
    with DrawsFrom(torch.Generator()):
        return architecture.build(shape)


def buffers_of(module: nn.Module) -> dict[str, Tensor]:
    """What the module keeps beside its weights, such as running statistics, by name."""
    weights = dict(module.named_parameters())
    return {name: kept for name, kept in module.state_dict().items() if name not in weights}


@torch.no_grad()
def fill(module: nn.Module, weights_P: Tensor, buffers: Mapping[str, Tensor]) -> nn.Module:
    """Put stored weights and buffers into a module."""
    nn.utils.vector_to_parameters(weights_P, module.parameters())
    for name, kept in buffers_of(module).items():
        kept.copy_(buffers[name])
    return module


def frozen(module: nn.Module) -> nn.Module:
    """The module in eval mode, none of its weights trainable."""
    return module.eval().requires_grad_(False)


def loaded(
    architecture: Architecture, shape: Shape, tensors: Mapping[str, Tensor], title: str
) -> nn.Module:
    """A network with the weights of a file: a state dict, or what a squeeze stage wrote.

    Args:
        architecture: of the network.
        shape: of an image, and the number of classes.
        tensors: of the file, by name.
        title: what to call the file in messages.

    Raises:
        RecipeError: the file is of another network, or of other classes.
    """
    module = built(architecture, shape)
    if WEIGHTS in tensors:
        tensors = _named(module, tensors, title)
    expected = module.state_dict()
    missing = [name for name in expected if name not in tensors and not name.endswith(COUNTER)]
    foreign = [name for name in tensors if name not in expected]
    if missing or foreign:
        raise RecipeError(
            f"squeeze.weights: {title} is not a network {_described(architecture)}: "
            f"{len(missing)} of its {len(expected)} tensors are missing"
            f"{_listed(missing)} and {len(foreign)} are unknown{_listed(foreign)}; set "
            "squeeze.network to the network that it is of"
        )
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise RecipeError(_misfit(title, architecture, shape, name, tensor, expected[name]))
    with torch.no_grad():
        for name, tensor in tensors.items():
            expected[name].copy_(tensor)  # into the module, as float32
    return module


def _named(module: nn.Module, tensors: Mapping[str, Tensor], title: str) -> dict[str, Tensor]:
    """The last weights that a squeeze stage kept, by the names of the module."""
    weights_P = tensors[WEIGHTS][-1]
    sizes = [parameter.numel() for parameter in module.parameters()]
    if len(weights_P) != sum(sizes):
        raise RecipeError(
            f"squeeze.weights: {title} has {len(weights_P)} weights and the network of squeeze has "
            f"{sum(sizes)}; set squeeze.network and the source to those it was trained with"
        )
    pieces = torch.split(weights_P, sizes)
    named = {
        name: piece.view_as(parameter)
        for (name, parameter), piece in zip(module.named_parameters(), pieces, strict=True)
    }
    buffers = {
        name.removeprefix(BUFFERS): kept
        for name, kept in tensors.items()
        if name.startswith(BUFFERS)
    }
    return named | buffers


def _misfit(
    title: str,
    architecture: Architecture,
    shape: Shape,
    name: str,
    got: Tensor,
    expected: Tensor,
) -> str:
    """What to say of a tensor of another shape: classes and channels show in the first number."""
    said = (
        f"squeeze.weights: {title}: {name} has the shape {tuple(got.shape)}, expected "
        f"{tuple(expected.shape)} of {_described(architecture)}"
    )
    if expected.shape[0] == shape.k != got.shape[0] and got.shape[1:] == expected.shape[1:]:
        return (
            f"{said}; it tells {got.shape[0]} classes apart and the source has {shape.k}: train it "
            "on the source, or take the source of its classes"
        )
    if got.ndim == 4 and got.shape[1] in (1, 3) and expected.shape[1] == shape.c != got.shape[1]:
        return f"{said}; set source.channels to {'gray' if got.shape[1] == 1 else 'rgb'}"
    return f"{said}; set squeeze.network and source.resolution to those it was trained with"


def _described(architecture: Architecture) -> str:
    return " ".join(f"{key}: {value}" for key, value in architecture.model_dump().items())


def _listed(names: list[str]) -> str:
    return f" ({', '.join(names[:LISTED])}{', ...' if len(names) > LISTED else ''})" * bool(names)
