"""Real images as WebP fill the bytes of the published images, and test images do not choose how.

Shape suffixes: N images, C channels, H W pixels, K classes.
"""

import dataclasses
from pathlib import Path

import pytest
import torch
from support.sample_content import sample
from support.tiny import toy_real

from distill_datasets.data.decoding import Split
from distill_datasets.evaluation import lossy
from distill_datasets.evaluation.baselines import baselines
from distill_datasets.evaluation.held_out import nearest_neighbor_accuracy
from distill_datasets.evaluation.lossy import Lossy
from distill_datasets.evaluation.protocol import Evaluate
from distill_datasets.export.folder import write_dataset
from distill_datasets.export.reading import image_bytes, load_rows
from distill_datasets.media.image import open_image, to_pixels, webp
from distill_datasets.runtime.draws import draws
from distill_datasets.training.examples import Stored, Whole
from distill_datasets.types import Shape

REAL = toy_real()


@pytest.mark.parametrize("channels", [1, 3])
def test_the_bytes_of_the_published_images_are_those_of_their_files(
    tmp_path: Path, channels: int
) -> None:
    write_dataset(tmp_path / "data", sample(channels=channels), None)
    from datasets import Image

    rows = load_rows(tmp_path / "data", "default").cast_column("image", Image(decode=False))
    assert image_bytes(tmp_path / "data") == sum(len(row["image"]["bytes"]) for row in rows)


@pytest.mark.parametrize("shape", [Shape(1, 8, 8, 3), Shape(3, 16, 24, 4)])
def test_every_class_is_shown_and_the_bytes_are_filled(
    monkeypatch: pytest.MonkeyPatch, shape: Shape
) -> None:
    real = toy_real(shape)
    reference = Lossy(real, 6000, 0)
    weights = list[int]()
    files = lossy._files

    def weighed(*asked: object) -> list[bytes]:
        found = files(*asked)  # type: ignore[arg-type]
        weights.append(sum(map(len, found)))
        return found

    form = reference.form
    monkeypatch.setattr(lossy, "_files", weighed)
    for student in range(3):
        stored = reference.examples()(draws(student, "x"))
        images_NCHW, targets_NK = stored(torch.arange(stored.count))
        counts = targets_NK.sum(dim=0).tolist()
        assert images_NCHW.shape[1:] == (shape.c, shape.h, shape.w)
        assert len(set(counts)) == 1 and form.per_class - 2 <= counts[0] <= form.per_class
        assert stored.count * weights[-1] / (form.per_class * shape.k) <= 6000 * 1.02
    assert reference.room.images == form.per_class * shape.k
    one = Lossy(real, 10, 0).form  # not even one of each class fits
    assert one.per_class == 1 and one.quality == min(lossy.QUALITIES)


def test_a_file_is_a_webp_of_its_quality_that_reads_back_nearly_alike() -> None:
    image_CHW = REAL.train.images_NCHW[0]
    for image in (image_CHW, image_CHW.expand(3, -1, -1)):
        good, bad = webp(image, 90), webp(image, 5)
        assert good[:4] == b"RIFF" and good[8:12] == b"WEBP" and len(bad) < len(good)
        back = to_pixels(open_image(good), len(image), None)  # type: ignore[arg-type]
        assert (back.float() - image.float()).abs().mean() < 12


def test_nearest_neighbors_of_the_training_images_are_themselves() -> None:
    same = dataclasses.replace(REAL, test=REAL.train)
    rows_N = torch.arange(len(REAL.train.labels_N))
    batch = Whole(REAL)(rows_N)
    stored = Stored(batch.images_BCHW, batch.targets_BK, None)
    assert nearest_neighbor_accuracy(stored, same) == 1
    turned = dataclasses.replace(stored, targets_NK=batch.targets_BK.roll(1, dims=1))
    assert nearest_neighbor_accuracy(turned, same) == 0


def test_test_images_have_no_say_in_the_form() -> None:
    other = Split(REAL.test.images_NCHW.flip(0), REAL.test.labels_N.roll(7))
    forms = [Lossy(real, 6000, 0).form for real in (REAL, dataclasses.replace(REAL, test=other))]
    assert forms[0] == forms[1]


def test_the_row_says_its_bytes_and_its_size(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", sample(channels=1), None)
    settings = Evaluate(steps=1, references=["webp"])
    (found,) = [
        one
        for one in baselines(settings, tmp_path / "data", REAL, 168, 0)
        if one.row.name == "webp"
    ]
    assert found.bytes == image_bytes(tmp_path / "data") and found.size is not None
    assert found.pixels == found.images * found.size[0] * found.size[1]
