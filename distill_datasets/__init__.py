"""Distill an image dataset into a few trained images and soft labels that `load_dataset` opens."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill_datasets.api import Distillation, distill, evaluate, load, replay, verify
    from distill_datasets.canvases.canvas import Canvas, CanvasSize, CanvasStart, Cells
    from distill_datasets.data.real import RealData
    from distill_datasets.distilled import Distilled
    from distill_datasets.labels.labels import Labels, LabelStart
    from distill_datasets.media.image import UnusableImage
    from distill_datasets.media.view import FileView
    from distill_datasets.models.architecture import Architecture
    from distill_datasets.models.backbones import load_backbone
    from distill_datasets.networks.network import Networks, NetworkSource, Teachers
    from distill_datasets.objectives.objective import Block, Context, Estimate, Needs, Objective
    from distill_datasets.pipeline.run import run
    from distill_datasets.recipe import load_recipe
    from distill_datasets.runtime.draws import LaneDraw
    from distill_datasets.selection.selection import Selection, Teacher
    from distill_datasets.types import Batch, Shape

__version__ = "0.1.0"
__all__ = [
    "Architecture",
    "Batch",
    "Block",
    "Canvas",
    "CanvasSize",
    "CanvasStart",
    "Cells",
    "Context",
    "Distillation",
    "Distilled",
    "Estimate",
    "FileView",
    "LabelStart",
    "Labels",
    "LaneDraw",
    "Needs",
    "NetworkSource",
    "Networks",
    "Objective",
    "RealData",
    "Selection",
    "Shape",
    "Teacher",
    "Teachers",
    "UnusableImage",
    "distill",
    "evaluate",
    "load",
    "load_backbone",
    "load_recipe",
    "replay",
    "run",
    "verify",
]

_HOME = {
    "Distillation": "api",
    "distill": "api",
    "evaluate": "api",
    "load": "api",
    "replay": "api",
    "verify": "api",
    "load_backbone": "models.backbones",
    "load_recipe": "recipe",
    "run": "pipeline.run",
    # what a part of another package subclasses, takes and returns
    "Architecture": "models.architecture",
    "Batch": "types",
    "Block": "objectives.objective",
    "Canvas": "canvases.canvas",
    "CanvasSize": "canvases.canvas",
    "CanvasStart": "canvases.canvas",
    "Cells": "canvases.canvas",
    "Context": "objectives.objective",
    "Distilled": "distilled",
    "Estimate": "objectives.objective",
    "FileView": "media.view",
    "LabelStart": "labels.labels",
    "Labels": "labels.labels",
    "LaneDraw": "runtime.draws",
    "Needs": "objectives.objective",
    "NetworkSource": "networks.network",
    "Networks": "networks.network",
    "Objective": "objectives.objective",
    "RealData": "data.real",
    "Selection": "selection.selection",
    "Shape": "types",
    "Teacher": "selection.selection",
    "Teachers": "networks.network",
    "UnusableImage": "media.image",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Import the public names when they are first used: torch takes seconds."""
    if name not in _HOME:
        raise AttributeError(f"module 'distill_datasets' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"distill_datasets.{_HOME[name]}"), name)
