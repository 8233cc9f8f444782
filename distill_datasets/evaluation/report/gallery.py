"""The images of a set as a page shows them: class by class, each with its label.

Shape suffixes: C channels, H W pixels.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, NamedTuple

from distill_datasets.evaluation.report.subject import Subject, likeliest
from distill_datasets.media.image import png, webp
from distill_datasets.types import Task

if TYPE_CHECKING:
    from torch import Tensor

ENLARGED_SIDE = 64
"""Images of fewer pixels a side are enlarged without smoothing."""
HEAVY_BYTES = 20_000
"""A larger PNG is shown as WebP, which is for the eye alone."""
MOST_PICTURE_BYTES = 4_000_000


class Share(NamedTuple):
    """A class of a label, how much of it there is, in words, and as a share of the longest bar."""

    name: str
    words: str
    share: float


class Shown(NamedTuple):
    """An image, where it is in the set and what its label says."""

    uri: str
    row: int
    shares: list[Share]

    @property
    def words(self) -> str:
        """For a reader who does not see it."""
        said = ", ".join(f"{each.name} {each.words}" for each in self.shares)
        return f"row {self.row}: {said}"


class OfClass(NamedTuple):
    """A class and the images shown of it."""

    name: str
    total: int
    images: list[Shown]


class Gallery(NamedTuple):
    """What is shown of a set.

    Attributes:
        classes: those with images.
        shown: how many images.
        total: how many there are.
        empty: names of classes that no image is most of.
        pixelated: whether pixels are enlarged as squares.
        poster: the picture of the trained images as the set has it; None where that is too heavy.
        side: height and width of an example.
        output: what one of its classes is called.
    """

    classes: list[OfClass]
    shown: int
    total: int
    empty: list[str]
    pixelated: bool
    poster: str | None
    side: tuple[int, int]
    output: str


def gallery_of(subject: Subject) -> Gallery | None:
    """The images of a set; None where none can be read."""
    examples, names = subject.examples, subject.class_names
    if examples is None:
        return None
    classes = [
        OfClass(
            name,
            total,
            [
                Shown(
                    uri_of(examples.images[row]),
                    row,
                    [
                        _share(name, value, subject.task)
                        for name, value in likeliest(examples.targets_NK[row], names)
                    ],
                )
                for row in rows
                if row in examples.images
            ],
        )
        for name, rows, total in zip(names, examples.chosen, examples.counts_K, strict=True)
        if any(row in examples.images for row in rows)
    ]
    if not classes:
        return None
    height, width = next(iter(examples.images.values())).shape[1:]
    return Gallery(
        classes,
        sum(len(each.images) for each in classes),
        len(examples.targets_NK),
        [name for name, total in zip(names, examples.counts_K, strict=True) if not total],
        max(height, width) < ENLARGED_SIDE,
        _poster(subject),
        (int(height), int(width)),
        subject.outputs.one,
    )


def _share(name: str, value: float, task: Task) -> Share:
    """A number of a target: of values standard deviations, whose bar ends at two."""
    if task == "values":
        return Share(name, f"{value:+.2f}", min(1.0, abs(value) / 2))
    return Share(name, f"{100 * value:.0f} %", value)


def uri_of(image_CHW: Tensor) -> str:
    """A uint8 image as a `data:` address."""
    encoded, kind = png(image_CHW), "png"
    if len(encoded) > HEAVY_BYTES:
        encoded, kind = webp(image_CHW, 80), "webp"
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode()}"


def _poster(subject: Subject) -> str | None:
    path = subject.folder / "poster.png"
    is_cut = subject.manifest.get("geometry", {}).get("canvas") == "poster"
    if not is_cut or not path.is_file() or path.stat().st_size > MOST_PICTURE_BYTES:
        return None
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
