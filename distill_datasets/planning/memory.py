"""Memory of the two ways of differentiating through a window, measured before a run, for `plan`.

One tracked step of the recipe's own network on as many random images as it shows is enough: every
step of a window keeps the same.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

import torch

from distill_datasets.models.architecture import Architecture
from distill_datasets.networks.inner_steps import (
    chunks,
    counting_saved,
    graph_fits,
    mean_gradient,
)
from distill_datasets.networks.network import FlatNetwork, Sampled, fresh_weights, skeleton_of
from distill_datasets.objectives.unrolled import Unrolled
from distill_datasets.planning.costs import bytes_in_words
from distill_datasets.runtime.draws import draws
from distill_datasets.types import Batch, Shape

if TYPE_CHECKING:
    pass


class Footprint(NamedTuple):
    """Bytes that a lane keeps by each way, and those of the device in all."""

    graph: int
    recompute: int
    device: int

    @property
    def choice(self) -> str:
        """The faster way that fits with half of the device left for everything else."""
        return "graph" if 2 * self.graph <= self.device else "recompute"


def footprint(
    objective: Unrolled, architecture: Architecture, shape: Shape, examples: int
) -> Footprint:
    """What a window of tracked steps keeps until it is differentiated.

    Args:
        objective: its window, batch, chunk and inner optimizer count.
        architecture: the network that is trained in the inner loop.
        shape: of one image.
        examples: distilled examples in all.

    Raises:
        RecipeError: the network keeps more than weights.
    """
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    skeleton = skeleton_of(architecture, shape)
    network = FlatNetwork(skeleton, fresh_weights(skeleton, draws(0)("network"), device))
    count = min(objective.batch or examples, examples)
    batch = Batch(
        torch.rand(count, shape.c, shape.h, shape.w, device=device).requires_grad_(),
        torch.full((count, shape.k), 1 / shape.k, device=device),
    )
    graph = kept(objective, network, batch)
    chunk = kept(objective, network, next(chunks(batch, objective.chunk)))
    # before each step: the weights, the optimizer's state, and the gradient that was followed
    vectors = 2 + len(objective.optimizer.start(network.weights_P))
    trail = vectors * network.weights_P.nbytes
    return Footprint(objective.window * graph, objective.window * trail + chunk, memory_of(device))


def kept(objective: Unrolled, network: Sampled, batch: Batch) -> int:
    """Bytes that a tracked step on this batch keeps: what autograd saves, storage by storage."""
    weights_P = network.weights_P.detach().requires_grad_()
    state = tuple(slot.requires_grad_() for slot in objective.optimizer.start(network.weights_P))
    with counting_saved() as saved:
        grad_P = mean_gradient(network, weights_P, batch, objective.chunk, tracked=True)
        # its graph lives until all is counted
        end = objective.optimizer.step(weights_P, state, grad_P, 1)
    assert end[0].requires_grad
    return saved.bytes


def memory_of(device: torch.device) -> int:
    """Bytes of an accelerator, or of this machine."""
    if device.type != "cpu":
        return int(torch.accelerator.get_memory_info(device)[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def in_words(objective: Unrolled, memory: Footprint) -> list[tuple[str, str]]:
    """Lines of a plan: what each way keeps, and which one to take here."""
    advice = f"{objective.differentiate}, as the recipe says"
    if objective.differentiate == "auto":
        device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        way = "graph" if graph_fits(memory.graph, 1, device) else "recompute"
        advice = f"{way}, which auto takes here"
    elif memory.choice != objective.differentiate:
        advice = f"set distill.objective.differentiate: {memory.choice}"
        advice += {
            "graph": ", which is faster and fits",
            "recompute": "; the graph takes more than half of the memory",
        }[memory.choice]
    return [
        ("a lane's window, graph", f"{bytes_in_words(memory.graph)} of memory"),
        ("a lane's window, recompute", f"{bytes_in_words(memory.recompute)} of memory"),
        ("memory here", bytes_in_words(memory.device)),
        ("differentiate by", advice),
    ]
