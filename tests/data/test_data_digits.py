"""The data set that ships with the package."""

import io

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from sklearn.datasets import load_digits
from support import make_digits
from support.image_sets import draw

from distill_datasets.data.source import Source, open_source
from distill_datasets.types import Shape

DIGITS = Source(dataset="embedded:uci-digits")


def test_the_shipped_rows_are_those_of_scikit_learn() -> None:
    shipped, digits = pq.read_table(make_digits.TARGET), load_digits()
    images = [
        np.asarray(Image.open(io.BytesIO(cell["bytes"])))
        for cell in shipped.column("image").to_pylist()
    ]
    assert np.array_equal(np.stack(images), np.rint(digits.images * 255 / 16))
    assert shipped.column("label").to_pylist() == digits.target.tolist()


def test_making_the_file_again_gives_the_same_rows_and_schema() -> None:
    shipped = pq.read_table(make_digits.TARGET)
    made = pq.read_table(io.BytesIO(make_digits.make()))
    assert made.equals(shipped, check_metadata=True)


def test_the_metadata_reads_in_every_version_of_datasets() -> None:
    metadata = pq.read_schema(make_digits.TARGET).metadata[b"huggingface"]
    assert b'"_type": "ClassLabel"' in metadata
    assert b"List" not in metadata


def test_peek_and_read_agree_on_the_shape() -> None:
    shape, names = open_source(DIGITS).peek()
    decoded = open_source(DIGITS).read(draw)
    assert shape == decoded.shape == Shape(1, 8, 8, 10)
    assert names == decoded.class_names == [str(digit) for digit in range(10)]


def test_a_fifth_of_each_class_is_cut_off_for_test() -> None:
    decoded = open_source(DIGITS).read(draw)
    train_K, test_K = (
        torch.bincount(split.labels_N, minlength=10) for split in (decoded.train, decoded.test)
    )
    assert (train_K + test_K).tolist() == np.bincount(load_digits().target).tolist()
    assert test_K.tolist() == [round(0.2 * count) for count in (train_K + test_K).tolist()]


def test_the_provenance_names_license_and_origin() -> None:
    provenance = open_source(DIGITS).provenance
    assert provenance.dataset == "embedded:uci-digits"
    assert provenance.license == "cc-by-4.0"
    assert provenance.card_url == "https://doi.org/10.24432/C50P49"
    assert [file.path for file in provenance.files] == ["digits.parquet"]
