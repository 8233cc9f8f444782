"""Every method by its name fits data of any number of classes, and runs."""

from pathlib import Path

import pytest
from PIL import Image
from support.image_sets import noise
from support.toy_runs import command

from distill_datasets.errors import RecipeError
from distill_datasets.export.folder import verify
from distill_datasets.presets import METHODS, OWN, SHIPPED, preset, recipe_for
from distill_datasets.recipe import load_recipe
from distill_datasets.types import Shape

SMALL_NET = "{name: convnet, depth: 2, width: 4}"
BATCHED = "{name: convnet, depth: 2, width: 4, norm: batch}"
SHORT = {
    "cda": ["distill.steps=2"],
    "edc": ["distill.steps=2"],
    "lpld": ["distill.steps=2"],
    "sre2l": ["distill.steps=2"],
    "mtt": ["distill.steps=2", "distill.objective.steps=2"],
    "dsa": ["distill.steps=2"],
    "frepo": ["distill.steps=2", "distill.networks.members=2"],
    "rded": [],
    "mgd3": ["generator.autoencoder.epochs=1", "generator.flow.epochs=1", "generator.steps=2"],
}
"""Of each family a method or more that is run, at toy scale."""


def pictures(folder: Path, classes: int, each: int = 8, side: int = 16) -> Path:
    for label in range(classes):
        (folder / f"class {label}").mkdir(parents=True)
        for row, image in enumerate(noise(each, 3, side, seed=label).numpy()):
            path = folder / f"class {label}" / f"{row}.png"
            Image.fromarray(image.transpose(1, 2, 0)).save(path)
    return folder


@pytest.mark.parametrize("classes", [4, 7, 89])
@pytest.mark.parametrize("method", METHODS)
def test_a_method_fits_any_number_of_classes(method: str, classes: int, tmp_path: Path) -> None:
    if method == "probe":
        pytest.skip("its backbone is of the lite extra; tests/test_api.py runs it")
    data = pictures(tmp_path / "data", classes, each=3, side=8)
    overrides = [] if method not in ("podd", "frepo-poster") else ["distill.canvas.ipc=0.75"]
    answer = command("plan", data, *overrides, "--method", method)
    assert answer.code == 0, answer.err
    assert f"; {classes} classes" in answer.out


@pytest.mark.parametrize("method", SHORT)
def test_a_method_runs_on_four_classes(method: str, tmp_path: Path) -> None:
    data, out = pictures(tmp_path / "pets", 4), tmp_path / "out"
    recipe = recipe_for(str(data), method)
    overrides = [
        *SHORT[method],
        "evaluate.beyond=null",
        "evaluate.students=1",
        "distill.canvas.ipc=1",
    ]
    net = SMALL_NET if recipe.relabel is None else BATCHED
    overrides += ["evaluate.epochs=1"] if recipe.evaluate.epochs else ["evaluate.steps=2"]
    overrides += [f"evaluate.network={net}", "evaluate.references=[]"]
    if recipe.squeeze is not None:
        overrides += [f"squeeze.network={net}", "squeeze.least_accuracy=0"]
    if recipe.relabel is not None:
        overrides += ["relabel.epochs=1", "relabel.batch=4", "evaluate.batch=4"]
    where = ["--runs", tmp_path / "runs", "--output", out, "--quiet"]
    answer = command("run", data, "--method", method, *overrides, *where)
    assert answer.code == 0, answer.err
    assert verify(out) == [] and (tmp_path / "runs" / f"pets-{method}").is_dir()


def test_the_settings_of_a_shipped_recipe_are_read_from_it_but_not_its_data() -> None:
    for method, name in SHIPPED.items():
        sections = preset(method)
        assert sections["name"] == method and "dataset" not in sections["source"]
        recipe = load_recipe(name)
        objective = sections["distill"]["objective"]
        named = objective if isinstance(objective, str) else objective["name"]
        assert named == recipe.distill.objective.name
    assert not OWN.keys() & SHIPPED.keys()


@pytest.mark.parametrize(("classes", "matched"), [(10, 100), (7, 70), (89, 89), (200, None)])
def test_as_many_images_of_equal_shares_are_matched_as_on_cifar(
    classes: int, matched: int | None
) -> None:
    sections = preset("sre2l", 10, shape=Shape(3, 32, 32, classes))
    assert sections["distill"]["objective"]["match_batch"] == matched


def test_large_pictures_are_shrunk_and_small_ones_are_left() -> None:
    assert preset("mtt", shape=Shape(3, 224, 300, 5))["source"]["resolution"] == 32
    assert "resolution" not in preset("mtt", shape=Shape(3, 64, 64, 5))["source"]


def test_a_budget_below_one_image_is_for_posters() -> None:
    with pytest.raises(RecipeError, match=r"dsa: got ipc=0.5, .* one of podd, frepo-poster"):
        preset("dsa", 0.5)
    assert preset("frepo-poster", 0.5)["distill"]["canvas"]["ipc"] == 0.5


def test_a_profile_does_not_go_with_a_method(tmp_path: Path) -> None:
    answer = command("plan", pictures(tmp_path / "p", 2), "--method", "dm", "--profile", "cpu")
    assert answer.code == 2 and "--profile: got 'cpu' with --method" in answer.err


@pytest.mark.parametrize("method", ["podd", "rat-bptt", "dm"])
def test_a_batch_is_no_larger_than_a_small_folder(method: str) -> None:
    sections = preset(method, shape=Shape(3, 32, 32, 4), rows=90)
    assert sections["distill"]["objective"]["real_batch"] == 90
