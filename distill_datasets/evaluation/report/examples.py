"""The examples of a set that a page shows: labels of all, and the pixels of a few.

Shape suffixes: N examples, K classes, C channels, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import torch

from distill_datasets.export.pictures import by_class
from distill_datasets.media.image import UnusableImage, quiet_decoders, read_image

if TYPE_CHECKING:
    from torch import Tensor

MOST_IMAGES = 200
MOST_OF_CLASS = 10
AT_ONCE = 256


@dataclass(frozen=True)
class ShownExamples:
    """What is shown of a set.

    Attributes:
        targets_NK: the labels of all examples.
        counts_K: how many examples are most of each class.
        chosen: of every class the rows that are shown; none beyond the first classes of very many.
        images: the pixels of these, uint8 (C, H, W), by their row; what cannot be decoded is left
            out, as an audit names it.
    """

    targets_NK: Tensor
    counts_K: list[int]
    chosen: list[list[int]]
    images: dict[int, Tensor]


def read_examples(folder: Path, manifest: dict[str, Any]) -> ShownExamples | None:
    """Read what is shown of a published folder.

    Returns:
        None where its rows cannot be read, or their labels are not of the manifest's classes.
    """
    classes = len(manifest["classes"])
    paths = sorted((folder / "data").glob("train-*.parquet"))
    try:
        softs = [pq.read_table(path, columns=["soft_label"])["soft_label"] for path in paths]
        values = [soft for column in softs for soft in column.to_numpy()]
        targets_NK = torch.tensor(np.stack(values), dtype=torch.float32)
    except (OSError, ValueError, KeyError, TypeError):  # pyarrow's errors are of these kinds
        return None
    if targets_NK.ndim != 2 or targets_NK.shape[1] != classes:
        return None
    most = max(1, min(MOST_OF_CLASS, MOST_IMAGES // classes))
    chosen = [
        rows if label < MOST_IMAGES else [] for label, rows in enumerate(by_class(targets_NK, most))
    ]
    counts_K = targets_NK.argmax(dim=1).bincount(minlength=classes).tolist()
    wanted = {row for rows in chosen for row in rows}
    return ShownExamples(targets_NK, counts_K, chosen, _decoded(paths, wanted))


def _decoded(paths: list[Path], wanted: set[int]) -> dict[int, Tensor]:
    """The images of some rows, with a few hundred encoded ones in memory at a time."""
    images: dict[int, Tensor] = {}
    row = 0
    with quiet_decoders():
        for path in paths:
            file = pq.ParquetFile(path)
            # images of two, or of more than three, channels have a preview in their place
            column = "image" if "image" in file.schema_arrow.names else "preview"
            for batch in file.iter_batches(AT_ONCE, columns=[column]):
                for place, picture in enumerate(batch.column(0)):
                    if row + place in wanted:
                        try:
                            encoded = (picture.as_py() or {}).get("bytes") or b""
                            images[row + place] = read_image(encoded).pixels_CHW
                        except UnusableImage:
                            continue
                row += len(batch)
    return images
