"""The UCI digits on colored ground that goes with the class in training, and not when tested.

As a program it writes the folder that `recipes/domains/groups.yaml` was measured on:
`python tests/support/colored_digits.py FOLDER`.
"""

import sys
from pathlib import Path

import datasets
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

COLORS = {"green": (0, 110, 60), "red": (150, 20, 40)}


def colored_digits(
    train: int = 1400, test: int = 397, together: float = 0.95
) -> datasets.DatasetDict:
    """Even digits lie on red in `together` of the training images and half of the test images.

    Args:
        train: images to train on.
        test: images to test.
        together: the share of training images on the color of their class.
    """
    digits, rng = load_digits(), np.random.default_rng(0)
    order = rng.permutation(len(digits.target))
    names = datasets.ClassLabel(names=[str(label) for label in range(10)])
    colors = datasets.ClassLabel(names=list(COLORS))
    kinds = {"image": datasets.Image(), "label": names, "ground": colors}
    splits = {}
    for split, rows, share in (
        ("train", order[:train], together),
        ("test", order[train : train + test], 0.5),
    ):
        images, grounds = [], []
        for row in rows:
            even = int(digits.target[row] % 2 == 0)
            ground = even if rng.random() < share else 1 - even
            ink_HW1 = digits.images[row][..., None] / 16
            color = np.array(list(COLORS.values())[ground])
            pixels = (255 * ink_HW1 + color * (1 - ink_HW1)).round().astype(np.uint8)
            images.append(Image.fromarray(pixels))
            grounds.append(ground)
        columns = {"image": images, "label": digits.target[rows].tolist(), "ground": grounds}
        splits[split] = datasets.Dataset.from_dict(columns, datasets.Features(kinds))
    return datasets.DatasetDict(splits)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True)
    for name, rows in colored_digits().items():
        rows.to_parquet(folder / f"{name}-00000-of-00001.parquet")
