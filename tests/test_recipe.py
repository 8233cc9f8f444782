"""A recipe is read strictly, and a wrong one is told everything that is wrong with it."""

import typing
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
import yaml
from pydantic import Field
from support.toy_runs import toy_recipe, toy_sections

from distill_datasets import config as plugins
from distill_datasets.data.source import Source
from distill_datasets.errors import RecipeError
from distill_datasets.evaluation.protocol import Evaluate, Reference
from distill_datasets.files.yaml_text import from_yaml, to_yaml
from distill_datasets.models.convnets import ConvNet
from distill_datasets.networks.network import Fresh, NetworkSource
from distill_datasets.objectives.objective import Needs
from distill_datasets.objectives.unrolled import Unrolled
from distill_datasets.optimizers import Adam
from distill_datasets.recipe import Publish, Recipe, load_recipe, recipe_from
from distill_datasets.stages.distill import Distill
from distill_datasets.types import Shape


def error_lines(*overrides: str) -> list[str]:
    """The lines of the error that the toy recipe gives with these changes; the first counts."""
    with pytest.raises(RecipeError) as caught:
        toy_recipe(*overrides)
    return [line.strip() for line in str(caught.value).splitlines()]


def without(*path: str) -> dict[str, Any]:
    """The toy recipe less one key."""
    sections = toy_sections()
    owner = sections
    for key in path[:-1]:
        owner = owner[key]
    del owner[path[-1]]
    return sections


@pytest.mark.parametrize(
    ("path", "near", "owner"),
    [
        ("sead", "seed", Recipe),
        ("source.limmit", "limit", Source),
        ("distill.step", "steps", Distill),
        ("evaluate.student", "students", Evaluate),
        ("publish.titel", "title", Publish),
        ("distill.objective.windov", "window", Unrolled),
        ("distill.objective.optimizer.beta_1", "beta1", Adam),
        ("distill.networks.net", "network", Fresh),
        ("distill.networks.network.widht", "width", ConvNet),
        ("evaluate.network.dept", "depth", ConvNet),
    ],
)
def test_an_unknown_key_is_refused_at_every_level(
    path: str, near: str, owner: type[Recipe]
) -> None:
    valid = ", ".join(sorted(owner.model_fields))
    assert error_lines(f"{path}=1") == [
        "recipe: 1 problem",
        f"{path}: no such key; did you mean {near!r}? valid names: {valid}",
    ]


def test_all_problems_are_listed_at_once_with_path_and_got_and_expected() -> None:
    lines = error_lines(
        "source.limit='5'",
        "distill.lanes=0",
        "distill.canvas.ipc=[]",
        "distill.objective.optimizer.lr=fast",
        "distill.networks.network.norm=group",
        "evaluate.references=[half]",
        "publish.repo=nobody",
        "sede=1",
    )
    *others, last = map(repr, typing.get_args(Reference))
    assert lines == [
        "recipe: 8 problems",
        "source.limit: got '5', expected a valid integer",
        "distill.objective.optimizer.lr: got 'fast', expected a valid number",
        "distill.canvas.ipc: got [], expected a valid number",
        "distill.networks.network.norm: got 'group', expected 'instance', 'batch' or 'none'",
        "distill.lanes: got 0, expected greater than 0",
        f"evaluate.references.0: got 'half', expected {', '.join(others)} or {last}",
        "publish.repo: got 'nobody', expected Hub repository, organization/name, as "
        r"^[\w.-]+/[\w.-]+$",
        "sede: no such key; did you mean 'seed'? valid names: distill, evaluate, generator, name, "
        "publish, relabel, seed, source, squeeze",
    ]


@pytest.mark.parametrize("path", [("name",), ("source",), ("source", "dataset")])
def test_a_missing_key_is_named(path: tuple[str, ...]) -> None:
    with pytest.raises(RecipeError, match=rf"recipe: 1 problem\n  {'.'.join(path)}: missing; exp"):
        recipe_from(without(*path))


def test_a_missing_key_says_what_it_is_for() -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_from(without("distill", "objective", "window"))
    assert str(caught.value).splitlines()[1:] == [
        "  distill.objective.window: missing; expected a value (last steps kept differentiable)"
    ]


@pytest.mark.parametrize(
    "override",
    [
        "distill.steps=true",
        "distill.steps='5'",
        "distill.steps=5.0",
        "distill.steps=null",
        "seed=-1",
        "seed=010",
        "seed=9223372036854775808",
        "seed=99999999999999999999999",
        "name=5",
        "name=Toy",
        "source.skip_bad_rows=1",
        "source.skip_bad_rows=yes",
        "source.classes=cat",
        "distill.clip='2'",
        "distill.clip=none",
        "distill.optimizer.lr=true",
        "distill.schedule=linear",
        "evaluate.exact=0",
        "evaluate.references=full",
        "distill=3",
        "distill.labels=3",
        "distill.labels={}",
    ],
)
def test_a_value_of_another_kind_is_refused_and_never_converted(override: str) -> None:
    path = override.partition("=")[0]
    first, *problems = error_lines(override)
    assert first == "recipe: 1 problem"
    assert len(problems) == 1 and problems[0].startswith(f"{path}: ")


@pytest.mark.parametrize("text", ["1e-3", "0.001"])
def test_a_float_may_be_written_with_an_exponent(text: str) -> None:
    assert toy_recipe(f"distill.optimizer.lr={text}").distill.optimizer.lr == 0.001


def test_an_integer_is_a_fine_float() -> None:
    assert toy_recipe("distill.clip=2") == toy_recipe("distill.clip=2.0")


@pytest.mark.parametrize("axis", ["objective", "canvas", "labels", "networks"])
def test_an_unknown_part_is_refused_with_the_valid_names(axis: str) -> None:
    table = {"objective": "objectives", "canvas": "canvases"}.get(axis, axis)
    known = sorted(plugins.BUILT_IN[table])
    (problem,) = error_lines(f"distill.{axis}=nope")[1:]
    assert problem.startswith(f"distill.{axis}: got 'nope', no 'nope' among the {table}; ")
    assert problem.endswith(f"valid names: {', '.join(known)}")


def test_a_misspelled_part_is_recognized() -> None:
    assert "did you mean 'poster'?" in error_lines("distill.canvas=postr")[1]


def test_a_part_needs_a_name() -> None:
    with pytest.raises(RecipeError, match=r"expected a name or a section with a name; valid names"):
        recipe_from(without("distill", "objective", "name"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("{name: adamw, lr: 0.1}", "'adamw' is among the optimizers, but not one that serves here"),
        ("adamw", "got 'adamw', 'adamw' is among the optimizers, but not one that serves here"),
        ("{name: adamm}", "no 'adamm' among the optimizers; did you mean 'adam'?"),
        ("{lr: 0.1}", "expected a name or a section with a name"),
    ],
)
@pytest.mark.parametrize("path", ["optimizer", "objective.optimizer"])
def test_names_that_are_valid_somewhere_else_are_not_told(
    path: str, given: str, words: str
) -> None:
    first, problem = error_lines(f"distill.{path}={given}")
    assert first == "recipe: 1 problem" and problem.startswith(f"distill.{path}: {words}")
    assert problem.endswith((" valid names: adam, sgd", " valid names here: adam, sgd"))
    elsewhere = error_lines("evaluate.optimizer={lr: 0.1}")[1]
    assert elsewhere.endswith("valid names: adam, adamw, sgd")


def test_teachers_do_not_serve_objectives_that_draw_networks() -> None:
    asked = error_lines(
        "squeeze={epochs: 1, network: {name: convnet, norm: batch}}", "distill.networks=teachers"
    )
    assert asked == [
        "recipe: 1 problem",
        "distill.networks: 'teachers' are asked what they say of images, and the objective "
        "'unrolled' draws networks of its own; choose others, for example fresh",
    ]


@pytest.mark.parametrize(
    "override",
    [
        "distill.networks.network.depth=10000000",
        "distill.networks.network.width=10000000",
        "evaluate.network={name: mlp, depth: 10000000}",
        "evaluate.network={name: mlp, width: 10000000}",
        "evaluate.network={name: resnet, width: 10000000}",
        "relabel={epochs: 10000000}",
        "squeeze={epochs: 10000000}",
        "squeeze={epochs: 1, members: 10000000}",
        "distill.steps=1000000000",
        "distill.lanes=10000000",
        "distill.objective.inner_steps=10000000",
        "distill.canvas={name: pixels, ipc: 10000000}",
        "distill.canvas={name: mosaic, ipc: 10000000}",
        "distill.canvas={name: poster, height: 10000000, width: 8}",
        "distill.networks={name: fixed, count: 10000000}",
        "evaluate.students=10000000",
        "evaluate.full_epochs=10000000",
        "source.resolution=10000000",
        "name=" + "a" * 101,
        "source.dataset=" + "a" * 5000,
        "publish.title=" + "a" * 201,
    ],
)
def test_a_size_that_no_machine_would_finish_is_refused_by_its_key(override: str) -> None:
    first, *problems = error_lines(override)
    path = override.partition("=")[0]
    assert first == "recipe: 1 problem" and len(problems) == 1
    assert problems[0].startswith(path) and len(problems[0]) < 400
    assert "expected less than or equal to" in problems[0] or "should have at most" in problems[0]


def test_a_value_that_may_be_of_several_kinds_is_told_once_and_by_its_own_key() -> None:
    expected = "training examples: about this many, or exactly [rows, columns]"
    for value, got in (("abc", "'abc'"), ("null", "null"), ("[1, x]", "[1, 'x']")):
        lines = error_lines(f"distill.canvas.crops={value}", "source.classes=[1.5, a]")
        assert lines[1:] == [
            "source.classes.0: got 1.5, expected names or integers of the classes to keep, in the "
            "new order",
            f"distill.canvas.crops: got {got}, expected {expected}",
        ]


def test_floats_are_finite() -> None:
    for value in ("1e999", "-1e999"):
        (problem,) = error_lines(f"distill.optimizer.lr={value}")[1:]
        assert problem.endswith("inf, expected a finite number")


def test_a_message_lists_forty_problems_and_says_that_there_are_more() -> None:
    lines = error_lines(
        f"source={{dataset: x, {', '.join(f'k{place}: 1' for place in range(999))}}}"
    )
    assert lines[0] == "recipe: more than 40 problems, the first of them" and len(lines) == 41


def test_what_was_got_is_cut_to_a_line() -> None:
    for value in ("x" * 100_000, str(list(range(50_000))), "{" + "a: {b: " * 15 + "1" + "}" * 31):
        for path in ("distill.steps", "source.limit", "publish.repo"):
            (problem,) = error_lines(f"{path}={value[:60_000]}")[1:] or [""]
            assert len(problem) < 400


def test_rules_between_keys_of_a_part_name_the_key() -> None:
    problem = "distill.objective: window: 9 steps do not fit into inner_steps: 4"
    assert error_lines("distill.objective.window=9") == ["recipe: 1 problem", problem]


@pytest.mark.parametrize(
    ("steps", "got"), [("evaluate.epochs=3", "both"), ("evaluate.steps=null", "neither")]
)
def test_students_are_trained_for_steps_or_for_epochs_and_not_for_both(
    steps: str, got: str
) -> None:
    assert error_lines(steps) == [
        "recipe: 1 problem",
        f"evaluate: got {got}, expected either steps or epochs",
    ]


def test_problems_between_sections_are_listed_together() -> None:
    first, *lines = error_lines(
        "squeeze={epochs: 1, network: convnet}",
        "evaluate.optimizer={name: sgd, lr: 0.1}",
        "evaluate.schedule=published",
        "evaluate.order=published",
        "evaluate.start=distilled",
    )
    assert first == f"recipe: {len(lines)} problems"
    keys = [line.partition(":")[0] for line in lines]
    assert keys == ["squeeze", "evaluate.schedule", "evaluate.order", "evaluate.start"]


def test_epochs_take_the_place_of_steps() -> None:
    recipe = toy_recipe("evaluate.steps=null", "evaluate.epochs=3", "evaluate.batch=5")
    assert recipe.evaluate.duration(12) == 3 * 2


def write(folder: Path, text: str, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_is_read_and_overrides_win_over_it(tmp_path: Path) -> None:
    path = write(tmp_path, to_yaml(toy_sections()))
    assert load_recipe(path) == toy_recipe()
    assert load_recipe(str(path), ["seed=7"]) == toy_recipe("seed=7")


def test_a_key_given_twice_is_refused_with_file_and_line(tmp_path: Path) -> None:
    path = write(tmp_path, "name: toy\nname: other\n")
    with pytest.raises(RecipeError, match=r"recipe\.yaml: line 2: the key 'name' is given twice"):
        load_recipe(path)


def test_a_file_that_is_not_yaml_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "name: [toy\n")
    with pytest.raises(RecipeError, match=r"recipe\.yaml: not readable as YAML: (?s:.*)line 2"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("text", "got"),
    [("", "nothing"), ("- a\n- b\n", r"\['a', 'b'\]"), ("just words", "'just words'")],
)
def test_a_file_without_sections_is_refused(tmp_path: Path, text: str, got: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(RecipeError, match=f"expected sections with names, got {got}; valid name"):
        load_recipe(path)


def test_a_misspelled_file_suggests_its_sibling(tmp_path: Path) -> None:
    write(tmp_path, "", "quickstart.yaml")
    write(tmp_path, "", "other.yml")
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "quikstart.yaml")
    assert str(caught.value) == (
        f"{tmp_path / 'quikstart.yaml'}: no such recipe; did you mean 'quickstart.yaml'? "
        "valid names: other.yml, quickstart.yaml"
    )


def test_a_folder_and_a_picture_are_no_recipes(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff\xfe")
    for path, words in (
        (tmp_path, "got a folder, expected a YAML file"),
        (tmp_path / "picture.png", "cannot read this as text"),
    ):
        with pytest.raises(RecipeError, match=words):
            load_recipe(path)


def test_an_override_changes_one_value_however_deep_and_leaves_the_rest() -> None:
    before, after = toy_recipe(), toy_recipe("distill.objective.optimizer.beta1=0.5")
    assert isinstance(after.distill.objective, Unrolled)
    assert isinstance(after.distill.objective.optimizer, Adam)
    assert after.distill.objective.optimizer.beta1 == 0.5
    assert after.distill.canvas == before.distill.canvas and after.source == before.source


def test_an_override_makes_a_section_that_the_recipe_leaves_out() -> None:
    assert "publish" not in toy_sections()
    assert toy_recipe("publish.title=Toy digits").publish.title == "Toy digits"


@pytest.mark.parametrize("where", ["recipe", "profile", "override"])
def test_a_part_of_a_section_that_is_null_does_not_switch_it_on_again(where: str) -> None:
    sections, overrides = toy_sections(), ["evaluate.beyond.students=1"]
    if where == "recipe":
        sections["evaluate"]["beyond"] = None
    elif where == "profile":
        sections["profiles"] = {"cpu": {"evaluate.beyond": None}}
    else:
        overrides.insert(0, "evaluate.beyond=null")
    profile = "cpu" if where == "profile" else None
    with pytest.raises(
        RecipeError,
        match=r"'evaluate\.beyond\.students=1': evaluate\.beyond was set to null, which switches "
        r"it off; write evaluate\.beyond=\{students: 1\} to have it, or leave this out",
    ):
        recipe_from(sections, overrides, profile=profile)
    whole = recipe_from(sections, [*overrides[:-1], "evaluate.beyond={students: 1}"], "r", profile)
    assert whole.evaluate.beyond is not None and whole.evaluate.beyond.students == 1


def test_the_short_form_of_a_part_can_be_overridden_inside() -> None:
    assert toy_sections()["distill"]["labels"] == "learned"
    recipe = toy_recipe("distill.labels.floor=0.05")
    expected = {"name": "learned", "of": "example", "floor": 0.05}
    assert recipe.distill.labels.model_dump() == expected


def test_the_value_of_an_override_is_yaml() -> None:
    recipe = toy_recipe("source.classes=['3', '5']", "distill.clip=null", "distill.canvas.crops=8")
    assert recipe.source.classes == ["3", "5"] and recipe.distill.clip is None
    canvas = toy_recipe("distill.canvas={name: pixels, ipc: 2}").distill.canvas
    assert canvas.model_dump()["ipc"] == 2


def test_a_value_may_hold_an_equals_sign() -> None:
    assert toy_recipe("publish.title=a=b").publish.title == "a=b"


def test_the_last_of_two_overrides_wins() -> None:
    assert toy_recipe("seed=1", "seed=2").seed == 2


def test_an_override_changes_one_of_two_sections_that_share_a_yaml_alias() -> None:
    sections = toy_sections()
    sections["evaluate"]["network"] = sections["distill"]["networks"]["network"]
    recipe = recipe_from(sections, ["evaluate.network.width=9"])
    assert recipe.evaluate.network.model_dump()["width"] == 9
    assert recipe.distill.networks.architecture(None).model_dump()["width"] == 4


PROFILES = {"cpu": {"distill.steps": 2, "distill.canvas": {"name": "pixels", "ipc": 1}}, "big": {}}


def test_a_profile_changes_its_keys_and_an_override_wins_over_it() -> None:
    sections = toy_sections() | {"profiles": PROFILES}
    assert recipe_from(sections) == recipe_from(sections, profile="big") == toy_recipe()
    small = recipe_from(sections, profile="cpu")
    assert (small.distill.steps, small.distill.canvas.name) == (2, "pixels")
    assert small.distill.lanes == toy_recipe().distill.lanes
    both = recipe_from(sections, ["distill.steps=7", "distill.canvas.ipc=3"], profile="cpu")
    assert both.distill.steps == 7
    assert both.distill.canvas.model_dump()["ipc"] == 3
    assert sections["profiles"] == PROFILES and PROFILES["cpu"]["distill.canvas"]["ipc"] == 1


@pytest.mark.parametrize(
    ("profiles", "name", "message"),
    [
        (PROFILES, "gpu", "no profile 'gpu'; .*valid names: big, cpu"),
        ({}, "cpu", "no profile 'cpu'; this recipe has none"),
        ({"cpu": 3}, None, r"profiles: got \{'cpu': 3\}, expected for each name the keys"),
        ({"cpu": {"seed.x": 3}}, "cpu", "profiles.cpu.seed.x: seed is 0, not a section"),
        ({"cpu": {5: 3}}, "cpu", r"profiles\.cpu: got the key 5, expected section\.key, for"),
        ({"cpu": {"distill.": 3}}, None, r"profiles\.cpu: got the key 'distill\.', expected"),
        ({5: {}}, "cpu", "no profile 'cpu'; .*valid names: 5"),
        (
            {"cpu": {"evaluate": {"steps": 20, "students": 1}}},
            None,
            r"profiles\.cpu\.evaluate: got a mapping, which would replace the whole section; write "
            r"each key with its section: evaluate\.steps: 20, evaluate\.students: 1$",
        ),
        ({"cpu": {"distill.step": 3}}, "cpu", "distill.step: no such key; did you mean 'steps'"),
    ],
)
def test_a_bad_profile_is_explained(
    profiles: dict[str, Any], name: str | None, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe_from(toy_sections() | {"seed": 0, "profiles": profiles}, profile=name)


def test_overrides_may_be_any_texts_one_after_the_other() -> None:
    expected = toy_recipe("seed=1", "distill.steps=2")
    for overrides in (("seed=1", "distill.steps=2"), iter(["seed=1", "distill.steps=2"])):
        assert recipe_from(toy_sections(), overrides) == expected
    assert recipe_from(toy_sections(), None) == toy_recipe()


def test_overrides_leave_the_dictionaries_of_the_caller_as_they_are() -> None:
    sections = toy_sections()
    recipe_from(sections, ["distill.steps=9"])
    assert sections == toy_sections()


@pytest.mark.parametrize("override", ["distill.steps", "=5", "distill..steps=5", ".=1", "--quiet"])
def test_a_malformed_override_is_refused_with_an_example(override: str) -> None:
    with pytest.raises(RecipeError) as caught:
        toy_recipe(override)
    assert str(caught.value) == (
        f"override {override!r}: expected section.key=value, for example distill.steps=500"
    )


def test_an_override_whose_value_is_not_yaml_is_named() -> None:
    with pytest.raises(RecipeError, match=r"^override 'distill\.steps=\[1': not readable as YAML"):
        toy_recipe("distill.steps=[1")


def test_an_override_through_a_value_is_refused() -> None:
    with pytest.raises(RecipeError) as caught:
        toy_recipe("distill.steps.more=5")
    assert str(caught.value) == "override 'distill.steps.more=5': distill.steps is 4, not a section"


def test_a_resolved_recipe_is_a_recipe_with_the_same_hash() -> None:
    recipe = toy_recipe(
        "distill.optimizer.epsilon=1e-9", "publish.title='1e5'", "source.classes=['1', '010']"
    )
    again = recipe_from(from_yaml(recipe.resolved_yaml()))
    assert again == recipe and again.sha256() == recipe.sha256()


def test_a_resolved_recipe_says_every_default_and_any_reader_of_yaml_reads_it() -> None:
    recipe = toy_recipe()
    resolved = yaml.safe_load(recipe.resolved_yaml())
    assert resolved == recipe.resolved()
    assert resolved["distill"]["label_optimizer"]["lr"] == 0.001
    assert resolved["distill"]["canvas"]["order"]["name"] == "visual"


def test_the_hash_is_of_what_is_meant_and_not_of_how_it_is_written() -> None:
    recipe = toy_recipe()
    turned = recipe_from(dict(reversed(toy_sections().items())))
    assert turned.sha256() == recipe.sha256()
    assert toy_recipe("seed=0", "distill.schedule=constant").sha256() == recipe.sha256()
    assert toy_recipe("distill.labels={name: learned}").sha256() == recipe.sha256()


@pytest.mark.parametrize(
    "override",
    ["seed=1", "distill.labels.floor=0.05", "evaluate.network.width=5", "source.limit=9"],
)
def test_another_value_is_another_hash(override: str) -> None:
    assert toy_recipe(override).sha256() != toy_recipe().sha256()


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        toy_recipe().seed = 5  # type: ignore[misc]


class Needy(Unrolled):
    """An objective that wants statistics of norms and teachers."""

    name: Literal["needy"] = "needy"  # type: ignore[assignment]

    @property
    def needs(self) -> Needs:
        return Needs(offers=frozenset({"statistics", "teachers"}))


class Offering(Fresh):
    """Networks that offer what they are told to."""

    name: Literal["offering"] = "offering"  # type: ignore[assignment]
    offers: ClassVar[frozenset[str]] = frozenset({"statistics", "teachers", "more"})
    note: str = Field(default="")

    def build(self, shape: Shape, device: torch.device) -> NetworkSource:
        raise AssertionError


@pytest.fixture
def needy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plugins.BUILT_IN["objectives"], "needy", f"{__name__}:Needy")
    monkeypatch.setitem(plugins.BUILT_IN["networks"], "offering", f"{__name__}:Offering")


@pytest.mark.usefixtures("needy")
def test_networks_that_lack_what_the_objective_needs_are_refused() -> None:
    assert error_lines("distill.objective.name=needy") == [
        "recipe: 1 problem",
        "distill.networks: 'fresh' does not offer statistics, teachers, which the objective "
        "'needy' needs; choose other networks",
    ]


@pytest.mark.usefixtures("needy")
def test_networks_that_offer_what_the_objective_needs_are_accepted() -> None:
    recipe = toy_recipe("distill.objective.name=needy", "distill.networks=offering")
    assert recipe.distill.networks.name == "offering"
