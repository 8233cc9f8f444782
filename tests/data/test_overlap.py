"""Images in both splits are found by their pixels and by thumbnails, and dropped where asked."""

import io
from collections.abc import Callable

import datasets
import numpy as np
import pytest
from PIL import Image
from support.image_sets import draw, features, png

from distill_datasets.data.overlap import Overlap
from distill_datasets.data.real import Decoded
from distill_datasets.data.source import Source, open_source
from distill_datasets.data.stores import Discarding
from distill_datasets.errors import DataError

KIND = datasets.ClassLabel(names=["cat", "dog"])


def photograph(seed: int, side: int = 32) -> Image.Image:
    """A smooth random color image."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    return coarse.resize((side, side), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image) -> bytes:
    """A lossy copy."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()


def splits(train: list[bytes], test: list[bytes]) -> datasets.DatasetDict:
    """Two splits, classes alternating."""

    def rows(cells: list[bytes]) -> datasets.Dataset:
        content = {
            "image": [{"bytes": cell, "path": None} for cell in cells],
            "label": [row % 2 for row in range(len(cells))],
        }
        return datasets.Dataset.from_dict(content, features=features(KIND))

    return datasets.DatasetDict(train=rows(train), test=rows(test))


TRAIN = [png(photograph(seed)) for seed in range(12)]


def read(test: list[bytes], policy: str = "allow", **fields: int) -> Decoded:
    """Twelve training images and a test split."""
    source = Source(dataset="ignored", overlap=policy, **fields)
    return open_source(source, splits(TRAIN, test)).read(draw)


def counted(decoded: Decoded) -> Overlap:
    """What the provenance says."""
    return Overlap(**decoded.provenance.overlap)


def test_strangers_are_in_one_split_only() -> None:
    strangers = [png(photograph(seed)) for seed in range(100, 110)]
    found = counted(read(strangers))
    assert found == Overlap(identical=0, near=0, test=10)
    assert not found.warned


def test_an_image_in_another_file_format_is_identical_by_its_pixels() -> None:
    buffer = io.BytesIO()
    photograph(3).save(buffer, format="BMP")
    strangers = [png(photograph(seed)) for seed in range(100, 105)]
    found = counted(read([buffer.getvalue(), *strangers]))
    assert found == Overlap(identical=1, near=0, test=6)
    assert found.warned


@pytest.mark.parametrize(
    "change",
    [
        lambda image: Image.open(io.BytesIO(jpeg(image))),
        lambda image: image.point(lambda value: value * 0.8),
        lambda image: image.resize((64, 64), Image.Resampling.BICUBIC),
    ],
    ids=["compressed", "darker", "enlarged"],
)
def test_a_changed_copy_is_near(change: Callable[[Image.Image], Image.Image]) -> None:
    copies = [png(change(photograph(seed))) for seed in (1, 4)]
    strangers = [png(photograph(seed)) for seed in (100, 101)]
    found = counted(read([*copies, *strangers], resolution=32))
    assert found == Overlap(identical=0, near=2, test=4)


def test_blank_images_are_near_to_nothing_but_identical_to_each_other() -> None:
    blank = [png(Image.new("RGB", (32, 32), (value,) * 3)) for value in (0, 90)]
    source = Source(dataset="ignored")
    decoded = open_source(source, splits([*TRAIN, blank[0]], blank)).read(draw)
    assert counted(decoded) == Overlap(identical=1, near=0, test=2)


def test_what_is_in_both_is_dropped_from_training_alone() -> None:
    test = [TRAIN[2], TRAIN[5], png(photograph(100)), jpeg(photograph(7))]
    decoded = read(test, "drop")
    assert counted(decoded) == Overlap(identical=2, near=1, test=4, dropped=3)
    kept = [row for row in range(12) if row not in (2, 5, 7)]
    assert decoded.train.labels_N.tolist() == [row % 2 for row in kept]
    expected = [np.asarray(photograph(row)).transpose(2, 0, 1) for row in kept]
    assert (decoded.train.images_NCHW.numpy() == np.stack(expected)).all()
    assert len(decoded.test.labels_N) == 4


def test_a_refusal_names_the_training_rows() -> None:
    with pytest.raises(
        DataError,
        match=r"source.overlap: 1 of 2 test images are also in training, pixel by pixel, and 0 "
        r"nearly; rows of train: 5; set source.overlap=drop",
    ):
        read([TRAIN[5], png(photograph(100))], "refuse")
    assert len(read([png(photograph(100)), png(photograph(101))], "refuse").train.labels_N) == 12


def test_dropping_the_last_image_of_a_class_is_refused() -> None:
    source = Source(dataset="ignored", overlap="drop")
    with pytest.raises(DataError, match=r"no training image of 1 of 2 classes: dog"):
        open_source(source, splits(TRAIN[:3], [TRAIN[0], TRAIN[1]])).read(draw)


def test_rows_that_cannot_be_used_are_compared_with_nothing() -> None:
    test = [b"no image", TRAIN[1], png(photograph(100))]
    source = Source(dataset="ignored", skip_bad_rows=True, overlap="drop")
    decoded = open_source(source, splits([b"no image", *TRAIN], test)).read(draw)
    assert counted(decoded) == Overlap(identical=1, near=0, test=2, dropped=1)
    assert len(decoded.train.labels_N) == 11


def test_an_overlap_is_counted_without_keeping_pixels() -> None:
    source, rows = Source(dataset="ignored"), splits(TRAIN, [TRAIN[0], TRAIN[1]])
    opened = open_source(source, rows)
    found = opened.read(draw, store=Discarding(frozenset({"train", "test"})))
    assert counted(found) == counted(opened.read(draw)) == Overlap(2, 0, 2)
    assert found.train.images_NCHW.shape == (12, 3, 32, 32)
