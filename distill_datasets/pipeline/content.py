"""What a finished run publishes: images, labels and everything that is said about them."""

import importlib.metadata
import platform
from functools import partial
from typing import Any

import torch
from torch import Tensor

import distill_datasets
from distill_datasets.canvases.canvas import Canvas
from distill_datasets.canvases.parameterized import Parameterized, Storage
from distill_datasets.config import Part
from distill_datasets.distilled import Distilled, DistilledImages
from distill_datasets.evaluation.protocol import Evaluate
from distill_datasets.export.content import (
    STARTS,
    Content,
    DisplayPixels,
    Numbers,
    ViewLabels,
)
from distill_datasets.files.artifacts import fingerprint, sha256_tensors
from distill_datasets.media.image import to_bytes
from distill_datasets.models.layers import chain
from distill_datasets.networks.network import NetworkSource
from distill_datasets.objectives.objective import Objective
from distill_datasets.recipe import Recipe
from distill_datasets.runtime.draws import draws
from distill_datasets.selection.selection import privacy
from distill_datasets.stages.source import LoadedSource
from distill_datasets.stages.squeeze import SqueezedFolder


def publishable(
    recipe: Recipe,
    distilled: Distilled | DistilledImages,
    source: LoadedSource,
    device: torch.device,
    starts_SP: Tensor | None = None,
    relabel: ViewLabels | None = None,
) -> Content:
    """Everything that the published folder says, before it is measured."""
    section = recipe.distill
    parts: list[Part] = [section.objective, section.canvas, section.labels, section.networks]
    parts += [] if recipe.generator is None else [recipe.generator]
    generator = source.real.generator
    measuring = {"students", "exact", "hard", "references", "full_epochs", "full_students"}
    measuring |= {"checkpoint_seconds"}
    student = recipe.evaluate.model_dump(mode="json", exclude=measuring)
    views = set(recipe.relabel.paper.split("; ")) if recipe.relabel is not None else set()
    normalization = source.real.normalization
    with torch.device("meta"):
        layers = chain(recipe.evaluate.network.build(source.real.shape))
    return Content(
        name=recipe.publish.title or recipe.name,
        method=(
            f"{section.canvas.name} canvas, {section.labels.name} labels, "
            f"{section.objective.name} objective, {section.networks.name} networks"
            + ("" if recipe.generator is None else f", {recipe.generator.name} generator")
        ),
        papers=sorted({paper for part in parts for paper in part.papers()} | views),
        class_names=source.real.class_names,
        mean=normalization.display_mean_C.tolist(),
        std=normalization.display_std_C.tolist(),
        normalization=normalization.describe(),
        constants={
            name: tensor
            for name, tensor in normalization.to_tensors().items()
            if name == "whitening"
        },
        starts_SP=starts_SP,
        student=student | follows(recipe.evaluate),
        layers=layers,
        attack=section.objective.attacks(),
        recipe=recipe.resolved(),
        written=recipe.written(),
        notes=recipe.publish.notes,
        citation=recipe.publish.citation,
        license=recipe.publish.license,
        recipe_yaml=recipe.resolved_yaml(),
        recipe_sha256=recipe.sha256(),
        seed=recipe.seed,
        provenance=source.provenance.as_json(),
        environment=environment(device),
        real_shape=(source.real.shape.c, source.real.shape.h, source.real.shape.w),
        relabel=relabel,
        privacy=privacy(section),
        generator_bytes=None if generator is None else generator.bytes,
        task=source.real.shape.task,
        **(
            _images(section.canvas, distilled, source.real.shape.k)
            if isinstance(distilled, DistilledImages)
            else _trained(section.objective, section.canvas, distilled)
        ),
    )


def student_starts(
    recipe: Recipe, source: LoadedSource, teachers: SqueezedFolder | None, device: torch.device
) -> Tensor | None:
    """The weights (S, P) that students start from: student s takes row s modulo S.

    One row where all students start from the same; None where they draw their own.
    """
    if recipe.evaluate.start == "fresh":
        return None
    networks = recipe.distill.networks.build(source.real.shape, device, teachers)
    assert isinstance(networks, NetworkSource), "networks with `has_start` are drawn"
    rows = list[Tensor]()
    for student in range(recipe.evaluate.students):
        start_P = networks.start(student, draws(recipe.seed, "distill"))
        assert start_P is not None, "networks with `has_start` give one"
        rows.append(start_P.cpu())
    one = all(torch.equal(row, rows[0]) for row in rows)
    return torch.stack(rows[:1] if one else rows)


@torch.no_grad()
def _trained(objective: Objective, canvas: Canvas, distilled: Distilled) -> dict[str, Any]:
    """What canvas and labels say."""
    index_N = torch.arange(distilled.count, device=distilled.device)
    chunks = torch.split(index_N, 1024)
    exact = [distilled(index_B) for index_B in chunks]
    numbers, decoder, drawn = dict[str, Numbers](), "", distilled.pixels
    originals, step_sizes = [image.cpu() for image in distilled.stored()], distilled.step_sizes()
    if isinstance(canvas, Parameterized):
        # rows are drawn from the numbers that are published, not from those before rounding
        tensors, stored = distilled.of("canvas"), canvas.numbers(distilled.of("canvas"))
        numbers = {name: packed(values, canvas.storage[name]) for name, values in stored.items()}
        tensors |= {name: of.read() for name, of in numbers.items()}
        decoder, drawn = canvas.decoder, partial(canvas.draw, tensors)
    images_NCHW = torch.cat([to_bytes(drawn(index_B)) for index_B in chunks]).cpu()
    if numbers:
        originals = list(DisplayPixels(images_NCHW))
    return {
        "images_NCHW": images_NCHW,
        "exact_NCHW": torch.cat([batch.images_BCHW for batch in exact]).cpu(),
        "targets_NK": torch.cat([batch.targets_BK for batch in exact]).cpu(),
        "originals": originals,
        "label_cells": []
        if canvas.examples_are_stored
        else _label_cells(distilled, len(originals)),
        "geometry": distilled.geometry(),
        "numbers": numbers,
        "decoder": decoder,
        "step_sizes": [] if step_sizes is None else step_sizes.tolist(),
        "order": objective.published_order(distilled.count),
    }


def packed(numbers: Tensor, storage: Storage) -> Numbers:
    """Numbers as they are published: 8 bits with scales or without, or half floats."""
    if storage == "float16":
        return Numbers(numbers.half(), None)
    if storage == "unit8":
        return Numbers(to_bytes(numbers), None)
    flat_MD = numbers.flatten(0, -2)
    low_D, high_D = flat_MD.amin(dim=0), flat_MD.amax(dim=0)
    # where all numbers are alike the step is nothing, and so is what it is multiplied by
    step_D = (high_D - low_D) / 255
    level = (numbers - low_D) / step_D.clamp(min=torch.finfo(step_D.dtype).tiny)
    return Numbers(level.round().clamp(0, 255).byte(), torch.stack([step_D, low_D]))


def _images(canvas: Canvas, images: DistilledImages, classes: int) -> dict[str, Any]:
    """What 8-bit images with hard labels say, none of them loaded."""
    classes_N = images.classes_N
    targets_NK = torch.zeros(len(classes_N), classes, dtype=torch.uint8)
    return {
        "images_NCHW": images.images_NCHW,
        "exact_NCHW": None,
        "targets_NK": targets_NK.scatter_(1, classes_N[:, None], 1),
        "originals": DisplayPixels(images.images_NCHW),
        "label_cells": [],
        "geometry": {"canvas": canvas.name},
        "step_sizes": [],
        "order": [],
    }


def follows(settings: Evaluate) -> dict[str, Any]:
    """What the published description of a student says of how it follows the published files."""
    falls = settings.schedule == "published_step"
    said = {
        "step_sizes": "step t, counted from 0, takes the value at t modulo their number of the "
        "column step_sizes of the configuration recipe"
        + (", from half of the steps on a tenth of it" if falls else ""),
        "order": "step t trains on the rows of default that order_json of the configuration "
        "recipe lists at t",
        "start": f"student s starts from row s modulo their number of weights_SP in {STARTS}, "
        "all weights in the order of torch's parameters()",
    }
    asked = {
        "step_sizes": settings.follows_step_sizes,
        "order": settings.order == "published",
        "start": settings.start == "distilled",
    }
    found = {name: text for name, text in said.items() if asked[name]}
    return {"follows": found} if found else {}


def _label_cells(distilled: Distilled, originals: int) -> list[Tensor]:
    """The cells that lie on each original: all on the one poster, or one on each of a mosaic."""
    table_GK = distilled.stored_labels().cpu()
    return list(torch.split(table_GK, len(table_GK) // originals))


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and device of a run, as far as they can change its numbers."""
    packages = ["torch", "torchvision", "datasets", "accelerate", "numpy"]
    name_of = getattr(torch.get_device_module(device), "get_device_name", None)
    name = name_of(device) if name_of is not None else platform.machine()
    return {
        "distill_datasets": distill_datasets.__version__,
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in packages},
        "device": f"{device.type} ({name})",
    }


def digest(content: Content) -> str:
    """The hash of every published number, and of how views were labeled."""
    tensors = [content.images_NCHW, content.targets_NK]
    tensors[1:1] = [] if content.exact_NCHW is None else [content.exact_NCHW]
    tensors += [] if content.starts_SP is None else [content.starts_SP]
    views = [] if content.relabel is None else [content.relabel.facts]
    return fingerprint([sha256_tensors(tensors), content.step_sizes, content.order, *views])
