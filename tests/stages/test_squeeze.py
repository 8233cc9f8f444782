"""Networks trained ahead of time: stored, resumed, read back, and used by whole runs."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from support.tiny import CPU, NET, toy_real
from support.toy_runs import CONVNET, command, hashes, times, toy_sections
from torch import Tensor, nn

from distill_datasets.data.provenance import Provenance
from distill_datasets.errors import ArtifactError, DistillError
from distill_datasets.evaluation.protocol import Evaluate
from distill_datasets.export.content import STARTS
from distill_datasets.export.folder import verify
from distill_datasets.export.reading import load_rows
from distill_datasets.files.artifacts import read_json, read_record, read_tensors
from distill_datasets.files.yaml_text import to_yaml
from distill_datasets.models.convnets import ConvNet
from distill_datasets.networks.network import FlatNetwork, skeleton_of
from distill_datasets.optimizers import Sgd
from distill_datasets.runtime.draws import draws
from distill_datasets.runtime.processes import Run, Runtime
from distill_datasets.stages.source import LoadedSource
from distill_datasets.stages.squeeze import Members, SqueezedFolder, run_squeeze
from distill_datasets.stages.teacher_training import Squeeze
from distill_datasets.training.examples import Whole
from distill_datasets.training.loop import Training
from distill_datasets.training.metrics import accuracy
from distill_datasets.training.student import train_student
from distill_datasets.views.augment import Augment

REAL = toy_real()
KILLED = """
import os, signal, sys, threading
from distill_datasets.cli import main
from distill_datasets.stages import squeeze

original, lock = squeeze.write_record, threading.Lock()

def last(*arguments):
    with lock:
        original(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

squeeze.write_record = last
main()
"""


def settings(**changes: Any) -> Squeeze:  # noqa: ANN401
    fields = {"network": NET, "batch": 30, "epochs": 3, "members": 2, "keep": "every"}
    return Squeeze.model_validate(fields | {"optimizer": Sgd(lr=0.05)} | changes)


def squeeze(runs: Path, fingerprint: str = "toy", **changes: Any) -> SqueezedFolder:  # noqa: ANN401
    provenance = mock.create_autospec(Provenance, instance=True)
    return run_squeeze(
        settings(**changes),
        LoadedSource(REAL, provenance, fingerprint),
        run=Run(0, runs, Runtime(), shown=False),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> SqueezedFolder:
    """Two members with their weights after each of three epochs."""
    return squeeze(tmp_path_factory.mktemp("squeezed"))


@pytest.fixture
def never_trained() -> Iterator[mock.Mock]:
    with mock.patch("distill_datasets.stages.squeeze.MemberTraining") as trained:
        trained.side_effect = AssertionError
        yield trained


def rows(folder: SqueezedFolder, member: int = 0) -> list[Tensor]:
    return [folder.weights(member, epoch) for epoch in range(folder.epochs + 1)]


def test_snapshots_differ_from_epoch_to_epoch_and_between_members(folder: SqueezedFolder) -> None:
    # references to the live weights would all be the last ones
    seen = {tuple(row.tolist()) for member in (0, 1) for row in rows(folder, member)}
    assert len(seen) == 8


def test_snapshots_are_what_plain_training_passes_through(folder: SqueezedFolder) -> None:
    given = {name: getattr(settings(), name) for name in Training.model_fields}
    student = Evaluate(**given, steps=12)
    draw = draws(0, "squeeze", 1)
    # 120 images in batches of 30: four steps an epoch
    for epoch, row_P in enumerate(rows(folder, 1)):
        module = train_student(student, 4 * epoch, Whole(REAL), REAL.shape, draw, CPU)
        weights_P = nn.utils.parameters_to_vector(module.parameters())
        assert torch.allclose(row_P, weights_P, atol=1e-6)
    assert folder.accuracies()[1] == pytest.approx(accuracy(module, REAL.test_batches(50)))


def test_members_learn_and_their_files_say_how_well(folder: SqueezedFolder) -> None:
    assert min(folder.accuracies()) > 0.6  # chance is a third
    facts = read_record(folder.folder / "member-0001.json")
    assert facts["accuracy"] == folder.accuracies()[1]
    assert facts.keys() == {"accuracy", "sha256", "threads"}


def test_a_row_is_a_copy_that_nobody_else_sees(folder: SqueezedFolder) -> None:
    before = folder.weights(0, 1).clone()
    folder.weights(0, 1).zero_()
    assert torch.equal(folder.weights(0, 1), before)


def test_lanes_may_read_at_the_same_time(folder: SqueezedFolder) -> None:
    wanted = [(member, epoch) for member in (0, 1) for epoch in range(4)] * 10
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda which: folder.weights(*which), wanted))
    for (member, epoch), row_P in zip(wanted, found, strict=True):
        assert torch.equal(row_P, folder.weights(member, epoch))


def test_keep_last_stores_the_first_and_the_last_of_the_same_members(
    folder: SqueezedFolder, tmp_path: Path
) -> None:
    last = squeeze(tmp_path, keep="last")
    stored = read_tensors(last.folder / "member-0000.safetensors")[0]["weights_EP"]
    assert len(stored) == 2
    for epoch in (0, 3):
        assert torch.equal(last.weights(0, epoch), folder.weights(0, epoch))
    with pytest.raises(DistillError, match=r"after epoch 1; .* squeeze.keep is 'last'"):
        last.weights(0, 1)


@pytest.mark.parametrize(("member", "epoch"), [(2, 0), (-1, 0), (0, 4), (0, -1)])
def test_weights_that_there_are_not_are_refused(
    folder: SqueezedFolder, member: int, epoch: int
) -> None:
    with pytest.raises(DistillError, match=f"no weights of member {member} after epoch {epoch}"):
        folder.weights(member, epoch)


def test_members_are_asked_for_their_logits_after_the_last_epoch(folder: SqueezedFolder) -> None:
    images_BCHW = REAL.select(torch.arange(300) % 120).images_BCHW  # more than are asked at once
    logits_MBK = Members(folder, REAL.shape)(images_BCHW)
    assert logits_MBK.shape == (2, 300, 3)
    for member in (0, 1):
        network = FlatNetwork(skeleton_of(NET, REAL.shape), folder.weights(member, 3))
        expected_BK = network(network.weights_P, images_BCHW)
        torch.testing.assert_close(logits_MBK[member], expected_BK)


def test_what_is_done_is_not_done_again(folder: SqueezedFolder, never_trained: mock.Mock) -> None:
    before = times(folder.folder)
    again = squeeze(folder.folder.parent)
    assert again == folder and again.fingerprint == folder.fingerprint
    assert times(folder.folder) == before


def test_more_members_leave_those_that_are_there_alone(tmp_path: Path) -> None:
    two = squeeze(tmp_path)
    before, known = times(two.folder), two.fingerprint
    three = squeeze(tmp_path, members=3)
    assert three.folder == two.folder and before.items() <= times(three.folder).items()
    assert three.fingerprint != known == squeeze(tmp_path).fingerprint
    assert len(list(three.folder.glob("*.safetensors"))) == 3


@pytest.mark.parametrize(
    "changes", [{"epochs": 2}, {"batch": 40}, {"optimizer": Sgd(lr=0.04)}, {"keep": "last"},
                {"augment": Augment(operations=["flip"])}, {"fingerprint": "other"}],
)  # fmt: skip
def test_other_training_is_another_folder(
    folder: SqueezedFolder, tmp_path: Path, changes: dict[str, Any]
) -> None:
    other = squeeze(tmp_path, **changes)
    assert other.folder.name != folder.folder.name
    if changes != {"fingerprint": "other"}:
        assert other.fingerprint != folder.fingerprint


@pytest.mark.parametrize("missing", [".json", ".safetensors"])
def test_a_member_whose_file_was_moved_away_is_trained_again_to_the_same_bits(
    tmp_path: Path, missing: str
) -> None:
    made = squeeze(tmp_path)
    before, stamps = hashes(made.folder), times(made.folder)
    (made.folder / f"member-0001{missing}").unlink()
    squeeze(tmp_path)
    assert hashes(made.folder) == before
    first = str(made.folder / "member-0000.safetensors")
    assert times(made.folder)[first] == stamps[first]


def test_a_damaged_file_is_named_with_a_remedy(tmp_path: Path) -> None:
    made = squeeze(tmp_path, epochs=1, members=1)
    path = made.folder / "member-0000.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ArtifactError, match=r"member-0000\.safetensors.*run again, the member is"):
        made.weights(0, 1)
    path.unlink()
    with pytest.raises(ArtifactError, match=r"member-0000\.safetensors.*run again, the member is"):
        made.weights(0, 1)


def test_training_that_changes_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DistillError, match=r"epoch 1 of member 0 changed no weight.*optimizer\.lr"):
        # without norms: their shifts start at zero, which any step changes
        network = ConvNet(depth=2, width=4, norm="none")
        squeeze(tmp_path, members=1, network=network, optimizer=Sgd(lr=1e-30))
    assert not list(tmp_path.rglob("*.json"))


def mtt_like(folder: Path, **sections: Any) -> Path:  # noqa: ANN401
    """A recipe as of MTT: experts, trajectories, a learned step size, real images to start from."""
    recipe = toy_sections()
    recipe["squeeze"] = {
        "network": CONVNET, "batch": 40, "epochs": 3, "members": 2, "keep": "every",
        "optimizer": {"name": "sgd", "lr": 0.05},
    }  # fmt: skip
    recipe["distill"] |= {
        "canvas": {"name": "pixels", "ipc": 1, "init": "real"},
        "labels": "area",
        "networks": {"name": "trajectories", "gap": 1, "last": 3},
        "objective": {"name": "trajectory", "steps": 3, "step_size": 0.02},
    }
    recipe["evaluate"] |= {"students": 1, "exact": False}
    recipe["distill"] |= sections
    path = folder / "recipe.yaml"
    path.write_text(to_yaml(recipe), encoding="utf-8")
    return path


DATM = {
    "labels": {"name": "logits", "init": "squeezed"},
    "label_optimizer": {"name": "sgd", "lr": 2.0},
    "networks": {
        "name": "trajectories", "gap": 1, "last": 3, "grow": {"start_last": 1, "steps": 3},
    },
    "objective": {
        "name": "trajectory", "steps": 4, "batch": 5, "step_size": 0.02, "skip_above": 5.0,
        "augment": {"operations": ["flip", "scale"]},
    },
}  # fmt: skip
PRETRAINED = {
    "networks": {"name": "pretrained", "held_out": 1},
    "objective": toy_sections()["distill"]["objective"],
}
FOLLOWED = ["evaluate.schedule=published", "evaluate.optimizer={name: sgd, lr: 0.01, momentum: 0}"]
RECIPES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "mtt": ({}, FOLLOWED),
    "datm": (DATM, FOLLOWED),
    "pretrained": (PRETRAINED, ["evaluate.start=distilled"]),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What one process makes of the recipe of MTT: the members and the dataset."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run = ("run", mtt_like(folder), "--runs", folder / "runs", "--output", folder / "out")
    answer = command(*run)
    assert answer.code == 0, answer.err
    return {"members": members(folder / "runs"), "dataset": hashes(folder / "out")}


def members(runs: Path) -> dict[str, str]:
    """The hashes of the files of every finished member."""
    (squeezed,) = (runs / "toy").glob("squeeze-*")
    return {name: digest for name, digest in hashes(squeezed).items() if name[0] != "."}


@pytest.mark.parametrize("name", RECIPES)
def test_a_whole_run_squeezes_distills_and_measures(tmp_path: Path, name: str) -> None:
    sections, following = RECIPES[name]
    run = ["run", mtt_like(tmp_path, **sections), "--runs", tmp_path / "runs", "--output"]
    answer = command(*run, tmp_path / "out")
    assert answer.code == 0, answer.err
    assert verify(tmp_path / "out") == []
    assert len(members(tmp_path / "runs")) == 4
    (results,) = read_json(tmp_path / "out" / "distill.json")["results"]
    assert 0 <= results["accuracy"]["mean"] <= 1
    learned = load_rows(tmp_path / "out", "recipe")[0]["step_sizes"]
    assert len(learned) == (name != "pretrained") and 0.02 not in learned
    before = times(tmp_path / "runs" / "toy")
    with (
        mock.patch("distill_datasets.stages.squeeze.MemberTraining", side_effect=AssertionError),
        mock.patch("distill_datasets.stages.distill.OuterLoop.run", side_effect=AssertionError),
    ):
        answer = command(*run, tmp_path / "followed", *following)
    assert answer.code == 0, answer.err
    assert before.items() <= times(tmp_path / "runs" / "toy").items()
    if name == "pretrained":
        starts_SP = read_tensors(tmp_path / "followed" / STARTS)[0]["weights_SP"]
        (stored,) = (tmp_path / "runs" / "toy").glob("squeeze-*/member-0001.safetensors")
        assert torch.equal(starts_SP, read_tensors(stored)[0]["weights_EP"][-1:])


def test_experts_from_elsewhere_are_other_experts(
    tmp_path: Path, undisturbed: dict[str, dict[str, str]]
) -> None:
    elsewhere = "squeeze.source={dataset: 'embedded:uci-digits', limit: 120}"
    runs = tmp_path / "runs"
    answer = command("run", mtt_like(tmp_path), elsewhere, "distill.steps=1", "--runs", runs)
    assert answer.code == 0, answer.err
    assert members(runs).keys() == undisturbed["members"].keys()
    assert not set(members(runs).values()) & set(undisturbed["members"].values())


def start(*program: str | Path) -> subprocess.CompletedProcess[str]:
    settings = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    words = [sys.executable, *map(str, program)]
    return subprocess.run(words, env=settings, capture_output=True, text=True)


def test_a_run_that_is_killed_after_one_member_goes_on_with_the_others(
    tmp_path: Path, undisturbed: dict[str, dict[str, str]]
) -> None:
    run = ["run", mtt_like(tmp_path), "--runs", tmp_path / "runs", "--output", tmp_path / "out"]
    killed = start("-c", KILLED, *run)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (squeezed,) = (tmp_path / "runs" / "toy").glob("squeeze-*")
    done = [path.with_suffix(".safetensors") for path in squeezed.glob("member-*.json")]
    assert len(done) == 1
    kept = {path: path.stat().st_mtime_ns for path in done}
    answer = command(*run)
    assert answer.code == 0, answer.err
    assert kept == {path: path.stat().st_mtime_ns for path in done}
    assert members(tmp_path / "runs") == undisturbed["members"]
    assert hashes(tmp_path / "out") == undisturbed["dataset"]


@pytest.mark.gloo
def test_two_processes_share_the_members_and_make_the_same_bytes(
    tmp_path: Path, undisturbed: dict[str, dict[str, str]]
) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    run = ["run", mtt_like(tmp_path), "--runs", tmp_path / "runs", "--output", tmp_path / "out"]
    finished = start(*launch, "-m", "distill_datasets", *run)
    assert finished.returncode == 0, finished.stderr
    assert members(tmp_path / "runs") == undisturbed["members"]
    assert hashes(tmp_path / "out") == undisturbed["dataset"]
