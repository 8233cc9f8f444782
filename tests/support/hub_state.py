"""What the test Hub holds and exchanges: users, repositories, requests and answers."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import unquote

Damage = Literal["dropped", "truncated", "flipped"]
"""What happens to an answer on its way: no byte of it, half of it, or all with one bit changed."""
LFS_SUFFIXES = (".parquet", ".png", ".safetensors", ".tar", ".arrow")
LFS_BYTES = 10 << 20


@dataclass(frozen=True)
class User:
    """Whom a token belongs to. `role`: `read` or `write`."""

    name: str
    role: str
    orgs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """A file of a commit. `lfs` is the sha256 of a large file."""

    data: bytes
    lfs: str | None

    @property
    def blob(self) -> str:
        """The git object id: of the content, or of the pointer to it."""
        body = self.data
        if self.lfs:
            text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.lfs}\n"
            body = f"{text}size {len(self.data)}\n".encode()
        return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


@dataclass(frozen=True)
class Commit:
    """A state of `main`."""

    oid: str
    title: str
    files: dict[str, Entry]


@dataclass
class Repo:
    """One dataset repository: its commits, oldest first, and its tags."""

    private: bool
    commits: list[Commit]
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def head(self) -> Commit:
        """The commit of `main`."""
        return self.commits[-1]

    def add(self, files: dict[str, Entry], title: str) -> Commit:
        """Append a commit."""
        state = [(path, entry.blob) for path, entry in sorted(files.items())]
        words = json.dumps([len(self.commits), title, state])
        self.commits.append(Commit(hashlib.sha1(words.encode()).hexdigest(), title, files))
        return self.head


class Refusal(Exception):
    """An answer that is not 200."""

    def __init__(self, status: int, message: str, code: str | None = None, **more: object) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.more = status, message, code, more


class Violation(Exception):
    """What no well-behaved client sends."""


@dataclass(frozen=True)
class Request:
    """One HTTP request; header names in lower case."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes

    @property
    def token(self) -> str | None:
        """The bearer token."""
        text = self.headers.get("authorization")
        return None if text is None else text.removeprefix("Bearer ")

    def flag(self, name: str) -> bool:
        """A boolean of the query."""
        return self.query.get(name, ["false"])[0].lower() in ("true", "1")

    def json(self, allowed: set[str]) -> dict[str, Any]:
        """The body, whose fields must be among `allowed`."""
        content: dict[str, Any] = json.loads(self.body)
        if unknown := content.keys() - allowed:
            raise Violation(f"{self.method} {self.path}: unknown {sorted(unknown)}")
        return content


@dataclass(frozen=True)
class Answer:
    """One HTTP response."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    damage: Damage | None = None
    place: int | None = None


def ok(content: object, headers: dict[str, str] | None = None) -> Answer:
    """A JSON answer."""
    body = json.dumps(content).encode()
    return Answer(200, body, {"Content-Type": "application/json", **(headers or {})})


def may_write(user: User | None, name: str) -> None:
    """Refuse a writer without the role or the namespace."""
    if user is None:
        raise Refusal(401, "Invalid username or password.")
    if user.role != "write":
        raise Refusal(403, "Forbidden: you must use a write token to write to this repository.")
    if name.split("/")[0] not in (user.name, *user.orgs):
        raise Refusal(403, f"You don't have the rights to write under {name.split('/')[0]}")


def new_repo(private: bool) -> Repo:
    """A repository as the Hub makes it: with one commit."""
    repo = Repo(private, [])
    repo.add({".gitattributes": Entry(b"*.parquet filter=lfs\n", None)}, "initial commit")
    return repo


def make_entry(path: str, data: bytes) -> Entry:
    """A file, large or regular as the Hub decides."""
    large = is_large(path, data[:512], len(data))
    return Entry(data, hashlib.sha256(data).hexdigest() if large else None)


def is_large(path: str, sample: bytes, size: int) -> bool:
    """Whether the Hub keeps a file outside of git."""
    return path.endswith(LFS_SUFFIXES) or size > LFS_BYTES or b"\0" in sample


def tree_row(path: str, entry: Entry) -> dict[str, Any]:
    """A file as the tree lists it."""
    row = {"type": "file", "oid": entry.blob, "size": len(entry.data), "path": path}
    if entry.lfs:
        row["lfs"] = {"oid": entry.lfs, "size": len(entry.data), "pointerSize": 130}
    return row


def revision(repo: Repo, rev: str) -> Commit:
    """The commit of a branch, a tag or an id."""
    rev = unquote(rev)
    oid = repo.head.oid if rev == "main" else repo.tags.get(rev, rev)
    for commit in repo.commits:
        if commit.oid == oid:
            return commit
    raise Refusal(404, f"Invalid rev id: {rev}", "RevisionNotFound")
