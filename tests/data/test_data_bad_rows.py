"""A broken row never ends a load without saying where it is and why."""

from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image
from support.image_sets import both, dataset, draw, features, gray, png, values

from distill_datasets.data import stores as storing
from distill_datasets.data.decoding import BadRow
from distill_datasets.data.real import Decoded
from distill_datasets.data.source import Source, open_source
from distill_datasets.errors import DataError


def read_object(rows: Any, **fields: Any) -> Decoded:  # noqa: ANN401
    """Read an object from Python."""
    source = Source(dataset="ignored", **fields)
    return open_source(source, rows).read(draw)


def encoded(cells: list[Any], labels: list[Any], label: Any = None) -> datasets.DatasetDict:  # noqa: ANN401
    """Training rows from undecoded cells (bytes, a path or None) and a good test split."""
    kind = label or datasets.ClassLabel(names=["cat", "dog"])
    rows = datasets.Dataset.from_dict(
        {
            "image": [{"bytes": cell} if isinstance(cell, bytes) else cell for cell in cells],
            "label": labels,
        },
        features=features(kind),
    )
    return datasets.DatasetDict(train=rows, test=dataset([0, 1], kind, first_value=100))


GOOD = [png(gray(0)), png(gray(1)), png(gray(2)), png(gray(3))]
NOISE = png(Image.effect_noise((64, 64), 50))


def bad_images(folder: Path) -> datasets.DatasetDict:
    """Rows 0 and 4 are good, the others are each broken in another way."""
    cells = [
        GOOD[0],
        None,
        NOISE[: len(NOISE) // 2],
        b"no image",
        GOOD[1],
        {"path": str(folder / "gone.png"), "bytes": None},
        b"",
    ]
    return encoded(cells, [0, 0, 1, 0, 1, 1, 0])


def test_every_broken_image_is_listed_with_row_and_reason(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_object(bad_images(tmp_path))
    lines = str(caught.value).splitlines()
    assert lines[0] == "5 rows cannot be used:"
    assert lines[1] == "  train row 1: the image is missing"
    assert lines[2].startswith("  train row 2: the image cannot be decoded (")
    assert lines[3] == "  train row 3: 8 bytes that are no image PIL can identify"
    assert lines[4].startswith("  train row 5: the image file cannot be read (")
    assert lines[5] == "  train row 6: the image has no bytes"
    assert lines[6] == "set source.skip_bad_rows=true (or --skip-bad-rows) to leave them out"


def test_an_image_in_a_file_is_named_by_the_file(tmp_path: Path) -> None:
    for name, image in (("cat", gray(1)), ("dog", gray(2)), ("emu", gray(3, 4, 4))):
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / "0.png")
    (tmp_path / "cat" / "1.png").write_bytes(b"no image")
    source = Source(dataset=str(tmp_path), test_share=0.3)
    with pytest.raises(DataError, match=r"\(emu/0\.png\)"):
        open_source(source).read(draw)
    (tmp_path / "emu" / "0.png").unlink()
    with pytest.raises(DataError, match=r"no image PIL can identify \(cat/1.png\)"):
        open_source(source).read(draw)


def test_broken_rows_are_left_out_and_logged_on_request(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    decoded = read_object(bad_images(tmp_path), skip_bad_rows=True)
    assert values(decoded.train.images_NCHW) == [0, 1]
    assert decoded.train.labels_N.tolist() == [0, 1]
    assert [row.row for row in decoded.skipped] == [1, 2, 3, 5, 6]
    assert decoded.skipped[0] == BadRow("train", 1, "the image is missing")
    assert "5 rows left out:" in caplog.text


@pytest.mark.parametrize(
    ("label", "kind", "reason"),
    [
        (None, None, "the label is missing"),
        (-1, None, "the label -1 is negative, which usually marks an unlabeled row"),
        (None, datasets.Value("string"), "the label is missing"),
        (-5, datasets.Value("int64"), "the label -5 is negative"),
    ],
)
def test_an_unusable_label_is_a_bad_row(label: Any, kind: Any, reason: str) -> None:  # noqa: ANN401
    strings = kind is not None and kind.dtype == "string"
    labels = ["a", "b", "a"] if strings else [0, 1, 0]
    rows = datasets.DatasetDict(
        train=dataset([*labels, label], kind), test=dataset(labels, kind, first_value=100)
    )
    with pytest.raises(DataError, match=rf"1 row cannot be used:\n  train row 3: {reason}"):
        read_object(rows)
    assert len(read_object(rows, skip_bad_rows=True).train.labels_N) == 3


def test_a_label_beyond_the_class_names_is_a_bad_row() -> None:
    rows = both(datasets.Value("int64"))
    rows["test"] = dataset([0, 1, 7], datasets.Value("int64"), first_value=100)
    with pytest.raises(DataError, match=r"test row 2: the label 7 is none of the 2 known classes"):
        read_object(rows)


def test_at_most_twenty_rows_are_listed_with_the_total() -> None:
    with pytest.raises(DataError) as caught:
        read_object(encoded([*GOOD, *[None] * 30], [0, 1] * 17))
    lines = str(caught.value).splitlines()
    assert lines[0] == "30 rows cannot be used:"
    assert len([line for line in lines if line.startswith("  train row")]) == 20
    assert lines[21] == "  ... and 10 more"


def test_broken_rows_of_the_test_split_come_after_those_of_train() -> None:
    rows = encoded([*GOOD, None], [0, 1, 0, 1, 0])
    rows["test"] = encoded([GOOD[0], None, GOOD[1]], [0, 0, 1])["train"]
    skipped = read_object(rows, skip_bad_rows=True).skipped
    assert [(row.split, row.row) for row in skipped] == [("train", 4), ("test", 1)]


def test_gray_and_color_together_are_refused_with_advice() -> None:
    cells = [GOOD[0], GOOD[1], png(Image.new("RGB", (2, 2)))]
    with pytest.raises(
        DataError,
        match=r"train row 0 has 1 channel \(gray\) and train row 2 has 3 channels \(color\): one "
        r"channel count against another; set source.channels",
    ):
        read_object(encoded(cells, [0, 1, 0]))
    assert read_object(encoded(cells, [0, 1, 0]), channels="rgb").shape.c == 3
    assert read_object(encoded(cells, [0, 1, 0]), channels="gray").shape.c == 1


def test_color_in_the_test_split_only_is_refused_too() -> None:
    rows = encoded(GOOD, [0, 1, 0, 1])
    rows["test"] = encoded([png(Image.new("RGB", (2, 2)))] * 2, [0, 1])["train"]
    with pytest.raises(DataError, match=r"test row 0 has 3 channels .*one channel count against"):
        read_object(rows)


def test_different_sizes_are_refused_until_a_resolution_is_set() -> None:
    rows = encoded([GOOD[0], png(gray(1, height=2, width=3))], [0, 1])
    with pytest.raises(
        DataError,
        match=r"train row 0 is 2x2 px \(height x width\) and train row 1 is 2x3 px; set source.re",
    ):
        read_object(rows)
    assert read_object(rows, resolution=4).train.images_NCHW.shape == (2, 1, 4, 4)


def test_an_unusable_first_image_decides_nothing() -> None:
    rows = encoded([None, *GOOD[:2]], [0, 0, 1])
    assert read_object(rows, skip_bad_rows=True).shape.h == 2
    assert open_source(Source(dataset="ignored"), rows).peek()[0].h == 2


def test_peek_says_why_no_image_could_be_used() -> None:
    with pytest.raises(
        DataError, match=r"none of the first rows holds a usable image: train row 0: "
    ):
        open_source(Source(dataset="ignored"), encoded([None, b"x"], [0, 1])).peek()


def test_pixels_that_do_not_fit_in_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storing, "available_bytes", lambda: 15)
    with pytest.raises(
        DataError, match=r"4 images of 1x2x2\) and 0.0 GiB are free; set source.limit"
    ):
        read_object(both())


def test_an_iterable_that_runs_dry_is_explained() -> None:
    source = [{"image": gray(row), "label": row % 2} for row in range(4)]
    rounds = iter([source, source, source, source[:2]])
    rows = datasets.IterableDataset.from_generator(
        lambda: iter(next(rounds)), features=features(datasets.ClassLabel(names=["cat", "dog"]))
    )
    with pytest.raises(DataError, match=r"gave 1 of 2 rows when it was read again"):
        read_object(rows, test_share=0.5)


def test_the_mode_of_an_image_feature_is_honored() -> None:
    kinds = datasets.Features(
        {"image": datasets.Image(mode="L"), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    rows = datasets.Dataset.from_dict(
        {"image": [Image.new("RGB", (2, 2), (9, 9, 9))] * 4, "label": [0, 1, 0, 1]}, features=kinds
    )
    assert read_object(rows).shape.c == 1
