"""Publish an evaluated folder as a Hugging Face dataset: one commit, then a tag.

`main` shows the old dataset or the new one, never half of one. Publishing is redone safely: it is
finished when the files on the Hub have the hashes of ours, whoever put them there, so the same
folder again is no commit, and a commit whose answer was lost is found instead of made twice.
"""

import json
import logging
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from distill_datasets.errors import ArtifactError, PublishError, RecipeError, shown
from distill_datasets.export.agreement import corrected, damaged, problems
from distill_datasets.export.card import PLACEHOLDER
from distill_datasets.export.content import SIBLING, sibling_of
from distill_datasets.export.edited import merged, moved_parts
from distill_datasets.export.folder import CARD, MANIFEST, manifest_text, read_manifest
from distill_datasets.export.licenses import why_restricted
from distill_datasets.hub.repository import Head, Repository, Upload, upload

_logger = logging.getLogger(__name__)
_DOCUMENTS = frozenset({".gitattributes", ".gitignore", CARD, "LICENSE"})
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w][\w.-]*", re.ASCII)
_NO_REPO_ID = re.compile(r"--|\.\.|\.git$")
LONGEST_REPO_ID = 96
_TAG = re.compile(r"[A-Za-z0-9][\w.+-]{0,127}", re.ASCII)
_NO_GIT = re.compile(r"\.\.|\.$|\.lock$")
"""What git takes in no name of a tag."""
_NO_TAG = re.compile(r"main|HEAD|[0-9a-f]{40}")
"""Names that mean a branch or a commit to whoever asks the Hub for them."""


@dataclass(frozen=True)
class Publication:
    """Where a dataset lies. `unchanged`: the Hub had it already, and no commit was made."""

    url: str
    commit: str
    tag: str
    unchanged: bool


def publish(
    folder: Path,
    repo_id: str,
    *,
    token: str | None = None,
    private: bool | None = None,
    tag: str | None = None,
    message: str | None = None,
    allow_license: bool = False,
) -> Publication:
    """Put the dataset of `folder` on the Hub, in one commit.

    Label shards that lie beside it go first, in one commit to a repository of their own, whose name
    ends with `-relabel`. What people wrote on a card that is there is kept.

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
    if (
        not _REPO_ID.fullmatch(repo_id)
        or _NO_REPO_ID.search(repo_id)
        or len(repo_id) > LONGEST_REPO_ID
    ):
        raise RecipeError(
            f"{shown(repo_id)} is not the id of a repository; expected <user or "
            "organization>/<name> in letters, digits, '-', '_' and '.', at most "
            f"{LONGEST_REPO_ID} of them, without '--', '..' or '.git' at the end"
        )
    if tag is not None and (not _TAG.fullmatch(tag) or _NO_GIT.search(tag)):
        raise RecipeError(
            f"--tag: {shown(tag)} cannot be a tag; use at most 128 letters, digits, '.', '-', '_' "
            "and '+', without '..' and with no '.' or '.lock' at the end"
        )
    if tag is not None and _NO_TAG.fullmatch(tag):
        raise RecipeError(
            f"--tag: {tag!r} names a branch or a commit on the Hub; choose a name of a version, "
            "for example v1, or leave it out"
        )
    _check_evaluated(folder)
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
    files: dict[str, Upload],
    repo_id: str,
    token: str | None,
    private: bool | None,
    tag: str | None,
    message: str | None,
    reason: str | None,
    edited: str | None = None,
) -> Publication:
    """Make the repository hold `files`.

    `reason` is why the source's license keeps it private; `edited` is the sha256 of a card there
    whose words are in `files` already.
    """
    repository = Repository(repo_id, token)
    size = sum(file.size for file in files.values())
    _logger.info("publishing %d files, %s bytes, to %s", len(files), f"{size:,}", repository.url)
    repository.create(True if reason and private is None else private)
    head = repository.head()
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
    if edited is None:
        files, edited = _with_their_words(repository, repo_id, head, files)
    tag = tag or f"v{files[MANIFEST].sha256[:12]}"
    tagged = repository.has_tag(tag, files)
    commit, unchanged = repository.commit(
        files,
        message or f"Publish {tag} with distill_datasets",
        lambda head: _ours(repository, repo_id, head, files, edited),
    )
    if not tagged:
        repository.create_tag(tag, commit)
    return Publication(repository.url, commit, tag, unchanged)


def publish_card(
    folder: Path,
    repo_id: str,
    text: str,
    own: dict[str, Any],
    *,
    token: str | None = None,
    message: str | None = None,
) -> Publication:
    """Give a dataset on the Hub another card, in one commit, then a tag.

    Args:
        folder: a copy of it as it is there.
        repo_id: of the dataset.
        text: of the card.
        own: the hashes of our parts of it.
        token: as of `publish`.
        message: of the commit.

    Raises:
        ArtifactError: the copy is damaged.
        PublishError: the Hub refused.
    """
    if found := damaged(folder):
        raise ArtifactError(f"{folder}: is damaged: {'; '.join(found[:3])}")
    manifest = read_manifest(folder) | {"card": own}
    edited = upload(folder / CARD).sha256
    files = _with_card(_uploads(folder, manifest), manifest, text)
    return _put(files, repo_id, token, None, None, message, None, edited)


def _with_their_words(
    repository: Repository, repo_id: str, head: Head, files: dict[str, Upload]
) -> tuple[dict[str, Upload], str | None]:
    """The files with what people wrote on the card that is there, and the sha256 of that card.

    None where there is no card, or no manifest that says which of it is ours.
    """
    if not {MANIFEST, CARD} <= head.files.keys():
        return files, None
    path = repository.read(MANIFEST, head)
    _listed(path, repo_id)  # refuses a damaged one
    there, own = repository.read(CARD, head), read_manifest(path.parent).get("card")
    if own is None:
        return files, None
    text, kept = merged(own, there.read_text(encoding="utf-8"), _text(files[CARD]))
    if text == _text(files[CARD]):
        return files, upload(there).sha256
    manifest = json.loads(_text(files[MANIFEST]))
    if "results" in manifest:
        text = corrected(text, manifest)
    _logger.info("%s: its card was edited; kept are %d parts of it", repo_id, len(kept))
    return _with_card(files, manifest, text), upload(there).sha256


def _with_card(files: dict[str, Upload], manifest: dict[str, Any], text: str) -> dict[str, Upload]:
    """The files with another card, and its hash in their manifest."""
    card = upload(text.encode())
    for entry in manifest["files"]:
        if entry["path"] == CARD:
            entry.update(bytes=card.size, sha256=card.sha256)
    return {**files, CARD: card, MANIFEST: upload(manifest_text(manifest).encode())}


def _text(file: Upload) -> str:
    assert isinstance(file.content, bytes), "the card and the manifest are made here"
    return file.content.decode()


def _ours(
    repository: Repository,
    repo_id: str,
    head: Head,
    files: Mapping[str, Upload],
    edited: str | None,
) -> Set[str]:
    """The files that an earlier publication put there; refuses to touch what others did.

    `edited` is the sha256 of a card there whose words are kept.
    """
    ours = dict[str, str]()
    if MANIFEST in head.files:
        ours = _listed(repository.read(MANIFEST, head), repo_id)
    else:
        foreign = [
            path
            for path in head.files
            if path not in _DOCUMENTS and PurePosixPath(path).suffix not in (".md", ".txt")
        ]
        if foreign:
            raise PublishError(
                f"{repo_id} holds files that this library did not write "
                f"({', '.join(foreign[:3])}); publish into a new repository"
            )
    # the card is what people change on the Hub; its bytes tell whether they did
    theirs = [path for path in head.lacks(files) if path in head.files.keys() - {*ours, MANIFEST}]
    if CARD in ours and CARD in head.files:
        there = upload(repository.read(CARD, head)).sha256
        theirs += [CARD] if there not in (ours[CARD], files[CARD].sha256, edited) else []
    if theirs:
        raise PublishError(
            f"{repo_id} holds {', '.join(theirs[:3])}, written or changed by somebody else, and it "
            "would be replaced; rename or delete it there and publish again, or publish into a new "
            "repository"
        )
    return ours.keys()


def _listed(path: Path, repo_id: str) -> dict[str, str]:
    """The files of an earlier publication by their paths, with their sha256.

    Raises:
        PublishError: its manifest is damaged or somebody else's.
    """
    try:
        entries = read_manifest(path.parent)["files"]
        return {str(entry["path"]): str(entry["sha256"]) for entry in entries}
    except (ArtifactError, KeyError, TypeError) as error:
        raise PublishError(
            f"{repo_id}: its {MANIFEST} is not the manifest of a dataset of this library, or is "
            "damaged, so what may be replaced there is not known; publish into a new repository, "
            "or delete that file there"
        ) from error


def _check_evaluated(folder: Path) -> None:
    if not read_manifest(folder).get("results"):
        raise ArtifactError(
            f"{folder}: not evaluated, and only evaluated datasets are published; "
            "run `distill-datasets run` with its recipe again, which evaluates it"
        )


def _files(folder: Path, repo_id: str) -> dict[str, Upload]:
    """Everything to publish, by path; the card and the manifest as they will be in `repo_id`."""
    manifest = read_manifest(folder)
    found = problems(folder)
    if found:
        raise ArtifactError(
            f"{folder}: differs from its manifest: {'; '.join(found[:3])}; "
            "move it away and run the recipe again, which writes it anew"
        )
    card = (folder / CARD).read_text(encoding="utf-8")
    placed = card.replace(PLACEHOLDER, repo_id)
    if "card" in manifest:
        manifest["card"] = moved_parts(manifest["card"], card, placed)
    return _with_card(_uploads(folder, manifest), manifest, placed)


def _uploads(folder: Path, manifest: dict[str, Any]) -> dict[str, Upload]:
    """The files of a folder but for its card."""
    paths = (entry["path"] for entry in manifest["files"])
    return {path: upload(folder / path) for path in paths if path != CARD}
