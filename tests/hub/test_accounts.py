"""Every file of a source on the Hub is read or named, as of one on this machine; also offline."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.hub_reading import ask
from support.hub_server import HubServer
from support.image_sets import gray, png

pytestmark = pytest.mark.timeout(150)  # each starts a process that imports torch and datasets


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    with HubServer({}) as server:
        yield server


def table(first: int, count: int = 4) -> bytes:
    """A Parquet file with rows of the values from `first` on, in two classes in turn."""
    cells = [png(gray(first + row)) for row in range(count)]
    buffer = io.BytesIO()
    rows = pa.table({"image": cells, "label": [row % 2 for row in range(count)]})
    pq.write_table(rows, buffer)
    return buffer.getvalue()


def tar(first: int, count: int = 4) -> bytes:
    """A tar with as many samples, every other image a `.jpeg` by its name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as opened:
        for row in range(count):
            image = "jpeg" if row % 2 else "png"
            for ending, content in ((image, png(gray(first + row))), ("cls", b"%d" % (row % 2))):
                member = tarfile.TarInfo(f"{first + row:04d}.{ending}")
                member.size = len(content)
                opened.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def card(**splits: str) -> bytes:
    """A README.md that says which files make which split."""
    files = "".join(f"  - {{split: {split}, path: '{path}'}}\n" for split, path in splits.items())
    return f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n".encode()


def files_of(answer: dict[str, Any]) -> dict[str, list[str]]:
    return {split: found["origin"] for split, found in answer["account"]["files"].items()}


def test_parquet_files_of_the_hub_are_dealt_to_splits_as_those_of_a_folder(
    server: HubServer, tmp_path: Path
) -> None:
    parts = {
        f"part {word}.parquet": table(10 * place) for place, word in enumerate(("cat", "train"))
    }
    server.commit("lab/parts", parts | {"notes.txt": b"x"})
    server.commit("lab/mixed", {"train.parquet": table(0), "extra.parquet": table(10)})
    parted, mixed = ask(
        server.url, tmp_path, "read", {"dataset": "lab/parts"}, {"dataset": "lab/mixed"}
    )
    assert sorted(parted["train"] + parted["test"]) == [0, 1, 2, 3, 10, 11, 12, 13]
    assert files_of(parted) == {"train": ["part cat.parquet", "part train.parquet"]}
    assert parted["account"]["files"]["train"]["images"] == 8
    assert parted["account"]["left_out"] == [] and parted["account"]["other"] == {".txt": 1}
    assert parted["counts"]["train"] == {"0": 3, "1": 3} and parted["names"] == ["0", "1"]
    assert "1 of 2 files are called like a split ('train.parquet'), and these" in mixed["error"]


def test_what_a_card_does_not_name_is_left_out_and_refused(
    server: HubServer, tmp_path: Path
) -> None:
    named = {"README.md": card(train="a/*.parquet", test="b.parquet")}
    named |= {"a/0.parquet": table(0), "b.parquet": table(100), "c.parquet": table(50)}
    server.commit("lab/card", named)
    server.commit("lab/twice", named | {"README.md": card(train="**/*.parquet", test="b.parquet")})
    others = b"- {config_name: other, data_files: c.parquet}\n---\n"
    server.commit("lab/several", named | {"README.md": named["README.md"][:-4] + others})
    dataset = {"dataset": "lab/card"}
    refused, allowed, twice, several = ask(
        server.url,
        tmp_path,
        "read",
        dataset,
        {**dataset, "left_out": "allow"},
        {"dataset": "lab/twice"},
        {"dataset": "lab/several", "config": "default"},
    )
    assert "leaves out 1 file\n  c.parquet: in no split that README.md names" in refused["error"]
    assert allowed["train"] == [0, 1, 2, 3] and allowed["test"] == [100, 101, 102, 103]
    assert files_of(allowed) == {"train": ["a/0.parquet"], "test": ["b.parquet"]}
    assert [file["path"] for file in allowed["account"]["left_out"]] == ["c.parquet"]
    assert "README.md puts 'b.parquet' into the splits 'train' and 'test'" in twice["error"]
    assert several["test"] == allowed["test"]
    assert several["account"]["other"] == {".md": 1, ".parquet of other configs": 1}


def test_names_of_classes_that_only_a_card_has_are_kept(server: HubServer, tmp_path: Path) -> None:
    names = "names: {'0': cat, '1': dog}"
    kinds = f"[{{name: image, dtype: image}}, {{name: label, dtype: {{class_label: {{{names}}}}}}}]"
    card = f"---\ndataset_info: {{features: {kinds}}}\n---\n".encode()
    server.commit("lab/declared", {"README.md": card, "0.parquet": table(0), "1.parquet": table(4)})
    source = {"dataset": "lab/declared"}
    (online,) = ask(server.url, tmp_path, "read", source)
    assert online["names"] == ["cat", "dog"] and len(online["train"] + online["test"]) == 8
    assert files_of(online) == {"train": ["0.parquet", "1.parquet"]}
    assert ask(server.url, tmp_path, "read", source, HF_HUB_OFFLINE="1") == [online]


def test_tars_of_the_hub_are_read_as_those_of_a_folder(server: HubServer, tmp_path: Path) -> None:
    tars = {"data/train-0000.tar": tar(0), "data/test-0000.tar": tar(100)}
    server.commit("lab/tars", tars | {"README.md": b"tars\n"})
    server.commit("lab/named", {"README.md": card(train="x.tar"), "x.tar": tar(0), "y.tar": tar(9)})
    answer, named = ask(
        server.url, tmp_path, "read", {"dataset": "lab/tars"}, {"dataset": "lab/named"}
    )
    assert answer["train"] == [0, 1, 2, 3] and answer["test"] == [100, 101, 102, 103]
    assert files_of(answer) == {"train": ["data/train-0000.tar"], "test": ["data/test-0000.tar"]}
    assert answer["counts"]["train"] == {"0": 2, "1": 2}
    assert "leaves out 1 file\n  y.tar: in no split that README.md names" in named["error"]


def test_folders_of_images_and_tables_are_read_offline_once_they_were_downloaded(
    server: HubServer, tmp_path: Path
) -> None:
    images = {f"{name}/{row}.png": png(gray(row)) for name in ("cat", "dog") for row in range(4)}
    server.commit("lab/night", images)
    server.commit("lab/table", {"train.parquet": table(0), "test.parquet": table(100)})
    sources = [{"dataset": "lab/night"}, {"dataset": "lab/table"}]
    online = ask(server.url, tmp_path, "read", *sources)
    asked = len(server.requests)
    offline = ask(server.url, tmp_path, "read", *sources, HF_HUB_OFFLINE="1")
    assert offline == online and online[0]["names"] == ["cat", "dog"]
    assert len(server.requests) == asked
    # a picture that is lost from the cache is missed, not left away
    next(tmp_path.glob("hub/datasets--lab--night/snapshots/*/cat/2.png")).unlink()
    (lost,) = ask(server.url, tmp_path, "read", sources[0], HF_HUB_OFFLINE="1")
    assert "'lab/night'" in lost["error"] and "connection" in lost["error"]


def test_two_million_class_names_on_the_hub_are_refused_by_the_footer(
    server: HubServer, tmp_path: Path
) -> None:
    names = '"' + '","'.join(map(str, range(250_000))) + '"'
    declared = f'{{"info": {{"features": {{"label": {{"names": [{names}]}}}}}}}}'
    rows = pq.read_table(io.BytesIO(table(0))).replace_schema_metadata({"huggingface": declared})
    buffer = io.BytesIO()
    pq.write_table(rows, buffer)
    server.commit("lab/names", {"train.parquet": buffer.getvalue()})
    (answer,) = ask(server.url, tmp_path, "read", {"dataset": "lab/names"})
    assert "'train.parquet' declares 250,0" in answer["error"]
