"""Linear probes as students: a whole recipe, other backbones beside it, the card's own lines."""

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image
from support.probe_problem import tiny_backbone
from support.tiny import toy_real

from distill_datasets.pipeline.run import Outcome, run
from distill_datasets.recipe import recipe_from
from distill_datasets.types import Shape

SHAPE = Shape(3, 8, 8, 4)
REAL = toy_real(SHAPE, per_class=12)


def toy_dataset() -> datasets.DatasetDict:
    """The toy images as rows."""
    names = datasets.ClassLabel(names=REAL.class_names)
    features = datasets.Features({"image": datasets.Image(), "label": names})

    def rows(split: Any) -> datasets.Dataset:  # noqa: ANN401
        images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in split.images_NCHW]
        columns = {"image": images, "label": split.labels_N.tolist()}
        return datasets.Dataset.from_dict(columns, features=features)

    return datasets.DatasetDict(train=rows(REAL.train), test=rows(REAL.test))


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("probe")
    backbone = tiny_backbone(folder).model_dump()
    other = tiny_backbone(folder, model="cropped", crop=0.75).model_dump()
    recipe = recipe_from(
        {
            "name": "probe",
            "source": {"dataset": "in-memory"},
            "distill": {
                "steps": 60,
                "clip": None,
                "optimizer": {"name": "adam", "lr": 0.1},
                "objective": {"name": "linear", "classes_at_once": 3, "crop": None},
                "canvas": {"name": "pyramid", "ipc": 1, "start_px": 4},
                "labels": "area",
                "networks": {"name": "backbones", "backbones": [backbone, other]},
            },
            "evaluate": {
                "network": {"name": "linear_probe", "backbone": backbone, "transfer": [other]},
                "students": 2,
                "steps": 100,
                "optimizer": {"name": "adam", "lr": 0.01},
                "references": ["random_real", "herding", "k_center", "nearest", "full"],
                "full_students": 2,
            },
        }
    )
    return run(recipe, runs=folder / "runs", quiet=True, dataset=toy_dataset())


def test_distilled_images_teach_a_probe_more_than_a_random_image(outcome: Outcome) -> None:
    found = {row["from"]: row["accuracy"]["mean"] for row in outcome.results}
    assert list(found) == ["default", "random_real", "herding", "k_center", "nearest", "full"]
    assert found["default"] > found["random_real"] and found["default"] > 0.5


def test_every_row_is_measured_on_other_backbones_as_well(outcome: Outcome) -> None:
    for row in outcome.results:
        (other,) = row["transfer"]
        assert row["network"] == "linear_probe(squeezed/member at 8 px)"
        assert other["network"] == "linear_probe(squeezed/cropped at 8 px)"
        assert len(other["runs"]) == 2 and other["steps"] == row["steps"]
    text = (outcome.folder / "README.md").read_text(encoding="utf-8")
    assert "On other backbones, test accuracy in %" in text


def test_the_lines_of_the_card_train_the_probe_that_was_measured(outcome: Outcome) -> None:
    text = (outcome.folder / "README.md").read_text(encoding="utf-8")
    lines = text.partition("## Train on it")[2].partition("```python\n")[2].partition("```")[0]
    lines = lines.replace("your-name/your-dataset", str(outcome.folder))
    accuracies = []
    for seed in range(3):
        scope: dict[str, Any] = {}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            exec(lines, scope)
        seen_ND = scope["backbone"](REAL.test.images_NCHW.float() / 255)
        logits_NK = scope["net"]((seen_ND - scope["mean"]) / scope["scale"])
        right_N = logits_NK.argmax(dim=1) == REAL.test.labels_N
        accuracies.append(float(right_N.float().mean()))
    measured = outcome.results[0]["accuracy"]
    assert sum(accuracies) / 3 == pytest.approx(measured["mean"], abs=0.08)


def test_pixels_that_are_whitened_are_not_for_a_probe(tmp_path: Path) -> None:
    from distill_datasets.errors import RecipeError

    with pytest.raises(RecipeError, match=r"evaluate\.network: 'linear_probe' .* zca"):
        recipe_from(
            {
                "name": "whitened",
                "source": {"dataset": "in-memory", "normalization": "zca"},
                "distill": {
                    "steps": 1, "objective": "distribution", "networks": "fresh",
                    "canvas": {"name": "pixels", "ipc": 1}, "labels": "area",
                },
                "evaluate": {
                    "network": {
                        "name": "linear_probe", "backbone": tiny_backbone(tmp_path).model_dump()
                    },
                    "steps": 1,
                },
            }
        )  # fmt: skip
