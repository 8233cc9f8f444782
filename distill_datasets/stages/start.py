"""Where the distilled set begins, and the file that keeps a start which takes long to make.

Canvas and labels start from real images. What a canvas fits to them is the same in every run of the
same section, source and seed, so that it is made once.

Shape suffixes: N examples, G cells, K classes, M members of the squeeze stage, C channels, H W
pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from distill_datasets.canvases.canvas import Canvas, CanvasStart, Cells
from distill_datasets.distilled import Distilled
from distill_datasets.files.artifacts import fingerprint, intact, read_tensors, write_tensors
from distill_datasets.labels.labels import Labels
from distill_datasets.objectives.objective import Objective
from distill_datasets.runtime.draws import rng_for
from distill_datasets.runtime.processes import Run

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.canvases.canvas import Tensors
    from distill_datasets.selection.selection import Teacher
    from distill_datasets.stages.source import LoadedSource
    from distill_datasets.stages.squeeze import SqueezedFolder

VERSION = 1


def started(
    canvas: Canvas,
    labels: Labels,
    objective: Objective,
    source: LoadedSource,
    run: Run,
    *,
    squeezed: SqueezedFolder | None = None,
) -> Distilled:
    """Canvas, labels and step sizes at their initial values, on the CPU.

    Squeezed networks that choose images or label them are asked on the device.
    """
    real = source.real
    if real.generator is not None:
        canvas = canvas.with_generator(real.generator) or canvas
    space = real.normalization.to(torch.device("cpu")).input_space
    asked = canvas.needs_squeezed or labels.needs_squeezed
    teacher = squeezed.on(run.runtime.device) if squeezed is not None and asked else None
    images = (
        _kept(canvas, source, run) if canvas.keeps_start else _made(canvas, source, run, teacher)
    )
    logits_MNK = None
    if labels.needs_squeezed and teacher is not None:
        every_N = torch.arange(len(images.cells.shown))
        pixels_NCHW = canvas.decode(images.trained | images.constants, every_N)
        logits_MNK = teacher(space.to_student(pixels_NCHW))
    targets = labels.start(images.cells, real.shape.k, logits_MNK)
    return Distilled(canvas, labels, space, images, targets, objective.step_sizes())


def _made(
    canvas: Canvas, source: LoadedSource, run: Run, teacher: Teacher | None = None
) -> CanvasStart:
    return canvas.start(source.real, rng_for(run.seed, "canvas"), teacher)


def _kept(canvas: Canvas, source: LoadedSource, run: Run) -> CanvasStart:
    """The start of a canvas as an earlier run has left it, or made now and left for later ones."""
    section = canvas.model_dump(mode="json")
    identity = fingerprint([VERSION, "start", section, source.fingerprint, run.seed])
    path = run.folder / f"start-{identity}.safetensors"
    found = intact(path, read_tensors)
    if found is not None:
        tensors, order = found
        return _unpacked({name: tensors[name] for name in order})
    made = _made(canvas, source, run)
    if run.runtime.is_main:
        packed = _packed(made)
        # a file of tensors has an order of its own
        write_tensors(path, packed, list(packed))
    return made


def _packed(start: CanvasStart) -> dict[str, Tensor]:
    groups = {
        "trained": start.trained,
        "constants": start.constants,
        "cells": start.cells._asdict(),
    }
    return {
        f"{group}/{name}": tensor
        for group, tensors in groups.items()
        for name, tensor in tensors.items()
    }


def _unpacked(packed: dict[str, Tensor]) -> CanvasStart:
    def of(group: str) -> Tensors:
        prefix = f"{group}/"
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in packed.items()
            if name.startswith(prefix)
        }

    return CanvasStart(of("trained"), of("constants"), Cells(**of("cells")))
