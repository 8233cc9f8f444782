"""Ready recipes for Python: a method's name and a budget become the sections of a recipe.

They are modest settings that a laptop finishes in minutes; the papers' settings are the recipe
files.
"""

from typing import Any

from distill_datasets.errors import RecipeError, did_you_mean

NETWORK: dict[str, Any] = {"name": "convnet", "width": 32}
INNER: dict[str, Any] = {
    "name": "unrolled",
    "inner_steps": 20,
    "window": 10,
    "real_batch": 256,
    "optimizer": {"name": "adam", "lr": 0.001},
}
OUTER: dict[str, Any] = {
    "steps": 500,
    "lanes": 2,
    "schedule": "cosine",
    "optimizer": {"name": "adam", "lr": 0.1},
    "label_optimizer": {"name": "adam", "lr": 0.05},
    "objective": INNER,
    "labels": "learned",
    "networks": {"name": "fresh", "network": NETWORK},
}
MATCHED: dict[str, Any] = {
    "steps": 200,
    "clip": None,
    "optimizer": {"name": "sgd", "lr": 1.0, "momentum": 0.5},
    "objective": {"name": "distribution", "real_batch": 128},
    "labels": "area",
    "networks": {"name": "fresh", "network": {"name": "convnet"}},
}
NOISE: dict[str, Any] = {"name": "noise", "std": 0.1}
METHODS: dict[str, dict[str, Any]] = {
    "podd": OUTER | {"canvas": {"name": "poster", "crops": 48, "init": NOISE}},
    "rat-bptt": OUTER | {"canvas": {"name": "pixels", "init": NOISE}},
    "dm": MATCHED | {"canvas": {"name": "pixels", "init": "real", "bounds": "clip"}},
}
STUDENT_STEPS = {"podd": 20, "rat-bptt": 20, "dm": 300}


def preset(method: str, ipc: float) -> dict[str, Any]:
    """The sections of a recipe, without its source.

    Args:
        method: `podd` (a poster, less than one image per class), or whole images by `rat-bptt` or
            by distribution matching, `dm`.
        ipc: images per class.

    Raises:
        RecipeError: no such method, or a budget that the method cannot use.
    """
    if method not in METHODS:
        raise RecipeError(f"no method {method!r}; {did_you_mean(method, METHODS)}")
    canvas = METHODS[method]["canvas"] | {"ipc": ipc}
    if canvas["name"] == "pixels":
        if ipc != int(ipc):
            raise RecipeError(
                f"{method}: got ipc={ipc}, expected a whole number of images per class; for less "
                "than one use method='podd'"
            )
        canvas["ipc"] = int(ipc)
    return {
        "name": method,
        "distill": METHODS[method] | {"canvas": canvas},
        "evaluate": {
            "network": METHODS[method]["networks"]["network"],
            "students": 4,
            "steps": STUDENT_STEPS[method],
            "optimizer": {"name": "adam", "lr": 0.001},
            "references": ["random_real"],
        },
    }
