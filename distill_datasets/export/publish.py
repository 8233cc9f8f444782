"""Publish an evaluated folder as a Hugging Face dataset: one commit, then a tag.

`main` shows the old dataset or the new one, never half of one. Publishing is redone safely: it is
finished when the files on the Hub have the hashes of ours, whoever put them there, so the same
folder again is no commit, and a commit whose answer was lost is found instead of made twice.
"""

import contextlib
import hashlib
import io
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NoReturn, TypeVar

from distill_datasets.errors import ArtifactError, PublishError, RecipeError
from distill_datasets.export.card import PLACEHOLDER
from distill_datasets.export.content import SIBLING, sibling_of
from distill_datasets.export.folder import MANIFEST, manifest_text, read_manifest, verify
from distill_datasets.export.licenses import why_restricted
from distill_datasets.hub import errors as hub_errors
from distill_datasets.hub.errors import in_plain_words

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

T = TypeVar("T")

_logger = logging.getLogger(__name__)
_WAITS_SECONDS = (0.5, 2.0, 8.0, 20.0)
_BUSY = frozenset({408, 429, 500, 502, 503, 504})
_CONFLICT = frozenset({409, 412})
_DOCUMENTS = frozenset({".gitattributes", ".gitignore", "README.md", "LICENSE"})
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w][\w.-]*", re.ASCII)
_TAG = re.compile(r"[A-Za-z0-9][\w.+-]{0,127}", re.ASCII)


@dataclass(frozen=True)
class Published:
    """Where a dataset lies. `unchanged`: the Hub had it already, and no commit was made."""

    url: str
    commit: str
    tag: str
    unchanged: bool


@dataclass(frozen=True)
class _File:
    """One file to publish, with the hashes that the Hub knows large and small files by."""

    content: Path | bytes
    size: int
    sha256: str
    blob: str


@dataclass(frozen=True)
class _Head:
    """A revision of the repository: its commit and its files."""

    commit: str
    private: bool
    files: dict[str, "RepoFile"]


def publish(
    folder: Path,
    repo_id: str,
    *,
    token: str | None = None,
    private: bool | None = None,
    tag: str | None = None,
    message: str | None = None,
    allow_license: bool = False,
) -> Published:
    """Put the dataset of `folder` on the Hub, in one commit.

    Label shards that lie beside it go first, in one commit to a repository of their own, whose name
    ends with `-relabel`.

    Args:
        folder: what `write_dataset` wrote, with results.
        repo_id: `namespace/name`; made when it does not exist. What this library did not write
            there stays, and a repository with somebody else's data is refused.
        token: a write token; by default the one of `hf auth login` or HF_TOKEN.
        private: visibility of a new repository. By default the account's, but private where the
            source's license does not clearly allow sharing.
        tag: name of the version; by default `v` and the first 12 digits of the manifest's sha256,
            the manifest naming every file: equal content, equal tag.
        message: of the commit.
        allow_license: publish openly although the source's license does not clearly allow it.

    Raises:
        RecipeError: the repository's id or the tag is malformed.
        ArtifactError: the folder is not ours, is damaged or not evaluated, or needs consent.
        PublishError: the Hub refused.
    """
    if not _REPO_ID.fullmatch(repo_id) or "--" in repo_id or ".." in repo_id or len(repo_id) > 96:
        raise RecipeError(
            f"{repo_id!r} is not the id of a repository; expected <user or organization>/<name> in "
            "letters, digits, '-', '_' and '.'"
        )
    if tag is not None and not _TAG.fullmatch(tag):
        raise RecipeError(f"{tag!r} cannot be a tag; use letters, digits, '.', '-', '_' and '+'")
    files = _files(folder, repo_id)
    reason = None if allow_license else why_restricted(read_manifest(folder)["source"])
    if reason and private is False:
        raise ArtifactError(
            f"{folder}: {reason}, so what is distilled from it is not published openly; "
            "publish with --private, or with --allow-license if you may share it"
        )
    shards = _shards(folder)
    if shards is not None:
        labels = _files(shards, f"{repo_id}{SIBLING}")
        _put(labels, f"{repo_id}{SIBLING}", token, private, None, message, reason)
    return _put(files, repo_id, token, private, tag, message, reason)


def _shards(folder: Path) -> Path | None:
    """The folder of the label shards that belong to `folder`; None when it has none."""
    relabel = read_manifest(folder).get("relabel")
    if relabel is None or relabel["where"] == "relabel":
        return None
    shards = sibling_of(folder)
    if not (shards / MANIFEST).exists():
        raise ArtifactError(
            f"{folder}: its label shards are expected in {shards}, where they are not; move them "
            "there, or run the recipe again"
        )
    return shards


def _put(
    files: dict[str, _File],
    repo_id: str,
    token: str | None,
    private: bool | None,
    tag: str | None,
    message: str | None,
    reason: str | None,
) -> Published:
    """Make the repository hold `files`; `reason` is why the source's license keeps it private."""
    tag = tag or f"v{files[MANIFEST].sha256[:12]}"
    hub = _hub(repo_id, token)
    hub.create(True if reason and private is None else private)
    head = hub.head()
    if reason and not head.private:
        raise ArtifactError(
            f"{repo_id} is public and {reason}; choose another repository, which will be private, "
            "or give --allow-license if you may share it"
        )
    if private is not None and private != head.private:
        now, wanted = ("private", "public") if head.private else ("public", "private")
        raise PublishError(
            f"{repo_id} exists and is {now}; make it {wanted} in its settings on the Hub, or "
            "publish without a visibility"
        )
    tagged = hub.tag(tag, files)
    commit, unchanged = hub.commit(files, message or f"Publish {tag} with distill_datasets")
    if not tagged:
        hub.create_tag(tag, commit)
    return Published(f"{hub.api.endpoint}/datasets/{repo_id}", commit, tag, unchanged)


def _files(folder: Path, repo_id: str) -> dict[str, _File]:
    """Everything to publish, by path; the card and the manifest as they will be in `repo_id`."""
    manifest = read_manifest(folder)
    if not manifest.get("results") and "labels_of" not in manifest:
        raise ArtifactError(
            f"{folder}: not evaluated, and only evaluated datasets are published; "
            "run `distill-datasets run` with its recipe again, which evaluates it"
        )
    problems = verify(folder)
    if problems:
        raise ArtifactError(
            f"{folder}: differs from its manifest: {'; '.join(problems[:3])}; "
            "move it away and run the recipe again, which writes it anew"
        )
    card = (folder / "README.md").read_text(encoding="utf-8").replace(PLACEHOLDER, repo_id)
    files = {entry["path"]: _file(folder / entry["path"]) for entry in manifest["files"]}
    files["README.md"] = _file(card.encode())
    for entry in manifest["files"]:
        file = files[entry["path"]]
        entry.update(bytes=file.size, sha256=file.sha256)
    return {**files, MANIFEST: _file(manifest_text(manifest).encode())}


def _file(content: Path | bytes) -> _File:
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    blob = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    sha256 = hashlib.sha256()
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
        while piece := file.read(1 << 20):
            blob.update(piece)
            sha256.update(piece)
    return _File(content, size, sha256.hexdigest(), blob.hexdigest())


def _differs(file: _File, remote: "RepoFile | None") -> bool:
    if remote is None or remote.size != file.size:
        return True
    return remote.lfs.sha256 != file.sha256 if remote.lfs else remote.blob_id != file.blob


def _hub(repo_id: str, token: str | None) -> "_Hub":
    from huggingface_hub import HfApi, get_token

    token = token or get_token()
    if not token:
        raise PublishError("no Hugging Face token: run `hf auth login` or set HF_TOKEN")
    return _Hub(HfApi(token=token, library_name="distill_datasets"), repo_id, token)


class _Hub:
    """One dataset repository; what the Hub refuses becomes a `PublishError` in plain words."""

    def __init__(self, api: "HfApi", repo_id: str, token: str) -> None:
        self.api = api
        self._repo_id = repo_id
        self._token = token

    def create(self, private: bool | None) -> None:
        """Make the repository unless it exists."""
        self._patiently(
            lambda: self.api.create_repo(
                self._repo_id, repo_type="dataset", private=private, exist_ok=True
            )
        )

    def head(self, revision: str = "main") -> _Head:
        """The commit that a revision stands at, and its files."""
        from huggingface_hub.hf_api import RepoFile

        def read() -> _Head:
            info = self.api.dataset_info(self._repo_id, revision=revision)
            sha = str(info.sha)
            tree = self.api.list_repo_tree(
                self._repo_id, repo_type="dataset", revision=sha, recursive=True
            )
            files = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
            return _Head(sha, bool(info.private), files)

        return self._patiently(read)

    def tag(self, tag: str, files: dict[str, _File]) -> bool:
        """Whether the tag exists; one that names other content is refused."""
        refs = self._patiently(lambda: self.api.list_repo_refs(self._repo_id, repo_type="dataset"))
        if tag not in {ref.name for ref in refs.tags}:
            return False
        tagged = self.head(tag).files
        if any(_differs(file, tagged.get(path)) for path, file in files.items()):
            raise PublishError(
                f"{self._repo_id} has a tag {tag!r} with other content, which stays as it is; "
                "choose another --tag"
            )
        return True

    def create_tag(self, tag: str, commit: str) -> None:
        """Name a commit."""
        self._patiently(
            lambda: self.api.create_tag(
                self._repo_id, repo_type="dataset", tag=tag, revision=commit, exist_ok=True
            )
        )

    def commit(self, files: dict[str, _File], message: str) -> tuple[str, bool]:
        """Bring `main` to hold `files` in one commit, whatever happens to it meanwhile.

        Returns:
            The commit that holds them, and whether `main` did so from the start.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        for attempt, wait in enumerate((*_WAITS_SECONDS, None)):
            head = self.head()
            changed = [path for path, file in files.items() if _differs(file, head.files.get(path))]
            stale = sorted(self._owned(head) & head.files.keys() - files.keys())
            if not changed and not stale:
                return head.commit, attempt == 0
            operations: list[CommitOperationAdd | CommitOperationDelete] = [
                *(CommitOperationAdd(path, files[path].content) for path in changed),
                *(CommitOperationDelete(path) for path in stale),
            ]
            try:
                commit = self.api.create_commit(
                    self._repo_id,
                    operations,
                    commit_message=message,
                    repo_type="dataset",
                    parent_commit=head.commit,
                ).oid
            except hub_errors.failures() as error:
                self._wait_or_raise(error, wait, _BUSY | _CONFLICT)
                continue
            found = self.head(commit).files
            wrong = [path for path, file in files.items() if _differs(file, found.get(path))]
            if wrong:
                raise PublishError(
                    f"{self._repo_id} at {commit} does not hold what was sent: "
                    f"{', '.join(wrong[:3])}; look for a .gitignore there, then publish again"
                )
            return commit, False
        raise AssertionError("the last attempt returns or raises")

    def _owned(self, head: _Head) -> set[str]:
        """The files that an earlier publication put there; refuses somebody else's data."""
        if MANIFEST not in head.files:
            foreign = [
                path
                for path in head.files
                if path not in _DOCUMENTS and PurePosixPath(path).suffix not in (".md", ".txt")
            ]
            if foreign:
                raise PublishError(
                    f"{self._repo_id} holds files that this library did not write "
                    f"({', '.join(foreign[:3])}); publish into a new repository"
                )
            return set()
        path = self._patiently(
            lambda: self.api.hf_hub_download(
                self._repo_id, MANIFEST, repo_type="dataset", revision=head.commit
            )
        )
        return {entry["path"] for entry in read_manifest(Path(path).parent)["files"]}

    def _patiently(self, call: Callable[[], T]) -> T:
        """`call()`, redone while the Hub is busy; only for calls that are safe to redo."""
        for wait in (*_WAITS_SECONDS, None):
            try:
                return call()
            except hub_errors.failures() as error:
                self._wait_or_raise(error, wait, _BUSY)
        raise AssertionError("the last attempt returns or raises")

    def _wait_or_raise(self, error: Exception, wait: float | None, redo: frozenset[int]) -> None:
        """Sleep when a redo may help and one is left, raise otherwise."""
        cause = hub_errors.cause(error)
        status = hub_errors.status(cause)
        passing = status in redo if status is not None else hub_errors.is_transport(cause)
        if wait is None or not passing:
            self._explain(cause, status)
        _logger.info("the Hub answered %s; trying again in %g s", status or "nothing", wait)
        time.sleep(max(wait, hub_errors.asked_seconds(cause)))

    def _explain(self, error: BaseException, status: int | None) -> NoReturn:
        account = {}
        if status == 403:
            with contextlib.suppress(*hub_errors.failures()):
                account = self.api.whoami()
        said = hub_errors.said(error).replace(self._token, "***")
        text = in_plain_words(self._repo_id, status, said, self.api.endpoint, account)
        raise PublishError(text) from error
