"""How many rows of each class are read, and what is refused of classes without any.

Nothing here decodes an image: labels are enough.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from distill_datasets.data import columns
from distill_datasets.data.rows import Row
from distill_datasets.errors import DataError
from distill_datasets.types import Task

logger = logging.getLogger("distill_datasets")

LISTED_CLASSES = 20


class RowCount(NamedTuple):
    """The rows that are read for training or for testing: of which split, how many of each class.

    `unusable` counts those without a usable label.
    """

    split: str
    images: int
    classes: dict[str, int]
    unusable: int

    def __str__(self) -> str:
        shown = [f"{name} {count:,}" for name, count in self.classes.items()]
        more = "" if len(shown) <= LISTED_CLASSES else f", ... ({len(shown)} classes)"
        images = f"{self.images:,} image{'s' * (self.images != 1)} of {self.split}"
        return f"{images}: {', '.join(shown[:LISTED_CLASSES])}{more}" if shown else images


def count_rows(
    split: str, chosen: Sequence[Row], names: Sequence[str], task: Task = "classes"
) -> RowCount:
    """Count the chosen rows of a split.

    Args:
        split: what it is called.
        chosen: its rows, those without a usable label included.
        names: of the classes.
        task: where it is labels, an image counts for all of its own; where it is values, for none.
    """
    labels = Counter(row.label for row in chosen if isinstance(row.label, int))
    images = labels.total()
    if task == "classes":
        own = {name: labels[place] for place, name in enumerate(names)}
    elif task == "labels":
        targets = [row.target for row in chosen if row.target is not None]
        own = {
            name: sum(target[place] > 0.5 for target in targets) for place, name in enumerate(names)
        }
    else:
        own = {}
    return RowCount(split, images, own, len(chosen) - images)


def _absent(labels: Iterable[int], names: list[str]) -> list[str]:
    present = set(labels)
    return [name for label, name in enumerate(names) if label not in present]


def check_trained(labels: Iterable[int], names: list[str]) -> None:
    """Refuse classes without a training image."""
    untrained = set(_absent(labels, names))
    present = [name for name in names if name not in untrained]
    if len(untrained) > len(present) > 1:
        raise DataError(
            f"no training image of {len(untrained)} of {len(names)} classes; images are there of "
            f"{len(present)}; keep these with this line under source:\n"
            f"  {columns.line_that_keeps(present)}"
        )
    if untrained:
        absent = [name for name in names if name in untrained]
        raise DataError(
            f"no training image of {len(absent)} of {len(names)} classes: "
            f"{', '.join(absent[:LISTED_CLASSES])}{', ...' if len(absent) > LISTED_CLASSES else ''}"
            "; name the classes to use in source.classes, or raise source.limit"
        )


def check_tested(labels: Iterable[int], names: list[str], cut: bool) -> None:
    """Refuse when nothing can be tested; say which classes cannot.

    Args:
        labels: of the test rows.
        names: of the classes.
        cut: whether the test rows are cut off from those for training.
    """
    untested = _absent(labels, names)
    if len(untested) == len(names) and cut:
        raise DataError(
            "a class with one image leaves no test image, and every class has only one; add images "
            "to at least one class, or images of these classes as a split called test"
        )
    if len(untested) == len(names):
        raise DataError(
            "no test image is left; set source.test_split to a split whose rows have labels"
        )
    if untested:
        logger.warning(
            "no test image of %d of %d classes: %s; accuracy says nothing about them",
            len(untested),
            len(names),
            ", ".join(untested[:LISTED_CLASSES]),
        )
