"""Folders of images: every file is in one split, or it is named, or it is no image."""

import json
import os
import random
import socket
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import pytest
from support.image_sets import draw, gray, png, values
from support.toy_runs import command, toy_file

from distill_datasets.data.folders import ImageFolder, look_into
from distill_datasets.data.real import Decoded
from distill_datasets.data.source import Source, SourceDataset, open_source
from distill_datasets.errors import DataError
from distill_datasets.media import image as images

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
APPLE_DOUBLE = b"\0\x05\x16\x07\0\x02\0\0Mac OS X        "


def put(root: Path, *paths: str, first: int = 0) -> None:
    """A gray image at every path; its value counts from `first`."""
    for number, path in enumerate(paths, start=first):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(png(gray(number % 256)))


def put_classes(root: Path, *names: str, each: int = 4, first: int = 0) -> None:
    """A folder of images for each class."""
    for name in names:
        put(root, *(f"{name}/{number}.png" for number in range(each)), first=first)


def opened(root: Path, **fields: Any) -> SourceDataset:  # noqa: ANN401
    return open_source(Source(dataset=str(root), **fields))


def read(root: Path, **fields: Any) -> Decoded:  # noqa: ANN401
    return opened(root, **fields).read(draw)


def groups(root: Path) -> dict[str, dict[str | None, int]]:
    """How many images every class of every split with labels has."""
    found = look_into(root)
    assert found is not None
    return {
        split: {name: len(paths) for name, paths in classes.items()}
        for split, classes in found.groups.items()
    }


# ---- the invariant -----------------------------------------------------------------------------

FOLDER_NAMES = (
    *("train", "Test", "VAL", "eval", "dev", "training", "cat", "dog", "crash test", "set[1]"),
    *("a.b", "*", "?", "__background__", "n01.tar.d", ".hidden", "bird", "3", "café"),
    *("fox", "owl", "emu", "elk", "n01", "n02", "a", "b", "c", "d"),
)
FILE_NAMES = (
    *("a.png", "night train 1.png", "ILSVRC_val_1.JPEG", "x.y.z.png", "[0].png", "no ending"),
    *("odd.dat", "image.txt", "picture.json", "p.MPO", "test.jpg", ".dot.png", "1.HEIC", "-.Png"),
)
OTHER_FILES = {
    "notes.txt": b"cat",
    "0.json": b"{}",
    "a.xml": b"<a/>",
    "Thumbs.db": b"\xd0\xcf\x11\xe0",
    "._a.png": APPLE_DOUBLE,
    "empty": b"",
}
LEFT_OUT_FILES = {
    "IMG.HEIC": HEIC,
    "all.zip": b"PK\3\4",
    "raw.CR2": b"II*\0",
    "rows.parquet": b"PAR1",
    "0.svg": b"<svg/>",
}


def plant(root: Path, rng: random.Random) -> Counter[str]:
    """Grow a random tree; how many images, files to be named, and others it holds by real path."""
    folders, planted = [root], Counter[str]()
    for _ in range(rng.randint(2, 12)):
        place = rng.choice(folders) / rng.choice(FOLDER_NAMES)
        place.mkdir(exist_ok=True)
        folders.append(place)
    for place in dict.fromkeys(folders):
        inside = {name: png(gray(1)) for name in rng.sample(FILE_NAMES, rng.randint(0, 4))}
        kinds = dict.fromkeys(inside, "image")
        for kind, pool in (("other", OTHER_FILES), ("named", LEFT_OUT_FILES)):
            for name in rng.sample(sorted(pool), rng.choice((0, 0, 1, 2))):
                # Parquet files decide which reader a folder gets: they are tried elsewhere
                if name != "rows.parquet" and name not in inside:
                    inside[name], kinds[name] = pool[name], kind
        for name, content in inside.items():
            (place / name).write_bytes(content)
        hidden = any(part.startswith(".") for part in place.relative_to(root).parts)
        for kind in kinds.values():
            # nothing in a hidden folder is opened for more than to see whether it is an image
            planted["other" if hidden and kind == "named" else kind] += 1
    outside = root.parent / f"{root.name}-outside"
    put(outside, "0.png", "1.png")
    for number in range(rng.randint(0, 3)):
        link = rng.choice(folders) / f"link{number}"
        target = rng.choice([outside, root, *folders, link.parent / "nothing"])
        link.symlink_to(target)
        planted["link"] += 1
    return planted


@pytest.mark.parametrize("block", range(2))
def test_files_found_are_rows_read_and_files_named(tmp_path: Path, block: int) -> None:
    looked = 0
    for seed in range(100 * block, 100 * (block + 1)):
        rng = random.Random(seed)
        root = tmp_path / f"tree{seed}"
        root.mkdir()
        planted = plant(root, rng)
        try:
            found = look_into(root)
        except DataError as error:
            assert "source.dataset: " in str(error)  # refused: nothing is lost without a word
            continue
        if found is None:
            assert planted["image"] == 0
            continue
        looked += 1
        check_account(found, root, planted)
    assert looked > 30


def check_account(found: ImageFolder, root: Path, planted: Counter[str]) -> None:
    """Every planted file is in one place of the account, and of the rows."""
    account = found.account
    rows = [path for split in found.groups.values() for paths in split.values() for path in paths]
    unlabeled = [split for split in account.splits.values() if split.unlabeled]
    assert len(rows) + sum(split.files for split in unlabeled) == sum(
        split.files for split in account.splits.values()
    )
    assert account.found == sum(s.files for s in account.splits.values()) + len(account.left_out)
    # no image twice: neither under one name nor through a link
    assert len({os.path.realpath(root / path) for path in rows}) == len(rows)
    for name, dataset in found.splits().items():
        assert dataset.num_rows == account.splits[name].images
    named = {path for path, _ in account.left_out}
    assert not named & set(rows) and len(named) == len(account.left_out)
    links = {path for path in named if (root / path.rstrip("/")).is_symlink()}
    outside = root.parent / f"{root.name}-outside"
    from_outside = sum(Path(os.path.realpath(root / path)).parent == outside for path in rows)
    from_outside += sum(
        Path(os.path.realpath(root / path)).parent == outside for path in named - links
    )
    in_splits = sum(split.files for split in account.splits.values())
    own = in_splits + len(named - links) + sum(account.other.values())
    unseen = sum(split.files for split in unlabeled)
    total = planted["image"] + planted["named"] + planted["other"]
    # a folder outside may lie in a split without labels, whose paths are not kept
    assert own - from_outside - total in ({0} if not unseen else {0, 2})


# ---- what is a split, what is a class ------------------------------------------------------------


def test_a_word_in_a_file_name_makes_no_split(tmp_path: Path) -> None:
    put_classes(tmp_path, "cat", "dog")
    put(tmp_path, "cat/night train 1.png", "dog/ILSVRC2012_val_00000001.JPEG", "dog/test.png")
    assert groups(tmp_path) == {"train": {"cat": 5, "dog": 6}}
    assert len(read(tmp_path).train.labels_N) + len(read(tmp_path).test.labels_N) == 11


@pytest.mark.parametrize("name", ["train", "crash test", "eval board", "valid", "invalid"])
def test_a_class_may_be_called_as_a_split(tmp_path: Path, name: str) -> None:
    put_classes(tmp_path / "train", "bus", name, each=6)
    put_classes(tmp_path / "test", "bus", name, each=3, first=100)
    decoded = read(tmp_path)
    assert len(decoded.train.labels_N) == 12 and max(values(decoded.train.images_NCHW)) < 100
    assert len(decoded.test.labels_N) == 6 and min(values(decoded.test.images_NCHW)) >= 100


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (["Train", "test"], {"train", "test"}),
        (["TRAINING", "Testing"], {"train", "test"}),
        (["train", "valid"], {"train", "validation"}),
        (["train", "dev", "eval"], {"train", "validation", "test"}),
        (["train", "val", "validation"], {"train", "val", "validation"}),
    ],
)
def test_the_top_level_names_the_splits(
    tmp_path: Path, folders: list[str], splits: set[str]
) -> None:
    for folder in folders:
        put_classes(tmp_path / folder, "cat", "dog")
    assert set(groups(tmp_path)) == splits
    assert len(read(tmp_path).train.labels_N) == 8


def test_a_split_may_be_asked_for_by_the_name_of_its_folder(tmp_path: Path) -> None:
    for first, folder in ((0, "Training"), (50, "val"), (100, "test")):
        put_classes(tmp_path / folder, "cat", "dog", first=first)
    assert min(values(read(tmp_path, test_split="val").test.images_NCHW)) == 50
    assert min(values(read(tmp_path, test_split="validation").test.images_NCHW)) == 50
    assert min(values(read(tmp_path, train_split="test", test_split="Training").train[0])) == 100


def test_folders_beside_a_test_folder_are_the_classes_to_train_on(tmp_path: Path) -> None:
    put_classes(tmp_path, "cat", "dog", each=6)
    put_classes(tmp_path / "test", "cat", "dog", each=2, first=100)
    decoded = read(tmp_path)
    assert sorted(values(decoded.test.images_NCHW)) == [100, 100, 101, 101]
    assert len(decoded.train.labels_N) == 12


def test_a_flat_test_folder_gives_way_to_a_split_with_labels(tmp_path: Path) -> None:
    put_classes(tmp_path / "train", "cat", "dog")
    put(tmp_path / "test", "0.jpg", "1.jpg")
    source = opened(tmp_path)
    assert len(source.read(draw).test.labels_N) == 2  # cut off
    assert source.account is not None
    assert source.account.splits["test"].unlabeled == "its images lie in no folders of classes"
    put_classes(tmp_path / "val", "cat", "dog", each=3, first=100)
    assert sorted(values(read(tmp_path).test.images_NCHW)) == [100, 100, 101, 101, 102, 102]
    with pytest.raises(DataError, match=r"source.test_split: 'test' has no labels: its images lie"):
        read(tmp_path, test_split="test")


def test_a_flat_folder_that_may_be_class_or_split_is_refused(tmp_path: Path) -> None:
    put_classes(tmp_path, "bus", "car", "train")
    with pytest.raises(DataError, match=r"train/ is named like a split, and beside it bus/, car/"):
        opened(tmp_path).peek()


def test_splits_without_folders_of_classes_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "train/0.png", "test/0.png")
    with pytest.raises(
        DataError, match=r"without folders of classes, so that no image has a label"
    ):
        opened(tmp_path).peek()


def test_the_folder_of_an_archive_is_gone_into(tmp_path: Path) -> None:
    put_classes(tmp_path / "animals" / "animals", "cat", "dog")
    assert groups(tmp_path) == {"train": {"cat": 4, "dog": 4}}
    put_classes(tmp_path / "b" / "animals" / "train", "cat", "dog")
    put_classes(tmp_path / "b" / "animals" / "val", "cat", "dog")
    assert set(groups(tmp_path / "b")) == {"train", "validation"}
    with pytest.raises(DataError, match=r"animals/ holds the splits .*; point source.dataset at"):
        (tmp_path / "b" / "docs").mkdir()
        put(tmp_path / "b" / "docs", "figure.png")
        look_into(tmp_path / "b")


def test_a_class_has_all_that_lies_below_it(tmp_path: Path) -> None:
    put(tmp_path, "train/n01/images/0.png", "train/n02/images/0.png", "train/n02/images/1.png")
    put(tmp_path, "val/images/0.png", "test/images/0.png")
    assert groups(tmp_path) == {"train": {"n01": 1, "n02": 2}}
    put(tmp_path / "b", "cat/0.png", "cat/more/0.png", "dog/0.png")
    assert groups(tmp_path / "b") == {"train": {"cat": 2, "dog": 1}}
    put(tmp_path / "c", "Aves/sparrow/0.png", "Aves/tit/0.png", "Felidae/cat/0.png")
    assert groups(tmp_path / "c") == {"train": {"Aves/sparrow": 1, "Aves/tit": 1, "Felidae": 1}}


def test_images_without_labels_a_lone_class_and_foreign_classes_are_refused(
    tmp_path: Path,
) -> None:
    put(tmp_path / "flat", "0.png", "1.png")
    with pytest.raises(DataError, match=r"no image has a label \(./: its images lie in no folders"):
        opened(tmp_path / "flat").peek()
    put_classes(tmp_path / "lone", "cat")
    with pytest.raises(DataError, match=r"one class, 'cat' in ./, expected a folder of images for"):
        opened(tmp_path / "lone").peek()
    put_classes(tmp_path / "other" / "train", "cat", "dog")
    put_classes(tmp_path / "other" / "test", "cats", "dogs")
    with pytest.raises(
        DataError, match=r"no folder of test/ is called as one of train/ is: cats, d"
    ):
        opened(tmp_path / "other").peek()
    put(tmp_path / "turned" / "train", "0.png")
    put_classes(tmp_path / "turned" / "test", "cat", "dog")
    with pytest.raises(
        DataError, match=r"source.train_split: 'train' has no labels: its images lie"
    ):
        opened(tmp_path / "turned").peek()
    assert len(read(tmp_path / "turned", train_split="test").train.labels_N) == 6


# ---- which files -------------------------------------------------------------------------------


def test_a_path_is_no_pattern(tmp_path: Path) -> None:
    put_classes(tmp_path / "set[1]", "cat", "dog")
    put_classes(tmp_path / "set1", "OTHER", "WRONG", first=100)
    decoded = read(tmp_path / "set[1]")
    assert decoded.class_names == ["cat", "dog"] and max(values(decoded.train.images_NCHW)) < 100
    assert read(tmp_path / "set1").class_names == ["OTHER", "WRONG"]


def test_links_are_followed_and_loops_refused(tmp_path: Path) -> None:
    put_classes(tmp_path / "elsewhere" / "train", "cat", "dog")
    put_classes(tmp_path / "elsewhere" / "test", "cat", "dog", each=2)
    (tmp_path / "pets").mkdir()
    for name in ("train", "test"):
        (tmp_path / "pets" / name).symlink_to(tmp_path / "elsewhere" / name)
    expected = {"train": {"cat": 4, "dog": 4}, "test": {"cat": 2, "dog": 2}}
    assert groups(tmp_path / "pets") == expected
    (tmp_path / "elsewhere" / "train" / "cat" / "up").symlink_to(tmp_path / "pets")
    (tmp_path / "elsewhere" / "train" / "fish").symlink_to(tmp_path / "elsewhere" / "train" / "cat")
    (tmp_path / "elsewhere" / "train" / "dog" / "9.png").symlink_to("0.png")
    with pytest.raises(DataError) as refused:
        read(tmp_path / "pets")
    assert "leaves out 3 files" in str(refused.value)
    assert "train/cat/up/: a link to a folder that it lies in" in str(refused.value)
    assert "train/fish/: the same folder as train/cat, which is read" in str(refused.value)
    assert "train/dog/9.png: a link to train/dog/0.png, which is read" in str(refused.value)
    assert len(read(tmp_path / "pets", left_out="allow").train.labels_N) == 8


def test_what_pil_identifies_is_read_whatever_its_ending(tmp_path: Path) -> None:
    put(tmp_path, "cat/0.png", "cat/no ending", "cat/1.HEIC", "dog/x.dat", "dog/y.txt", "dog/z.mpo")
    assert groups(tmp_path) == {"train": {"cat": 3, "dog": 3}}
    for name in ("tif", "webp", "avif", "bmp", "ppm", "gif", "jp2"):
        gray(3).convert("RGB").save(tmp_path / "cat" / f"0.{name}")
    assert groups(tmp_path) == {"train": {"cat": 10, "dog": 3}}
    decoded = read(tmp_path, channels="gray")
    assert len(decoded.train.labels_N) + len(decoded.test.labels_N) == 13


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("IMG_1.HEIC", HEIC, "an image that needs the package pillow-heif; install it"),
        ("all.zip", b"PK", "an archive; unpack it, and move it away"),
        ("1.nef", b"II*\0", "raw data of a camera; convert it to PNG or TIFF"),
        ("1.svg", b"<svg/>", "a drawing, no pixels; save it as PNG"),
        ("1.eps", b"%!PS-Adobe", "a drawing, no pixels; save it as PNG"),
        (".1.png", png(gray(1)), "hidden: its name, or a folder's, begins with a dot"),
        ("rows.parquet", b"PAR1", "a Parquet file beside folders of images; point source.dataset"),
        ("one.tar", b"", "a tar beside folders of images; point source.dataset at it"),
    ],
)
def test_what_is_left_out_is_named_and_refused_unless_allowed(
    tmp_path: Path, name: str, content: bytes, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "PLUG_INS", ())
    put_classes(tmp_path, "cat", "dog")
    (tmp_path / "dog" / name).write_bytes(content)
    with pytest.raises(DataError) as refused:
        opened(tmp_path).peek()
    assert f"leaves out 1 file\n  dog/{name}: {reason}" in str(refused.value)
    assert "set source.left_out=allow to go on without them" in str(refused.value)
    assert len(read(tmp_path, left_out="allow").train.labels_N) == 6


def test_pipes_and_broken_links_are_never_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_classes(tmp_path, "cat", "dog")
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nothing.png")
    (tmp_path / "cat" / "self.png").symlink_to(tmp_path / "cat" / "self.png")
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(tmp_path / "dog")  # a socket's path has 107 bytes at most
        listening.bind("s")
    with pytest.raises(DataError) as refused:
        opened(tmp_path).peek()
    for line in (
        "cat/gone.png: a link to nothing; mend or remove it",
        "cat/pipe.png: a pipe, socket or device; remove it",
        "cat/self.png: cannot be followed",
        "dog/s: a pipe, socket or device; remove it",
    ):
        assert line in str(refused.value)


def test_annotations_are_counted_by_kind_and_need_no_leave(tmp_path: Path) -> None:
    put_classes(tmp_path, "cat", "dog")
    for number in range(7):
        (tmp_path / "cat" / f"{number}.json").write_text("{}")
        (tmp_path / "dog" / f"{number}.XML").write_text("<a/>")
    (tmp_path / "README.md").write_text("pets")
    (tmp_path / "dog" / "._0.png").write_bytes(APPLE_DOUBLE)
    (tmp_path / ".git").mkdir()
    put(tmp_path / ".git", "0.png")
    found = look_into(tmp_path)
    assert found is not None and not found.account.left_out
    assert found.account.other == {
        ".json": 7, ".xml": 7, ".md": 1, "hidden": 1, "folders of version control": 1,
    }  # fmt: skip


def test_images_outside_the_folders_of_classes_are_left_out(tmp_path: Path) -> None:
    put_classes(tmp_path, "cat", "dog")
    put(tmp_path, "overview.png")
    with pytest.raises(DataError, match=r"overview.png: lies in no folder of a class"):
        read(tmp_path)
    for name in ("train", "test"):
        put_classes(tmp_path / "b" / name, "cat", "dog")
    put(tmp_path / "b", "extras/0.png", "train/0.png", "0.png")
    with pytest.raises(DataError) as refused:
        read(tmp_path / "b")
    assert "extras/0.png: lies beside the splits test/, train/" in str(refused.value)
    assert "train/0.png: lies in no folder of a class" in str(refused.value)
    assert "0.png: lies in no folder of a split" in str(refused.value)


def test_a_zip_of_classes_is_to_be_unpacked(tmp_path: Path) -> None:
    (tmp_path / "animals").mkdir()
    (tmp_path / "animals" / "train.zip").write_bytes(b"PK\3\4")
    with pytest.raises(DataError, match=r"no image that can be read: 1 file\n  animals/train.zip"):
        opened(tmp_path).peek()
    with pytest.raises(DataError, match=r"'train.zip' is an archive; unpack it, and point source"):
        opened(tmp_path / "animals" / "train.zip").peek()


def test_known_endings_are_not_opened_to_list_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_classes(tmp_path, "cat", "dog")
    monkeypatch.setattr(images.Image, "open", None)
    assert groups(tmp_path) == {"train": {"cat": 4, "dog": 4}}


# ---- labels from a metadata file ---------------------------------------------------------------


def write_metadata(folder: Path, rows: Iterable[tuple[str, str]], label: str = "label") -> None:
    lines = [f"file_name,{label}", *(f"{name},{value}" for name, value in rows)]
    (folder / "metadata.csv").write_text("\n".join(lines))


def test_a_metadata_file_labels_images_without_folders(tmp_path: Path) -> None:
    for split, count in (("train", 6), ("test", 2)):
        put(tmp_path / split, *(f"{number}.png" for number in range(count)))
        rows = ((f"{number}.png", "odd" if number % 2 else "even") for number in range(count))
        write_metadata(tmp_path / split, rows)
    decoded = read(tmp_path)
    assert decoded.class_names == ["even", "odd"]
    assert [value % 2 for value in values(decoded.train[0])] == decoded.train.labels_N.tolist()
    assert len(decoded.train.labels_N) == 6 and len(decoded.test.labels_N) == 2


def test_a_metadata_file_that_labels_some_files_leaves_the_others_out(tmp_path: Path) -> None:
    put(tmp_path, *(f"{number:02d}.png" for number in range(12)))
    write_metadata(tmp_path, ((f"{n:02d}.png", "odd" if n % 2 else "even") for n in range(6)))
    with pytest.raises(DataError, match=r"leaves out 6 files\n  06.png: not named in metadata.csv"):
        read(tmp_path)
    decoded = read(tmp_path, left_out="allow")
    assert sorted([*values(decoded.train[0]), *values(decoded.test[0])]) == list(range(6))
    write_metadata(tmp_path, [("00.png", "a"), ("gone.png", "b")])
    with pytest.raises(DataError, match=r"gone.png: named in metadata.csv, and not there"):
        read(tmp_path)


def test_a_metadata_file_without_labels_leaves_the_folders_their_classes(tmp_path: Path) -> None:
    put_classes(tmp_path, "cat", "dog", each=6)
    write_metadata(tmp_path, [(f"cat/{number}.png", "me") for number in range(6)], "author")
    decoded = read(tmp_path)
    assert decoded.class_names == ["cat", "dog"]
    assert len(decoded.train.labels_N) + len(decoded.test.labels_N) == 12
    assert read(tmp_path, classes=["dog", "cat"], label_column="label").class_names[0] == "dog"


# ---- names of classes --------------------------------------------------------------------------


def test_class_names_that_look_alike_are_reported(tmp_path: Path) -> None:
    put_classes(tmp_path / "a" / "train", "cat", "dog")
    put_classes(tmp_path / "a" / "test", "Cat", "dog")
    with pytest.raises(
        DataError, match=r"'Cat' of test/ and the class 'cat' of train/ differ only"
    ):
        read(tmp_path / "a")
    for split, form in (("train", "NFC"), ("test", "NFD")):
        put_classes(tmp_path / "b" / split, unicodedata.normalize(form, "café"), "tea")
    with pytest.raises(DataError, match=r"differ only in Unicode form \(NFC against NFD\)"):
        read(tmp_path / "b")
    put_classes(tmp_path / "c", "a", "A")  # letters
    assert read(tmp_path / "c").class_names == ["A", "a"]


def test_what_a_folder_of_images_is_follows_its_pixels_and_classes_alone(tmp_path: Path) -> None:
    put_classes(tmp_path / "pets", "cat", "dog")

    def identity() -> dict[str, Any]:
        return opened(tmp_path / "pets").provenance.identity()

    before = identity()
    assert [file[0] for file in before["files"]] == ["train/cat", "train/dog"]
    (tmp_path / "pets" / "notes.txt").write_text("new")
    (tmp_path / "pets" / "cat" / "0.png").rename(tmp_path / "pets" / "cat" / "00.png")
    assert identity() == before
    put(tmp_path / "pets", "cat/00.png", first=77)
    assert identity() != before


@pytest.mark.parametrize(
    ("names", "asked", "found"),
    [
        ([str(number) for number in range(12)], [3, 7], ["3", "7"]),
        (["1", "2", "3"], [3, 1], ["3", "1"]),
        (["cat", "dog", "fox"], [2, 0], ["fox", "cat"]),
        (["001", "002", "003"], ["002", "001"], ["002", "001"]),
    ],
)
def test_a_number_among_the_classes_is_a_name_first(
    tmp_path: Path, names: list[str], asked: list[str | int], found: list[str]
) -> None:
    for value, name in enumerate(names):
        put(tmp_path, f"{name}/0.png", f"{name}/1.png", first=10 * value)
    decoded = read(tmp_path, classes=asked)
    assert decoded.class_names == found
    for value, label in zip(values(decoded.train[0]), decoded.train[1].tolist(), strict=True):
        assert names[value // 10] == found[label]


@pytest.mark.parametrize(
    ("names", "asked", "said"),
    [
        (["001", "002", "003"], [1, 2], r"no class is called 1, and .* at that place, '002'"),
        (["1", "2", "3"], [0, 1], r"no class is called 0, and as there are classes called 1, 2, 3"),
        (["2019", "2020"], [0, 1], r"no class is called 0, .* at that place, '2019'; write names"),
        (["1", "2", "3"], [7, 1], r"no class 7; valid names: 1, 2, 3"),
        (["cat", "dog"], ["Cat", "dog"], r"no class 'Cat'; 'cat' differs from it only in case"),
    ],
)
def test_a_number_that_may_mean_two_classes_is_refused(
    tmp_path: Path, names: list[str], asked: list[str | int], said: str
) -> None:
    put_classes(tmp_path, *names)
    with pytest.raises(DataError, match=f"source.classes: {said}"):
        opened(tmp_path, classes=asked).peek()


# ---- what is said before anything is paid ------------------------------------------------------


def test_the_rows_of_every_class_are_counted_before_anything_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_classes(tmp_path / "Train", "cat", "dog", each=6)
    put_classes(tmp_path / "val", "cat", "dog", "fox", each=3)
    put_classes(tmp_path / "Train", "fox", each=2)
    monkeypatch.setattr(images, "open_image", None)
    counts = opened(tmp_path).counts(draw)
    assert counts is not None
    assert counts["train"].classes == {"cat": 6, "dog": 6, "fox": 2}
    assert counts["test"]._asdict() == {
        "split": "validation",
        "images": 9,
        "classes": {"cat": 3, "dog": 3, "fox": 3},
        "unusable": 0,
    }
    counts = opened(tmp_path, classes=["fox", "cat"], limit=7, test_split="val").counts(draw)
    assert counts is not None and counts["train"].images == 7 and counts["test"].images == 6
    assert list(counts["train"].classes) == ["fox", "cat"]


def test_what_is_counted_is_what_is_read(tmp_path: Path) -> None:
    put_classes(tmp_path, "cat", "dog", each=7)
    source = opened(tmp_path, test_share=0.3)
    counts, decoded = source.counts(draw), source.read(draw)
    assert counts is not None
    for role, split in (("train", decoded.train), ("test", decoded.test)):
        assert list(counts[role].classes.values()) == split.labels_N.bincount().tolist()


def test_a_single_image_of_every_class_leaves_none_to_test_on(tmp_path: Path) -> None:
    put_classes(tmp_path, "cat", "dog", each=1)
    for look in (lambda: opened(tmp_path).counts(draw), lambda: read(tmp_path)):
        with pytest.raises(DataError, match=r"a class with one image leaves no test image, and "):
            look()


@pytest.mark.parametrize("name", ["__background__", "n01.tar.d", "v1.0 [final]", "a*b?", "-x"])
def test_any_name_may_be_that_of_a_class(tmp_path: Path, name: str) -> None:
    put_classes(tmp_path, "cat", name)
    assert groups(tmp_path) == {"train": {"cat": 4, name: 4}}
    decoded = read(tmp_path)
    assert set(decoded.class_names) == {"cat", name} and len(decoded.train.labels_N) == 6


def test_plan_and_run_say_which_folder_became_which_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(images, "PLUG_INS", ())
    put_classes(tmp_path / "pets" / "Train", "cat", "dog", each=6)
    put_classes(tmp_path / "pets" / "val", "cat", "dog", each=3)
    put(tmp_path / "pets" / "test", "0.png")
    (tmp_path / "pets" / "IMG.HEIC").write_bytes(HEIC)
    network = "{name: convnet, depth: 1, width: 2}"
    arguments = [
        toy_file(tmp_path),
        f"source.dataset={tmp_path / 'pets'}",
        "distill.canvas={name: pixels, ipc: 1}",
        "distill.objective.real_batch=5",
        f"distill.networks.network={network}",
        f"evaluate.network={network}",
    ]
    refused = command("plan", *arguments, "--json")
    assert (
        refused.code == 2 and "pillow-heif" in refused.err and "source.left_out=all" in refused.err
    )
    arguments.append("source.left_out=allow")
    planned = command("plan", *arguments, "--json")
    assert planned.code == 0, planned.err
    source = json.loads(planned.out)["source"]
    assert source["splits"]["train"]["images"] == 12
    assert source["splits"]["test"]["classes"] == {"cat": 3, "dog": 3}
    assert source["files"]["test"]["unlabeled"] == "its images lie in no folders of classes"
    assert [file["path"] for file in source["left_out"]] == ["IMG.HEIC"]
    shown = " ".join(command("plan", *arguments).out.split())
    assert "test 6 images of validation: cat 3, dog 3" in shown
    ran = command("run", *arguments, "--runs", tmp_path / "runs")
    assert ran.code == 0, ran.err
    for line in (
        "source: train: 12 images of Train/",
        "source: test: 1 image of test/, without labels: its images lie in no folders of classes",
        "source: left out: 1 file\n  IMG.HEIC: an image that needs the package pillow-heif",
        "source: training images per class, 6 to 6: cat 6, dog 6",
        "source: test images per class, 3 to 3: cat 3, dog 3",
    ):
        assert line in ran.err
