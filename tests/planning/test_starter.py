"""`init` writes a recipe that is valid, says what was found, and is sized to the minutes asked."""

from pathlib import Path

import pytest
from PIL import Image
from support.image_sets import noise
from support.other_kinds import folder_of
from support.toy_runs import command

from distill_datasets.canvases.bases import Bases
from distill_datasets.export.folder import read_manifest
from distill_datasets.export.reading import load_rows
from distill_datasets.files.yaml_text import from_yaml
from distill_datasets.planning.starter import bases_for
from distill_datasets.recipe import load_recipe
from distill_datasets.types import Shape


def pictures(folder: Path, side: int) -> Path:
    """Two classes with eight color pictures each."""
    for label, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for row, image in enumerate(noise(8, 3, side, seed=label).numpy()):
            Image.fromarray(image.transpose(1, 2, 0)).save(folder / name / f"{row}.png")
    return folder


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures of 100 px, and their parent as the working folder."""
    monkeypatch.chdir(tmp_path)
    return pictures(tmp_path / "photos", 100)


def test_a_folder_of_photos_gets_a_probe_that_check_accepts(photos: Path) -> None:
    answer = command("init", "photos", "--minutes", "0.1")
    assert answer.code == 0, answer.err
    assert "of 2 classes, 3 x 100 x 100 px" in answer.out
    assert "distill-datasets run photos.yaml" in answer.out
    recipe = load_recipe("photos.yaml")
    assert (recipe.name, recipe.source.dataset) == ("photos", "photos")
    assert (recipe.distill.objective.name, recipe.source.resolution) == ("linear", 96)


def test_a_folder_of_sounds_gets_the_view_that_sees_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder_of("audio", tmp_path / "sounds", {"train": 8, "test": 2}, classes=2)
    answer = command("init", "sounds", "--minutes", "0.1")
    assert answer.code == 0, answer.err
    assert "of 2 classes, 1 x 64 x 64 px" in answer.out
    source = load_recipe("sounds.yaml").source
    assert source.view is not None and (source.view.name, source.resolution) == ("mel", 32)
    Path("sounds.yaml").unlink()
    refused = command("init", "sounds", "--for", "probe")
    assert refused.code == 2 and "is seen by the view mel; take --for scratch" in refused.err


@pytest.mark.parametrize(
    ("shape", "ipc", "bases"),
    [
        (Shape(1, 28, 28, 10), 0.5, 14),
        (Shape(3, 32, 32, 10), 1, 56),
        (Shape(3, 32, 32, 100), 1, None),
        (Shape(1, 8, 8, 10), 1, None),
    ],
)
def test_mixtures_have_the_bases_of_the_measured_recipes(
    shape: Shape, ipc: float, bases: int | None
) -> None:
    assert bases_for(shape, ipc) == bases
    for name in ("mnist", "cifar10") if bases else ():
        canvas = load_recipe(f"{name}/regression-bases").distill.canvas
        assert isinstance(canvas, Bases)
        if canvas.ipc == ipc:
            assert canvas.bases == bases


@pytest.mark.parametrize(("use", "canvas"), [("scratch", "bases"), ("poster", "poster")])
def test_the_use_and_the_budget_decide_the_canvas(photos: Path, use: str, canvas: str) -> None:
    budget = {"scratch": "2", "poster": "0.5"}[use]
    pictures(Path("thumbnails"), 12)
    asked = ["--for", use, "--ipc", budget, "--minutes", "0.1", "--to", "mine.yaml"]
    assert command("init", "thumbnails", *asked).code == 0
    written = from_yaml(Path("mine.yaml").read_text(encoding="utf-8"))
    assert written["distill"]["canvas"]["name"] == canvas
    assert written["distill"]["canvas"]["ipc"] == float(budget)
    assert written["source"]["normalization"] == "zca"
    assert command("check", "mine.yaml").code == 0


def test_more_minutes_are_more_steps(photos: Path) -> None:
    steps = []
    for minutes in ("0.5", "5"):
        asked = ["--for", "poster", "--minutes", minutes, "--to", f"{minutes}.yaml"]
        assert command("init", "embedded:uci-digits", *asked).code == 0
        steps.append(load_recipe(f"{minutes}.yaml").distill.steps)
    assert 100 <= steps[0] < steps[1] <= 20_000


def test_a_file_that_is_there_is_never_written_over(photos: Path) -> None:
    Path("photos.yaml").write_text("mine")
    answer = command("init", "photos")
    assert answer.code == 2 and "photos.yaml is already there" in answer.err
    assert Path("photos.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["--ipc", "0.5"], ["--ipc: got 0.5 for probe", "--for poster"]),
        (["--minutes", "0"], ["--minutes: got 0, expected more than 0"]),
        (["--to", "nowhere/mine.yaml"], ["no folder nowhere"]),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    photos: Path, asked: list[str], words: list[str]
) -> None:
    answer = command("init", "photos", *asked)
    assert answer.code == 2 and all(word in answer.err for word in words), answer.err
    assert not list(photos.parent.glob("*.yaml"))


def test_a_dataset_that_is_not_there_is_told_as_everywhere(photos: Path) -> None:
    answer = command("init", "fotos")
    assert answer.code == 2 and "fotos" in answer.err and "Traceback" not in answer.err


@pytest.mark.parametrize("use", ["scratch", "poster"])
def test_a_folder_of_photos_goes_from_init_over_check_to_a_measured_set(
    photos: Path, use: str
) -> None:
    pictures(Path("small"), 12)
    assert command("init", "small", "--for", use, "--minutes", "0.05").code == 0
    assert "valid" in command("check", "small.yaml").out
    few = ["distill.steps=3", "evaluate.students=1", "evaluate.steps=3"]
    answer = command("run", "small.yaml", *few, "--output", "set", "--quiet")
    assert answer.code == 0, answer.err
    assert "random_real" in {row["from"] for row in read_manifest(Path("set"))["results"]}
    rows = load_rows(Path("set"), "default")
    assert rows.features["label"].names == ["cat", "dog"] and len(rows) > 1
    assert command("verify", "set").code == 0
