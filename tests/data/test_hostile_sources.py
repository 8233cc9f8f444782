"""Sources made to harm or to confuse: rows that are right, or one clear refusal; never a traceback.

Every source is small and local. A secret image lies beside it; it must never be among the rows.
"""

import io
import json
import os
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.image_sets import draw, gray, png, values

from distill_datasets.data.source import Source, open_source
from distill_datasets.errors import DataError

SECRET = 77
LABELS = [0, 1] * 4
CELLS = [png(gray(row)) for row in range(8)]
ADDRESSES = ("http://127.0.0.1:9/x.png", "https://127.0.0.1:9/x.png", "ftp://127.0.0.1:9/x.png")


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    (tmp_path / "secret.png").write_bytes(png(gray(SECRET)))
    monkeypatch.chdir(tmp_path)


def table(root: Path, columns: dict[str, Any], name: str = "train.parquet") -> None:
    """A Parquet file that knows nothing of `datasets`."""
    pq.write_table(pa.table(columns), root / name)


def with_cell(cell: Any, row: int = 3) -> list[Any]:  # noqa: ANN401
    """Structs of bytes and path, one of them another."""
    cells: list[Any] = [{"bytes": each, "path": None} for each in CELLS]
    cells[row] = cell
    return cells


def named(path: str) -> Callable[[Path], None]:
    """A row that names a file and gives no bytes; `{root}` is the folder above the source."""

    def write(root: Path) -> None:
        cell = {"bytes": None, "path": path.format(root=root.parent)}
        table(root, {"image": with_cell(cell), "label": LABELS})

    return write


def image_bytes(content: bytes) -> Callable[[Path], None]:
    """A row whose bytes are these."""
    return lambda root: table(
        root, {"image": with_cell({"bytes": content, "path": None}), "label": LABELS}
    )


def labels(cells: list[Any], kind: Any = None) -> Callable[[Path], None]:  # noqa: ANN401
    """Labels of one type."""
    return lambda root: table(root, {"image": CELLS, "label": pa.array(cells, kind)})


def saved(kind: str) -> bytes:
    """An image in a format of PIL."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (1, 2, 3)).save(buffer, kind)
    return buffer.getvalue()


def bomb(side: int) -> bytes:
    """A PNG of a few bytes that says it is huge."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b"")


def fifo_in_row(root: Path) -> None:
    os.mkfifo(root / "pipe.png")
    named("pipe.png")(root)


def link_to_device(root: Path) -> None:
    (root / "zero.png").symlink_to("/dev/zero")
    named("zero.png")(root)


def folder_in_row(root: Path) -> None:
    (root / "inner").mkdir()
    named("inner")(root)


def tar(root: Path, files: list[tuple[str, bytes]], name: str = "train.tar") -> None:
    """A tar of files."""
    with tarfile.open(root / name, "w") as opened:
        for member_name, content in files:
            member = tarfile.TarInfo(member_name)
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))


def samples(extra: list[tuple[str, bytes]] = []) -> list[tuple[str, bytes]]:  # noqa: B006
    """Eight good samples and more files."""
    files: list[tuple[str, bytes]] = []
    for row, cell in enumerate(CELLS):
        files += [(f"{row}.png", cell), (f"{row}.cls", str(row % 2).encode())]
    return [*files, *extra]


def compressed_tar(root: Path) -> None:
    tar(root, samples())
    (root / "train.tar").write_bytes(zlib.compress((root / "train.tar").read_bytes()))


def deep_json(root: Path) -> None:
    deep = b'{"a":' * 5000 + b"1" + b"}" * 5000
    tar(root, samples([("8.png", CELLS[0]), ("8.json", deep)]))


def pickle_member(root: Path) -> None:
    program = b"cos\nsystem\n(S'touch pwned'\ntR."
    tar(root, samples([(f"{row}.pickle", program) for row in range(8)]))


def empty_file(root: Path) -> None:
    (root / "train.parquet").write_bytes(b"")


def zeros(root: Path) -> None:
    (root / "a.tar").write_bytes(bytes(5))


def truncated_parquet(root: Path) -> None:
    table(root, {"image": CELLS, "label": LABELS})
    content = (root / "train.parquet").read_bytes()
    (root / "train.parquet").write_bytes(content[: len(content) // 2] + b"PAR1")


def columns_without_end(root: Path) -> None:
    table(root, {"image": CELLS} | {f"column {number}": LABELS for number in range(3000)})


def two_schemas(root: Path) -> None:
    table(root, {"image": CELLS, "label": LABELS}, "a.parquet")
    table(root, {"picture": CELLS, "class": [str(label) for label in LABELS]}, "b.parquet")


def long_names(root: Path) -> None:
    kind = datasets.ClassLabel(names=["x" * 100_000, "y" * 100_000])
    cells = [{"bytes": cell, "path": None} for cell in CELLS]
    features = datasets.Features({"image": datasets.Image(), "label": kind})
    content = {"image": cells, "label": LABELS}
    datasets.Dataset.from_dict(content, features).save_to_disk(root)


def many_names(root: Path) -> None:
    table(
        root,
        {
            "image": CELLS[:1] * 100_001,
            "label": [f"class {row}" for row in range(100_001)],
        },
    )


def broken_card(root: Path) -> None:
    table(root, {"image": CELLS, "label": LABELS})
    (root / "README.md").write_text("---\nconfigs: [*a, {\n---\n")


def declared(count: int) -> pa.Schema:
    """Columns whose metadata name as many classes, as `datasets` writes it."""
    names = [str(number) for number in range(count)]
    kinds = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": names},
    }
    cells = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    described = json.dumps({"info": {"features": kinds}})
    fields = {"image": cells, "label": pa.int64()}
    return pa.schema(fields.items(), metadata={"huggingface": described})


def declaring_table() -> pa.Table:
    return pa.table({"image": with_cell(None), "label": LABELS}, declared(DECLARED))


def declaring_arrow(new: Callable[[Any, pa.Schema], Any]) -> Callable[[Path], None]:
    """Arrow as a stream or as a file."""

    def write(root: Path) -> None:
        rows = declaring_table()
        with pa.OSFile(str(root / "train.arrow"), "wb") as file, new(file, rows.schema) as writer:
            writer.write_table(rows)

    return write


def declaring_folder(root: Path) -> None:
    long_names(root)
    path = root / "dataset_info.json"
    information = json.loads(path.read_text())
    information["features"]["label"]["names"] = list(map(str, range(DECLARED)))
    path.write_text(json.dumps(information))


def declaring_card(root: Path) -> None:
    table(root, {"image": CELLS, "label": LABELS})
    names = "".join(f"          '{number}': name\n" for number in range(DECLARED))
    kind = "  - name: label\n    dtype:\n      class_label:\n        names:\n"
    (root / "README.md").write_text(f"---\ndataset_info:\n  features:\n{kind}{names}---\n")


def declaring_old_file(root: Path) -> None:
    table(root, {"image": CELLS, "label": LABELS})
    names = list(map(str, range(DECLARED)))
    label = {"_type": "ClassLabel", "names": names}
    information = {"default": {"features": {"label": label}}}
    (root / "dataset_infos.json").write_text(json.dumps(information))


GOOD, BAD = "read", "1 row"
DECLARED = 250_000

SOURCES: dict[str, tuple[Callable[[Path], None], str]] = {
    # paths in rows
    "absolute path": (named("{root}/secret.png"), "lies outside of the dataset"),
    "parent path": (named("../secret.png"), "leads out of a folder"),
    "parent inside": (named("inner/../../secret.png"), "leads out of a folder"),
    "home path": (named("~/secret.png"), "cannot be read"),
    "file address": (named("file://{root}/secret.png"), "is an address, and is not opened"),
    "local address": (named("local://{root}/secret.png"), "is an address"),
    "memory address": (named("memory://secret.png"), "is an address"),
    "data address": (named("data://x;base64,aGk="), "is an address"),
    **{f"address {place[:5]}": (named(place), "is an address") for place in ADDRESSES},
    "hub address": (named("hf://datasets/a/b/x.png"), "is an address"),
    "chained address": (named("simplecache::file://{root}/secret.png"), "is an address"),
    "zip outside": (named("zip://x.png::{root}/secret.zip"), "lies outside of the dataset"),
    "device": (named("/dev/zero"), "lies outside of the dataset"),
    "stdin": (named("/dev/stdin"), "lies outside of the dataset"),
    "process": (named("/proc/self/environ"), "lies outside of the dataset"),
    "pipe": (fifo_in_row, "is no regular file"),
    "linked device": (link_to_device, "is no regular file"),
    "folder": (folder_in_row, "is no regular file"),
    "null byte": (named("a\0b.png"), "cannot be read"),
    "long path": (named("x" * 5000), "cannot be read"),
    "empty path": (named(""), "the image is missing"),
    "newline path": (named("a\nb.png"), "cannot be read"),
    # bytes of images
    "text": (image_bytes(b"hello"), "no image PIL can identify"),
    "empty": (image_bytes(b""), "has no bytes"),
    "eps": (image_bytes(saved("EPS")), "no image PIL can identify"),
    "pdf": (image_bytes(saved("PDF")), "no image PIL can identify"),
    "svg": (image_bytes(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "no image PIL can"),
    "bomb": (image_bytes(bomb(60_000)), "cannot be decoded"),
    "bomb within bounds": (image_bytes(bomb(13_000)), "cannot be decoded"),
    "cut png": (image_bytes(saved("PNG")[:50]), BAD),
    "half a jpeg": (image_bytes(saved("JPEG")[:200]), BAD),
    "other size": (image_bytes(png(gray(1, 3, 3))), "set source.resolution"),
    "gif": (image_bytes(saved("GIF")), "one channel count against another"),
    # labels
    "fractions": (labels([0.5] * 8), "0 classes|8 rows|is not a class"),
    "not a number": (labels([float("nan")] * 8), "0 classes"),
    "infinite": (labels([0.0, 1.0] * 3 + [float("inf"), 1.0]), "the label inf is not a class"),
    "negative": (labels([-1, 0, 1, 0, 1, 0, 1, 0]), "the label -1 is negative"),
    "largest": (labels([2**63 - 1, 0] * 4), GOOD),
    "unsigned": (labels([2**64 - 1, 0] * 4, pa.uint64()), GOOD),
    "booleans": (labels([True, False] * 4), GOOD),
    "none": (labels([None] * 8, pa.int64()), "0 classes"),
    "dates": (labels([0] * 8, pa.date32()), "no label column among"),
    "structs": (labels([{"a": 1}] * 8), "no label column among"),
    "nested lists": (labels([[[0, 1]]] * 8), "no label column among"),
    "empty lists": (labels([[]] * 8, pa.list_(pa.int64())), "0 classes"),
    "long lists": (labels([list(range(10_000))] * 8), "0 classes"),
    "long words": (labels(["x" * 10_000, "y" * 10_000] * 4), "a class name of 10,000 characters"),
    "decimals": (labels([1] * 8, pa.decimal128(5)), "no label column among"),
    "names of classes too long": (long_names, "a class name of 100,000 characters"),
    "names without end": (many_names, "100,001 classes in the label column, at most 100,000"),
    # names of classes in what describes a file, refused before they are listed
    "parquet declares": (
        lambda root: pq.write_table(declaring_table(), root / "train.parquet"),
        "'train.parquet' declares 250,00",
    ),
    "arrow stream declares": (declaring_arrow(pa.ipc.new_stream), "'train.arrow' declares 250,00"),
    "arrow file declares": (declaring_arrow(pa.ipc.new_file), "'train.arrow' declares 250,00"),
    "saved folder declares": (declaring_folder, "'dataset_info.json' declares 250,0"),
    "card declares": (declaring_card, "README.md does not end within"),
    "old file declares": (declaring_old_file, "'dataset_infos.json' declares 250,00"),
    # files
    "cut parquet": (truncated_parquet, "cannot be read"),
    "columns without end": (columns_without_end, r"\(3001 columns\)"),
    "two schemas": (two_schemas, "cannot be read"),
    "no rows": (lambda root: table(root, {"image": pa.array([], pa.binary())}), "hold no row"),
    "empty file": (empty_file, "cannot be read"),
    "broken card": (broken_card, "read|cannot be read"),
    "compressed tar": (compressed_tar, "is no tar that can be read to its end"),
    "empty tar": (lambda root: tar(root, []), "no image in 1 tars"),
    "zeros as tar": (zeros, "is no tar"),
    "tar with deep json": (deep_json, "the label is missing"),
    "tar with pickles": (pickle_member, GOOD),
    "tar that climbs": (lambda root: tar(root, samples([("../../9.png", CELLS[0])])), "missing"),
    "tar of absolute names": (
        lambda root: tar(root, [(f"/etc/{name}", content) for name, content in samples()]),
        GOOD,
    ),
    "tar with huge label": (
        lambda root: tar(root, samples([("8.png", CELLS[0]), ("8.cls", b"9" * 10**6)])),
        "a class name of 1,000,000",
    ),
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_hostile_source_gives_right_rows_or_one_clear_refusal(tmp_path: Path, name: str) -> None:
    write, expected = SOURCES[name]
    root = tmp_path / "set"
    write(root)
    try:
        opened = open_source(Source(dataset=str(root), test_share=0.25))
        opened.peek()
        decoded = opened.read(draw)
    except DataError as error:
        message = str(error)
        assert expected != GOOD, message
        assert any(part in message for part in expected.split("|")) or expected.startswith(r"\("), (
            message
        )
        assert len(message) < 60_000
        assert "Traceback" not in message
    else:
        assert GOOD in expected.split("|"), "it was read"
        seen = values(decoded.train.images_NCHW) + values(decoded.test.images_NCHW)
        assert sorted(seen) == list(range(8))
        assert [value % 2 for value in values(decoded.train.images_NCHW)] == [
            int(int(decoded.class_names[label] not in ("0", "False")) == 1)
            for label in decoded.train.labels_N.tolist()
        ] or name in ("largest", "unsigned", "booleans")
    assert not (tmp_path / "pwned").exists()


def test_the_secret_beside_a_source_is_read_only_from_inside(tmp_path: Path) -> None:
    root = tmp_path / "set"
    (root / "images").mkdir()
    (root / "images" / "3.png").write_bytes(CELLS[3])
    named("images/3.png")(root)
    decoded = open_source(Source(dataset=str(root), test_share=0.25)).read(draw)
    seen = values(decoded.train.images_NCHW) + values(decoded.test.images_NCHW)
    assert sorted(seen) == list(range(8))


def test_there_are_more_than_forty_hostile_sources() -> None:
    assert len(SOURCES) > 60
    assert json.dumps(sorted(SOURCES)) and np.unique(list(SOURCES)).size == len(SOURCES)
