"""The standard protocol tells images from labels, and chance from a difference.

Shape suffixes: N images, K classes, C channels, H W pixels.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Image
from support.probe_problem import tiny_backbone
from support.published import alone, digits, loaded_digits, publish, some_real
from support.sample_content import sample
from support.tiny import toy_real
from torch import nn

from distill_datasets.data.decoding import Split
from distill_datasets.data.real import RealData
from distill_datasets.evaluation import students
from distill_datasets.evaluation.contestants import contestants, read_target
from distill_datasets.evaluation.levels import Standard
from distill_datasets.evaluation.protocol import Evaluate
from distill_datasets.evaluation.standard import STANDARD, run_standard
from distill_datasets.export.folder import write_dataset
from distill_datasets.export.reading import image_bytes, load_rows
from distill_datasets.files.artifacts import canonical_json
from distill_datasets.models.backbones import LinearProbe
from distill_datasets.models.convnets import Mlp
from distill_datasets.runtime.draws import draws
from distill_datasets.selection.difficulty import ByDifficulty
from distill_datasets.stages.features import run_features
from distill_datasets.training.intervals import Interval, paired
from distill_datasets.training.metrics import Answers
from distill_datasets.types import Batch, Shape

ALONE: dict[str, Any] = {
    "network": Mlp(), "references": [], "networks": [], "times": [1], "robustness": False
}  # fmt: skip
SHORT = Standard(**ALONE, students=4, steps=40)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> RealData:
    return digits(tmp_path_factory.mktemp("digits"))


def soft(labels_N: torch.Tensor) -> torch.Tensor:
    """Labels of which every other class has a little."""
    return F.one_hot(labels_N, 10).float() * 0.8 + 0.02


def test_real_images_with_the_same_labels_have_no_share_and_swapped_ones_a_negative_one(
    tmp_path: Path, real: RealData
) -> None:
    images_NCHW, labels_N = some_real(real, 3, seed=1)
    planted = publish(tmp_path / "planted", real, images_NCHW, soft(labels_N))
    swapped = publish(tmp_path / "swapped", real, images_NCHW.roll(3, dims=0), soft(labels_N))
    for folder, verdict in ((planted, "undecided"), (swapped, "worse")):
        found = run_standard(folder, real, alone(tmp_path / "runs"), SHORT)
        shares = found["attribution"]["image_share"]
        assert [share["regime"] for share in shares] == ["HL", "SL-1"]
        assert [share["draw"]["verdict"] for share in shares] == [verdict, verdict]


def test_bytes_of_references_are_those_of_the_set_and_not_more(
    tmp_path: Path, real: RealData
) -> None:
    images_NCHW, labels_N = some_real(real, 20, seed=1)
    folder = publish(tmp_path / "set", real, images_NCHW, soft(labels_N))
    lossy = ["jpeg", "webp", "webp_half"]
    settings = Standard(**{**ALONE, "references": lossy}, students=1, steps=1)
    found = run_standard(folder, real, alone(tmp_path / "runs"), settings)
    total = {row["key"]: row["bytes"]["total"] for row in found["rows"]}
    for regime in ("HL", "SL-1"):
        own = total[f"default/{regime}"]
        for kind in lossy:
            assert 0.98 * own <= total[f"{kind}/{regime}"] <= own


def test_real_images_of_as_many_values_are_drawn_as_many(tmp_path: Path, real: RealData) -> None:
    images_NCHW, labels_N = some_real(real, 20)
    folder = publish(tmp_path / "set", real, images_NCHW, soft(labels_N))
    target = read_target(folder, real)
    # numbers of 8,000 values more, as of what is drawn from fewer pixels than it has values
    more = {**target.budget, "values": target.budget["values"] + 8000}
    target = dataclasses.replace(target, manifest={**target.manifest, "budget": more})
    choice = ByDifficulty("easy", torch.zeros(len(real.train.labels_N)), easy=True)
    field = contestants(target, real, real, 0, ["random_values", "easy"], {"easy": choice})
    found = {each.key: each for each in field}
    for regime, values in (("HL", 64 + 1), ("SL-1", 64 + 10)):
        spent = 200 * values + 8000
        each = found[f"random_values/{regime}"]
        assert each.images == spent // values > 200
        assert each.make(draws(0, "x")).count == each.images
        assert found[f"easy/{regime}"].make(draws(0, "x")).count == 200


def test_a_poster_counts_and_not_its_overlapping_crops(tmp_path: Path) -> None:
    content, shape = sample(channels=1), Shape(1, 8, 8, 3)
    write_dataset(tmp_path / "set", content, None)
    source = toy_real(shape)
    settings = Standard(**{**ALONE, "references": ["webp"]}, students=1, steps=1)
    found = run_standard(tmp_path / "set", source, alone(tmp_path / "runs"), settings)
    rows = {row["key"]: row for row in found["rows"]}
    (preview,) = load_rows(tmp_path / "set", "poster").cast_column("preview", Image(decode=False))[
        "preview"
    ]
    own = rows["default/SL-1"]["bytes"]
    assert own["images"] == len(preview["bytes"])
    assert own["decoder"] == len(canonical_json(content.geometry))
    # three cells of three classes, in float32, where six crops would have twice as many numbers
    assert own["labels"] == 4 * 9 and rows["default/HL"]["bytes"]["labels"] == 6
    assert image_bytes(tmp_path / "set") > own["images"]
    for regime in ("HL", "SL-1"):
        assert (
            rows[f"webp/{regime}"]["bytes"]["total"] <= rows[f"default/{regime}"]["bytes"]["total"]
        )


def test_a_finished_evaluation_is_read_and_not_trained_again(
    tmp_path: Path, real: RealData, monkeypatch: pytest.MonkeyPatch
) -> None:
    images_NCHW, labels_N = some_real(real, 1)
    folder = publish(tmp_path / "set", real, images_NCHW, F.one_hot(labels_N, 10).float())
    settings = Standard(network=Mlp(), references=["herding", "full"], students=2, steps=2)
    first = run_standard(folder, real, alone(tmp_path / "runs"), settings)
    monkeypatch.setattr("distill_datasets.evaluation.students.train_student", None)
    again = run_standard(folder, real, alone(tmp_path / "runs"), settings)
    (written,) = (tmp_path / "runs").glob(f"*/{STANDARD}")
    assert first == again == json.loads(written.read_text())


def test_the_same_set_twice_differs_by_exactly_nothing(tmp_path: Path, real: RealData) -> None:
    images_NCHW, labels_N = some_real(real, 1)
    targets_NK = F.one_hot(labels_N, 10).float()
    settings = Standard(**ALONE, students=3, steps=3)
    runs = []
    for name in ("one", "other"):
        folder = publish(tmp_path / name, real, images_NCHW, targets_NK)
        found = run_standard(folder, real, alone(tmp_path / f"runs-{name}"), settings)
        runs.append({run["seed"]: run["accuracy"] for run in found["rows"][0]["runs"]})
    assert paired(*runs) == Interval(0.0, 0.0, 0.0)


def test_every_part_of_the_table_is_there(tmp_path: Path, real: RealData) -> None:
    images_NCHW, labels_N = some_real(real, 1)
    folder = publish(tmp_path / "set", real, images_NCHW, soft(labels_N))
    settings = Standard(
        network=Mlp(depth=0),
        networks=[Mlp()],
        references=["random_real", "class_mean", "full"],
        times=[0.5, 1, 2],
        students=2,
        steps=4,
    )
    found = run_standard(folder, real, alone(tmp_path / "runs"), settings)
    assert [row["key"] for row in found["rows"]] == [
        f"{name}/{regime}"
        for name in ("default", "random_real", "class_mean", "random_rows", "full")
        for regime in ("HL", "SL-1")
        if (name, regime) != ("full", "SL-1")
    ]
    best = list(dict.fromkeys(found["best"].values()))
    followed = ["default/HL", "default/SL-1", *best]
    assert [(point["key"], point["steps"]) for point in found["curve"]] == [
        (key, steps) for key in followed for steps in (2, 4, 8)
    ]
    assert [row["key"] for row in found["networks"]] == followed
    attacked = [row["key"] for row in found["robustness"]]
    assert sorted(attacked) == sorted(
        f"{name}/{regime}" for name in ("default", "random_rows") for regime in ("HL", "SL-1")
    )
    arms = found["attribution"]["table"]
    assert len(arms) == 12 and {arm["augmented"] for arm in arms} == {None, True, False}
    assert found["attribution"]["dd_ranking"]["regime"] == "SL-1"
    assert "With hard labels" in found["statement"] and "the best of 2" in found["statement"]
    assert found["cost"]["flops"] > 0 and found["cost"]["construction"] is None
    assert found["missing"] == ["cost of construction: no recipe of this library made the folder"]
    made = {"stages": {"distill": 1e9}, "total": 1e9}
    told = run_standard(folder, real, alone(tmp_path / "runs"), settings, made)
    # 200 steps of 64 images, less 4 steps of 10: the whole set's are at least the students' own
    assert told["cost"]["construction"]["break_even"] > 0


def test_networks_that_have_learned_the_source_choose_images_of_it(
    tmp_path: Path, real: RealData
) -> None:
    images_NCHW, labels_N = some_real(real, 1)
    folder = publish(tmp_path / "set", real, images_NCHW, F.one_hot(labels_N, 10).float())
    names = ["forgetting", "el2n", "easy", "rded"]
    settings = Standard(**{**ALONE, "references": names}, students=1, steps=1)
    found = run_standard(folder, real, alone(tmp_path / "runs"), settings)
    rows = {row["from"]: row for row in found["rows"]}
    assert [rows[name]["images"] for name in names] == [10] * 4
    (proxy,) = (tmp_path / "runs").glob("proxies-*/*.safetensors")
    before = proxy.stat().st_mtime_ns
    run_standard(folder, real, alone(tmp_path / "runs"), settings)
    assert proxy.stat().st_mtime_ns == before


def test_a_linear_probe_is_measured_once_its_features_are_there(tmp_path: Path) -> None:
    loaded, backbone = loaded_digits(tmp_path), tiny_backbone(tmp_path)
    images_NCHW, labels_N = some_real(loaded.real, 1)
    targets_NK = F.one_hot(labels_N, 10).float()
    folder = publish(tmp_path / "set", loaded.real, images_NCHW, targets_NK)
    probe = LinearProbe(backbone=backbone)
    beside = Standard(**{**ALONE, "networks": [probe]}, students=2, steps=3)
    without = run_standard(folder, loaded.real, alone(tmp_path / "runs"), beside)
    assert without["networks"] == [] and "were not computed" in without["missing"][0]
    run_features([backbone], loaded, alone(tmp_path))
    found = run_standard(folder, loaded.real, alone(tmp_path / "runs"), beside)
    assert [row["key"] for row in found["networks"]] == ["default/HL"]
    assert len(found["networks"][0]["runs"]) == 2
    own = Standard(**{**ALONE, "network": probe, "robustness": True}, students=2, steps=3)
    found = run_standard(folder, loaded.real, alone(tmp_path / "runs"), own)
    assert {arm["augmented"] for arm in found["attribution"]["table"]} == {None}
    assert found["robustness"] == [] and any("attacks" in why for why in found["missing"])


def test_what_was_chosen_is_what_held_out_images_like_best(tmp_path: Path, real: RealData) -> None:
    images_NCHW, labels_N = some_real(real, 2)
    folder = publish(tmp_path / "set", real, images_NCHW, F.one_hot(labels_N, 10).float())
    settings = Standard(**ALONE, students=1, steps=20)
    turned = real.test.labels_N.roll(1)
    other = dataclasses.replace(real, test=Split(real.test.images_NCHW, turned))
    chosen = []
    for number, source in enumerate((real, other)):
        found = run_standard(folder, source, alone(tmp_path / f"runs-{number}"), settings)
        (row, _) = found["rows"]
        most = max(trial["held_out"] for trial in row["trials"])
        assert row["tuned"]["held_out"] == most and len(row["trials"]) == 6
        chosen.append((row["tuned"], row["trials"]))
    assert chosen[0] == chosen[1]  # test images have no say


class Peaking(nn.Module):
    """A student that is best after half of its steps and forgets until the last."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.share = {2: 0.9, 4: 0.85, 8: 0.6}[steps]


def test_a_set_whose_best_step_is_five_points_above_its_last_reports_the_last(
    tmp_path: Path, real: RealData, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []

    def trained(settings: Evaluate, steps: int, *_: Any, **__: Any) -> nn.Module:  # noqa: ANN401
        return Peaking(steps)

    def asked(module: Peaking, batches: Iterator[Batch]) -> Answers:
        labels_N = torch.cat([batch.targets_BK.argmax(dim=1) for batch in batches])
        looked.append(len(labels_N))
        right = round(module.share * len(labels_N))
        said_N = torch.cat([labels_N[:right], (labels_N[right:] + 1) % 10])
        return Answers(F.one_hot(said_N, 10).float(), labels_N)

    monkeypatch.setattr(students, "train_student", trained)
    monkeypatch.setattr(students, "answers", asked)
    monkeypatch.setattr(students, "predictions", lambda module, ask: asked(module, ask()))
    images_NCHW, labels_N = some_real(real, 1)
    folder = publish(tmp_path / "set", real, images_NCHW, F.one_hot(labels_N, 10).float())
    settings = Standard(**{**ALONE, "times": [0.5, 1, 2]}, students=2, steps=4)
    found = run_standard(folder, real, alone(tmp_path / "runs"), settings)
    at = {point["times"]: point["accuracy"]["mean"] for point in found["curve"]}
    assert at[0.5] == pytest.approx(0.9, abs=0.002) and at[1] == pytest.approx(0.85, abs=0.002)
    assert found["rows"][0]["accuracy"]["mean"] == at[1]
    # two rows of two students, with and without augmentation, and two further points of the curve:
    # every student of these has read the test images once
    assert looked.count(len(real.test.labels_N)) == 2 * 2 * 2 + 2 * 2


def test_a_plain_program_finds_the_same(tmp_path: Path, real: RealData) -> None:
    images_NCHW, labels_N = some_real(real, 5)
    targets_NK = soft(labels_N)
    folder = publish(tmp_path / "set", real, images_NCHW, targets_NK)
    settings = Standard(**ALONE, students=4, steps=100)
    found = run_standard(folder, real, alone(tmp_path / "runs"), settings)
    (arm,) = [
        arm
        for arm in found["attribution"]["table"]
        if (arm["key"], arm["augmented"]) == ("default/SL-1", False)
    ]
    plain = [plain_accuracy(folder, real, arm["lr"], 100, seed) for seed in range(4)]
    theirs = Interval.of(plain)
    assert abs(arm["accuracy"]["mean"] - theirs.mean) <= arm["accuracy"]["half"] + theirs.half


def plain_accuracy(folder: Path, real: RealData, lr: float, steps: int, seed: int) -> float:
    """What a forty-line program of torch and datasets alone makes of a published folder."""
    from datasets import load_dataset

    torch.manual_seed(seed)
    rows = load_dataset(str(folder), "default", split="train").with_format("numpy")[:]
    told = load_dataset(str(folder), "recipe", split="train")[0]
    mean, std = told["mean"][0], told["std"][0]

    def see(images: Any) -> torch.Tensor:  # noqa: ANN401
        return (torch.tensor(images).float().flatten(1) / 255 - mean) / std

    images, labels = see(rows["image"]), torch.tensor(rows["soft_label"])
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    adam = torch.optim.Adam(model.parameters(), lr)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for _ in range(steps):
        batch = torch.randperm(len(images))[:64]
        adam.zero_grad()
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        adam.step()
        decay.step()
    with torch.no_grad():
        guessed = model(see(real.test.images_NCHW.numpy())).argmax(dim=1)
    return float((guessed == real.test.labels_N).float().mean())
