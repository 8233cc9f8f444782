"""Images of two, or of more than three, channels: from arrays to a finished dataset and back."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from support.image_sets import draw
from support.toy_runs import command

from distill_datasets.data.source import Source, open_source
from distill_datasets.errors import DataError
from distill_datasets.export.reading import load_rows, read_published
from distill_datasets.export.verification import looks
from distill_datasets.pipeline.run import Outcome, run
from distill_datasets.recipe import recipe_from
from distill_datasets.types import Shape

NETWORK = {"name": "convnet", "depth": 1, "width": 8}
NAMES = datasets.ClassLabel(names=["second", "last"])


def bands(count: int, channels: int, seed: int) -> datasets.Dataset:
    """Measurements from 0 to 10,000; one channel is bright, the second or the last."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    arrays = rng.integers(0, 4000, (count, channels, 8, 8)).astype(np.uint16)
    for row, label in enumerate(labels):
        arrays[row, 1 if label == 0 else -1] += 3000
    if channels == 2:  # which are the same one
        arrays[labels == 0, 0] += 3000
        arrays[labels == 0, 1] -= 3000
    features = {"bands": datasets.Array3D((channels, 8, 8), "uint16"), "label": NAMES}
    return datasets.Dataset.from_dict(
        {"bands": list(arrays), "label": labels.tolist()}, features=datasets.Features(features)
    )


def sections(channels: int) -> dict[str, Any]:
    return {
        "name": f"bands-{channels}",
        "source": {"dataset": "memory", "range": [0, 10_000]},
        "distill": {
            "steps": 5,
            "clip": None,
            "optimizer": {"name": "adam", "lr": 0.01},
            "objective": {"name": "regression", "real_batch": 40, "ridge": 0.01},
            "canvas": {"name": "pixels", "ipc": 2, "init": "real"},
            "labels": "vectors",
            "networks": {"name": "pool", "members": 2, "age": 10, "networks": [NETWORK]},
        },
        "evaluate": {
            "network": NETWORK,
            "students": 1,
            "steps": 60,
            "optimizer": {"name": "adam", "lr": 0.01},
            "references": ["random_real", "class_mean"],
            "beyond": None,
        },
    }


@pytest.fixture(scope="module", params=[2, 5])
def finished(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, Outcome]:
    """A finished run on images of so many channels."""
    channels: int = request.param
    source = datasets.DatasetDict(train=bands(80, channels, 0), test=bands(40, channels, 1))
    runs = tmp_path_factory.mktemp("bands")
    return channels, run(recipe_from(sections(channels)), runs=runs, dataset=source, quiet=True)


def test_rows_are_floats_with_a_preview_and_students_learn_from_them(
    finished: tuple[int, Outcome], tmp_path: Path
) -> None:
    channels, outcome = finished
    assert [look.words for look in looks(outcome.folder) if not look.passed] == []
    rows = load_rows(outcome.folder, "default")
    assert rows.column_names == ["preview", "pixels", "label", "soft_label"]
    assert rows[0]["preview"].mode == "RGB" and rows[0]["preview"].size == (8, 8)
    stored = read_published(outcome.folder, "default", Shape(channels, 8, 8, 2))
    assert stored.images_NCHW.shape == (4, channels, 8, 8)
    preview = np.asarray(rows[0]["preview"])[..., 0]
    torch.testing.assert_close(stored.images_NCHW[0, 0] * 255, torch.tensor(preview).float())
    assert outcome.results[0]["accuracy"]["mean"] > 0.8
    page = tmp_path / "page.html"
    assert command("report", outcome.folder, "--runs", tmp_path, "--output", page).code == 0
    assert "4 of 4 examples of 8 x 8 px" in page.read_text(encoding="utf-8")
    answer = command("audit", outcome.folder, "--tiers", "T0", "--runs", tmp_path)
    assert answer.code == 2 and f"its images have {channels} channels" in answer.err


def test_the_lines_of_the_card_train_on_them(finished: tuple[int, Outcome]) -> None:
    _, outcome = finished
    card = (outcome.folder / "README.md").read_text(encoding="utf-8")
    program = card.partition("## Train on it")[2].partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec(program.replace("your-name/your-dataset", str(outcome.folder)), names)
    assert bool(torch.isfinite(names["loss"]))


def read(feature: Any, arrays: list[Any], **section: Any) -> torch.Tensor:  # noqa: ANN401
    rows = datasets.Dataset.from_dict(
        {"bands": arrays, "label": [0, 1] * (len(arrays) // 2)},
        features=datasets.Features({"bands": feature, "label": NAMES}),
    )
    source = open_source(
        Source(dataset="memory", **section), datasets.DatasetDict(train=rows, test=rows)
    )
    assert source.peek()[0].c == 4
    return source.read(draw).train.images_NCHW


def test_channels_are_the_shorter_one_of_the_outer_axes_and_values_are_scaled() -> None:
    array = np.arange(2 * 3 * 4).reshape(2, 3, 4).astype(np.float32)  # 4 channels last, of 5
    wide = np.repeat(np.repeat(array, 3, axis=0), 2, axis=1)
    feature = datasets.List(datasets.List(datasets.List(datasets.Value("float32"))))
    images_NCHW = read(feature, [wide.tolist()] * 2, range=[0.0, 23.0])
    assert images_NCHW.shape == (2, 4, 6, 6)
    assert images_NCHW[0, :, 0, 0].tolist() == [round(255 * value / 23) for value in range(4)]
    assert read(feature, [wide.tolist()] * 2, range=[0.0, 23.0], resolution=3).shape[2:] == (3, 3)


@pytest.mark.parametrize(
    ("section", "arrays", "words"),
    [
        ({}, np.zeros((2, 4, 8, 8)), "source.range: missing, .* holds arrays of float32"),
        ({"range": [0, 1], "channels": "gray"}, np.zeros((2, 4, 8, 8)), "is about pictures"),
        ({"range": [0, 1]}, np.full((2, 4, 8, 8), np.nan), "values that are not finite"),
    ],
)
def test_arrays_that_are_no_images_are_refused(
    section: dict[str, Any], arrays: np.ndarray, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        read(datasets.Array3D((4, 8, 8), "float32"), list(arrays), **section)
