"""What an evaluation by the standard protocol says of itself, and what students score together.

Shape suffixes: K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from distill_datasets.evaluation.baselines import described
from distill_datasets.evaluation.contestants import Target
from distill_datasets.evaluation.levels import AUGMENT, NAME, Standard
from distill_datasets.evaluation.students import Students
from distill_datasets.training.intervals import Interval
from distill_datasets.training.rows import Regime

if TYPE_CHECKING:
    from distill_datasets.data.real import RealData


def summary(records: Sequence[dict[str, Any]], real: RealData) -> dict[str, Any]:
    """What the students of a row score, together."""
    recalls = [record["per_class"] for record in records]
    tested = [label for label, recall in enumerate(recalls[0]) if recall is not None]
    means = {label: sum(recall[label] for recall in recalls) / len(recalls) for label in tested}
    worst = min(means, key=lambda label: means[label])
    balanced = [sum(recall[label] for label in tested) / len(tested) for recall in recalls]
    found: dict[str, Any] = {
        "accuracy": Interval.of([record["accuracy"] for record in records]).as_json(),
        "runs": [{"seed": record["seed"], "accuracy": record["accuracy"]} for record in records],
        "per_class": [means.get(label) for label in range(real.shape.k)],
        "balanced": Interval.of(balanced).as_json(),
        "worst": {"class": real.class_names[worst], "accuracy": means[worst]},
        "calibration": {
            name: Interval.of([record["calibration"][name] for record in records]).as_json()
            for name in records[0]["calibration"]
        },
        "confusion": None,
    }
    if "confusion" in records[0]:
        found["confusion"] = torch.tensor([each["confusion"] for each in records]).sum(0).tolist()
    return found


def protocol_of(students: Students, settings: Standard) -> dict[str, Any]:
    """The numbers that were followed."""
    level, shape = students.level, students.real.shape
    held = len(students.rest.test.labels_N) if students.tunes else 0
    return {
        "name": NAME,
        "level": settings.level,
        "changed": settings.changed,
        "side_px": max(shape.h, shape.w),
        "network": described(students.network),
        "students": level.students,
        "steps": level.steps,
        "batch": level.batch,
        "optimizer": "adam",
        "schedule": "cosine",
        "rates": list(level.rates),
        "augment": AUGMENT.model_dump(mode="json"),
        "trials": 2 * len(level.rates),
        "held_out": {"share": 0.1, "scored": held},
        "test_images": len(students.real.test.labels_N),
        "interval": "95 % by Student's t over students",
    }


def target_of(target: Target, regimes: Sequence[Regime]) -> dict[str, Any]:
    """What was measured."""
    manifest = target.manifest
    return {
        "name": manifest["name"],
        "folder": target.folder.name,
        "identity": target.identity,
        "classes": manifest["classes"],
        "regimes": regimes,
        "budget": target.budget,
        "selection": "its settings may have been chosen on all training images",
    }


def source_of(real: RealData) -> dict[str, Any]:
    """What it was measured on."""
    labels_N = real.test.labels_N
    return {
        "train": len(real.train.labels_N),
        "test": len(labels_N),
        "classes": real.shape.k,
        "chance": int(labels_N.bincount().max()) / len(labels_N),
    }
