"""Every recipe of the folder is read, planned as it is and run at toy scale by the command line.

A recipe that names a Hub dataset meets a stand-in with the columns, classes and sizes of that
dataset. Shrinking follows the names of keys, so a new recipe is covered as soon as it is there.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pytest
from PIL import Image
from support.image_sets import noise
from support.other_kinds import folder_of
from support.toy_runs import command, toy_file

from distill_datasets.export.folder import read_manifest, verify
from distill_datasets.files.yaml_text import from_yaml
from distill_datasets.recipe import Recipe, load_recipe

FOLDER = Path(__file__).parent.parent / "recipes"
FILES = sorted(FOLDER.rglob("*.y*ml"))
HEADER = ["What", "Run", "Cost", "Result"]
SMALL = {
    "steps": 2,
    "epochs": 1,
    "lanes": 2,
    "inner_steps": 3,
    "window": 2,
    "ipc": 1,
    "batch": 10,
    "real_batch": 4,  # a class of a stand-in has no more
    "students": 1,
    "full_students": 1,
    "full_epochs": 1,
    "previews": 1,
    "limit": 200,
    "members": 2,
    "held_out": 1,
    "first": 0,
    "last": 2,
    "gap": 1,
    "start_last": 1,
    "outer": 2,
    "every": 2,
    "real_images": 8,
    "match_batch": 8,
    "candidates": 4,
    "warmup_epochs": 0,
}
SMALL_RESNET = "{name: resnet, depth: 18, width: 4}"
SMALL_GENERATOR = (
    "{name: trained, steps: 2, autoencoder: {epochs: 1, batch: 10, channels: 2, width: 8}, "
    "flow: {epochs: 1, batch: 10, width: 8}}"
)
WIDTH = 4
EXPERT_EPOCHS = 3


class Known(NamedTuple):
    """What a dataset looks like: channels, side in pixels, and classes of every label column."""

    channels: int
    side: int
    classes: dict[str, int]
    image: str = "image"
    test: str = "test"
    some_gray: bool = False
    task: str = "classes"
    files: str = ""
    """The kind of the files in folders where these are no images, as in `other_kinds`."""


EMBEDDED = Known(1, 8, {"label": 10})
KNOWN = {
    "uoft-cs/cifar10": Known(3, 32, {"label": 10}, image="img"),
    "uoft-cs/cifar100": Known(3, 32, {"fine_label": 100, "coarse_label": 20}, image="img"),
    "ylecun/mnist": Known(1, 28, {"label": 10}),
    "zalando-datasets/fashion_mnist": Known(1, 28, {"label": 10}),
    "zh-plus/tiny-imagenet": Known(3, 64, {"label": 200}, test="valid", some_gray=True),
    "path/to/photos": Known(3, 120, {"label": 3}),
    "path/to/cub200": Known(3, 40, {"label": 200}, some_gray=True),
    "path/to/bands": Known(4, 8, {"label": 3}, image="bands"),
    "path/to/sounds": Known(1, 32, {"label": 4}, files="audio"),
    "path/to/clips": Known(3, 24, {"label": 4}, files="video"),
    "path/to/scans": Known(1, 24, {"label": 4}, files="nifti"),
    "path/to/grouped": Known(3, 8, {"label": 10, "ground": 2}),
    "path/to/tagged": Known(1, 8, {"labels": 4}, task="labels"),
    "path/to/numbered": Known(1, 8, {"x": 4, "y": 3}, task="values"),
    "path/to/mnist-m": Known(3, 32, {"label": 10}),
    "johnowhitaker/imagenette2-320": Known(
        3, 240, {"label": 10}, test="validation", some_gray=True
    ),
    # fewer classes than in truth, so that the stand-ins are made in a moment
    "ILSVRC/imagenet-1k": Known(3, 240, {"label": 12}, test="validation", some_gray=True),
    "path/to/imagenet-21k-p": Known(3, 240, {"label": 12}, some_gray=True),
}
DISTILLED = "path/to/mnist-dm-ipc1"


def stand_in(known: Known, folder: Path) -> Path:
    """A dataset of that look, four training images and one test image of each class."""
    if known.files:
        return folder_of(known.files, folder, {"train": 4, "test": 1})
    count = max(known.classes.values())

    def feature(column: str, classes: int) -> Any:  # noqa: ANN401
        names = datasets.ClassLabel(names=[f"{column} {label}" for label in range(classes)])
        numbers = datasets.Value("float32")
        kinds = {"classes": names, "labels": datasets.List(names), "values": numbers}
        return kinds[known.task]

    def cell(place: int) -> Any:  # noqa: ANN401
        return sorted({place, (place + 1) % 4}) if known.task == "labels" else place

    arrays = datasets.Array3D((known.channels, known.side, known.side), "uint8")
    pictured = known.channels in (1, 3)
    features = {
        known.image: datasets.Image() if pictured else arrays,
        **{column: feature(column, classes) for column, classes in known.classes.items()},
    }
    for split, each in (("train", 4), (known.test, 1)):
        images_NCHW = noise(each * count, known.channels, known.side, seed=each).numpy()
        images = [
            Image.fromarray(image.transpose(1, 2, 0).squeeze()) if pictured else image
            for image in images_NCHW
        ]
        if known.some_gray:
            images[-1] = images[-1].convert("L")
        columns: dict[str, list[Any]] = {
            known.image: images,
            **{
                column: [cell(row % count % classes) for row in range(each * count)]
                for column, classes in known.classes.items()
            },
        }
        rows = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """The stand-ins that were made so far, and a cache of their own."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        yield {}


@pytest.fixture
def source(
    recipe: Path, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Known, list[str]]:
    """What the recipe's dataset looks like, and the overrides that lead to stand-ins of all."""
    overrides = []
    for path, name in leaves(load_recipe(recipe).resolved()):
        if not path.endswith(".dataset") or name.startswith("embedded:"):
            continue
        if name not in folders:
            if name == DISTILLED:
                folders[name] = small_distilled_set(tmp_path_factory.mktemp("distilled"))
            else:
                assert name in KNOWN, f"say in KNOWN what {name!r} looks like"
                folders[name] = stand_in(KNOWN[name], tmp_path_factory.mktemp("stand-in") / "data")
        overrides += [f"{path}={folders[name]}", f"{path.removesuffix('dataset')}revision=null"]
    return KNOWN.get(load_recipe(recipe).source.dataset, EMBEDDED), overrides


def small_distilled_set(folder: Path) -> Path:
    """What `run` writes for a recipe of one image per class."""
    out = folder / "out"
    answer = command("run", toy_file(folder), "distill.canvas={name: pixels, ipc: 1}",
                     "distill.steps=1", "--runs", folder / "runs", "--output", out)  # fmt: skip
    assert answer.code == 0, answer.err
    return out


def leaves(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a resolved recipe with its path."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def shrunk(recipe: Path, known: Known) -> list[str]:
    """Overrides that make any recipe small: less of everything, on small images.

    A poster of a fixed size shrinks with the images, so its grid of crops stays the recipe's.
    """
    resolved = load_recipe(recipe).resolved()
    values = dict(leaves(resolved))
    deep = [
        2**value
        for path, value in values.items()
        if path.endswith(".depth") and value and values[f"{path[:-5]}name"] == "convnet"
    ]
    side = max([8, *deep, *(12 for value in values.values() if value == "lenet")])
    before = values["source.resolution"] or known.side
    overrides = [f"source.resolution={side}", "evaluate.beyond=null"]
    for path, value in values.items():
        key = path.rpartition(".")[2]
        if path.startswith("evaluate.beyond."):
            continue  # an override of a part of it would bring it back
        if key in SMALL and value is not None:
            overrides.append(f"{path}={min(value, SMALL[key])}")
        elif path.endswith("network.width"):
            overrides.append(f"{path}={WIDTH}")
        elif path == "distill.canvas.side":
            # three images of a class: no more than the toy has
            overrides.append(f"{path}={side * 3 // 4}")
        elif path == "distill.canvas.bases":
            # no more than a small image has values, and no more images than the toy has
            most = min(value, 16 if max(known.classes.values()) >= 10 else 4)
            overrides += [f"{path}={most}", "distill.canvas.ipc=0.5"]
        elif path in ("distill.canvas.height", "distill.canvas.width") and value is not None:
            overrides.append(f"{path}={math.ceil(value * side / before)}")
        elif path == "distill.canvas.crops" and values.get("distill.canvas.height"):
            # there are fewer places for crops, too
            free = (
                math.ceil(values[f"distill.canvas.{axis}"] * side / before) - side
                for axis in ("height", "width")
            )
            grid = [min(count, room + 1) for count, room in zip(value, free, strict=True)]
            overrides.append(f"{path}={grid}")
    if values.get("distill.objective.learn_step_sizes"):  # each step that is taken is tracked
        small = SMALL["window"]
        overrides += [f"distill.objective.inner_steps={small}", f"evaluate.steps={small}"]
    if values.get("distill.canvas.init.name") == "correct":  # nobody is right about noise
        overrides.append("distill.canvas.init=real")
    for axis in ("squeeze", "evaluate"):
        if values.get(f"{axis}.network.name") == "torchvision":
            overrides.append(f"{axis}.network={SMALL_RESNET}")
    if values.get("squeeze.weights"):
        members = min(2, len(values["squeeze.weights"]))
        overrides.append(
            f"squeeze={{network: {SMALL_RESNET}, members: {members}, epochs: 1, batch: 10}}"
        )
    if values.get("generator.name") == "diffusers":  # whose weights nobody downloads here
        overrides.append(f"generator={SMALL_GENERATOR}")
    if values["distill.networks.name"] == "teachers":
        overrides.append("squeeze.least_accuracy=0")  # nobody is right about noise
    if values["distill.objective.name"] == "recover":
        overrides += ["distill.objective.match_batch=null", "distill.objective.compile=false"]
    if values.get("squeeze.keep") == "every":
        overrides.append(f"squeeze.epochs={EXPERT_EPOCHS}")
    if resolved["squeeze"] is not None and resolved["squeeze"]["source"] is not None:
        overrides.append(f"squeeze.source.resolution={side}")
    if resolved["source"]["limit"] is None and known is EMBEDDED:
        overrides.append(f"source.limit={SMALL['limit']}")
    return overrides


def name_of(recipe: Path) -> str:
    """The folder of its data set and the name of its file in one word."""
    return "-".join(recipe.relative_to(FOLDER).with_suffix("").parts)


@pytest.fixture(params=FILES, ids=name_of)
def recipe(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_there_are_recipes() -> None:
    assert FOLDER / "quickstart.yaml" in FILES


def test_a_recipe_is_valid_and_has_the_name_of_its_file(recipe: Path) -> None:
    assert load_recipe(recipe).name == name_of(recipe)


def test_every_profile_of_a_recipe_is_valid(recipe: Path) -> None:
    plain = load_recipe(recipe)
    for profile in from_yaml(recipe.read_text(encoding="utf-8")).get("profiles", {}):
        assert load_recipe(recipe, profile=profile) != plain


def test_a_recipe_says_what_it_is_how_to_run_it_what_it_costs_and_what_it_gave(
    recipe: Path,
) -> None:
    lines = recipe.read_text(encoding="utf-8").splitlines()
    header = lines[: next(row for row, line in enumerate(lines) if not line.startswith("#"))]
    said = {
        title: line.partition(":")[2].strip()
        for line in header
        for title in HEADER
        if line.startswith(f"# {title}:")
    }
    assert list(said) == HEADER and all(said.values())
    assert said["Run"].startswith(f"distill-datasets run recipes/{recipe.relative_to(FOLDER)}")


def test_a_recipe_fits_the_sizes_and_classes_of_its_dataset(
    recipe: Path, source: tuple[Known, list[str]]
) -> None:
    known, overrides = source
    answer = command("plan", recipe, *overrides)
    assert answer.code == 0, answer.err
    settings = load_recipe(recipe).source
    label = settings.label_column or ("labels" if known.task == "labels" else "label")
    classes = len(settings.label_columns or settings.classes or []) or known.classes[label]
    if settings.expected is not None:  # plan takes its word for it
        classes = settings.expected.classes
    assert f"; {classes} classes" in answer.out
    side = settings.resolution or known.side
    assert f" x {side} x {side} px" in answer.out


def test_a_recipe_runs_at_toy_scale(
    recipe: Path, source: tuple[Known, list[str]], tmp_path: Path
) -> None:
    known, overrides = source
    out = tmp_path / "out"
    where = ["--runs", tmp_path / "runs", "--output", out, "--quiet"]
    answer = command("run", recipe, *shrunk(recipe, known), *overrides, *where)
    assert (answer.code, answer.err) == (0, ""), answer.err
    assert verify(out) == []
    assert [row["from"] for row in read_manifest(out)["results"]] == rows_of(load_recipe(recipe))


def rows_of(recipe: Recipe) -> list[str]:
    """What a recipe compares; with labels of views, everything with hard labels as well."""
    measured = recipe.evaluate
    if recipe.relabel is None:
        rows = ["default", *(["exact"] if measured.exact else [])]
        return [*rows, *(["start"] if measured.start == "distilled" else []), *measured.references]
    rows = ["default", "hard"]
    for name in measured.references:
        rows += [name] if name == "full" else [name, f"{name}_hard"]
    return [*rows, "teacher"]
