"""The first stage: read the source once, keep it decoded on disk, hand it over on the device.

The folder is shared by all recipes that read the same images the same way; of several runs that
need it at once, one reads and the others wait. All processes of a run decode; no process ever holds
all pixels: they lie in files that are read memory-mapped.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from distill_datasets.data.normalization import Normalization, count_values
from distill_datasets.data.provenance import Provenance
from distill_datasets.data.real import Decoded, RealData
from distill_datasets.data.source import Source, SourceDataset
from distill_datasets.data.stores import RowFiles
from distill_datasets.errors import DataError
from distill_datasets.files.artifacts import (
    fingerprint,
    is_done,
    mark_done,
    open_rows,
    read_tensors,
    write_tensors,
)
from distill_datasets.runtime.draws import draws
from distill_datasets.runtime.processes import Run, Runtime
from distill_datasets.runtime.progress import progress_bar

logger = logging.getLogger("distill_datasets")

VERSION = 2
LISTED_CLASSES = 20
LOCK = ".lock"
LOOKS_EVERY_SECONDS = 0.5


@dataclass(frozen=True)
class LoadedSource:
    """Real images on the device, where they came from, and the fingerprint of both."""

    real: RealData
    provenance: Provenance
    fingerprint: str


def load_source(source: SourceDataset, run: Run) -> LoadedSource:
    """Read and normalize the source, or take both from an earlier run.

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
    parts = [data, store.path("train"), store.path("test")]

    def is_read() -> bool:
        return is_done(folder) and all(path.exists() for path in parts)

    with one_run(folder, run.runtime, needed=not (is_read() and normalized.exists())):
        # all decide before one writes
        there, fitting = is_read(), not normalized.exists()
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
        if fitting:
            fitted = fit(decoded, section, run.runtime)
            if run.runtime.is_main:
                write_tensors(normalized, fitted.to_tensors())
        run.runtime.wait()
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
        RealData.build(
            decoded, normalization, run.runtime.device, section.sampling, section.calibrate
        ),
        decoded.provenance,
        fingerprint([identity, normalizing, section.model_dump(include=training)]),
    )


@contextmanager
def one_run(folder: Path, runtime: Runtime, *, needed: bool) -> Iterator[None]:
    """Keep other runs from writing into a folder meanwhile; wait for one that does.

    The main process holds the lock for all processes of its run, which wait for it here. The kernel
    takes it back from a process that ends, however it ends; the empty file stays.

    Args:
        folder: what is shared; it is made.
        runtime: this run.
        needed: False where this process sees that nothing is left to be written.
    """
    lock = FileLock(folder / LOCK)
    if needed:
        folder.mkdir(parents=True, exist_ok=True)
    try:
        if needed and runtime.is_main:
            _acquire(lock)
        runtime.wait()
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock) -> None:
    """Take a lock, however long another run holds it."""
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info(
                "source: another run is reading the same source; this one goes on when it lets go "
                "of %s",
                lock.lock_file,
            )
            lock.acquire(poll_interval=LOOKS_EVERY_SECONDS)
    except (OSError, NotImplementedError) as error:
        logger.warning(
            "%s: cannot lock this file (%s); start no other run that reads the same source until "
            "this one has read it, or choose a folder on another file system with --runs",
            lock.lock_file,
            error,
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
