"""The configurations of a published dataset: which columns each has, and how its rows are made."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from distill_datasets.export.content import Content
from distill_datasets.files.parquet import (
    IMAGE,
    INTEGER,
    TEXT,
    Columns,
    Config,
    class_label,
    numbers,
)
from distill_datasets.media.image import png, to_bytes


def configs(
    content: Content, student_yaml: str, results: list[dict[str, Any]] | None
) -> list[Config]:
    """The configurations of the dataset, `default` first.

    All but `recipe` are the same with results and without.
    """
    poster = [_poster(content)] if content.label_cells else []
    recipe = _recipe(content, student_yaml, results)
    exact = [] if content.exact_NCHW is None else [_exact(content, content.exact_NCHW)]
    views = [content.relabel.config] if content.relabel and content.relabel.config else []
    numbers = [_numbers(content)] if content.numbers else []
    return [_default(content), *poster, *numbers, *exact, *views, recipe]


def _default(content: Content) -> Config:
    labels_N = content.targets_NK.argmax(dim=1)

    def read(start: int, stop: int) -> Columns:
        with ThreadPoolExecutor() as pool:
            images = list(pool.map(png, content.images_NCHW[start:stop]))
        return {
            "image": images,
            "label": labels_N[start:stop].tolist(),
            "soft_label": content.targets_NK[start:stop].float().cpu().numpy(),
        }

    features = {
        "image": IMAGE,
        "label": class_label(content.class_names),
        "soft_label": numbers("float32", len(content.class_names)),
    }
    row_bytes = content.images_NCHW[0].numel() + 4 * len(content.class_names)
    return Config("default", "data", features, len(content.images_NCHW), row_bytes, read)


def _exact(content: Content, exact_NCHW: Tensor) -> Config:
    labels_N = content.targets_NK.argmax(dim=1)

    def read(start: int, stop: int) -> Columns:
        return {
            "pixel_values": list(exact_NCHW[start:stop].float().cpu()),
            "label": labels_N[start:stop].tolist(),
            "soft_label": list(content.targets_NK[start:stop].float().cpu()),
        }

    values = exact_NCHW[0].numel()
    features = {
        "pixel_values": numbers("float32", values),
        "label": class_label(content.class_names),
        "soft_label": numbers("float32", len(content.class_names)),
    }
    row_bytes = 4 * (values + len(content.class_names))
    return Config("exact", "exact", features, len(exact_NCHW), row_bytes, read)


def _poster(content: Content) -> Config:
    originals, tables = content.originals, content.label_cells

    def read(start: int, stop: int) -> Columns:
        return {
            "preview": [png(to_bytes(image)) for image in originals[start:stop]],
            "poster": [image.detach().float().cpu() for image in originals[start:stop]],
            "poster_shape": [list(image.shape) for image in originals[start:stop]],
            "label_poster": [table.detach().float().cpu() for table in tables[start:stop]],
            "label_poster_shape": [list(table.shape) for table in tables[start:stop]],
        }

    features = {
        "preview": IMAGE,
        "poster": numbers("float32"),
        "poster_shape": numbers("int32", 3),
        "label_poster": numbers("float32"),
        "label_poster_shape": numbers("int32", 2),
    }
    return Config("poster", "poster", features, len(originals), 4 * originals[0].numel(), read)


def _numbers(content: Content) -> Config:
    """One row for each kind of number that the examples are drawn from."""
    kinds = content.numbers.values()
    eight = [part.values.dtype == torch.uint8 for part in kinds]
    flat = [part.values.flatten().cpu().numpy() for part in kinds]
    scales = [[] if part.scales_2D is None else part.scales_2D.flatten().tolist() for part in kinds]
    columns: dict[str, Sequence[Any]] = {
        "name": list(content.numbers),
        "shape": [list(part.values.shape) for part in kinds],
        "uint8": [values if own else [] for values, own in zip(flat, eight, strict=True)],
        "float16": [[] if own else values for values, own in zip(flat, eight, strict=True)],
        "scales": scales,
    }
    features = {
        "name": TEXT,
        "shape": numbers("int32"),
        "uint8": numbers("uint8"),
        "float16": numbers("float16"),
        "scales": numbers("float32"),
    }
    most = max(part.bytes for part in kinds)
    return Config("numbers", "numbers", features, len(kinds), most, lambda start, stop: columns)


def _recipe(content: Content, student_yaml: str, results: list[dict[str, Any]] | None) -> Config:
    texts = {
        "recipe_yaml": content.recipe_yaml,
        "student_yaml": student_yaml,
        "recipe_json": _json(content.recipe),
        "student_json": _json(content.student),
        "geometry_json": _json(content.geometry),
        "normalization_json": _json(content.normalization),
        "provenance_json": _json(content.provenance),
        "environment_json": _json(content.environment),
        "order_json": _json(content.order),
        "results_json": _json(results),
    }
    lists: dict[str, tuple[str, Sequence[float]]] = {
        "mean": ("float32", content.mean),
        "std": ("float32", content.std),
        "image_shape": ("int32", list(content.images_NCHW.shape[1:])),
    }
    columns: dict[str, Sequence[Any]] = {
        **{name: [text] for name, text in texts.items()},
        **{name: [values] for name, (_, values) in lists.items()},
        "step_sizes": [content.step_sizes],
        "recipe_sha256": [content.recipe_sha256],
        "seed": [content.seed],
    }
    features = {
        **{name: TEXT for name in texts},
        **{name: numbers(dtype, len(values)) for name, (dtype, values) in lists.items()},
        "step_sizes": numbers("float32"),
        "recipe_sha256": TEXT,
        "seed": INTEGER,
    }
    return Config("recipe", "recipe", features, 1, 1, lambda start, stop: columns)


def _json(content: object) -> str:
    return json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False)
