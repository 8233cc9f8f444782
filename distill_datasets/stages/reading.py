"""A published folder as its users read it.

Shape suffixes: N examples, K classes, C channels.
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from distill_datasets.data.opening import library_bars
from distill_datasets.examples import Stored
from distill_datasets.types import Shape

if TYPE_CHECKING:
    from datasets import Dataset


def load_rows(folder: Path, config: str) -> "Dataset":
    """One config of a published folder, as `load_dataset` returns it, held in memory.

    The cache is a private folder that is gone afterwards: `datasets` shares one entry between
    local folders of one name, and would return the rows of the first.
    """
    from datasets import load_dataset

    with tempfile.TemporaryDirectory() as cache, library_bars(shown=False):
        return load_dataset(
            str(folder), config, split="train", cache_dir=cache, keep_in_memory=True
        )


def read_published(exported: Path, config: str, shape: Shape) -> Stored:
    """The training examples of one config, from plain `load_dataset`."""
    columns = load_rows(exported, config).with_format("numpy")[:]
    recipe = load_rows(exported, "recipe")[0]
    targets_NK = torch.tensor(np.stack(columns["soft_label"]), dtype=torch.float32)
    if config == "exact":
        values = torch.tensor(np.stack(columns["pixel_values"]), dtype=torch.float32)
        images = values.view(-1, shape.c, shape.h, shape.w)
        return Stored(images, targets_NK, torch.zeros(shape.c), torch.ones(shape.c), unit=1.0)
    images = torch.tensor(np.stack(columns["image"]), dtype=torch.uint8)
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    mean_C, std_C = torch.tensor(recipe["mean"]), torch.tensor(recipe["std"])
    return Stored(images, targets_NK, mean_C, std_C, unit=255.0)
