"""Shrink: a smaller set of the rows of a finished one, chosen by what a network finds easy.

Two rules of YOCO: of every class as many rows, and those of the lowest prediction error (LBPE) of
networks that train on the set alone. A smaller set is part of a larger one of the same seed.

Source: You Only Condense Once (arXiv:2310.14019).

Shape suffixes: N examples of the whole set, M examples that stay, K classes, C channels, H W
pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from distill_datasets.data.normalization import InputSpace
from distill_datasets.errors import ArtifactError, RecipeError
from distill_datasets.export.content import Content, DisplayPixels
from distill_datasets.export.folder import check_writable, read_manifest, write_dataset
from distill_datasets.layouts.derivation import identity, part_of
from distill_datasets.layouts.stored import content_of, labels_of_views, network_of, records_of
from distill_datasets.models.convnets import ConvNet
from distill_datasets.optimizers import Adam
from distill_datasets.runtime.draws import draws
from distill_datasets.runtime.processes import Runtime
from distill_datasets.runtime.progress import progress_bar
from distill_datasets.selection.difficulty import prediction_errors
from distill_datasets.soft_labels.records import Columns
from distill_datasets.training.examples import Stored
from distill_datasets.training.loop import Training
from distill_datasets.types import Shape

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger("distill_datasets")

PAPER = "YOCO, arXiv:2310.14019"
BEST = 10
"""Passes whose errors are averaged."""


class Ranking(Training):
    """How the networks train that rank the rows."""


def shrink(
    folder: Path,
    target: str,
    ipc: int,
    to: Path,
    *,
    networks: int = 3,
    passes: int = 100,
    seed: int = 0,
    shown: bool = True,
) -> dict[str, Any]:
    """Write a set of the `ipc` easiest rows of every class of a finished one.

    Args:
        folder: the finished set.
        target: what the user called it.
        ipc: rows of every class; a class with fewer keeps all.
        to: new or empty folder.
        networks: that are trained on the set and asked.
        passes: of each over the set.
        seed: decides their draws.
        shown: whether a bar is.

    Returns:
        The manifest.

    Raises:
        RecipeError: `ipc` is not fewer than the rows of a class.
        ArtifactError: the folder cannot be read or written, or rows alone take more than the
            images that all of them are cut from.
    """
    check_writable(to)
    content = content_of(folder)
    classes_N = content.targets_NK.argmax(dim=1)
    counts_K = torch.bincount(classes_N, minlength=len(content.class_names))
    if not 0 < ipc < int(counts_K.max()):
        raise RecipeError(
            f"ipc: got {ipc}, expected 1 to {int(counts_K.max()) - 1}: {folder} has "
            f"{_range(counts_K)} rows of a class"
        )
    _check_smaller(folder, int(counts_K.clamp(max=ipc).sum()))
    settings = ranking_of(content)
    error_N = ranked(content, settings, networks, passes, seed, shown)
    row_M = _easiest(error_N, classes_N, ipc)
    notes = list(_notes(content, counts_K, ipc, settings, networks, passes))
    part = part_of(target, folder, row_M.tolist())
    facts = {"ipc": ipc, "networks": networks, "passes": passes, "seed": seed}
    kept, sections = _views(content, folder, row_M, notes)
    written = replace(
        kept,
        **identity(f"{content.name}, {ipc} per class", "shrink", facts, [part], sections),
        papers=sorted({*content.papers, PAPER}),
        derived={"verb": "shrink", **facts, "of": [part], "notes": notes},
    )
    return write_dataset(to, written, None)


def ranking_of(content: Content) -> Ranking:
    """How the networks train: as the students of the set, or as small ones that nobody tuned.

    A network on a frozen backbone trains too little of itself to tell rows apart, and learned
    step sizes are of the order of all rows: both are left for the small one.
    """
    student, network = content.student, network_of(content.student)
    if network is None or network.frozen() is not None or student.get("follows"):
        return Ranking(network=ConvNet(width=32), batch=64, optimizer=Adam(lr=0.001))
    given = {key: student[key] for key in ("batch", "optimizer", "augment") if key in student}
    return Ranking.model_validate({"network": network, **given})


def ranked(
    content: Content, settings: Ranking, networks: int, passes: int, seed: int, shown: bool
) -> Tensor:
    """The error of every row (N,), the mean over some networks that train on all of them."""
    c, h, w = content.images_NCHW.shape[1:]
    shape = Shape(c, h, w, len(content.class_names))
    runtime = Runtime()
    space = InputSpace(torch.tensor(content.mean), torch.tensor(content.std))
    examples = Stored(content.images_NCHW, content.targets_NK.float(), space).to(runtime.device)
    total_N = torch.zeros(examples.count)
    with (
        runtime.reproducible(),
        progress_bar("shrink", networks * passes, shown=shown) as bar,
    ):
        for network in range(networks):
            draw = draws(seed, "shrink", network)
            total_N += prediction_errors(
                examples, settings, shape, passes, BEST, draw, runtime.device, bar.advance
            )
    return total_N / networks


def _easiest(error_N: Tensor, classes_N: Tensor, ipc: int) -> Tensor:
    """The rows of the lowest errors of every class, in the order of the set; of equal the first."""
    chosen = []
    for label in sorted(set(classes_N.tolist())):
        own_N = (classes_N == label).nonzero().flatten()
        chosen.append(own_N[error_N[own_N].sort(stable=True).indices[:ipc]])
    return torch.cat(chosen).sort().values


def _check_smaller(folder: Path, rows: int) -> None:
    """Refuse rows that take more than what all rows are cut or drawn from."""
    manifest = read_manifest(folder)
    if not {"poster", "numbers"} & manifest["configs"].keys():
        return
    _, h, w = manifest["input"]["shape"]
    budget = manifest["budget"]
    if rows * h * w >= budget["pixels"]:
        raise ArtifactError(
            f"{folder}: its rows are made from {budget['pixels']:,} pixels, and {rows} of them "
            f"alone have {rows * h * w:,}: that would be no smaller set; distill one of fewer "
            "pixels"
        )


def _range(counts_K: Tensor) -> str:
    low, high = int(counts_K.min()), int(counts_K.max())
    return f"{low}" if low == high else f"{low} to {high}"


def _notes(
    content: Content, counts_K: Tensor, ipc: int, settings: Ranking, networks: int, passes: int
) -> Iterator[str]:
    """What is said of the choice, sentences without their full stop."""
    yield (
        f"of every class the {ipc} rows of the lowest prediction error (LBPE), the mean over "
        f"{networks} networks ({settings.network.name}) that trained on the whole set for {passes} "
        f"passes, each over its {BEST} most accurate passes; no other image was looked at"
    )
    few = [name for name, count in zip(content.class_names, counts_K, strict=True) if count < ipc]
    if few:
        yield f"classes with fewer rows keep all: {', '.join(few[:20])}"
    if content.label_cells or content.geometry.get("canvas") != "pixels":
        yield (
            f"rows of the canvas {content.geometry.get('canvas')} stand for themselves here: what "
            "they were cut or drawn from is not part of this set, and its budget counts their "
            "pixels"
        )
    if content.order:
        yield "its students followed an order of all rows, which is gone with some of them"


def _views(
    content: Content, folder: Path, row_M: Tensor, notes: list[str]
) -> tuple[Content, dict[str, Any]]:
    """The content of some rows, and the sections of the recipe that stay true of it."""
    follows = content.student.get("follows", {})
    without_order = {name: text for name, text in follows.items() if name != "order"}
    student = {key: value for key, value in content.student.items() if key != "follows"}
    if content.order:
        student |= {"order": "shuffled"}
    images_MCHW = content.images_NCHW[row_M]
    kept = replace(
        content,
        images_NCHW=images_MCHW,
        exact_NCHW=None if content.exact_NCHW is None else content.exact_NCHW[row_M],
        targets_NK=content.targets_NK[row_M],
        originals=DisplayPixels(images_MCHW),
        label_cells=[],
        geometry={"canvas": "pixels"},
        order=[],
        student=student | ({"follows": without_order} if without_order else {}),
    )
    source = content.recipe.get("source")
    sections = {} if source is None else {"source": source}
    if content.relabel is None:
        return kept, sections
    found = _labeled(records_of(folder, len(content.images_NCHW)), row_M.numpy())
    epochs = len(found["image"]) // len(row_M)
    if not epochs:
        raise ArtifactError(
            f"{folder}: no view shows every row that stays without one that does not, so that its "
            "labels of views cannot be replayed; keep more rows of a class"
        )
    notes.append(
        f"of the labels of views those whose images both stay: {epochs} views of every row, of "
        f"{content.relabel.labels // len(content.images_NCHW)}"
    )
    facts = content.relabel.facts | {"epochs": epochs}
    section = content.recipe["relabel"] | {"epochs": epochs, "keep": 1.0}
    labels = labels_of_views(found, facts, content.relabel.constants)
    return replace(kept, relabel=labels), sections | {"relabel": section}


def _labeled(columns: Columns, row_M: np.ndarray[Any, Any]) -> Columns:
    """The views that show rows that stay alone, as epochs that show every row once.

    The e-th epoch has the e-th such view of every row, in the order in which they were labeled;
    what a row has more than the one with the fewest is left out.
    """
    place_N = np.full(int(max(columns["image"].max(), columns["partner"].max())) + 1, -1)
    place_N[row_M] = np.arange(len(row_M))
    image, partner = place_N[columns["image"]], place_N[columns["partner"]]
    usable = np.flatnonzero((image >= 0) & (partner >= 0))
    # of every row its views in order: sorted by the row, views keep theirs
    by_row = usable[np.argsort(image[usable], kind="stable")]
    counts = np.bincount(image[usable], minlength=len(row_M))
    epochs = int(counts.min())
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    chosen = [np.sort(by_row[starts + epoch]) for epoch in range(epochs)]
    order = np.concatenate(chosen) if chosen else np.empty(0, np.int64)
    found = {name: values[order] for name, values in columns.items()}
    found["image"] = image[order].astype(np.int32)
    found["partner"] = partner[order].astype(np.int32)
    found["epoch"] = np.repeat(np.arange(epochs, dtype=np.int32), len(row_M))
    return found
