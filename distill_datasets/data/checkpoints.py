"""Weights trained elsewhere: a safetensors file on this machine, or one of a Hub model.

Pickles, which can run code when they are read, are never opened.
"""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from distill_datasets.errors import ArtifactError, RecipeError

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
    found = HUB_ID.fullmatch(name)
    if found is None or path.suffix == ".safetensors":
        raise RecipeError(
            f"squeeze.weights: no file {name}; expected a safetensors file, or a Hub model as "
            "org/name or org/name@revision"
        )
    return _download(found["model"], found["revision"])


def _download(model: str, revision: str | None) -> Path:
    from huggingface_hub import errors, hf_hub_download

    at = "" if revision is None else f" at {revision!r}"
    try:
        return Path(hf_hub_download(model, FILE, revision=revision))
    except errors.LocalEntryNotFoundError as error:
        why = f"cannot be fetched and is not in the cache ({error}); check the network"
    except errors.GatedRepoError:
        why = "is gated; accept its conditions on its page and log in with `hf auth login`"
    except errors.RepositoryNotFoundError:
        why = "is not on the Hub, or is private; check the name, or log in with `hf auth login`"
    except errors.RevisionNotFoundError:
        why = "has no such branch, tag or commit; check what follows @"
    except errors.HFValidationError:
        why = "is no valid Hub id; expected org/name or org/name@revision"
    except errors.EntryNotFoundError:
        why = f"has no {FILE}, and nothing else is read; choose another model or revision"
    except (errors.HfHubHTTPError, OSError) as error:
        why = f"cannot be fetched ({error}); try again later"
    raise RecipeError(f"squeeze.weights: the model {model!r}{at} {why}")


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
