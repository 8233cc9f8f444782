"""The verb `recipes`: the list, one recipe, and the page that lies beside them."""

import json

import pytest
from support import REPOSITORY
from support.toy_runs import command

from distill_datasets.files.shipped import shipped

FOLDER = REPOSITORY / "recipes"


def test_the_list_fits_a_terminal_of_80_columns_and_names_every_recipe() -> None:
    lines = command("recipes", columns=80).out.splitlines()
    assert max(map(len, lines)) <= 80
    for recipe in shipped():
        assert any(recipe.name.rpartition("/")[2] in line.split() for line in lines)


def test_the_list_of_one_data_set_as_json_has_the_headers() -> None:
    answer = command("recipes", "--dataset", "mnist", "--json")
    listed = json.loads(answer.out)["recipes"]
    assert {entry["name"].partition("/")[0] for entry in listed} == {"mnist"}
    (podd,) = (entry for entry in listed if entry["name"] == "mnist/podd")
    assert podd["what"].startswith("PoDD") and podd["accuracy"] == "67.4 +- 3.3 %"


def test_an_unknown_data_set_is_refused_with_the_known_ones() -> None:
    answer = command("recipes", "--dataset", "mnits")
    assert answer.code == 2
    assert "--dataset: got 'mnits'" in answer.err and "fashion-mnist" in answer.err


def test_show_prints_a_recipe_as_it_is() -> None:
    answer = command("recipes", "show", "mnist/podd")
    assert answer.out == (FOLDER / "mnist" / "podd.yaml").read_text(encoding="utf-8")
    assert command("recipes", "show", "mnist/podd", "--path").out.strip().endswith("podd.yaml")


@pytest.mark.parametrize("asked", ["mnist/pod", "."])
def test_show_refuses_what_is_no_recipe(asked: str) -> None:
    answer = command("recipes", "show", asked)
    assert answer.code == 2 and f"no recipe '{asked}'" in answer.err


def test_the_page_beside_the_recipes_is_made_from_their_headers() -> None:
    page = command("recipes", "--markdown").out
    assert page == (FOLDER / "README.md").read_text(encoding="utf-8"), (
        "make it anew: distill-datasets recipes --markdown > recipes/README.md"
    )
