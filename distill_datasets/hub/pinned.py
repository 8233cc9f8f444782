"""The Hub as a place to read from: a commit for a name, and plain words for what can go wrong."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from distill_datasets.errors import DataError, did_you_mean

logger = logging.getLogger("distill_datasets")

COMMIT = re.compile(r"[0-9a-f]{40}")
SIBLINGS = 200


class Pinned(NamedTuple):
    """A Hub dataset at one commit; files as (path, sha256 or git blob id, size in bytes)."""

    commit: str
    files: list[tuple[str, str, int]]
    license: str | None
    url: str


def license_in_card(folder: Path) -> str | None:
    """The license named in the front matter of a README.md, or None.

    Only this one key is looked for, as `license: mit` or as a list with one entry a line.
    """
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    front = re.match(r"---\s*\n(.*?)\n---", text, flags=re.DOTALL)
    found = front and re.search(
        r"^license:[ \t]*(.*(?:\n[ \t]*- .*)*)", front[1], flags=re.MULTILINE
    )
    names = re.split(r"[\s,\[\]'\"]+|- ", found[1]) if found else []
    return ", ".join(name for name in names if name not in ("", "-")) or None


def _similar(dataset: str) -> str:
    """A hint with the same owner's dataset names, or nothing when they cannot be listed."""
    from huggingface_hub import HfApi

    owner = dataset.partition("/")[0]
    try:
        found = [info.id for info in HfApi().list_datasets(author=owner, limit=SIBLINGS)]
    except _network_errors():
        return ""
    return f"; {did_you_mean(dataset, found)}" if found else f"; the Hub lists none of {owner!r}"


def _network_errors() -> tuple[type[Exception], ...]:
    """What any HTTP client may raise: the library names the base of the one it was built on."""
    from huggingface_hub import errors

    return (errors.HTTPError, OSError)  # type: ignore[attr-defined]


@contextmanager
def explained(dataset: str, revision: str | None) -> Iterator[None]:
    """Turn what the Hub's clients raise into a `DataError` that says what to do."""
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/datasets/{dataset}"
    missing = (
        f"source.dataset: the Hub has no dataset {dataset!r}, or it is private and your login may "
        "not see it; check the name, or log in with `hf auth login`"
    )
    try:
        yield
    except errors.GatedRepoError as error:
        raise DataError(
            f"source.dataset: {dataset!r} is gated; accept its conditions on {page} and log in "
            "with `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise DataError(f"{missing}{_similar(dataset)}") from error
    except errors.RevisionNotFoundError as error:
        raise DataError(
            f"source.revision: {dataset!r} has no branch, tag or commit {revision!r}; the valid "
            f"ones are listed on {page}"
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        remedy = (
            "log in again with `hf auth login`"
            if status in (401, 403)
            else "try again later; finished work is kept"
        )
        raise DataError(
            f"source.dataset: the Hub answered {status} for {dataset!r}; {remedy}"
        ) from error
    except DatasetNotFoundError as error:
        raise DataError(missing) from error
    except _network_errors() as error:
        raise DataError(
            f"source.dataset: {dataset!r} cannot be fetched and is not in the cache "
            f"({type(error).__name__}: {error}); check the network, unset HF_HUB_OFFLINE, set "
            "source.revision to a commit that was downloaded before, or give a local folder"
        ) from error


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
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=dataset, repo_type="dataset")
    commit = _cached_commit(folder, revision)
    if commit is None or not (folder / "snapshots" / commit).is_dir():
        return None
    logger.warning(
        "%s: the Hub cannot be reached; using the cached commit %s", dataset, commit[:12]
    )
    license_name = license_in_card(folder / "snapshots" / commit)
    return Pinned(commit, [], license_name, f"{constants.ENDPOINT}/datasets/{dataset}")


def pin(dataset: str, revision: str | None) -> Pinned:
    """The commit that a branch or tag points at now, with the files at that commit.

    Without a connection the commit that the local cache holds is used, and its files are unknown.

    Raises:
        DataError: no such dataset or revision, no right to read it, or no connection.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.hf_api import RepoFile

    api = HfApi()
    with explained(dataset, revision):
        try:
            info = api.dataset_info(dataset, revision=revision)
        except HfHubHTTPError:
            raise
        except _network_errors():
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
    named = info.card_data.get("license") if info.card_data else None
    license_name = ", ".join(named) if isinstance(named, list) else named
    return Pinned(commit, files, license_name, f"{constants.ENDPOINT}/datasets/{dataset}")
