"""The Hub as a place to read from: a commit for a name, a model's file, and progress bars."""

import glob
import logging
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from distill_datasets.errors import ArtifactError, DataError, RecipeError, did_you_mean, shown
from distill_datasets.files.artifacts import intact, read_record, write_record
from distill_datasets.files.yaml_text import MOST_CHARACTERS, from_yaml
from distill_datasets.hub.errors import BROKEN, Wanted, absent, fetch_errors, why_unread
from distill_datasets.hub.repository import upload

logger = logging.getLogger("distill_datasets")

COMMIT = re.compile(r"[0-9a-f]{40}")
SIBLINGS = 200
CARD = "README.md"
LISTED_FILES = 5
_FRONT_MATTER = re.compile(r"\s*---[\r\n]+(.*?)[\r\n]+---(?:[\r\n]|$)", re.DOTALL)


class Pinned(NamedTuple):
    """A Hub dataset at one commit; files as (path, sha256 or git blob id, size in bytes)."""

    commit: str
    files: list[tuple[str, str, int]]
    license: str | None
    url: str


def front_matter(card: Path) -> dict[str, Any]:
    """What stands above the text of a README.md; nothing where there is none of it.

    It is read before `datasets` reads it, which trusts it.

    Raises:
        DataError: it cannot be read, or was written to do harm.
    """
    try:
        with card.open(encoding="utf-8") as file:
            text = file.read(2 * MOST_CHARACTERS)
        found = _FRONT_MATTER.match(text)
        if found is None and len(text) == 2 * MOST_CHARACTERS and text.lstrip().startswith("---"):
            raise DataError(
                f"source.dataset: the YAML above the text of {card} does not end within "
                f"{len(text):,} characters; shorten it, or take it out"
            )
        said = from_yaml(found[1]) if found else {}
    except OSError:  # there is none
        return {}
    except UnicodeDecodeError as error:
        raise DataError(f"source.dataset: {card} is not UTF-8 text; mend it") from error
    except RecipeError as error:
        raise DataError(
            f"source.dataset: the YAML above the text of {card} cannot be read: {error}; mend it, "
            "or take it out"
        ) from error
    if not isinstance(said, dict | None):
        raise DataError(
            f"source.dataset: the YAML above the text of {card} is {shown(said)}, expected keys "
            "and values; mend it, or take it out"
        )
    return said or {}


def card_of(dataset: str, revision: str | None) -> Path:
    """The folder that holds the README.md of a Hub dataset, which is downloaded.

    Raises:
        DataError: it cannot be fetched.
    """
    from huggingface_hub import hf_hub_download

    with explained(dataset, revision):
        return Path(hf_hub_download(dataset, CARD, repo_type="dataset", revision=revision)).parent


def license_in_card(folder: Path) -> str | None:
    """The license named in the front matter of a README.md, or None."""
    return _joined(front_matter(folder / CARD).get("license"))


def _configs(folder: Path) -> list[dict[str, Any]]:
    """The configs that a README.md declares."""
    configs = front_matter(folder / CARD).get("configs")
    return [each for each in configs if isinstance(each, dict)] if isinstance(configs, list) else []


def configs_of_card(folder: Path) -> int:
    """How many configs a README.md declares."""
    return len(_configs(folder))


def card_names_files(folder: Path) -> bool:
    """Whether a README.md says which files make which split.

    Raises:
        DataError: it names files outside of the folder.
    """
    named = [
        path
        for config in _configs(folder)
        for key in ("data_dir", "data_files")
        for path in _paths(config.get(key))
    ]
    for path in named:
        if "://" in path or path.startswith(("/", "~")) or ".." in Path(path).parts:
            raise DataError(
                f"source.dataset: {folder / CARD} names the file {shown(path)}, which does not lie "
                "in the folder; only files of the dataset are read"
            )
    return bool(named)


def _paths(files: object) -> Iterator[str]:
    """The paths in `data_files` of a card: one, a list, or those of each split."""
    if isinstance(files, str):
        yield files
    elif isinstance(files, list):
        for each in files:
            yield from _paths(each.get("path") if isinstance(each, dict) else each)
    elif isinstance(files, dict):
        yield from _paths(list(files.values()))


def fetch(
    dataset: str,
    commit: str,
    files: Collection[tuple[str, str, int]],
    only: Collection[str] | None = None,
) -> Path:
    """Files of a Hub dataset on this machine, with the bytes that the Hub lists.

    Over plain HTTP the client compares sizes only, and keeps a file that was changed on its way in
    its cache: such a file is fetched once more. Files that are here already need no connection.

    Args:
        dataset: organization/name.
        commit: in full.
        files: all files of the commit, as `Pinned.files`; kept for when there is no connection.
        only: the paths of those that are wanted; None: all.

    Returns:
        The folder of the commit, in which files lie under their paths; it may hold others.

    Raises:
        DataError: one cannot be fetched, or arrives twice with other bytes.
    """
    from huggingface_hub import hf_hub_download, snapshot_download

    folder = cached_folder(dataset) / "snapshots" / commit
    wanted = [file for file in files if only is None or file[0] in only]
    if not holds(dataset, commit, [path for path, _, _ in wanted]):
        escaped = None if only is None else [glob.escape(path) for path in only]
        with explained(dataset, commit):
            snapshot_download(dataset, repo_type="dataset", revision=commit, allow_patterns=escaped)
        with suppress(ArtifactError):  # of use without a connection only
            write_record(_listing(dataset, commit), {"files": [list(file) for file in files]})
    if absent := [path for path, _, _ in wanted if not (folder / path).is_file()]:
        more = ", ..." if len(absent) > LISTED_FILES else ""
        raise DataError(
            f"source.dataset: {len(absent)} files of {dataset!r} at {commit[:12]} were not "
            f"downloaded: {', '.join(absent[:LISTED_FILES])}{more}; run once with a connection"
        )
    damaged = changed(dataset, commit, wanted)
    for path in damaged:
        logger.warning("source: the download of %s was damaged on its way; fetching it again", path)
        with explained(dataset, commit):
            hf_hub_download(
                dataset, path, repo_type="dataset", revision=commit, force_download=True
            )
    again = [file for file in wanted if file[0] in damaged]
    if found := changed(dataset, commit, again):
        raise DataError(
            f"source.dataset: the downloaded {found[0]} of {dataset!r} has other bytes than the "
            "Hub lists, twice in a row; look at the connection, or give a local folder"
        )
    return folder


def datasets_of(owner: str, tag: str) -> list[str]:
    """The datasets of a user or organization whose cards have a tag, by name.

    Raises:
        DataError: the Hub cannot be asked.
    """
    from huggingface_hub import HfApi

    with explained(owner, None):
        return sorted(info.id for info in HfApi().list_datasets(author=owner, filter=tag))


def holds(dataset: str, commit: str, paths: Iterable[str]) -> bool:
    """Whether files of a commit are on this machine."""
    folder = cached_folder(dataset) / "snapshots" / commit
    return all((folder / path).is_file() for path in paths)


def _listing(dataset: str, commit: str) -> Path:
    return cached_folder(dataset) / "listings" / f"{commit}.json"


def _listed_before(dataset: str, commit: str) -> list[tuple[str, str, int]]:
    """The files of a commit as the Hub listed them when some were downloaded.

    Where nothing is known, those that lie here: the cache calls each by its hash.
    """
    known = intact(_listing(dataset, commit), read_record)
    if known is not None:
        return [(path, digest, size) for path, digest, size in known["files"]]
    logger.warning(
        "%s: which files the commit %s has was not kept; those that lie here are taken",
        dataset,
        commit[:12],
    )
    folder = cached_folder(dataset) / "snapshots" / commit
    found = []
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest = file.readlink().name if file.is_symlink() else upload(file).sha256
        found.append((file.relative_to(folder).as_posix(), digest, file.stat().st_size))
    return found


def _joined(license_name: object) -> str | None:
    """One license or several, as a card has them, in one text."""
    names = license_name if isinstance(license_name, list) else [license_name]
    return ", ".join(str(name) for name in names if name) or None


def cached_folder(dataset: str) -> Path:
    """The folder of the Hub's cache that holds the files of one dataset alone."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=dataset, repo_type="dataset"))


@contextmanager
def library_bars(*, shown: bool) -> Iterator[None]:
    """Let `datasets` and the Hub's client draw progress bars of their own, or not."""
    import datasets.utils
    import huggingface_hub.utils

    drawing = [
        library
        for library in (datasets.utils, huggingface_hub.utils)
        if not shown and not library.are_progress_bars_disabled()
    ]
    for library in drawing:
        library.disable_progress_bars()
    try:
        yield
    finally:
        for library in drawing:
            library.enable_progress_bars()


def _similar(dataset: str) -> str:
    """A hint with the same owner's dataset names, or nothing when they cannot be listed."""
    from huggingface_hub import HfApi

    owner = dataset.partition("/")[0]
    try:
        names = [info.id for info in HfApi().list_datasets(author=owner, limit=SIBLINGS)]
    except fetch_errors():
        return ""
    return f"; {did_you_mean(dataset, names)}" if names else f"; the Hub lists none of {owner!r}"


@contextmanager
def explained(
    dataset: str, revision: str | None, broken: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Turn what the Hub's clients raise into a `DataError` that says what to do.

    Args:
        dataset: organization/name.
        revision: a branch, tag or commit; None: the newest.
        broken: what is raised inside of answers that are no answers.
    """
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub import errors

    wanted = Wanted(
        "dataset",
        dataset,
        revision,
        "source.dataset",
        "source.revision",
        "set source.revision to a commit that was downloaded before, or give a local folder",
    )
    try:
        yield
    except errors.RepositoryNotFoundError as error:
        gated = isinstance(error, errors.GatedRepoError)
        hint = "" if gated else _similar(dataset)
        raise DataError(f"{why_unread(error, wanted)}{hint}") from error
    except DatasetNotFoundError as error:  # how `datasets` says the same, without the answer
        raise DataError(absent(wanted)) from error
    except (*fetch_errors(), *broken) as error:
        raise DataError(why_unread(error, wanted)) from error


def changed(dataset: str, commit: str | None, files: Iterable[tuple[str, str, int]]) -> list[str]:
    """The downloaded files whose bytes are not those that the Hub lists at a commit.

    Args:
        dataset: organization/name.
        commit: in full; None has no files.
        files: as `Pinned.files`; those that were not downloaded are passed over.
    """
    from huggingface_hub import try_to_load_from_cache

    found = []
    for path, digest, _ in files if commit is not None else ():
        copy = try_to_load_from_cache(dataset, path, revision=commit, repo_type="dataset")
        if isinstance(copy, str):
            known = upload(Path(copy))
            found += [path] if digest not in (known.sha256, known.blob) else []
    return found


def model_file(model: str, revision: str | None, file: str, key: str = "squeeze.weights") -> Path:
    """A file of a Hub model, downloaded if need be; `key` of a recipe names it.

    Raises:
        RecipeError: there is no such model, revision or file, or it cannot be fetched.
    """
    from huggingface_hub import errors, hf_hub_download

    wanted = Wanted("model", model, revision, key, key, "or give a file of this machine")
    try:
        return Path(hf_hub_download(model, file, revision=revision))
    except errors.EntryNotFoundError as error:
        # without a connection the client says of a lacking cache entry that the file is not there
        if not isinstance(error, errors.LocalEntryNotFoundError):
            raise RecipeError(
                f"{key}: the model {model!r} has no {file}, and nothing else is read; choose "
                "another model or revision"
            ) from error
        raise RecipeError(why_unread(error, wanted)) from error
    except fetch_errors() as error:
        raise RecipeError(why_unread(error, wanted)) from error


def _cached_commit(folder: Path, revision: str | None) -> str | None:
    """The commit that a name stood for when it was downloaded; one lone snapshot is the default."""
    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    reference = folder / "refs" / (revision or "main")
    if reference.is_file():
        return reference.read_text(encoding="ascii").strip()
    snapshots = [path.name for path in (folder / "snapshots").glob("*")]
    return snapshots[0] if revision in (None, "main") and len(snapshots) == 1 else None


def _from_cache(dataset: str, revision: str | None) -> Pinned | None:
    from huggingface_hub import constants

    folder = cached_folder(dataset)
    commit = _cached_commit(folder, revision)
    if commit is None or not (folder / "snapshots" / commit).is_dir():
        return None
    logger.warning(
        "%s: the Hub cannot be reached; using the cached commit %s", dataset, commit[:12]
    )
    license_name = license_in_card(folder / "snapshots" / commit)
    files = _listed_before(dataset, commit)
    return Pinned(commit, files, license_name, f"{constants.ENDPOINT}/datasets/{dataset}")


def pin(dataset: str, revision: str | None) -> Pinned:
    """The commit that a branch or tag points at now, with the files at that commit.

    Without a connection the commit that the local cache holds is used, with the files that the Hub
    listed when they were downloaded.

    Raises:
        DataError: no such dataset or revision, no right to read it, or no connection.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.hf_api import RepoFile

    api = HfApi()
    with explained(dataset, revision, BROKEN):
        try:
            info = api.dataset_info(dataset, revision=revision)
        except HfHubHTTPError:
            raise
        except fetch_errors():
            cached = _from_cache(dataset, revision)
            if cached is None:
                raise
            return cached
        commit = str(info.sha)
        tree = api.list_repo_tree(dataset, repo_type="dataset", revision=commit, recursive=True)
        files = sorted(
            (file.path, file.lfs.sha256 if file.lfs else file.blob_id, file.size)
            for file in tree
            if isinstance(file, RepoFile)
        )
    license_name = _joined(info.card_data.get("license")) if info.card_data else None
    return Pinned(commit, files, license_name, f"{constants.ENDPOINT}/datasets/{dataset}")
