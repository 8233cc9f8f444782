"""Distill an image dataset into a few trained images and soft labels that `load_dataset` opens."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill_datasets.api import Distillation, distill
    from distill_datasets.pipeline.run import run
    from distill_datasets.recipe import load_recipe

__version__ = "0.1.0"
__all__ = ["Distillation", "distill", "load_recipe", "run"]

_HOME = {
    "Distillation": "distill_datasets.api",
    "distill": "distill_datasets.api",
    "load_recipe": "distill_datasets.recipe",
    "run": "distill_datasets.pipeline.run",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Import the public names when they are first used: torch takes seconds."""
    if name not in _HOME:
        raise AttributeError(f"module 'distill_datasets' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)
