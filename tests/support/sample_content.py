"""A tiny distilled dataset: one 12 x 14 poster, six 8 x 8 crops of it, three classes."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from distill_datasets.export.content import Content, DisplayPixels, ViewLabels
from distill_datasets.files.artifacts import canonical_json, sha256_text
from distill_datasets.files.parquet import BOOLEAN, INTEGER, Config, numbers
from distill_datasets.files.yaml_text import to_yaml
from distill_datasets.models.convnets import ConvNet
from distill_datasets.models.layers import chain
from distill_datasets.types import Shape

CLASS_NAMES = ["no", "1e-5", "caf\u00e9: 'noir' | #1"]
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
CORNERS = [[y, x] for y in (0, 4) for x in (0, 3, 6)]
TERRITORIES = [[0, 0, 12, 5], [0, 5, 12, 9], [0, 9, 12, 14]]
RESULTS: list[dict[str, Any]] = [
    {
        "protocol": "last-step",
        "from": source,
        "network": "convnet 3 x 32",
        "accuracy": {"mean": mean, "std": 0.0125},
        # two values d apart have the deviation d / sqrt(2)
        "runs": [
            {"seed": seed, "accuracy": mean + sign * 0.0125 / math.sqrt(2)}
            for seed, sign in enumerate((-1, 1))
        ],
        "students": 2,
        "steps": 600,
        "images": images,
        "pixels": pixels,
    }
    for source, mean, images, pixels in [
        ("default", 0.875, 6, 168),
        ("exact", 0.88, 6, 168),
        ("random_real", 0.5, 2, 128),
        ("full", 0.99, 300, None),
    ]
]


def sample(channels: int = 3, **changes: Any) -> Content:  # noqa: ANN401
    """The content of a poster, or of what `changes` make of it."""
    rng = torch.Generator().manual_seed(0)
    poster_CHW = torch.rand(channels, 12, 14, generator=rng)
    crops_NCHW = torch.stack([poster_CHW[:, y : y + 8, x : x + 8] for y, x in CORNERS])
    cells_GK = torch.rand(3, 3, generator=rng) + 0.1
    mean, std = MEAN[:channels], STD[:channels]
    mean_C11, std_C11 = (torch.tensor(each)[:, None, None] for each in (mean, std))
    content = Content(
        name="quickstart",
        method="PoDD, learned labels",
        papers=["PoDD, arXiv:2403.12040, fixed labels", "https://example.org/paper"],
        class_names=CLASS_NAMES,
        images_NCHW=(crops_NCHW * 255).round().byte(),
        exact_NCHW=(crops_NCHW - mean_C11) / std_C11,
        targets_NK=_labels(cells_GK),
        originals=[poster_CHW],
        label_cells=[cells_GK],
        geometry={
            "canvas": "poster",
            "crop": [8, 8],
            "corners_yx": CORNERS,
            "territories": TERRITORIES,
        },
        mean=mean,
        std=std,
        normalization={"kind": "mean_std", "mean": mean, "std": std},
        constants={},
        step_sizes=[],
        order=[],
        starts_SP=None,
        layers=[],
        attack=None,
        student={
            "network": {"name": "convnet", "width": 32},
            "batch": 256,
            "optimizer": {"name": "sgd", "lr": 1e-2, "momentum": 0.9, "weight_decay": 1e-05},
            "steps": 100,
        },
        recipe={"distill": {"steps": 10}},
        recipe_yaml="distill:\n  steps: 10\n",
        recipe_sha256=sha256_text(canonical_json({"distill": {"steps": 10}})),
        seed=7,
        provenance={
            "dataset": "uoft-cs/cifar10",
            "config": None,
            "revision": "0" * 40,
            "files": [{"path": "train.parquet", "sha256": "cd" * 32, "size": 3}],
            "license": "mit",
            "card_url": "https://huggingface.co/datasets/uoft-cs/cifar10",
            "splits": {"train": 300, "test": 50},
        },
        environment={"python": "3.11", "distill_datasets": "0.1.0"},
        real_shape=(channels, 8, 8),
    )
    return dataclasses.replace(content, **changes)


def pixels_sample(**changes: Any) -> Content:  # noqa: ANN401
    """The content of separate images with hard labels, two per class."""
    images_NCHW = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return sample(
        images_NCHW=(images_NCHW * 255).round().byte(),
        exact_NCHW=(images_NCHW - 0.5) / 0.2,
        targets_NK=torch.eye(3).repeat_interleave(2, dim=0),
        originals=list(images_NCHW),
        label_cells=[],
        geometry={"canvas": "pixels"},
        **changes,
    )


def bytes_sample(**changes: Any) -> Content:  # noqa: ANN401
    """The content of separate 8-bit images with hard labels, as separable objectives leave it."""
    rng = torch.Generator().manual_seed(2)
    images_NCHW = torch.randint(0, 256, (6, 3, 8, 8), generator=rng, dtype=torch.uint8)
    return sample(
        images_NCHW=images_NCHW,
        exact_NCHW=None,
        targets_NK=torch.eye(3).repeat_interleave(2, dim=0).byte(),
        originals=DisplayPixels(images_NCHW),
        label_cells=[],
        geometry={"canvas": "pixels"},
        **changes,
    )


def as_a_run_leaves(content: Content) -> Content:
    """The content with the recipe and the layers that say what it does."""
    shape = Shape(*content.images_NCHW.shape[1:], len(content.class_names), content.task)
    recipe = content.recipe | {"publish": {"notes": content.notes}}
    return dataclasses.replace(
        content,
        layers=chain(ConvNet(width=32).on_meta(shape)),
        recipe=recipe,
        recipe_yaml=to_yaml(recipe),
        recipe_sha256=sha256_text(canonical_json(recipe)),
    )


def views_of(form: Literal["config", "shards"]) -> ViewLabels:
    """Labels of four views of three classes."""
    logits_NK = np.arange(12, dtype=np.float16).reshape(4, 3)
    features = {"image": INTEGER, "flip": BOOLEAN, "logits": numbers("float16", 3)}

    def read(start: int, stop: int) -> dict[str, Any]:
        return {
            "image": list(range(start, stop)),
            "flip": [bool(row % 2) for row in range(start, stop)],
            "logits": logits_NK[start:stop],
        }

    def shards(folder: Path) -> Iterator[Path]:
        for name in ("first", "second"):
            path = folder / "labels" / f"epoch-{['first', 'second'].index(name)}.tar"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(name.encode())
            yield path

    return ViewLabels(
        config=Config("relabel", "relabel", features, 4, 10, read) if form == "config" else None,
        shards=shards if form == "shards" else None,
        labels=4,
        bytes=40,
        constants={"weight_KD": torch.eye(3), "bias_K": torch.zeros(3)},
        facts={"epochs": 2},
    )


def _labels(cells_GK: torch.Tensor) -> torch.Tensor:
    """The mean of the cells by the width that a crop shows of each; all show their full height."""
    widths_NG = torch.tensor(
        [
            [max(0, min(x + 8, right) - max(x, left)) for _, left, _, right in TERRITORIES]
            for _, x in CORNERS
        ]
    )
    mixed_NK = widths_NG.float() @ cells_GK
    return mixed_NK / mixed_NK.sum(dim=1, keepdim=True)
