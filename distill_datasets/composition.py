"""What is in a match batch: pieces of the class-major distilled set, enumerated from the recipe.

Which images share their statistics decides what these can be, so nothing here knows of processes.
"""

from typing import Literal

from distill_datasets.distilled import Block
from distill_datasets.errors import RecipeError

Composition = Literal["across", "within", "class_major"]


def match_blocks(
    composition: Composition, match_batch: int | None, classes: int, per_class: int
) -> list[Block]:
    """Every place of the distilled set in exactly one block; all blocks are of one size.

    Args:
        composition: `across`: one image of every class, then the next one of every class, cut into
            batches, so that a batch has each class at most once, or each equally often; `within`:
            images of one class alone; `class_major`: class after class, cut into batches.
        match_batch: images of a block; None: one of every class, or all of one class.
        classes: number of classes.
        per_class: images of each.

    Raises:
        RecipeError: the images do not fall into whole blocks of equal composition.

    Source: SRe2L (arXiv:2306.13092), LPLD (arXiv:2410.15919) and G-VBSM (arXiv:2311.17950).
    """
    if match_batch is None:
        match_batch = classes if composition == "across" else per_class
    images = classes * per_class
    if composition == "across":
        order = [label * per_class + turn for turn in range(per_class) for label in range(classes)]
        fits = images % match_batch == 0 and (match_batch <= classes or match_batch % classes == 0)
        wanted = f"a divisor of the {images} images"
        wanted += f" that is at most {classes} or a multiple of it, the number of classes"
    else:
        order = list(range(images))
        whole = per_class if composition == "within" else images
        fits = whole % match_batch == 0
        what = "images of a class" if composition == "within" else "images"
        wanted = f"a divisor of the {whole} {what}"
    if not fits:
        raise RecipeError(
            f"distill.objective.match_batch: got {match_batch} with classes: {composition!r}, "
            f"expected {wanted}, so that every batch is matched alike; change it or "
            "distill.canvas.ipc"
        )
    return [
        Block(tuple(order[start : start + match_batch])) for start in range(0, images, match_batch)
    ]
