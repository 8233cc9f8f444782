"""A name in a recipe becomes a class: one literal table, then the entry points of other packages.

Another package adds a part by subclassing one axis and declaring one entry point, for example
`[project.entry-points."distill_datasets.objectives"] mean_match = "my_package:MeanMatch"`.
Built-in names cannot be shadowed.
"""

import importlib
from importlib.metadata import entry_points
from typing import Any, cast

from pydantic import BeforeValidator, ValidationError
from pydantic_core import PydanticCustomError

from distill_datasets.errors import RecipeError, did_you_mean
from distill_datasets.types import Part

BUILT_IN: dict[str, dict[str, str]] = {
    "objectives": {
        "distribution": "distill_datasets.objectives.distribution:Distribution",
        "gradient": "distill_datasets.objectives.gradient:Gradient",
        "recover": "distill_datasets.objectives.recover:Recover",
        "selected": "distill_datasets.objectives.selected:Selected",
        "trajectory": "distill_datasets.objectives.trajectory:Trajectory",
        "unrolled": "distill_datasets.objectives.unrolled:Unrolled",
    },
    "canvases": {
        "mosaic": "distill_datasets.canvases.mosaic:Mosaic",
        "pixels": "distill_datasets.canvases.pixels:Pixels",
        "poster": "distill_datasets.canvases.poster:Poster",
    },
    "labels": {
        "area": "distill_datasets.labels.table:Area",
        "learned": "distill_datasets.labels.table:Learned",
        "logits": "distill_datasets.labels.logits:Logits",
    },
    "networks": {
        "fixed": "distill_datasets.networks.sources:Fixed",
        "fresh": "distill_datasets.networks.sources:Fresh",
        "pretrained": "distill_datasets.networks.squeezed:Pretrained",
        "teachers": "distill_datasets.networks.teachers:TeacherNetworks",
        "trained_on_distilled": "distill_datasets.networks.trained:TrainedOnDistilled",
        "trained_on_real": "distill_datasets.networks.trained:TrainedOnReal",
        "trajectories": "distill_datasets.networks.squeezed:Trajectories",
    },
    "architectures": {
        "convnet": "distill_datasets.networks.zoo:ConvNet",
        "lenet": "distill_datasets.networks.zoo:LeNet",
        "resnet": "distill_datasets.networks.vision:ResNet",
        "torchvision": "distill_datasets.networks.vision:Torchvision",
    },
    "selections": {
        "class_mean": "distill_datasets.selection.averaged:ClassMean",
        "correct": "distill_datasets.selection.chosen:Correct",
        "herding": "distill_datasets.selection.chosen:Herding",
        "k_center": "distill_datasets.selection.chosen:KCenter",
        "noise": "distill_datasets.selection.drawn:Noise",
        "published": "distill_datasets.selection.distilled:Published",
        "rded": "distill_datasets.selection.patches:Rded",
        "real": "distill_datasets.selection.drawn:Real",
    },
    "orders": {
        "clip": "distill_datasets.canvases.order:Clip",
        "list": "distill_datasets.canvases.order:Listed",
        "visual": "distill_datasets.canvases.order:Visual",
    },
    "optimizers": {
        "adam": "distill_datasets.inner:Adam",
        "adamw": "distill_datasets.inner:AdamW",
        "sgd": "distill_datasets.inner:Sgd",
    },
}


def names(axis: str) -> dict[str, str]:
    """Every name that a recipe may use on an axis, with the `module:Class` it stands for.

    Raises:
        RecipeError: an installed package declares a name that is built in.
    """
    table = dict(BUILT_IN[axis])
    for entry in entry_points(group=f"distill_datasets.{axis}"):
        if entry.name in BUILT_IN[axis]:
            raise RecipeError(
                f"the entry point {entry.name!r} = {entry.value!r} shadows a built-in name of the "
                f"axis {axis!r}; its package has to choose another name"
            )
        table[entry.name] = entry.value
    return table


def load(axis: str, name: str) -> type[Part]:
    """The class behind a name.

    Raises:
        RecipeError: no such name; the message lists the valid ones.
    """
    table = names(axis)
    if name not in table:
        raise RecipeError(f"no {name!r} among the {axis}; {did_you_mean(name, table)}")
    module, _, attribute = table[name].partition(":")
    try:
        return cast(type[Part], getattr(importlib.import_module(module), attribute))
    except (ImportError, AttributeError) as error:
        raise RecipeError(
            f"{name!r} among the {axis} is declared as {table[name]!r}, which cannot be imported "
            f"({error}); mend or uninstall the package that declares it"
        ) from error


def part(axis: str) -> BeforeValidator:
    """A validator that turns `{name: poster, ipc: 0.3}` or plain `poster` into the part it names.

    The problems inside the part travel in the error's context, so that the recipe can list each of
    them under its own path.
    """

    def resolve(raw: Any) -> Any:  # noqa: ANN401
        if isinstance(raw, Part):
            return raw
        section = {"name": raw} if isinstance(raw, str) else raw
        if not isinstance(section, dict) or not isinstance(section.get("name"), str):
            raise PydanticCustomError(
                "part",
                "expected a name or a section with a name; valid names: {valid}",
                {"valid": ", ".join(sorted(names(axis)))},
            )
        try:
            cls = load(axis, section["name"])
        except RecipeError as error:
            raise PydanticCustomError("part", "{why}", {"why": str(error)}) from error
        try:
            return cls.model_validate(section)
        except ValidationError as error:
            raise PydanticCustomError(
                "nested", "see the problems inside", {"model": cls, "errors": error.errors()}
            ) from error

    return BeforeValidator(resolve)
