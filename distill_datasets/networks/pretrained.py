"""Frozen backbones that were trained elsewhere, asked for features and never changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from pydantic import Field

from distill_datasets.models.architecture import Architecture
from distill_datasets.models.backbones import BackboneField, LinearProbe
from distill_datasets.networks.network import (
    Networks,
    TeacherNetwork,
    Teachers,
    TrainedMembers,
)
from distill_datasets.types import Shape


class Backbones(Networks):
    """Frozen backbones that were trained elsewhere; several make a set that suits each of them."""

    paper: ClassVar[str] = "Linear Gradient Matching, NeurIPS 2025, arXiv:2511.16674"
    offers: ClassVar[frozenset[str]] = frozenset({"features"})
    name: Literal["backbones"] = "backbones"
    backbones: list[BackboneField] = Field(
        min_length=1, description="each as library/model, or with settings of its own"
    )

    def cited(self) -> list[str]:
        return [*self.paper.split("; "), *(p for each in self.backbones for p in each.papers())]

    def build(
        self, shape: Shape, device: torch.device, squeezed: TrainedMembers | None = None
    ) -> Teachers:
        """The backbones on a device, in the order of the recipe."""
        return Teachers([TeacherNetwork(each.load(device)) for each in self.backbones])

    def architecture(self, squeezed: Architecture | None) -> Architecture:
        return LinearProbe(backbone=self.backbones[0])

    def asked(self) -> list[Architecture]:
        return [LinearProbe(backbone=each) for each in self.backbones]

    def absent(self) -> Iterator[str]:
        for each in self.backbones:
            missing = each.absent()
            if missing is not None:
                yield missing
