"""The first stage: read the source once, keep it decoded on disk, hand it over on the device.

The folder is shared by all recipes that read the same images the same way.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill_datasets.artifacts import fingerprint, is_done, mark_done, read_tensors, write_tensors
from distill_datasets.data.source import (
    Decoded,
    Normalization,
    Provenance,
    RealData,
    Source,
    read,
)
from distill_datasets.progress import progress_bar
from distill_datasets.runtime import Runtime, draws

logger = logging.getLogger("distill_datasets")

VERSION = 1
LISTED_CLASSES = 20


@dataclass(frozen=True)
class LoadedSource:
    """Real images on the device, where they came from, and the fingerprint of both."""

    real: RealData
    provenance: Provenance
    fingerprint: str


def load_source(
    source: Source,
    provenance: Provenance,
    *,
    seed: int,
    runs: Path,
    runtime: Runtime,
    quiet: bool,
    dataset: Any = None,  # noqa: ANN401
) -> LoadedSource:
    """Read and normalize the source, or take both from an earlier run.

    Args:
        source: the section of the recipe.
        provenance: what `resolve` returned.
        seed: the recipe's seed; draws the rows of `limit` and of a cut-off test split.
        runs: the folder that holds all runs.
        runtime: only its main process reads the source; the others wait for the file.
        quiet: no progress bar.
        dataset: the object to read instead of what `source.dataset` names.

    Raises:
        DataError: the source cannot be used; nothing has been trained yet.
    """
    training = {"sampling", "calibrate"}
    named = {"dataset", "revision", "normalization", "zca_regularization"}
    reading = source.model_dump(mode="json", exclude=named | training)
    identity = [VERSION, "source", reading, provenance.identity(), seed]
    folder = runs / f"source-{fingerprint(identity)}"
    normalizing = [source.normalization, source.zca_regularization]
    normalized = folder / f"normalization-{fingerprint(normalizing)}.safetensors"
    data = folder / "data.safetensors"
    if runtime.is_main and not (is_done(folder) and data.exists()):
        with progress_bar("source", 1, shown=not quiet) as bar:
            seen = 0

            def advance(done: int, total: int) -> None:
                nonlocal seen
                bar.expect(total)
                bar.advance(done - seen)
                seen = done

            decoded = read(source, draws(seed), provenance, dataset, advance)
        tensors, note = decoded.to_tensors()
        write_tensors(data, tensors, note)
        shape = list(decoded.train.images_NCHW.shape)
        histogram = {"train_per_class": decoded.counts_K}
        mark_done(folder, {"shape": shape, **histogram, **provenance.as_json()})
    runtime.wait()
    decoded = Decoded.from_tensors(*read_tensors(data))
    if runtime.is_main and not normalized.exists():
        fitted = Normalization.fit(decoded.train, source.normalization, source.zca_regularization)
        write_tensors(normalized, fitted.to_tensors())
    runtime.wait()
    normalization = Normalization.from_tensors(read_tensors(normalized)[0])
    train, test = decoded.train.images_NCHW, decoded.test.images_NCHW
    logger.info(
        "source: %d training and %d test images of %d classes, %d x %d x %d",
        len(train), len(test), len(decoded.class_names), *train.shape[1:],
    )  # fmt: skip
    counts = decoded.counts_K
    if len(set(counts)) > 1:
        listed = ", ".join(map(str, counts[:LISTED_CLASSES]))
        more = ", ..." if len(counts) > LISTED_CLASSES else ""
        logger.info(
            "source: %d to %d training images per class: %s%s",
            min(counts), max(counts), listed, more,
        )  # fmt: skip
    return LoadedSource(
        RealData.build(decoded, normalization, runtime.device, source.sampling, source.calibrate),
        decoded.provenance,
        fingerprint([identity, normalizing, source.model_dump(include=training)]),
    )
