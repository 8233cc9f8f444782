"""Sets that `torch.save` wrote: of one file with all experiments, or of images and labels apart.

The first is that of DC, DSA, DM and what was built on their code (github.com/VICO-UoE/
DatasetCondensation): `res_METHOD_DATASET_MODEL_Nipc.pt` is a dictionary whose `data` has a pair of
images and labels for every experiment, beside the accuracies in `accs_all_exps`. The other is that
of MTT, TESLA and DATM (github.com/GeorgeCazenavette/mtt-distillation,
github.com/NUS-HPC-AI-Lab/DATM): `images_best.pt` and `labels_best.pt`, the latter of classes or, in
DATM, of logits, and `lr_best.pt` where a step size was learned. Floats are in the space that
students see, which these files do not tell.

Shape suffixes: N training examples, K classes, C channels, H W pixels.
"""

from __future__ import annotations

import re
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distill_datasets.errors import ArtifactError, shown
from distill_datasets.files.pickled import read_pickled
from distill_datasets.layouts.outside import (
    Outside,
    checked_classes,
    checked_images,
    checked_shares,
)

if TYPE_CHECKING:
    from torch import Tensor

EXPERIMENTS, PAIR = "dc", "mtt"
_IMAGES = re.compile(r"images_(?P<which>(?:zca_)?(?:best|\d+))\.pt")
_METHOD = re.compile(r"res_(?P<method>DC|DSA|DM|IDC|DataDAM|IDM)_", re.IGNORECASE)


def is_experiments(path: Path) -> bool:
    """Whether a file is called as those of DC are; what is in it tells `read_experiments`."""
    return path.is_file() and path.suffix in (".pt", ".pth") and not _IMAGES.fullmatch(path.name)


def is_pair(path: Path) -> bool:
    """Whether a folder has, or a file is, the images of a run of MTT."""
    if path.is_file():
        return _IMAGES.fullmatch(path.name) is not None
    return path.is_dir() and (path / "images_best.pt").is_file()


def read_experiments(path: Path, experiment: int | None, classes: int | None) -> Outside:
    """One experiment of a file of DC, DSA or DM.

    Args:
        path: the file.
        experiment: its number, from 0; None is the first.
        classes: how many there are; None: as the labels tell.

    Raises:
        ArtifactError: the file is another, or holds what cannot be trained on.
    """
    content = read_pickled(path, "a dictionary with `data`: pairs of images and labels")
    pairs = content.get("data") if isinstance(content, dict) else None
    if not isinstance(pairs, list | tuple) or not pairs:
        raise ArtifactError(
            f"{path}: holds {_kind(content)}, expected a dictionary whose `data` is a list with "
            "[images, labels] for each experiment, as DC, DSA and DM save it"
        )
    chosen = experiment or 0
    if not 0 <= chosen < len(pairs):
        raise ArtifactError(
            f"{path}: no experiment {chosen}; it has {len(pairs)}, from 0 to {len(pairs) - 1}"
        )
    pair = pairs[chosen]
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise ArtifactError(
            f"{path}: experiment {chosen} is {_kind(pair)}, expected the pair [images, labels]"
        )
    where = f"{path}, experiment {chosen}"
    images_NCHW = checked_images(pair[0], where)
    targets_NK, notes = _targets(pair[1], len(images_NCHW), classes, where)
    if experiment is None and len(pairs) > 1:
        notes.append(
            f"of {len(pairs)} experiments in the file the first was taken (--experiment 0)"
        )
    named = _METHOD.match(path.name)
    return Outside(
        EXPERIMENTS,
        images_NCHW,
        targets_NK,
        None,
        [path],
        method=named["method"] if named else None,
        facts={
            "experiment": chosen,
            "experiments": len(pairs),
            **_accuracies(content.get("accs_all_exps")),
        },
        notes=notes,
    )


def read_pair(path: Path, classes: int | None) -> Outside:
    """Images and labels of one iteration of MTT, TESLA or DATM.

    Args:
        path: their folder, whose best ones are read, or the file of images.
        classes: how many there are; None: as the labels tell.

    Raises:
        ArtifactError: the labels are not beside the images, or one of both cannot be trained on.
    """
    images = path / "images_best.pt" if path.is_dir() else path
    found = _IMAGES.fullmatch(images.name)
    assert found is not None, "asked by `is_pair`"
    which = found["which"].removeprefix("zca_")
    labels, rate = images.with_name(f"labels_{which}.pt"), images.with_name(f"lr_{which}.pt")
    if not labels.is_file():
        beside = sorted(file.name for file in images.parent.glob("labels_*.pt"))
        raise ArtifactError(
            f"{labels}: no such file, and the labels of {images.name} are expected there; beside "
            f"it lie: {', '.join(beside) or 'no labels_*.pt'}"
        )
    images_NCHW = checked_images(read_pickled(images, "a tensor of images"), str(images))
    said = read_pickled(labels, "a tensor of labels")
    targets_NK, notes = _targets(said, len(images_NCHW), classes, str(labels))
    files, step_sizes = [images, labels], list[float]()
    if rate.is_file():
        step_sizes = _step_sizes(read_pickled(rate, "a learned step size"), rate)
        files.append(rate)
    whitened = None
    if found["which"].startswith("zca_"):
        notes.append("the authors trained in a whitened space, and these are its images in pixels")
    elif undone := sorted(images.parent.glob("images_zca_*.pt")):
        whitened = f"they are whitened (ZCA), as {undone[-1].name} beside them shows"
    return Outside(
        PAIR,
        images_NCHW,
        targets_NK,
        None,
        files,
        step_sizes=step_sizes,
        facts={"iteration": which},
        notes=notes,
        whitened=whitened,
    )


def _targets(
    labels: object, count: int, classes: int | None, where: str
) -> tuple[Tensor, list[str]]:
    """Targets (N, K) of classes, shares or logits, and what was done to make them."""
    if not isinstance(labels, torch.Tensor) or labels.ndim not in (1, 2):
        raise ArtifactError(
            f"{where}: the labels are {_kind(labels)}, expected a tensor of a class for every "
            "image, or of a row of all classes"
        )
    if labels.ndim == 1:
        return checked_classes(labels, count, classes, where), []
    labels_NK = labels.detach().cpu().float()
    sums_N = labels_NK.sum(dim=1)
    if bool(labels_NK.isfinite().all()) and (
        bool((labels_NK < 0).any()) or not torch.allclose(sums_N, torch.ones(()), atol=1e-3)
    ):
        note = "labels were logits: their softmax is what the authors' loss compares with"
        return checked_shares(labels_NK.softmax(dim=1), count, classes, where), [note]
    return checked_shares(labels_NK, count, classes, where), []


def _step_sizes(rate: object, path: Path) -> list[float]:
    values = rate if isinstance(rate, torch.Tensor) else torch.tensor(float("nan"))
    sizes = values.detach().cpu().double().flatten().tolist()
    if not sizes or not all(0 < size < float("inf") for size in sizes):
        raise ArtifactError(f"{path}: holds {_kind(rate)}, expected a positive step size")
    return sizes


def _accuracies(said: object) -> dict[str, Any]:
    """What the authors' own evaluation gave, by network; nothing where the file has none."""
    if not isinstance(said, dict):
        return {}
    means = {
        str(network): round(statistics.fmean(map(float, runs)), 6)
        for network, runs in said.items()
        if isinstance(runs, list) and runs and all(isinstance(run, int | float) for run in runs)
    }
    return {"accuracy_by_authors": means} if means else {}


def _kind(content: object) -> str:
    if isinstance(content, torch.Tensor):
        return f"a tensor of the shape {tuple(content.shape)}"
    if isinstance(content, dict):
        return f"a dictionary with the keys {shown(list(content))}"
    return f"a {type(content).__name__}"
