"""Every Parquet file and every tar is in exactly one split; names say which only where all do."""

from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.image_sets import draw, gray, png, values

from distill_datasets.data.source import Source, open_source
from distill_datasets.data.tables import split_files
from distill_datasets.errors import DataError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        # a word in a name makes no split
        (["part cat 1", "part dog 2", "part train 3"], {"train": 3}),
        (["night train 1", "night train 2"], {"train": 2}),
        (["part-train-3", "part-cat-1", "part-dog-2"], {"train": 3}),
        (["contest_a", "validated", "training day"], {"train": 3}),
        (["0000", "0001"], {"train": 2}),
        (["data-00000-of-00002", "data-00001-of-00002"], {"train": 2}),
        # as on the Hub
        (["data/train-00000-of-00001", "data/test-00000-of-00001"], {"train": 1, "test": 1}),
        (["train-00000-of-00002-9f3b2c1d", "train-00001-of-00002-9f3b2c1d"], {"train": 2}),
        (["train", "validation"], {"train": 1, "validation": 1}),
        (["Train", "TEST"], {"train": 1, "test": 1}),
        (["train_1", "train_2", "val_1"], {"train": 2, "validation": 1}),
        (["train 1", "train 2", "test 1"], {"train": 2, "test": 1}),
        (["data/val-00000-of-00001", "data/train-00000-of-00001"], {"val": 1, "train": 1}),
        (["train-00000-of-00001", "dev.clean-00000-of-00001"], {"train": 1, "dev.clean": 1}),
        (["mnist/train-00000-of-00001", "mnist/test-00000-of-00001"], {"train": 1, "test": 1}),
        # one beginning
        (["imagenet1k-train-0000", "imagenet1k-validation-00"], {"train": 1, "validation": 1}),
        (["mnist-train", "mnist-test"], {"train": 1, "test": 1}),
        # folders of the top level
        (["train/a", "train/b", "test/a"], {"train": 2, "test": 1}),
        (["data/Training/a", "data/eval/train"], {"train": 1, "test": 1}),
        (["default/train/0000", "default/test/0000"], {"train": 1, "test": 1}),
        (["train/part test 1", "train/part cat 2"], {"train": 2}),
    ],
)
def test_names_that_agree_make_splits(files: list[str], expected: dict[str, int]) -> None:
    paths = [f"{file}.parquet" for file in files]
    splits = split_files(paths)
    assert {split: len(group) for split, group in splits.items()} == expected
    assert sorted(path for group in splits.values() for path in group) == sorted(paths)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["train", "test", "extra"], r"2 of 3 files are called like a split .* not: 'extra.tar'"),
        (["train-00000-of-00001", "other"], r"1 of 2 files are called like a split"),
        (["train/a", "b"], r"1 of 2 files are in a folder that is called like a split .*'b.tar'"),
        (["train/a", "test/a", "more/a"], r"these are not: 'more/a.tar'; give them such a name"),
        (["cat-train-1", "dog-test-1"], r"files begin differently and name several splits"),
    ],
)
def test_names_that_disagree_are_refused(files: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        split_files([f"{file}.tar" for file in files])


def write(path: Path, first: int, count: int = 4) -> None:
    """A Parquet file as Spark writes one, its rows with the values from `first` on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [png(gray(first + row)) for row in range(count)]
    pq.write_table(pa.table({"image": cells, "label": [row % 2 for row in range(count)]}), path)


def test_all_rows_of_all_files_are_read_and_told(tmp_path: Path) -> None:
    root = tmp_path / "set[1] *"
    for place, name in enumerate(["part cat 1", "part dog 2", "part train 3 [x]"]):
        write(root / f"{name}.parquet", 10 * place)
    (root / "notes.txt").write_text("x")
    opened = open_source(Source(dataset=str(root)))
    decoded = opened.read(draw)
    everything = values(decoded.train.images_NCHW) + values(decoded.test.images_NCHW)
    assert sorted(everything) == [10 * place + row for place in range(3) for row in range(4)]
    assert opened.account is not None
    assert list(opened.account.lines()) == [
        "train: 12 images of part cat 1.parquet, part dog 2.parquet, part train 3 [x].parquet",
        "no images: 1 .txt",
    ]
    assert opened.account.found == 3


def test_two_kinds_of_files_in_one_folder_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "pets" / "train.parquet", 0)
    (tmp_path / "pets" / "train.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"files of several kinds, for example 'train.parquet', 't"):
        open_source(Source(dataset=str(tmp_path / "pets"))).peek()


def test_two_files_whose_columns_differ_are_named(tmp_path: Path) -> None:
    write(tmp_path / "pets" / "a.parquet", 0)
    words = pa.table({"image": [png(gray(9))] * 2, "label": ["cat", "dog"]})
    pq.write_table(words, tmp_path / "pets" / "b.parquet")
    with pytest.raises(
        DataError,
        match=r"as one table: the column 'label' is int64 in 'a.parquet' and string in "
        r"'b.parquet'; write them with the same columns",
    ):
        open_source(Source(dataset=str(tmp_path / "pets"))).read(draw)
