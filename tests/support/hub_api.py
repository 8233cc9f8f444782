"""What the test Hub answers, call by call; stricter than the Hub where that finds mistakes."""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from fnmatch import fnmatch
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode

from support.hub_state import (
    Answer,
    Entry,
    Refusal,
    Repo,
    Request,
    User,
    Violation,
    is_large,
    may_write,
    new_repo,
    ok,
    revision,
    tree_row,
)

_PAGE = 5
_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
_COMMIT_KEYS = {
    "header": {"summary", "description", "parentCommit"},
    "file": {"path", "content", "encoding"},
    "lfsFile": {"path", "algo", "oid", "size"},
    "deletedFile": {"path"},
}


class HubApi:
    """All repositories, and one method per call; a method returns an answer or raises one."""

    def __init__(self, tokens: dict[str, User], card_errors: Callable[[str], list[str]]) -> None:
        self.url = ""
        self.tokens = tokens
        self.card_errors = card_errors
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}

    def user(self, request: "Request") -> User | None:
        """Who asks; None for nobody."""
        if request.token is None:
            return None
        if request.token not in self.tokens:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.tokens[request.token]

    def open(self, request: "Request", name: str, *, write: bool = False) -> Repo:
        """The repository, when the asker may read or write it."""
        user = self.user(request)
        repo = self.repos.get(name)
        member = user is not None and name.split("/")[0] in (user.name, *user.orgs)
        if repo is None or (repo.private and not member):
            raise Refusal(401 if user is None else 404, "Repository not found", "RepoNotFound")
        if write:
            may_write(user, name)
        return repo

    def create_repo(self, request: "Request") -> "Answer":
        """POST /api/repos/create."""
        body = request.json({"name", "organization", "type", "visibility", "private"})
        user = self.user(request)
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        name = f"{body.get('organization') or user.name}/{body['name']}"
        if body.get("type") != "dataset":
            raise Violation(f"create_repo of type {body.get('type')}")
        may_write(user, name)
        if name in self.repos:
            url = f"{self.url}/datasets/{name}"
            raise Refusal(409, "You already created this dataset repo", None, url=url)
        self.repos[name] = new_repo(
            body.get("visibility") == "private" or body.get("private") is True
        )
        return ok({"url": f"{self.url}/datasets/{name}", "name": name})

    def whoami(self, request: "Request") -> "Answer":
        """GET /api/whoami-v2."""
        user = self.user(request)
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        orgs = [{"name": org, "type": "org"} for org in user.orgs]
        auth = {"accessToken": {"role": user.role, "displayName": "test"}}
        return ok({"name": user.name, "type": "user", "orgs": orgs, "auth": auth})

    def info(self, request: "Request", repo: str, rev: str = "main") -> "Answer":
        """GET /api/datasets/{id}[/revision/{rev}]."""
        opened = self.open(request, repo)
        commit = revision(opened, rev)
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        return ok(
            {
                "_id": "0" * 24,
                "id": repo,
                "sha": commit.oid,
                "private": opened.private,
                "gated": False,
                "disabled": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "siblings": siblings,
            }
        )

    def listing(self, request: "Request") -> "Answer":
        """GET /api/datasets: those of an author, with all tags that are asked for, in pages."""
        (author,) = request.query["author"]
        wanted = {f"- {tag}" for tag in request.query.get("filter", [])}
        rows = []
        for name, repo in sorted(self.repos.items()):
            card = repo.head.files.get("README.md")
            lines = set() if card is None else {*map(str.strip, card.data.decode().splitlines())}
            if name.startswith(f"{author}/") and not repo.private and wanted <= lines:
                rows.append({"_id": "0" * 24, "id": name, "private": False, "tags": []})
        start = int(request.query.get("cursor", ["0"])[0])
        headers = {}
        if start + _PAGE < len(rows):
            headers["Link"] = self._next(request, start + _PAGE)
        return ok(rows[start : start + _PAGE], headers)

    def _next(self, request: "Request", cursor: int) -> str:
        """The header that names the next page."""
        query = [(name, value) for name, values in request.query.items() for value in values]
        kept = [(name, value) for name, value in query if name != "cursor"]
        return f'<{self.url}{request.path}?{urlencode([*kept, ("cursor", cursor)])}>; rel="next"'

    def tree(self, request: "Request", repo: str, rev: str, folder: str = "") -> "Answer":
        """GET .../tree/{rev}[/{path}], in small pages."""
        files = revision(self.open(request, repo), rev).files
        prefix = f"{unquote(folder)}/" if folder else ""
        rows: dict[str, dict[str, Any]] = {}
        for path, entry in sorted(files.items()):
            if not path.startswith(prefix):
                continue
            parts = path[len(prefix) :].split("/")
            deep = len(parts) if request.flag("recursive") else 1
            for depth in range(1, min(deep, len(parts) - 1) + 1):
                name = prefix + "/".join(parts[:depth])
                rows[name] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": name}
            if len(parts) == 1 or request.flag("recursive"):
                rows[path] = tree_row(path, entry)
        if prefix and not rows:
            raise Refusal(404, f"{folder} does not exist", "EntryNotFound")
        start = int(request.query.get("cursor", ["0"])[0])
        page = list(rows.values())[start : start + _PAGE]
        headers = {}
        if start + _PAGE < len(rows):
            headers["Link"] = self._next(request, start + _PAGE)
        return ok(page, headers)

    def paths_info(self, request: "Request", repo: str, rev: str) -> "Answer":
        """POST .../paths-info/{rev}."""
        files = revision(self.open(request, repo), rev).files
        form = parse_qs(request.body.decode())
        rows = []
        for path in form.get("paths", []):
            if path in files:
                rows.append(tree_row(path, files[path]))
            elif any(name.startswith(f"{path}/") for name in files):
                rows.append({"type": "directory", "oid": "0" * 40, "size": 0, "path": path})
        return ok(rows)

    def refs(self, request: "Request", repo: str) -> "Answer":
        """GET .../refs."""
        opened = self.open(request, repo)
        main = {"name": "main", "ref": "refs/heads/main", "targetCommit": opened.head.oid}
        tags = [
            {"name": name, "ref": f"refs/tags/{name}", "targetCommit": oid}
            for name, oid in opened.tags.items()
        ]
        return ok({"branches": [main], "tags": tags, "converts": []})

    def make_tag(self, request: "Request", repo: str, rev: str) -> "Answer":
        """POST .../tag/{rev}."""
        body = request.json({"tag", "message"})
        opened = self.open(request, repo, write=True)
        commit = revision(opened, rev)
        if body["tag"] in opened.tags:
            raise Refusal(409, "Tag reference exists already")
        opened.tags[body["tag"]] = commit.oid
        return ok({})

    def validate_card(self, request: "Request") -> "Answer":
        """POST /api/validate-yaml."""
        body = request.json({"content", "repoType"})
        errors = self.card_errors(body["content"])
        if errors:
            more = {"errors": [{"message": error} for error in errors], "warnings": []}
            raise Refusal(400, "Invalid card", None, **more)
        return ok({"errors": [], "warnings": []})

    def preupload(self, request: "Request", repo: str, rev: str) -> "Answer":
        """POST .../preupload/{rev}."""
        files = revision(self.open(request, repo, write=True), rev).files
        body = request.json({"files", "gitIgnore"})
        own = files.get(".gitignore")
        ignored = body.get("gitIgnore", own.data.decode() if own else "").splitlines()
        rows = []
        for file in body["files"]:
            sample = base64.b64decode(file["sample"], validate=True)
            large = is_large(file["path"], sample, file["size"])
            known = files.get(file["path"])
            oid = (known.lfs or known.blob) if known else None
            mode = "lfs" if large else "regular"
            ignore = any(fnmatch(file["path"], pattern) for pattern in ignored)
            rows.append(
                {"path": file["path"], "uploadMode": mode, "shouldIgnore": ignore, "oid": oid}
            )
        return ok({"files": rows})

    def lfs_batch(self, request: "Request", repo: str) -> "Answer":
        """POST {id}.git/info/lfs/objects/batch."""
        self.open(request, repo, write=True)
        body = request.json({"operation", "transfers", "objects", "hash_algo", "ref"})
        if body["operation"] != "upload" or body.get("hash_algo") != "sha256":
            raise Violation("LFS batch that is not an upload by sha256")
        objects = []
        for wanted in body["objects"]:
            row = {"oid": wanted["oid"], "size": wanted["size"], "authenticated": True}
            if wanted["oid"] not in self.objects:
                upload = {"href": f"{self.url}/lfs/{wanted['oid']}?size={wanted['size']}"}
                check = {"href": f"{self.url}/lfs-verify/{repo}"}
                row["actions"] = {"upload": upload, "verify": check}
            objects.append(row)
        answer = ok({"transfer": "basic", "objects": objects})
        return Answer(200, answer.body, {"Content-Type": "application/vnd.git-lfs+json"})

    def lfs_put(self, request: "Request", oid: str) -> "Answer":
        """PUT to the signed address of a large file."""
        if request.token is not None:
            raise Violation("token sent to the storage host")
        if len(request.body) != int(request.query["size"][0]):
            raise Violation(f"LFS object {oid}: wrong size")
        if hashlib.sha256(request.body).hexdigest() != oid:
            raise Violation(f"LFS object {oid}: wrong sha256")
        self.objects[oid] = request.body
        return Answer(200, b"")

    def lfs_verify(self, request: "Request", repo: str) -> "Answer":
        """POST to the verify address of a large file."""
        self.open(request, repo, write=True)
        body = request.json({"oid", "size"})
        if len(self.objects.get(body["oid"], b"")) != body["size"]:
            raise Violation(f"verify of {body['oid']}, which was not uploaded")
        return ok({})

    def make_commit(self, request: "Request", repo: str, rev: str) -> "Answer":
        """POST .../commit/{rev}."""
        opened = self.open(request, repo, write=True)
        if request.headers.get("content-type") != "application/x-ndjson":
            raise Violation("commit that is not application/x-ndjson")
        lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
        if rev != "main" or [line["key"] for line in lines].count("header") != 1:
            raise Violation("commit without one header, or not to main")
        header, *operations = lines
        files = dict(opened.head.files)
        touched: set[str] = set()
        for line in lines:
            unknown = line["value"].keys() - _COMMIT_KEYS.get(line["key"], set())
            if line["key"] not in _COMMIT_KEYS or unknown:
                raise Violation(f"commit line {line['key']} with {sorted(unknown)}")
        if "parentCommit" not in header["value"]:
            raise Violation("commit without a parent, which may undo somebody else's")
        if header["value"]["parentCommit"] != opened.head.oid:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        for line in operations:
            path = line["value"]["path"]
            if path in touched or path.startswith("/") or ".." in path.split("/"):
                raise Violation(f"bad or repeated path {path}")
            touched.add(path)
            self._apply(files, line["key"], line["value"])
        if files == opened.head.files:
            raise Violation("a commit that changes nothing")
        if "README.md" in touched and (
            errors := self.card_errors(files["README.md"].data.decode())
        ):
            raise Refusal(400, "; ".join(errors))
        commit = opened.add(files, header["value"]["summary"])
        url = f"{self.url}/datasets/{repo}/commit/{commit.oid}"
        return ok({"success": True, "commitOid": commit.oid, "commitUrl": url, "hookOutput": ""})

    def _apply(self, files: dict[str, Entry], key: str, value: dict[str, Any]) -> None:
        path = value["path"]
        if key == "deletedFile":
            if path not in files:
                raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
            del files[path]
        elif key == "lfsFile":
            data = self.objects.get(value["oid"])
            if data is None or len(data) != value["size"] or value["algo"] != "sha256":
                raise Violation(f"{path}: large file that was not uploaded")
            files[path] = Entry(data, value["oid"])
        else:
            data = base64.b64decode(value["content"], validate=True)
            if is_large(path, data[:512], len(data)):
                raise Violation(f"{path}: large or binary file sent as a regular one")
            files[path] = Entry(data, None)

    def resolve(self, request: "Request", repo: str, rev: str, path: str) -> "Answer":
        """GET or HEAD /datasets/{id}/resolve/{rev}/{path}, with ranges."""
        commit = revision(self.open(request, repo), rev)
        entry = commit.files.get(unquote(path))
        if entry is None:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{entry.lfs or entry.blob}"'}
        headers |= {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if entry.lfs:
            headers |= {"X-Linked-Etag": f'"{entry.lfs}"', "X-Linked-Size": str(len(entry.data))}
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        if not span:
            return Answer(200, entry.data, headers)
        first = int(span[1])
        last = min(int(span[2] or len(entry.data)), len(entry.data) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(entry.data)}"
        return Answer(206, entry.data[first : last + 1], headers)


_API = rf"/api/datasets/{_REPO}"
_REV = r"(?P<rev>[^/]+)"
ROUTES: list[tuple[str, str, Callable[..., Answer]]] = [
    ("POST", r"/api/repos/create", HubApi.create_repo),
    ("GET", r"/api/whoami-v2", HubApi.whoami),
    ("POST", r"/api/validate-yaml", HubApi.validate_card),
    ("GET", r"/api/datasets", HubApi.listing),
    ("GET", _API, HubApi.info),
    ("GET", rf"{_API}/revision/{_REV}", HubApi.info),
    ("GET", rf"{_API}/tree/{_REV}", HubApi.tree),
    ("GET", rf"{_API}/tree/{_REV}/(?P<folder>.+)", HubApi.tree),
    ("POST", rf"{_API}/paths-info/{_REV}", HubApi.paths_info),
    ("GET", rf"{_API}/refs", HubApi.refs),
    ("POST", rf"{_API}/tag/{_REV}", HubApi.make_tag),
    ("POST", rf"{_API}/preupload/{_REV}", HubApi.preupload),
    ("POST", rf"{_API}/commit/{_REV}", HubApi.make_commit),
    ("POST", rf"/datasets/{_REPO}\.git/info/lfs/objects/batch", HubApi.lfs_batch),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", HubApi.lfs_put),
    ("POST", rf"/lfs-verify/{_REPO}", HubApi.lfs_verify),
    ("GET", rf"/datasets/{_REPO}/resolve/{_REV}/(?P<path>.+)", HubApi.resolve),
]
