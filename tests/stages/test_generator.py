"""Generators: trained on the source, resumed, shared by processes; latents there and back."""

import re
from pathlib import Path
from unittest import mock

import pytest
import torch
from support import TESTS
from support.generator_problem import TRAINED, made, samples, trained
from support.launch import launch
from support.tiny import TOY, toy_real
from support.toy_runs import command, hashes, times, toy_file

from distill_datasets.files.artifacts import write_tensors
from distill_datasets.models.flow import Autoencoder, latent_sides
from distill_datasets.models.generator import Generator, noised
from distill_datasets.models.initialization import initialize
from distill_datasets.runtime.draws import rng_for
from distill_datasets.stages.generator import RandomGenerator
from distill_datasets.stages.generator_training import spread
from distill_datasets.training import checkpoint
from distill_datasets.types import Shape

PHASES = ("autoencoder", "flow", "minimax")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the toy section leaves when nothing disturbs it."""
    folder = tmp_path_factory.mktemp("generators")
    made(trained(), folder)
    return folder


@pytest.fixture(scope="module")
def generator(folder: Path) -> Generator:
    return made(trained(), folder)


def left(folder: Path) -> dict[str, str]:
    """The hashes of all but locks."""
    return {name: value for name, value in hashes(folder).items() if ".lock" not in name}


def test_a_finished_generator_is_not_trained_again(folder: Path) -> None:
    before = times(folder)
    with mock.patch("distill_datasets.stages.generator.train_phase", side_effect=AssertionError):
        made(trained(steps=8), folder)
    assert times(folder) == before
    assert {path.name.partition("-")[0] for path in folder.iterdir()} == {
        "autoencoder", "flow", "minimax",
    }  # fmt: skip


@pytest.mark.parametrize("killed_at", [2, 3, 5])
def test_a_training_that_was_killed_goes_on_to_the_same_bits(
    tmp_path: Path, folder: Path, killed_at: int
) -> None:
    written = []

    def killed(*arguments: object) -> None:
        write_tensors(*arguments)  # type: ignore[arg-type]
        written.append(arguments)
        if len(written) == killed_at:
            raise KeyboardInterrupt

    with (
        mock.patch.object(checkpoint, "write_tensors", killed),
        mock.patch("distill_datasets.stages.generator_training.write_tensors", killed),
        pytest.raises(KeyboardInterrupt),
    ):
        made(trained(), tmp_path)
    made(trained(), tmp_path)
    assert left(tmp_path) == left(folder)


@pytest.mark.gloo
@pytest.mark.timeout(120)
def test_two_processes_train_the_same_bits(tmp_path: Path, folder: Path) -> None:
    finished = launch(TESTS / "support" / "generator_problem.py", tmp_path, processes=2)
    assert finished.returncode == 0, finished.stderr
    assert left(tmp_path) == left(folder)
    assert finished.stdout.splitlines() == 2 * [samples(folder)]


@pytest.mark.timeout(120)
def test_a_process_that_is_told_to_end_in_a_phase_goes_on_to_the_same_bits(
    tmp_path: Path, folder: Path
) -> None:
    program = TESTS / "support" / "generator_problem.py"
    for module, phase in (("Autoencoder", "autoencoder"), ("FlowUNet", "flow")):
        ended = launch(program, tmp_path, module, 0, processes=1)
        assert ended.returncode != 0 and not ended.stdout
        saved = re.search(rf"it stopped: {phase} is saved after step (\d+) of 12", ended.stderr)
        assert saved and 1 < int(saved[1]) < 12, ended.stderr
        (begun,) = tmp_path.rglob(".checkpoint*")
        assert begun.parent.name.startswith(phase)
    assert samples(tmp_path) == samples(folder)
    assert left(tmp_path) == left(folder)


def test_bfloat16_trains_another_generator_that_is_nearly_the_same(
    tmp_path: Path, generator: Generator
) -> None:
    lower = made(
        trained(**{name: {**TRAINED[name], "precision": "bfloat16"} for name in PHASES}), tmp_path
    )
    assert all(tensor.dtype == torch.float32 for tensor in lower.latents.state_dict().values())
    pixels = toy_real().displayable(torch.arange(6))
    ours, theirs = (each.encode(pixels) for each in (generator, lower))
    assert not torch.equal(ours, theirs) and (ours - theirs).abs().mean() < 0.3
    noise, labels_B = generator.start(rng_for(0), 3), torch.tensor([0, 1, 2])
    velocities = [each.moves(noise, 0.5, labels_B) for each in (generator, lower)]
    assert not torch.equal(*velocities) and torch.allclose(*velocities, atol=0.3)


def test_latents_of_the_source_are_standardized(generator: Generator) -> None:
    real = toy_real()
    latents = generator.encode(real.displayable(torch.arange(len(real.train.labels_N))))
    assert latents.mean((0, 2, 3)).abs().max() < 1e-3
    assert latents.std((0, 2, 3)).sub(1).abs().max() < 1e-3


@pytest.mark.parametrize("side", [7, 8, 28, 33])
def test_images_of_any_side_come_back_in_their_size(side: int) -> None:
    shape = Shape(3, side, side + 2, 4)
    module = Autoencoder(shape, 2, 8)
    initialize(module, rng_for(0))
    latents = module.encode(torch.rand(2, 3, side, side + 2))
    assert latents.shape[1:] == (2, *latent_sides(shape)) and latents.shape[3] <= 8
    assert module.decode(latents, torch.tensor([0, 3])).shape == (2, 3, side, side + 2)


def test_samples_repeat_and_noise_comes_back_from_them(generator: Generator) -> None:
    labels_B = torch.tensor([0, 1, 2])
    noise = generator.start(rng_for(0), 3)
    first, second = (generator.sample(noise, labels_B) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, generator.sample(noise, labels_B.flip(0)))
    finer = made_finer(generator)
    back = finer.invert(finer.sample(noise, labels_B), labels_B)
    assert (back - noise).abs().max() < 0.05


def made_finer(generator: Generator) -> Generator:
    return Generator(**{**vars(generator), "times": tuple(step / 200 for step in range(201))})


def test_a_flow_that_knows_the_latent_reaches_it_in_one_step_or_many(generator: Generator) -> None:
    target = torch.ones(2, *generator.latent)
    noise = generator.start(rng_for(1), 2)

    def straight(x: torch.Tensor, times_B: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
        return (target - x) / (1 - times_B[:, None, None, None])

    for steps in ((0.0, 1.0), (0.0, 0.3, 0.9, 1.0)):
        exact = Generator(**{**vars(generator), "velocity": straight, "times": steps})
        assert torch.allclose(exact.sample(noise, torch.tensor([0, 1])), target, atol=1e-5)
        half = noised(target, noise, 0.5)
        found = exact.sample(half, torch.tensor([0, 1]), since=0.5)
        assert torch.allclose(found, target, atol=1e-5)


def test_guidance_moves_on_from_no_class_past_the_class(generator: Generator) -> None:
    noise, labels_B = generator.start(rng_for(2), 2), torch.tensor([0, 1])
    asked = {
        scale: Generator(**{**vars(generator), "guidance": scale}).moves(noise, 0.3, labels_B)
        for scale in (0.0, 1.0, 3.0)
    }
    assert torch.allclose(asked[3.0], asked[0.0] + 3 * (asked[1.0] - asked[0.0]), atol=1e-5)


def test_the_terms_of_minimax_are_the_worst_pairs_by_hand() -> None:
    made_BD = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    real_BD = torch.tensor([[1.0, 0.0], [2.0, 2.0]])
    # cosines to real ones: 1, .707, 0, .707; between the two that were made: 0
    assert spread(made_BD, real_BD, 1.0, 0.0).item() == pytest.approx(1)
    assert spread(made_BD, real_BD, 0.0, 1.0).item() == pytest.approx(0)
    assert spread(made_BD + 1, real_BD, 0.0, 1.0).item() == pytest.approx(0.8)


def test_a_random_generator_is_the_same_every_time_and_only_decodes(tmp_path: Path) -> None:
    first, second = (made(RandomGenerator(), tmp_path) for _ in range(2))
    assert first.fingerprint == second.fingerprint and first.velocity is None
    pixels = first.decode(torch.randn(2, *first.latent, generator=rng_for(0)), torch.tensor([0, 1]))
    assert pixels.shape == (2, TOY.c, TOY.h, TOY.w) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["distill.canvas={name: latent, ipc: 1}"], "generator: missing; 'latent'"),
        ([f"generator={TRAINED}".replace("'", "")], "generator: nothing in distill.canvas asks it"),
        (
            ["generator=random", "distill.canvas={name: pixels, ipc: 1, init: prototypes}"],
            "'random' was never trained, and 'prototypes'",
        ),
        (
            ["generator={name: trained, guidance: 2, autoencoder: {epochs: 1}, "
             "flow: {epochs: 1, drop: 0}}", "distill.canvas={name: latent, ipc: 1}"],
            "flow.drop: 0 never shows it without one",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_work(
    tmp_path: Path, overrides: list[str], said: str
) -> None:
    answer = command("check", toy_file(tmp_path), *overrides)
    assert answer.code == 2 and said in answer.err
