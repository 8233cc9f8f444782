"""Recipes: one YAML file that says what is distilled, how, and how it is measured.

Problems are listed together, each with its path, what was got, what was expected and what to do,
before any work starts: those inside the sections, and when there are none those between them.
"""

import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from distill_datasets.canvases.canvas import Canvas
from distill_datasets.config import Section
from distill_datasets.data.opening import without_places
from distill_datasets.data.source import Source
from distill_datasets.errors import RecipeError, cut, did_you_mean, shown
from distill_datasets.evaluation.protocol import Evaluate
from distill_datasets.files.artifacts import canonical_json, sha256_text
from distill_datasets.files.shipped import near, recipe_file
from distill_datasets.files.yaml_text import MOST_CHARACTERS, from_yaml, to_yaml
from distill_datasets.objectives.objective import Context
from distill_datasets.selection.selection import Selection
from distill_datasets.stages.distill import Distill
from distill_datasets.stages.generator import GeneratorField
from distill_datasets.stages.teacher_training import Squeeze
from distill_datasets.views.relabel import Relabel

_KIND = re.compile(r"int|float|str|bool|list\[.*\]")
MOST_LISTED = 40
"""Problems that one message lists."""


class Publish(Section):
    """What the card says and where `distill-datasets publish` puts the folder by default."""

    title: str | None = Field(
        default=None,
        max_length=200,
        pattern=r"^[^\n]*$",
        description="heading of the card; null: the name",
    )
    repo: str | None = Field(
        default=None,
        max_length=96,
        pattern=r"^[\w.-]+/[\w.-]+$",
        description="Hub repository, organization/name",
    )
    notes: str | None = Field(
        default=None,
        max_length=10_000,
        description="Markdown below the first sentence of the card, in the publisher's words",
    )
    citation: str | None = Field(
        default=None, max_length=10_000, description="BibTeX of this dataset, for the card"
    )
    license: str | None = Field(
        default=None,
        max_length=60,
        pattern=r"^[a-z0-9][a-z0-9.-]*$",
        description="identifier of the Hub for the license of the distilled dataset; null: the "
        "source's. What the source's license forbids it does not allow",
    )


class Recipe(Section):
    """Everything that decides a distilled dataset and its measurement."""

    name: str = Field(
        max_length=100,
        pattern=r"^[a-z0-9][a-z0-9._-]*$",
        description="folder of its runs; lower case",
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="decides every random draw")
    source: Source
    squeeze: Squeeze | None = None
    generator: GeneratorField | None = Field(
        default=None, description="what canvases and selections that decode or sample ask"
    )
    distill: Distill
    relabel: Relabel | None = Field(
        default=None, description="labels of many views by the networks of squeeze; null: none"
    )
    evaluate: Evaluate
    publish: Publish = Publish()

    @model_validator(mode="after")
    def _sections_fit_together(self) -> Self:
        problems = [
            *self._networks_and_objective(),
            *self._squeezed_networks(),
            *self._generated_images(),
            *self._views_of_images(),
            *self._followed_by_students(),
            *self._targets_that_are_no_classes(),
            *self.evaluate.problems(self.relabel),
        ]
        if problems:
            raise PydanticCustomError(
                "between_sections", "{text}", {"text": "; ".join(problems), "problems": problems}
            )
        return self

    def _networks_and_objective(self) -> Iterator[str]:
        objective, networks = self.distill.objective, self.distill.networks
        needs = objective.needs
        # networks that offer BatchNorm statistics are teachers, and no others are
        teaching = frozenset({"batch_norm"}) if needs.networks == "teachers" else frozenset()
        missing = (needs.offers | teaching) - networks.offers
        if missing:
            yield (
                f"distill.networks: {networks.name!r} does not offer {', '.join(sorted(missing))}, "
                f"which the objective {objective.name!r} needs; choose other networks"
            )
        if needs.networks == "drawn" and networks.offers & {"batch_norm", "features"}:
            yield (
                f"distill.networks: {networks.name!r} are asked what they say of images, and the "
                f"objective {objective.name!r} draws networks of its own; choose others, for "
                "example fresh"
            )

    def _squeezed_networks(self) -> Iterator[str]:
        section = self.distill
        using = [
            f"distill.{axis}: {part.name!r}"
            for axis, part in (
                ("canvas", section.canvas),
                ("labels", section.labels),
                ("networks", section.networks),
            )
            if part.needs_squeezed
        ]
        using += ["relabel"] if self.relabel is not None else []
        if self.squeeze is None:
            if using:
                yield (
                    f"squeeze: missing; {' and '.join(using)} need networks that are trained on "
                    "the real data first, for example squeeze: {epochs: 5}"
                )
            return
        if not using:
            yield (
                "squeeze: neither distill nor relabel uses the networks it would train; leave the "
                "section out, or choose networks, labels or an init that do"
            )
        yield from section.networks.problems(self.squeeze)
        yield from section.objective.problems(Context(teachers=self.squeeze.members))

    def _generated_images(self) -> Iterator[str]:
        asking = [repr(part.name) for part in _asking_a_generator(self.distill)]
        if self.generator is None:
            if asking:
                yield (
                    f"generator: missing; {' and '.join(asking)} in distill.canvas need one, for "
                    "example generator: {name: trained, autoencoder: {epochs: 5}, flow: {epochs: "
                    "20}}"
                )
            return
        if not asking:
            yield (
                "generator: nothing in distill.canvas asks it; leave the section out, or choose "
                "the canvas latent, or an init that samples, for example prototypes"
            )
        sampling = [part for part in _asking_a_generator(self.distill) if part.samples]
        if sampling and not self.generator.makes_images:
            yield (
                f"generator: {self.generator.name!r} was never trained, and "
                f"{sampling[0].name!r} in distill.canvas takes images from it; choose trained"
            )
        for part in sampling:
            if isinstance(part, Selection):
                yield from part.sampling_problems(
                    self.generator.steps, unconditional=self.generator.unconditional
                )
        if asking and self.source.normalization != "mean_std":
            yield (
                f"source.normalization: {self.source.normalization!r} with a generator, which "
                "makes images as they are; expected mean_std"
            )

    def _views_of_images(self) -> Iterator[str]:
        objective = self.distill.objective
        if self.relabel is not None and not objective.separable:
            yield (
                f"relabel: got it with the objective {objective.name!r}, which learns what its "
                "labels go with; expected an objective whose 8-bit images are the result, such as "
                "recover, or leave the section out"
            )
        measured = self.evaluate.network
        if measured.frozen() is not None and self.source.normalization != "mean_std":
            yield (
                f"evaluate.network: {measured.name!r} stands on a backbone that sees images as "
                f"they are, got source.normalization {self.source.normalization}; expected "
                "mean_std"
            )
        if objective.separable and self.source.normalization != "mean_std":
            yield (
                f"source.normalization: {self.source.normalization!r} with the objective "
                f"{objective.name!r}, whose 8-bit images are seen through a mean and a deviation; "
                "expected mean_std"
            )

    def _followed_by_students(self) -> Iterator[str]:
        section, measured = self.distill, self.evaluate
        if measured.follows_step_sizes and not section.objective.step_sizes():
            yield (
                f"evaluate.schedule: {measured.schedule!r}, but distill.objective learns no step "
                "sizes; set its learn_step_sizes, or take 'constant'"
            )
        published = len(section.objective.published_order(1))
        if measured.order == "published" and not published:
            yield (
                "evaluate.order: 'published', but distill.objective fixes no order; set its order "
                "to 'fixed', or take 'shuffled'"
            )
        elif measured.order == "published" and measured.steps != published:
            yield (
                f"evaluate.steps: got {measured.steps}, expected {published}, the number of steps "
                "whose order is published"
            )
        if measured.start == "distilled":
            yield from self._start_of_students()

    def _targets_that_are_no_classes(self) -> Iterator[str]:
        task, section, measured = self.source.task, self.distill, self.evaluate
        if section.labels.targets_are != task:
            yield (
                f"distill.labels: {section.labels.name!r} are of task: "
                f"{section.labels.targets_are}, got source.task: {task}; expected "
                f"{{name: vectors, task: {task}}}"
            )
        if task == "classes":
            return
        if task not in section.objective.tasks:
            yield (
                f"distill.objective: {section.objective.name!r} is about classes, got source.task: "
                f"{task}; expected regression or unrolled"
            )
        if section.objective.last_steps:
            yield f"distill.objective.answers: are of classes, got source.task: {task}; set 0"
        about_classes = {
            "squeeze": self.squeeze is not None,
            "relabel": self.relabel is not None,
            "evaluate.label_smoothing": measured.label_smoothing > 0,
            "evaluate.network": measured.network.frozen() is not None,
        }
        for key, is_asked in about_classes.items():
            if is_asked:
                yield f"{key}: is about classes, got source.task: {task}; choose another, or none"
        chosen = [each for each in measured.references if each not in ("random_real", "full")]
        if chosen:
            yield (
                f"evaluate.references: {', '.join(chosen)} choose images of classes, got "
                f"source.task: {task}; expected random_real or full"
            )

    def _start_of_students(self) -> Iterator[str]:
        networks = self.distill.networks
        if not networks.has_start:
            yield (
                f"evaluate.start: 'distilled', but the networks {networks.name!r} have no "
                "start of their own for students; take 'fresh', or distill.networks: fixed or "
                "pretrained"
            )
            return
        if networks.needs_squeezed and self.squeeze is None:
            return  # `_squeezed_networks` asks for the section that says which network that is
        drawn = networks.architecture(self.squeeze.network if self.squeeze else None)
        if self.evaluate.network != drawn:
            yield (
                "evaluate.network: students that start from the networks of distill need the same "
                f"network; got {self.evaluate.network}, expected {drawn}"
            )

    def resolved(self) -> dict[str, Any]:
        """Every value that a run uses, defaults included, as JSON.

        It is published: what lies on this machine is called by its last name alone.
        """
        # what came later: recipes without it keep their hash
        absent: dict[str, Any] = {} if self.generator is not None else {"generator": True}
        later = ("notes", "citation", "license")
        if self.relabel is not None and self.relabel.kept_apart:
            absent["relabel"] = self.relabel.kept_apart
        absent["publish"] = {key for key in later if getattr(self.publish, key) is None}
        resolved: dict[str, Any] = without_places(self.model_dump(mode="json", exclude=absent))
        return resolved

    def written(self) -> dict[str, Any]:
        """What the user chose, overrides and profile applied: without what is the default."""
        written: dict[str, Any] = without_places(self.chosen())
        return written

    def resolved_yaml(self) -> str:
        """`resolved` as YAML that can be run again, where what it names lies in the same place."""
        return to_yaml(self.resolved())

    def sha256(self) -> str:
        """The hash of the canonical JSON of `resolved`."""
        return sha256_text(canonical_json(self.resolved()))


def _asking_a_generator(section: BaseModel) -> Iterator[Canvas | Selection]:
    """The parts of a section, and below, that a generator decodes or samples for."""
    for key in type(section).model_fields:
        value = getattr(section, key)
        if isinstance(value, Canvas | Selection) and value.needs_generator:
            yield value
        if isinstance(value, BaseModel):
            yield from _asking_a_generator(value)


def load_recipe(
    path: str | Path, overrides: Iterable[str] | None = None, profile: str | None = None
) -> Recipe:
    """Read a recipe file.

    Args:
        path: a YAML file, or the name of a recipe that ships with the package, `cifar10/podd`.
        overrides: `section.key=value` each, the value in YAML; they win over the file.
        profile: one of the file's `profiles`, for example a setting for a machine without a GPU.

    Raises:
        RecipeError: the file cannot be read, or has problems; the message lists all of them.
    """
    path = recipe_file(path)
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MOST_CHARACTERS + 1)
    except FileNotFoundError as error:
        beside = [file.name for file in path.parent.glob("*.y*ml")] if path.suffix else []
        hint = did_you_mean(path.name, beside) if beside else near(path)
        raise RecipeError(f"{path}: no such recipe; {hint}") from error
    except IsADirectoryError as error:
        raise RecipeError(f"{path}: got a folder, expected a YAML file") from error
    except OSError as error:
        raise RecipeError(f"{path}: cannot read this as text ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: cannot read this as text ({error})") from error
    try:
        content = from_yaml(text)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error
    return recipe_from(content, overrides, title=str(path), profile=profile)


def name_from(text: str) -> str:
    """A `name` for a recipe, of what a file or a dataset is called; empty where nothing fits."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:100]


def recipe_from(
    content: object,
    overrides: Iterable[str] | None = None,
    title: str = "recipe",
    profile: str | None = None,
) -> Recipe:
    """Make a recipe from nested dictionaries.

    Args:
        content: what a recipe file holds. Beside the sections it may hold `profiles`: for each
            name the keys `section.key` that it changes, with their values.
        overrides: `section.key=value` each; they win over the profile.
        title: what to call the recipe in messages.
        profile: the profile to apply.

    Raises:
        RecipeError: lists every problem.
    """
    if not isinstance(content, Mapping):
        got = "nothing" if content is None else shown(content)
        raise RecipeError(
            f"{title}: expected sections with names, got {got}; valid names: "
            f"{', '.join(Recipe.model_fields)}"
        )
    merged = dict(content)
    for path, value in _profile(merged.pop("profiles", {}), profile, title).items():
        put(merged, path, value, f"{title}: profiles.{profile}.{path}")
    for override in listed_overrides(overrides):
        path, value = parsed(override)
        put(merged, path, value, f"override {shown(override)}")
    try:
        return Recipe.model_validate(merged)
    except ValidationError as error:
        # one more than is listed says that there are more; a text may have 100,000
        lines = list(islice(problem_lines(error.errors(), Recipe), MOST_LISTED + 1))
        count = f"{len(lines)} problem" + ("s" if len(lines) > 1 else "")
        if len(lines) > MOST_LISTED:
            count = f"more than {MOST_LISTED} problems, the first of them"
        raise RecipeError("\n  ".join([f"{title}: {count}", *lines[:MOST_LISTED]])) from error


def _profile(profiles: object, name: str | None, title: str) -> dict[str, Any]:
    """The keys and values of one profile; {} when none is asked for."""
    if not isinstance(profiles, dict) or not all(
        isinstance(keys, dict) for keys in profiles.values()
    ):
        raise RecipeError(
            f"{title}: profiles: got {shown(profiles)}, expected for each name the keys it "
            "changes, for example profiles: {cpu: {distill.steps: 500}}"
        )
    for of, keys in profiles.items():
        for path, value in keys.items():
            _check_profile_key(path, value, f"{title}: profiles.{cut(str(of))}")
    if name is None:
        return {}
    if name not in profiles:
        raise RecipeError(
            f"{title}: no profile {shown(name)}; "
            + (did_you_mean(name, map(str, profiles)) if profiles else "this recipe has none")
        )
    return dict(profiles[name])


def _check_profile_key(path: object, value: object, what: str) -> None:
    """Refuse what is no path, and a mapping that would take the place of a whole section."""
    if not isinstance(path, str) or not all(path.split(".")):
        raise RecipeError(
            f"{what}: got the key {shown(path)}, expected section.key, for example distill.steps"
        )
    if isinstance(value, dict) and _model_at(Recipe, (path,)) is not None:
        single = cut(", ".join(f"{path}.{key}: {shown(one)}" for key, one in value.items()))
        raise RecipeError(
            f"{what}.{path}: got a mapping, which would replace the whole section; write each key "
            f"with its section: {single or f'{path}.key: value'}"
        )


def listed_overrides(overrides: object) -> list[str]:
    """The overrides, where they are texts, each of which may be read again; [] for None.

    Raises:
        RecipeError: they are something else.
    """
    if overrides is None:
        return []
    expected = "expected a list of 'section.key=value'"
    if isinstance(overrides, str | bytes | Mapping) or not isinstance(overrides, Iterable):
        raise RecipeError(f"overrides: got a {type(overrides).__name__}, {expected}")
    listed = list(overrides)
    for override in listed:
        if not isinstance(override, str):
            raise RecipeError(f"overrides: got {shown(override)} in the list, {expected}")
    return listed


def parsed(override: str) -> tuple[str, Any]:
    """The path and the value of `section.key=value`."""
    path, equals, text = override.partition("=")
    if not equals or not all(path.split(".")):
        raise RecipeError(
            f"override {shown(override)}: expected section.key=value, for example distill.steps=500"
        )
    try:
        return path, from_yaml(text)
    except RecipeError as error:
        raise RecipeError(f"override {shown(override)}: {error}") from error


def put(content: dict[str, Any], path: str, value: object, what: str) -> None:
    """Put a value at `section.key` into the nested dictionaries."""
    keys = path.split(".")
    section = content
    for depth, key in enumerate(keys[:-1], start=1):
        inner = section.get(key, {})
        if inner is None:  # a part of it does not switch it on again, unnoticed
            off, on = cut(".".join(keys[:depth])), shown(value)
            for inside in reversed(keys[depth:]):
                on = f"{{{cut(inside)}: {on}}}"
            raise RecipeError(
                f"{what}: {off} was set to null, which switches it off; write {off}={on} to have "
                "it, or leave this out"
            )
        if isinstance(inner, str):  # `canvas: poster` is short for `canvas: {name: poster}`
            inner = {"name": inner}
        elif not isinstance(inner, dict):
            raise RecipeError(
                f"{what}: {cut('.'.join(keys[:depth]))} is {shown(inner)}, not a section"
            )
        # a copy: the section may be the caller's, or stand twice in the recipe by a YAML alias
        section[key] = dict(inner)
        section = section[key]
    section[keys[-1]] = value


def problem_lines(
    errors: Iterable[Any], model: type[BaseModel], prefix: tuple[Any, ...] = ()
) -> Iterator[str]:
    """One line per problem: path, what was got, what was expected, what to do.

    Args:
        errors: what `ValidationError.errors()` gives.
        model: the model that was validated, which knows the valid names.
        prefix: path of that model inside the recipe.
    """
    told = set[str]()
    for error in errors:
        context = error.get("ctx", {})
        path = ".".join(cut(str(key)) for key in prefix + error["loc"])
        if error["type"] == "nested":
            yield from problem_lines(context["errors"], context["model"], prefix + error["loc"])
        elif error["type"] == "between_sections":
            yield from context["problems"]
        elif error["type"] == "extra_forbidden":
            owner = _model_at(model, error["loc"][:-1])
            fields = owner.model_fields if owner else {}
            yield f"{path}: no such key; {did_you_mean(str(error['loc'][-1]), fields)}"
        elif error["type"] == "missing":
            field = _field_at(model, error["loc"])
            what = f" ({field.description})" if field and field.description else ""
            yield f"{path}: missing; expected a value{what}"
        elif error["type"] == "string_pattern_mismatch":
            field = _field_at(model, error["loc"])
            what = field.description if field and field.description else "another text"
            yield f"{path}: got {shown(error['input'])}, expected {what}, as {context['pattern']}"
        elif error["type"] == "value_error":
            why = str(context.get("error", error["msg"]))
            yield f"{path}: {why}" if path else why
        else:
            message = error["msg"][0].lower() + error["msg"][1:]
            got = "" if isinstance(error["input"], dict) else f"got {shown(error['input'])}, "
            kind = next((place for place, key in enumerate(error["loc"]) if _is_kind(key)), None)
            if kind is not None:  # each of the kinds of values that may stand here says why not
                names = [key for key in error["loc"][:kind] if isinstance(key, str)]
                field = _field_at(model, tuple(names))
                message = f"expected {field.description if field else 'another value'}"
                path = ".".join(map(str, prefix + error["loc"][:kind]))
                if path in told:
                    continue
                told.add(path)
            yield f"{path}: {got}{message.replace('input should be', 'expected')}"


def _is_kind(key: object) -> bool:
    """Whether pydantic put this into a path to say which of several types it has tried."""
    return isinstance(key, str) and _KIND.fullmatch(key) is not None


def _field_at(model: type[BaseModel], path: tuple[Any, ...]) -> FieldInfo | None:
    """The field at a path below `model`; None where there is none."""
    owner = _model_at(model, path[:-1])
    return owner.model_fields.get(str(path[-1])) if owner else None


def _model_at(model: type[BaseModel], path: tuple[Any, ...]) -> type[BaseModel] | None:
    """The model of the section at a path below `model`; None where there is none."""
    for key in path:
        field = model.model_fields.get(str(key))
        inner = _section_in(field.annotation) if field else None
        if inner is None:
            return None
        model = inner
    return model


def _section_in(annotation: object) -> type[BaseModel] | None:
    """The model inside an annotation such as `Section | None`."""
    if isinstance(annotation, type):
        return annotation if issubclass(annotation, BaseModel) else None
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        for option in typing.get_args(annotation):
            section = _section_in(option)
            if section:
                return section
    return None
