"""Regimes with a teacher: published views, and a teacher at training time, beside random images.

Shape suffixes: N images, C channels, H W pixels, K classes.
"""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.families import FAMILIES
from support.published import alone
from support.tiny import toy_real

from distill_datasets.data.source import open_source
from distill_datasets.evaluation.levels import Standard
from distill_datasets.evaluation.standard import run_standard
from distill_datasets.evaluation.taught import drawn_alike, pictures_of, views_at_training
from distill_datasets.export.folder import read_manifest
from distill_datasets.models.convnets import Mlp
from distill_datasets.pipeline.run import run
from distill_datasets.recipe import recipe_from
from distill_datasets.stages.source import load_source
from distill_datasets.training.examples import Stored
from distill_datasets.views.relabel import Relabel

REAL = toy_real()


def test_a_set_with_recorded_views_is_measured_in_every_regime_that_it_has(tmp_path: Path) -> None:
    recipe = recipe_from(FAMILIES["decoupled"], [])
    folder = run(recipe, runs=tmp_path / "runs", quiet=True).folder
    this = alone(tmp_path / "runs")
    real = load_source(open_source(recipe.source), this).real
    settings = Standard(
        network=Mlp(),
        networks=[],
        references=["random_real"],
        times=[1],
        robustness=False,
        teacher=True,
        students=2,
        steps=2,
    )
    found = run_standard(folder, real, this, settings)
    assert found["target"]["regimes"] == ["HL", "SL-R", "SL+KD"]
    rows = {row["key"]: row for row in found["rows"]}
    recorded = read_manifest(folder)["relabel"]["bytes"]
    assert rows["default/SL-R"]["bytes"]["labels"] == recorded
    assert rows["default/SL-R"]["bytes"]["teacher"] == 0
    assert rows["random_rows/SL-R"]["images"] == rows["default/SL-R"]["images"] == 10
    for key in ("default/SL+KD", "random_real/SL+KD", "random_rows/SL+KD"):
        assert rows[key]["bytes"]["teacher"] == found["teacher"]["bytes"] > 0
        # labels belong to the views that were labeled: nothing else moves them
        assert not any(trial["augmented"] for trial in rows[key]["trials"])
    assert found["best"]["SL-R"] in ("random_rows/SL-R", "random_real/HL")
    assert "with the recorded labels of a teacher" in found["statement"]
    assert any("SL-R" in why for why in found["missing"])


@pytest.mark.parametrize("seen", [True, False])
def test_examples_are_the_8_bit_images_that_they_were_made_of(seen: bool) -> None:
    rows_N = torch.arange(9)
    images_NCHW, labels_N = REAL.train.images_NCHW[rows_N], REAL.train.labels_N[rows_N]
    targets_NK, space = F.one_hot(labels_N, 3).float(), REAL.normalization.input_space
    shown_NCHW = REAL.select(rows_N).images_BCHW if seen else images_NCHW
    pictures = pictures_of(Stored(shown_NCHW, targets_NK, None if seen else space), REAL)
    assert torch.equal(pictures.images_NCHW, images_NCHW)
    assert torch.equal(pictures.labels_N, labels_N)


def test_views_drawn_alike_are_labeled_by_any_network() -> None:
    relabel = Relabel(epochs=7, batch=6, mix="mixup", batch_norm="batch", store="features")
    alike = drawn_alike(relabel)
    assert (alike.epochs, alike.batch, alike.mix) == (7, 6, "mixup")
    assert (alike.batch_norm, alike.store) == ("eval", "logits")
    assert views_at_training(28, 64).pad == 3 and not views_at_training(28, 64).flip
