"""Sections of a recipe, parts that a name selects, and the table of names.

A name in a recipe becomes a class: one literal table, then the entry points of other packages.
Another package adds a part by subclassing one axis and declaring one entry point, for example
`[project.entry-points."distill_datasets.objectives"] mean_match = "my_package:MeanMatch"`.
Built-in names cannot be shadowed.
"""

from __future__ import annotations

import importlib
from abc import ABC
from dataclasses import dataclass
from functools import partial
from importlib.metadata import entry_points
from typing import Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, PydanticCustomError

from distill_datasets.errors import RecipeError, did_you_mean, shown


class Section(BaseModel, ABC):
    """A piece of a recipe: frozen, no unknown keys, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def chosen(self) -> dict[str, Any]:
        """The values that are not the defaults, as JSON; a part keeps its name."""
        dumped, found = self.model_dump(mode="json"), dict[str, Any]()
        for key, field in type(self).model_fields.items():
            value = getattr(self, key)
            usual = field.get_default(call_default_factory=True)
            if key == "name" or field.is_required() or value != usual:
                found[key] = _chosen(value, dumped[key])
        return found


def _chosen(value: object, dumped: Any) -> Any:  # noqa: ANN401
    """What was chosen of a value, of which this is the whole as JSON."""
    if isinstance(value, Section):
        return value.chosen()
    if isinstance(value, list):
        return [_chosen(*pair) for pair in zip(value, dumped, strict=True)]
    return dumped


class Part(Section, ABC):
    """A section that a name selects. Subclasses declare `name: Literal["..."] = "..."`."""

    name: str
    paper: ClassVar[str]

    def papers(self) -> list[str]:
        """The papers that these very settings are from."""
        cited = self.cited()
        return self.paper.split("; ") if cited is None else cited

    def cited(self) -> list[str] | None:
        """Those of the papers that these settings are from, where they are not from all."""
        return None


BUILT_IN: dict[str, dict[str, str]] = {
    "objectives": {
        "distribution": "distill_datasets.objectives.distribution:Distribution",
        "gradient": "distill_datasets.objectives.gradient:Gradient",
        "linear": "distill_datasets.objectives.linear:Linear",
        "recover": "distill_datasets.objectives.recover:Recover",
        "regression": "distill_datasets.objectives.regression:Regression",
        "selected": "distill_datasets.objectives.selected:Selected",
        "trajectory": "distill_datasets.objectives.trajectory:Trajectory",
        "unrolled": "distill_datasets.objectives.unrolled:Unrolled",
    },
    "canvases": {
        "bases": "distill_datasets.canvases.bases:Bases",
        "field": "distill_datasets.canvases.field:NeuralField",
        "frequency": "distill_datasets.canvases.frequency:Frequency",
        "gaussians": "distill_datasets.canvases.gaussians:Gaussians",
        "latent": "distill_datasets.canvases.latent:Latent",
        "mosaic": "distill_datasets.canvases.mosaic:Mosaic",
        "pixels": "distill_datasets.canvases.pixels:Pixels",
        "poster": "distill_datasets.canvases.poster:Poster",
        "pyramid": "distill_datasets.canvases.pyramid:Pyramid",
        "small": "distill_datasets.canvases.small:Small",
    },
    "labels": {
        "area": "distill_datasets.labels.fixed:Area",
        "learned": "distill_datasets.labels.learned:Learned",
        "logits": "distill_datasets.labels.learned:Logits",
        "vectors": "distill_datasets.labels.learned:Vectors",
    },
    "networks": {
        "backbones": "distill_datasets.networks.pretrained:Backbones",
        "fixed": "distill_datasets.networks.network:Fixed",
        "fresh": "distill_datasets.networks.network:Fresh",
        "pool": "distill_datasets.networks.pool:Pool",
        "pretrained": "distill_datasets.networks.experts:Pretrained",
        "teachers": "distill_datasets.networks.teachers:TeacherNetworks",
        "trained_on_distilled": "distill_datasets.networks.online:TrainedOnDistilled",
        "trained_on_real": "distill_datasets.networks.online:TrainedOnReal",
        "trajectories": "distill_datasets.networks.experts:Trajectories",
    },
    "architectures": {
        "convnet": "distill_datasets.models.convnets:ConvNet",
        "lenet": "distill_datasets.models.convnets:LeNet",
        "linear_probe": "distill_datasets.models.backbones:LinearProbe",
        "mlp": "distill_datasets.models.convnets:Mlp",
        "resnet": "distill_datasets.models.vision:ResNet",
        "timm": "distill_datasets.models.vision:Timm",
        "torchvision": "distill_datasets.models.vision:Torchvision",
        "vgg": "distill_datasets.models.convnets:Vgg",
        "vit": "distill_datasets.models.vision:Vit",
    },
    "backbones": {
        "efficientnet_lite": "distill_datasets.models.backbones:LiteBackbone",
        "squeezed": "distill_datasets.models.backbones:SqueezedBackbone",
        "timm": "distill_datasets.models.backbones:TimmBackbone",
        "torchvision": "distill_datasets.models.backbones:TorchvisionBackbone",
        "transformers": "distill_datasets.models.backbones:TransformersBackbone",
    },
    "generators": {
        "diffusers": "distill_datasets.stages.diffusers_generator:DiffusersGenerator",
        "random": "distill_datasets.stages.generator:RandomGenerator",
        "trained": "distill_datasets.stages.generator:TrainedGenerator",
    },
    "selections": {
        "class_mean": "distill_datasets.selection.coresets:ClassMean",
        "correct": "distill_datasets.selection.coresets:Correct",
        "guided": "distill_datasets.selection.generated:Guided",
        "herding": "distill_datasets.selection.coresets:Herding",
        "k_center": "distill_datasets.selection.coresets:KCenter",
        "nearest": "distill_datasets.selection.coresets:Nearest",
        "nearest_latent": "distill_datasets.selection.generated:NearestLatent",
        "noise": "distill_datasets.selection.random:Noise",
        "prototypes": "distill_datasets.selection.generated:Prototypes",
        "published": "distill_datasets.selection.published:Published",
        "rded": "distill_datasets.selection.rded:Rded",
        "real": "distill_datasets.selection.random:Real",
    },
    "views": {
        "frames": "distill_datasets.media.frames:Frames",
        "mel": "distill_datasets.media.mel:Mel",
        "slices": "distill_datasets.media.slices:Slices",
    },
    "orders": {
        "clip": "distill_datasets.canvases.class_order:Clip",
        "features": "distill_datasets.canvases.class_order:ByFeatures",
        "list": "distill_datasets.canvases.class_order:Listed",
        "visual": "distill_datasets.canvases.class_order:Visual",
    },
    "optimizers": {
        "adam": "distill_datasets.optimizers:Adam",
        "adamw": "distill_datasets.optimizers:AdamW",
        "sgd": "distill_datasets.optimizers:Sgd",
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


def load(axis: str, name: str, kind: type = Part) -> type[Part]:
    """The class behind a name.

    Args:
        axis: where the name is looked up.
        name: what a recipe says.
        kind: the class that the place where it says so is for; another part is refused there.

    Raises:
        RecipeError: no such name, or not of this kind; the message lists the valid ones.
    """
    table = names(axis)
    if name not in table:
        raise RecipeError(
            f"no {shown(name)} among the {axis}; {did_you_mean(name, _valid(axis, kind))}"
        )
    cls = _imported(axis, name, table[name])
    if not issubclass(cls, kind):
        raise RecipeError(_misplaced(axis, name, kind))
    return cls


@dataclass(frozen=True)
class NamedPart:
    """What `part` annotates a field with; pydantic tells it the field's own type."""

    axis: str

    def __get_pydantic_core_schema__(self, kind: type, handler: GetCoreSchemaHandler) -> CoreSchema:
        resolved = BeforeValidator(partial(_resolved, self.axis, kind))
        return resolved.__get_pydantic_core_schema__(kind, handler)


def part(axis: str) -> NamedPart:
    """A validator that turns `{name: poster, ipc: 0.3}` or plain `poster` into the part it names.

    The part has to be of the kind that the field is declared with: where the rule of a loop that is
    differentiated is asked for, an optimizer that only trains students will not do.

    The problems inside the part travel in the error's context, so that the recipe can list each of
    them under its own path.
    """
    return NamedPart(axis)


def _resolved(axis: str, kind: type, raw: Any) -> Any:  # noqa: ANN401
    """The part that a field of this kind is given, or given by name."""
    if isinstance(raw, kind):
        return raw
    if isinstance(raw, Part):
        raise PydanticCustomError("part", "{why}", {"why": _misplaced(axis, raw.name, kind)})
    section = {"name": raw} if isinstance(raw, str) else raw
    if not isinstance(section, dict) or not isinstance(section.get("name"), str):
        raise PydanticCustomError(
            "part",
            "expected a name or a section with a name; valid names: {valid}",
            {"valid": ", ".join(_valid(axis, kind))},
        )
    try:
        cls = load(axis, section["name"], kind)
    except RecipeError as error:
        raise PydanticCustomError("part", "{why}", {"why": str(error)}) from error
    try:
        return cls.model_validate(section)
    except ValidationError as error:
        raise PydanticCustomError(
            "nested", "see the problems inside", {"model": cls, "errors": error.errors()}
        ) from error


def _imported(axis: str, name: str, target: str) -> type[Part]:
    module, _, attribute = target.partition(":")
    try:
        cls: type[Part] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise RecipeError(
            f"{name!r} among the {axis} is declared as {target!r}, which cannot be imported "
            f"({error}); mend or uninstall the package that declares it"
        ) from error
    return cls


def _valid(axis: str, kind: type) -> list[str]:
    """The names on an axis that are of a kind, for a message."""

    def fits(name: str, target: str) -> bool:
        try:
            return issubclass(_imported(axis, name, target), kind)
        except RecipeError:  # its own message comes when it is chosen
            return True

    return sorted(name for name, target in names(axis).items() if fits(name, target))


def _misplaced(axis: str, name: str, kind: type) -> str:
    return (
        f"{name!r} is among the {axis}, but not one that serves here; valid names here: "
        f"{', '.join(_valid(axis, kind))}"
    )
