"""Toy recipes of several families, which between them have every stage that can be gone on from."""

from typing import Any

from support.toy_runs import CONVNET, TOY

BATCH_NORM = {**CONVNET, "norm": "batch"}
EVALUATE = {
    "network": CONVNET,
    "students": 2,
    "steps": 12,
    "batch": 4,
    "checkpoint_seconds": 0.0,
    "beyond": None,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "poster": {**TOY, "name": "poster", "evaluate": EVALUATE},
    "distribution": {
        "name": "distribution",
        "source": TOY["source"],
        "distill": {
            "steps": 6,
            "checkpoint_seconds": 0.0,
            "canvas": {"name": "pixels", "ipc": 1},
            "labels": "area",
            "networks": {"name": "fresh", "network": CONVNET},
            "objective": {"name": "distribution", "real_batch": 32},
        },
        "evaluate": EVALUATE,
    },
    "decoupled": {
        "name": "decoupled",
        "source": TOY["source"],
        "squeeze": {
            "network": BATCH_NORM,
            "epochs": 3,
            "batch": 50,
            "members": 2,
            "checkpoint_seconds": 0.0,
            "least_accuracy": 0.0,
        },
        "distill": {
            "objective": {"name": "recover", "match_batch": 5, "roll": 1},
            "canvas": {
                "name": "pixels",
                "ipc": 1,
                "bounds": "clip",
                "init": {"name": "noise", "std": 0.25},
            },
            "labels": "area",
            "networks": "teachers",
            "steps": 4,
            "residual": {"every": 2},
            "checkpoint_seconds": 0.0,
        },
        "relabel": {"epochs": 3, "batch": 5},
        "evaluate": {
            **EVALUATE,
            "loss": "kl",
            "temperature": 20.0,
            "hard_passes": {"first": 1, "until": 2},
            "hard": False,
        },
    },
    "trajectory": {
        "name": "trajectory",
        "source": TOY["source"],
        "squeeze": {
            "network": CONVNET,
            "epochs": 3,
            "batch": 50,
            "members": 2,
            "keep": "every",
            "checkpoint_seconds": 0.0,
        },
        "distill": {
            "steps": 4,
            "checkpoint_seconds": 0.0,
            "canvas": {"name": "pixels", "ipc": 1},
            "labels": "area",
            "networks": {"name": "trajectories", "gap": 2, "last": 2},
            "objective": {"name": "trajectory", "steps": 3, "step_size": 0.01},
        },
        "evaluate": EVALUATE,
    },
}
