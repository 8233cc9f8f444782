"""Sets of image files with labels: folders of classes, Parquet files, and datasets on the Hub.

Folders are those of SRe2L and its descendants (`new000/class000_id000.jpg`), RDED
(`00000/class00000_id00000.jpg`), Minimax (`n01440764/0.png`) and whoever else writes a folder for
each class. Tables have a column of images, and one of classes or of a list of shares.

Shape suffixes: N training examples, K classes, C channels, H W pixels.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from distill_datasets.data import columns, image_columns, rows
from distill_datasets.data.account import Account
from distill_datasets.data.decoding import Agreement, SplitRows, Table, first_shape
from distill_datasets.data.opening import Place
from distill_datasets.data.provenance import SourceFile, local_files
from distill_datasets.data.stores import InMemory
from distill_datasets.errors import ArtifactError, DataError
from distill_datasets.hub import pinned as hub
from distill_datasets.layouts.outside import Outside, checked_shares
from distill_datasets.runtime.progress import progress_bar

if TYPE_CHECKING:
    from torch import Tensor

FOLDERS, TABLE, HUB = "imagefolder", "parquet", "hub"
SHARES = ("soft_label", "soft_labels", "probabilities", "probs")
"""Columns of these names hold shares of the classes where they are lists of floats."""
LISTED = 5
_OF_SOURCE = re.compile(r"\bsource\.(dataset|image_column|label_column|config)\b:? ?")
_ONLY_NUMBERED = re.compile(r"(?:new|class)?_?\d+")


def is_folder_of_images(path: Path) -> bool:
    """Whether a folder holds images below it, and no tables."""
    return path.is_dir() and Place(str(path), path).images is not None


def is_table(path: Path) -> bool:
    """Whether a file is Parquet, or a folder holds such files."""
    files = [path] if path.is_file() else local_files(path) if path.is_dir() else []
    return any(file.suffix == ".parquet" for file in files)


def numbered(names: Sequence[str]) -> bool:
    """Whether classes have numbers in place of names, as folders of distilled sets often do."""
    return all(_ONLY_NUMBERED.fullmatch(name) for name in names)


def read_rows(
    dataset: str,
    path: Path | None,
    config: str | None = None,
    revision: str | None = None,
    files: tuple[SourceFile, ...] = (),
) -> Outside:
    """All labeled images of a folder, of Parquet files, or of a Hub dataset.

    Args:
        dataset: as the user wrote it.
        path: where it lies; None is on the Hub.
        config: which config of it; None where there is one.
        revision: the commit on the Hub.
        files: those that the Hub lists at this commit.

    Raises:
        ArtifactError: no images, or several sizes, or rows that cannot be used.
    """
    place = Place(dataset, path, config, revision, files)
    try:
        splits, account = place.open()
        _refuse_left_out(account, dataset)
        split = "train" if "train" in splits else _only(splits, dataset)
        table = Table(split, splits[split], place.image_files, place.explained)
        images_NCHW, targets_NK, names, notes = _read(table, splits[split])
    except DataError as error:
        raise ArtifactError(f"{dataset}: {_OF_SOURCE.sub('', str(error))}") from error
    layout = HUB if path is None else FOLDERS if place.images is not None else TABLE
    root = None if path is None else path.parent if path.is_file() else path
    others = sorted(splits.keys() - {split})
    if others:
        notes.append(f"the split {split} was taken, and {', '.join(others)} left")
    return Outside(
        layout,
        images_NCHW,
        targets_NK,
        names,
        [] if path is None else local_files(path),
        notes=notes,
        license=None if root is None else hub.license_in_card(root),
    )


def _refuse_left_out(account: Account | None, dataset: str) -> None:
    if account is not None:
        account.refuse_left_out(dataset)


def _only(splits: dict[str, Any], dataset: str) -> str:
    if len(splits) == 1:
        return next(iter(splits))
    raise DataError(
        f"{dataset!r} has the splits {', '.join(splits)} and none is called train, which a "
        "distilled set is; keep one of them"
    )


def _read(
    table: Table,
    undecoded: Any,  # noqa: ANN401
) -> tuple[Tensor, Tensor, list[str], list[str]]:
    """Images, targets, names of the classes, and what was done."""
    image = image_columns.image_column(table.features, None, table.holds_images)
    shares = [name for name in SHARES if _is_list(table.features.get(name))]
    label = None if shares else columns.label_column(table.features, None)
    notes = list[str]()
    if label is not None:
        values = list(
            itertools.chain.from_iterable(
                table.labels(label, piece) for piece in range(table.pieces)
            )
        )
        classes = columns.class_table(columns.flat(table.features)[label], values, None)
        chosen = rows.labeled(values, classes)
        names = classes.names
    else:
        shares_NK = _column(undecoded, shares[0])
        names = _names_beside(table, shares_NK.shape[1])
        chosen = [rows.Row(number, 0) for number in range(len(shares_NK))]
        notes.append(f"labels are the shares in the column {shares[0]}")
    images_NCHW = _decoded(table, image, chosen)
    if label is None:
        return images_NCHW, checked_shares(shares_NK, len(chosen), None, shares[0]), names, notes
    targets_NK = torch.zeros(len(chosen), len(names), dtype=torch.uint8)
    label_N = torch.tensor([int(row.label) for row in chosen])
    return images_NCHW, targets_NK.scatter_(1, label_N[:, None], 1), names, notes


def _decoded(table: Table, image: str, chosen: list[rows.Row]) -> Tensor:
    """All images (N, C, H, W) in 8 bits; every row has to be usable."""
    mode = image_columns.image_mode(table.features[image])
    agreement = Agreement(None, None, mode, None, "white")
    shape = first_shape(table, image, agreement)
    part, store = SplitRows("train", table, chosen, [len(chosen)]), InMemory()
    with progress_bar("import", len(chosen), shown=len(chosen) > 1000) as bar:
        done = 0

        def report(reached: int) -> None:
            nonlocal done
            bar.advance(reached - done)
            done = reached

        read = part.read(image, agreement, shape, store, report)
    if read.bad:
        listed = "; ".join(f"row {row.row}: {row.reason}" for row in read.bad[:LISTED])
        raise DataError(
            f"{len(read.bad)} of {len(chosen)} rows cannot be used: {listed}; mend or remove them: "
            "a distilled set is small, and none of it is left out silently"
        )
    return part.finished(read.kept_N, store).images_NCHW


def _is_list(feature: Any) -> bool:  # noqa: ANN401
    inner = getattr(feature, "feature", None)
    return str(getattr(inner, "dtype", "")).startswith("float")


def _column(table: Any, name: str) -> Tensor:  # noqa: ANN401
    """A column of lists of floats, (N, K)."""
    lists = table.with_format(None).select_columns([name])[name][:]
    lengths = {len(row or []) for row in lists}
    if len(lengths) != 1:
        raise DataError(
            f"the column {name!r} has lists of {min(lengths)} to {max(lengths)} numbers, expected "
            "one for every class in each row"
        )
    return torch.from_numpy(np.array(lists, dtype=np.float32))


def _names_beside(table: Table, classes: int) -> list[str]:
    """The names that a ClassLabel column beside the shares declares; else numbers."""
    for feature in table.features.values():
        names = columns.class_names(feature)
        if names is not None and len(names) == classes:
            return names
    return [str(label) for label in range(classes)]
