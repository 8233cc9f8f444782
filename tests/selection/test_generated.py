"""Prototypes and guided samples: what pulls, what does not, and what is chosen."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import pytest
import torch
from support.generator_problem import TRAINED, made, trained
from support.tiny import NET, TOY, toy_real
from support.toy_runs import command, hashes, toy_file
from torch import Tensor, nn

from distill_datasets.data.real import RealData
from distill_datasets.errors import RecipeError
from distill_datasets.models.generator import Generator
from distill_datasets.models.initialization import initialize
from distill_datasets.runtime.draws import rng_for
from distill_datasets.selection import guidance
from distill_datasets.selection.generated import (
    Guided,
    NearestLatent,
    Prototypes,
    Refine,
    centers,
    late_times,
    misfit,
    time_of_step,
)
from distill_datasets.selection.selection import Selection
from distill_datasets.stages.generator import even_times

SECTION = str(TRAINED).replace("'", "")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealData]:
    """Toy images with the generator that was trained on them."""
    real = toy_real()
    made(trained(minimax=None), tmp_path_factory.mktemp("generators"), real)
    yield real


@pytest.fixture(scope="module")
def generator(real: RealData) -> Generator:
    assert real.generator is not None
    return real.generator


class Networks:
    """Two fresh networks, as a squeeze stage would give them."""

    def __init__(self) -> None:
        self.modules: list[nn.Module] = [NET.build(TOY) for _ in range(2)]
        for turn, module in enumerate(self.modules):
            initialize(module, rng_for(turn))

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.stack([module(images_BCHW) for module in self.modules])


def images(real: RealData, label: int = 1, **keys: Any) -> Tensor:  # noqa: ANN401
    return Guided(**keys).of_class(real, label, 3, rng_for(0), Networks())


def test_guidance_without_any_scale_is_plain_sampling_bit_for_bit(
    real: RealData, generator: Generator
) -> None:
    noise, labels_B = generator.start(rng_for(0), 3), torch.ones(3, dtype=torch.long)
    plain = generator.show(generator.sample(noise, labels_B), labels_B)
    assert torch.equal(images(real), plain)
    others = generator.start(rng_for(1), 4)
    nothing = [
        lambda x, clean, time: guidance.mode(clean, others[:3], time, 0.0, 1.0),
        lambda x, clean, time: guidance.mode(clean, others[:3], time, 1.0, 0.0),
        lambda x, clean, time: guidance.deviation(x, others, time, 0.0),
        lambda x, clean, time: guidance.represent(clean, others, time, 0.0),
    ]
    for guide in nothing:
        assert torch.equal(
            generator.show(generator.sample(noise, labels_B, [guide]), labels_B), plain
        )


@pytest.mark.parametrize(
    "keys", [{"mode": 0.5}, {"influence": 1.0}, {"deviation": 5.0}, {"represent": 5.0}]
)
def test_every_scale_moves_the_samples_and_repeats(real: RealData, keys: dict[str, float]) -> None:
    first, second = images(real, **keys), images(real, **keys)
    assert torch.equal(first, second) and not torch.equal(first, images(real))


def test_a_mode_pulls_all_the_way_when_it_is_asked_for(generator: Generator) -> None:
    clean, modes = torch.zeros(2, 1, 2, 2), torch.ones(2, 1, 2, 2)
    assert torch.equal(guidance.mode(clean, modes, 0.25, 2.0, 0.5), torch.full_like(clean, 1.5))


def test_the_pull_stops_after_a_share_of_the_steps_however_times_lie(
    real: RealData, generator: Generator
) -> None:
    assert time_of_step(even_times(16), 0.5) == 0.5 and time_of_step(even_times(10), 0.7) == 0.7
    early, shares = (0.0, 0.05, 0.1, 0.2, 1.0), (0, 0.25, 0.5, 0.6, 1)
    assert [time_of_step(early, share) for share in shares] == [0, 0.05, 0.1, 0.2, 1]
    mode, seen = guidance.mode, list[float]()

    def told(clean: Tensor, modes: Tensor, time: float, scale: float, stop: float) -> Tensor:
        pull = mode(clean, modes, time, scale, stop)
        if pull.any():
            seen.append(time)
        return pull

    other = replace(real, generator=replace(generator, times=early))
    with mock.patch.object(guidance, "mode", told):
        Guided(mode=0.1, stop=0.5).of_class(other, 1, 3, rng_for(0))
    assert seen == [0.0, 0.05]


def test_deviation_pushes_apart_and_represent_pulls_to_the_farthest() -> None:
    x = torch.tensor([[1.0, 0.1], [1.0, -0.1]]).view(2, 2, 1, 1)
    pushed = x + guidance.deviation(x, x[:0], 0.0, 0.1)
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(pushed[0], pushed[1], dim=0) < cosine(x[0], x[1], dim=0)
    real = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(2, 2, 1, 1)
    moved = x + guidance.represent(x, real, 0.0, 0.1)
    assert (moved[:, 1] > x[:, 1]).all()


def test_influence_raises_the_likeness_of_gradients(real: RealData, generator: Generator) -> None:
    networks, label = Networks().modules, 2
    images_BCHW = real.class_images(rng_for(3), label, 16)
    gradients = [guidance.gradient_of(each, images_BCHW, label) for each in networks]
    assert all(weight.grad is None for each in networks for weight in each.parameters())
    labels_1 = torch.tensor([label])

    def images_of(x: Tensor) -> Tensor:
        return real.normalization.input_space.to_student(generator.decode(x, labels_1))

    def alike(x: Tensor) -> float:
        pairs = zip(networks, gradients, strict=True)
        return sum(
            guidance.likeness(guidance.gradient_of(each, images_of(x), label), own).item()
            for each, own in pairs
        )

    x = generator.start(rng_for(4), 1)
    pull = guidance.influence(x, images_of, networks, gradients, label, 0.0, 1.0)
    assert alike(x + 0.1 * pull / pull.norm()) > alike(x)


def noise_loss(generator: Generator, latents: Tensor, noise: Tensor, time: float) -> Tensor:
    """By hand, for latents of no class: the mean square of the error, and twice its largest."""
    assert generator.velocity is not None
    times_B, none_B = torch.full((len(latents),), time), torch.full((len(latents),), TOY.k)
    x = (1 - time) * noise + time * latents
    error = noise - (x - time * generator.velocity(x, times_B, none_B))
    return error.square().mean((1, 2, 3)) + 2 * error.abs().amax((1, 2, 3))


def test_refining_takes_the_steps_of_adam_and_the_flow_finds_the_noise_better(
    generator: Generator,
) -> None:
    latents, noise = generator.start(rng_for(5), 3), generator.start(rng_for(6), 3)
    assert generator.velocity is not None
    one, many = (
        guidance.refined(
            latents, noise, torch.full((steps, 3), 0.75), torch.full((3,), TOY.k),
            generator.velocity, 0.01, 2.0,
        )
        for steps in (1, 30)
    )  # fmt: skip
    leaf = latents.clone().requires_grad_()
    loss = noise_loss(generator, leaf, noise, 0.75)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    # the first step of Adam is by the sign of the gradient
    clear = gradient.abs() > 1e-4
    assert clear.any() and torch.allclose(
        one[clear], (latents - 0.01 * gradient.sign())[clear], atol=1e-5
    )
    assert (noise_loss(generator, many, noise, 0.75) < loss).all()


@pytest.mark.parametrize("told", ["nothing", "class"])
def test_refined_samples_are_others_a_little_apart_and_repeat(
    real: RealData, told: Literal["nothing", "class"]
) -> None:
    refine = Refine(steps=3, lr=0.05, told=told)
    for whole, plain in (
        (Guided(refine=refine, pool=2), Guided(pool=2)),
        (Prototypes(refine=refine), Prototypes()),
    ):
        first, second, before = (
            each.of_class(real, 1, 3, rng_for(0), Networks()) for each in (whole, whole, plain)
        )
        assert torch.equal(first, second) and not torch.equal(first, before)
        assert (first - before).abs().max() < 0.2
    # of 16 steps those at 12, 13 and 14; the last one is left out
    assert late_times(even_times(16)) == [12 / 16, 13 / 16, 14 / 16]
    assert late_times(even_times(3)) == [1 / 3]


def test_refining_is_refused_where_the_flow_was_never_shown_no_class(tmp_path: Path) -> None:
    section = str(TRAINED | {"flow": {"epochs": 1, "drop": 0.0}, "steps": 2}).replace("'", "")
    answer = command(
        "check", toy_file(tmp_path), f"generator={section}", "distill.canvas={name: pixels, "
        "ipc: 2, init: {name: guided, refine: {steps: 2}}}",
    )  # fmt: skip
    assert answer.code == 2 and "flow.drop: 0 never shows the flow" in answer.err
    assert "generator.steps: got 2" in answer.err


def test_prototypes_without_noise_are_the_decoded_centers(
    real: RealData, generator: Generator
) -> None:
    got = Prototypes(strength=0.0).of_class(real, 1, 3, rng_for(0))
    latents = generator.encode(real.displayable(real.rows_of_class[1]))
    found = centers(latents, 3, rng_for(0))
    assert torch.allclose(got, generator.show(found, torch.ones(3, dtype=torch.long)), atol=1e-5)
    assert not torch.equal(got, Prototypes(strength=0.7).of_class(real, 1, 3, rng_for(0)))


def test_a_group_is_nearer_to_the_distribution_than_most_that_are_drawn(real: RealData) -> None:
    many, one = (
        Prototypes(how="groups", groups=groups).of_class(real, 0, 4, rng_for(0))
        for groups in (200, 1)
    )
    assert many.shape == one.shape == (4, 1, 8, 8) and not torch.equal(many, one)
    # two values at -1 and 1 have mean 0, deviation 1 and no skew
    assert misfit(torch.tensor([[-1.0], [1.0]]), torch.zeros(1), torch.ones(1)) == 0
    assert misfit(torch.tensor([[0.0], [2.0]]), torch.zeros(1), torch.ones(1)) == pytest.approx(1)


def test_nearest_latents_are_real_images_of_the_class(real: RealData) -> None:
    got = NearestLatent().of_class(real, 2, 3, rng_for(0))
    own = real.displayable(real.rows_of_class[2])
    assert all((image == own).all((1, 2, 3)).any() for image in got)


def test_of_a_pool_the_networks_choose_the_one_they_are_surest_of(real: RealData) -> None:
    networks, label = Networks(), 0

    def sure(images_BCHW: Tensor) -> Tensor:
        seen = real.normalization.input_space.to_student(images_BCHW)
        return networks(seen).log_softmax(2).mean(0)[:, label]

    chosen = sure(images(real, label, pool=4))
    pool = Guided().of_class(real, label, 12, rng_for(0))
    # the sample of a place is one of every third
    assert torch.allclose(chosen, sure(pool).view(4, 3).amax(0), atol=1e-4)


@pytest.mark.parametrize("selection", [Guided(), NearestLatent(), Prototypes()])
def test_each_gives_displayable_images_of_all_classes(real: RealData, selection: Selection) -> None:
    images_NCHW = selection.images(real, 4, rng_for(0))
    assert images_NCHW.shape == (12, 1, 8, 8) and images_NCHW.dtype == torch.float32
    assert float(images_NCHW.min()) >= 0 and float(images_NCHW.max()) <= 1
    without = toy_real()
    with pytest.raises(RecipeError, match="add a section generator"):
        selection.images(without, 4, rng_for(0))


def test_a_run_is_resumed_class_by_class_and_relabeled(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [
        "run", toy_file(tmp_path), f"generator={SECTION}", "distill.steps=0",
        "distill.canvas={name: pixels, ipc: 2, bounds: clip, init: {name: guided, mode: 0.2, "
        "pool: 2, refine: {steps: 2}}}", "distill.labels=area", "distill.objective=selected",
        "distill.networks={name: fresh}", "squeeze={epochs: 2, batch: 50, least_accuracy: 0.0}",
        "relabel={epochs: 2, batch: 10}", "evaluate.steps=null", "evaluate.epochs=2",
        "evaluate.batch=10", "evaluate.loss=kl", "--runs", tmp_path / "runs",
    ]  # fmt: skip
    answer = command(*words, "--output", out)
    assert answer.code == 0, answer.err
    (stage,) = (tmp_path / "runs" / "toy").glob("distill-*")
    before = hashes(stage)
    made = sorted((stage / "initial").glob("*.npy"))
    assert len(made) == 10
    for path in [made[3], *stage.glob("block-*3.safetensors"), stage / "images.npy"]:
        path.unlink()
    answer = command(*words, "--output", out)
    assert answer.code == 0, answer.err
    assert hashes(stage) == before


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_network_takes_most_samples_of_a_class_for_it(tmp_path: Path) -> None:
    answer = command(
        "run", toy_file(tmp_path), "source.limit=null", "distill.steps=0", "generator={name: "
        "trained, autoencoder: {epochs: 15, batch: 64, channels: 4, width: 16}, flow: {epochs: 40, "
        "batch: 64, width: 32, ema: 0.99}}", "distill.canvas={name: pixels, ipc: 10, bounds: clip, "
        "init: {name: guided, pool: 2}}", "distill.labels=area", "distill.objective=selected",
        "squeeze={network: {name: convnet, depth: 2, width: 32, norm: batch}, epochs: 10, batch: "
        "64}", "--runs", tmp_path / "runs", "--output", tmp_path / "out",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    shares = [int(share) for share in re.findall(r"guided: (\d+)% of 20 samples", answer.err)]
    assert len(shares) == 10 and sum(shares) / 10 > 80, shares
