"""WebDataset tars as people make them: mixed endings, dots in names, labels as words, gaps."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import datasets
import pytest
from support.image_sets import draw, gray, values

from distill_datasets.data.real import Decoded
from distill_datasets.data.source import Source, open_source
from distill_datasets.errors import DataError

Files = list[tuple[str, bytes]]
KINDS = {"jpg": "JPEG", "jpeg": "JPEG", "jpe": "JPEG"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(path: Path, files: Files) -> None:
    """A tar of files in the order given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def picture(value: int, kind: str = "PNG") -> bytes:
    """A gray image of one value."""
    buffer = io.BytesIO()
    lossless = {"lossless": True} if kind == "WEBP" else {}
    gray(value, 8, 8).save(buffer, format=kind, **lossless)
    return buffer.getvalue()


def read(root: Path, **fields: Any) -> Decoded:  # noqa: ANN401
    """All rows in gray, with a test part that is cut off; `peek` must agree."""
    opened = open_source(Source(dataset=str(root), test_share=0.25, channels="gray", **fields))
    decoded = opened.read(draw)
    assert opened.peek() == (decoded.shape, decoded.class_names)
    return decoded


def pairs(decoded: Decoded) -> list[tuple[int, str]]:
    """The value and the class name of every row."""
    found = list[tuple[int, str]]()
    for split in (decoded.train, decoded.test):
        names = [decoded.class_names[label] for label in split.labels_N.tolist()]
        found += zip(values(split.images_NCHW), names, strict=True)
    return sorted(found)


EXPECTED = [(10 * row, str(row % 2)) for row in range(8)]


def sample(row: int, image: str, key: str = "{row:06d}") -> Files:
    """An image of the value 10 * row and its class."""
    ending = image.lower().rpartition(".")[2]
    name = key.format(row=row)
    content = picture(10 * row, KINDS.get(ending, ending.upper()))
    return [(f"{name}.{image}", content), (f"{name}.cls", str(row % 2).encode())]


@pytest.mark.parametrize(
    "endings",
    [
        ["jpg"] * 4 + ["png"] * 4,
        ["jpg", "png"] * 4,
        ["jpg"] * 2 + ["jpeg"] * 6,
        ["png"] * 7 + ["webp"],
        ["PNG", "png"] * 4,
        ["bmp"] * 8,
    ],
)
def test_a_sample_has_whichever_image_it_has(tmp_path: Path, endings: list[str]) -> None:
    files = [file for row, ending in enumerate(endings) for file in sample(row, ending)]
    write(tmp_path / "pets" / "train-000.tar", files)
    assert pairs(read(tmp_path / "pets")) == EXPECTED


def test_shards_may_differ_in_their_endings(tmp_path: Path) -> None:
    for shard, ending in enumerate(["jpg", "jpeg", "png", "tiff"]):
        rows = [2 * shard, 2 * shard + 1]
        files = [file for row in rows for file in sample(row, ending)]
        write(tmp_path / "pets" / f"{shard:05d}.tar", files)
    assert pairs(read(tmp_path / "pets")) == EXPECTED


@pytest.mark.parametrize(
    "key",
    [
        "photo.{row}",
        "n01.jpeg.{row:04d}",
        "v1.5/{row}",
        "{row}.2021.03",
        "a.b/c.d.{row}",
        "./{row}",
    ],
)
def test_dots_in_names_and_folders(tmp_path: Path, key: str) -> None:
    files = [file for row in range(8) for file in sample(row, "png", key)]
    write(tmp_path / "pets" / "train-000.tar", files)
    assert pairs(read(tmp_path / "pets")) == EXPECTED


def test_endings_of_two_parts_belong_to_one_sample(tmp_path: Path) -> None:
    files = [
        file
        for row in range(8)
        for file in (*sample(row, "jpg"), (f"{row:06d}.seg.png", picture(255)))
    ]
    write(tmp_path / "pets" / "train-000.tar", files)
    with pytest.raises(DataError, match=r"several image columns: jpg, seg.png; set source.image_"):
        read(tmp_path / "pets")
    assert pairs(read(tmp_path / "pets", image_column="jpg")) == EXPECTED


def test_members_in_any_order_are_one_sample(tmp_path: Path) -> None:
    files = sorted(
        (file for row in range(8) for file in sample(row, "png")),
        key=lambda file: file[0].rpartition(".")[2],
    )
    write(tmp_path / "pets" / "train-000.tar", files)
    assert pairs(read(tmp_path / "pets")) == EXPECTED


def test_classes_may_be_words(tmp_path: Path) -> None:
    files: Files = []
    for row in range(8):
        files += [(f"{row}.png", picture(10 * row)), (f"{row}.cls", (b"cat", b"dog\n")[row % 2])]
    write(tmp_path / "pets" / "train-000.tar", files)
    words = [(10 * row, ("cat", "dog")[row % 2]) for row in range(8)]
    assert pairs(read(tmp_path / "pets")) == words


def test_labels_inside_json_are_read_at_any_depth(tmp_path: Path) -> None:
    files: Files = []
    for row in range(8):
        told = {"meta": {"label": row % 2}, "boxes": [[1, 2]], "name": None if row else "x"}
        files += [(f"{row}.png", picture(10 * row)), (f"{row}.json", json.dumps(told).encode())]
    write(tmp_path / "pets" / "train-000.tar", files)
    assert pairs(read(tmp_path / "pets")) == EXPECTED


def test_samples_without_an_image_or_a_label_are_counted_and_named(tmp_path: Path) -> None:
    files = [file for row in range(8) for file in sample(row, "png")]
    files += [("lost.png", picture(200)), ("blind.cls", b"1"), ("readme.md", b"# Pets")]
    write(tmp_path / "pets" / "train-000.tar", files)
    with pytest.raises(DataError) as caught:
        read(tmp_path / "pets")
    lines = str(caught.value).splitlines()
    assert lines[0] in ("2 rows cannot be used:", "3 rows cannot be used:")
    assert "  train row 8: the label is missing (train-000.tar: lost)" in lines
    assert "  train row 10: the label is missing (train-000.tar: readme)" in lines
    assert pairs(read(tmp_path / "pets", skip_bad_rows=True)) == EXPECTED


def test_hidden_files_of_other_systems_are_no_samples(tmp_path: Path) -> None:
    files = [file for row in range(8) for file in sample(row, "png")]
    files += [("._000001.png", b"\0\5\x16\7"), (".DS_Store", b"x")]
    write(tmp_path / "pets" / "train-000.tar", files)
    assert pairs(read(tmp_path / "pets")) == EXPECTED


def test_a_file_of_the_same_name_here_does_not_take_the_place_of_a_member(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "000003.png").write_bytes(picture(201))
    write(tmp_path / "pets" / "train-000.tar", [f for row in range(8) for f in sample(row, "png")])
    assert pairs(read(tmp_path / "pets")) == EXPECTED


def test_links_and_devices_in_a_tar_are_never_followed(tmp_path: Path) -> None:
    path, secret = tmp_path / "pets" / "train-000.tar", tmp_path / "secret.png"
    write(path, [file for row in range(8) for file in sample(row, "png")])
    secret.write_bytes(picture(77))
    kinds = {
        "a": tarfile.SYMTYPE,
        "b": tarfile.LNKTYPE,
        "c": tarfile.FIFOTYPE,
        "d": tarfile.CHRTYPE,
    }
    with tarfile.open(path, "a") as tar:
        for name, kind in kinds.items():
            member = tarfile.TarInfo(f"{name}.png")
            member.type, member.linkname = kind, str(secret)
            tar.addfile(member)
    assert pairs(read(tmp_path / "pets")) == EXPECTED


def test_one_name_twice_in_a_tar_is_refused(tmp_path: Path) -> None:
    files = [*sample(0, "png"), *sample(1, "png"), *sample(0, "png")]
    write(tmp_path / "pets" / "train-000.tar", files)
    with pytest.raises(DataError, match=r"a tar holds '000000.png' and '000000.png', two files of"):
        read(tmp_path / "pets")


def test_a_tar_without_images_says_what_was_expected(tmp_path: Path) -> None:
    write(tmp_path / "pets" / "train-000.tar", [("a.cls", b"1"), ("a.npy", b"x")])
    with pytest.raises(DataError, match=r"no image in 1 tars; expected files such as 0001.jpg and"):
        read(tmp_path / "pets")


@pytest.mark.parametrize("cut", [1, 700, 5000])
def test_a_tar_that_is_cut_or_overwritten_is_named(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "pets" / "train-000.tar"
    write(path, [file for row in range(8) for file in sample(row, "png")])
    content = path.read_bytes()
    path.write_bytes(content[:cut])
    with pytest.raises(DataError, match=r"'train-000.tar' is no tar that can be read to its end"):
        read(tmp_path / "pets")
    header = 6 * 512  # of the fourth file
    path.write_bytes(content[:header] + b"garbage!" * 64 + content[header + 512 :])
    with pytest.raises(DataError, match=r"is no tar that can .* \(no header at byte 3,072\)"):
        read(tmp_path / "pets")
