"""Images with several labels, or with numbers, from the source to a finished dataset and back."""

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score, r2_score
from support.toy_runs import command

from distill_datasets.errors import ArtifactError, RecipeError
from distill_datasets.export.folder import check_of_classes
from distill_datasets.export.reading import load_rows, read_published
from distill_datasets.export.verification import looks
from distill_datasets.pipeline.run import Outcome, run
from distill_datasets.recipe import recipe_from
from distill_datasets.training.metrics import label_score, value_score
from distill_datasets.types import Shape

NETWORK = {"name": "convnet", "depth": 1, "width": 8}
CORNERS = ("upper left", "upper right", "lower left", "lower right")


def recipe_of(task: str, **evaluate: Any) -> dict[str, Any]:  # noqa: ANN401
    numbers = {"label_columns": ["upper", "lower"]} if task == "values" else {}
    regression = {"name": "regression", "real_batch": 50, "ridge": 0.01, "sharpness": 5.0}
    return {
        "name": task,
        "source": {"dataset": "memory", "task": task, **numbers},
        "distill": {
            "steps": 20,
            "clip": None,
            "optimizer": {"name": "adam", "lr": 0.02},
            "label_optimizer": {"name": "adam", "lr": 0.02},
            "objective": regression,
            "canvas": {"name": "pixels", "ipc": 6, "init": "real"},
            "labels": {"name": "vectors", "task": task, "sharpness": 5.0},
            "networks": {"name": "pool", "members": 2, "age": 20, "networks": [NETWORK]},
        },
        "evaluate": {
            "network": NETWORK,
            "students": 2,
            "steps": 120,
            "optimizer": {"name": "adam", "lr": 0.01},
            "references": ["random_real", "full"],
            "full_students": 1,
            "beyond": None,
            **evaluate,
        },
    }


def split(count: int, task: str, seed: int) -> datasets.Dataset:
    """Images of 8 px with bright corners: their names, or how bright the halves are."""
    rng = np.random.default_rng(seed)
    images, rows = [], []
    for _ in range(count):
        pixels = rng.integers(0, 60, (8, 8), dtype=np.uint8)
        lit = rng.random(4) < (0.5, 0.3, 0.2, 0.4)
        for place in np.flatnonzero(lit):
            y, x = 4 * (place // 2), 4 * (place % 2)
            pixels[y : y + 4, x : x + 4] = rng.integers(150, 256)
        images.append(Image.fromarray(pixels))
        halves = [float(half.mean()) for half in (pixels[:4], pixels[4:])]
        rows.append(np.flatnonzero(lit).tolist() if task == "labels" else halves)
    features: dict[str, Any] = {"image": datasets.Image()}
    columns: dict[str, Any] = {"image": images}
    if task == "labels":
        features["tags"] = datasets.List(datasets.ClassLabel(names=list(CORNERS)))
        columns["tags"] = rows
    else:
        for place, name in enumerate(("upper", "lower")):
            features[name] = datasets.Value("float32")
            columns[name] = [row[place] for row in rows]
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


@pytest.fixture(scope="module", params=["labels", "values"])
def finished(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Outcome]:
    """A finished run on made images, by its task."""
    task: str = request.param
    source = datasets.DatasetDict(train=split(200, task, 0), test=split(100, task, 1))
    runs = tmp_path_factory.mktemp(task)
    return task, run(recipe_from(recipe_of(task)), runs=runs, dataset=source, quiet=True)


def test_students_learn_from_what_is_published(finished: tuple[str, Outcome]) -> None:
    task, outcome = finished
    rows = {row["from"]: row for row in outcome.results}
    own = rows["default"]
    assert own["metric"] == {"labels": "mAP", "values": "R2"}[task]
    assert own["accuracy"]["mean"] > own["chance"] + 0.3
    assert rows["full"]["accuracy"]["mean"] > own["chance"] + 0.5
    assert ("f1_macro" in own) == (task == "labels") and ("mae" in own) == (task == "values")


def test_what_is_published_is_whole_and_says_what_its_targets_are(
    finished: tuple[str, Outcome],
) -> None:
    task, outcome = finished
    assert [look.words for look in looks(outcome.folder) if not look.passed] == []
    rows = load_rows(outcome.folder, "default")
    if task == "labels":
        soft = np.asarray(rows["soft_label"])
        assert rows.features["labels"].feature.names == list(CORNERS)
        assert rows[0]["labels"] == np.flatnonzero(soft[0] > 0.5).tolist()
        assert soft.min() >= 0 and soft.max() <= 1 and not np.allclose(soft.sum(axis=1), 1)
    else:
        assert 0 < np.asarray(rows["values"]).mean() < 255  # as bright as images are
    shape = Shape(1, 8, 8, rows.num_rows // 6, task)  # type: ignore[arg-type]
    stored = read_published(outcome.folder, "default", shape)
    assert stored.targets_NK.shape == (rows.num_rows, shape.k)
    if task == "values":
        assert float(stored.targets_NK.mean().abs()) < 1
    card = (outcome.folder / "README.md").read_text(encoding="utf-8")
    assert {"labels": "binary_cross_entropy_with_logits", "values": "target_std"}[task] in card
    assert f"| trained on | test {outcome.results[0]['metric']}, % |" in card


def test_the_lines_of_the_card_train(finished: tuple[str, Outcome]) -> None:
    _, outcome = finished
    card = (outcome.folder / "README.md").read_text(encoding="utf-8")
    program = card.partition("## Train on it")[2].partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec(program.replace("your-name/your-dataset", str(outcome.folder)), names)
    assert bool(torch.isfinite(names["loss"]))


def test_pages_and_differences_speak_of_what_was_measured(
    finished: tuple[str, Outcome], tmp_path: Path
) -> None:
    task, outcome = finished
    metric, words = {"labels": ("mAP", "average precision"), "values": ("R2", "R2")}[task]
    one = {"labels": "label", "values": "number"}[task]
    page, twins, sets = (tmp_path / f"{name}.html" for name in ("report", "compare", "gallery"))
    assert command("report", outcome.folder, "--runs", tmp_path, "--output", page).code == 0
    text = page.read_text(encoding="utf-8")
    assert f"test {metric}" in text and f"{words} of every {one}".lower() in text.lower()
    assert "accuracy" not in text.partition("The recipe as it was run")[0].partition("<body>")[2]
    other = tmp_path / "other"
    shutil.copytree(outcome.folder, other)
    answer = command("compare", outcome.folder, other, "--runs", tmp_path, "--output", twins)
    assert answer.code == 0 and f"{metric}, %" in answer.out and f"per {one}" in answer.out
    assert command("gallery", outcome.folder, "--output", sets).code == 0
    assert f"% {metric}</b>" in sets.read_text(encoding="utf-8")
    manifest = other / "distill.json"
    held = json.loads(manifest.read_text(encoding="utf-8"))
    held["results"][0]["accuracy"]["mean"] = 0.5
    manifest.write_text(json.dumps(held), encoding="utf-8")
    assert f"{metric} of default" in command("diff", outcome.folder, other).out
    held["task"] = "classes"
    manifest.write_text(json.dumps(held), encoding="utf-8")
    refused = command("compare", outcome.folder, other, "--output", tmp_path / "none.html")
    assert refused.code == 2 and "its targets are classes, those of" in refused.err
    assert f"accuracy and {metric} cannot be compared" in refused.err


def test_verbs_about_classes_say_that_these_are_none(
    finished: tuple[str, Outcome], tmp_path: Path
) -> None:
    task, outcome = finished
    to = ["--layout", "npz", "--to", tmp_path / "out", "--runs", tmp_path]
    answer = command("export", outcome.folder, *to)
    assert answer.code == 2 and f"its targets are {task}" in answer.err
    for verb in (("merge", outcome.folder), ("shrink", "ipc=1")):
        answer = command(verb[0], outcome.folder, verb[1], "--output", tmp_path / "made")
        assert answer.code == 2 and f"its targets are {task}" in answer.err
    shown = command("show", outcome.folder, "--runs", tmp_path)
    assert shown.code == 0 and str(outcome.results[0]["metric"]) in shown.out
    with pytest.raises(ArtifactError, match="evaluate is about classes"):
        check_of_classes(outcome.folder, outcome.manifest, "evaluate")


def test_a_recipe_names_all_that_is_about_classes() -> None:
    sections = recipe_of("labels", references=["herding"], label_smoothing=0.1)
    sections["distill"]["labels"] = "learned"
    sections["distill"]["objective"] = {"name": "distribution", "real_batch": 8}
    with pytest.raises(RecipeError) as refused:
        recipe_from(sections)
    for words in (
        "distill.labels: 'learned' are of task: classes",
        "distill.objective: 'distribution' is about classes",
        "evaluate.label_smoothing: is about classes",
        "evaluate.references: herding choose images of classes",
    ):
        assert words in str(refused.value)


def test_metrics_are_those_of_scikit_learn() -> None:
    rng = torch.Generator().manual_seed(0)
    logits_NK = torch.randn(40, 3, generator=rng).mul(4).round() / 4  # with ties
    targets_NK = (torch.rand(40, 3, generator=rng) < 0.4).float()
    found = label_score(logits_NK, targets_NK)
    expected = [
        average_precision_score(has_N, logits_N)
        for has_N, logits_N in zip(targets_NK.T.numpy(), logits_NK.T.numpy(), strict=True)
    ]
    assert found["per_class"] == pytest.approx(expected)
    assert found["accuracy"] == pytest.approx(np.mean(expected))
    for average in ("micro", "macro"):
        named = f1_score(targets_NK.numpy(), (logits_NK > 0).numpy(), average=average)
        assert found[f"f1_{average}"] == pytest.approx(named)
    numbers_NK = torch.randn(40, 3, generator=rng)
    explained = r2_score(numbers_NK.numpy(), logits_NK.numpy(), multioutput="raw_values")
    assert value_score(logits_NK, numbers_NK)["per_class"] == pytest.approx(explained.tolist())
