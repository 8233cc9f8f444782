"""Write the folders that are published: rows, card, recipe, and a manifest of every byte.

A dataset is one folder; labels of views that are too large for it lie in a sibling of their own. A
folder appears under its name when it is complete, by one rename; what a user already has there is
never touched. Equal content gives equal bytes, so publishing it twice changes nothing.
"""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from distill_datasets import __version__
from distill_datasets.errors import ArtifactError, RecipeError
from distill_datasets.export.card import card, labels_card
from distill_datasets.export.configs import PICTURED, configs
from distill_datasets.export.content import (
    CLASSIFIER,
    SIBLING,
    STARTS,
    Content,
    ViewLabels,
    budget,
    check,
    rounding_error,
    sibling_of,
)
from distill_datasets.export.edited import own_parts
from distill_datasets.export.pictures import class_sheet
from distill_datasets.files.artifacts import (
    fingerprint,
    read_json,
    sha256_of,
    write_atomically,
    write_json,
    write_tensors,
    write_text,
)
from distill_datasets.files.parquet import Config, write_parquet
from distill_datasets.files.yaml_text import from_yaml, to_yaml
from distill_datasets.media.image import overview
from distill_datasets.types import Task

MANIFEST = "distill.json"
RECIPE = "recipe.yaml"
CARD = "README.md"
_LIBRARY = "distill_datasets"
_SCHEMA_VERSION = 1
_CONSTANTS = "constants/zca.safetensors"


def write_dataset(
    folder: Path,
    content: Content,
    results: list[dict[str, Any]] | None,
    made: Path | None = None,
) -> dict[str, Any]:
    """Write the whole published folder, and beside it the folder of large label shards.

    Args:
        folder: new or empty.
        content: what was distilled.
        results: one row per evaluation, or None when there is none yet. The configurations
            `default`, `poster` and `exact` are the same bytes in both cases.
        made: a folder of the same content, whose rows are copied rather than made again.

    Returns:
        The manifest, as in `distill.json`.

    Raises:
        ArtifactError: the content cannot be published, or the folder is taken or unwritable.
    """
    folder = folder.absolute()
    check(content)
    check_writable(folder)
    labels = content.relabel
    if labels is not None and labels.shards is not None:
        _write_shards(sibling_of(folder), content, labels, made and sibling_of(made))
    with appearing(folder) as temporary:
        return _write(temporary, content, results, made)


def check_writable(folder: Path) -> None:
    """Find out before expensive work whether `write_dataset` may make `folder`.

    Raises:
        ArtifactError: the folder holds something already, is a file, or cannot be made.
    """
    folder = folder.absolute()
    if folder.exists() and not folder.is_dir():
        raise ArtifactError(f"{folder}: a file has this name; choose another folder")
    try:
        if folder.is_dir() and any(folder.iterdir()):
            raise ArtifactError(
                f"{folder}: not empty, and nothing in it will be overwritten; "
                "choose a new folder or move this one away"
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder.parent):
            pass
    except OSError as error:
        raise _unwritable(folder, error) from error


def check_shards(folder: Path, recipe_sha256: str) -> None:
    """Find out before expensive work whether `write_dataset` may put label shards into `folder`.

    Raises:
        ArtifactError: it holds something else than the shards of this recipe.
    """
    if (folder / MANIFEST).exists():
        if read_json(folder / MANIFEST).get("labels_of") == recipe_sha256:
            return
    elif not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    raise ArtifactError(
        f"{folder}: the labels of views go here, and something else is there, which will not be "
        "overwritten; move it away or choose another folder with --output"
    )


def task_of(manifest: dict[str, Any]) -> Task:
    """What the targets of a dataset are, by its manifest."""
    task: Task = manifest.get("task", "classes")
    return task


def check_of_classes(folder: Path, manifest: dict[str, Any], what: str) -> None:
    """Refuse a dataset whose targets are no classes, or whose images are no pictures.

    Raises:
        ArtifactError: they are labels or numbers, which `what` says nothing about.
    """
    channels = manifest.get("input", {}).get("shape", [1])[0]
    if channels not in PICTURED:
        raise ArtifactError(
            f"{folder}: its images have {channels} channels, and {what} is about pictures; its own "
            "results are in results.json, and `verify`, `show`, `diff`, `report`, `compare`, "
            "`gallery`, `pull` and `publish` take it"
        )
    task = task_of(manifest)
    if task != "classes":
        raise ArtifactError(
            f"{folder}: its targets are {task}, and {what} is about classes; its results are in "
            "results.json, and `verify`, `show`, `diff`, `report`, `compare`, `gallery`, `pull` "
            "and `publish` take it"
        )


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder that `write_dataset` wrote.

    Raises:
        ArtifactError: there is none, or it is not one of ours.
    """
    try:
        manifest = read_json(folder / MANIFEST)
    except ArtifactError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        raise ArtifactError(
            f"{error}; give the folder of a dataset that `distill-datasets run` finished"
        ) from error
    match manifest:
        case {"library": {"name": str(name)}, "schema_version": int(version), "files": list()}:
            if (name, version) == (_LIBRARY, _SCHEMA_VERSION):
                return dict(manifest)
    raise ArtifactError(
        f"{folder / MANIFEST}: not the manifest of a dataset of this library, schema version "
        f"{_SCHEMA_VERSION}; give the folder that `distill-datasets run` wrote"
    )


def rows_hash(folder: Path) -> str:
    """Of the files of all configurations, as the card of a published folder states it."""
    manifest = read_manifest(folder)
    known = {file["path"]: file["sha256"] for file in manifest["files"]}
    return fingerprint(
        [
            known[path]
            for config in manifest["configs"].values()
            for path in sorted(known)
            if Path(path).parent == Path(config["path"]).parent
        ]
    )


def recipe_of(folder: Path) -> dict[str, Any]:
    """The resolved recipe that made a folder.

    Raises:
        ArtifactError: the folder is not one of ours, or its recipe is damaged.
    """
    read_manifest(folder)
    path = folder / RECIPE
    try:
        recipe = from_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, RecipeError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}); run the recipe again") from error
    if not isinstance(recipe, dict):
        raise ArtifactError(f"{path}: holds no recipe; run the recipe again")
    return recipe


def made_by_run(manifest: dict[str, Any]) -> bool:
    """Whether a recipe made it: it was not imported, and not made of other finished sets."""
    return not {"imported", "derived"} & manifest.keys()


def manifest_text(manifest: dict[str, Any]) -> str:
    """The text of `distill.json`."""
    return json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def verify(folder: Path) -> list[str]:
    """Compare every byte with the manifest.

    Returns:
        One sentence per problem; [] when the folder is exactly what was written. Files beside
        those of the manifest are a problem only where `load_dataset` would read them.
    """
    files = {file["path"]: file for file in read_manifest(folder)["files"]}
    problems = []
    for name, file in files.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name}: missing")
        elif path.stat().st_size != file["bytes"]:
            problems.append(f"{name}: {path.stat().st_size} bytes, expected {file['bytes']}")
        elif sha256_of(path) != file["sha256"]:
            problems.append(f"{name}: sha256 differs from the manifest's")
    for parent in sorted({Path(name).parent.as_posix() for name in files} - {"."}):
        for path in sorted((folder / parent).glob("train-*")):
            name = path.relative_to(folder).as_posix()
            if name not in files:
                problems.append(f"{name}: not in the manifest, but load_dataset would read it")
    return problems


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A folder to fill, which gets the name of `folder` by one rename; after an error nothing."""
    try:
        # beside its place and hidden: a rename across file systems would be a copy
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.tmp-"))
        temporary.chmod(0o755)
        try:
            yield temporary
            # fails where somebody put something meanwhile; an empty folder it replaces
            temporary.replace(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _write(
    folder: Path, content: Content, results: list[dict[str, Any]] | None, made: Path | None
) -> dict[str, Any]:
    student_yaml = to_yaml(content.student)
    parts = configs(content, student_yaml, results)
    _write_rows(folder, parts, made)
    if content.constants:
        write_tensors(folder / _CONSTANTS, content.constants, checksum=False)
    if content.starts_SP is not None:
        write_tensors(folder / STARTS, {"weights_SP": content.starts_SP}, checksum=False)
    if content.relabel is not None and content.relabel.constants:
        write_tensors(folder / CLASSIFIER, content.relabel.constants, checksum=False)
    write_text(folder / RECIPE, content.recipe_yaml)
    write_text(folder / "student.yaml", student_yaml)
    if results is not None:
        write_json(folder / "results.json", results)
    sheet = class_sheet(content.images_NCHW, content.targets_NK, content.class_names)
    for name, picture in {"poster.png": overview(content.originals), "classes.png": sheet}.items():
        write_atomically(folder / name, partial(_write_bytes, content=picture))
    spent = {**budget(content), "bytes": _sizes(folder, content, parts)}
    text = card(content, results, spent, _hash_of_rows(folder, parts))
    write_text(folder / CARD, text)
    # last of all, since it names every other file
    manifest = _manifest(folder, content, results, spent, parts, text)
    write_text(folder / MANIFEST, manifest_text(manifest))
    return manifest


def _write_rows(folder: Path, parts: Iterable[Config], made: Path | None) -> None:
    """The rows of every configuration; copied from `made` where its bytes are what they were."""
    known = {} if made is None else {file["path"]: file for file in read_manifest(made)["files"]}
    for config in parts:
        for path, rows in zip(config.paths, config.ranges, strict=True):
            same = config.name != "recipe" and path in known  # `recipe` also holds the results
            if made is not None and same and sha256_of(made / path) == known[path]["sha256"]:
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(made / path, folder / path)
            else:
                _write_file(folder / path, config, *rows)


def _hash_of_rows(folder: Path, parts: Iterable[Config]) -> str:
    return fingerprint([sha256_of(folder / path) for part in parts for path in part.paths])


def _write_file(path: Path, config: Config, start: int, stop: int) -> None:
    write_atomically(path, lambda temporary: write_parquet(temporary, config, start, stop))


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _sizes(folder: Path, content: Content, parts: list[Config]) -> dict[str, int]:
    """Bytes of each configuration and of the constants, and of what training needs."""
    sizes = {
        config.name: sum((folder / path).stat().st_size for path in config.paths)
        for config in parts
    }
    if content.relabel is not None and content.relabel.shards is not None:
        sizes["relabel"] = content.relabel.bytes
    constants = sum(path.stat().st_size for path in folder.glob("constants/*"))
    needed = sizes["default"] + constants + sizes.get("relabel", 0)
    return {**sizes, "constants": constants, "needed": needed}


def _write_shards(
    folder: Path, content: Content, labels: ViewLabels, made: Path | None = None
) -> None:
    """Write the folder of label shards; one that is there for the same recipe is left as it is.

    Args:
        folder: new, or written by this function before.
        content: the dataset that the labels belong to.
        labels: those of its views.
        made: a folder of the same shards; they are linked, or copied where that cannot be.
    """
    assert labels.shards is not None
    check_shards(folder, content.recipe_sha256)
    if (folder / MANIFEST).exists():
        return
    with appearing(folder) as temporary:
        if made is not None and (made / MANIFEST).exists():
            for entry in read_json(made / MANIFEST)["files"]:
                _link(made / entry["path"], temporary / entry["path"])
        else:
            list(labels.shards(temporary))
            write_text(temporary / CARD, labels_card(content, labels))
        manifest = {
            **_origin(content),
            "labels_of": content.recipe_sha256,
            "recipe_sha256": content.recipe_sha256,
            "source": content.provenance,
            "relabel": labels.facts,
            "labels": labels.labels,
            "card": own_parts(labels_card(content, labels)),
            "files": _files(temporary),
        }
        write_text(temporary / MANIFEST, manifest_text(manifest))


def _link(path: Path, target: Path) -> None:
    """The same file in two folders, without its bytes twice where the file system can."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)


def _manifest(
    folder: Path,
    content: Content,
    results: list[dict[str, Any]] | None,
    spent: dict[str, Any],
    parts: list[Config],
    text: str,
) -> dict[str, Any]:
    return {
        **_origin(content),
        **({} if content.imported is None else {"imported": content.imported}),
        **({} if content.derived is None else {"derived": content.derived}),
        **({} if content.privacy is None else {"privacy": content.privacy}),
        "method": content.method,
        "papers": content.papers,
        "source": content.provenance,
        "recipe_sha256": content.recipe_sha256,
        **({"written": content.written} if content.written else {}),
        "seed": content.seed,
        "environment": content.environment,
        "budget": spent,
        "classes": content.class_names,
        **({} if content.task == "classes" else {"task": content.task}),
        "geometry": content.geometry,
        **({"decoder": content.decoder} if content.numbers else {}),
        "input": {
            "shape": list(content.images_NCHW.shape[1:]),
            "mean": content.mean,
            "std": content.std,
            "normalization": content.normalization,
            "constants": _sized(folder, _CONSTANTS),
        },
        "quantization": {"bits": 8, "max_abs_error": rounding_error(content)},
        "student": content.student,
        "starts": _sized(folder, STARTS),
        "step_sizes": content.step_sizes,
        "attack": content.attack,
        "results": results,
        "relabel": _relabel(content.relabel),
        "configs": {
            config.name: {
                "path": config.paths[0],
                "files": len(config.paths),
                "rows": config.rows,
            }
            for config in parts
        },
        "card": own_parts(text),
        "files": _files(folder),
    }


def _origin(content: Content) -> dict[str, Any]:
    """How every manifest begins."""
    return {
        "schema_version": _SCHEMA_VERSION,
        "library": {"name": _LIBRARY, "version": __version__},
        "name": content.name,
    }


def _files(folder: Path) -> list[dict[str, Any]]:
    """Every file that lies there, with its size and hash."""
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    return [
        {"path": name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for name, path in sorted(paths.items())
        if path.is_file()
    ]


def _sized(folder: Path, name: str) -> dict[str, Any] | None:
    """A file that students need beside the rows; None where there is none."""
    path = folder / name
    return {"file": name, "bytes": path.stat().st_size} if path.is_file() else None


def _relabel(labels: ViewLabels | None) -> dict[str, Any] | None:
    """Where the labels of views lie: a configuration, or the folder whose name ends like that."""
    if labels is None:
        return None
    return {
        "where": "relabel" if labels.config is not None else f"*{SIBLING}",
        "labels": labels.labels,
        "bytes": labels.bytes,
        "bytes_per_label": round(labels.bytes / labels.labels, 2),
        "classifier": CLASSIFIER if labels.constants else None,
        "facts": labels.facts,
    }


def _unwritable(folder: Path, error: OSError) -> ArtifactError:
    if error.errno == errno.ENOTEMPTY:
        return ArtifactError(f"{folder}: something was put there meanwhile; choose a new folder")
    who = f"; you are user {os.getuid()}" if error.errno in (errno.EACCES, errno.EPERM) else ""
    return ArtifactError(
        f"{folder}: cannot write ({error.strerror}{who}); "
        "free space or choose a writable folder with --output"
    )
