"""The latent canvas: its gradient through the decoder, and every objective on it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.devices import PROBLEMS
from support.generator_problem import TRAINED, made, trained
from support.tiny import CPU, distilled_of, toy_real
from support.toy_runs import command, toy_file

from distill_datasets.canvases.latent import Latent, in_chunks
from distill_datasets.data.real import RealData
from distill_datasets.export.folder import read_manifest
from distill_datasets.labels.fixed import Area
from distill_datasets.runtime.draws import rng_for
from distill_datasets.selection.random import Noise
from distill_datasets.stages.generator import RandomGenerator
from distill_datasets.types import Shape

SECTION = str(TRAINED).replace("'", "")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealData]:
    """Toy images with the generator that was trained on them."""
    real = toy_real()
    made(trained(minimax=None), tmp_path_factory.mktemp("generators"), real)
    yield real


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("chunk", [1, 3, 5])
def test_the_gradient_by_chunks_is_that_of_all_at_once(
    real: RealData, chunk: int, layer: int
) -> None:
    generator = real.generator
    assert generator is not None
    labels_B, weight = torch.tensor([0, 1, 2, 0, 1]), torch.rand(5, 1, 8, 8, generator=rng_for(1))
    latents = torch.randn(5, *generator.latent, generator=rng_for(0))
    maps = generator.inner(latents, labels_B, 1) if layer else latents
    maps.requires_grad_()
    whole = generator.decode(maps, labels_B, layer)
    pieces = in_chunks(
        lambda maps, labels_B: generator.decode(maps, labels_B, layer), [maps, labels_B], chunk
    )
    assert torch.allclose(whole, pieces, atol=1e-6)
    expected, got = (
        torch.autograd.grad((images.square() * weight).sum(), maps)[0] for images in (whole, pieces)
    )
    assert expected.abs().max() > 1e-3 and torch.allclose(expected, got, atol=1e-6)


def test_no_graph_of_the_decoder_is_kept_between_the_passes(real: RealData) -> None:
    generator, kept = real.generator, list[int]()
    assert generator is not None
    latents = torch.randn(6, *generator.latent, requires_grad=True)
    labels_B = torch.zeros(6, dtype=torch.long)
    for decode in (generator.decode, lambda z, y: in_chunks(generator.decode, [z, y], 2)):
        sizes = list[int]()

        def pack(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            decode(latents, labels_B)
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 5


JOINT = [
    "unrolled, graph", "unrolled, recompute", "distribution", "gradient", "trajectory",
    "regression", "linear",
]  # fmt: skip


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("name", JOINT)
def test_every_objective_gives_latents_and_features_a_gradient(
    tmp_path: Path, name: str, layer: int
) -> None:
    problem = PROBLEMS[name](CPU, False, tmp_path)
    generator = made(RandomGenerator(channels=2, width=8), tmp_path, problem.real)
    canvas = Latent(ipc=2, layer=layer, chunk=3).with_generator(generator)
    sizes = (0.05,) if name == "trajectory" else ()
    distilled = distilled_of(problem.real, canvas, Area(), step_sizes=sizes)
    found = replace(problem, distilled=distilled).estimate()
    gradient_NLhw = found.grads["canvas.latents_NLhw"]
    assert gradient_NLhw.isfinite().all() and gradient_NLhw.abs().max() > 0


def test_latents_pass_the_flow_and_early_steps_hold_on_to_them(real: RealData) -> None:
    generator = real.generator
    assert generator is not None
    latents = torch.randn(2, *generator.latent, generator=rng_for(3), requires_grad=True)
    noise, labels_B = generator.start(rng_for(4), 2), torch.tensor([0, 2])
    # a single step is the flow's own, from noise alone; of two the first one is the latent's own
    one = generator.blended(latents, noise, labels_B, 1)
    assert torch.allclose(one, generator.heads_for(noise, 0.0, labels_B), atol=1e-5)
    e = noise  # what x_0 is made of, whatever the velocity there
    half = 0.5 * latents + 0.5 * e
    two = generator.blended(latents, noise, labels_B, 2)
    assert torch.allclose(two, generator.heads_for(half, 0.5, labels_B), atol=1e-5)
    found, expected = (
        torch.autograd.grad(images.square().sum(), latents, retain_graph=True)[0]
        for images in (two, generator.heads_for(half, 0.5, labels_B))
    )
    assert found.abs().max() > 1e-3 and torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 3, 4])
def test_the_gradient_through_the_flow_does_not_depend_on_chunks(
    real: RealData, chunk: int
) -> None:
    assert real.generator is not None
    grads = []
    for at_once in (4, chunk):
        canvas = Latent(ipc=2, through=3, chunk=at_once).with_generator(real.generator)
        start = canvas.start(real, rng_for(0))
        latents = start.trained["latents_NLhw"].requires_grad_()
        shown = canvas.decode(start.trained | start.constants, torch.tensor([0, 2, 3, 5]))
        grads.append(torch.autograd.grad(shown.square().sum(), latents)[0])
    assert torch.allclose(*grads, atol=1e-6) and grads[0].abs().max() > 1e-4


def test_features_of_every_layer_decode_to_the_images_of_their_latents(tmp_path: Path) -> None:
    real = toy_real(Shape(3, 28, 30, 3), per_class=4)
    part = RandomGenerator(channels=2, width=8)
    generator = made(part, tmp_path, real)
    last, labels_N = part.layers(real.shape), torch.arange(3).repeat_interleave(2)
    assert last == 2
    images = {
        layer: Latent(ipc=2, layer=layer, chunk=4).with_generator(generator)
        for layer in range(last + 1)
    }
    found = {}
    for layer, canvas in images.items():
        start = canvas.start(real, rng_for(0))
        found[layer] = torch.stack(canvas.stored(start.trained | start.constants))
        assert layer == 0 or start.trained["latents_NLhw"].std().item() == pytest.approx(1)
    plain = images[0].start(real, rng_for(0)).trained["latents_NLhw"]
    pieces = [generator.decode(*pair) for pair in zip(plain.split(4), labels_N.split(4))]  # noqa: B905
    assert torch.equal(found[0], torch.cat(pieces))
    assert all(torch.allclose(found[0], found[layer], atol=1e-5) for layer in (1, 2))


def test_a_decoder_without_the_layer_is_refused_before_work(tmp_path: Path) -> None:
    canvas = "distill.canvas={name: latent, ipc: 1, layer: 2}"
    answer = command("plan", toy_file(tmp_path), "generator=random", canvas)
    assert answer.code == 2
    assert "distill.canvas.layer: got 2" in answer.err and "after layers 1; take" in answer.err
    answer = command("plan", toy_file(tmp_path), "generator=random", canvas.replace("2", "1"))
    assert answer.code == 0 and "trained pixel values" not in answer.out
    assert "bytes, not counted in the set's" in answer.out
    answer = command("check", toy_file(tmp_path), "generator=random", canvas[:-1] + ", through: 3}")
    assert "layer: got 2 with through: 3" in answer.err


def test_it_starts_from_the_latents_of_its_images_or_of_noise(real: RealData) -> None:
    assert real.generator is not None
    for init, near in ((Noise(std=0.0), True), (None, False)):
        canvas = Latent(ipc=2, init=init).with_generator(real.generator)
        latents = canvas.start(real, rng_for(0)).trained["latents_NLhw"]
        gray = real.generator.encode(torch.full((6, 1, 8, 8), 0.5))
        assert torch.allclose(latents, gray, atol=1e-5) is near


@pytest.mark.parametrize("layer", [0, 1])
def test_a_run_publishes_the_images_and_tells_the_bytes_of_the_generator(
    tmp_path: Path, layer: int
) -> None:
    out = tmp_path / "out"
    answer = command(
        "run", toy_file(tmp_path), f"generator={SECTION}", "distill.steps=2",
        f"distill.canvas={{name: latent, ipc: 1, layer: {layer}}}", "distill.labels=area",
        "distill.objective={name: distribution, real_batch: 8}",
        "evaluate.students=1", "evaluate.steps=2", "evaluate.references=[]",
        "--runs", tmp_path / "runs", "--output", out,
    )  # fmt: skip
    assert answer.code == 0, answer.err
    budget = read_manifest(out)["budget"]
    assert budget["pixels"] == 10 * 64 and budget["generator_bytes"] > 10_000
    assert "generator" in (out / "README.md").read_text(encoding="utf-8")
    page = tmp_path / "page.html"
    assert command("report", out, "--output", page, "--runs", tmp_path / "runs").code == 0
    assert "made the images; nobody needs it" in page.read_text(encoding="utf-8")
