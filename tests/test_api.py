"""Distilling from Python: a `Dataset` in, a `Dataset` out, and on to the Hub."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from support import hub_client
from support.hub_client import Client
from support.hub_server import HubServer
from support.hub_state import User
from support.image_sets import features, noise
from support.outside_sets import DIGITS, save_folders
from support.probe_problem import tiny_backbone
from support.relabel_problem import content_of
from support.sample_content import sample

import distill_datasets
from distill_datasets import distill
from distill_datasets.api import Distillation
from distill_datasets.errors import ArtifactError, DataError, RecipeError
from distill_datasets.evaluation.levels import Standard
from distill_datasets.export.folder import verify, write_dataset
from distill_datasets.export.reading import published_records
from distill_datasets.files.artifacts import canonical_json, sha256_text
from distill_datasets.files.yaml_text import to_yaml

SMALL = [
    "distill.steps=2",
    "distill.canvas.crops=6",
    "distill.objective.inner_steps=3",
    "distill.objective.window=2",
    "distill.objective.real_batch=12",
    "distill.networks.network.width=4",
    "evaluate.network.width=4",
    "evaluate.students=2",
    "evaluate.steps=3",
    "evaluate.beyond=null",
]
# Publishes what an object of Python holds, one request a line.
PUSH = """
import dataclasses, json, sys
from pathlib import Path
from distill_datasets.api import Distillation
from distill_datasets.pipeline.run import Outcome
for line in sys.stdin:
    _, (folder, repo), options = json.loads(line)
    distilled = Distillation(Outcome(Path(folder), Path(folder), {}))
    print(json.dumps(dataclasses.asdict(distilled.push_to_hub(repo, **options))), flush=True)
"""


def pets(rows: int = 24) -> datasets.Dataset:
    """Small gray images of three classes, in memory."""
    names = datasets.ClassLabel(names=["cat", "dog", "eel"])
    images = [Image.fromarray(image[0].numpy()) for image in noise(rows, 1, 8)]
    columns = {"image": images, "label": [row % 3 for row in range(rows)]}
    return datasets.Dataset.from_dict(columns, features=features(names))


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> Distillation:
    runs = tmp_path_factory.mktemp("runs")
    return distill(pets(), ipc=0.75, runs=runs, quiet=True, overrides=SMALL)


def test_a_dataset_becomes_a_dataset(distilled: Distillation) -> None:
    rows = distilled.dataset
    assert isinstance(rows, datasets.Dataset) and len(rows) == 6
    assert rows.column_names == ["image", "label", "soft_label"]
    assert rows.features["label"].names == ["cat", "dog", "eel"]
    row = rows[0]
    assert row["image"].size == (8, 8) and row["image"].mode == "L"
    assert sum(row["soft_label"]) == pytest.approx(1)
    assert row["label"] == int(np.argmax(row["soft_label"]))


def test_results_compare_with_random_real_images(distilled: Distillation) -> None:
    assert [row["from"] for row in distilled.results] == ["default", "exact", "random_real"]
    for row in distilled.results:
        assert 0 <= row["accuracy"]["mean"] <= 1 and row["students"] == 2


def test_the_folder_is_what_would_be_published(distilled: Distillation) -> None:
    assert verify(distilled.folder) == []
    assert distilled.outcome.manifest["budget"]["ipc_equivalent"] <= 0.75
    assert distilled.outcome.manifest["source"]["dataset"] == "in memory"


def test_the_same_call_again_finds_what_is_done(
    distilled: Distillation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distill_datasets.stages.distill.OuterLoop.run", None)
    monkeypatch.setattr("distill_datasets.evaluation.evaluate.train_student", None)
    runs = distilled.folder.parent.parent
    assert distill(pets(), ipc=0.75, runs=runs, quiet=True, overrides=SMALL) == distilled


def test_whole_images_are_distilled_too_from_a_dataset_with_its_own_test_split(
    tmp_path: Path,
) -> None:
    both = datasets.DatasetDict(train=pets(), test=pets(9))
    overrides = [one for one in SMALL if "crops" not in one]
    made = distill(both, "rat-bptt", ipc=2, seed=5, runs=tmp_path, quiet=True, overrides=overrides)
    assert made.dataset["label"][:] == [0, 0, 1, 1, 2, 2]
    assert made.outcome.manifest["budget"]["ipc_equivalent"] == 2
    assert made.outcome.manifest["seed"] == 5
    assert made.outcome.manifest["source"]["splits"] == {"train": 24, "test": 9}


def test_distribution_matching_is_a_preset_too(tmp_path: Path) -> None:
    overrides = ["distill.steps=2", "distill.objective.real_batch=4", "evaluate.steps=2"]
    overrides += ["evaluate.beyond=null"]
    overrides += ["distill.networks.network.width=4", "evaluate.network.width=4"]
    made = distill(pets(), "dm", ipc=1, runs=tmp_path, quiet=True, overrides=overrides)
    assert made.dataset["label"][:] == [0, 1, 2]
    assert "distribution objective" in made.outcome.manifest["method"]


def test_images_for_a_linear_probe_are_a_preset_too(tmp_path: Path) -> None:
    overrides = ["distill.steps=2", "source.resolution=8", "evaluate.steps=2"]
    backbone = tiny_backbone(tmp_path).model_dump()
    made = distill(
        pets(), "probe", backbone=backbone, runs=tmp_path / "runs", quiet=True, overrides=overrides
    )
    assert made.dataset["label"][:] == [0, 1, 2] and made.dataset[0]["image"].size == (8, 8)
    assert [row["from"] for row in made.results] == ["default", "random_real", "nearest", "full"]
    assert made.results[0]["network"] == "linear_probe(squeezed/member at 8 px)"
    assert "arXiv:2605.07194" in (made.folder / "README.md").read_text(encoding="utf-8")


def test_a_backbone_is_for_probes_alone(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="use method='probe'"):
        distill(pets(), "podd", backbone="timm/resnet18", runs=tmp_path)


def test_push_to_hub_publishes_the_folder(
    distilled: Distillation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_client, "CLIENT", PUSH)
    tokens = {"hf_writer": User("ann", "write")}
    with HubServer(tokens, lambda card: []) as server:
        client = Client(server.url, tmp_path / "hf")
        options = {"token": "hf_writer", "tag": "v1", "message": "Pets, distilled"}
        answer = client.ask("push", str(distilled.folder), "ann/pets", **options)
        client.close()
        assert server.violations == []
        repo = server.repos["ann/pets"]
    assert answer["url"] == f"{server.url}/datasets/ann/pets" and answer["tag"] == "v1"
    assert repo.tags == {"v1": answer["commit"]} and repo.head.title == "Pets, distilled"
    published = repo.head.files["data/train-00000-of-00001.parquet"].data
    assert published == (distilled.folder / "data/train-00000-of-00001.parquet").read_bytes()
    assert repo.private  # nobody has said that these images may be shared


def test_an_unknown_method_is_refused_with_the_valid_names(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"mean 'podd'.*: cda, .*, podd, probe, rat-bptt"):
        distill(pets(), "pod", runs=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_fraction_of_an_image_needs_a_poster(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"rat-bptt: got ipc=0\.5, expected a whole number"):
        distill(pets(), "rat-bptt", ipc=0.5, runs=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_override_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"distill\(method='podd'\): 1 problem\n.*mean 'steps'"):
        distill(pets(), runs=tmp_path, overrides=["distill.stepz=3"])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("distill.steps=2", "got a str, "),
        ({"distill.steps": 2}, "got a dict, "),
        (5, "got a int, "),
        ([("distill.steps", 2)], r"got \('distill.steps', 2\) in the list, "),
    ],
)
def test_overrides_of_another_kind_are_refused(
    overrides: object, words: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=f"^overrides: {words}expected a list of 'section.key"):
        distill(pets(), runs=tmp_path, overrides=overrides)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["dataset", "config", "revision"])
def test_another_source_than_the_one_that_is_given_is_refused(key: str, tmp_path: Path) -> None:
    overrides = [f"source.{key}=messy"]
    with pytest.raises(RecipeError, match=rf"^overrides: source\.{key} is 'messy', but the images"):
        distill(pets(), runs=tmp_path, overrides=overrides)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [[1, 2, 3], "uoft-cs/cifar10", None])
def test_what_is_no_dataset_is_refused(tmp_path: Path, wrong: object) -> None:
    with pytest.raises(DataError):
        distill(wrong, runs=tmp_path, quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        distill(pets(0), runs=tmp_path)


def test_public_names_can_be_imported_and_others_cannot() -> None:
    from distill_datasets import Distillation, distill, load_recipe, run

    assert callable(distill) and callable(load_recipe) and callable(run)
    assert Distillation is distill_datasets.api.Distillation
    for name in distill_datasets.__all__:
        assert getattr(distill_datasets, name)
    with pytest.raises(AttributeError, match="has no attribute 'destill'"):
        _ = distill_datasets.destill


def test_the_package_itself_is_imported_in_a_moment() -> None:
    program = "import sys, distill_datasets; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_set_of_others_is_loaded_verified_and_measured(tmp_path: Path) -> None:
    theirs, runs = save_folders(tmp_path / "syn"), tmp_path / "runs"

    rows = distill_datasets.load(theirs, runs=runs)
    assert len(rows) == 20 and rows.column_names == ["image", "label", "soft_label"]
    with pytest.raises(ArtifactError, match=r"no configuration 'exakt'; .*valid names: default"):
        distill_datasets.load(theirs, "exakt", runs=runs)
    assert all(look.passed for look in distill_datasets.verify(theirs, runs=runs))

    settings = Standard(students=2, steps=2, references=["random_real"])
    found = distill_datasets.evaluate(
        theirs, DIGITS, settings=settings, overrides=["source.limit=200"], runs=runs, quiet=True
    )
    assert [row["key"] for row in found["rows"]][:2] == ["default/HL", "random_real/HL"]


def test_recorded_views_are_replayed_with_what_teachers_said(tmp_path: Path) -> None:
    content = content_of(tmp_path)
    recipe = {"relabel": {"epochs": 2, "batch": 16}}
    texts = {"recipe_yaml": to_yaml(recipe), "recipe_sha256": sha256_text(canonical_json(recipe))}
    write_dataset(tmp_path / "set", replace(content, recipe=recipe, **texts), None)

    batches = list(distill_datasets.replay(tmp_path / "set", batch=16, runs=tmp_path))

    assert [len(batch.images_BCHW) for batch in batches] == [16, 16, 8] * 2
    assert batches[0].images_BCHW.shape[1:] == content.images_NCHW.shape[1:]
    _, columns = published_records(tmp_path / "set", 40).rows(0, 80)
    for epoch in (0, 1):
        said = torch.cat([batch.targets_BK for batch in batches[3 * epoch :][:3]])
        expected = columns["logits"][40 * epoch :][:40].float().softmax(1)
        # an epoch has its own labels, shuffled
        assert torch.allclose(said.sort(dim=0).values, expected.sort(dim=0).values)
    write_dataset(tmp_path / "plain", sample(), None)
    with pytest.raises(ArtifactError, match="has no recorded views; sets of rded"):
        next(distill_datasets.replay(tmp_path / "plain", runs=tmp_path))
