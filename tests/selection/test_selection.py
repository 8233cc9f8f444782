"""What is chosen, averaged or cut out of real images is what a hand computes on one-pixel images.

Shape suffixes: N rows, B a batch, K classes, M networks, C channels, H W pixels.
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from pydantic import ValidationError
from support.tiny import toy_real
from support.toy_runs import toy_recipe
from torch import Tensor

from distill_datasets.config import BUILT_IN, load
from distill_datasets.data.decoding import Split
from distill_datasets.data.normalization import Normalization
from distill_datasets.data.real import RealData
from distill_datasets.errors import DataError, RecipeError
from distill_datasets.pipeline.run import run
from distill_datasets.runtime.draws import rng_for
from distill_datasets.selection.coresets import (
    ClassMean,
    Correct,
    Herding,
    KCenter,
    herded,
    k_means,
    spread_out,
)
from distill_datasets.selection.published import Published
from distill_datasets.selection.rded import Rded
from distill_datasets.selection.selection import Selection
from distill_datasets.types import Shape

AS_IS = Normalization(torch.zeros(1), torch.ones(1))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def real_of(classes: list[Tensor]) -> RealData:
    """Classes of uint8 images (N, C, H, W), their rows mixed; students see them in [0, 1]."""
    labels_N = torch.cat([torch.full((len(own),), label) for label, own in enumerate(classes)])
    mixed_N = torch.randperm(len(labels_N), generator=rng_for(0, "mixed"))
    rows = Split(torch.cat(classes)[mixed_N], labels_N[mixed_N])
    shape = Shape(*classes[0].shape[1:], len(classes))
    return RealData(rows, rows, [f"class {label}" for label in range(len(classes))], AS_IS, shape)


def dots(*classes: list[int]) -> RealData:
    """One-pixel images of these gray values."""
    return real_of([torch.tensor(own, dtype=torch.uint8).view(-1, 1, 1, 1) for own in classes])


def grays(images_NCHW: Tensor) -> list[float]:
    """The first pixel of each image, on the scale 0..255."""
    return [round(value, 3) for value in (255 * images_NCHW[:, 0, 0, 0]).tolist()]


def chosen(selection: Selection, real: RealData, per_class: int, seed: int = 0) -> list[float]:
    return grays(selection.images(real, per_class, rng_for(seed, "select")))


def test_herding_keeps_the_running_mean_at_the_class_mean() -> None:
    # mean 30: 20 is closest; then 40 would be best, 10 is 30 away from it, 0 is 40 and 90 is 50
    # away; then 60 would be best and 90 is 30 away from it, 0 is 60
    real = dots([0, 10, 20, 90], [5, 7, 9])
    assert chosen(Herding(), real, 1) == [20, 7]
    assert chosen(Herding(), real, 3)[:3] == [20, 10, 90]


def test_herding_takes_every_image_once_before_it_repeats() -> None:
    real = dots([0, 10, 20, 90], [5, 7, 9])
    assert chosen(Herding(), real, 5)[:5] == [20, 10, 90, 0, 20]


def test_k_center_takes_the_most_central_image_and_then_the_farthest() -> None:
    # mean 43.2: 50; 104 is 54 from it; 0 is 50 from the nearest of both, 10 is 40 and 52 is 2 from
    # it; then 10 is 10 from the nearest and 52 still 2, though it is 52 from the last
    real = dots([0, 10, 50, 52, 104], [5, 7, 9])
    assert chosen(KCenter(), real, 5)[:5] == [50, 104, 0, 10, 52]
    assert chosen(KCenter(), real, 1) == [50, 7]


def test_k_center_takes_equal_images_one_after_the_other() -> None:
    assert spread_out(torch.full((3, 2), 4.0), 3) == [0, 1, 2]
    assert herded(torch.full((3, 2), 4.0), 3) == [0, 1, 2]


def test_distances_are_those_of_normalized_pixels() -> None:
    # two channels: plain pixels differ most in the first, normalized ones in the second
    pixels = torch.tensor([[50, 10], [90, 10], [50, 14]], dtype=torch.uint8)
    real = real_of([pixels.view(3, 2, 1, 1), pixels.view(3, 2, 1, 1)])
    real.normalization = Normalization(torch.zeros(2), torch.tensor([1.0, 0.01]))
    (_, second) = KCenter().images(real, 2, rng_for(0)).view(2, 2, 2, 1, 1)[0]
    assert [round(255 * value) for value in second.flatten().tolist()] == [50, 14]


def test_the_class_mean_is_the_mean_of_its_images() -> None:
    assert chosen(ClassMean(), dots([0, 10, 20, 200], [3, 4]), 1) == [57.5, 3.5]


@pytest.mark.parametrize("seed", range(6))
def test_more_than_one_mean_are_those_of_clusters(seed: int) -> None:
    found = chosen(ClassMean(), dots([0, 10, 20, 200], [1, 2, 3, 99, 101, 100]), 2, seed)
    assert sorted(found[:2]) == [10, 200] and sorted(found[2:]) == [2, 100]


def test_no_cluster_is_empty_where_images_are_equal() -> None:
    pixels_ND = torch.tensor([[0.0], [0.0], [0.0], [5.0], [5.0]])
    for seed in range(8):
        for clusters in (2, 3, 5):
            sizes = k_means(pixels_ND, clusters, rng_for(seed, "k")).bincount(minlength=clusters)
            assert sizes.min() > 0 and sizes.sum() == 5


def test_every_image_is_in_the_cluster_whose_mean_is_nearest() -> None:
    pixels_ND = torch.rand(40, 3, generator=rng_for(0))
    for seed in range(5):
        cluster_N = k_means(pixels_ND, 4, rng_for(seed))
        means_JD = torch.stack(
            [pixels_ND[cluster_N == cluster].mean(dim=0) for cluster in range(4)]
        )
        assert torch.equal(torch.cdist(pixels_ND, means_JD).argmin(dim=1), cluster_N)


def test_clusters_are_decided_by_the_generator_alone() -> None:
    pixels_ND = torch.rand(40, 3, generator=rng_for(0))
    first, again, other = (k_means(pixels_ND, 6, rng_for(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("selection", [Herding(), KCenter(), ClassMean()])
def test_a_class_with_three_images_gives_ten_and_is_reported(
    selection: Selection, caplog: pytest.LogCaptureFixture
) -> None:
    real = dots([10, 20, 60], list(range(100, 150)))
    with caplog.at_level(logging.WARNING, logger="distill_datasets"):
        found = chosen(selection, real, 10)
    assert len(found) == 20 and set(found[:3]) == set(found[:10]) == {10, 20, 60}
    assert "these have fewer and repeat them: class 0 (3)" in caplog.text


def teacher_of(*thresholds: int) -> Callable[[Tensor], Tensor]:
    """Networks that see class 1 in images above their gray value, and class 0 in the others."""

    def teacher(images_BCHW: Tensor) -> Tensor:
        above_MB = torch.stack([255 * images_BCHW[:, 0, 0, 0] > level for level in thresholds])
        return torch.stack([~above_MB, above_MB], dim=2).float()

    return teacher


def test_correct_draws_only_images_that_the_networks_recognize() -> None:
    real = dots(list(range(0, 200, 10)), list(range(5, 200, 10)))
    for share, low, high in ((1.0, 50, 100), (0.5, 100, 50)):
        images = Correct(share=share).images(real, 4, rng_for(0, "c"), teacher_of(50, 100))
        assert max(grays(images)[:4]) <= low and min(grays(images)[4:]) > high
        assert len(set(grays(images))) == 8
    draws = {
        tuple(grays(Correct().images(real, 2, rng_for(seed), teacher_of(50)))) for seed in range(9)
    }
    assert len(draws) > 1


def test_few_correct_images_are_repeated_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="distill_datasets"):
        images = Correct().images(dots([10, 20, 90], [95]), 3, rng_for(0), teacher_of(15))
    assert grays(images) == [10, 10, 10, 95, 95, 95]
    assert "class 0 (1), class 1 (1)" in caplog.text


def test_a_class_without_a_correct_image_is_an_error() -> None:
    with pytest.raises(DataError, match=r"no training image of the class 'class 1' .* 100% of"):
        Correct().images(dots([10], [20, 30]), 1, rng_for(0), teacher_of(100))


@pytest.mark.parametrize("selection", [Correct(), Rded()])
def test_networks_are_asked_for_when_there_are_none(selection: Selection) -> None:
    with pytest.raises(RecipeError, match=r"add a section squeeze"):
        selection.images(toy_real(), 1, rng_for(0))


def bright_corners(levels: list[int]) -> Tensor:
    """Black 8x8 images with one bright 4x4 corner of each gray value."""
    images_NCHW = torch.zeros(len(levels), 1, 8, 8, dtype=torch.uint8)
    images_NCHW[:, 0, :4, :4] = torch.tensor(levels, dtype=torch.uint8)[:, None, None]
    return images_NCHW


class BrightnessTeacher:
    """Sees class 0 the more surely, the brighter an image is; remembers what it was shown."""

    def __init__(self) -> None:
        self.shown: list[Tensor] = []

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        self.shown.append(images_BCHW)
        bright_B = images_BCHW.mean(dim=(1, 2, 3))
        return torch.stack([10 * bright_B, torch.zeros_like(bright_B)], dim=1)[None]


def quarter(**fields: Any) -> Rded:  # noqa: ANN401
    """Many crops of exactly a quarter of the image: each image's bright corner is among them."""
    return Rded(**{"crops": 150, "smallest": 0.25, "largest": 0.25} | fields)


def test_rded_finds_the_planted_corner_of_every_image_and_ranks_it() -> None:
    levels = [120, 250, 40, 200, 160, 80, 60, 100]
    real = real_of([bright_corners(levels), bright_corners([0] * 8)])
    mosaics_NCHW = quarter().images(real, 2, rng_for(0, "rded"), BrightnessTeacher())
    assert mosaics_NCHW.shape == (4, 1, 8, 8)
    # ranks of image n: n, n + 2, n + 4, n + 6 of 250 200 160 120 100 80 60 40, row by row
    corners = 255 * mosaics_NCHW[:, 0, ::4, ::4].flatten(1)
    assert corners[:2].round().tolist() == [[250, 160, 100, 60], [200, 120, 80, 40]]
    for image_HW in 255 * mosaics_NCHW[:2, 0]:
        for tile in (image_HW[:4, :4], image_HW[:4, 4:], image_HW[4:, :4], image_HW[4:, 4:]):
            assert torch.allclose(tile, tile[0, 0])  # the whole tile is the planted corner


def test_rded_with_one_tile_enlarges_the_best_crop() -> None:
    real = real_of([bright_corners([90, 240, 30]), bright_corners([0, 0, 0])])
    mosaics_NCHW = quarter(factor=1).images(real, 1, rng_for(1, "rded"), BrightnessTeacher())
    assert torch.allclose(255 * mosaics_NCHW[0], torch.full((1, 8, 8), 240.0))


def test_rded_shows_the_networks_a_small_crop_inside_the_mean_color() -> None:
    real, teacher = toy_real(), BrightnessTeacher()
    assert real.normalization.display_mean_C.item() > 0.3  # black would not be zero for students
    three = lambda images: teacher(images)[:, :, [0, 1, 1]]  # noqa: E731
    Rded(candidates=3, crops=2).images(real, 1, rng_for(0), three)
    # four tiles an image: four candidates of two crops each, in every class
    assert [len(shown) for shown in teacher.shown] == [8, 8, 8]
    for shown_BCHW in teacher.shown:
        assert shown_BCHW.shape[1:] == (1, 8, 8)
        middle_BCHW = shown_BCHW[:, :, 2:6, 2:6]
        assert float(middle_BCHW.min()) < 0 < float(middle_BCHW.max())  # as students see it
        shown_BCHW[:, :, 2:6, 2:6] = 0
        assert not bool(shown_BCHW.any())


def test_rded_fills_sizes_that_its_tiles_do_not_divide() -> None:
    images_NCHW = torch.full((5, 1, 7, 9), 130, dtype=torch.uint8)
    real = real_of([images_NCHW, images_NCHW])
    mosaics_NCHW = Rded(crops=2).images(real, 2, rng_for(0), BrightnessTeacher())
    assert torch.allclose(255 * mosaics_NCHW, torch.full((4, 1, 7, 9), 130.0))


def test_rded_of_a_class_with_three_images_repeats_crops() -> None:
    real = real_of([bright_corners([90, 240, 30]), bright_corners([0] * 40)])
    mosaics_NCHW = quarter().images(real, 10, rng_for(0), BrightnessTeacher())
    assert mosaics_NCHW.shape == (20, 1, 8, 8)
    assert {round(value) for value in grays(mosaics_NCHW[:10])} == {90, 240, 30}


def test_rded_refuses_more_tiles_than_pixels_and_areas_in_disorder() -> None:
    with pytest.raises(RecipeError, match=r"init.factor: 9 tiles along a side of 8 px"):
        Rded(factor=9).images(toy_real(), 1, rng_for(0), BrightnessTeacher())
    with pytest.raises(
        ValidationError, match=r"smallest: got 0.9, expected at most largest, which is 0.5"
    ):
        Rded(smallest=0.9, largest=0.5)


def distilled(folder: Path, *overrides: str) -> Path:
    """What a short toy run of one trained image per class writes."""
    pixels = ["distill.canvas={name: pixels, ipc: 1, init: real, bounds: clip}"]
    short = ["distill.steps=1", "evaluate.students=1", "evaluate.steps=1", "evaluate.exact=false"]
    recipe = toy_recipe(*pixels, "distill.labels=area", *short, *overrides)
    return run(recipe, runs=folder / "runs", quiet=True).folder


def test_a_run_starts_from_what_another_run_has_published(tmp_path: Path) -> None:
    first = distilled(tmp_path)
    init = f"{{name: published, dataset: '{first}'}}"
    canvas = f"distill.canvas={{name: pixels, ipc: 2, init: {init}, bounds: clip}}"
    second = distilled(tmp_path, canvas, "distill.steps=0")
    rows = [
        datasets.load_dataset(str(folder), "default", split="train", cache_dir=str(tmp_path / name))
        for folder, name in ((first, "a"), (second, "b"))
    ]
    published, started = ([image.tobytes() for image in split["image"]] for split in rows)
    assert len(set(published)) == 10
    assert started == [image for image in published for _ in range(2)]
    assert rows[1]["label"] == [label for label in range(10) for _ in range(2)]


def fake(
    folder: Path,
    shown: list[int],
    labels: list[list[float]],
    mode: str = "L",
    kind: str = "mean_std",
) -> Published:
    """A folder of 4x4 images with these values and soft labels, whose normalization is told."""
    from PIL import Image

    folder.mkdir()
    color = (lambda value: value) if mode == "L" else (lambda value: (value, 0, 0))
    rows = datasets.Dataset.from_dict(
        {
            "image": [Image.new(mode, (4, 4), color(value)) for value in shown],
            "soft_label": labels,
        },
        features=datasets.Features(
            {"image": datasets.Image(), "soft_label": datasets.Sequence(datasets.Value("float32"))}
        ),
    )
    rows.to_parquet(folder / "train.parquet")
    told = {"normalization_json": [json.dumps({"kind": kind})]}
    datasets.Dataset.from_dict(told).to_parquet(folder / "recipe.parquet")
    configs = "".join(
        f"- config_name: {config}\n  data_files: {file}.parquet\n"
        for config, file in (("default", "train"), ("recipe", "recipe"))
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    return Published(dataset=str(folder))


def test_published_rows_go_to_the_class_of_their_largest_label_and_are_resized(
    tmp_path: Path,
) -> None:
    labels = [[0.4, 0.6], [0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]
    published = fake(tmp_path / "p", [10, 20, 30, 40], labels)
    real = real_of([bright_corners([1]), bright_corners([2])])
    images_NCHW = published.images(real, 2, rng_for(0))
    assert images_NCHW.shape == (4, 1, 8, 8)
    assert grays(images_NCHW) == [20, 40, 10, 30]
    assert grays(published.images(real, 3, rng_for(0))) == [20, 40, 20, 10, 30, 10]


def test_published_rows_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    real = real_of([bright_corners([1]), bright_corners([2])])
    both = [[1.0, 0.0], [0.0, 1.0]]
    cases = [
        (fake(tmp_path / "one", [1, 2], [both[0]] * 2), r"has no row whose .* class 1 \(class 1\)"),
        (fake(tmp_path / "rgb", [1, 2], both, "RGB"), r"images of 3 channels in 2 classes, exp"),
        (fake(tmp_path / "k", [1], [[1.0, 0.0, 0.0]]), r"1 channels in 3 classes, expected 1 ch"),
        (
            fake(tmp_path / "zca", [1, 2], both, kind="zca"),
            r"with normalization zca, and so",
        ),
        (
            Published(dataset=str(tmp_path / "none")),
            r"^distill.canvas.init.dataset: cannot read .*no f",
        ),
        (
            Published(dataset=str(tmp_path / "k"), revision="main"),
            r"distill.canvas.init.revision: .* has no revisions",
        ),
    ]
    for published, message in cases:
        with pytest.raises(DataError, match=message):
            published.images(real, 1, rng_for(0))
    (tmp_path / "k" / "train.parquet").unlink()
    datasets.Dataset.from_dict({"x": [1]}).to_parquet(tmp_path / "k" / "train.parquet")
    with pytest.raises(DataError, match=r"is not what a run writes"):
        Published(dataset=str(tmp_path / "k")).images(real, 1, rng_for(0))


GENERATED = {"guided", "nearest_latent", "prototypes"}
"""Those that need a generator have a file of their own."""


@pytest.mark.parametrize("name", sorted(set(BUILT_IN["selections"]) - {"published"} - GENERATED))
def test_every_selection_gives_displayable_images_classes_in_order(name: str) -> None:
    real = toy_real()
    prototypes_KCHW = real.prototypes_KCHW()

    def teacher(images_BCHW: Tensor) -> Tensor:
        shown_BCHW = images_BCHW * real.normalization.display_std_C[:, None, None]
        shown_BCHW += real.normalization.display_mean_C[:, None, None]
        return -torch.cdist(shown_BCHW.flatten(1), prototypes_KCHW.flatten(1))[None]

    selection = load("selections", name).model_validate({"name": name})
    assert isinstance(selection, Selection)
    images_NCHW = selection.images(real, 4, rng_for(0), teacher)
    assert images_NCHW.shape == (12, 1, 8, 8) and images_NCHW.dtype == torch.float32
    if name not in ("noise", "rded"):
        assert float(images_NCHW.min()) >= 0 and float(images_NCHW.max()) <= 1
        nearest_N = torch.cdist(images_NCHW.flatten(1), prototypes_KCHW.flatten(1)).argmin(dim=1)
        assert nearest_N.tolist() == [0] * 4 + [1] * 4 + [2] * 4


@pytest.mark.parametrize("name", ["noise", "real", "correct", "rded", "class_mean"])
def test_another_seed_draws_others_and_the_same_seed_the_same(name: str) -> None:
    real = toy_real()

    def teacher(images_BCHW: Tensor) -> Tensor:
        return images_BCHW.new_zeros(1, len(images_BCHW), 3)  # takes all for the first class

    def drawn(seed: int) -> Tensor:
        selection = load("selections", name).model_validate({"name": name})
        assert isinstance(selection, Selection)
        return selection.of_class(real, 0, 4, rng_for(seed, "select"), teacher)

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))
