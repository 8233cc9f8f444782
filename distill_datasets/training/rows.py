"""The rows of the results: what students are trained on, and its words for a person.

One table for the recipe, the plan, the evaluation, the command line and the card.
"""

from typing import Literal, NamedTuple

Reference = Literal[
    "random_real", "herding", "k_center", "nearest", "class_mean", "k_means", "webp", "full"
]
"""The rows that `evaluate.references` may ask for."""
Images = Literal["published", "equal", "values", "bytes", "rows", "all", "none"]
"""Whose images: those that are published; real ones of no more pixels, shrunk where they are fewer
than classes; of no more values, labels included; of no more bytes; as many as rows are published;
all of the source, for epochs of their own; or none, as what is measured is trained by nobody
here."""
Regime = Literal["HL", "SL-1", "SL-R", "SL+KD"]
"""What a student may read beside the images."""
REGIMES: dict[Regime, str] = {
    "HL": "hard labels",
    "SL-1": "one soft label an image",
    "SL-R": "recorded views with a teacher's labels",
    "SL+KD": "a teacher at training time",
}


class ResultRow(NamedTuple):
    """What the students of one row of the results are trained on.

    Attributes:
        name: as `from` in `results.json`.
        images: whose images they see.
        printed: in the words of the command line.
        on_card: in the words of the card.
        pair: another row whose students begin with the same weights and see the same images at the
            same steps, rounded to 8 bits or with other labels.
        hard: whether labels are of the classes alone where those of the pair are of teachers.
    """

    name: str
    images: Images
    printed: str
    on_card: str
    pair: str | None = None
    hard: bool = False

    @property
    def classes_alone(self) -> bool:
        """Whether its students have labels of classes even where teachers labeled views."""
        return self.hard or self.images == "all"


def _row(
    name: str,
    images: Images,
    printed: str,
    on_card: str | None = None,
    pair: str | None = None,
    *,
    hard: bool = False,
) -> ResultRow:
    return ResultRow(name, images, printed, on_card or printed, pair, hard)


ROWS = {
    row.name: row
    for row in (
        _row(
            "default", "published", "distilled, as published",
            "**this dataset** (published 8-bit rows)",
        ),
        _row(
            "exact", "published", "distilled, before rounding to 8 bits",
            "this dataset before rounding (`exact`)", pair="default",
        ),
        _row("start", "none", "nothing: the starting weights as they are"),
        _row(
            "hard", "published", "distilled, with hard labels",
            "the images of this dataset, labels of classes alone", pair="default", hard=True,
        ),
        _row("random_real", "equal", "random real images, no more pixels"),
        _row(
            "random_real_hard", "equal", "random real images, with hard labels",
            "random real images, labels of classes alone", pair="random_real", hard=True,
        ),
        _row("herding", "equal", "herded real images, no more pixels"),
        _row("k_center", "equal", "k-center real images, no more pixels"),
        _row(
            "nearest", "equal", "real images nearest to class centers, no more pixels",
            "real images nearest to the centers of each class, no more pixels",
        ),
        _row("class_mean", "equal", "class means, no more pixels"),
        _row("k_means", "equal", "twice as many k-means centers, shrunk, no more pixels"),
        _row(
            "forgetting", "equal", "real images by forgetting, stratified (CCS), no more pixels"
        ),
        _row("el2n", "equal", "real images by EL2N, stratified (CCS), no more pixels"),
        _row("easy", "equal", "easy real images (low EL2N), no more pixels"),
        _row("rded", "equal", "crops that a network recognizes best (RDED), no more pixels"),
        _row("random_rows", "rows", "random real images, one of its class for every row"),
        _row("random_values", "values", "random real images, no more values"),
        _row("jpeg", "bytes", "random real images as JPEG, no more bytes"),
        _row("webp", "bytes", "random real images as lossy WebP, no more bytes"),
        _row("webp_half", "bytes", "random real images as WebP at half size, no more bytes"),
        _row("full", "all", "the whole dataset", "the full source"),
        _row("teacher", "none", "nothing: the teachers as they are"),
    )
}  # fmt: skip
"""Every row by its name, in the order of the results."""
