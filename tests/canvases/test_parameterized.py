"""Canvases that draw images from numbers: budgets, starts, what is published, and the decoder.

Shape suffixes: N images, B images asked for, C channels, H W pixels.
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import outer_loop_problem
from support.tiny import distilled_of, toy_real
from support.toy_runs import CONVNET, command, toy_sections
from torch import Tensor

from distill_datasets.canvases.bases import Bases
from distill_datasets.canvases.field import NeuralField
from distill_datasets.canvases.frequency import Frequency, waves
from distill_datasets.canvases.gaussians import Gaussians
from distill_datasets.canvases.parameterized import Parameterized
from distill_datasets.canvases.small import Small
from distill_datasets.distilled import Distilled
from distill_datasets.errors import RecipeError
from distill_datasets.export.card import PLACEHOLDER
from distill_datasets.files.artifacts import read_json
from distill_datasets.files.yaml_text import to_yaml
from distill_datasets.labels.fixed import Area
from distill_datasets.pipeline.content import packed
from distill_datasets.stages.distill import Distill
from distill_datasets.types import Shape

COLOR, GRAY = Shape(3, 12, 10, 3), Shape(1, 8, 8, 3)
CANVASES: list[Parameterized] = [
    Small(ipc=1, side=5),
    Bases(ipc=1, bases=3),
    Frequency(ipc=1, kept=12),
    NeuralField(ipc=1, width=4, fit_steps=200),
    Gaussians(ipc=1, blobs=4, fit_steps=400),
]
EACH = pytest.mark.parametrize("canvas", CANVASES, ids=lambda canvas: canvas.name)
SHAPES = pytest.mark.parametrize("shape", [COLOR, GRAY], ids=["color", "gray"])


def every(distilled: Distilled) -> Tensor:
    return distilled.pixels(torch.arange(distilled.count))


def started(canvas: Parameterized, shape: Shape) -> Distilled:
    return distilled_of(toy_real(shape), canvas, Area())


def shuffled(distilled: Distilled) -> Distilled:
    """Every trained number moved, so that no test sees the start alone."""
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in distilled.parameters.values():
            tensor += 0.1 * torch.randn(tensor.shape, generator=rng)
    return distilled


@EACH
@SHAPES
def test_as_many_images_as_the_budget_of_values_holds(canvas: Parameterized, shape: Shape) -> None:
    told, distilled = canvas.size(shape), started(canvas, shape)
    tensors = distilled.of("canvas")
    stored = [packed(of, canvas.storage[name]) for name, of in canvas.numbers(tensors).items()]
    spent = sum(part.count for part in stored)
    budget = canvas.budget(shape)
    assert budget == shape.k * shape.c * shape.h * shape.w
    assert spent <= budget < spent * (1 + 2 / told.examples)
    assert told.examples == distilled.count == len(every(distilled)) >= shape.k
    assert every(distilled).shape[1:] == (shape.c, shape.h, shape.w)


@EACH
@SHAPES
def test_images_are_of_all_classes_and_start_like_them(canvas: Parameterized, shape: Shape) -> None:
    real, distilled = toy_real(shape, noise=0), started(canvas, shape)
    classes_N = distilled.targets(torch.arange(distilled.count)).argmax(dim=1)
    counts = torch.bincount(classes_N, minlength=shape.k)
    assert int(counts.max()) - int(counts.min()) <= 1 and int(counts.min()) > 0
    smooth_KCHW = F.avg_pool2d(real.prototypes_KCHW(), 3, 1, 1)
    drawn_NCHW = F.avg_pool2d(every(distilled), 3, 1, 1)
    distances_NK = torch.cdist(drawn_NCHW.flatten(1), smooth_KCHW.flatten(1))
    right = (distances_NK.argmin(dim=1) == classes_N).float().mean()
    assert right > 0.9


@EACH
@SHAPES
def test_an_image_is_the_same_alone_and_among_others(canvas: Parameterized, shape: Shape) -> None:
    distilled = started(canvas, shape)
    index_B = torch.tensor([3, 1, 1])
    torch.testing.assert_close(distilled.pixels(index_B), every(distilled)[index_B])


@EACH
@SHAPES
def test_the_gradient_of_what_is_trained_is_that_of_differences(
    canvas: Parameterized, shape: Shape
) -> None:
    distilled = shuffled(started(canvas, shape)).to(dtype=torch.float64)
    rng = torch.Generator().manual_seed(1)
    weights_NCHW = torch.randn(every(distilled).shape, generator=rng, dtype=torch.float64)
    trained = list(distilled.parameters.values())

    def loss() -> Tensor:
        return (every(distilled) * weights_NCHW).sum()

    grads = torch.autograd.grad(loss(), trained)
    assert all(bool((grad != 0).any()) for grad in grads)
    ways = [torch.randn(tensor.shape, generator=rng, dtype=torch.float64) for tensor in trained]

    def moved(by: float) -> float:
        with torch.no_grad():
            for tensor, way in zip(trained, ways, strict=True):
                tensor += by * way
            value = loss().item()
            for tensor, way in zip(trained, ways, strict=True):
                tensor -= by * way
        return value

    slope = sum(float((grad * way).sum()) for grad, way in zip(grads, ways, strict=True))
    assert slope == pytest.approx((moved(1e-7) - moved(-1e-7)) / 2e-7, rel=1e-4)


@EACH
@SHAPES
def test_the_lines_for_the_card_draw_what_is_drawn_here(
    canvas: Parameterized, shape: Shape
) -> None:
    distilled = shuffled(started(canvas, shape))
    tensors = distilled.of("canvas")
    stored = {
        name: packed(of, canvas.storage[name]) for name, of in canvas.numbers(tensors).items()
    }
    read = {name: part.read() for name, part in stored.items()}
    expected_NCHW = canvas.draw(tensors | read, torch.arange(distilled.count))
    scope: dict[str, Any] = {name: part.detach().numpy() for name, part in read.items()}
    scope |= {"np": np, "shape": [shape.c, shape.h, shape.w]}
    exec(canvas.decoder, scope)
    assert scope["images"].shape == expected_NCHW.shape
    assert abs(scope["images"] - expected_NCHW.detach().numpy()).max() < 1e-5
    assert len(list(filter(None, canvas.decoder.splitlines()))) <= 16


@EACH
@SHAPES
def test_rounding_numbers_to_what_is_published_changes_images_little(
    canvas: Parameterized, shape: Shape
) -> None:
    distilled = started(canvas, shape)
    tensors = distilled.of("canvas")
    stored = {
        name: packed(of, canvas.storage[name]) for name, of in canvas.numbers(tensors).items()
    }
    read = {name: part.read() for name, part in stored.items()}
    drawn_NCHW = canvas.draw(tensors | read, torch.arange(distilled.count))
    assert float((drawn_NCHW - every(distilled)).abs().mean().detach()) < 0.01


@EACH
def test_the_card_of_a_whole_run_draws_the_published_rows(
    canvas: Parameterized, tmp_path: Path
) -> None:
    sections = toy_sections()
    sections["distill"] |= {
        "canvas": canvas.model_dump(mode="json"),
        "labels": "vectors",
        "objective": {"name": "regression", "real_batch": 20},
        "networks": {"name": "pool", "networks": [CONVNET], "members": 2},
    }
    sections["evaluate"] |= {"students": 1, "references": []}
    recipe = tmp_path / "toy.yaml"
    recipe.write_text(to_yaml(sections), encoding="utf-8")
    answer = command("run", recipe, "--runs", tmp_path / "runs", "--output", tmp_path / "set")
    assert answer.code == 0, answer.err
    text = (tmp_path / "set" / "README.md").read_text(encoding="utf-8")
    load, *_, draw = re.findall(r"```python\n(.*?)\n```", text, flags=re.DOTALL)
    check = (
        "rows = np.stack([np.asarray(row['image']) for row in train])[:, None]\n"
        "assert rows.shape == images.shape\n"
        "assert abs(images * 255 - rows).max() < 0.501\n"
    )
    code = "\n".join([load, draw, check]).replace(PLACEHOLDER, str(tmp_path / "set"))
    environment = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=60)
    budget = read_json(tmp_path / "set" / "distill.json")["budget"]
    told = canvas.size(Shape(1, 8, 8, 10))
    assert budget["examples"] == told.examples and budget["numbers"] <= 640
    assert budget["values"] == budget["numbers"] + 10 * told.examples
    assert budget["pixels"] == budget["numbers"] and budget["bytes"]["numbers"] > 0


OBJECTIVES: list[dict[str, Any]] = [
    {
        "objective": {"name": "regression", "real_batch": 12},
        "labels": {"name": "vectors"},
        "networks": {"name": "pool", "networks": [CONVNET], "members": 2},
    },
    {
        "objective": {"name": "distribution", "real_batch": 5},
        "labels": {"name": "area"},
        "networks": {"name": "fresh", "network": CONVNET},
    },
    {
        "objective": {"name": "gradient", "distance": "rows_cosine", "real_batch": 5},
        "labels": {"name": "area"},
        "networks": {"name": "trained_on_distilled", "network": CONVNET, "outer": 2},
    },
    {
        "objective": {
            "name": "unrolled",
            "inner_steps": 3,
            "window": 2,
            "real_batch": 12,
            "optimizer": {"name": "adam", "lr": 0.01},
        },
        "labels": {"name": "logits"},
        "networks": {"name": "fresh", "network": CONVNET},
    },
]


@EACH
@pytest.mark.parametrize("parts", OBJECTIVES, ids=lambda parts: parts["objective"]["name"])
def test_every_objective_moves_every_number(
    canvas: Parameterized, parts: dict[str, Any], tmp_path: Path
) -> None:
    settings = Distill.model_validate(
        {**parts, "canvas": canvas.model_dump(mode="json"), "steps": 2, "lanes": 1}
    )
    real = toy_real(COLOR)
    before = distilled_of(real, settings.canvas, settings.labels)
    after = outer_loop_problem.run(settings, tmp_path, real=real, cores=1)
    for name, tensor in before.of("canvas").items():
        if name != "size":
            moved = (after.of("canvas")[name] - tensor).detach()
            assert bool(moved.isfinite().all()) and (moved != 0).float().mean() > 0.5, name


@EACH
def test_a_budget_too_small_for_an_image_is_refused(canvas: Parameterized) -> None:
    poor = canvas.model_copy(update={"ipc": 0.001})
    with pytest.raises(RecipeError, match=r"distill\.canvas\.ipc: got 0\.001"):
        poor.size(COLOR)


def test_a_small_image_is_its_mean_color_in_the_middle_of_flat_colors() -> None:
    colors_K3 = torch.tensor([[0.9, 0.2, 0.1], [0.1, 0.5, 0.3], [0.2, 0.3, 0.8]])
    flat_NCHW = colors_K3[:, :, None, None].expand(3, 3, 12, 10)
    canvas = Small(ipc=1, side=4)
    trained, constants = canvas.encode(flat_NCHW, torch.Generator())
    drawn_NCHW = canvas.decode(trained | constants, torch.arange(3))
    torch.testing.assert_close(drawn_NCHW, flat_NCHW, atol=1e-3, rtol=0)
    assert trained["chroma_N2hw"].shape == (3, 2, 2, 2)


@pytest.mark.parametrize(("side", "shape", "said"), [
    (13, COLOR, "distill.canvas.side: 13 px are not small beside images of 12 x 10 px"),
    (4, Shape(2, 8, 8, 3), "stores luma and chroma of gray or RGB images, got 2 channels"),
])  # fmt: skip
def test_small_refuses_what_it_cannot_store(side: int, shape: Shape, said: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(said)):
        Small(ipc=1, side=side).size(shape)


def test_bases_of_every_image_with_its_own_coefficient_are_these_images() -> None:
    images_NCHW = torch.rand(6, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    canvas = Bases(ipc=1, bases=6, scale=1)
    trained, constants = canvas.encode(images_NCHW, torch.Generator())
    drawn_NCHW = canvas.decode(trained | constants, torch.arange(6))
    torch.testing.assert_close(drawn_NCHW, images_NCHW, atol=1e-5, rtol=0)


def test_bases_of_half_colors_hold_gray_images_as_they_are_and_colors_as_their_means() -> None:
    rng = torch.Generator().manual_seed(0)
    gray_N1HW = 0.3 + 0.4 * torch.rand(6, 1, 8, 6, generator=rng)
    tint_N3 = 0.1 * (torch.rand(6, 3, generator=rng) - 0.5)
    images_NCHW = gray_N1HW + tint_N3[:, :, None, None]
    canvas = Bases(ipc=1, bases=6, scale=1, colors="half")
    trained, constants = canvas.encode(images_NCHW, torch.Generator())
    assert trained["bases_PJ"].shape == (8 * 6 + 2 * 4 * 3, 6)
    drawn_NCHW = canvas.decode(trained | constants, torch.arange(6))
    torch.testing.assert_close(drawn_NCHW, images_NCHW, atol=1e-5, rtol=0)


def test_half_colors_are_refused_where_there_are_none() -> None:
    with pytest.raises(
        RecipeError, match=r"distill\.canvas\.colors: 'half' is of RGB images, got 1"
    ):
        Bases(ipc=1, bases=3, colors="half").size(GRAY)


def test_the_lines_for_the_card_draw_bases_of_half_colors() -> None:
    canvas = Bases(ipc=1, bases=3, colors="half")
    distilled = shuffled(started(canvas, COLOR))
    tensors = distilled.of("canvas")
    scope: dict[str, Any] = {"np": np, "shape": [COLOR.c, COLOR.h, COLOR.w]}
    scope |= {name: of.detach().numpy() for name, of in canvas.numbers(tensors).items()}
    exec(canvas.decoder, scope)
    assert abs(scope["images"] - every(distilled).detach().numpy()).max() < 1e-5
    assert len(list(filter(None, canvas.decoder.splitlines()))) <= 16


def test_all_frequencies_are_the_pixels_and_waves_are_orthonormal() -> None:
    images_NCHW = torch.rand(2, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    canvas = Frequency(ipc=1, kept=48, kept_color=48)
    trained, constants = canvas.encode(images_NCHW, torch.Generator())
    drawn_NCHW = canvas.decode(trained | constants, torch.arange(2))
    torch.testing.assert_close(drawn_NCHW, images_NCHW, atol=1e-5, rtol=0)
    torch.testing.assert_close(waves(7) @ waves(7).T, torch.eye(7), atol=1e-6, rtol=0)


@pytest.mark.parametrize("canvas", [
    NeuralField(ipc=1, width=6, fit_steps=400), Gaussians(ipc=1, blobs=3, fit_steps=400),
])  # fmt: skip
def test_a_constant_image_is_fitted(canvas: Parameterized) -> None:
    flat_NCHW = torch.tensor([0.8, 0.3, 0.5]).view(1, 3, 1, 1).expand(2, 3, 10, 12)
    trained, constants = canvas.encode(flat_NCHW, torch.Generator().manual_seed(0))
    drawn_NCHW = canvas.decode(trained | constants, torch.arange(2))
    assert float((drawn_NCHW - flat_NCHW).abs().mean()) < 0.03


@pytest.mark.parametrize(("canvas", "said"), [
    (Bases(ipc=1, bases=200), "distill.canvas.bases: 200 bases for images of 3 x 6 x 5 values"),
    (Frequency(ipc=1, kept=121), "distill.canvas.kept: 121 coefficients of images of 12 x 10 px"),
])  # fmt: skip
def test_more_numbers_than_pixels_are_refused(canvas: Parameterized, said: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(said)):
        canvas.size(COLOR)
