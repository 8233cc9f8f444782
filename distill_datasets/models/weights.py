"""Weights in files: what a squeeze stage keeps of a network, and what was trained elsewhere.

Pickles, which can run code when they are read, are never opened.

Shape suffixes: P all weights of a network, E epochs with the initialization.
"""

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from distill_datasets.errors import ArtifactError, RecipeError
from distill_datasets.hub.pinned import model_file
from distill_datasets.models.architecture import Architecture
from distill_datasets.models.layers import DrawsFrom
from distill_datasets.types import Shape

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
    misfit = (
        f"squeeze.weights: {title}: {name} has the shape {tuple(got.shape)}, expected "
        f"{tuple(expected.shape)} of {_described(architecture)}"
    )
    if expected.shape[0] == shape.k != got.shape[0] and got.shape[1:] == expected.shape[1:]:
        return (
            f"{misfit}; it tells {got.shape[0]} classes apart and the source has {shape.k}: train "
            "it on the source, or take the source of its classes"
        )
    if got.ndim == 4 and got.shape[1] in (1, 3) and expected.shape[1] == shape.c != got.shape[1]:
        return f"{misfit}; set source.channels to {'gray' if got.shape[1] == 1 else 'rgb'}"
    return f"{misfit}; set squeeze.network and source.resolution to those it was trained with"


def _described(architecture: Architecture) -> str:
    return " ".join(f"{key}: {value}" for key, value in architecture.model_dump().items())


def _listed(names: list[str]) -> str:
    return f" ({', '.join(names[:LISTED])}{', ...' if len(names) > LISTED else ''})" * bool(names)


FILE = "model.safetensors"


HUB_ID = re.compile(r"(?P<model>[\w.-]+/[\w.-]+?)(?:@(?P<revision>[\w./-]+))?")


PICKLES = {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth", ".tar"}


class Checkpoint(NamedTuple):
    """Tensors by name, and the share of test images that the file claims to get right, if any."""

    tensors: dict[str, Tensor]
    accuracy: float | None


def locate(name: str) -> Path:
    """The file that `org/name`, `org/name@revision` or a path stands for, downloaded if need be.

    Raises:
        RecipeError: there is no such file or model, it cannot be fetched, or it is a pickle.
    """
    path = Path(name).expanduser()
    if path.suffix in PICKLES:
        raise RecipeError(
            f"squeeze.weights: {name} is a pickle, which can run code when it is read, and is not "
            'opened; convert it once, where you trust it: python -c "import torch, '
            "safetensors.torch as s; s.save_file(torch.load('FROM', weights_only=True), "
            "'TO.safetensors')\""
        )
    if path.is_file():
        return path
    hub = HUB_ID.fullmatch(name)
    if hub is None or path.suffix == ".safetensors":
        raise RecipeError(
            f"squeeze.weights: no file {name}; expected a safetensors file, or a Hub model as "
            "org/name or org/name@revision"
        )
    return model_file(hub["model"], hub["revision"], FILE)


def read_checkpoint(path: Path, *, shapes_only: bool = False) -> Checkpoint:
    """All tensors of a safetensors file, on the CPU, and the accuracy in its metadata.

    With `shapes_only` nothing but its header is read: tensors lie on the meta device, without
    values, and have the names and shapes of those in the file, not their dtypes.

    The accuracy is the entry `accuracy` of the metadata, a number from 0 to 1, or that of the JSON
    file that a squeeze stage left beside it.

    Raises:
        ArtifactError: the file is damaged or something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            claimed = (file.metadata() or {}).get("accuracy")
            taken = partial(_without_values, file) if shapes_only else file.get_tensor
            tensors = {name: taken(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ArtifactError(
            f"squeeze.weights: {path} is not a readable safetensors file ({error})"
        ) from error
    beside = path.with_suffix(".json")
    if claimed is None and "weights_EP" in tensors and beside.is_file():
        claimed = json.loads(beside.read_text(encoding="utf-8"))["accuracy"]
    try:
        accuracy = None if claimed is None else float(claimed)
    except ValueError as error:
        raise ArtifactError(
            f"squeeze.weights: {path} claims the accuracy {claimed!r}, expected a number from 0 to "
            "1 in its metadata"
        ) from error
    return Checkpoint(tensors, accuracy)


def _without_values(file: Any, name: str) -> Tensor:  # noqa: ANN401
    return torch.empty(file.get_slice(name).get_shape(), device="meta")
