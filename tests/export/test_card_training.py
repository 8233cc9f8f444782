"""The card's own lines train as the students that were measured: schedule, motions, accuracy.

Shape suffixes: N examples, B a batch, C channels, H W pixels.
"""

import statistics
from pathlib import Path
from typing import Any, cast, get_args

import pytest
import torch
from support.sample_content import sample
from support.tiny import CPU, toy_real

from distill_datasets.evaluation.protocol import Evaluate
from distill_datasets.export.card import pace_in_python, training
from distill_datasets.export.content import Content
from distill_datasets.export.folder import write_dataset
from distill_datasets.export.reading import read_published
from distill_datasets.pipeline.content import chain
from distill_datasets.runtime.draws import draws
from distill_datasets.training.metrics import accuracy
from distill_datasets.training.student import pace, train_student
from distill_datasets.views.augment import Augment, Operation

REAL = toy_real(noise=60.0)
NETWORK = {"name": "convnet", "depth": 1, "width": 8}
BASE = {"network": NETWORK, "steps": 60, "optimizer": {"name": "adam", "lr": 0.003}}
STUDENTS: list[dict[str, Any]] = [
    {},
    {"optimizer": {"name": "sgd", "lr": 0.02, "weight_decay": 0.001}, "schedule": "step"},
    {
        "batch": 5,
        "schedule": "cosine",
        "smoothing": 2,
        "warmup_epochs": 3,
        "ema": 0.9,
        "label_smoothing": 0.1,
        "optimizer": {"name": "adamw", "lr": 0.01},
        "augment": {"operations": ["flip", "shift", "cutout"]},
    },
    {"network": {**NETWORK, "norm": "batch"}, "augment": {"operations": ["scale"]}},
    {"network": {"name": "mlp", "width": 16}, "steps": None, "epochs": 30, "batch": 5},
]


def content_of(settings: Evaluate) -> Content:
    """A few real images as if they had been distilled, with this student."""
    rows_N = torch.cat([own_N[:4] for own_N in REAL.rows_of_class])
    images_NCHW = REAL.train.images_NCHW[rows_N]
    batch = REAL.select(rows_N)
    space = REAL.normalization.input_space
    return sample(
        images_NCHW=images_NCHW,
        exact_NCHW=batch.images_BCHW,
        targets_NK=batch.targets_BK,
        originals=list(images_NCHW.float() / 255),
        label_cells=[],
        geometry={"canvas": "pixels"},
        mean=space.mean_C.tolist(),
        std=space.std_C.tolist(),
        layers=chain(settings.network.build(REAL.shape)),
        student=settings.model_dump(mode="json"),
    )


@pytest.mark.parametrize("changes", STUDENTS, ids=range(len(STUDENTS)))
def test_the_lines_of_the_card_reach_what_the_students_reach(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    settings = Evaluate.model_validate(BASE | changes)
    content = content_of(settings)
    write_dataset(tmp_path / "data", content, None)
    lines = compile(training(content, str(tmp_path / "data")), "card", "exec")
    examples = read_published(tmp_path / "data", "default", REAL.shape)
    steps = settings.duration(examples.count)
    measured, pasted = [], []
    for seed in range(6):
        draw = draws(seed, "student")
        module = train_student(settings, steps, examples, REAL.shape, draw, CPU)
        measured.append(accuracy(module, REAL.test_batches(200)))
        scope: dict[str, Any] = {}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            exec(lines, scope)
        pasted.append(accuracy(scope["net"], REAL.test_batches(200)))
    spread = statistics.stdev(measured) + statistics.stdev(pasted)
    assert statistics.fmean(measured) > 0.5  # a guess is right for a third
    assert abs(statistics.fmean(measured) - statistics.fmean(pasted)) <= spread + 0.01


@pytest.mark.parametrize(
    "fields",
    [
        {"schedule": "constant"},
        {"schedule": "cosine"},
        {"schedule": "step"},
        {"schedule": "cosine", "smoothing": 2.0, "warmup_epochs": 2},
        {"schedule": "step", "warmup_epochs": 1},
    ],
)
def test_the_pace_of_the_card_is_that_of_the_students(fields: dict[str, Any]) -> None:
    import math

    settings = Evaluate.model_validate({"epochs": 6, **fields})
    said = pace_in_python(settings.model_dump(), 24, 4)
    for step in range(24):
        found = 1.0 if said is None else eval(said, {"math": math, "step": step})
        assert found == pytest.approx(pace(settings, step, 24, 4), abs=1e-4)


@pytest.mark.parametrize("operation", get_args(Operation))
def test_the_motions_of_the_card_are_those_of_the_students(operation: str) -> None:
    """Over many draws, every pixel has the same mean and the same spread."""
    augment = Augment.model_validate({"operations": [operation], "crop_fraction": 0.25})
    settings = Evaluate.model_validate(BASE | {"augment": augment.model_dump()})
    lines = training(content_of(settings), "a/b")
    code = lines[lines.index("def moved") : lines.index("for step in")]
    scope: dict[str, Any] = {"torch": torch, "math": __import__("math")}
    exec(code, scope)
    image_CHW = torch.rand(2, 6, 9, generator=torch.Generator().manual_seed(0))
    same_BCHW = image_CHW.expand(6000, -1, -1, -1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found_BCHW = scope["moved"](same_BCHW)
    ours_BCHW = augment(same_BCHW, torch.Generator().manual_seed(1))
    assert cast("torch.Tensor", found_BCHW).shape == ours_BCHW.shape
    torch.testing.assert_close(found_BCHW.mean(0), ours_BCHW.mean(0), atol=0.03, rtol=0)
    torch.testing.assert_close(found_BCHW.std(0), ours_BCHW.std(0), atol=0.03, rtol=0)


def test_of_several_motions_one_is_drawn_for_a_batch_or_all_are_made() -> None:
    for choose, kinds in (("one", 2), ("all", 1)):
        moves = {"operations": ["flip", "color"], "choose": choose}
        lines = training(content_of(Evaluate.model_validate(BASE | {"augment": moves})), "a/b")
        scope: dict[str, Any] = {"torch": torch}
        exec(lines[lines.index("def moved") : lines.index("for step in")], scope)
        image_BCHW = torch.rand(1, 1, 4, 4).expand(64, -1, -1, -1)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            moved = [scope["moved"](image_BCHW) for _ in range(20)]
        colored = {len(each.sum(dim=(1, 2, 3)).mul(1e3).round().unique()) > 2 for each in moved}
        assert len(colored) == kinds and True in colored
