"""A run does what is not done yet, and what it publishes can be made again from what it says."""

import json
from pathlib import Path
from unittest import mock

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from support.toy_runs import hashes, times, toy_recipe

from distill_datasets.data.source import open_source
from distill_datasets.errors import ArtifactError, DistillError, RecipeError
from distill_datasets.export.folder import read_manifest, verify
from distill_datasets.files.artifacts import sha256_of
from distill_datasets.pipeline.run import Outcome, run
from distill_datasets.recipe import load_recipe
from distill_datasets.types import Shape

QUICK = ["distill.steps=2", "evaluate.students=1", "evaluate.steps=2", "evaluate.exact=false"]


def quick(runs: Path, *overrides: str, output: Path | None = None) -> Outcome:
    """Run the toy recipe, shortened."""
    return run(toy_recipe(*QUICK, *overrides), runs=runs, output=output, quiet=True)


def folders(runs: Path, stage: str) -> list[Path]:
    return sorted([*runs.glob(f"{stage}-*"), *runs.glob(f"toy/{stage}-*")])


def test_an_outcome_says_where_the_dataset_is_and_what_it_scored(tmp_path: Path) -> None:
    outcome = quick(tmp_path / "runs")
    assert outcome.folder.parent == tmp_path / "runs" / "toy" and verify(outcome.folder) == []
    (row,) = outcome.results
    assert row["from"] == "default" and 0 <= row["accuracy"]["mean"] <= 1
    assert outcome.manifest["recipe_sha256"] == toy_recipe(*QUICK).sha256()
    assert [path.name for path in sorted(outcome.previews.iterdir())] == [
        "step-0000001.png",
        "step-0000002.png",
    ]


def test_a_second_run_does_nothing_and_returns_the_same(tmp_path: Path) -> None:
    first = quick(tmp_path)
    before = times(tmp_path)
    with (
        mock.patch("distill_datasets.data.source.SourceDataset.read", side_effect=AssertionError),
        mock.patch("distill_datasets.stages.distill.OuterLoop.run", side_effect=AssertionError),
        mock.patch(
            "distill_datasets.evaluation.evaluate.train_student", side_effect=AssertionError
        ),
    ):
        assert quick(tmp_path) == first
    assert times(tmp_path) == before


def test_other_students_are_trained_on_what_was_distilled_already(tmp_path: Path) -> None:
    quick(tmp_path)
    before = times(tmp_path)
    with mock.patch("distill_datasets.stages.distill.OuterLoop.run", side_effect=AssertionError):
        outcome = quick(tmp_path, "evaluate.steps=3")
    assert outcome.results[0]["steps"] == 3
    assert before.items() <= times(tmp_path).items()  # nothing of the first run has changed


@pytest.mark.parametrize(
    ("override", "sources", "distilled"),
    [
        ("publish.title=Toy", 1, 1),
        ("distill.previews=0", 1, 1),
        ("distill.checkpoint_seconds=60", 1, 1),
        ("distill.lanes=1", 1, 2),
        ("distill.labels.floor=0.05", 1, 2),
        ("source.normalization=zca", 1, 2),
        ("source.limit=199", 2, 2),
        ("seed=1", 2, 2),
    ],
)
def test_what_a_value_decides_is_made_again_in_another_folder_and_nothing_else(
    tmp_path: Path, override: str, sources: int, distilled: int
) -> None:
    one = quick(tmp_path)
    before = times(tmp_path)
    other = quick(tmp_path, override)
    assert other.folder != one.folder
    assert len(folders(tmp_path, "source")) == sources
    assert len(folders(tmp_path, "distill")) == distilled
    kept = {path: when for path, when in times(tmp_path).items() if path in before}
    added = {path for path in times(tmp_path) if path not in before}
    assert kept == before and added


def test_recipes_of_different_names_share_the_source(tmp_path: Path) -> None:
    quick(tmp_path)
    with mock.patch("distill_datasets.data.source.SourceDataset.read", side_effect=AssertionError):
        quick(tmp_path, "name=other")
    assert len(folders(tmp_path, "source")) == 1


def test_the_published_recipe_makes_the_same_dataset_again(tmp_path: Path) -> None:
    first = quick(tmp_path / "one", output=tmp_path / "first")
    again = load_recipe(first.folder / "recipe.yaml")
    run(again, runs=tmp_path / "two", output=tmp_path / "second", quiet=True)
    assert hashes(tmp_path / "second") == hashes(tmp_path / "first")


def test_another_seed_is_another_dataset(tmp_path: Path) -> None:
    folders = [quick(tmp_path, f"seed={seed}").folder for seed in (0, 1)]
    rows = [sha256_of(folder / "data" / "train-00000-of-00001.parquet") for folder in folders]
    assert rows[0] != rows[1]


def test_published_images_are_the_trained_ones_rounded(tmp_path: Path) -> None:
    outcome = quick(tmp_path)
    (folder,) = folders(tmp_path, "distill")
    last = sorted((folder / "previews").iterdir())[-1]
    with Image.open(last) as preview, Image.open(outcome.folder / "poster.png") as poster:
        assert np.array_equal(np.asarray(preview), np.asarray(poster))
    assert outcome.manifest["quantization"]["max_abs_error"] > 0


def test_separate_images_have_no_poster_and_whitened_ones_bring_their_matrix(
    tmp_path: Path,
) -> None:
    outcome = quick(
        tmp_path, "source.normalization=zca", "distill.canvas={name: pixels, ipc: 1, init: real}"
    )
    files = hashes(outcome.folder)
    assert "constants/zca.safetensors" in files
    assert not [name for name in files if name.startswith("poster/")]
    assert outcome.manifest["budget"]["pixels"] == 640 and verify(outcome.folder) == []


def test_a_stage_whose_file_was_moved_away_is_made_again(tmp_path: Path) -> None:
    first = quick(tmp_path)
    before = hashes(first.folder)
    for stage, file in (("distill", "state.safetensors"), ("source", "data.safetensors")):
        (folder,) = folders(tmp_path, stage)
        (folder / file).rename(tmp_path / f"{stage}.moved")
    assert quick(tmp_path) == first
    assert hashes(first.folder) == before
    for stage, file in (("distill", "state.safetensors"), ("source", "data.safetensors")):
        assert sha256_of(folders(tmp_path, stage)[0] / file) == sha256_of(
            tmp_path / f"{stage}.moved"
        )


@pytest.mark.parametrize(
    ("stage", "file"), [("distill", "state.safetensors"), ("source", "data.safetensors")]
)
def test_a_damaged_file_of_a_stage_is_named_kept_aside_and_made_anew(
    tmp_path: Path, stage: str, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = quick(tmp_path)
    before = hashes(first.folder)
    (folder,) = folders(tmp_path, stage)
    content = (folder / file).read_bytes()
    half = content[: len(content) // 2]
    (folder / file).write_bytes(half)
    first.folder.rename(tmp_path / "first")
    with caplog.at_level("WARNING", logger="distill_datasets"):
        assert hashes(quick(tmp_path).folder) == before
    assert (folder / f"{file}.damaged").read_bytes() == half
    assert (folder / file).read_bytes() == content
    assert file in caplog.text


def test_a_run_that_fails_keeps_what_it_had(tmp_path: Path) -> None:
    def fail(*_: object, **__: object) -> torch.nn.Module:
        raise DistillError("a student exploded")

    with (
        mock.patch("distill_datasets.evaluation.evaluate.train_student", fail),
        pytest.raises(DistillError, match="exploded"),
    ):
        quick(tmp_path, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with mock.patch("distill_datasets.stages.distill.OuterLoop.run", side_effect=AssertionError):
        quick(tmp_path, output=tmp_path / "out")
    assert verify(tmp_path / "out") == []


def test_a_run_leaves_the_settings_of_torch_as_they_were(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    quick(tmp_path)
    assert torch.get_num_threads() == 1
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_relative_output_and_an_empty_folder_are_fine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    outcome = run(toy_recipe(*QUICK), output="out", quiet=True)
    assert outcome.folder == Path("out") and verify(outcome.folder) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "runs"]


def pictures(seed: int) -> datasets.Dataset:
    """Sixty gray images of 8 px of three classes."""
    images_NHW = np.random.default_rng(seed).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    named = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])}
    )
    rows = {"image": [Image.fromarray(image) for image in images_NHW], "label": [0, 1, 2] * 20}
    return datasets.Dataset.from_dict(rows, features=named)


def test_an_output_that_was_made_from_other_images_is_not_taken_for_this_ones(
    tmp_path: Path,
) -> None:
    recipe, out = toy_recipe(*QUICK, "distill.objective.real_batch=20"), tmp_path / "out"

    def made_of(seed: int) -> Outcome:
        return run(recipe, runs=tmp_path, output=out, quiet=True, dataset=pictures(seed))

    first = made_of(0)
    assert made_of(0) == first
    with (
        mock.patch("distill_datasets.pipeline.run.load_source", side_effect=AssertionError),
        pytest.raises(ArtifactError, match=r"out: holds what this recipe made of 'in memory' when"),
    ):
        made_of(1)
    assert read_manifest(out) == first.manifest


def test_an_output_with_other_rows_of_the_same_recipe_is_not_told_as_the_result(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    quick(tmp_path, output=out)
    manifest = json.loads((out / "distill.json").read_text(encoding="utf-8"))
    (rows,) = (file for file in manifest["files"] if file["path"].startswith("data/"))
    # as another torch would have made them: a whole file, and other bytes
    path = out / rows["path"]
    pq.write_table(pq.read_table(path), path, compression="none")
    rows |= {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    (out / "distill.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"out: holds other rows, which an earlier run"):
        quick(tmp_path, output=out)


@pytest.mark.parametrize("option", ["--runs", "--output"])
def test_nothing_is_written_into_the_folder_of_the_source(tmp_path: Path, option: str) -> None:
    for name in "abc":
        (tmp_path / "source" / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "source" / name / "0.png")
    given = {"--runs": tmp_path / "runs", "--output": tmp_path / "out"}
    given[option] = tmp_path / "source" / "made"
    recipe = toy_recipe(f"source.dataset={tmp_path / 'source'}")
    with pytest.raises(RecipeError, match=rf"^{option}: {given[option]}.* lies in the source"):
        run(recipe, runs=given["--runs"], output=given["--output"], quiet=True)
    assert not given[option].exists()


def test_the_folder_one_stands_in_can_be_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(0).to_parquet(tmp_path / "source" / "train-00000-of-00001.parquet")
    monkeypatch.chdir(tmp_path / "source")
    assert open_source(toy_recipe("source.dataset=.").source).peek()[0] == Shape(1, 8, 8, 3)
