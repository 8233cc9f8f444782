"""Every kind of source gives the same two splits; what was read can be cached and handed on."""

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.image_sets import both, dataset, draw, features, gray, png, values

from distill_datasets.data.normalization import Normalization
from distill_datasets.data.real import Decoded, RealData
from distill_datasets.data.source import Source, open_source
from distill_datasets.errors import DataError
from distill_datasets.types import Shape


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def read_path(path: Path, **fields: Any) -> Decoded:  # noqa: ANN401
    """Read a local folder; `peek` must agree."""
    source = Source(dataset=str(path), **fields)
    opened = open_source(source)
    decoded = opened.read(draw)
    assert opened.peek() == (decoded.shape, decoded.class_names)
    return decoded


def write_parquet(folder: Path) -> None:
    """Both splits as Parquet files without a card."""
    folder.mkdir(parents=True)
    for split, rows in both().items():
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")


def write_images(folder: Path) -> None:
    """One folder for each split and class."""
    for split, rows in both().items():
        for row, cell in enumerate(rows):
            place = folder / split / rows.features["label"].int2str(cell["label"])
            place.mkdir(parents=True, exist_ok=True)
            cell["image"].save(place / f"{row}.png")


def write_saved(folder: Path) -> None:
    """What `save_to_disk` writes."""
    both().save_to_disk(folder)


def write_shards(folder: Path, label: Callable[[int], tuple[str, bytes]]) -> None:
    """WebDataset tars, a label file beside each image."""
    folder.mkdir()
    for split, rows in both().items():
        with tarfile.open(folder / f"{split}-000.tar", "w") as tar:
            for row, cell in enumerate(rows):
                name, content = label(cell["label"])
                for suffix, data in (("png", png(cell["image"])), (name, content)):
                    member = tarfile.TarInfo(f"{row:04d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def write_cls_shards(folder: Path) -> None:
    """Labels as `cls` files."""
    write_shards(folder, lambda label: ("cls", str(label).encode()))


def write_json_shards(folder: Path) -> None:
    """Labels inside `json` files."""
    write_shards(folder, lambda label: ("json", json.dumps({"label": label, "size": 2}).encode()))


@pytest.mark.parametrize(
    ("write", "names"),
    [
        (write_parquet, ["cat", "dog"]),
        (write_images, ["cat", "dog"]),
        (write_saved, ["cat", "dog"]),
        (write_cls_shards, ["0", "1"]),
        (write_json_shards, ["0", "1"]),
    ],
)
def test_a_local_folder_of_any_kind_is_read(
    tmp_path: Path, write: Callable[[Path], None], names: list[str]
) -> None:
    write(tmp_path / "pets")
    decoded = read_path(tmp_path / "pets")
    assert decoded.class_names == names
    rows = sorted(
        zip(values(decoded.train.images_NCHW), decoded.train.labels_N.tolist(), strict=True)
    )
    assert rows == [(0, 0), (1, 1), (2, 0), (3, 1)]
    assert sorted(values(decoded.test.images_NCHW)) == [100, 101]
    assert decoded.provenance.splits == {"train": 4, "test": 2}
    assert decoded.provenance.dataset == "pets"
    assert all(len(file.sha256) == 64 for file in decoded.provenance.files)


def test_a_single_parquet_file_is_one_split_with_test_cut_off(tmp_path: Path) -> None:
    dataset([0, 1] * 5).to_parquet(tmp_path / "pets.parquet")
    decoded = read_path(tmp_path / "pets.parquet")
    assert decoded.train.labels_N.bincount().tolist() == [4, 4]
    assert decoded.test.labels_N.bincount().tolist() == [1, 1]


def test_a_single_saved_dataset_is_one_split(tmp_path: Path) -> None:
    dataset([0, 1] * 5).save_to_disk(tmp_path / "pets")
    assert len(read_path(tmp_path / "pets").train.labels_N) == 8


def test_a_card_with_configs_is_followed(tmp_path: Path) -> None:
    for config, first in (("small", 10), ("large", 20)):
        (tmp_path / "pets" / config).mkdir(parents=True)
        rows = dataset([0, 1] * 5, first_value=first)
        rows.to_parquet(tmp_path / "pets" / config / "train.parquet")
    (tmp_path / "pets" / "README.md").write_text(
        "---\nlicense: mit\nconfigs:\n"
        "- config_name: small\n  data_files: small/*.parquet\n"
        "- config_name: large\n  data_files: large/*.parquet\n---\n"
    )
    decoded = read_path(tmp_path / "pets", config="large")
    assert min(values(torch.cat([decoded.train.images_NCHW, decoded.test.images_NCHW]))) == 20
    assert decoded.provenance.license == "mit"
    with pytest.raises(DataError, match=r"no config 'larg'; did you mean 'large'"):
        read_path(tmp_path / "pets", config="larg")
    with pytest.raises(DataError, match=r"has several; set it to one of: (small, large|large, sm)"):
        read_path(tmp_path / "pets")


def test_two_folders_of_the_same_name_keep_their_own_rows(tmp_path: Path) -> None:
    for place, first in (("a", 0), ("b", 50)):
        (tmp_path / place / "pets").mkdir(parents=True)
        rows = dataset([0, 1] * 5, first_value=first)
        rows.to_parquet(tmp_path / place / "pets" / "train.parquet")
    first, second = (read_path(tmp_path / place / "pets") for place in ("a", "b"))
    assert max(values(first.train.images_NCHW)) < 50 <= min(values(second.train.images_NCHW))


def test_a_folder_whose_files_change_is_read_anew(tmp_path: Path) -> None:
    (tmp_path / "pets").mkdir()
    dataset([0, 1] * 5).to_parquet(tmp_path / "pets" / "train.parquet")
    before = read_path(tmp_path / "pets")
    dataset([0, 1] * 6, first_value=50).to_parquet(tmp_path / "pets" / "train.parquet")
    after = read_path(tmp_path / "pets")
    assert len(before.train.labels_N) == 8
    assert min(values(after.train.images_NCHW)) >= 50
    assert before.provenance.identity() != after.provenance.identity()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda splits: splits,
        lambda splits: datasets.IterableDatasetDict(
            {name: rows.to_iterable_dataset() for name, rows in splits.items()}
        ),
        lambda splits: splits.with_format("torch"),
        lambda splits: splits.with_transform(lambda batch: {"nothing": [0] * len(batch["label"])}),
    ],
    ids=["dict", "iterable", "torch format", "transform"],
)
def test_objects_from_python_are_read_whatever_their_format(wrap: Callable[[Any], Any]) -> None:
    source, splits = Source(dataset="ignored"), wrap(both())
    decoded = open_source(source, splits).read(draw)
    assert values(decoded.train.images_NCHW) == [0, 1, 2, 3]
    assert values(decoded.test.images_NCHW) == [100, 101]
    assert open_source(source, splits).peek() == (Shape(1, 2, 2, 2), ["cat", "dog"])


def test_a_generator_function_is_read_twice_and_limited() -> None:
    def rows() -> Iterator[dict[str, Any]]:
        for row in range(20):
            yield {"image": gray(row), "label": row % 2}

    stream = datasets.IterableDataset.from_generator(
        rows, features=features(datasets.ClassLabel(names=["cat", "dog"]))
    )
    source = Source(dataset="ignored", limit=6)
    decoded = open_source(source, stream).read(draw)
    assert len(decoded.train.labels_N) == 6
    assert [value % 2 for value in values(decoded.train.images_NCHW)] == (
        decoded.train.labels_N.tolist()
    )


def test_an_iterable_without_declared_columns_is_refused() -> None:
    stream = datasets.IterableDataset.from_generator(lambda: iter([{"label": 1}]))
    with pytest.raises(DataError, match=r"pass features=datasets.Features"):
        open_source(Source(dataset="ignored"), stream).peek()


def test_another_object_is_refused() -> None:
    with pytest.raises(DataError, match="a list is not a dataset; expected a Dataset"):
        open_source(Source(dataset="ignored"), [1, 2])


def test_the_identity_of_objects_follows_their_content() -> None:
    source = Source(dataset="ignored")
    same = [open_source(source, rows).provenance.identity() for rows in (both(), both())]
    other = open_source(source, dataset([0, 1], first_value=7)).provenance.identity()
    assert same[0] == same[1] != other
    streams = [
        open_source(
            source, dataset([0, 1], first_value=first).to_iterable_dataset()
        ).provenance.identity()
        for first in (0, 0, 7)
    ]
    assert streams[0] == streams[1] != streams[2]


def test_no_path_of_this_machine_is_in_the_provenance(tmp_path: Path) -> None:
    write_parquet(tmp_path / "pets")
    provenance = open_source(Source(dataset=str(tmp_path / "pets"))).provenance
    assert str(tmp_path.parent) not in json.dumps(provenance.as_json())
    moved = (tmp_path / "pets").rename(tmp_path / "moved")
    again = open_source(Source(dataset=str(moved))).provenance
    assert [tuple(file) for file in again.files] == [tuple(file) for file in provenance.files]


def test_progress_counts_every_row_up_to_the_total() -> None:
    source, steps, splits = Source(dataset="ignored"), [], both()
    open_source(source, splits).read(draw, advance=lambda *step: steps.append(step))
    assert steps == [(4, 6), (6, 6)]


def test_what_was_read_survives_a_round_trip_through_tensors() -> None:
    source, splits = Source(dataset="ignored", skip_bad_rows=True), both()
    splits["train"] = datasets.concatenate_datasets([splits["train"], dataset([-1])])
    decoded = open_source(source, splits).read(draw)
    tensors, note = decoded.to_tensors()
    images = [decoded.train.images_NCHW, decoded.test.images_NCHW]
    again = Decoded.from_tensors(tensors, json.loads(json.dumps(note)), *images)
    assert torch.equal(again.train.images_NCHW, decoded.train.images_NCHW)
    assert torch.equal(again.test.labels_N, decoded.test.labels_N)
    assert again.skipped == decoded.skipped
    assert again.provenance == decoded.provenance
    assert again.class_names == ["cat", "dog"]


def real() -> RealData:
    """The six rows of `both`, with mean and std."""
    source, splits = Source(dataset="ignored"), both()
    decoded = open_source(source, splits).read(draw)
    normalization = Normalization.fit(decoded.train, "mean_std", 0.1)
    return RealData.build(decoded, normalization, torch.device("cpu"))


def test_a_batch_holds_distinct_training_rows_with_their_labels() -> None:
    data = real()
    batch = data.batch(draw("a"), 4)
    assert batch.images_BCHW.dtype == batch.targets_BK.dtype == torch.float32
    everything_NCHW = data.normalization.apply(data.train.images_NCHW)
    order = batch.images_BCHW[:, 0, 0, 0].argsort()
    assert torch.equal(batch.images_BCHW[order], everything_NCHW)
    assert batch.targets_BK[order].tolist() == [[1, 0], [0, 1], [1, 0], [0, 1]]


def test_a_batch_is_decided_by_its_generator_alone() -> None:
    data = real()
    first, again, other = (data.batch(draw(word), 2).images_BCHW for word in ("a", "a", "c"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_batch_larger_than_the_split_is_refused() -> None:
    with pytest.raises(DataError, match=r"a batch of 5 real images .* has 4; lower the batch size"):
        real().batch(draw("a"), 5)


def test_test_batches_go_through_the_test_rows_in_order() -> None:
    data = real()
    batches = list(data.test_batches(1))
    assert [batch.targets_BK.tolist() for batch in batches] == [[[1, 0]], [[0, 1]]]
    joined = torch.cat([batch.images_BCHW for batch in batches])
    assert torch.equal(joined, data.normalization.apply(data.test.images_NCHW))


def test_prototypes_are_the_class_means_of_displayable_pixels() -> None:
    prototypes_KCHW = real().prototypes_KCHW()
    assert prototypes_KCHW.shape == (2, 1, 2, 2)
    expected = torch.tensor([1.0, 2.0]) / 255  # rows 0 and 2, rows 1 and 3
    assert torch.allclose(prototypes_KCHW[:, 0, 0, 0], expected)


def test_a_parquet_file_written_without_datasets_is_read_through_its_card(tmp_path: Path) -> None:
    (tmp_path / "pets").mkdir()
    cells = [{"bytes": png(gray(row)), "path": None} for row in range(10)]
    table = pa.table({"image": cells, "label": [row % 2 for row in range(10)]})
    pq.write_table(table, tmp_path / "pets" / "train.parquet")
    (tmp_path / "pets" / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - name: image\n    dtype: image\n"
        "  - name: label\n    dtype: int64\n---\n"
    )
    assert read_path(tmp_path / "pets").class_names == ["0", "1"]


def test_classes_of_two_splits_are_matched_by_name(tmp_path: Path) -> None:
    names = {"train": ["cat", "dog", "fox"], "test": ["fox", "dog", "cat"]}
    splits = datasets.DatasetDict(
        {
            split: dataset([0, 1, 2], datasets.ClassLabel(names=own), first_value=10 * number)
            for number, (split, own) in enumerate(names.items())
        }
    )
    decoded = open_source(Source(dataset="ignored"), splits).read(draw)
    seen = dict(zip(values(decoded.test[0]), decoded.test[1].tolist(), strict=True))
    assert {value: decoded.class_names[label] for value, label in seen.items()} == {
        10: "fox", 11: "dog", 12: "cat",
    }  # fmt: skip
    some = open_source(Source(dataset="ignored", classes=["dog", "cat"]), splits).read(draw)
    assert dict(zip(values(some.test[0]), some.test[1].tolist(), strict=True)) == {11: 0, 12: 1}
    splits["test"] = dataset([0, 1], datasets.ClassLabel(names=["Cat", "dog"]))
    with pytest.raises(
        DataError, match=r"the class 'Cat' of the test split and the class 'cat' of"
    ):
        open_source(Source(dataset="ignored"), splits).peek()
