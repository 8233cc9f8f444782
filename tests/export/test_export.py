"""The published folder: `load_dataset` reads what was exported, and nothing is half there."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, load_dataset
from support.sample_content import (
    CLASS_NAMES,
    RESULTS,
    bytes_sample,
    pixels_sample,
    sample,
    views_of,
)

from distill_datasets import __version__
from distill_datasets.errors import ArtifactError
from distill_datasets.export import folder as export
from distill_datasets.export.content import CLASSIFIER, DisplayPixels, budget, sibling_of
from distill_datasets.export.folder import (
    check_shards,
    check_writable,
    read_manifest,
    verify,
    write_dataset,
)
from distill_datasets.files import parquet as parquet_files


def load(folder: Path, config: str) -> Dataset:
    return load_dataset(
        str(folder), config, split="train", cache_dir=str(folder.parent / f"cache-{folder.name}")
    )


def tree(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "quickstart"
    write_dataset(folder, sample(), RESULTS)
    return folder


def test_default_rows_are_the_exported_images_and_labels(written: Path) -> None:
    content, rows = sample(), load(written, "default")
    assert rows.column_names == ["image", "label", "soft_label"]
    assert rows.features["label"].names == CLASS_NAMES
    assert rows.features["soft_label"].length == 3
    images_NCHW = np.stack([np.array(row["image"]).transpose(2, 0, 1) for row in rows])
    assert np.array_equal(images_NCHW, content.images_NCHW.numpy())
    assert torch.equal(torch.tensor(rows["soft_label"][:]), content.targets_NK)
    assert rows["label"][:] == content.targets_NK.argmax(dim=1).tolist()


def test_folders_of_one_name_are_not_taken_for_each_other(tmp_path: Path) -> None:
    """`datasets` has one cache entry for local folders of one name that look alike."""
    first, second = sample(), replace(sample(), targets_NK=sample().targets_NK.flip(0))
    for place, content in (("one", first), ("two", second)):
        folder = tmp_path / place / "poster"
        folder.parent.mkdir()
        write_dataset(folder, content, None)
        rows = load_dataset(str(folder), "default", split="train", cache_dir=str(tmp_path / "hf"))
        found = torch.tensor(rows["soft_label"][:])
        torch.testing.assert_close(found, content.targets_NK.float())


def test_torch_format_gives_what_a_trainer_needs(written: Path) -> None:
    rows = load(written, "default").with_format("torch")[:]
    assert torch.equal(rows["image"], sample().images_NCHW)
    assert rows["label"].dtype == torch.int64 and rows["soft_label"].dtype == torch.float32


def test_exact_rows_are_the_exported_floats_bit_for_bit(written: Path) -> None:
    content, rows = sample(), load(written, "exact").with_format("torch")[:]
    assert content.exact_NCHW is not None
    assert torch.equal(rows["pixel_values"].view(-1, 3, 8, 8), content.exact_NCHW)
    assert torch.equal(rows["soft_label"], content.targets_NK)


def test_poster_config_holds_the_trained_image_and_its_labels(written: Path) -> None:
    content, row = sample(), load(written, "poster").with_format("numpy")[0]
    assert np.array_equal(row["poster"].reshape(row["poster_shape"]), content.originals[0])
    labels = row["label_poster"].reshape(row["label_poster_shape"])
    assert np.array_equal(labels, content.label_cells[0])
    assert row["preview"].shape == (12, 14, 3)


def test_recipe_config_is_one_row_with_everything_to_make_it_again(written: Path) -> None:
    rows, content = load(written, "recipe"), sample()
    assert len(rows) == 1
    row = rows[0]
    assert row["recipe_yaml"] == content.recipe_yaml and row["seed"] == 7
    assert json.loads(row["geometry_json"]) == content.geometry
    assert json.loads(row["results_json"]) == RESULTS
    assert row["mean"] == pytest.approx(content.mean) and row["image_shape"] == [3, 8, 8]


def test_streaming_reads_the_same_rows(written: Path) -> None:
    stream = load_dataset(str(written), "default", split="train", streaming=True)
    images = [np.array(row["image"]).transpose(2, 0, 1) for row in stream]
    assert np.array_equal(np.stack(images), sample().images_NCHW.numpy())


def test_default_is_the_default_configuration(written: Path) -> None:
    rows = load_dataset(str(written), split="train", cache_dir=str(written.parent / "cache-any"))
    assert "image" in rows.column_names


def test_gray_images_stay_gray(tmp_path: Path) -> None:
    content = sample(channels=1)
    write_dataset(tmp_path / "gray", content, None)
    rows = load(tmp_path / "gray", "default")
    assert rows[0]["image"].mode == "L"
    assert torch.equal(rows.with_format("torch")[:]["image"], content.images_NCHW)


def test_images_of_their_own_have_no_poster_config(tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path / "pixels", pixels_sample(), None)
    assert list(manifest["configs"]) == ["default", "exact", "recipe"]
    assert load(tmp_path / "pixels", "default")["label"][:] == [0, 0, 1, 1, 2, 2]


def test_features_are_spelled_as_every_version_of_datasets_reads_them(written: Path) -> None:
    for path in written.rglob("*.parquet"):
        info = pq.read_schema(path).metadata[b"huggingface"].decode()
        assert '"_type": "List"' not in info
    assert '"_type": "Sequence"' in info


def test_many_rows_are_written_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_files, "_ROWS_PER_GROUP", 4)
    write_dataset(tmp_path / "groups", sample(), None)
    file = pq.ParquetFile(tmp_path / "groups" / "data" / "train-00000-of-00001.parquet")
    assert [file.metadata.row_group(index).num_rows for index in range(2)] == [4, 2]
    assert torch.equal(
        load(tmp_path / "groups", "exact").with_format("torch")[:]["soft_label"],
        sample().targets_NK,
    )


def test_equal_content_gives_equal_bytes(tmp_path: Path, written: Path) -> None:
    write_dataset(tmp_path / "again", sample(), RESULTS)
    assert tree(tmp_path / "again") == tree(written)


def test_results_change_no_byte_of_the_data(tmp_path: Path, written: Path) -> None:
    write_dataset(tmp_path / "before", sample(), None)
    before, after = tree(tmp_path / "before"), tree(written)
    assert after.keys() - before.keys() == {"results.json"}
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"README.md", "distill.json", "recipe/train-00000-of-00001.parquet"}
    assert json.loads(before["distill.json"])["results"] is None


def test_manifest_names_every_other_file_with_its_hash(written: Path) -> None:
    manifest = read_manifest(written)
    assert {file["path"] for file in manifest["files"]} == tree(written).keys() - {"distill.json"}
    assert verify(written) == []
    assert manifest["library"] == {"name": "distill_datasets", "version": __version__}
    assert 0 < manifest["quantization"]["max_abs_error"] <= 0.5 / 255 / 0.2 + 1e-6


def test_a_flipped_byte_a_missing_and_a_stray_file_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    write_dataset(folder, sample(), RESULTS)
    path = folder / "data" / "train-00000-of-00001.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    (folder / "recipe.yaml").unlink()
    (folder / "exact" / "train-00001-of-00002.parquet").write_bytes(b"")
    (folder / "notes.txt").write_text("mine")
    assert verify(folder) == [
        "data/train-00000-of-00001.parquet: sha256 differs from the manifest's",
        "recipe.yaml: missing",
        "exact/train-00001-of-00002.parquet: not in the manifest, but load_dataset would read it",
    ]


def test_budget_counts_pixels_once_and_labels_by_their_values() -> None:
    poster = budget(sample())
    assert poster["pixels"] == 12 * 14
    assert poster["ipc_equivalent"] == 12 * 14 / (3 * 8 * 8)
    assert poster["label_values"] == 9 and poster["values"] == 3 * 12 * 14 + 9
    images = budget(pixels_sample())
    assert images["pixels"] == 6 * 64 and images["ipc_equivalent"] == 2
    assert images["label_values"] == 6  # one class name per image


def test_constants_are_published_and_counted(tmp_path: Path) -> None:
    constants = {"matrix": torch.eye(4)}
    manifest = write_dataset(tmp_path / "zca", sample(constants=constants), None)
    size = (tmp_path / "zca" / "constants" / "zca.safetensors").stat().st_size
    sizes = manifest["budget"]["bytes"]
    assert sizes["constants"] == size and sizes["needed"] == sizes["default"] + size
    assert manifest["input"]["constants"] == {"file": "constants/zca.safetensors", "bytes": size}


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for refuse in (lambda: check_writable(tmp_path), lambda: write_dataset(tmp_path, sample(), [])):
        with pytest.raises(ArtifactError, match="not empty"):
            refuse()
    assert tree(tmp_path) == {"mine.txt": b"mine"}


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_dataset(tmp_path / "empty", sample(), None)
    assert verify(tmp_path / "empty") == []


def test_a_place_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="a file has this name"):
        check_writable(tmp_path / "file")
    with pytest.raises(ArtifactError, match="choose a writable folder with --output"):
        check_writable(tmp_path / "file" / "below")


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *_: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "write_parquet", full)
    with pytest.raises(ArtifactError, match="No space left on device"):
        write_dataset(tmp_path / "out", sample(), None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images_NCHW": torch.zeros(6, 4, 8, 8, dtype=torch.uint8)}, "exact: got shape"),
        ({"exact_NCHW": torch.full((6, 3, 8, 8), float("nan"))}, "not finite"),
        ({"exact_NCHW": torch.zeros(5, 3, 8, 8)}, "exact: got shape"),
        ({"targets_NK": torch.full((6, 3), 0.5)}, "sum 1"),
        ({"class_names": ["a", "a", "b"]}, "class names"),
        ({"originals": []}, "no image"),
    ],
)
def test_content_that_cannot_be_published_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        write_dataset(tmp_path / "out", sample(**changes), None)
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such file"):
        read_manifest(tmp_path)
    (tmp_path / "distill.json").write_text('{"schema_version": 1, "files": []}')
    with pytest.raises(ArtifactError, match="not the manifest of a dataset of this library"):
        read_manifest(tmp_path)


def test_large_configurations_are_several_files_with_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(tmp_path / "one", bytes_sample(), None)
    monkeypatch.setattr(parquet_files, "_ROWS_PER_GROUP", 2)
    monkeypatch.setattr(parquet_files, "_BYTES_PER_FILE", 500)
    manifest = write_dataset(tmp_path / "many", bytes_sample(), None)
    names = [f"data/train-{index:05d}-of-00003.parquet" for index in range(3)]
    assert sorted(tree(tmp_path / "many").keys() & {*names}) == names
    assert manifest["configs"]["default"] == {"path": names[0], "files": 3, "rows": 6}
    assert {file["path"] for file in manifest["files"]} >= {*names}
    rows, whole = (
        load(tmp_path / name, "default").with_format("torch")[:] for name in ("many", "one")
    )
    assert all(torch.equal(rows[name], whole[name]) for name in ("image", "label", "soft_label"))


def test_images_of_8_bits_have_no_exact_configuration(tmp_path: Path) -> None:
    content = bytes_sample()
    manifest = write_dataset(tmp_path / "bytes", content, RESULTS)
    assert list(manifest["configs"]) == ["default", "recipe"]
    assert manifest["quantization"]["max_abs_error"] == 0
    rows = load(tmp_path / "bytes", "default").with_format("torch")[:]
    assert torch.equal(rows["image"], content.images_NCHW)
    assert rows["soft_label"].tolist() == content.targets_NK.tolist()
    exact = sample(
        images_NCHW=content.images_NCHW,
        exact_NCHW=content.images_NCHW.float(),
        targets_NK=content.targets_NK.float(),
        originals=list(content.originals),
        label_cells=[],
    )
    assert budget(content) == budget(exact)


def test_shown_bytes_are_displayable_pixels_made_one_at_a_time() -> None:
    images_NCHW = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1)
    shown = DisplayPixels(images_NCHW)
    assert [float(image) for image in shown] == pytest.approx([0, 0.2, 1])
    assert len(shown[1:]) == 2 and float(shown[1:][0]) == pytest.approx(0.2)


def test_few_labels_of_views_are_a_configuration(tmp_path: Path) -> None:
    content = bytes_sample(relabel=views_of("config"))
    manifest = write_dataset(tmp_path / "views", content, RESULTS)
    assert list(manifest["configs"]) == ["default", "relabel", "recipe"]
    rows = load(tmp_path / "views", "relabel").with_format("numpy")[:]
    assert rows["flip"].tolist() == [False, True, False, True]
    assert np.array_equal(rows["logits"], np.arange(12, dtype=np.float16).reshape(4, 3))
    assert manifest["relabel"]["where"] == "relabel" and manifest["relabel"]["labels"] == 4
    assert manifest["budget"]["bytes_per_view_label"] == 10
    assert (tmp_path / "views" / CLASSIFIER).is_file() and verify(tmp_path / "views") == []


def test_many_labels_of_views_lie_in_a_folder_beside(tmp_path: Path) -> None:
    content = bytes_sample(relabel=views_of("shards"))
    exported, finished = tmp_path / "exported", tmp_path / "finished"
    write_dataset(exported, content, None)
    manifest = write_dataset(finished, content, RESULTS, exported)
    assert "relabel" not in manifest["configs"] and manifest["relabel"]["where"] == "*-relabel"
    assert manifest["budget"]["bytes"]["relabel"] == 40
    for folder in (exported, finished):
        assert verify(folder) == [] and verify(sibling_of(folder)) == []
    assert tree(sibling_of(exported)) == tree(sibling_of(finished))
    assert tree(sibling_of(finished))["labels/epoch-0.tar"] == b"first"


def test_shards_overwrite_nothing(tmp_path: Path) -> None:
    content = bytes_sample(relabel=views_of("shards"))
    write_dataset(tmp_path / "mine", content, None)
    labels = sibling_of(tmp_path / "mine")
    check_shards(labels, content.recipe_sha256)
    with pytest.raises(ArtifactError, match="something else is there"):
        check_shards(labels, "0" * 64)
    taken = tmp_path / "taken-relabel"
    taken.mkdir()
    check_shards(taken, content.recipe_sha256)
    (taken / "thesis.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="something else is there"):
        write_dataset(tmp_path / "taken", content, None)
    assert not (tmp_path / "taken").exists() and (taken / "thesis.txt").read_text() == "mine"


def test_rows_are_copied_from_a_folder_of_the_same_content_unless_it_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: Path
) -> None:
    made = tmp_path / "made"
    write_dataset(made, sample(), None)
    path = made / "exact" / "train-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    again: list[str] = []
    write_parquet = parquet_files.write_parquet

    def noted(path: Path, config: parquet_files.Config, start: int, stop: int) -> None:
        again.append(config.name)
        write_parquet(path, config, start, stop)

    monkeypatch.setattr(export, "write_parquet", noted)
    write_dataset(tmp_path / "out", sample(), RESULTS, made)
    assert sorted(again) == ["exact", "recipe"]
    assert tree(tmp_path / "out") == tree(written)
