"""The mosaic: what its tiles are cut from, how they are enlarged, and a whole run of IDC's kind.

Shape suffixes: I trained images, N examples, K classes, C channels, H W pixels.
"""

import json
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import load_dataset
from support.tiny import distilled_of, flat_real, toy_real, values
from support.toy_runs import CONVNET, command, toy_sections
from torch import Tensor

from distill_datasets.canvases.mosaic import Mosaic
from distill_datasets.canvases.pixels import Pixels
from distill_datasets.data.real import RealData
from distill_datasets.distilled import Distilled
from distill_datasets.errors import RecipeError
from distill_datasets.export.folder import verify
from distill_datasets.files.yaml_text import to_yaml
from distill_datasets.labels.fixed import Area
from distill_datasets.labels.learned import Learned
from distill_datasets.runtime.draws import rng_for
from distill_datasets.selection.random import Noise, Real
from distill_datasets.selection.selection import Selection, Teacher
from distill_datasets.types import Shape

TRAINED = "canvas.trained_ICHW"


def mosaic(shape: Shape, **fields: object) -> Distilled:
    """A mosaic for images of this shape."""
    canvas = Mosaic.model_validate({"ipc": 1, "init": Noise(std=0.1), **fields})
    return distilled_of(toy_real(shape), canvas, Area())


def every(distilled: Distilled) -> Tensor:
    return distilled.pixels(torch.arange(distilled.count))


def set_pixels(distilled: Distilled, pixels_ICHW: Tensor) -> None:
    """Make the trained images show these pixels."""
    with torch.no_grad():
        distilled.parameters[TRAINED].copy_(4 * (pixels_ICHW - 0.5))


def test_a_tile_of_one_gray_is_an_example_of_that_gray() -> None:
    module = mosaic(Shape(1, 4, 6, 2))
    grays_I = torch.arange(8).view(2, 1, 2, 2) / 8  # the tiles of an image, row by row
    set_pixels(module, grays_I.repeat_interleave(2, dim=2).repeat_interleave(3, dim=3))
    examples_NCHW = every(module)
    assert examples_NCHW.shape == (8, 1, 4, 6)
    for example, shown_CHW in enumerate(examples_NCHW):
        assert shown_CHW.detach().unique().tolist() == [example / 8]


def test_a_tile_is_enlarged_between_the_centers_of_its_pixels() -> None:
    module = mosaic(Shape(1, 4, 4, 1))
    tile = torch.tensor([[0.0, 0.4], [0.4, 0.8]])
    set_pixels(module, F.pad(tile, (0, 2, 2, 0))[None, None])
    # the third tile is bottom left; along a side: a, 3/4 a + 1/4 b, 1/4 a + 3/4 b, b
    rows = values(module.pixels(torch.tensor([2])))
    assert rows[:4] == [0, 0.1, 0.3, 0.4] and rows[4:8] == [0.1, 0.2, 0.4, 0.5]


@pytest.mark.parametrize("index", [[5, 0], [3, 3, 4], [7], []])
def test_examples_are_the_same_alone_and_together(index: list[int]) -> None:
    module = mosaic(Shape(3, 4, 6, 2))
    assert torch.equal(module.pixels(torch.tensor(index, dtype=torch.long)), every(module)[index])


@pytest.mark.parametrize(("side", "factor"), [(8, 2), (7, 2), (8, 3), (9, 4), (5, 5), (6, 1)])
def test_pulling_back_is_the_adjoint_of_decoding(side: int, factor: int) -> None:
    module = mosaic(Shape(3, side, side + 1, 2), factor=factor, ipc=2)
    module = module.to(dtype=torch.float64)
    rng = rng_for(0, "adjoint")
    moved, weights = (
        torch.randn(like.shape, generator=rng, dtype=torch.float64)
        for like in (module.parameters[TRAINED], every(module))
    )
    (pulled,) = torch.autograd.grad((every(module) * weights).sum(), module.parameters[TRAINED])
    before = every(module).detach()
    with torch.no_grad():
        module.parameters[TRAINED] += moved
    after = every(module).detach()
    assert float((pulled * moved).sum()) == pytest.approx(float(((after - before) * weights).sum()))


def test_every_pixel_of_an_example_is_a_mean_of_its_tile() -> None:
    module = mosaic(Shape(1, 8, 8, 2))
    (pulled,) = torch.autograd.grad(every(module).sum(), module.parameters[TRAINED])
    # 64 pixels of an example from 16 of a tile; a quarter of the range for one trained unit
    torch.testing.assert_close(pulled, torch.full_like(pulled, 64 / 16 / 4))


@pytest.mark.parametrize(("shape", "factor"), [(Shape(1, 7, 9, 2), 2), (Shape(1, 28, 28, 2), 3)])
def test_a_factor_that_does_not_divide_the_side_uses_every_pixel(shape: Shape, factor: int) -> None:
    module = mosaic(shape, factor=factor)
    (pulled,) = torch.autograd.grad(every(module).sum(), module.parameters[TRAINED])
    assert float(pulled.min()) > 0
    assert all(image.shape == (1, shape.h, shape.w) for image in module.stored())
    corners = module.geometry()["tile_corners_yx"]
    assert isinstance(corners, list) and len({tuple(corner) for corner in corners}) == factor**2
    tile = module.geometry()["tile"]
    assert isinstance(tile, list)
    assert corners[0] == [0, 0] and corners[-1] == [shape.h - tile[0], shape.w - tile[1]]


class Numbered(Selection):
    """The images of a class count up from its own number, each of one gray."""

    paper: ClassVar[str] = "none"
    name: Literal["numbered"] = "numbered"

    def of_class(
        self,
        real: RealData,
        label: int,
        per_class: int,
        rng: torch.Generator,
        teacher: Teacher | None = None,
    ) -> Tensor:
        shape = real.shape
        grays_N = torch.arange(label * per_class, (label + 1) * per_class) / 100
        return grays_N[:, None, None, None].expand(-1, shape.c, shape.h, shape.w)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_every_example_starts_as_one_image_of_its_class(factor: int) -> None:
    module = mosaic(Shape(1, 6, 12, 3), factor=factor, ipc=2, init=Numbered())
    for example, shown_CHW in enumerate(every(module)):
        assert values(shown_CHW) == pytest.approx([example / 100] * 72, abs=1e-6)
    classes_N = module.targets(torch.arange(module.count)).argmax(dim=1)
    assert classes_N.tolist() == [label for label in range(3) for _ in range(2 * factor**2)]


def test_real_images_are_made_smaller_without_aliasing() -> None:
    real = toy_real(Shape(1, 8, 8, 2))
    module = distilled_of(real, Mosaic(ipc=1), Area())
    images = Real().images(real, 4, rng_for(0, "canvas"))
    small = F.interpolate(images[4:], (4, 4), mode="bilinear", antialias=True)
    expected = torch.cat([torch.cat(list(small[:2]), 2), torch.cat(list(small[2:]), 2)], 1)
    torch.testing.assert_close(module.stored()[1], expected)


def test_noise_keeps_its_strength() -> None:
    pixels = torch.stack(mosaic(Shape(1, 32, 32, 4), init=Noise(std=0.05)).stored())
    assert float(pixels.std()) == pytest.approx(0.05, rel=0.05)


@pytest.mark.parametrize("shape", [Shape(1, 8, 8, 3), Shape(3, 7, 10, 2)])
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_size_says_what_build_makes(shape: Shape, factor: int) -> None:
    canvas = Mosaic(ipc=2, factor=factor)
    size, module = canvas.size(shape), distilled_of(toy_real(shape), canvas, Area())
    assert size.examples == module.count == 2 * shape.k * factor**2
    assert list(size.originals) == [image.shape[1:] for image in module.stored()]


def test_a_factor_of_one_is_the_canvas_of_separate_images() -> None:
    real = flat_real([10, 90, 250])
    whole = distilled_of(real, Pixels(ipc=1, init=Real(), bounds="clip"), Area())
    module = distilled_of(real, Mosaic(ipc=1, factor=1), Area())
    torch.testing.assert_close(every(module), every(whole))


@pytest.mark.parametrize("factor", [9, 100])
def test_more_tiles_than_pixels_are_refused(factor: int) -> None:
    with pytest.raises(RecipeError, match=f"cut into {factor} x {factor} tiles; set factor to at"):
        Mosaic(ipc=1, factor=factor).size(Shape(1, 8, 12, 2))


def test_pixels_that_leave_the_range_are_brought_back() -> None:
    module = mosaic(Shape(1, 4, 4, 2))
    with torch.no_grad():
        module.parameters[TRAINED] += 100
    module.project()
    assert all(image.unique().tolist() == [1] for image in module.stored())


def test_an_image_has_one_label_for_all_of_its_tiles() -> None:
    real = toy_real(Shape(1, 4, 4, 3))
    fixed, learned = (
        distilled_of(real, Mosaic(ipc=2), labels) for labels in (Area(), Learned(floor=0.01))
    )
    expected = torch.eye(3).repeat_interleave(8, dim=0)
    assert fixed.targets(torch.arange(24)).tolist() == expected.tolist()
    assert learned.stored_labels().shape == (6, 3)
    with torch.no_grad():
        learned.parameters["labels.cells_GK"][1] = torch.tensor([0.5, 0.25, 0.25])
    assert learned.targets(torch.tensor([4, 7])).tolist() == [[0.5, 0.25, 0.25]] * 2
    assert learned.targets(torch.tensor([3]))[0, 0] > 0.9


@pytest.mark.parametrize("labels", ["area", "learned"])
def test_a_run_of_idc_publishes_its_images_and_their_examples(tmp_path: Path, labels: str) -> None:
    sections = toy_sections()
    sections["distill"] |= {
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.5},
        "objective": {
            "name": "gradient",
            "distance": "mse",
            "layers": "convolutions",
            "real_batch": 8,
            "match_batch": 3,
            "augment": {"operations": ["color", "crop", "cutout"]},
        },
        "canvas": {"name": "mosaic", "ipc": 1, "factor": 2},
        "labels": labels,
        "networks": {
            "name": "trained_on_real",
            "network": CONVNET,
            "every": 3,
            "real_images": 48,
            "batch": 16,
        },
    }
    recipe = tmp_path / "idc.yaml"
    recipe.write_text(to_yaml(sections), encoding="utf-8")
    folder = tmp_path / "published"
    answer = command("run", recipe, "--runs", tmp_path / "runs", "--output", folder, "--quiet")
    assert answer.code == 0, answer.err
    assert verify(folder) == []
    manifest = json.loads((folder / "distill.json").read_text(encoding="utf-8"))
    budget, geometry = manifest["budget"], manifest["geometry"]
    assert (budget["images"], budget["examples"], budget["ipc_equivalent"]) == (10, 40, 1)
    assert budget["label_values"] == (10 if labels == "area" else 100)
    rows = load_dataset(str(folder), "default", split="train").with_format("numpy")[:]
    stored = load_dataset(str(folder), "poster", split="train").with_format("numpy")[:]
    assert list(rows["label"]) == [label for label in range(10) for _ in range(4)]
    tables_NK = np.stack(stored["label_poster"]).repeat(4, axis=0)
    assert np.allclose(rows["soft_label"], tables_NK / tables_NK.sum(axis=1, keepdims=True))
    (h, w), size = geometry["tile"], geometry["enlarged_to"]
    for image in range(10):
        original = torch.tensor(stored["poster"][image].reshape(stored["poster_shape"][image]))
        for place, (top, left) in enumerate(geometry["tile_corners_yx"]):
            tile = original[None, :, top : top + h, left : left + w]
            shown = F.interpolate(tile, size, mode="bilinear", align_corners=False)[0, 0]
            published = rows["image"][4 * image + place].astype(np.float32) / 255
            assert np.abs(shown.numpy() - published).max() <= 0.5 / 255 + 1e-6
