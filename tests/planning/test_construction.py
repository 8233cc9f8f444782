"""What made a folder is counted by its recipe, and nothing is said where it has none of ours."""

from pathlib import Path

from support.families import FAMILIES
from support.sample_content import sample

from distill_datasets.export.folder import write_dataset
from distill_datasets.files.yaml_text import to_yaml
from distill_datasets.models.flops import WEIGHT_GRADIENT, cost
from distill_datasets.planning.construction import construction
from distill_datasets.recipe import recipe_from
from distill_datasets.types import Shape

DIGITS = Shape(1, 8, 8, 10)


def folder_of(place: Path, family: str) -> Path:
    resolved = recipe_from(FAMILIES[family], []).resolved()
    write_dataset(place / family, sample(channels=1, recipe_yaml=to_yaml(resolved)), None)
    return place / family


def test_experts_and_outer_steps_are_counted(tmp_path: Path) -> None:
    found = construction(folder_of(tmp_path, "trajectory"), DIGITS, 200)
    assert found is not None and set(found["stages"]) == {"squeeze", "distill"}
    recipe = recipe_from(FAMILIES["trajectory"], [])
    assert recipe.squeeze is not None
    (one, _), members = cost(recipe.squeeze.network, DIGITS), recipe.squeeze.members
    assert found["stages"]["squeeze"] == WEIGHT_GRADIENT * 3 * 200 * members * one
    assert found["total"] == sum(found["stages"].values())


def test_stages_of_a_separable_recipe_are_those_of_its_plan(tmp_path: Path) -> None:
    found = construction(folder_of(tmp_path, "decoupled"), DIGITS, 200)
    assert found is not None
    assert {"squeeze", "distill", "relabel"} <= set(found["stages"])
    assert not any(stage.startswith("evaluate") for stage in found["stages"])


def test_a_set_that_no_recipe_made_has_no_cost(tmp_path: Path) -> None:
    write_dataset(tmp_path / "foreign", sample(channels=1), None)
    assert construction(tmp_path / "foreign", DIGITS, 200) is None
