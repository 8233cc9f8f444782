"""TARGET: a published folder, a run, or a set to import; and which real images belong to it."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from support.outside_sets import DIGITS, MEAN, STD, save_dm, save_folders
from support.sample_content import RESULTS, sample

from distill_datasets.errors import ArtifactError, DataError, RecipeError
from distill_datasets.export.folder import write_dataset
from distill_datasets.layouts.importing import Told, import_set
from distill_datasets.layouts.real_images import real_images
from distill_datasets.layouts.target import resolve_target
from distill_datasets.layouts.values import MeanStd

SPACE = MeanStd([MEAN], [STD])


@pytest.fixture
def imported(tmp_path: Path) -> Path:
    told = Told(source=DIGITS)
    import_set(str(save_dm(tmp_path)), tmp_path / "imported", told=told, space=SPACE)
    return tmp_path / "imported"


def test_a_published_folder_is_itself(imported: Path, tmp_path: Path) -> None:
    assert resolve_target(str(imported), tmp_path / "runs") == imported


def test_a_run_means_its_one_finished_dataset(tmp_path: Path) -> None:
    finished = tmp_path / "runs" / "toy" / "dataset-0123"
    write_dataset(finished, sample(), RESULTS)

    assert resolve_target("toy", tmp_path / "runs") == finished
    assert resolve_target(str(finished.parent), tmp_path / "elsewhere") == finished


def test_several_finished_datasets_are_listed_with_their_accuracy(tmp_path: Path) -> None:
    for name in ("dataset-0123", "dataset-4567"):
        write_dataset(tmp_path / "toy" / name, sample(), RESULTS)

    with pytest.raises(ArtifactError, match=r"2 finished datasets(.|\n)*dataset-4567.*87\.5 %"):
        resolve_target(str(tmp_path / "toy"), tmp_path / "runs")


def test_an_unfinished_run_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "runs" / "toy" / "distill-0123").mkdir(parents=True)

    with pytest.raises(ArtifactError, match="run its recipe again"):
        resolve_target("toy", tmp_path / "runs")


def test_a_foreign_folder_is_imported_once(tmp_path: Path) -> None:
    folder = save_folders(tmp_path / "syn")

    first = resolve_target(str(folder), tmp_path / "runs")
    before = (first / "distill.json").stat().st_mtime_ns
    assert resolve_target(str(folder), tmp_path / "runs") == first
    assert (first / "distill.json").stat().st_mtime_ns == before
    assert first.parent == tmp_path / "runs" / "imports"


def test_a_changed_foreign_folder_is_imported_anew(tmp_path: Path) -> None:
    folder = save_folders(tmp_path / "syn")
    first = resolve_target(str(folder), tmp_path / "runs")
    shutil.rmtree(folder / "new009")

    assert resolve_target(str(folder), tmp_path / "runs") != first


def test_floats_of_unknown_space_are_to_be_imported_by_hand(tmp_path: Path) -> None:
    with pytest.raises(
        ArtifactError, match=r"First: distill-datasets import .* with these options"
    ):
        resolve_target(str(save_dm(tmp_path)), tmp_path / "runs")


def test_what_is_nowhere_names_the_runs_that_are_there(tmp_path: Path) -> None:
    write_dataset(tmp_path / "runs" / "toy" / "dataset-0123", sample(), RESULTS)

    with pytest.raises(
        ArtifactError, match=r"no such file or folder(.|\n)*finished runs there: toy"
    ):
        resolve_target("tox", tmp_path / "runs")


def test_the_real_images_of_an_import_have_its_size_and_normalization(imported: Path) -> None:
    source = real_images(imported)

    shape, names = source.peek()
    assert (shape.c, shape.h, shape.w) == (1, 8, 8)
    assert names == [str(label) for label in range(10)]
    assert (source.section.mean, source.section.std) == ([MEAN], [STD])


def test_classes_with_names_are_matched_by_name(tmp_path: Path) -> None:
    names = [str(label) for label in reversed(range(10))]
    told = Told(source=DIGITS, classes=names)
    folder = tmp_path / "out"
    torch.save({"data": [[torch.rand(10, 1, 8, 8), torch.arange(10)]]}, tmp_path / "x.pt")
    import_set(str(tmp_path / "x.pt"), folder, told=told)

    assert real_images(folder).peek()[1] == names


def test_numbered_folders_are_taken_in_the_order_of_the_source(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import_set(str(save_folders(tmp_path / "syn")), tmp_path / "out", told=Told(source=DIGITS))

    with caplog.at_level(logging.WARNING, "distill_datasets"):
        assert real_images(tmp_path / "out").peek()[1] == [str(label) for label in range(10)]
    assert "taken in the order of the source's" in caplog.text


def test_classes_that_cannot_be_told_are_refused(tmp_path: Path) -> None:
    told = Told(source=DIGITS, classes=[f"letter {letter}" for letter in "abcdefghij"])
    import_set(str(save_dm(tmp_path)), tmp_path / "out", told=told, space=SPACE)

    with pytest.raises(DataError, match="which is which cannot be told"):
        real_images(tmp_path / "out")
    given = ["source.classes=[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]"]
    assert real_images(tmp_path / "out", overrides=given).peek()[0].k == 10


def test_an_unknown_source_is_asked_for(tmp_path: Path) -> None:
    import_set(str(save_dm(tmp_path)), tmp_path / "out", space=SPACE)

    with pytest.raises(DataError, match="--source with a Hub id or a path"):
        real_images(tmp_path / "out")
    assert real_images(tmp_path / "out", DIGITS).peek()[0].k == 10


def test_a_local_source_that_moved_is_asked_for(imported: Path) -> None:
    manifest = json.loads((imported / "distill.json").read_text())
    manifest["source"]["dataset"] = "photos"
    (imported / "distill.json").write_text(json.dumps(manifest))

    with pytest.raises(DataError, match="'photos' lay on the machine that made it"):
        real_images(imported)


def test_a_source_of_another_shape_is_refused(imported: Path, tmp_path: Path) -> None:
    save_folders(tmp_path / "photos", "{:05d}/class{:05d}_id{:05d}.jpg")
    shutil.rmtree(tmp_path / "photos" / "00009")

    with pytest.raises(DataError, match="which is which cannot be told"):
        real_images(imported, str(tmp_path / "photos"))
    with pytest.raises(DataError, match="8 x 8 in 10 classes, those of the source 1 x 16 x 16"):
        real_images(imported, DIGITS, ["source.resolution=16"])


def test_a_key_that_is_none_of_the_source_is_refused(imported: Path) -> None:
    with pytest.raises(RecipeError, match=r"source\.resolutio: no such key; did you mean"):
        real_images(imported, overrides=["source.resolutio=8"])
    with pytest.raises(RecipeError, match=r"expected source\.key=value"):
        real_images(imported, overrides=["distill.steps=8"])


def test_whitened_values_are_not_measured(tmp_path: Path) -> None:
    torch.save({"data": [[torch.randn(10, 1, 8, 8), torch.arange(10)]]}, tmp_path / "x.pt")
    import_set(str(tmp_path / "x.pt"), tmp_path / "out", space=MeanStd([0.5], []))

    with pytest.raises(ArtifactError, match="whitened by a matrix"):
        real_images(tmp_path / "out", DIGITS)
