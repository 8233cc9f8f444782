"""Soft labels of views in the layout of FKD and SRe2L."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support.outside_sets import DIGITS, digits, save_fkd, save_folders
from support.toy_runs import command

from distill_datasets.errors import ArtifactError
from distill_datasets.evaluation.taught import recorded, views_of
from distill_datasets.export.reading import load_rows, published_records
from distill_datasets.layouts.importing import import_set
from distill_datasets.pipeline.judging import judging
from distill_datasets.runtime.draws import draws


def test_views_and_logits_become_the_configuration_relabel(tmp_path: Path) -> None:
    theirs, labels = save_folders(tmp_path / "syn"), save_fkd(tmp_path / "labels")

    manifest = import_set(str(theirs), tmp_path / "set", labels=labels)

    rows = load_rows(tmp_path / "set", "relabel").with_format("numpy")[:]
    assert len(rows["image"]) == 40 and manifest["relabel"]["labels"] == 40
    # every image once in an epoch, with its own class in its label
    for epoch in (0, 1):
        assert sorted(rows["image"][rows["epoch"] == epoch].tolist()) == list(range(20))
    assert rows["logits"].argmax(axis=1).tolist() == digits()[1][rows["image"]].tolist()
    assert np.allclose(rows["crop"][0], [0, 0.25, 0.5, 0.75])
    assert rows["box"][0].tolist() == [1, 2, 3, 4]
    first = torch.load(labels / "epoch_0" / "batch_0.tar", weights_only=False)
    assert rows["partner"][:8].tolist() == rows["image"][:8][first[2]].tolist()
    assert rows["flip"][:8].tolist() == first[1].tolist()
    assert published_records(tmp_path / "set", 20).epochs == 2


def test_students_see_the_recorded_views(tmp_path: Path) -> None:
    theirs, labels = save_folders(tmp_path / "syn"), save_fkd(tmp_path / "labels")
    arguments = ("import", theirs, "--to", tmp_path / "set", "--labels", labels)
    assert command(*arguments, "--source", DIGITS).code == 0
    assert command("verify", tmp_path / "set", "--runs", tmp_path / "runs").code == 0

    with judging(str(tmp_path / "set"), tmp_path / "runs", quiet=True) as judged:
        relabel = views_of(judged.folder)
        assert relabel is not None and (relabel.epochs, relabel.mix) == (2, "cutmix")
        examples = recorded(judged.folder, relabel, judged.real)(draws(0))
        examples.order(torch.Generator(), 20, 0)
        batch = examples(torch.arange(20))
    rows = load_rows(tmp_path / "set", "relabel").with_format("numpy")[:20]
    assert batch.images_BCHW.shape == (20, 1, 8, 8)
    assert torch.allclose(batch.targets_BK, torch.tensor(rows["logits"]).float().softmax(dim=1))


def test_labels_of_other_images_are_refused(tmp_path: Path) -> None:
    theirs = save_folders(tmp_path / "syn")

    with pytest.raises(ArtifactError, match="labels of 18 views in an epoch for 20 images"):
        import_set(str(theirs), tmp_path / "set", labels=save_fkd(tmp_path / "few", images=18))
    turned = save_fkd(tmp_path / "turned")
    for path in turned.rglob("*.tar"):
        batch = torch.load(path, weights_only=False)
        batch[5] = batch[5].roll(5, dims=1)
        torch.save(batch, path)
    with pytest.raises(ArtifactError, match="as often as by chance"):
        import_set(str(theirs), tmp_path / "set", labels=turned)


def test_a_missing_batch_is_named(tmp_path: Path) -> None:
    theirs, labels = save_folders(tmp_path / "syn"), save_fkd(tmp_path / "labels")
    (labels / "epoch_1" / "batch_1.tar").unlink()

    with pytest.raises(ArtifactError, match=r"epoch_1: has the batches \[0, 2\]"):
        import_set(str(theirs), tmp_path / "set", labels=labels)
    shutil.rmtree(labels / "epoch_0")
    with pytest.raises(ArtifactError, match="no folder epoch_0"):
        import_set(str(theirs), tmp_path / "set", labels=labels)
