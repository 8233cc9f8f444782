"""The configurations of a published dataset: which columns each has, and how its rows are made."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from distill_datasets.export.content import Content
from distill_datasets.files.parquet import (
    IMAGE,
    INTEGER,
    TEXT,
    Columns,
    Config,
    Feature,
    class_label,
    class_labels,
    numbers,
)
from distill_datasets.media.image import png, to_bytes

PICTURED = (1, 3)
"""Channels of images that are published as pictures; others are, too, but as floats."""
PIXELS = "pixels"
SOFT, VALUES = "soft_label", "values"
"""The columns that a student is taught: probabilities, or numbers in the units of the source."""


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
    labels = _labels(content)
    c, values = content.images_NCHW.shape[1], content.images_NCHW[0].numel()
    pictures = c in PICTURED

    def read(start: int, stop: int) -> Columns:
        images_BCHW = content.images_NCHW[start:stop]
        with ThreadPoolExecutor() as pool:
            seen = list(pool.map(png, images_BCHW))
        if pictures:
            return {"image": seen, **labels.read(start, stop)}
        pixels = list(images_BCHW.cpu().float() / 255)
        return {"preview": seen, PIXELS: pixels, **labels.read(start, stop)}

    if pictures:
        features = {"image": IMAGE, **labels.features}
    else:
        features = {"preview": IMAGE, PIXELS: numbers("float32", values), **labels.features}
    row_bytes = content.images_NCHW[0].numel() + 4 * len(content.class_names)
    return Config("default", "data", features, len(content.images_NCHW), row_bytes, read)


class _Labels(NamedTuple):
    """The columns of labels, and what stands in some rows."""

    features: dict[str, Feature]
    read: Callable[[int, int], dict[str, Any]]


def _labels(content: Content) -> _Labels:
    """The likeliest class or the likely labels beside all probabilities; or numbers.

    Numbers are in the units of the source.
    """
    targets_NK, names, task = content.targets_NK, content.class_names, content.task
    soft = numbers("float32", len(names))

    def floats(start: int, stop: int) -> npt.NDArray[Any]:
        found: npt.NDArray[Any] = targets_NK[start:stop].float().cpu().numpy()
        return found

    if task == "values":
        scale = content.provenance["targets"]
        mean, std = (np.asarray(scale[key], dtype=np.float32) for key in ("mean", "std"))
        return _Labels({VALUES: soft}, lambda *rows: {VALUES: floats(*rows) * std + mean})
    if task == "labels":
        features = {"labels": class_labels(names), SOFT: soft}
        return _Labels(
            features,
            lambda *rows: {
                "labels": [np.flatnonzero(row > 0.5) for row in floats(*rows)],
                SOFT: floats(*rows),
            },
        )
    labels_N = targets_NK.argmax(dim=1)
    return _Labels(
        {"label": class_label(names), SOFT: soft},
        lambda start, stop: {"label": labels_N[start:stop].tolist(), SOFT: floats(start, stop)},
    )


def _exact(content: Content, exact_NCHW: Tensor) -> Config:
    labels = _labels(content)

    def read(start: int, stop: int) -> Columns:
        pixels = list(exact_NCHW[start:stop].float().cpu())
        return {"pixel_values": pixels, **labels.read(start, stop)}

    values = exact_NCHW[0].numel()
    features = {"pixel_values": numbers("float32", values), **labels.features}
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
