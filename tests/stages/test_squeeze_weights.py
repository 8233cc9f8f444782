"""Weights trained elsewhere: which files are read, what fits, and who may teach."""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torchvision.models
from huggingface_hub import errors
from pydantic import ValidationError
from safetensors.torch import save_file
from support.tiny import NET, TOY, toy_real
from support.toy_runs import toy_sections
from torch import Tensor, nn

from distill_datasets.data.decoding import Split
from distill_datasets.data.provenance import Provenance
from distill_datasets.data.real import RealData
from distill_datasets.errors import ArtifactError, RecipeError, refuse
from distill_datasets.files.artifacts import read_record
from distill_datasets.models.convnets import ConvNet
from distill_datasets.models.vision import Torchvision
from distill_datasets.optimizers import Sgd
from distill_datasets.pipeline.run import run
from distill_datasets.recipe import recipe_from
from distill_datasets.runtime.processes import Run, Runtime
from distill_datasets.stages.source import LoadedSource
from distill_datasets.stages.squeeze import (
    Members,
    SqueezedFolder,
    find_weights,
    least,
    run_squeeze,
)
from distill_datasets.stages.teacher_training import Squeeze
from distill_datasets.types import Shape

REAL = toy_real()
BATCHED = ConvNet(depth=2, width=6, norm="batch")
TRAINED = {"batch": 30, "epochs": 4, "optimizer": Sgd(lr=0.05)}


def squeeze(runs: Path, real: RealData = REAL, **fields: Any) -> SqueezedFolder:  # noqa: ANN401
    provenance = mock.create_autospec(Provenance, instance=True)
    runtime = Runtime()
    runtime.cores = 1
    settings = Squeeze.model_validate(fields)
    return run_squeeze(
        settings,
        LoadedSource(real, provenance, "toy"),
        run=Run(0, runs, runtime, shown=False),
        files=find_weights(settings, real.shape),
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SqueezedFolder:
    """One small network with BatchNorm that knows the toy images."""
    return squeeze(tmp_path_factory.mktemp("trained"), network=BATCHED, **TRAINED)


def stored(
    folder: Path, module: nn.Module, name: str = "teacher.safetensors", **metadata: str
) -> str:
    """The module's state dict as a file."""
    save_file(module.state_dict(), folder / name, metadata)
    return str(folder / name)


def taken(runs: Path, path: str, **fields: Any) -> SqueezedFolder:  # noqa: ANN401
    return squeeze(runs, **{"network": BATCHED, "weights": [path]} | fields)


def same(first: nn.Module, second: nn.Module) -> bool:
    mine, its = first.state_dict(), second.state_dict()
    return mine.keys() == its.keys() and all(torch.equal(mine[name], its[name]) for name in mine)


def test_members_keep_their_running_statistics(trained: SqueezedFolder) -> None:
    module = trained.module(0)
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert all(bool(norm.running_mean.any()) for norm in norms if norm.running_mean is not None)
    assert [int(norm.num_batches_tracked) for norm in norms] == [16, 16]  # 4 epochs of 4 batches
    assert not module.training and not any(weight.requires_grad for weight in module.parameters())
    batches = list(REAL.test_batches(500))
    right = (module(batches[0].images_BCHW).argmax(1) == batches[0].targets_BK.argmax(1)).float()
    assert float(right.mean()) == pytest.approx(trained.accuracies()[0]) and right.mean() > 0.8


@pytest.mark.parametrize("form", ["state dict", "member"])
def test_a_file_is_taken_as_it_is_and_nothing_is_trained(
    trained: SqueezedFolder, tmp_path: Path, form: str
) -> None:
    path = str(trained.folder / "member-0000.safetensors")
    if form == "state dict":
        path = stored(tmp_path, trained.module(0))
    with mock.patch("distill_datasets.stages.squeeze.MemberTraining", side_effect=AssertionError):
        found = taken(tmp_path, path)
        with mock.patch(
            "distill_datasets.stages.squeeze._MemberWriter._finish", side_effect=AssertionError
        ):
            taken(tmp_path, path)  # the second time it is there already
    assert same(found.module(0), trained.module(0))
    assert found.accuracies() == trained.accuracies()
    facts = read_record(found.folder / "member-0000.json")
    assert facts["file"] == path and facts["normalization"]["kind"] == "mean_std"
    # a member's own file says how well it did; a plain state dict does not
    assert facts["claimed"] == (trained.accuracies()[0] if form == "member" else None)
    images_BCHW = torch.randn(5, 1, 8, 8)
    assert torch.equal(Members(found, TOY)(images_BCHW)[0], trained.module(0)(images_BCHW))


def test_another_file_by_the_same_name_is_another_member(
    trained: SqueezedFolder, tmp_path: Path
) -> None:
    path = stored(tmp_path, trained.module(0))
    first = taken(tmp_path, path)
    module = trained.module(0)
    with torch.no_grad():
        module[-1].bias += 0.01
    stored(tmp_path, module)
    assert taken(tmp_path, path).folder != first.folder


def test_half_precision_and_a_lost_counter_are_accepted(
    trained: SqueezedFolder, tmp_path: Path
) -> None:
    state = {
        name: kept.half() if kept.is_floating_point() else kept
        for name, kept in trained.module(0).state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    save_file(state, tmp_path / "half.safetensors")
    module = taken(tmp_path, str(tmp_path / "half.safetensors")).module(0)
    for name, kept in module.state_dict().items():
        if name in state and kept.is_floating_point():
            assert kept.dtype == torch.float32 and torch.equal(kept, state[name].float())


def altered(trained: SqueezedFolder, change: str) -> dict[str, Tensor]:
    state = dict(trained.module(0).state_dict())
    if change == "renamed":
        return {f"model.{name}": kept for name, kept in state.items()}
    if change == "statistics":
        return {name: kept for name, kept in state.items() if "running" not in name}
    if change == "classes":
        return state | {"9.weight": torch.zeros(7, 24), "9.bias": torch.zeros(7)}
    if change == "channels":
        return state | {"0.weight": torch.zeros(6, 3, 3, 3)}
    return state | {"0.weight": torch.zeros(6, 1, 5, 5)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("renamed", r"14 are unknown \(model\.0\.weight, .*set squeeze\.network"),
        ("statistics", r"4 of its 14 tensors are missing \(1\.running_mean"),
        ("classes", r"tells 7 classes apart and the source has 3"),
        ("channels", r"0\.weight has the shape \(6, 3, 3, 3\).*set source\.channels to rgb"),
        ("kernel", r"0\.weight has the shape \(6, 1, 5, 5\), expected \(6, 1, 3, 3\)"),
    ],
)
def test_files_of_other_networks_and_classes_are_refused(
    trained: SqueezedFolder, tmp_path: Path, change: str, message: str
) -> None:
    state = altered(trained, change)
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(RecipeError, match=message):
        taken(tmp_path, str(tmp_path / "other.safetensors"))


def test_a_member_of_another_network_is_refused(trained: SqueezedFolder, tmp_path: Path) -> None:
    path = str(trained.folder / "member-0000.safetensors")
    with pytest.raises(RecipeError, match=r"has \d+ weights and the network of squeeze has \d+"):
        taken(tmp_path, path, network=ConvNet(depth=2, width=5, norm="batch"))


def test_pickles_and_lost_or_damaged_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "teacher.pth").write_bytes(b"pickle")
    with pytest.raises(RecipeError, match=r"teacher\.pth is a pickle.*convert it once.*save_file"):
        taken(tmp_path, str(tmp_path / "teacher.pth"))
    with pytest.raises(RecipeError, match=r"no file lost\.safetensors; expected a safetensors"):
        taken(tmp_path, "lost.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"not one")
    with pytest.raises(ArtifactError, match=r"bad\.safetensors is not a readable safetensors"):
        taken(tmp_path, str(tmp_path / "bad.safetensors"))


DIGITS = Shape(1, 8, 8, 10)
UNFIT = {
    "lost": (None, r"no file .*teacher\.safetensors; expected a safetensors"),
    "of the Hub": (None, "the model 'org/name' is gated"),
    "cut short": (NET.build(DIGITS), "not a readable safetensors file"),
    "classes": (NET.build(Shape(1, 8, 8, 7)), "tells 7 classes apart and the source has 10"),
    "shapes": (ConvNet(depth=2, width=5).build(DIGITS), r"0\.weight has the shape \(5, 1, 3, 3\)"),
    "names": (ConvNet(depth=1, width=6).build(DIGITS), "of its .* tensors are missing"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_a_run_whose_weights_do_not_fit_ends_before_its_source_is_read(
    tmp_path: Path, case: str
) -> None:
    module, message = UNFIT[case]
    path = tmp_path / "teacher.safetensors"
    if module is not None:
        stored(tmp_path, module)
    if case == "cut short":
        path.write_bytes(path.read_bytes()[:-4])
    recipe = toy_sections()
    name = "org/name" if case == "of the Hub" else str(path)
    recipe["squeeze"] = {"network": NET.model_dump(), "weights": [name]}
    recipe["distill"]["networks"] = {"name": "pretrained"}
    with (
        hub(errors.GatedRepoError("no", response=mock.MagicMock())),
        mock.patch("distill_datasets.pipeline.run.load_source", side_effect=AssertionError),
        pytest.raises((RecipeError, ArtifactError), match=message),
    ):
        run(recipe_from(recipe), runs=tmp_path / "runs", quiet=True)
    assert not (tmp_path / "runs").exists()


def hub(answer: object) -> Any:  # noqa: ANN401
    return mock.patch("huggingface_hub.hf_hub_download", side_effect=answer)


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("timm/resnet18.tv_in1k", ("timm/resnet18.tv_in1k", None)),
        ("org/name@v1.0", ("org/name", "v1.0")),
        ("org/name@refs/pr/2", ("org/name", "refs/pr/2")),
    ],
)
def test_a_model_of_the_hub_is_downloaded(
    trained: SqueezedFolder, tmp_path: Path, name: str, asked: tuple[str, str | None]
) -> None:
    path = stored(tmp_path, trained.module(0))
    with hub([path]) as download:
        found = taken(tmp_path / "runs", name)
    download.assert_called_once_with(asked[0], "model.safetensors", revision=asked[1])
    assert same(found.module(0), trained.module(0))


def test_what_the_hub_refuses_is_explained(tmp_path: Path) -> None:
    answer = mock.MagicMock()
    for error, message in [
        (
            errors.RepositoryNotFoundError("no", response=answer),
            "no model 'org/name', or it is private",
        ),
        (errors.RevisionNotFoundError("no", response=answer), "has no branch, tag or commit 'v9'"),
        (errors.EntryNotFoundError("no"), r"has no model\.safetensors, and nothing else is read"),
        (errors.LocalEntryNotFoundError("offline"), "is not in the cache .*check the network"),
        (errors.GatedRepoError("no", response=answer), "is gated; accept its conditions"),
    ]:
        with hub(error), pytest.raises(RecipeError, match=message):
            taken(tmp_path, "org/name@v9")


@pytest.mark.parametrize("model", ["resnet18", "mnasnet0_5"])
def test_the_weights_of_torchvision_fit_by_their_names(tmp_path: Path, model: str) -> None:
    network = Torchvision(model=model)
    module = network.build(Shape(1, 8, 8, 3))
    path = stored(tmp_path, module)
    found = taken(tmp_path, path, network=network, least_accuracy=0.0)
    assert same(found.module(0), module)
    theirs = torchvision.models.get_model(model, num_classes=3)
    assert module.state_dict().keys() == theirs.state_dict().keys()


def test_a_teacher_with_the_classes_in_another_order_is_refused(
    trained: SqueezedFolder, tmp_path: Path
) -> None:
    module = trained.module(0)
    with torch.no_grad():
        for parameter in module[-1].parameters():
            parameter.copy_(parameter.roll(1, dims=0))
    path = stored(tmp_path, module)
    message = (
        r"member 0 gets \d+\.\d% .*expected at least 66\.7% of a teacher \(chance is 33\.3%\); it "
        r"is .*teacher\.safetensors: its classes may stand in another order than source\.classes, "
        r"or it may expect images normalized otherwise than by .*mean_std"
    )
    with pytest.raises(RecipeError, match=message):
        taken(tmp_path, path)
    with pytest.raises(RecipeError, match=message):  # and again, when the file is there already
        taken(tmp_path, path)
    assert taken(tmp_path, path, least_accuracy=0.0).members == 1


def test_a_teacher_far_below_what_its_file_claims_is_refused(
    trained: SqueezedFolder, tmp_path: Path
) -> None:
    path = stored(tmp_path, trained.module(0), accuracy="0.9")
    taken(tmp_path, path)
    mixed = Split(REAL.test.images_NCHW, REAL.test.labels_N.roll(40))
    real = RealData(**vars(REAL) | {"test": mixed})
    with pytest.raises(RecipeError, match=r"chance is 33\.3%, its file claims 90\.0%"):
        squeeze(tmp_path / "mixed", real, network=BATCHED, weights=[path])
    path = stored(tmp_path, trained.module(0), accuracy="good")
    with pytest.raises(ArtifactError, match="claims the accuracy 'good'"):
        taken(tmp_path, path)


@pytest.mark.parametrize(
    ("classes", "claimed", "expected"),
    [
        (1000, None, 0.005), (100, None, 0.05), (10, None, 0.5), (2, None, 0.75), (3, None, 2 / 3),
        (1000, 0.7, 0.35), (10, 0.7, 0.5), (10, 1.0, 0.5),
    ],
)  # fmt: skip
def test_a_teacher_has_to_beat_five_times_chance_and_half_of_its_claim(
    classes: int, claimed: float | None, expected: float
) -> None:
    assert least(classes, claimed) == pytest.approx(expected)


def test_a_member_trained_here_may_be_poor_unless_it_teaches(tmp_path: Path) -> None:
    poor = squeeze(tmp_path, network=BATCHED, epochs=1, optimizer=Sgd(lr=1e-6))
    assert poor.accuracies()[0] < 2 / 3
    with pytest.raises(RecipeError, match=r"of a teacher.*; train it longer .*least_accuracy"):
        refuse(poor.teacher_problems())


def test_several_architectures_are_one_member_each(tmp_path: Path) -> None:
    networks = [BATCHED, NET]
    found = squeeze(tmp_path, networks=networks, **TRAINED)
    assert found.architectures == tuple(networks) and found.members == 2
    for member, network in enumerate(networks):
        kinds = [type(layer) for layer in found.module(member)]
        assert kinds == [type(layer) for layer in network.build(TOY)]
    logits_MBK = Members(found, TOY)(torch.zeros(2, 1, 8, 8))
    assert logits_MBK.shape == (2, 2, 3)
    # a member is the same network whatever the others are
    alone = squeeze(tmp_path, networks=[BATCHED], **TRAINED)
    assert alone.folder != found.folder and same(alone.module(0), found.module(0))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, r"epochs: got 0, expected passes"),
        ({"epochs": 2, "warmup_epochs": 2}, r"more than warmup_epochs: 2"),
        ({"epochs": 1, "batch": 10, "shards": 4}, r"shards: 4 do not divide batch: 10"),
        ({"weights": ["a.safetensors"], "epochs": 3}, r"leave epochs out, or weights"),
        ({"weights": ["a"], "batch": 3, "schedule": "cosine"}, r"leave batch, schedule out"),
        ({"networks": [NET, BATCHED], "members": 3, "epochs": 1}, r"2 of them for 3 members"),
        ({"networks": [NET], "network": BATCHED, "epochs": 1}, r"leave network out"),
        ({"networks": [NET, NET], "weights": ["a"]}, r"weights: 1 of them for 2 members"),
    ],
)
def test_sections_that_say_two_things_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Squeeze.model_validate(fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"networks": [{"name": "convnet"}, {"name": "resnet", "depth": 34}], "epochs": 1},
        {"network": {"name": "resnet"}, "weights": ["a.safetensors", "org/name"]},
        {"network": "lenet", "members": 3, "epochs": 2},
    ],
)
def test_a_resolved_section_can_be_read_again(fields: dict[str, Any]) -> None:
    section = Squeeze.model_validate(fields)
    assert len(section.architectures) == section.members
    assert Squeeze.model_validate(json.loads(section.model_dump_json())) == section
