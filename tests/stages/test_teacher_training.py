"""The training of members: resumed after any epoch, and shared by processes in pieces."""

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from support.launch import launch
from support.tiny import NET, toy_real
from support.toy_runs import hashes
from torch import Tensor, nn

from distill_datasets.data.provenance import Provenance
from distill_datasets.errors import DistillError, RecipeError
from distill_datasets.files.artifacts import read_tensors
from distill_datasets.models.convnets import ConvNet
from distill_datasets.models.initialization import initialize
from distill_datasets.models.vision import Torchvision
from distill_datasets.optimizers import Adam, Optimizer, Sgd
from distill_datasets.runtime.draws import draws
from distill_datasets.runtime.processes import Run, Runtime
from distill_datasets.stages.source import LoadedSource
from distill_datasets.stages.squeeze import SqueezedFolder, run_squeeze
from distill_datasets.stages.teacher_training import MemberTraining, Squeeze
from distill_datasets.training.examples import Whole
from distill_datasets.training.loop import SupervisedTraining
from distill_datasets.types import Batch, Shape
from distill_datasets.views.augment import Augment

BATCHED = ConvNet(depth=2, width=6, norm="batch")
REAL = toy_real()
AUGMENT = Augment(operations=["crop", "flip"], choose="all")
SHARED = {"shards": 4, "members": 2, "augment": AUGMENT, "flatness": {"radius": 0.01}}
PROGRAM = """
import sys
from pathlib import Path
from accelerate import PartialState
sys.path.insert(0, {tests!r})
from test_teacher_training import SHARED, squeeze
squeeze(Path(sys.argv[1]), **SHARED)
PartialState().destroy_process_group()  # as the end of a run does
"""


def settings(**changes: Any) -> Squeeze:  # noqa: ANN401
    fields: dict[str, Any] = {
        "network": BATCHED, "batch": 24, "epochs": 3, "optimizer": Sgd(lr=0.05, weight_decay=0.001),
        "checkpoint_seconds": 0.0, "schedule": "cosine",
    }  # fmt: skip
    return Squeeze.model_validate(fields | changes)


def squeeze(runs: Path, **changes: Any) -> SqueezedFolder:  # noqa: ANN401
    runtime = Runtime()
    runtime.cores = 1
    provenance = mock.create_autospec(Provenance, instance=True)
    source = LoadedSource(REAL, provenance, "toy")
    return run_squeeze(settings(**changes), source, run=Run(0, runs, runtime, shown=False))


def members(found: SqueezedFolder) -> dict[str, str]:
    """The hashes of the files of every finished member."""
    return {name: value for name, value in hashes(found.folder).items() if name[0] != "."}


def interrupted(runs: Path, epoch: int, **changes: Any) -> None:  # noqa: ANN401
    """A run that is stopped in the middle of an epoch of a member."""
    moved, steps = SupervisedTraining._moved, 0

    def stopping(training: SupervisedTraining, *arguments: Any) -> Batch:  # noqa: ANN401
        nonlocal steps
        steps += training.steps_done // 5 == epoch  # 120 images in batches of 24
        if steps == 3:
            raise InterruptedError
        return moved(training, *arguments)

    with (
        mock.patch.object(SupervisedTraining, "_moved", stopping),
        pytest.raises(InterruptedError),
    ):
        squeeze(runs, **changes)


@pytest.mark.parametrize(
    ("optimizer", "changes"),
    [
        (Sgd(lr=0.05), {}),
        (Sgd(lr=0.05, momentum=0.0), {"keep": "every", "network": NET}),
        (Adam(lr=0.01), {"keep": "every", "augment": AUGMENT, "schedule": "step"}),
        (Sgd(lr=0.05), {"shards": 2, "warmup_epochs": 1}),
    ],
)
@pytest.mark.parametrize("epoch", [0, 2])
def test_a_member_that_was_stopped_goes_on_to_the_same_bits(
    tmp_path: Path, optimizer: Optimizer, changes: dict[str, Any], epoch: int
) -> None:
    changes = {"optimizer": optimizer, **changes}
    undisturbed = squeeze(tmp_path / "undisturbed", **changes)
    interrupted(tmp_path / "stopped", epoch, **changes)
    begun = list((tmp_path / "stopped").glob("squeeze-*/.member-0000.checkpoint.safetensors"))
    assert len(begun) == (epoch > 0)
    with mock.patch.object(
        MemberTraining, "_train_epoch", autospec=True, side_effect=MemberTraining._train_epoch
    ) as trained:
        found = squeeze(tmp_path / "stopped", **changes)
    assert trained.call_count == 3 - epoch
    assert members(found) == members(undisturbed)


def test_a_checkpoint_is_kept_now_and_then_and_ignored_by_a_finished_member(tmp_path: Path) -> None:
    found = squeeze(tmp_path / "often")
    (last,) = found.folder.glob(".member-*.checkpoint.safetensors")
    tensors, note = read_tensors(last)
    assert note == {"steps": 2 * 5}
    assert {name.partition("/")[0] for name in tensors} == {"module", "optimizer", "rows"}
    assert "module/1.running_var" in tensors
    with mock.patch("distill_datasets.stages.squeeze.MemberTraining", side_effect=AssertionError):
        squeeze(tmp_path / "often", checkpoint_seconds=5.0)
    rare = squeeze(tmp_path / "rare", checkpoint_seconds=60.0)
    assert not list(rare.folder.glob(".*")) and members(rare) == members(found)


def in_pieces(shards: int, network: ConvNet) -> tuple[list[Tensor], MemberTraining]:
    """The gradient of the first batch, cut into pieces."""
    runtime = Runtime()
    runtime.cores = 1
    training = MemberTraining(
        settings(network=network, shards=shards),
        network, Whole(REAL), REAL.shape, draws(0, "test"), torch.device("cpu"),
    )  # fmt: skip
    with training._gradient(runtime) as gradient:
        gradient(torch.arange(0, 120, 5), 0)
    return [parameter.grad for parameter in training.module.parameters()], training  # type: ignore[misc]


def test_without_batch_norm_the_pieces_make_the_gradient_of_the_whole_batch() -> None:
    whole, pieces = (in_pieces(shards, NET)[0] for shards in (1, 4))
    for first, second in zip(whole, pieces, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-6)


def test_every_piece_has_batch_statistics_of_its_own_and_those_of_piece_0_are_kept() -> None:
    module = BATCHED.build(REAL.shape)
    initialize(module, draws(0, "test")("network"))
    index_B = torch.arange(0, 120, 5)
    gradients = []
    for piece, own_B in enumerate(torch.split(index_B, 6)):
        images_BCHW, targets_BK = REAL.select(own_B)
        loss = nn.functional.cross_entropy(module(images_BCHW), targets_BK)
        gradients.append(torch.autograd.grad(loss, list(module.parameters())))
        if piece == 0:
            kept = {name: value.clone() for name, value in module.named_buffers()}
    found, training = in_pieces(4, BATCHED)
    for own, expected in zip(found, zip(*gradients, strict=True), strict=True):
        torch.testing.assert_close(own, torch.stack(expected).mean(dim=0), rtol=1e-4, atol=1e-6)
    for name, value in training.module.named_buffers():
        assert torch.equal(value, kept[name])
    whole, _ = in_pieces(1, BATCHED)
    assert not torch.allclose(whole[0], found[0], rtol=1e-2)


def test_pieces_that_cannot_be_equal_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"7 do not divide a batch of all 120 training images"):
        squeeze(tmp_path, batch=700, shards=7)


@pytest.fixture(scope="module")
def by_one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("one")
    return members(squeeze(folder, **SHARED))


@pytest.mark.gloo
@pytest.mark.timeout(120)
@pytest.mark.parametrize("processes", [2, 4])
def test_two_and_four_processes_share_a_batch_and_make_the_same_bits(
    tmp_path: Path, by_one: dict[str, str], processes: int
) -> None:
    if processes == 2:  # one process began
        interrupted(tmp_path / "runs", 1, **SHARED)
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(tests=str(Path(__file__).parent)), encoding="utf-8")
    finished = launch(program, tmp_path / "runs", processes=processes)
    assert finished.returncode == 0, finished.stderr
    (folder,) = (tmp_path / "runs").glob("squeeze-*")
    assert {name: value for name, value in hashes(folder).items() if name[0] != "."} == by_one


def test_members_shared_in_pieces_differ_from_each_other(by_one: dict[str, str]) -> None:
    assert len(by_one) == 4 and len(set(by_one.values())) == 4


def test_the_step_size_rises_before_it_follows_its_schedule() -> None:
    asked = settings(epochs=4, warmup_epochs=2)
    training = MemberTraining(
        asked, BATCHED, Whole(REAL), REAL.shape, draws(0), torch.device("cpu")
    )
    # five steps an epoch: ten rise from 1 %, ten fall by a cosine
    rates = [training._training._step_size(step) / 0.05 for step in range(20)]
    assert rates[0] == pytest.approx(0.01) and rates[5] == pytest.approx(0.505)
    assert rates[10] == pytest.approx(1) and rates[15] == pytest.approx(0.5)
    assert rates == sorted(rates[:11]) + sorted(rates[11:], reverse=True)


def test_dropout_of_a_member_is_reproducible(tmp_path: Path) -> None:
    network = Torchvision(model="squeezenet1_1")
    assert any(
        isinstance(layer, nn.Dropout) for layer in network.build(Shape(3, 32, 32, 2)).modules()
    )
    real = toy_real(Shape(3, 32, 32, 2), per_class=6)
    trained = []
    for _ in range(2):
        training = MemberTraining(
            settings(network=network, batch=6, epochs=1),
            network, Whole(real), real.shape, draws(0), torch.device("cpu"),
        )  # fmt: skip
        training.train(Runtime(), None, lambda loss: None)
        trained.append(training.rows[-1])
    assert torch.equal(*trained)


def test_a_loss_that_is_not_finite_stops_with_the_step(tmp_path: Path) -> None:
    with pytest.raises(DistillError, match=r"training loss is (nan|inf) at step \d+; lower its"):
        squeeze(tmp_path, optimizer=Sgd(lr=1e30), schedule="constant")
