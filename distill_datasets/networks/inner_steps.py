"""The gradient that a step of the inner loop follows, and how it is differentiated in turn.

A batch is passed in chunks: on a CPU a chunk stays in the cache, and no block is large enough for
the allocator to give it back and fault it in again. The gradient is a sum over chunks, and so is
every derivative of it.

Shape suffixes: B examples of a step, K classes, P all weights of a network.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from distill_datasets import targets
from distill_datasets.networks.network import Sampled
from distill_datasets.runtime.memory import GIB
from distill_datasets.runtime.precision import Precision, computing_in
from distill_datasets.runtime.vector_jacobian import vector_jacobian
from distill_datasets.types import Batch, Task

if TYPE_CHECKING:
    from torch import Tensor

Differentiate = Literal["auto", "graph", "recompute"]
GRAPH_BYTES = 2 * GIB
"""What the graph of all steps of a lane may keep on a CPU where `auto` decides."""
GRAPH_SHARE = 0.25
"""The same on an accelerator, as a share of its memory."""


def chunks(batch: Batch, size: int | None) -> Iterator[Batch]:
    """The batch in pieces; None takes 32 examples at once on a CPU and 512 elsewhere."""
    on_cpu = batch.images_BCHW.device.type == "cpu"
    size = size or (32 if on_cpu else 512)
    for pieces in zip(*(torch.split(tensor, size) for tensor in batch), strict=True):
        yield Batch(*pieces)


def _part(
    network: Sampled,
    weights_P: Tensor,
    chunk: Batch,
    examples: int,
    precision: Precision,
    tracked: bool,
    task: Task,
) -> Tensor:
    """What a chunk adds to the gradient of the mean loss of so many examples."""
    with computing_in(precision, weights_P.device):
        logits_BK = network(weights_P, chunk.images_BCHW)
    loss = targets.loss(task, logits_BK.to(chunk.targets_BK.dtype), chunk.targets_BK)
    share = loss * (len(chunk.images_BCHW) / examples)
    (part_P,) = torch.autograd.grad(share, weights_P, create_graph=tracked)
    return part_P


def mean_gradient(
    network: Sampled,
    weights_P: Tensor,
    batch: Batch,
    chunk: int | None,
    precision: Precision = "float32",
    *,
    tracked: bool,
    task: Task = "classes",
) -> Tensor:
    """The gradient (P,) of the mean loss of a batch; `tracked` ones can be differentiated."""
    parts = [
        _part(network, weights_P, piece, len(batch.images_BCHW), precision, tracked, task)
        for piece in chunks(batch, chunk)
    ]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(dim=0)


class PulledBack(NamedTuple):
    """Derivatives of the number g.a, with g the gradient of a batch's mean loss and a a vector.

    `along` is the number itself, `weights_P` its Hessian-vector product with the weights and None
    where nobody asked, `batch` its derivatives in images and targets.
    """

    along: Tensor
    weights_P: Tensor | None
    batch: Batch


def pulled_back(
    network: Sampled,
    weights_P: Tensor,
    batch: Batch,
    vector_P: Tensor,
    chunk: int | None,
    precision: Precision = "float32",
    *,
    curved: bool = True,
    task: Task = "classes",
) -> PulledBack:
    """Differentiate the gradient of a batch's mean loss along a vector, chunk by chunk.

    Args:
        network: a pure function of weights and images.
        weights_P: a leaf that requires a gradient.
        batch: any tensors; they are cut from their past.
        vector_P: what the gradient is multiplied with.
        chunk: examples at once.
        precision: of the network.
        curved: whether the derivative in the weights, a Hessian-vector product, is asked for.
        task: what the targets are.
    """
    leaves = Batch(*(tensor.detach().requires_grad_() for tensor in batch))
    along, curved_P = weights_P.new_zeros(()), torch.zeros_like(weights_P) if curved else None
    pieces = list[tuple[torch.Tensor, ...]]()
    for piece in chunks(leaves, chunk):
        part_P = _part(network, weights_P, piece, len(batch.images_BCHW), precision, True, task)
        inputs = [*piece, *([weights_P] if curved else [])]
        of_images, of_targets, *of_weights = vector_jacobian([part_P], inputs, [vector_P])
        pieces.append((of_images, of_targets))
        along = along + torch.dot(part_P.detach(), vector_P)
        if curved_P is not None:
            curved_P = curved_P + of_weights[0]
    images_BCHW, targets_BK = (torch.cat(column) for column in zip(*pieces, strict=True))
    return PulledBack(along, curved_P, Batch(images_BCHW, targets_BK))


@dataclass
class Saved:
    """What autograd saves, storage by storage: several operations may save one tensor."""

    storages: dict[int, int] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Of all of them."""
        return sum(self.storages.values())


@contextmanager
def counting_saved() -> Iterator[Saved]:
    """Count what the operations of this thread save for their derivatives."""
    saved = Saved()

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved.storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield saved


def graph_fits(step_bytes: int, steps: int, device: torch.device) -> bool:
    """Whether `auto` keeps the graph of so many steps that save so much each.

    A function of the recipe and the kind of the machine alone, as the two ways differ in last bits.
    """
    room: float = GRAPH_BYTES
    if device.type != "cpu":
        room = GRAPH_SHARE * torch.accelerator.get_memory_info(device)[1]
    return step_bytes * steps <= room
