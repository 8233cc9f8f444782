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
CANVASES: dict[str, dict[str, Any]] = {
    "podd": {"name": "poster", "crops": 48, "init": {"name": "noise", "std": 0.1}},
    "rat-bptt": {"name": "pixels", "init": {"name": "noise", "std": 0.1}},
}


def preset(method: str, ipc: float) -> dict[str, Any]:
    """The sections of a recipe, without its source.

    Args:
        method: `podd` (a poster, less than one image per class) or `rat-bptt` (whole images).
        ipc: images per class.

    Raises:
        RecipeError: no such method, or a budget that the method cannot use.
    """
    if method not in CANVASES:
        raise RecipeError(f"no method {method!r}; {did_you_mean(method, CANVASES)}")
    canvas = CANVASES[method] | {"ipc": ipc}
    if canvas["name"] == "pixels":
        if ipc != int(ipc):
            raise RecipeError(
                f"{method}: got ipc={ipc}, expected a whole number of images per class; for less "
                "than one use method='podd'"
            )
        canvas["ipc"] = int(ipc)
    return {
        "name": method,
        "distill": OUTER | {"canvas": canvas},
        "evaluate": {
            "network": NETWORK,
            "students": 4,
            "steps": 20,
            "optimizer": {"name": "adam", "lr": 0.001},
            "references": ["random_real"],
        },
    }
