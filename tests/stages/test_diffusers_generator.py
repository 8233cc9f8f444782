"""Models of diffusers as generators: tiny ones, randomly initialized and written to a folder."""

import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.generator_problem import made
from support.tiny import toy_real
from support.toy_runs import command, toy_file

from distill_datasets.canvases.latent import in_chunks
from distill_datasets.errors import RecipeError
from distill_datasets.export.folder import read_manifest
from distill_datasets.models.diffusion import DiffusionFlow, times_of
from distill_datasets.models.generator import Generator
from distill_datasets.runtime.draws import rng_for
from distill_datasets.stages.diffusers_generator import DiffusersGenerator
from distill_datasets.types import Shape

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
SHAPE = Shape(1, 8, 8, 3)
LABELS = {0: "tench, Tinca tinca", 1: "Class 2", 2: "class-0", 3: "class 1, first class"}
TUNED = {"epochs": 1, "batch": 10, "checkpoint_seconds": 0.0}


def write(folder: Path, kind: str, network: str, model: Any, **more: Any) -> Path:  # noqa: ANN401
    """A folder as diffusers writes it: an index, a network, an autoencoder and a scheduler."""
    torch.manual_seed(0)
    autoencoder = diffusers.AutoencoderKL(
        block_out_channels=(4, 8), latent_channels=4, norm_num_groups=2, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        scaling_factor=0.5,
    )  # fmt: skip
    model().save_pretrained(folder / network)
    autoencoder.save_pretrained(folder / "vae")
    diffusers.DDIMScheduler().save_pretrained(folder / "scheduler")
    index = {"_class_name": kind, **more}
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def dit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def network() -> Any:  # noqa: ANN401
        model = diffusers.DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8,
            num_layers=2, sample_size=8, num_embeds_ada_norm=4,
        )  # fmt: skip
        torch.nn.init.normal_(model.proj_out_2.weight, std=0.3)  # zero, as the makers start it
        return model

    return write(
        tmp_path_factory.mktemp("dit"), "DiTPipeline", "transformer", network, id2label=LABELS
    )


@pytest.fixture(scope="module")
def stable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers = pytest.importorskip("transformers")

    def network() -> Any:  # noqa: ANN401
        return diffusers.UNet2DConditionModel(
            sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
            cross_attention_dim=8, attention_head_dim=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        )  # fmt: skip

    folder = write(tmp_path_factory.mktemp("stable"), "StableDiffusionPipeline", "unet", network)
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789"]
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {word: number for number, word in enumerate(
        [*words, "<|startoftext|>", "<|endoftext|>"]
    )}  # fmt: skip
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    tokenizer = transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=24
    )
    tokenizer.save_pretrained(folder / "tokenizer")
    config = transformers.CLIPTextConfig(
        vocab_size=len(vocabulary), hidden_size=8, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=24,
    )  # fmt: skip
    transformers.CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    return folder


def generator(folder: Path, tmp_path: Path, **keys: Any) -> Generator:  # noqa: ANN401
    part = DiffusersGenerator.model_validate({"model": str(folder), "steps": 4} | keys)
    return made(part, tmp_path)


@torch.no_grad()
def by_pipeline(folder: Path, noise: torch.Tensor, number: int, steps: int) -> torch.Tensor:
    """Latents that DDIM of diffusers makes of the noise, with guidance 4 of a class."""
    model = diffusers.DiTTransformer2DModel.from_pretrained(folder, subfolder="transformer")
    scheduler = diffusers.DDIMScheduler.from_pretrained(
        folder, subfolder="scheduler", timestep_spacing="trailing", clip_sample=False,
        set_alpha_to_one=True,
    )  # fmt: skip
    scheduler.set_timesteps(steps)
    latents = noise
    for step in scheduler.timesteps:
        own, none = (
            model(latents, timestep=step.expand(1), class_labels=torch.tensor([label])).sample[
                :, :4
            ]
            for label in (number, 4)
        )
        latents = scheduler.step(none + 4 * (own - none), step, latents).prev_sample
    return latents


def test_euler_steps_of_the_flow_are_steps_of_ddim(dit: Path, tmp_path: Path) -> None:
    own = generator(dit, tmp_path, classes="map")
    noise = own.start(rng_for(0), 1)
    # the first time is a little after that of pure noise
    first = own.times[0]
    start = noise * ((1 - first) ** 2 + first**2) ** 0.5
    found = own.sample(start, torch.tensor([0]))
    assert torch.allclose(found, by_pipeline(dit, noise, 2, 4), atol=1e-3, rtol=1e-3)
    assert found.abs().max() > 0.1


def test_classes_are_found_by_their_names_or_given(dit: Path, tmp_path: Path) -> None:
    mapped = generator(dit, tmp_path, classes="map")
    given = generator(dit, tmp_path, classes="map", ids=[2, 3, 1])
    assert isinstance(mapped.velocity, DiffusionFlow)
    assert mapped.velocity.get_buffer("classes_K").tolist() == [2, 3, 1, 4]
    assert given.fingerprint == mapped.fingerprint


def test_images_keep_their_size_and_channels(dit: Path, tmp_path: Path) -> None:
    own = generator(dit, tmp_path, classes="map")
    latents = own.encode(torch.rand(2, 1, 8, 8, generator=rng_for(0)))
    assert latents.shape[1:] == own.latent == (4, 8, 8)
    assert own.show(latents, torch.tensor([0, 1])).shape == (2, 1, 8, 8)
    assert own.bytes > 10_000


def test_features_after_every_layer_of_its_decoder_decode_to_the_same_images(
    dit: Path, tmp_path: Path
) -> None:
    own, labels_B = generator(dit, tmp_path, classes="map"), torch.tensor([0, 1, 2])
    latents = torch.randn(3, *own.latent, generator=rng_for(0), requires_grad=True)
    whole = own.decode(latents, labels_B)
    part = DiffusersGenerator(model=str(dit), classes="map")
    assert part.layers(SHAPE) == 3
    for layer in (1, 2, 3):
        maps = own.inner(latents, labels_B, layer).requires_grad_()
        shown = own.decode(maps, labels_B, layer)
        assert torch.allclose(whole, shown, atol=1e-5)
        pieces = in_chunks(partial(own.decode, layer=layer), [maps, labels_B], 2)
        expected, got = (
            torch.autograd.grad(each.square().sum(), maps)[0] for each in (shown, pieces)
        )
        assert expected.abs().max() > 1e-4 and torch.allclose(expected, got, atol=1e-5)
    (problem,) = part.layer_problems(4, SHAPE)
    assert "got 4" in problem and "after layers 1, 2, 3" in problem


def test_new_classes_are_learned_and_the_rest_of_the_weights_stays(
    dit: Path, tmp_path: Path
) -> None:
    own = generator(dit, tmp_path, classes="finetune", minimax=TUNED)
    again = generator(dit, tmp_path, classes="finetune", minimax=TUNED)
    assert own.fingerprint == again.fingerprint and len(list(tmp_path.glob("minimax-*"))) == 1
    assert isinstance(own.velocity, DiffusionFlow)
    model = diffusers.DiTTransformer2DModel.from_pretrained(dit, subfolder="transformer")
    before = dict(model.named_parameters())
    changed = {
        name
        for name, weight in own.velocity.network.named_parameters()
        if weight.shape != before[name].shape or not torch.equal(weight, before[name])
    }
    assert changed and all(name.endswith("bias") or "class_embedder" in name for name in changed)


def test_prompts_say_the_classes_and_guidance_leaves_the_negative_one(
    stable: Path, tmp_path: Path
) -> None:
    own = generator(stable, tmp_path, classes="prompts", prompt="photo of {}")
    noise = own.start(rng_for(0), 1)
    first, other = (own.sample(noise, torch.tensor([label])) for label in (0, 1))
    assert not torch.equal(first, other) and torch.isfinite(first).all()


MAPPED = {"classes": "map", "ids": [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]}
TOLD = {"map": MAPPED, "finetune": {"classes": "finetune", "minimax": TUNED}, "prompts": {}}


@pytest.mark.parametrize("told", TOLD)
def test_a_run_publishes_samples_of_a_model_that_is_told_the_classes(
    request: pytest.FixtureRequest, tmp_path: Path, told: str
) -> None:
    folder: Path = request.getfixturevalue("stable" if told == "prompts" else "dit")
    section = {"name": "diffusers", "model": str(folder), "classes": told, "steps": 3, "size": 16}
    answer = command(
        "run", toy_file(tmp_path), f"generator={json.dumps(section | TOLD[told])}",
        "distill.steps=0", "distill.labels=area", "distill.objective=selected",
        "distill.networks={name: fresh}", "distill.canvas={name: pixels, ipc: 1, bounds: clip, "
        "init: {name: guided, mode: 0.1}}", "evaluate.students=1", "evaluate.references=[]",
        "evaluate.steps=2", "--runs", tmp_path / "runs", "--output", tmp_path / "out",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    manifest = read_manifest(tmp_path / "out")
    assert manifest["budget"]["pixels"] == 640 and manifest["budget"]["generator_bytes"] > 10_000
    assert len(list((tmp_path / "runs").glob("minimax-*"))) == (told == "finetune")


def test_times_are_those_of_trailing_steps() -> None:
    shares = torch.linspace(0.99, 0.01, 100)
    times = times_of(shares, 2)
    # steps 99 and 49: shares of signal .01 and .505
    assert times[2] == 1 and times[0] == pytest.approx(0.1 / (0.1 + 0.99**0.5))
    assert times[1] == pytest.approx(0.505**0.5 / (0.505**0.5 + 0.495**0.5), abs=1e-3)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"classes": "prompts"}, "told classes by map or finetune"),
        ({"classes": "map", "ids": [0, 1, 9]}, "has no class 9"),
        ({"classes": "map", "ids": [0, 1]}, "got 2 of them, expected 3"),
        ({"classes": "map", "model": "nowhere/at all"}, "no folder nowhere/at all"),
    ],
)
def test_what_a_model_cannot_be_told_is_refused(dit: Path, keys: dict[str, Any], said: str) -> None:
    part = DiffusersGenerator.model_validate({"model": str(dit)} | keys)
    (problem,) = part.problems(SHAPE, toy_real().class_names)
    assert said in problem


def test_a_class_that_no_name_fits_is_named(dit: Path) -> None:
    part = DiffusersGenerator(model=str(dit), classes="map")
    (problem,) = part.problems(SHAPE, ["class 0", "tench", "golf ball"])
    assert "knows no class 'golf ball'" in problem and "finetune" in problem


def test_a_model_in_pickles_is_not_read(dit: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for file in (file for file in dit.rglob("*") if file.is_file()):
        place = folder / file.relative_to(dit)
        place.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".safetensors":
            place.with_suffix(".bin").write_bytes(b"pickle")
        else:
            place.write_bytes(file.read_bytes())
    with pytest.raises(RecipeError, match="safetensors"), warnings.catch_warnings():
        generator(folder, tmp_path, classes="map")
