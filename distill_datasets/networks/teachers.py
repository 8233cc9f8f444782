"""Trained networks with BatchNorm as they are: what decoupled methods recover images from.

Shape suffixes: K classes, C channels of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch

from distill_datasets.errors import RecipeError
from distill_datasets.networks.sources import skeleton_of
from distill_datasets.networks.squeezed import present, squeezed_architecture
from distill_datasets.networks.watched import batch_norms
from distill_datasets.types import (
    Architecture,
    Networks,
    NetworkSource,
    Shape,
    Squeezed,
    TeacherNetwork,
    Teachers,
)


class TeacherNetworks(Networks):
    """Every member of the squeeze stage with its running statistics, in eval mode and frozen."""

    paper: ClassVar[str] = "SRe2L, arXiv:2306.13092"
    offers: ClassVar[frozenset[str]] = frozenset({"batch_norm", "class_statistics"})
    needs_squeezed: ClassVar[bool] = True
    name: Literal["teachers"] = "teachers"

    def build(
        self, shape: Shape, device: torch.device, squeezed: Squeezed | None = None
    ) -> NetworkSource:
        """The members on the device.

        Raises:
            RecipeError: there are none, or one has no BatchNorm.
            DistillError: one knows too little of the test images to teach.
        """
        found = present(squeezed, self)
        found.check_teachers()
        members = []
        for member, architecture in enumerate(found.architectures):
            check_teacher(architecture, shape)
            statistics = found.class_statistics(member)
            mean, var = (None, None) if statistics is None else statistics
            members.append(
                TeacherNetwork(
                    found.module(member).to(device),
                    None if mean is None else [mean_KC.to(device) for mean_KC in mean],
                    None if var is None else [var_KC.to(device) for var_KC in var],
                )
            )
        return Teachers(members)

    def architecture(self, squeezed: Architecture | None) -> Architecture:
        return squeezed_architecture(squeezed, self)


def check_teacher(architecture: Architecture, shape: Shape) -> None:
    """Refuse a network that keeps no statistics which images could be matched with.

    Raises:
        RecipeError: it has no BatchNorm, or does not fit the shape.
    """
    with torch.device("meta"):
        module = architecture.build(shape)
    if not batch_norms(module):
        raise RecipeError(
            f"squeeze.network: {architecture.name!r} keeps no BatchNorm statistics, which "
            "distill.networks: 'teachers' are for; choose a network with BatchNorm, for example "
            "{name: convnet, norm: batch} or {name: resnet}"
        )


def check_networks(networks: Networks, squeezed: Sequence[Architecture], shape: Shape) -> None:
    """Build the networks of a recipe without their weights, before anything is trained.

    Args:
        networks: the part `distill.networks`.
        squeezed: the network of every member of the squeeze stage; [] where there is none.
        shape: of the source.

    Raises:
        RecipeError: a network does not fit the shape, or not what `networks` makes of it.
    """
    for architecture in {repr(one): one for one in squeezed}.values():
        with torch.device("meta"):
            architecture.build(shape)
        if "batch_norm" in networks.offers:
            check_teacher(architecture, shape)
    if "batch_norm" in networks.offers:
        return
    if networks.needs_squeezed and any(one != squeezed[0] for one in squeezed):
        raise RecipeError(
            f"squeeze.networks: {', '.join(sorted({one.name for one in squeezed}))} with other "
            f"settings each, and distill.networks: {networks.name!r} draws the weights of one "
            "architecture; give squeeze.network and squeeze.members instead, or take "
            "distill.networks: teachers"
        )
    skeleton_of(networks.architecture(squeezed[0] if squeezed else None), shape)
