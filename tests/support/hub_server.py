"""A small strict server that speaks the Hub's API for datasets, in memory, on 127.0.0.1.

It refuses what the Hub refuses, and notes as a violation what no well-behaved client sends. Faults
are injected by method, path and count, before or after the work is done. Standard library only.
"""

import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit

from support.hub_api import ROUTES, HubApi
from support.hub_buckets import Buckets
from support.hub_state import (
    Answer,
    Commit,
    Damage,
    Refusal,
    Repo,
    Request,
    User,
    Violation,
    make_entry,
    new_repo,
)


@dataclass
class Fault:
    """What happens to the next `times` requests that match, instead of or after their work."""

    method: str
    pattern: str
    times: int
    status: int | None = None
    damage: Damage | None = None
    place: int | None = None
    after: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    act: Callable[[], object] | None = None


class HubServer:
    """The server; use it as a context manager."""

    def __init__(
        self,
        tokens: dict[str, User],
        card_errors: Callable[[str], list[str]] | None = None,
        store: Path | None = None,
    ) -> None:
        self.api = HubApi(tokens, card_errors or (lambda text: []))
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.violations: list[str] = []
        self._lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        # contents of buckets lie there; without one there are neither buckets nor jobs
        self.buckets = None if store is None else Buckets(self.api, store)
        self.url = self.api.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def repos(self) -> dict[str, Repo]:
        """All repositories by id."""
        return self.api.repos

    def fail(
        self,
        method: str,
        pattern: str,
        status: int,
        times: int = 1,
        after: bool = False,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Answer the next matching requests with `status`; `after` does the work first."""
        self.faults.append(Fault(method, pattern, times, status, after, headers or {}))

    def damage(
        self,
        method: str,
        pattern: str,
        damage: Damage,
        times: int = 1,
        place: int | None = None,
    ) -> None:
        """Do the work of the next matching requests, and damage the answers.

        `place`: the byte to change; None: the one in the middle.
        """
        self.faults.append(Fault(method, pattern, times, damage=damage, place=place))

    def before(self, method: str, pattern: str, act: Callable[[], object], times: int = 1) -> None:
        """Do something just before the next matching request is served."""
        self.faults.append(Fault(method, pattern, times, act=act))

    def commit(self, repo: str, files: dict[str, bytes], private: bool = False) -> Commit:
        """Somebody else's commit; makes the repository."""
        entries = {path: make_entry(path, data) for path, data in files.items()}
        if repo not in self.repos:
            self.repos[repo] = new_repo(private)
        return self.repos[repo].add({**self.repos[repo].head.files, **entries}, "by hand")

    def serve(self, request: Request) -> Answer:
        """Answer one request, faults included, and log it."""
        with self._lock:
            fault = self._next_fault(request)
            if fault and fault.act:
                fault.act()
            if fault and fault.status and not fault.after:
                answer = Answer(fault.status, b'{"error": "injected"}', fault.headers)
            else:
                answer = self._answer(request)
                if fault and fault.status:
                    answer = Answer(fault.status, b'{"error": "injected"}', fault.headers)
                elif fault and fault.damage:
                    answer = replace(answer, damage=fault.damage, place=fault.place)
            self.requests.append(f"{request.method} {request.path} {answer.status}")
            return answer

    def _next_fault(self, request: Request) -> Fault | None:
        for fault in self.faults:
            if fault.method == request.method and re.search(fault.pattern, request.path):
                fault.times -= 1
                if fault.times == 0:
                    self.faults.remove(fault)
                return fault
        return None

    def _answer(self, request: Request) -> Answer:
        try:
            found = None if self.buckets is None else self.buckets.answer(request)
            if found is not None:
                return found
            for method, pattern, handle in ROUTES:
                match = re.fullmatch(pattern, request.path)
                if match and method == request.method.replace("HEAD", "GET"):
                    return handle(self.api, request, **match.groupdict())
            raise Refusal(404, f"no route {request.method} {request.path}", "EntryNotFound")
        except Violation as violation:
            self.violations.append(str(violation))
            return Answer(400, json.dumps({"error": str(violation)}).encode())
        except Refusal as refusal:
            headers = {"X-Error-Message": refusal.message}
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
            body = {"error": refusal.message, **refusal.more}
            return Answer(refusal.status, json.dumps(body).encode(), headers)


def _handler(server: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # one packet per answer: two would wait for an acknowledgment

        def _serve(self) -> None:
            parts = urlsplit(self.path)
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(
                self.command, parts.path, parse_qs(parts.query), headers, self._body(headers)
            )
            answer = server.serve(request)
            if answer.damage == "dropped":
                self.close_connection = True
                return
            body = answer.body
            if answer.damage == "flipped" and body:
                place = len(body) // 2 if answer.place is None else answer.place % len(body)
                body = body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]
            self.send_response(answer.status)
            for name, value in {"X-Request-Id": "test", **answer.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if answer.damage == "truncated":
                body = body[: len(body) // 2]
                self.close_connection = True
            if self.command != "HEAD":
                self.wfile.write(body)

        def _body(self, headers: dict[str, str]) -> bytes:
            if headers.get("transfer-encoding", "").lower() != "chunked":
                return self.rfile.read(int(headers.get("content-length", 0)))
            pieces = []
            while size := int(self.rfile.readline(), 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)

        def log_message(self, format: str, *args: object) -> None:
            """The server keeps its own log."""

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    return Handler
