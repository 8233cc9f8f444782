"""Cards, metadata and names of a source that were written carelessly, or to do harm."""

import json
from pathlib import Path

import datasets
import pytest
from support.image_sets import dataset, gray

from distill_datasets.data.source import Source, open_source
from distill_datasets.errors import DataError

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
LOOP = "license: &l [*l]\n"
CONFIGS = "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {}\n"
BROKEN = {
    "tabs": "license:\n\tmit\n",
    "a bracket left open": "license: [mit\n",
    "a colon too many": "license: mit: apache\n",
    "a boolean that is none": "license: !!bool maybe\n",
    "a date that is none": "license: !!timestamp tomorrow\n",
    "a Python object": "license: !!python/object/apply:os.system ['true']\n",
    "aliases that multiply": BOMB + "license: *i\n",
    "a list inside itself": LOOP,
    "depth": "license: " + "[" * 3000 + "]" * 3000 + "\n",
    "5,000 digits": f"license: {'9' * 5000}\n",
    "a key given twice": "license: mit\nlicense: mit\n",
    "a list in place of keys": "- license\n- mit\n",
    "a text in place of keys": "just words\n",
    "a control character": "license: 'a\x07b'\n",
    "an alias of nothing": "license: *nothing\n",
}


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def parquet(folder: Path, **files: str) -> Source:
    """A folder with a Parquet file for each split and other files beside it."""
    folder.mkdir()
    for split in ("train", "test"):
        dataset([0, 1, 0, 1]).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return Source(dataset=str(folder))


@pytest.mark.parametrize("card", BROKEN.values(), ids=BROKEN)
def test_a_card_that_cannot_be_trusted_is_named(tmp_path: Path, card: str) -> None:
    source = parquet(tmp_path / "pets", README_md=f"---\n{card}---\n# Pets\n")
    with pytest.raises(DataError) as refused:
        open_source(source).peek()
    said = str(refused.value)
    assert "README.md" in said and "mend it" in said
    assert len(said) < 700 and "\n" not in said


def test_a_card_that_is_no_utf_8_is_named(tmp_path: Path) -> None:
    source = parquet(tmp_path / "pets")
    (tmp_path / "pets" / "README.md").write_bytes(b"---\nlicense: \xff\xfe\n---\n")
    with pytest.raises(DataError, match=r"README\.md is not UTF-8 text; mend it"):
        open_source(source).peek()


@pytest.mark.parametrize(
    "card",
    [
        "",
        "# Pets\n---\nlicense: [open\n---\n",
        "---\n---\n",
        "---\n# only a comment\n---\n",
        "---\nlicense: no\nlanguage:\n- no\n---\n",
        "---\r\nlicense: mit\r\n---\r\n",
        "---\nlicense: mit\n",
    ],
)
def test_a_card_that_says_little_says_nothing_wrong(tmp_path: Path, card: str) -> None:
    shape, names = open_source(parquet(tmp_path / "pets", README_md=card)).peek()
    assert (shape.k, names) == (2, ["cat", "dog"])


@pytest.mark.parametrize("path", ["absent.parquet", "../elsewhere.parquet", "/etc/hostname"])
def test_a_card_that_names_files_elsewhere_is_refused(tmp_path: Path, path: str) -> None:
    source = parquet(tmp_path / "pets", README_md=f"---\n{CONFIGS.format(path)}---\n")
    dataset([1, 1, 1, 1]).to_parquet(tmp_path / "elsewhere.parquet")
    with pytest.raises(DataError) as refused:
        open_source(source).peek()
    assert "Traceback" not in str(refused.value) and path in str(refused.value)


@pytest.mark.parametrize(
    "state",
    ["", "{", "[]", "null", "[" * 5000, json.dumps({"_data_files": [{"filename": "../../x"}]})],
)
def test_what_save_to_disk_wrote_and_somebody_changed_is_refused(
    tmp_path: Path, state: str
) -> None:
    dataset([0, 1]).save_to_disk(tmp_path / "pets")
    (tmp_path / "pets" / "state.json").write_text(state)
    with pytest.raises(DataError, match=r"is not what save_to_disk wrote|does not lie beside it"):
        open_source(Source(dataset=str(tmp_path / "pets"))).peek()


@pytest.mark.parametrize("content", ["", "null", "[]", '{"features": 3}', "[" * 5000])
def test_a_description_that_somebody_changed_is_refused(tmp_path: Path, content: str) -> None:
    dataset([0, 1]).save_to_disk(tmp_path / "pets")
    (tmp_path / "pets" / "dataset_info.json").write_text(content)
    with pytest.raises(DataError, match="is not what save_to_disk wrote"):
        open_source(Source(dataset=str(tmp_path / "pets"))).peek()


@pytest.mark.parametrize(
    "metadata",
    ["", "file_name\n", "file_name,label\n../../etc/passwd,cat\n", "\x00\x01", "a,b\n1\n1,2,3\n"],
)
def test_metadata_of_a_folder_that_says_nothing_of_it_is_refused(
    tmp_path: Path, metadata: str
) -> None:
    (tmp_path / "pets").mkdir()
    gray(3).save(tmp_path / "pets" / "0.png")
    (tmp_path / "pets" / "metadata.csv").write_text(metadata)
    with pytest.raises(DataError, match=r"pets|source"):
        open_source(Source(dataset=str(tmp_path / "pets"))).peek()
