"""The guide to the published format says of every column and key what the code writes."""

import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from support.relabel_problem import SHAPE, content_of
from support.sample_content import RESULTS, sample

import distill_datasets.export
from distill_datasets.export.configs import configs
from distill_datasets.export.content import Content, Numbers
from distill_datasets.export.folder import write_dataset
from distill_datasets.files.parquet import Feature

GUIDE = (Path(distill_datasets.export.__file__).parent / "README.md").read_text(encoding="utf-8")


def table(heading: str) -> list[list[str]]:
    """The rows of the first table below a heading, without the line of names."""
    section = GUIDE.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line[:1] == "|"]
    return [[cell.strip().replace("`", "") for cell in row] for row in rows[2:]]


COLUMNS = {(config, name): (kind, size) for config, name, kind, size, _ in table("The columns")}


def spelled(feature: Feature) -> str:
    if feature["_type"] == "Sequence":
        return f"list of {feature['feature']['dtype']}"
    return str(feature.get("dtype", feature["_type"]))


def agree(content: Content, letters: dict[str, int]) -> set[tuple[str, str]]:
    """Compare the columns of a dataset with the guide; those that it has."""
    seen = set()
    for config in configs(content, "", None):
        for name, feature in config.features.items():
            kind, size = COLUMNS[config.name, name]
            assert kind == spelled(feature), (config.name, name)
            length = eval(size, {}, letters) if size else None
            assert length == feature.get("length"), (config.name, name)
            seen.add((config.name, name))
    return seen


def test_every_column_stands_in_the_guide_and_no_other(tmp_path: Path) -> None:
    letters = {"K": 3, "C": 3, "H": 8, "W": 8}
    seen = agree(sample(), letters)
    eight = Numbers(torch.zeros(2, 3, dtype=torch.uint8), torch.ones(2, 3))
    half = Numbers(torch.zeros(2, 4, dtype=torch.float16), None)
    seen |= agree(sample(numbers={"blobs": eight, "weights": half}), letters)
    letters = {"K": SHAPE.k, "C": SHAPE.c, "H": SHAPE.h, "W": SHAPE.w, "T": 2, "top_k": 2}
    forms: list[dict[str, Any]] = [
        {},
        {"store_as": "features"},
        {"store_as": "top_k", "top_k": 2, "tiles": 2},
    ]
    for number, fields in enumerate(forms):
        content = content_of(tmp_path / str(number), **fields)
        assert content.relabel is not None
        weights = content.relabel.constants.get("weight_KD", torch.empty(1, 1))
        seen |= agree(content, {**letters, "D": weights.shape[1]})
    assert seen == COLUMNS.keys()


def test_every_key_of_the_manifest_stands_in_the_guide_in_order(tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path / "data", sample(), RESULTS)
    assert [key for key, _ in table("The manifest")] == list(manifest)
    paths = {re.sub(r"-\d+-of-\d+", "-*", file["path"]) for file in manifest["files"]}
    listed = {path for path, _, when in table("The folder") if when == "always"}
    assert listed - {"distill.json"} <= paths
    assert paths <= {path for path, *_ in table("The folder")}


def test_the_lines_of_the_guide_rebuild_the_rows_of_a_poster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    content = sample()
    write_dataset(tmp_path / "data", content, None)
    (code,) = re.findall(r"```python\n(.*?)\n```", GUIDE, flags=re.DOTALL)
    scope: dict[str, Any] = {}
    exec(code.replace("FOLDER", str(tmp_path / "data")), scope)
    images_NCHW = np.stack(scope["images"]) * 255
    assert np.abs(images_NCHW - content.images_NCHW.numpy()).max() <= 0.51
    np.testing.assert_allclose(np.stack(scope["labels"]), content.targets_NK, atol=1e-6)
