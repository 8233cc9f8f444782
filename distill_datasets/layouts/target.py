"""What a user means by TARGET: one published folder, wherever it lies and in whatever layout.

A published folder is itself; a run folder means its one finished dataset; a Hub id is downloaded at
one commit and compared with its manifest; anything else that can be imported is, into a folder
among the runs where a later call finds it again.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from distill_datasets.data.provenance import of_path
from distill_datasets.errors import ArtifactError, DataError
from distill_datasets.export.agreement import damaged, problems
from distill_datasets.export.content import sibling_of
from distill_datasets.export.folder import MANIFEST, read_manifest
from distill_datasets.files.artifacts import fingerprint, set_aside
from distill_datasets.hub import pinned as hub
from distill_datasets.layouts.importing import Told, import_set

logger = logging.getLogger("distill_datasets")

DOWNLOADS, IMPORTS = "downloads", "imports"
_HUB_ID = re.compile(r"(?P<dataset>[\w-][\w.-]*/[\w.-]+)(?:@(?P<revision>[^@\s]+))?")


def resolve_target(text: str, runs: Path, *, source: str | None = None, check: bool = True) -> Path:
    """The published folder that a user means.

    Args:
        text: a path, the name of a run in `runs`, or a Hub id, `owner/name` or
            `owner/name@revision`.
        runs: the folder of all runs; what is downloaded or imported goes below it.
        source: what a foreign set was distilled from, where it is told.
        check: compare what is downloaded with its manifest, but for the words of its card, which
            people edit; False leaves that to the caller.

    Raises:
        ArtifactError: there is none, there are several, or it is damaged.
    """
    path = Path(text).expanduser()
    for place in (path, runs / text):
        if _exists(place):
            return _local(place, runs, source)
    found = _HUB_ID.fullmatch(text)
    if found is None or text.startswith((".", "/", "~")):
        raise ArtifactError(
            f"{text}: no such file or folder, no run in {runs}, and a dataset on the Hub is "
            f"written owner/name or owner/name@revision; {_runs_in(runs)}"
        )
    try:
        return _from_hub(found["dataset"], found["revision"], runs, source, check)
    except DataError as error:
        where = f"no file or folder {text!r}, and as a dataset on the Hub: "
        raise ArtifactError(where + str(error).removeprefix("source.dataset: ")) from error


def on_the_hub(text: str, runs: Path) -> tuple[str, str | None] | None:
    """The repository and the revision that a user means; None where something lies here."""
    if any(map(_exists, (Path(text).expanduser(), runs / text))):
        return None
    found = _HUB_ID.fullmatch(text)
    return None if found is None else (found["dataset"], found["revision"])


def finished_in(folder: Path) -> list[Path]:
    """The finished datasets of a run, those written last at the end."""
    found = [path.parent for path in folder.glob(f"dataset-*/{MANIFEST}")]
    return sorted(found, key=lambda path: (path / MANIFEST).stat().st_mtime)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # too long for a name
        return False


def _local(path: Path, runs: Path, source: str | None) -> Path:
    if (path / MANIFEST).exists():
        if "labels_of" in read_manifest(path):
            raise ArtifactError(
                f"{path}: holds the labels of views that belong to a dataset; name the folder of "
                "the dataset, which lies beside it"
            )
        return path
    if path.is_dir():
        finished = finished_in(path)
        if len(finished) == 1:
            logger.info("target: %s", finished[0])
            return finished[0]
        if finished:
            listed = "\n  ".join(_described(each) for each in finished)
            raise ArtifactError(
                f"{path}: has {len(finished)} finished datasets; name one of them, the last is "
                f"the newest\n  {listed}"
            )
        if any(path.glob("distill-*")) or any(path.glob("export-*")):
            raise ArtifactError(
                f"{path}: a run that is not finished; run its recipe again with "
                "`distill-datasets run`, which goes on from there"
            )
        if _names_of_runs(path):
            raise ArtifactError(f"{path}: a folder of several runs; {_runs_in(path)}")
    files = [list(file) for file in of_path(path, None).files]
    return _imported(str(path), runs, source, files)


def _described(folder: Path) -> str:
    manifest = read_manifest(folder)
    results = manifest.get("results") or []
    accuracy = f", {100 * results[0]['accuracy']['mean']:.1f} %" if results else ""
    return f"{folder}: {manifest['budget']['images']:,} images{accuracy}"


def _imported(
    dataset: str, runs: Path, source: str | None, identity: object, commit: str | None = None
) -> Path:
    """A foreign set, imported where an earlier call has not done so yet."""
    name = re.sub(r"[^\w.-]+", "-", Path(dataset).stem) or "set"
    folder = runs / IMPORTS / f"{name}-{fingerprint([identity, source])}"
    if (folder / MANIFEST).exists():
        if not (found := damaged(folder)):
            return folder
        set_aside(folder, f"{folder}: {'; '.join(found[:3])}")
    try:
        import_set(dataset, folder, told=Told(source=source), revision=commit)
    except ArtifactError as error:
        if "--like" in str(error) or "--classes" in str(error):
            raise ArtifactError(
                f"{error}. First: distill-datasets import {dataset} --to FOLDER with these options"
            ) from error
        raise
    logger.info("target: imported into %s", folder)
    return folder


def _from_hub(
    dataset: str, revision: str | None, runs: Path, source: str | None, check: bool
) -> Path:
    pinned = hub.pin(dataset, revision)
    if pinned.files and all(path != MANIFEST for path, _, _ in pinned.files):
        asked = dataset if revision is None else f"{dataset}@{revision}"
        logger.info("target: %s has no %s; it is imported", asked, MANIFEST)
        return _imported(dataset, runs, source, [dataset, pinned.commit], pinned.commit)
    folder = _downloaded(dataset, pinned, runs, check)
    manifest = read_manifest(folder)
    relabel = manifest.get("relabel")
    if relabel is not None and relabel["where"] != "relabel":
        _fetch_shards(dataset, manifest, sibling_of(folder), runs)
    return folder


def _downloaded(dataset: str, pinned: hub.Pinned, runs: Path, check: bool) -> Path:
    """All files of a commit, as a folder below the runs that links to the Hub's cache."""
    commit = pinned.commit
    logger.info("target: %s at the commit %s", dataset, commit)
    files = hub.fetch(dataset, commit, pinned.files)
    folder = _linked(files, runs, f"{dataset.replace('/', '--')}-{commit[:12]}")
    if check and (found := problems(folder)):
        raise ArtifactError(
            f"{dataset}@{commit[:12]}: is not what its manifest says: {'; '.join(found[:3])}; "
            f"where the download was damaged, remove {files} and run again"
        )
    return folder


def _linked(files: Path, runs: Path, name: str) -> Path:
    folder = (runs / DOWNLOADS / name).absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.is_symlink() and folder.resolve() != files.resolve():
        folder.unlink()
    if not folder.exists():
        folder.symlink_to(files.resolve(), target_is_directory=True)
    return folder


def _fetch_shards(dataset: str, manifest: dict[str, object], sibling: Path, runs: Path) -> None:
    """The label shards of a dataset on the Hub, which lie in a repository of their own."""
    labels = f"{dataset}-relabel"
    pinned = hub.pin(labels, None)
    files = hub.fetch(labels, pinned.commit, pinned.files)
    if (theirs := read_manifest(files).get("labels_of")) != manifest["recipe_sha256"]:
        raise ArtifactError(
            f"{labels}: its labels belong to the recipe {str(theirs)[:12]}, and those of "
            f"{dataset} were made by {str(manifest['recipe_sha256'])[:12]}; name the revision of "
            f"{dataset} that they belong to"
        )
    if found := damaged(_linked(files, runs, sibling.name)):
        raise ArtifactError(f"{labels}: is not what its manifest says: {'; '.join(found[:3])}")


def _names_of_runs(runs: Path) -> list[str]:
    return sorted({path.parents[1].name for path in runs.glob(f"*/dataset-*/{MANIFEST}")})


def _runs_in(runs: Path) -> str:
    names = _names_of_runs(runs) if runs.is_dir() else []
    return f"finished runs there: {', '.join(names)}" if names else "no finished run lies there"
