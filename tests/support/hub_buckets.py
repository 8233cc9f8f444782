"""Buckets and jobs of the test Hub: what they hold, and what it answers about them.

Contents of buckets go through Xet, as on the Hub: the real client keeps them in a folder of this
machine, and the server is told their hashes alone, as on the Hub.
"""

import json
import re
import struct
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from support.hub_api import HubApi
from support.hub_state import Answer, Refusal, Request, User, Violation, may_write, ok

_BUCKET = r"/api/buckets/(?P<bucket>[\w.-]+/[\w.-]+)"
_TIME = "%Y-%m-%dT%H:%M:%S.%fZ"
_ENTRY = 48
"""Bytes of the head of a shard, and of every record in it."""
_VERIFIED, _EXTENDED = 1 << 31, 1 << 30
"""Flags of a file in a shard: a record more for each of its pieces, and one for itself."""


class Buckets:
    """All buckets by name, their files by path, and the jobs that were submitted."""

    def __init__(self, api: HubApi, store: Path) -> None:
        self.api, self.store = api, store
        self.files: dict[str, dict[str, dict[str, Any]]] = {}
        self.jobs: list[dict[str, Any]] = []

    def answer(self, request: Request) -> Answer | None:
        """What the Hub says; None for a request that is about neither."""
        routes: list[tuple[str, str, Callable[..., Answer]]] = [
            ("POST", _BUCKET, self.create),
            ("GET", rf"{_BUCKET}/xet-(?:read|write)-token", self.token),
            ("GET", rf"{_BUCKET}/tree(?:/(?P<prefix>.+))?", self.tree),
            ("POST", rf"{_BUCKET}/batch", self.batch),
            ("HEAD", r"/buckets/(?P<bucket>[\w.-]+/[\w.-]+)/resolve/(?P<path>.+)", self.metadata),
            ("POST", r"/api/jobs/(?P<owner>[\w.-]+)", self.submit),
        ]
        for method, pattern, handle in routes:
            found = re.fullmatch(pattern, request.path)
            if found and method == request.method:
                return handle(request, **found.groupdict())
        return None

    def create(self, request: Request, bucket: str) -> Answer:
        """POST /api/buckets/{id}."""
        body = request.json({"visibility"})
        may_write(self._user(request), bucket)
        if body.get("visibility") != "private":
            raise Violation(f"{bucket}: a run is kept where others can read it")
        url = f"{self.api.url}/buckets/{bucket}"
        if bucket in self.files:
            raise Refusal(409, "You already created this bucket", None, url=url)
        self.files[bucket] = {}
        return ok({"url": url})

    def token(self, request: Request, bucket: str) -> Answer:
        """GET .../xet-write-token: where contents go."""
        self._open(request, bucket)
        said = {"casUrl": f"local://{self.store}", "exp": 9_999_999_999, "accessToken": "x"}
        names = {"casUrl": "Cas-Url", "exp": "Token-Expiration", "accessToken": "Access-Token"}
        return ok(said, {f"X-Xet-{names[key]}": str(value) for key, value in said.items()})

    def tree(self, request: Request, bucket: str, prefix: str | None = None) -> Answer:
        """GET .../tree[/{prefix}]."""
        below = f"{unquote(prefix)}/" if prefix else ""
        files = self._open(request, bucket)
        return ok([row for path, row in sorted(files.items()) if path.startswith(below)])

    def batch(self, request: Request, bucket: str) -> Answer:
        """POST .../batch: adds and deletes of files, all or none."""
        files, sizes = dict(self._open(request, bucket)), self._sizes()
        for line in map(json.loads, request.body.splitlines()):
            path = line["path"]
            if line["type"] == "deleteFile":
                del files[path]
                continue
            if line["type"] != "addFile" or path.startswith("/") or ".." in path.split("/"):
                raise Violation(f"batch line {line}")
            if line["xetHash"] not in sizes:
                raise Violation(f"{path}: its content was not uploaded")
            files[path] = {
                "type": "file",
                "path": path,
                "size": sizes[line["xetHash"]],
                "xetHash": line["xetHash"],
                "mtime": datetime.fromtimestamp(line["mtime"] / 1000, UTC).strftime(_TIME),
            }
        self.files[bucket] = files
        return ok({"success": True, "failed": []})

    def metadata(self, request: Request, bucket: str, path: str) -> Answer:
        """HEAD /buckets/{id}/resolve/{path}."""
        row = self._open(request, bucket).get(unquote(path))
        if row is None:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        headers = {"X-Xet-Hash": row["xetHash"], "X-Linked-Size": str(row["size"])}
        headers["X-Xet-Refresh-Route"] = f"{self.api.url}/api/buckets/{bucket}/xet-read-token"
        return Answer(200, b"", headers)

    def submit(self, request: Request, owner: str) -> Answer:
        """POST /api/jobs/{owner}."""
        may_write(self._user(request), f"{owner}/job")
        self.jobs.append(json.loads(request.body))
        job = {"id": f"job{len(self.jobs)}", "status": {"stage": "SCHEDULING"}}
        return ok({**job, "owner": {"id": "0", "name": owner, "type": "user"}})

    def _user(self, request: Request) -> User | None:
        return self.api.user(request)

    def _open(self, request: Request, bucket: str) -> dict[str, dict[str, Any]]:
        may_write(self._user(request), bucket)
        if bucket not in self.files:
            raise Refusal(404, "Bucket not found", "RepoNotFound")
        return self.files[bucket]

    def _sizes(self) -> dict[str, int]:
        """The sizes of all contents in the store by their hashes, as its shards say them."""
        sizes = dict[str, int]()
        for path in self.store.rglob("*.mdb"):
            data, place = path.read_bytes(), _ENTRY
            while (digest := data[place : place + 32]) != b"\xff" * 32:
                flags, count = struct.unpack_from("<II", data, place + 32)
                pieces = [
                    struct.unpack_from("<I", data, place + (1 + each) * _ENTRY + 36)[0]
                    for each in range(count)
                ]
                words = struct.unpack("<4Q", digest)
                sizes["".join(f"{word:016x}" for word in words)] = sum(pieces)
                records = 1 + count * (2 if flags & _VERIFIED else 1) + bool(flags & _EXTENDED)
                place += records * _ENTRY
        return sizes
