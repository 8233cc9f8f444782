"""The card made anew from a finished set: the same bytes, but for what people wrote."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.sample_content import (
    RESULTS,
    as_a_run_leaves,
    bytes_sample,
    pixels_sample,
    sample,
    views_of,
)
from support.toy_runs import command

from distill_datasets.errors import ArtifactError
from distill_datasets.export.agreement import problems
from distill_datasets.export.content import Content, Numbers
from distill_datasets.export.folder import verify, write_dataset
from distill_datasets.layouts.rewriting import rewritten, write_card


def drawn() -> Content:
    bases = Numbers(torch.arange(12, dtype=torch.uint8).view(3, 4), torch.ones(2, 4))
    half = Numbers(torch.zeros(2, 4, dtype=torch.float16), None)
    numbers = {"bases": bases, "weights": half}
    return sample(label_cells=[], numbers=numbers, decoder="images = bases")


def of_labels() -> Content:
    targets = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]).repeat(3, 1)
    return replace(pixels_sample(), task="labels", targets_NK=targets)


def several_channels() -> Content:
    images_NCHW = torch.arange(6 * 2 * 8 * 8).remainder(256).byte().view(6, 2, 8, 8)
    exact = images_NCHW.float() / 255
    changes: dict[str, Any] = {"images_NCHW": images_NCHW, "exact_NCHW": exact}
    changes |= {"originals": list(exact), "label_cells": [], "geometry": {"canvas": "pixels"}}
    return sample(channels=2, targets_NK=torch.eye(3).repeat(2, 1), **changes)


MADE = {
    "poster": sample,
    "pixels": pixels_sample,
    "views": lambda: bytes_sample(relabel=views_of("config")),
    "shards": lambda: bytes_sample(relabel=views_of("shards")),
    "numbers": drawn,
    "labels": of_labels,
    "channels": several_channels,
    "others": lambda: sample(
        starts_SP=torch.ones(1, 4), notes="Mine.", privacy="starts from real images"
    ),
}


def written(folder: Path, content: Content) -> Path:
    write_dataset(folder, as_a_run_leaves(content), RESULTS)
    return folder


@pytest.mark.parametrize("kind", MADE)
def test_a_card_that_nobody_edited_has_the_same_bytes(kind: str, tmp_path: Path) -> None:
    written(tmp_path / "set", MADE[kind]())
    found = rewritten(tmp_path / "set")
    assert found.text == (tmp_path / "set" / "README.md").read_text(encoding="utf-8")
    assert not found.changed and found.kept == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written(tmp_path / "set", sample())


def test_the_verb_keeps_words_and_mends_numbers(folder: Path) -> None:
    path, before = folder / "README.md", (folder / "README.md").read_text(encoding="utf-8")
    edited = before.replace("## Budget", "Our own words.\n\n## Budget")
    path.write_text(edited.replace("87.5", "99.5").replace("- pixels: 168", "- pixels: 7"))
    assert len(problems(folder)) == 2

    looked = command("card", folder, "--check", "--json")
    assert looked.code == 1 and json.loads(looked.out)["changed"]
    assert "99.5" in path.read_text(encoding="utf-8")
    answer = command("card", folder)

    assert answer.code == 0, answer.err
    assert "kept     Our own words." in answer.out and "written anew" in answer.out
    assert path.read_text(encoding="utf-8") == edited
    assert verify(folder) == [] and problems(folder) == []
    again = command("card", folder, "--check")
    assert again.code == 0 and "nothing to write" in again.out


def test_a_card_that_is_gone_is_written(folder: Path) -> None:
    path = folder / "README.md"
    before = path.read_bytes()
    path.unlink()
    write_card(folder, rewritten(folder))
    assert path.read_bytes() == before and verify(folder) == []


def test_no_card_is_made_of_a_damaged_set(folder: Path) -> None:
    (folder / "poster.png").write_bytes(b"another")
    with pytest.raises(ArtifactError, match=r"is damaged: poster\.png"):
        rewritten(folder)


def test_an_edited_card_of_an_earlier_release_is_left_alone(folder: Path) -> None:
    manifest = json.loads((folder / "distill.json").read_text(encoding="utf-8"))
    del manifest["card"]
    (folder / "distill.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert not rewritten(folder).changed
    (folder / "README.md").write_text("mine", encoding="utf-8")
    with pytest.raises(ArtifactError, match="does not say which parts of it are not"):
        rewritten(folder)
