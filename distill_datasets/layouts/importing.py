"""Import: somebody else's distilled set becomes a published folder, with what is not known of it.

Nothing is made up: a method, a license or a source that nobody names stands there as unknown, and
so does the training of the authors' students.

Shape suffixes: N training examples, K classes, C channels, H W pixels.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill_datasets import __version__
from distill_datasets.data.opening import locate, without_places
from distill_datasets.data.provenance import SourceFile
from distill_datasets.errors import ArtifactError, DataError, RecipeError, shown
from distill_datasets.export.content import Content, DisplayPixels
from distill_datasets.export.folder import MANIFEST, check_writable, write_dataset
from distill_datasets.files.artifacts import canonical_json, sha256_of, sha256_text
from distill_datasets.files.yaml_text import to_yaml
from distill_datasets.hub import pinned as hub
from distill_datasets.layouts import npz, rows, tensors
from distill_datasets.layouts.fkd import RecordedLabels, read_fkd
from distill_datasets.layouts.layouts import known_layout, layout_of
from distill_datasets.layouts.outside import Outside
from distill_datasets.layouts.values import WHITENED, MeanStd, SpacedImages, to_values

logger = logging.getLogger("distill_datasets")

UNKNOWN = "unknown"
AND = " + "
"""Between the sources of a set that was made of sets of several."""
MOST_FILES = 1000
"""Files that the manifest names one by one; of more, the sha256 of all their hashes."""


@dataclass(frozen=True)
class Told:
    """What a user tells of a set, and its files do not. None is: not known.

    Attributes:
        name: title of the card; None: what the file or folder is called.
        source: the dataset that it was distilled from: a Hub id or a local path.
        method: in words; `paper` is its address or arXiv number.
        license: an identifier of the Hub.
        classes: names in the order of the labels.
    """

    name: str | None = None
    source: str | None = None
    method: str | None = None
    paper: str | None = None
    license: str | None = None
    classes: list[str] | None = None


def import_set(
    dataset: str,
    to: Path,
    *,
    layout: str | None = None,
    told: Told | None = None,
    space: MeanStd | None = None,
    experiment: int | None = None,
    config: str | None = None,
    revision: str | None = None,
    labels: Path | None = None,
) -> dict[str, Any]:
    """Read a foreign distilled set and write it as a published folder.

    Args:
        dataset: a file or folder of this machine, or a Hub id.
        to: new or empty folder.
        layout: a name of `LAYOUTS`; None finds out.
        told: what is known beside the files.
        space: mean and deviation that its floats were normalized with.
        experiment: of a file with several.
        config: of a Hub dataset with several.
        revision: of a Hub dataset.
        labels: the folder of labels of views, as FKD and SRe2L save them.

    Returns:
        The manifest.

    Raises:
        ArtifactError: it cannot be read as a distilled set, or the folder cannot be written.
    """
    told = told or Told()
    check_writable(to)
    if told.source is not None:
        _found(told.source, "--source: ")
    outside, where = read_outside(dataset, layout, told.classes, experiment, config, revision)
    logger.info("import: %s is read as %s", dataset, outside.layout)
    if outside.whitened and space != WHITENED:
        raise ArtifactError(
            f"{dataset}: {outside.whitened}; as they are they can be kept, but not shown truly or "
            "measured: import them with --like whitened, or what the authors have made of them in "
            "pixels"
        )
    values = to_values(outside.images_NCHW, space, dataset)
    recorded = None
    if labels is not None:
        height, width = values.images_NCHW.shape[2:]
        classes_N = outside.targets_NK.argmax(dim=1)
        recorded = read_fkd(labels, len(classes_N), (height, width), classes_N)
        outside.notes.extend(recorded.notes)
    content = _content(outside, values, told, dataset, where, recorded)
    for line in (*outside.notes, values.note):
        logger.info("import: %s", line)
    logger.info("import: not known: %s", ", ".join(_unknown(told, outside)))
    return write_dataset(to, content, None)


def read_outside(
    dataset: str,
    layout: str | None,
    classes: Sequence[str] | None,
    experiment: int | None,
    config: str | None,
    revision: str | None,
) -> tuple[Outside, dict[str, Any]]:
    """A foreign set, and where it was read: files with their hashes, or the commit on the Hub.

    Raises:
        ArtifactError: there is none, or it cannot be read.
    """
    path = _found(dataset)
    k = None if classes is None else len(classes)
    if path is None:
        if layout not in (None, rows.HUB):
            raise RecipeError(f"--layout: {layout} with {dataset!r}, which is no file or folder")
        pinned = hub.pin(dataset, revision)
        files = tuple(SourceFile(*file) for file in pinned.files)
        outside = rows.read_rows(dataset, None, config, pinned.commit, files)
        return outside, {"dataset": dataset, "revision": pinned.commit, "url": pinned.url}
    if revision is not None:
        raise RecipeError(f"--revision: {dataset!r} lies on this machine and has no revisions")
    if (path / MANIFEST).exists():
        raise ArtifactError(
            f"{dataset}: is in the published layout already; evaluate, verify or publish it as it "
            "is"
        )
    kind = known_layout(layout) if layout is not None else layout_of(path)
    if kind == tensors.EXPERIMENTS:
        outside = tensors.read_experiments(path, experiment, k)
    elif kind == tensors.PAIR:
        outside = tensors.read_pair(path, k)
    elif kind == npz.NPZ:
        outside = npz.read_npz(path, k)
    else:
        outside = rows.read_rows(dataset, path, config)
    if experiment is not None and kind != tensors.EXPERIMENTS:
        raise RecipeError(f"--experiment: {dataset!r} holds one set; leave it out")
    root = path if path.is_dir() else path.parent
    return outside, {"path": path.name, "files": _hashed(outside.files, root)}


def read_names(text: str) -> list[str]:
    """Names of classes as a user gives them: a file with a line each, or with commas between.

    Raises:
        RecipeError: some are alike, or there are fewer than two.
    """
    path = Path(text)
    if "," not in text and path.is_file():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"--classes: {text} cannot be read as text ({error})") from error
        names = [line.strip() for line in lines if line.strip()]
    else:
        names = [name.strip() for name in text.split(",") if name.strip()]
    if len(names) < 2 or len(set(names)) < len(names):
        raise RecipeError(
            f"--classes: got {shown(names)}, expected at least two names, all different: a file "
            "with a line for each class, or names with commas between them"
        )
    return names


def _found(dataset: str, what: str = "") -> Path | None:
    """Where a set lies; None is on the Hub."""
    try:
        return locate(dataset)
    except DataError as error:
        raise ArtifactError(what + str(error).removeprefix("source.dataset: ")) from error


def _hashed(files: list[Path], root: Path) -> list[dict[str, Any]]:
    """The files that were read, each with its hash; as one where they are too many to list."""
    named = [(file.relative_to(root).as_posix(), file) for file in files]
    if len(named) <= MOST_FILES:
        return [
            {"path": name, "bytes": file.stat().st_size, "sha256": sha256_of(file)}
            for name, file in named
        ]
    whole = sha256_text("".join(f"{name}\n{sha256_of(file)}\n" for name, file in named))
    size = sum(file.stat().st_size for file in files)
    return [{"path": f"{len(files)} files", "bytes": size, "sha256": whole}]


def _content(
    outside: Outside,
    values: SpacedImages,
    told: Told,
    dataset: str,
    where: dict[str, Any],
    recorded: RecordedLabels | None,
) -> Content:
    """The published content of a foreign set."""
    names = _names(outside, told.classes, dataset)
    name = told.name or _title(dataset)
    method = told.method or outside.method
    imported = {
        "layout": outside.layout,
        **where,
        "facts": outside.facts,
        "notes": [*outside.notes, values.note],
        "unknown": _unknown(told, outside),
        "by": {"library": "distill_datasets", "version": __version__},
    }
    recipe: dict[str, Any] = {"name": name, "imported": {"layout": outside.layout, "from": where}}
    if recorded is not None:
        recipe["relabel"] = recorded.relabel.model_dump(mode="json")
    _, c, h, w = values.images_NCHW.shape
    return Content(
        name=name,
        method=method or "unknown method",
        papers=[told.paper] if told.paper else [],
        class_names=names,
        images_NCHW=values.images_NCHW,
        exact_NCHW=values.exact_NCHW,
        targets_NK=outside.targets_NK,
        originals=DisplayPixels(values.images_NCHW),
        label_cells=[],
        geometry={"canvas": "pixels"},
        mean=values.mean,
        std=values.std,
        normalization={"kind": values.kind, "mean": values.mean, "std": values.std, "zca": None},
        constants={},
        step_sizes=outside.step_sizes,
        order=[],
        starts_SP=None,
        student={},
        layers=[],
        attack=None,
        recipe=recipe,
        recipe_yaml=to_yaml(recipe),
        recipe_sha256=sha256_text(canonical_json(recipe)),
        seed=-1,
        provenance=_provenance(told, outside),
        environment={"distill_datasets": __version__},
        real_shape=(c, h, w),
        relabel=None if recorded is None else recorded.labels,
        imported=imported,
    )


def _names(outside: Outside, classes: list[str] | None, dataset: str) -> list[str]:
    """The names of the classes: as told, as found, or their numbers."""
    k = outside.targets_NK.shape[1]
    found = outside.class_names or [str(label) for label in range(k)]
    if classes is None:
        return found
    if len(classes) != k:
        raise ArtifactError(
            f"{dataset}: {k} classes ({', '.join(found[:5])}{', ...' if k > 5 else ''}), and "
            f"--classes names {len(classes)}; name all of them, in the order of the labels"
        )
    if outside.class_names and set(classes) == set(found) and classes != found:
        raise ArtifactError(
            f"{dataset}: --classes names its own classes in another order than its labels have; "
            "leave it out, and they are matched with the source by name"
        )
    return classes


def _title(dataset: str) -> str:
    stem = Path(dataset).stem if Path(dataset).suffix else Path(dataset).name
    return re.sub(r"\s+", " ", stem) or "imported"


def _unknown(told: Told, outside: Outside) -> list[str]:
    """What nobody has told, as words of the card."""
    known = {
        "the method": told.method or outside.method,
        "the paper": told.paper,
        "the source": told.source,
        "the license": told.license or outside.license,
        "the names of the classes": told.classes
        or (None if rows.numbered(outside.class_names or ["0"]) else True),
    }
    return [*(name for name, value in known.items() if not value), "the authors' students"]


def _provenance(told: Told, outside: Outside) -> dict[str, Any]:
    """What is known of the real images, in the form of every other source."""
    source = told.source
    on_hub = source is not None and locate(source) is None
    return {
        "dataset": without_places({"dataset": source})["dataset"] if source else UNKNOWN,
        "config": None,
        "revision": None,
        "files": [],
        "license": told.license or outside.license,
        "card_url": f"https://huggingface.co/datasets/{source}" if on_hub else None,
        "splits": {},
        "overlap": {},
    }
