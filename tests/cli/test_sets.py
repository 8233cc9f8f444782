"""The verbs for a finished set: show, diff, pull and export, as a user calls them."""

import io
import json
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from support.toy_runs import command, hashes, toy_file

from distill_datasets.cli.sets import half_blocks
from distill_datasets.export.reading import load_rows
from distill_datasets.layouts.written import WRITTEN, class_folders


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run of the toy recipe has made."""
    folder = tmp_path_factory.mktemp("published")
    where = ["--runs", folder / "runs", "--output", folder / "set", "--quiet"]
    assert command("run", toy_file(folder), *where).code == 0
    return folder / "set"


def pixels(published: Path) -> np.ndarray:
    return np.stack([np.asarray(row["image"]) for row in load_rows(published, "default")])


def soft(published: Path) -> np.ndarray:
    return np.asarray(load_rows(published, "default")["soft_label"], dtype=np.float32)


def test_show_tells_what_a_set_is_and_copies_its_picture(published: Path, tmp_path: Path) -> None:
    answer = command("show", published, "--png", tmp_path / "set.png")
    assert answer.code == 0, answer.err
    assert "embedded:uci-digits, 10 classes" in answer.out
    assert "distilled, as published" in answer.out
    assert "▀" not in answer.out  # no terminal, no colors
    picture = published / "classes.png"
    assert (tmp_path / "set.png").read_bytes() == picture.read_bytes()
    again = command("show", published, "--png", tmp_path / "set.png")
    assert again.code == 2 and "set.png is already there" in again.err


def test_a_character_of_the_terminal_shows_two_pixels() -> None:
    image = Image.new("RGB", (3, 4), (255, 0, 0))
    image.putpixel((0, 1), (0, 0, 255))
    text = half_blocks(image, 80)
    assert text.plain == "▀▀▀\n▀▀▀\n"
    assert [str(span.style) for span in text.spans][:2] == [
        "#ff0000 on #0000ff",
        "#ff0000 on #ff0000",
    ]


def test_a_set_does_not_differ_from_itself(published: Path) -> None:
    answer = command("diff", published, published)
    assert (answer.code, answer.out) == (0, "no difference\n")


def test_diff_names_every_value_of_the_recipe_that_differs(published: Path, tmp_path: Path) -> None:
    where = ["--runs", tmp_path / "runs", "--output", tmp_path / "other", "--quiet"]
    assert command("run", toy_file(tmp_path), "distill.steps=2", *where).code == 0
    answer = command("diff", published, tmp_path / "other", "--json")
    found = {
        line["what"]: (line["first"], line["second"])
        for line in json.loads(answer.out)["differences"]
    }
    assert answer.code == 1
    assert found["recipe.distill.steps"] == ("4", "2")
    assert "bytes of the rows" in found and "recipe.seed" not in found


def test_pull_copies_a_set_and_refuses_a_damaged_one(published: Path, tmp_path: Path) -> None:
    assert command("pull", published, "--to", tmp_path / "mine").code == 0
    assert hashes(tmp_path / "mine") == hashes(published)
    damaged = tmp_path / "mine" / "recipe.yaml"
    damaged.write_text(damaged.read_text() + "#")
    answer = command("pull", tmp_path / "mine", "--to", tmp_path / "other")
    assert answer.code == 2 and "is damaged: recipe.yaml: " in answer.err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("layout", WRITTEN)
def test_an_exported_set_has_the_pixels_labels_and_names(
    published: Path, tmp_path: Path, layout: str
) -> None:
    to = tmp_path / "out"
    answer = command("export", published, "--layout", layout, "--to", to)
    assert answer.code == 0, answer.err
    images_NHW, soft_NK = pixels(published), soft(published)
    labels_N = soft_NK.argmax(axis=1)
    info = json.loads((to / "info.json").read_text())
    assert info["classes"] == [str(digit) for digit in range(10)] and len(info["mean"]) == 1
    if layout == "imagefolder":
        files = sorted(to.glob("train/*/*.png"), key=lambda path: path.name)
        assert [path.parent.name for path in files] == [str(label) for label in labels_N]
        found = np.stack([np.asarray(Image.open(path)) for path in files])
        found_soft = np.load(to / "soft_labels.npy")
    elif layout == "npz":
        with np.load(to / "rows.npz") as arrays:
            found, found_soft = arrays["images"][..., 0], arrays["soft_labels"]
            assert (arrays["labels"] == labels_N).all()
    elif layout == "pt":
        tensors = torch.load(to / "rows.pt", weights_only=True)
        found, found_soft = tensors["images"][:, 0].numpy(), tensors["soft_labels"].numpy()
        assert (tensors["labels"].numpy() == labels_N).all()
    else:
        with tarfile.open(to / "train-00000.tar") as tar:
            names = tar.getnames()
            assert names[:3] == ["00000000.cls", "00000000.png", "00000000.soft.npy"]
            files = [tar.extractfile(name) for name in names]
            opened = [io.BytesIO(file.read()) for file in files if file is not None]
        found = np.stack([np.asarray(Image.open(file)) for file in opened[1::3]])
        found_soft = np.stack([np.load(file) for file in opened[2::3]])
    assert (found == images_NHW).all() and (found_soft == soft_NK).all()


def test_an_exported_folder_is_an_image_folder_of_datasets(published: Path, tmp_path: Path) -> None:
    to = tmp_path / "out"
    assert command("export", published, "--layout", "imagefolder", "--to", to).code == 0
    rows = datasets.load_dataset("imagefolder", data_dir=str(to), cache_dir=str(tmp_path / "cache"))
    assert len(rows["train"]) == len(load_rows(published, "default"))


def test_an_unknown_layout_and_a_taken_folder_are_refused(published: Path, tmp_path: Path) -> None:
    answer = command("export", published, "--layout", "npy", "--to", tmp_path / "out")
    assert answer.code == 2 and "did you mean 'npz'?" in answer.err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    answer = command("export", published, "--layout", "npz", "--to", tmp_path / "mine")
    assert answer.code == 2 and "nothing in it will be overwritten" in answer.err


def test_hostile_and_like_names_of_classes_get_folders_of_their_own() -> None:
    names = ["../etc", "a/b", "A_b", "", "con\x00", "..", "é"]
    found = class_folders(names)
    assert len({name.casefold() for name in found}) == len(names)
    assert all("/" not in name and name not in ("", ".", "..") for name in found)
    assert found[6] == "é"
