"""A dataset repository on the Hub that is written to: one commit, or nothing at all.

Every call is redone while the Hub is busy, and none is wrong to redo: a commit whose answer was
lost is found on `main` the next time instead of being made twice.
"""

import contextlib
import hashlib
import io
import logging
import time
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NoReturn, TypeVar

from distill_datasets.errors import PublishError
from distill_datasets.hub import errors as hub_errors

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

T = TypeVar("T")

_logger = logging.getLogger(__name__)
_WAITS_SECONDS = (0.5, 2.0, 8.0, 20.0)
_BUSY = frozenset({408, 429, 500, 502, 503, 504})
_CONFLICT = frozenset({409, 412})
GITIGNORE = ".gitignore"
IGNORE_NOTHING = "# nothing of a publication is left out\n"


@dataclass(frozen=True)
class Upload:
    """One file to publish, with the hashes that the Hub knows large and small files by."""

    content: Path | bytes
    size: int
    sha256: str
    blob: str


@dataclass(frozen=True)
class Head:
    """A revision of a repository: its commit and its files."""

    commit: str
    private: bool
    files: dict[str, "RepoFile"]

    def lacks(self, files: Mapping[str, Upload]) -> list[str]:
        """The paths whose content is not what `files` has there."""
        return [path for path, file in files.items() if _differs(file, self.files.get(path))]


def upload(content: Path | bytes) -> Upload:
    """A file or some bytes, hashed as git and as its large-file storage do."""
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    blob = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    sha256 = hashlib.sha256()
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
        while piece := file.read(1 << 20):
            blob.update(piece)
            sha256.update(piece)
    return Upload(content, size, sha256.hexdigest(), blob.hexdigest())


def _differs(file: Upload, remote: "RepoFile | None") -> bool:
    if remote is None or remote.size != file.size:
        return True
    # git's own hash of a large file is that of the pointer to it
    return remote.lfs.sha256 != file.sha256 if remote.lfs else remote.blob_id != file.blob


class Repository:
    """One dataset repository; what the Hub refuses becomes a `PublishError` in plain words.

    Args:
        repo_id: `namespace/name`.
        token: a write token; None: the one of `hf auth login` or HF_TOKEN.

    Raises:
        PublishError: there is no token.
    """

    def __init__(self, repo_id: str, token: str | None) -> None:
        from huggingface_hub import HfApi, get_token

        token = token or get_token()
        if not token:
            raise PublishError("no Hugging Face token: run `hf auth login` or set HF_TOKEN")
        self._api = HfApi(token=token, library_name="distill_datasets")
        self._repo_id = repo_id
        self._token = token

    @property
    def url(self) -> str:
        """Its page."""
        return f"{self._api.endpoint}/datasets/{self._repo_id}"

    def create(self, private: bool | None) -> None:
        """Make the repository unless it exists."""
        self._patiently(
            "make the repository",
            lambda: self._api.create_repo(
                self._repo_id, repo_type="dataset", private=private, exist_ok=True
            ),
        )

    def head(self, revision: str = "main") -> Head:
        """The commit that a revision stands at, and its files."""
        from huggingface_hub.hf_api import RepoFile

        def read() -> Head:
            info = self._api.dataset_info(self._repo_id, revision=revision)
            # the tree of that commit: the branch may have moved since
            sha = str(info.sha)
            tree = self._api.list_repo_tree(
                self._repo_id, repo_type="dataset", revision=sha, recursive=True
            )
            files = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
            return Head(sha, bool(info.private), files)

        return self._patiently(f"list the files at {revision}", read)

    def read(self, path: str, head: Head) -> Path:
        """A file of a commit, downloaded; its bytes are those that the commit names."""

        def fetch() -> Path:
            for anew in (False, True):  # a copy that was damaged in the cache is fetched again
                copy = self._api.hf_hub_download(
                    self._repo_id,
                    path,
                    repo_type="dataset",
                    revision=head.commit,
                    force_download=anew,
                )
                if not _differs(upload(Path(copy)), head.files[path]):
                    return Path(copy)
            raise ConnectionError(f"the bytes of {path} that arrive are not those of the commit")

        return self._patiently(f"read {path}", fetch)

    def has_tag(self, tag: str, files: Mapping[str, Upload]) -> bool:
        """Whether the tag exists; one that names other content, or a branch, is refused."""
        refs = self._patiently(
            "list the tags", lambda: self._api.list_repo_refs(self._repo_id, repo_type="dataset")
        )
        if tag in {ref.name for ref in refs.branches}:
            raise PublishError(
                f"{self._repo_id} has a branch {tag!r}, and a tag of that name would hide it; "
                "choose another --tag"
            )
        if tag not in {ref.name for ref in refs.tags}:
            return False
        if self.head(tag).lacks(files):
            raise PublishError(
                f"{self._repo_id} has a tag {tag!r} with other content, which stays as it is; "
                "choose another --tag"
            )
        return True

    def create_tag(self, tag: str, commit: str) -> None:
        """Name a commit."""
        self._patiently(
            f"make the tag {tag}",
            lambda: self._api.create_tag(
                self._repo_id, repo_type="dataset", tag=tag, revision=commit, exist_ok=True
            ),
        )

    def commit(
        self, files: Mapping[str, Upload], message: str, ours: Callable[[Head], Set[str]]
    ) -> tuple[str, bool]:
        """Bring `main` to hold `files` in one commit, whatever happens to it meanwhile.

        Args:
            files: what to hold, by path.
            message: of the commit.
            ours: the paths of a head that an earlier publication put there, and that are deleted
                when `files` has them no more. Raises where nothing may be written.

        Returns:
            The commit that holds them, and whether `main` did so from the start.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        for attempt, wait in enumerate((*_WAITS_SECONDS, None)):
            # Read, compare, write with the commit that was read as the parent: somebody else's
            # commit in between is answered with 412, and we read again.
            head = self.head()
            stale = sorted(ours(head) & head.files.keys() - files.keys())
            if not stale and not head.lacks(files):
                return head.commit, attempt == 0
            # the client leaves out the files that did not change
            added = [CommitOperationAdd(path, file.content) for path, file in files.items()]
            try:
                if any(PurePosixPath(path).name == GITIGNORE for path in head.files):
                    # what is uploaded by these rules before is not left out of the commit
                    self._api.preupload_lfs_files(
                        self._repo_id, added, repo_type="dataset", gitignore_content=IGNORE_NOTHING
                    )
                commit = self._api.create_commit(
                    self._repo_id,
                    [*added, *(CommitOperationDelete(path) for path in stale)],
                    commit_message=message,
                    repo_type="dataset",
                    parent_commit=head.commit,
                ).oid
            except hub_errors.failures() as error:
                # A busy answer may hide a commit that was made: the next head shows it.
                self._wait_or_raise(error, "commit", wait, _BUSY | _CONFLICT)
                continue
            lacking = self.head(commit).lacks(files)
            if lacking:
                raise PublishError(
                    f"{self._repo_id} at {commit} does not hold what was sent: "
                    f"{', '.join(lacking[:3])}; publish again, which sends what is missing"
                )
            return commit, False
        raise AssertionError("the last attempt returns or raises")

    def _patiently(self, doing: str, call: Callable[[], T]) -> T:
        """`call()`, redone while the Hub is busy; only for calls that are safe to redo.

        Args:
            doing: what the Hub is asked to do, for messages.
            call: asks it.
        """
        for wait in (*_WAITS_SECONDS, None):
            try:
                return call()
            except hub_errors.failures() as error:
                self._wait_or_raise(error, doing, wait, _BUSY)
        raise AssertionError("the last attempt returns or raises")

    def _wait_or_raise(
        self, error: Exception, doing: str, wait: float | None, redo: frozenset[int]
    ) -> None:
        """Sleep when a redo may help and one is left, raise otherwise."""
        cause = hub_errors.cause(error)
        status = hub_errors.status(cause)
        passing = status in redo if status is not None else hub_errors.is_transport(cause)
        if wait is None or not passing:
            self._refuse(cause, doing, status)
        wait = max(wait, hub_errors.asked_seconds(cause))
        _logger.warning(
            "%s: asked to %s, %s; trying again in %g s",
            self._api.endpoint,
            doing,
            f"status {status}" if status else self._words(cause),
            wait,
        )
        time.sleep(wait)

    def _words(self, error: BaseException) -> str:
        return hub_errors.one_line(error).replace(self._token, "***")

    def _refuse(self, error: BaseException, doing: str, status: int | None) -> NoReturn:
        account = {}
        if status == 403:
            with contextlib.suppress(*hub_errors.failures()):
                account = self._api.whoami()
        raise PublishError(
            hub_errors.why_unwritten(
                error, doing, self._words(error), self._repo_id, self._api.endpoint, account
            )
        ) from error
