"""Columns and folders of sounds, videos and volumes, read by `source.view` or refused."""

from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.image_sets import both, draw
from support.other_kinds import CLASSES, KINDS, file_of, folder_of

from distill_datasets import FileView, UnusableImage, config
from distill_datasets.data.opening import _only_images
from distill_datasets.data.source import Source, open_source
from distill_datasets.errors import DataError, RecipeError
from distill_datasets.recipe import recipe_from
from distill_datasets.types import Shape

VIEWS: dict[str, Any] = {
    "audio": {"name": "mel"},
    "video": {"name": "frames"},
    "nifti": {"name": "slices", "window": [0.0, 800.0]},
}
FEATURES = {"audio": "Audio", "video": "Video", "nifti": "Nifti"}
SHAPES = {"audio": (1, 64, 64), "video": (3, 24, 24), "nifti": (1, 20, 20)}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def source(dataset: Path | str, kind: str, **section: Any) -> Source:  # noqa: ANN401
    return Source.model_validate({"dataset": str(dataset), "view": VIEWS[kind], **section})


def column_of(kind: str, count: int = 4) -> datasets.Dataset:
    """A column of the feature of `datasets`, its files as bytes inside."""
    rng = np.random.default_rng(1)
    cells = [{"bytes": file_of(kind, row % 2, rng), "path": None} for row in range(count)]
    held = pa.array(cells, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    table = datasets.table.InMemoryTable(pa.table({"heard": held, "label": [0, 1] * (count // 2)}))
    feature = getattr(datasets, FEATURES[kind])()
    label = datasets.ClassLabel(names=["first", "second"])
    features = datasets.Features({"heard": feature, "label": label})
    return datasets.Dataset(table, datasets.DatasetInfo(features=features), fingerprint=f"{kind}")


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_for_each_class_is_read_and_every_file_told(kind: str, tmp_path: Path) -> None:
    folder = folder_of(kind, tmp_path / "set", {"train": 3, "test": 2}, classes=2)
    (folder / "train" / CLASSES[kind][0] / "cover.png").write_bytes(b"x")
    (folder / "train" / CLASSES[kind][0] / f"._0.{KINDS[kind]}").write_bytes(b"x")
    (folder / "train" / CLASSES[kind][0] / f".0.{KINDS[kind]}").write_bytes(b"x")
    opened = open_source(source(folder, kind, left_out="allow"))
    shape = Shape(*SHAPES[kind], 2)
    assert opened.peek() == (shape, list(CLASSES[kind][:2]))
    decoded = opened.read(draw)
    assert decoded.train.images_NCHW.shape == (6, *SHAPES[kind])
    assert decoded.test.labels_N.tolist() == [0, 0, 1, 1]
    assert opened.account is not None and opened.account.found == 11
    assert [file.path for file in opened.account.left_out] == [
        f"train/{CLASSES[kind][0]}/.0.{KINDS[kind]}"
    ]
    assert opened.account.other == {".png": 1, "hidden": 1}


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_is_read_from_memory_and_from_parquet(kind: str, tmp_path: Path) -> None:
    rows = column_of(kind)
    splits = datasets.DatasetDict(train=rows, test=rows)
    of_memory = open_source(source("memory", kind), splits).read(draw).train.images_NCHW
    assert of_memory.shape == (4, *SHAPES[kind]) and of_memory.float().std() > 0
    (tmp_path / "set").mkdir()
    metadata = rows.features.arrow_schema.metadata
    pq.write_table(rows.data.table.replace_schema_metadata(metadata), tmp_path / "set/a.parquet")
    section = source(tmp_path / "set", kind, test_share=0.5)
    decoded = open_source(section).read(draw)
    assert decoded.train.images_NCHW.shape == (2, *SHAPES[kind])
    plain = rows.data.table.replace_schema_metadata(None)
    pq.write_table(plain, tmp_path / "set/a.parquet")
    with pytest.raises(DataError, match=f"reads columns of {FEATURES[kind]}, got: heard.bytes"):
        open_source(section).read(draw)
    named = section.model_copy(update={"image_column": "heard"})
    assert open_source(named).read(draw).train.images_NCHW.equal(decoded.train.images_NCHW)


def test_a_damaged_file_is_a_bad_row_with_its_name(tmp_path: Path) -> None:
    folder = folder_of("audio", tmp_path / "set", {"train": 3})
    (folder / "train" / "rising" / "1.wav").write_bytes(b"no sound")
    with pytest.raises(DataError, match=r"sound cannot be decoded .*rising/1.wav"):
        open_source(source(folder, "audio")).read(draw)


def test_a_kind_without_its_view_or_with_another_is_refused(tmp_path: Path) -> None:
    folder = folder_of("audio", tmp_path / "set", {"train": 2})
    with pytest.raises(
        DataError,
        match=r"source.view: missing, and 'audio' is Audio; set source.view to one that reads "
        r"Audio: mel",
    ):
        open_source(Source(dataset=str(folder))).peek()
    for kind, remedy in (("video", "reads Audio: mel"), ("nifti", "reads Audio: mel")):
        with pytest.raises(DataError, match=f"{FEATURES[kind]}, .*audio.* {remedy}"):
            open_source(source(folder, kind)).peek()
    with pytest.raises(
        DataError, match=r"'mel' reads columns of Audio, got: image \(Image\).*: le"
    ):
        open_source(source("memory", "audio"), both()).peek()
    volumes = folder_of("nifti", tmp_path / "volumes", {"train": 2})
    with pytest.raises(DataError, match=r"source.view: missing, and 'nifti' is Nifti"):
        open_source(Source(dataset=str(volumes))).peek()


def test_a_recipe_names_what_is_wrong_with_its_view() -> None:
    sections: dict[str, Any] = {"name": "x", "source": {"dataset": "x", "view": "sonogram"}}
    with pytest.raises(RecipeError, match=r"source.view: .*'sonogram'.*frames, mel, slices"):
        recipe_from(sections)
    for key, value in (("channels", "gray"), ("range", [0, 1]), ("white_level", 255)):
        with pytest.raises(ValueError, match=f"{key}: is about images, got view: mel"):
            source("x", "audio", **{key: value})


class Loudness(FileView):
    """A view of another package: how loud a sound is, in one pixel."""

    paper = "none"
    reads = "Audio"
    endings = (".wav",)
    packages = ()
    pip = "none"
    name: Literal["loudness"] = "loudness"

    def pixels(self, encoded: bytes) -> torch.Tensor:
        if not encoded.startswith(b"RIFF"):
            raise UnusableImage("no wav file")
        samples = np.frombuffer(encoded[44:], np.int16)
        return torch.tensor([[[np.abs(samples.astype(int)).max() // 128]]], dtype=torch.uint8)


def test_another_package_adds_a_view_by_an_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = EntryPoint("loudness", f"{__name__}:Loudness", "distill_datasets.views")
    monkeypatch.setattr(
        config, "entry_points", lambda group: [entry] if group == entry.group else []
    )
    folder = folder_of("audio", tmp_path / "set", {"train": 2}, classes=2)
    with pytest.raises(DataError, match=r"reads Audio: loudness, mel"):
        open_source(Source(dataset=str(folder))).peek()
    section = Source.model_validate({"dataset": str(folder), "view": "loudness"})
    images_NCHW = open_source(section).read(draw).train.images_NCHW
    assert images_NCHW.shape[1:] == (1, 1, 1) and int(images_NCHW.min()) > 50


def test_a_source_without_a_view_is_written_as_before() -> None:
    assert "view" not in Source(dataset="x").model_dump(mode="json")
    assert source("x", "video").model_dump(mode="json")["view"]["count"] == 3


def test_files_on_the_hub_are_listed_as_those_of_the_view() -> None:
    view = source("x", "nifti").view
    assert _only_images(["train/a/1.nii.gz", "train/b/2.nii", "README.md"], view)
    assert not _only_images(["train/a/1.nii.gz", "more.tar.gz"], view)
    assert not _only_images(["train/a/1.nii.gz"], None)
