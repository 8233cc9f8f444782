"""Parts of other packages: one file and one entry point, then a name in a recipe."""

import sys
from pathlib import Path

import pytest
from support.toy_runs import toy_recipe, toy_sections

from distill_datasets.canvases.canvas import Canvas
from distill_datasets.config import BUILT_IN, Part, load, names
from distill_datasets.errors import RecipeError
from distill_datasets.labels.labels import Labels
from distill_datasets.models.architecture import Architecture
from distill_datasets.networks.network import Networks
from distill_datasets.objectives.objective import Objective
from distill_datasets.optimizers import AdamW, Optimizer, Sgd, TrainingRule
from distill_datasets.recipe import recipe_from

MODULE = """
from typing import ClassVar, Literal
from pydantic import Field
from distill_datasets.objectives.objective import Estimate, Needs, Objective

class MeanMatch(Objective):
    '''Matches the mean image.'''
    paper: ClassVar[str] = "nobody's"
    name: Literal["mean_match"] = "mean_match"
    strength: float = Field(gt=0, description="how hard")

    def estimate(self, distilled, networks, real, draw):
        return Estimate(0.0, {}, {})

    @property
    def needs(self):
        return Needs(real_rows=7)
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path that holds an installed package with one objective."""
    (tmp_path / "mean_match.py").write_text(MODULE)
    declare(tmp_path, "mean_match")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def declare(folder: Path, name: str, axis: str = "objectives") -> None:
    """What pip writes for a package with one entry point."""
    metadata = folder / "mean_match-1.0.dist-info"
    metadata.mkdir(exist_ok=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: mean-match\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        f"[distill_datasets.{axis}]\n{name} = mean_match:MeanMatch\n"
    )


@pytest.mark.usefixtures("install")
def test_a_part_of_another_package_works_in_a_recipe() -> None:
    recipe = toy_recipe("distill.objective={name: mean_match, strength: 0.5}")
    assert recipe.distill.objective.needs.real_rows == 7
    assert recipe.resolved()["distill"]["objective"] == {"name": "mean_match", "strength": 0.5}


@pytest.mark.usefixtures("install")
def test_problems_inside_a_part_of_another_package_have_their_path() -> None:
    with pytest.raises(RecipeError) as caught:
        toy_recipe("distill.objective={name: mean_match, strenght: 0.5}")
    assert str(caught.value).splitlines()[1:] == [
        "  distill.objective.strength: missing; expected a value (how hard)",
        "  distill.objective.strenght: no such key; did you mean 'strength'? "
        "valid names: name, strength",
    ]


@pytest.mark.usefixtures("install")
def test_a_part_of_another_package_is_listed_beside_the_built_in_ones() -> None:
    assert set(names("objectives")) == {*BUILT_IN["objectives"], "mean_match"}
    assert "mean_match" not in names("canvases")


@pytest.mark.usefixtures("install")
def test_a_misspelled_name_is_compared_with_parts_of_other_packages_too() -> None:
    with pytest.raises(RecipeError, match="did you mean 'mean_match'"):
        load("objectives", "mean_mach")


def test_a_package_that_cannot_be_imported_spoils_no_message_about_another_name(
    install: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "mean_match", raising=False)
    declare(install, "broken", axis="optimizers")
    (install / "mean_match.py").write_text("import no_such_module")
    with pytest.raises(RecipeError, match=r"no 'adm' .*valid names: adam, broken, sgd"):
        load("optimizers", "adm", Optimizer)
    with pytest.raises(RecipeError, match=r"'broken' .* cannot be imported .*no_such_module"):
        load("optimizers", "broken", Optimizer)


@pytest.mark.usefixtures("install")
def test_a_part_of_another_kind_is_refused_as_a_name_and_as_an_object() -> None:
    words = "'adamw' is among the optimizers, but not one that serves here; valid names here: adam"
    with pytest.raises(RecipeError, match=words):
        load("optimizers", "adamw", Optimizer)
    assert load("optimizers", "adamw") is load("optimizers", "adamw", TrainingRule) is AdamW
    sections = toy_sections()
    sections["distill"]["optimizer"] = AdamW(lr=0.1)
    with pytest.raises(RecipeError, match=words):
        recipe_from(sections)
    sections["distill"]["optimizer"] = Sgd(lr=0.1)
    assert recipe_from(sections).distill.optimizer == Sgd(lr=0.1)


def test_a_built_in_name_cannot_be_shadowed(install: Path) -> None:
    declare(install, "unrolled")
    with pytest.raises(RecipeError) as caught:
        names("objectives")
    assert str(caught.value) == (
        "the entry point 'unrolled' = 'mean_match:MeanMatch' shadows a built-in name of the axis "
        "'objectives'; its package has to choose another name"
    )
    with pytest.raises(RecipeError, match="shadows a built-in name"):
        toy_recipe()


def test_a_name_may_be_used_on_two_axes(install: Path) -> None:
    declare(install, "unrolled", axis="labels")
    assert set(names("labels")) == {*BUILT_IN["labels"], "unrolled"}


@pytest.mark.parametrize("axis", BUILT_IN)
def test_every_built_in_name_is_the_name_of_its_class(axis: str) -> None:
    kinds: dict[str, type[Part]] = {
        "objectives": Objective,
        "canvases": Canvas,
        "labels": Labels,
        "networks": Networks,
        "architectures": Architecture,
    }
    for name in BUILT_IN[axis]:
        cls = load(axis, name)
        assert issubclass(cls, kinds.get(axis, Part))
        assert cls.model_fields["name"].default == name
        assert cls.paper and cls.__doc__
