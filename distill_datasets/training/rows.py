"""The rows of the results: whatever students are trained on, and its words for a person.

One table for the recipe, the plan, the evaluation, the command line and the card.
"""

from typing import Literal, NamedTuple, get_args

Reference = Literal["random_real", "herding", "k_center", "class_mean", "full"]
"""The rows that `evaluate.references` may ask for."""


class Row(NamedTuple):
    """What the students of one row of the results are trained on.

    Attributes:
        name: as `from` in `results.json`.
        printed: in the words of the command line.
        on_card: in the words of the card.
        classes_alone: whether its students have labels of classes even where a teacher labeled
            views.
    """

    name: str
    printed: str
    on_card: str
    classes_alone: bool = False

    @property
    def is_reference(self) -> bool:
        """Whether the recipe asks for it by `evaluate.references`."""
        return self.name in get_args(Reference)


ROWS = {
    row.name: row
    for row in (
        Row("default", "distilled, as published", "**this dataset** (published 8-bit rows)"),
        Row(
            "exact",
            "distilled, before rounding to 8 bits",
            "this dataset before rounding (`exact`)",
        ),
        Row("start", *2 * ("nothing: the starting weights as they are",)),
        Row(
            "hard",
            "distilled, with hard labels",
            "the images of this dataset, labels of classes alone",
            classes_alone=True,
        ),
        Row("random_real", *2 * ("random real images, no more pixels",)),
        Row(
            "random_real_hard",
            "random real images, with hard labels",
            "random real images, labels of classes alone",
            classes_alone=True,
        ),
        Row("herding", *2 * ("herded real images, no more pixels",)),
        Row("k_center", *2 * ("k-center real images, no more pixels",)),
        Row("class_mean", *2 * ("class means, no more pixels",)),
        Row("full", "the whole dataset", "the full source", classes_alone=True),
        Row("teacher", *2 * ("nothing: the teachers as they are",)),
    )
}
"""Every row by its name, in the order of the results."""
