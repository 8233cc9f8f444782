"""The recipes that ship with the package: found by name from any folder, and their headers."""

from pathlib import Path

import pytest
from support import REPOSITORY

from distill_datasets.errors import RecipeError
from distill_datasets.files.shipped import TITLES, ShippedRecipe, recipe_file, shipped
from distill_datasets.recipe import load_recipe

FOLDER = REPOSITORY / "recipes"


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_recipe_is_listed_by_its_name_with_the_whole_header() -> None:
    listed = {recipe.name: recipe for recipe in shipped()}
    files = {file.relative_to(FOLDER).with_suffix("").as_posix() for file in FOLDER.rglob("*.yaml")}
    assert listed.keys() == files and "cifar10/podd" in files
    assert all(tuple(recipe.header) == TITLES for recipe in listed.values())
    assert next(iter(listed)) == "quickstart"


@pytest.mark.parametrize("asked", ["mnist/podd", "mnist/podd.yaml", "recipes/mnist/podd.yaml"])
def test_a_recipe_is_found_by_its_name_from_any_folder(elsewhere: Path, asked: str) -> None:
    assert load_recipe(asked).name == "mnist-podd"


def test_a_file_of_ones_own_comes_before_a_recipe_of_that_name(elsewhere: Path) -> None:
    own = elsewhere / "quickstart"
    own.write_text("name: mine")
    assert recipe_file("quickstart") == Path("quickstart")
    with pytest.raises(RecipeError, match=r"source: missing"):
        load_recipe("quickstart")


@pytest.mark.parametrize("asked", ["../quickstart", "/quickstart", "podd/../quickstart"])
def test_paths_that_lead_elsewhere_are_no_names(elsewhere: Path, asked: str) -> None:
    assert recipe_file(asked) == Path(asked)


def test_an_unknown_name_is_answered_with_the_nearest(elsewhere: Path) -> None:
    with pytest.raises(RecipeError, match=r"mnist/pod: no such recipe; did you mean 'mnist/podd'"):
        load_recipe("mnist/pod")


def test_the_accuracy_of_a_header_is_that_measured_here() -> None:
    def accuracy(result: str) -> str | None:
        return ShippedRecipe("x", Path("x"), {"Result": result}).accuracy

    assert accuracy("94.1 +- 0.6 % from the rows (94.0 +- 0.8 % before)") == "94.1 +- 0.6 %"
    assert accuracy("not measured by us. The paper gives 35.7 %") is None
    assert accuracy("59.1 % in the paper. With the profile 41.0 % after 300") == "41.0 %"
    assert accuracy("not measured yet") is None
