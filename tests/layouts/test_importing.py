"""Sets of others become published folders: in their exact layouts, or with an error that helps."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.outside_sets import (
    MEAN,
    STD,
    digits,
    normalized,
    save_datm,
    save_dm,
    save_folders,
    save_mtt,
    save_rfad,
)

from distill_datasets.errors import ArtifactError, DistillError, RecipeError
from distill_datasets.export.agreement import problems
from distill_datasets.export.publish import publish
from distill_datasets.export.reading import load_rows
from distill_datasets.layouts.importing import Told, import_set, read_names
from distill_datasets.layouts.values import LIKE, MeanStd, mean_std

SPACE = MeanStd([MEAN], [STD])


def rows_of(folder: Path, config: str = "default") -> dict[str, Any]:
    rows: dict[str, Any] = load_rows(folder, config).with_format("numpy")[:]
    return rows


def test_dm_is_read_with_its_first_experiment_and_its_authors_accuracy(tmp_path: Path) -> None:
    manifest = import_set(str(save_dm(tmp_path)), tmp_path / "out", space=SPACE)

    rows, (images_NCHW, labels_N) = rows_of(tmp_path / "out"), digits()
    assert np.array_equal(rows["image"], images_NCHW[:, 0].numpy())
    assert rows["label"].tolist() == labels_N.tolist()
    assert problems(tmp_path / "out") == []
    assert (manifest["method"], manifest["imported"]["layout"]) == ("DM", "dc")
    assert manifest["imported"]["facts"]["accuracy_by_authors"] == {"ConvNet": 0.6}
    assert "the authors' students" in manifest["imported"]["unknown"]


def test_floats_are_kept_beside_their_8_bits(tmp_path: Path) -> None:
    import_set(str(save_dm(tmp_path)), tmp_path / "out", space=SPACE, experiment=1)

    exact = rows_of(tmp_path / "out", "exact")["pixel_values"].reshape(-1, 1, 8, 8)
    moved_NCHW = normalized(digits()[0]) + 0.1
    assert np.allclose(exact, moved_NCHW.numpy())
    shown = rows_of(tmp_path / "out")["image"] / 255
    assert np.abs(shown - (moved_NCHW * STD + MEAN).clamp(0, 1)[:, 0].numpy()).max() <= 0.5 / 255


def test_mtt_is_read_from_the_folder_or_the_file_of_an_iteration(tmp_path: Path) -> None:
    folder = save_mtt(tmp_path)
    for name in ("images", "labels"):
        os.link(folder / f"{name}_best.pt", folder / f"{name}_500.pt")

    best = import_set(str(folder), tmp_path / "best", space=SPACE)
    other = import_set(str(folder / "images_500.pt"), tmp_path / "500", space=SPACE)

    assert best["imported"]["facts"] == {"iteration": "best"}
    assert other["imported"]["facts"] == {"iteration": "500"}
    assert np.array_equal(rows_of(tmp_path / "best")["image"], rows_of(tmp_path / "500")["image"])


def test_labels_of_datm_are_logits_and_its_step_size_is_kept(tmp_path: Path) -> None:
    manifest = import_set(str(save_datm(tmp_path)), tmp_path / "out", space=SPACE)

    share = np.exp(5) / (np.exp(5) + 9)
    soft = rows_of(tmp_path / "out")["soft_label"]
    assert soft.max(axis=1) == pytest.approx(share, abs=1e-5)
    assert manifest["step_sizes"] == pytest.approx([0.02])
    assert any("softmax" in note for note in manifest["imported"]["notes"])


def test_targets_of_rfad_become_classes_again(tmp_path: Path) -> None:
    manifest = import_set(str(save_rfad(tmp_path)), tmp_path / "out", space=SPACE)

    soft = rows_of(tmp_path / "out")["soft_label"]
    assert soft.argmax(axis=1).tolist() == digits()[1].tolist()
    assert soft.max(axis=1) == pytest.approx(1)
    assert (manifest["method"], manifest["imported"]["facts"]["k"]) == ("RFAD", 3.5)


def test_learned_targets_of_rfad_are_scaled_as_its_loss_does(tmp_path: Path) -> None:
    images_NCHW, labels_N = digits()
    targets_NK = torch.nn.functional.one_hot(labels_N, 10) - 0.1 + 0.02 * torch.arange(10)
    path = tmp_path / "1000.npz"
    np.savez(path, images=normalized(images_NCHW), labels=targets_NK, k=np.log(2.0), jit=0.005)

    import_set(str(path), tmp_path / "out", space=SPACE)

    expected_NK = (2 * targets_NK).softmax(dim=1)
    assert np.allclose(rows_of(tmp_path / "out")["soft_label"], expected_NK, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["new{:03d}/class{:03d}_id{:03d}.jpg", "{:05d}/class{:05d}_id{:05d}.jpg"]
)
def test_folders_of_sre2l_and_rded_are_read_class_by_class(tmp_path: Path, name: str) -> None:
    manifest = import_set(str(save_folders(tmp_path / "syn", name)), tmp_path / "out")

    rows = rows_of(tmp_path / "out")
    assert rows["label"].tolist() == digits()[1].tolist()
    assert np.abs(rows["image"].astype(int) - digits()[0][:, 0].numpy()).mean() < 12  # JPEG
    assert "exact" not in manifest["configs"]
    assert "the names of the classes" in manifest["imported"]["unknown"]


def test_names_of_classes_stand_in_the_order_of_the_labels(tmp_path: Path) -> None:
    names = [f"digit {label}" for label in range(10)]
    (tmp_path / "names.txt").write_text("\n".join(names))

    told = Told(classes=read_names(str(tmp_path / "names.txt")), license="mit", paper="arXiv:1.2")
    manifest = import_set(str(save_dm(tmp_path)), tmp_path / "out", told=told, space=SPACE)

    assert manifest["classes"] == names
    assert "the license" not in manifest["imported"]["unknown"]
    assert "Others made this dataset" in (tmp_path / "out" / "README.md").read_text()


def test_a_table_with_soft_labels_is_read(tmp_path: Path) -> None:
    import_set(str(save_datm(tmp_path)), tmp_path / "first", space=SPACE)
    table = tmp_path / "first" / "data" / "train-00000-of-00001.parquet"

    manifest = import_set(str(table), tmp_path / "second")

    first, second = rows_of(tmp_path / "first"), rows_of(tmp_path / "second")
    assert np.allclose(first["soft_label"], second["soft_label"], atol=1e-6)
    assert np.array_equal(first["image"], second["image"])
    assert manifest["imported"]["layout"] == "parquet"


def test_an_import_is_published_only_after_it_was_measured(tmp_path: Path) -> None:
    import_set(str(save_dm(tmp_path)), tmp_path / "out", space=SPACE)

    with pytest.raises(ArtifactError, match="only evaluated datasets are published"):
        publish(tmp_path / "out", "somebody/something", token="token")


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")

    with pytest.raises(ArtifactError, match="nothing in it will be overwritten"):
        import_set(str(save_dm(tmp_path)), tmp_path / "out", space=SPACE)

    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


class RunsCode:
    """A pickled object whose reading would make a folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("made-by-a-pickle",)


def test_a_pickled_object_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"data": [RunsCode()]}, tmp_path / "res_DM_x.pt")

    with pytest.raises(ArtifactError, match="without running code"):
        import_set("res_DM_x.pt", tmp_path / "out")

    assert not (tmp_path / "made-by-a-pickle").exists()


def dm(images: object, labels: object) -> dict[str, Any]:
    return {"data": [[images, labels]]}


GRAY, LABELS = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 0, 1])
NAN = torch.where(torch.arange(4)[:, None, None, None] == 2, torch.nan, GRAY)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (dm(GRAY[:, 0], LABELS), r"shape \(4, 8, 8\), expected \(images, channels"),
        (dm(GRAY.repeat(1, 2, 1, 1), LABELS), "with 1 or 3 channels"),
        (dm(NAN, LABELS), "1 of 4 images hold NaN"),
        (dm(GRAY, LABELS[:3]), "3 labels for 4 images"),
        (dm(GRAY, LABELS - 1), "the label -1 is none of the"),
        (dm(GRAY, LABELS + 0.5), "are no classes, expected whole numbers"),
        (dm(GRAY, torch.zeros(4, 1)), "labels of 1 classes"),
        (dm(GRAY, torch.full((4, 2), torch.nan)), "some labels are NaN"),
        (dm("images", LABELS), "the images are a str"),
        ({"data": []}, r"dictionary with the keys \['data'\], expected"),
        (GRAY, r"holds a tensor of the shape \(4, 1, 8, 8\), expected a dictionary"),
        (dm(10 * GRAY - 5, LABELS), "were normalized, and the files do not say how"),
    ],
)
def test_content_that_cannot_be_trained_on_is_refused(
    tmp_path: Path, content: object, words: str
) -> None:
    torch.save(content, tmp_path / "set.pt")

    with pytest.raises(ArtifactError, match=words):
        import_set(str(tmp_path / "set.pt"), tmp_path / "out")


def test_a_label_beyond_the_named_classes_is_refused(tmp_path: Path) -> None:
    torch.save(dm(GRAY, LABELS * 2), tmp_path / "set.pt")

    with pytest.raises(ArtifactError, match="the label 2 is none of the 2 classes"):
        import_set(str(tmp_path / "set.pt"), tmp_path / "out", told=Told(classes=["a", "b"]))


def test_a_wrong_normalization_is_found_by_its_pixels(tmp_path: Path) -> None:
    torch.save(dm(5 * torch.randn(4, 3, 8, 8), LABELS), tmp_path / "set.pt")

    with pytest.raises(ArtifactError, match="% lie beyond"):
        import_set(str(tmp_path / "set.pt"), tmp_path / "out", space=LIKE["cifar10"])


def test_a_normalization_of_other_channels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="of 3 channels for images of 1"):
        import_set(str(save_dm(tmp_path)), tmp_path / "out", space=LIKE["cifar10"])


def test_images_known_to_be_whitened_are_not_taken_for_normalized_ones(tmp_path: Path) -> None:
    path = tmp_path / "best.npz"
    np.savez(path, images=np.random.randn(2, 3, 8, 8), labels=np.eye(2) - 0.5, k=1.0, jit=0.1)

    with pytest.raises(ArtifactError, match="whitens color images"):
        import_set(str(path), tmp_path / "out", space=LIKE["cifar10"])

    manifest = import_set(str(path), tmp_path / "out", space=mean_std("whitened", None, None))
    assert manifest["input"]["normalization"]["kind"] == "whitened"


def test_arrays_of_objects_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "best.npz"
    np.savez(path, images=np.array([RunsCode()], dtype=object), labels=np.zeros(1))

    with pytest.raises(ArtifactError, match="an array of Python objects"):
        import_set(str(path), tmp_path / "out")


def test_what_is_no_npz_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "best.npz").write_bytes(b"not an archive")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))

    with pytest.raises(ArtifactError, match=r"cannot be read as an \.npz"):
        import_set(str(tmp_path / "best.npz"), tmp_path / "out")
    with pytest.raises(ArtifactError, match="no array 'images' among x"):
        import_set(str(tmp_path / "other.npz"), tmp_path / "out")


def test_an_archive_is_to_be_unpacked(tmp_path: Path) -> None:
    (tmp_path / "set.zip").write_bytes(b"PK")

    with pytest.raises(ArtifactError, match="unpack it and import the folder"):
        import_set(str(tmp_path / "set.zip"), tmp_path / "out")


def test_images_without_their_labels_name_those_that_are_there(tmp_path: Path) -> None:
    save_mtt(tmp_path)
    (tmp_path / "labels_best.pt").rename(tmp_path / "labels_100.pt")

    with pytest.raises(ArtifactError, match=r"beside it lie: labels_100\.pt"):
        import_set(str(tmp_path), tmp_path / "out")


def test_a_published_folder_needs_no_import(tmp_path: Path) -> None:
    import_set(str(save_dm(tmp_path)), tmp_path / "out", space=SPACE)

    with pytest.raises(ArtifactError, match="in the published layout already"):
        import_set(str(tmp_path / "out"), tmp_path / "again")


def test_a_folder_of_none_of_the_layouts_is_told_which_there_are(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "notes.txt").write_text("nothing")

    with pytest.raises(ArtifactError, match=r"it holds notes\.txt(.|\n)*imagefolder: SRe2L"):
        import_set(str(tmp_path / "set"), tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("cifar", None, None), "did you mean 'cifar10'"),
        (("cifar10", [0.5], [0.5]), "one or the other"),
        ((None, [0.5], None), "a number of each for every channel"),
        ((None, [0.5], [0.0]), "std above 0"),
    ],
)
def test_a_normalization_that_cannot_be_is_refused(
    arguments: tuple[str | None, list[float] | None, list[float] | None], words: str
) -> None:
    with pytest.raises(RecipeError, match=words):
        mean_std(*arguments)


def test_a_file_name_that_is_nowhere_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(DistillError, match="no file or folder"):
        import_set(str(tmp_path / "nothing.pt"), tmp_path / "out")


def test_an_image_folder_with_a_damaged_file_names_it(tmp_path: Path) -> None:
    folder = save_folders(tmp_path / "syn")
    (folder / "new003" / "class003_id001.jpg").write_bytes(b"\xff\xd8\xff broken")

    with pytest.raises(ArtifactError, match=r"new003/class003_id001\.jpg"):
        import_set(str(folder), tmp_path / "out")


def test_the_manifest_names_what_was_read_by_its_hash(tmp_path: Path) -> None:
    import_set(str(save_dm(tmp_path)), tmp_path / "out", space=SPACE)

    (file,) = json.loads((tmp_path / "out" / "distill.json").read_text())["imported"]["files"]
    assert file["path"] == "res_DM_digits_ConvNet_2ipc.pt"
    assert len(file["sha256"]) == 64
