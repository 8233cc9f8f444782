"""Sets made of finished ones: what stays, what is said, and what is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.outside_sets import save_fkd, save_folders
from support.published import digits, publish, some_real
from support.sample_content import CLASS_NAMES, pixels_sample, sample
from support.toy_runs import CONVNET, command, hashes
from torch import Tensor

from distill_datasets.errors import ArtifactError, RecipeError
from distill_datasets.export.agreement import problems
from distill_datasets.export.content import Content
from distill_datasets.export.folder import read_manifest, verify, write_dataset
from distill_datasets.export.reading import load_rows, published_records
from distill_datasets.files.yaml_text import to_yaml
from distill_datasets.layouts.importing import import_set
from distill_datasets.layouts.merging import merge
from distill_datasets.layouts.shrinking import shrink

GOOD = 4
STUDENT = {
    "network": {"name": "convnet", "depth": 1, "width": 8},
    "batch": 16,
    "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.0},
    "steps": 100,
}
SMALL: dict[str, Any] = {
    "name": "first-five",
    "source": {
        "dataset": "embedded:uci-digits",
        "limit": 200,
        "classes": ["4", "3", "2", "1", "0"],
    },
    "distill": {
        "steps": 2,
        "clip": None,
        "optimizer": {"name": "sgd", "lr": 1.0},
        "objective": {"name": "distribution", "real_batch": 20},
        "labels": "area",
        "networks": {"name": "fresh", "network": CONVNET},
        "canvas": {"name": "pixels", "ipc": 2},
    },
    "evaluate": {"network": CONVNET, "students": 1, "steps": 2, "beyond": None, "references": []},
}


def pixels(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(row["image"]) for row in load_rows(folder, "default")])


def labels(folder: Path) -> np.ndarray:
    return np.asarray(load_rows(folder, "default")["soft_label"], dtype=np.float32)


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four digits of every class, and before them one picture that has the labels of all ten."""
    folder = tmp_path_factory.mktemp("noisy")
    real = digits(folder)
    images_NCHW, labels_N = some_real(real, GOOD)
    noise_NCHW = torch.randint(
        0, 256, (1, 1, 8, 8), generator=torch.Generator().manual_seed(5), dtype=torch.uint8
    ).repeat(10, 1, 1, 1)
    classes_N = torch.cat([torch.arange(10), labels_N])
    targets_NK = torch.nn.functional.one_hot(classes_N, 10).byte()
    return publish(
        folder / "set", real, torch.cat([noise_NCHW, images_NCHW]), targets_NK, student=STUDENT
    )


def test_shrink_keeps_the_rows_that_networks_learn_most_easily(noisy: Path, tmp_path: Path) -> None:
    manifest = shrink(noisy, str(noisy), GOOD, tmp_path / "out", networks=1, passes=15, shown=False)

    assert manifest["derived"]["of"][0]["rows"] == list(range(10, 50))
    assert np.array_equal(pixels(tmp_path / "out"), pixels(noisy)[10:])
    assert problems(tmp_path / "out") == []
    # no path of this machine is published
    assert str(noisy.parent) not in (tmp_path / "out" / "distill.json").read_text()


def test_a_smaller_set_is_part_of_a_larger_one(noisy: Path, tmp_path: Path) -> None:
    chosen = [
        shrink(noisy, "noisy", ipc, tmp_path / f"{ipc}", networks=1, passes=2, shown=False)
        for ipc in (1, 3)
    ]
    less, more = (set(manifest["derived"]["of"][0]["rows"]) for manifest in chosen)
    assert less < more and (len(less), len(more)) == (10, 30)


def test_shrink_refuses_what_would_be_no_smaller_set(noisy: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"got 5, expected 1 to 4: .* has 5 rows of a class"):
        shrink(noisy, "noisy", 5, tmp_path / "out")
    write_dataset(tmp_path / "poster", sample(), None)
    with pytest.raises(ArtifactError, match=r"made from 168 pixels, and \d of them alone have \d"):
        shrink(tmp_path / "poster", "poster", 2, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_labels_of_views_stay_where_both_of_their_images_do(tmp_path: Path) -> None:
    theirs = save_folders(tmp_path / "syn")
    import_set(str(theirs), tmp_path / "set", labels=save_fkd(tmp_path / "labels", epochs=12))

    manifest = shrink(
        tmp_path / "set", "set", 1, tmp_path / "out", networks=1, passes=2, shown=False
    )

    kept = manifest["derived"]["of"][0]["rows"]
    found = published_records(tmp_path / "out", len(kept))
    before = published_records(tmp_path / "set", 20).rows(0, 240)[1]
    logits = {values.tobytes() for values in before["logits"].numpy()}
    assert found.epochs == manifest["relabel"]["facts"]["epochs"] > 0
    for epoch in range(found.epochs):
        views, columns = found.epoch(epoch)
        assert sorted(views.image_B.tolist()) == list(range(len(kept)))
        assert int(views.partner_B.max()) < len(kept)
        assert {values.tobytes() for values in columns["logits"].numpy()} <= logits
    assert problems(tmp_path / "out") == []


def named(names: list[str], seed: int, **changes: Any) -> Content:  # noqa: ANN401
    """Two trained images of every class under other names."""
    images_NCHW = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    content = dataclasses.replace(pixels_sample(), class_names=names, **changes)
    space: Tensor = (images_NCHW - 0.5) / 0.2
    return dataclasses.replace(
        content,
        images_NCHW=(images_NCHW * 255).round().byte(),
        exact_NCHW=space,
        originals=list(images_NCHW),
    )


def test_merge_joins_classes_by_name_and_leaves_every_row_as_it_was(tmp_path: Path) -> None:
    other = {"mean": [0.5] * 3, "std": [0.2] * 3}
    write_dataset(tmp_path / "a", named(["cat", "dog", "eel"], 1, **other), None)
    provenance = pixels_sample().provenance | {"dataset": "zoo", "license": None}
    changes = {"provenance": provenance, "name": "b", "mean": [0.4] * 3, "std": [0.25] * 3}
    write_dataset(tmp_path / "b", named(["Dog", "fox", "cat"], 2, **changes), None)

    manifest = merge([tmp_path / "a", tmp_path / "b"], ["a", "b"], tmp_path / "out")

    assert manifest["classes"] == ["cat", "dog", "eel", "fox"]
    whole = np.concatenate([pixels(tmp_path / "a"), pixels(tmp_path / "b")])
    assert np.array_equal(pixels(tmp_path / "out"), whole)
    assert labels(tmp_path / "out").argmax(axis=1).tolist() == [0, 0, 1, 1, 2, 2, 1, 1, 3, 3, 0, 0]
    exact = [np.stack(load_rows(tmp_path / each, "exact")["pixel_values"]) for each in "ab"]
    found = np.stack(load_rows(tmp_path / "out", "exact")["pixel_values"])
    assert np.array_equal(found[:6], exact[0])
    # values of the second set, seen through the mean and deviation of the first
    assert np.allclose(found[6:], (exact[1] * 0.25 + 0.4 - 0.5) / 0.2, atol=1e-5)
    notes = " ".join(manifest["derived"]["notes"])
    assert "joined by name: cat, dog" in notes and "for the same: dog" in notes
    assert "through the mean and deviation of quickstart; those of b" in notes
    assert manifest["source"]["dataset"] == "uoft-cs/cifar10 + zoo"
    assert manifest["source"]["license"] == "mit, unknown"
    assert verify(tmp_path / "out") == problems(tmp_path / "out") == []


def test_merged_posters_stay_posters_and_the_budget_is_theirs(tmp_path: Path) -> None:
    write_dataset(tmp_path / "a", sample(), None)
    poster_CHW = sample().originals[0].flip(1)
    crops_NCHW = torch.stack(
        [poster_CHW[:, y : y + 8, x : x + 8] for y, x in sample().geometry["corners_yx"]]
    )
    flipped = sample(
        class_names=["other", *CLASS_NAMES[1:]],
        originals=[poster_CHW],
        images_NCHW=(crops_NCHW * 255).round().byte(),
    )
    write_dataset(tmp_path / "b", flipped, None)

    manifest = merge([tmp_path / "a", tmp_path / "b"], ["a", "b"], tmp_path / "out")

    rows = load_rows(tmp_path / "out", "poster")
    assert len(rows) == 2 and rows[1]["poster"] == load_rows(tmp_path / "b", "poster")[0]["poster"]
    # three label cells of each, of four classes now
    assert (manifest["budget"]["pixels"], manifest["budget"]["label_values"]) == (2 * 168, 24)


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (sample(channels=1), r"images are 3 x 8 x 8|images of 1 x 8 x 8"),
        (sample(name="again"), "has the same rows as a"),
        (sample(constants={"whitening": torch.eye(3)}, normalization={"kind": "zca"}), "different"),
    ],
)
def test_sets_that_cannot_be_joined_are_refused(
    tmp_path: Path, second: Content, words: str
) -> None:
    write_dataset(tmp_path / "a", sample(), None)
    write_dataset(tmp_path / "b", second, None)
    with pytest.raises(ArtifactError, match=words):
        merge([tmp_path / "a", tmp_path / "b"], ["a", "b"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_extend_distills_the_new_classes_alone_and_the_set_is_measured_as_a_whole(
    tmp_path: Path,
) -> None:
    (tmp_path / "five.yaml").write_text(to_yaml(SMALL))
    where = ["--runs", tmp_path / "runs", "--quiet"]
    assert command("run", tmp_path / "five.yaml", "--output", tmp_path / "five", *where).code == 0
    before = hashes(tmp_path / "five")

    answer = command(
        "extend",
        *(tmp_path / "five", "--source", "embedded:uci-digits", "--output", tmp_path / "ten"),
        *("distill.steps=1", "--json", *where),
    )

    assert answer.code == 0, answer.err
    manifest = json.loads(answer.out)["manifest"]
    assert manifest["classes"] == ["4", "3", "2", "1", "0", "5", "6", "7", "8", "9"]
    assert np.array_equal(pixels(tmp_path / "ten")[:10], pixels(tmp_path / "five"))
    assert np.array_equal(labels(tmp_path / "ten")[:10, :5], labels(tmp_path / "five"))
    assert hashes(tmp_path / "five") == before
    measured = command(
        "evaluate",
        *(tmp_path / "ten", "--to", tmp_path / "measured", "--students", "1", "--steps", "1"),
        *("standard.references=[random_real]", "standard.robustness=false", "--quiet"),
        *("--runs", tmp_path / "runs", "standard.networks=[]", "standard.times=[1.0]"),
    )
    assert measured.code == 0, measured.err
    assert problems(tmp_path / "measured") == []
    assert read_manifest(tmp_path / "measured")["derived"] == manifest["derived"]
    refused = command(
        "extend",
        *(tmp_path / "ten", "--source", "embedded:uci-digits", "--output", tmp_path / "no"),
    )
    assert refused.code == 2 and "no recipe made it" in refused.err
    again = command("reproduce", tmp_path / "ten", "--runs", tmp_path / "runs")
    assert again.code == 2 and "made of finished sets" in again.err
