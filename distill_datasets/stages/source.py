"""The first stage: read the source once, keep it decoded on disk, hand it over on the device.

The folder is shared by all recipes that read the same images the same way; of several runs that
need it at once, one reads and the others wait. All processes of a run decode; no process ever holds
all pixels: they lie in files that are read memory-mapped.
"""

import logging
from dataclasses import dataclass

import torch

from distill_datasets.data.normalization import Normalization, count_values
from distill_datasets.data.overlap import Overlap
from distill_datasets.data.provenance import Provenance
from distill_datasets.data.real import Decoded, RealData
from distill_datasets.data.source import Source, SourceDataset
from distill_datasets.data.stores import RowFiles
from distill_datasets.errors import DataError
from distill_datasets.files.artifacts import (
    done,
    fingerprint,
    holds_tensors,
    mark_done,
    open_rows,
    read_tensors,
    write_tensors,
)
from distill_datasets.runtime.draws import draws
from distill_datasets.runtime.locks import LOCK, one_run
from distill_datasets.runtime.processes import Run, Runtime
from distill_datasets.runtime.progress import progress_bar

logger = logging.getLogger("distill_datasets")

VERSION = 2
LISTED_CLASSES = 20


@dataclass(frozen=True)
class LoadedSource:
    """Real images on the device, where they came from, and the fingerprint of both."""

    real: RealData
    provenance: Provenance
    fingerprint: str


def load_source(source: SourceDataset, run: Run) -> LoadedSource:
    """Read and normalize the source, or take both from an earlier run.

    What an earlier run has left is compared with its checksums, by all processes together.

    Args:
        source: what `open_source` returned.
        run: seed, folder, processes and device; its processes share the decoding.

    Raises:
        DataError: the source cannot be used; nothing has been trained yet.
    """
    section, provenance = source.section, source.provenance
    training = {"sampling", "calibrate"}
    normal = {"normalization", "zca_regularization", "mean", "std"}
    # left out are those that do not decide pixels, or do so by the files that are read
    named = {"dataset", "revision", "expected", "left_out"} | normal
    reading = section.model_dump(mode="json", exclude=named | training)
    identity = [VERSION, "source", reading, provenance.identity(), run.seed]
    folder = run.folder / f"source-{fingerprint(identity)}"
    normalizing = section.model_dump(mode="json", include=normal)
    normalized = folder / f"normalization-{fingerprint(normalizing)}.safetensors"
    data, store = folder / "data.safetensors", RowFiles(folder, run.runtime)

    def left() -> tuple[bool, bool]:
        """Whether the rows and their normalization lie there whole, as all processes see it."""
        rows = [store.holds("train"), store.holds("test"), holds_tensors(data)]
        return (
            run.runtime.agreed(all(rows) and done(folder) is not None),
            run.runtime.agreed(holds_tensors(normalized)),
        )

    found = left()
    with one_run("source", folder / LOCK, run.runtime, needed=not all(found)):
        # another run may have made all of it meanwhile; all look before one writes
        there, fitted = found if all(found) else left()
        run.runtime.wait()
        if not there:
            with progress_bar("source", 1, shown=run.shown) as bar:
                seen = 0

                def advance(done: int, total: int) -> None:
                    nonlocal seen
                    bar.expect(total)
                    bar.advance(done - seen)
                    seen = done

                decoded = source.read(draws(run.seed), advance, store)
            if run.runtime.is_main:
                write_tensors(data, *decoded.to_tensors())
                shape = list(decoded.train.images_NCHW.shape)
                histogram = {"train_per_class": decoded.counts_K}
                mark_done(folder, {"shape": shape, **histogram, **provenance.as_json()})
                store.forget()
        run.runtime.wait()
        images = [open_rows(store.path(name)) for name in ("train", "test")]
        decoded = Decoded.from_tensors(*read_tensors(data), *images)
        if not fitted:
            normalization = fit(decoded, section, run.runtime)
            if run.runtime.is_main:
                write_tensors(normalized, normalization.to_tensors())
        run.runtime.wait()
    normalization = Normalization.from_tensors(read_tensors(normalized)[0])
    train, test = decoded.train.images_NCHW, decoded.test.images_NCHW
    logger.info(
        "source: %d training and %d test images of %d classes, %d x %d x %d",
        len(train), len(test), len(decoded.class_names), *train.shape[1:],
    )  # fmt: skip
    shared = Overlap(**decoded.provenance.overlap)
    if shared.warned:
        logger.warning(
            "source: %s: accuracy is better than it would be on new images; source.overlap=drop "
            "leaves them out of training",
            shared.in_words(),
        )
    else:
        logger.info("source: %s", shared.in_words())
    for line in [] if source.account is None else source.account.lines():
        logger.info("source: %s", line)
    for role, split in (("training", decoded.train), ("test", decoded.test)):
        if decoded.task == "values":
            continue
        if split.targets_NK is None:
            counts = torch.bincount(split.labels_N, minlength=len(decoded.class_names)).tolist()
        else:
            counts = (split.targets_NK > 0.5).sum(dim=0).tolist()
        shown = list(zip(decoded.class_names, counts, strict=True))[:LISTED_CLASSES]
        listed = ", ".join(f"{name} {count}" for name, count in shown)
        more = ", ..." if len(counts) > LISTED_CLASSES else ""
        what = "class" if decoded.task == "classes" else "label"
        logger.info(
            "source: %s images per %s, %d to %d: %s%s",
            role, what, min(counts), max(counts), listed, more,
        )  # fmt: skip
    return LoadedSource(
        RealData.build(
            decoded, normalization, run.runtime.device, section.sampling, section.calibrate
        ),
        decoded.provenance,
        fingerprint([identity, normalizing, section.model_dump(include=training)]),
    )


def fit(decoded: Decoded, section: Source, runtime: Runtime) -> Normalization:
    """The normalization of the training images; processes share the reading where they can.

    Raises:
        DataError: `source.mean` is of another number of channels than the images have.
    """
    images_NCHW = decoded.train.images_NCHW
    if section.mean is not None and section.std is not None:
        if len(section.mean) != decoded.shape.c:
            raise DataError(
                f"source.mean: got {len(section.mean)} numbers for images of {decoded.shape.c} "
                "channels; give one for every channel, or set source.channels"
            )
        return Normalization(torch.tensor(section.mean), torch.tensor(section.std))
    if section.normalization != "mean_std":
        return Normalization.fit(decoded.train, section.normalization, section.zca_regularization)
    # counts are integers, so that their sum is exact however many processes share the rows
    processes = runtime.processes
    share = -(-len(images_NCHW) // processes)
    first = runtime.index * share
    counts_CV = count_values(images_NCHW[first : first + share]).to(runtime.device)
    own = {runtime.index: counts_CV}
    total_CV = runtime.sum_in_order(own, processes, torch.zeros_like(counts_CV))
    return Normalization.of_counts(total_CV.cpu(), len(images_NCHW))
