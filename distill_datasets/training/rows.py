"""The rows of the results: what students are trained on, and its words for a person.

One table for the recipe, the plan, the evaluation, the command line and the card.
"""

from typing import Literal, NamedTuple

Reference = Literal["random_real", "herding", "k_center", "class_mean", "full"]
"""The rows that `evaluate.references` may ask for."""


class ResultRow(NamedTuple):
    """What the students of one row of the results are trained on.

    Attributes:
        name: as `from` in `results.json`.
        printed: in the words of the command line.
        on_card: in the words of the card.
        images: those that are published; real ones of no more pixels; all of the source, for a
            number of epochs of its own; or none, as what is measured was trained elsewhere.
        pair: another row whose students draw the same first weights and see the same images; these
            have labels of the classes alone, where the others have those of teachers.
    """

    name: str
    printed: str
    on_card: str
    images: Literal["published", "equal", "all", "none"]
    pair: str | None = None

    @property
    def classes_alone(self) -> bool:
        """Whether its students have labels of classes even where teachers labeled views."""
        return self.pair is not None or self.images == "all"


ROWS = {
    row.name: row
    for row in (
        ResultRow(
            "default",
            "distilled, as published",
            "**this dataset** (published 8-bit rows)",
            "published",
        ),
        ResultRow(
            "exact",
            "distilled, before rounding to 8 bits",
            "this dataset before rounding (`exact`)",
            "published",
        ),
        ResultRow(
            "start",
            "nothing: the starting weights as they are",
            "nothing: the starting weights as they are",
            "none",
        ),
        ResultRow(
            "hard",
            "distilled, with hard labels",
            "the images of this dataset, labels of classes alone",
            "published",
            pair="default",
        ),
        ResultRow(
            "random_real",
            "random real images, no more pixels",
            "random real images, no more pixels",
            "equal",
        ),
        ResultRow(
            "random_real_hard",
            "random real images, with hard labels",
            "random real images, labels of classes alone",
            "equal",
            pair="random_real",
        ),
        ResultRow(
            "herding",
            "herded real images, no more pixels",
            "herded real images, no more pixels",
            "equal",
        ),
        ResultRow(
            "k_center",
            "k-center real images, no more pixels",
            "k-center real images, no more pixels",
            "equal",
        ),
        ResultRow(
            "class_mean", "class means, no more pixels", "class means, no more pixels", "equal"
        ),
        ResultRow("full", "the whole dataset", "the full source", "all"),
        ResultRow(
            "teacher",
            "nothing: the teachers as they are",
            "nothing: the teachers as they are",
            "none",
        ),
    )
}
"""Every row by its name, in the order of the results."""
