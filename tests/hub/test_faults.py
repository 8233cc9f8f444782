"""Every request to the Hub, and everything that can happen to it: the old dataset or the new one.

A publication, its tag, and reading a source are each run with one fault: a status, or an answer
that is lost, cut or changed, once or every time. What comes of it is an error in words or the same
result as without a fault; never a traceback, and never half a dataset on `main`.
"""

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.hub_api import ROUTES
from support.hub_client import Client
from support.hub_server import HubServer
from support.hub_state import Repo, User
from support.image_sets import both
from support.sample_content import RESULTS, sample

from distill_datasets.export.folder import write_dataset

FAULTS: tuple[int | str, ...] = (403, 404, 412, 429, 500, "dropped", "truncated", "flipped")
ERRORS = ("PublishError", "DataError")
TOKEN = "hf_writer"


class Bench:
    """A server, a client that never waits, and what shall be published."""

    def __init__(self, server: HubServer, client: Client, folder: Path, older: Path) -> None:
        self.server, self.client, self.folder, self.older = server, client, folder, older
        self.count = 0
        parquet = {}
        for split, rows in both().items():
            buffer = io.BytesIO()
            rows.to_parquet(buffer)
            parquet[f"data/{split}-0.parquet"] = buffer.getvalue()
        self.pets = parquet | {"README.md": b"---\nlicense: mit\n---\n"}

    def name(self) -> str:
        self.count += 1
        return f"ann/set-{self.count}"

    def publish(self, name: str, folder: Path | None = None) -> dict[str, Any]:
        self.server.api.objects.clear()  # so that large files are sent, not only named
        answer = self.client.ask("publish", str(folder or self.folder), name, token=TOKEN)
        assert isinstance(answer, dict)
        return answer

    def again(self) -> tuple[str, Repo]:
        """A repository that holds the older version, with what the new one has to remove."""
        name = self.name()
        assert "error" not in self.publish(name, self.older)
        return name, self.server.repos[name]

    def read(self, name: str) -> dict[str, Any]:
        answer = self.client.ask("read", dataset=name)
        assert isinstance(answer, dict)
        return answer

    def routes(self, first: int) -> list[tuple[str, str]]:
        """The kinds of requests since one of them, as method and pattern."""
        kinds = dict[tuple[str, str], None]()
        for line in self.server.requests[first:]:
            method, path, _ = line.split()
            for of, pattern, _ in ROUTES:
                if of == method.replace("HEAD", "GET") and re.fullmatch(pattern, path):
                    kinds[method, pattern] = None
        return list(kinds)

    def inject(self, method: str, pattern: str, fault: int | str, times: int) -> None:
        if isinstance(fault, int):
            self.server.fail(method, f"^{pattern}$", fault, times)
        else:
            self.server.damage(method, f"^{pattern}$", fault, times)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    root = tmp_path_factory.mktemp("faults")
    folder, older = root / "new" / "set", root / "old" / "set"
    write_dataset(folder, sample(label_cells=[], geometry={"canvas": "pixels"}), RESULTS)
    write_dataset(older, sample(), RESULTS)
    with HubServer({TOKEN: User("ann", "write")}) as server:
        client = Client(server.url, root / "hf", HF_TOKEN=TOKEN)
        client.ask("hurry")
        yield Bench(server, client, folder, older)
        client.close()


def told(answer: dict[str, Any], what: object) -> None:
    """What is no result is an error in words, without the token."""
    assert answer["error"] in ERRORS, (what, answer["text"])
    assert TOKEN not in answer["text"] and len(answer["text"]) < 900, (what, answer["text"])
    assert "\n" not in answer["text"] and len(answer["text"]) > 30, (what, answer["text"])


@pytest.mark.parametrize("times", [1, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_publication_ends_with_the_old_dataset_or_the_new_one(
    bench: Bench, fault: int | str, times: int
) -> None:
    name, repo = bench.again()
    first = len(bench.server.requests)
    assert "error" not in bench.publish(name)
    expected = repo.head.files
    routes = bench.routes(first)
    assert len(routes) >= 12
    for method, pattern in routes:
        what = (method, pattern, fault, times)
        name, repo = bench.again()
        before, tags = repo.head, dict(repo.tags)
        bench.inject(method, pattern, fault, times)
        answer = bench.publish(name)
        bench.server.faults.clear()
        assert repo.head.files in (before.files, strip(repo, expected)), what
        if "error" not in answer:
            assert repo.head.files == strip(repo, expected) and repo.head.oid == answer["commit"]
            assert repo.tags == tags | {answer["tag"]: answer["commit"]}, what
            continue
        told(answer, what)
        assert "error" not in bench.publish(name), what
        assert repo.head.files == strip(repo, expected), what
    assert bench.server.violations == []


def strip(repo: Repo, files: dict[str, Any]) -> dict[str, Any]:
    """Files as they are in this repository: card and manifest say its name."""
    own = {path: repo.head.files[path] for path in ("README.md", "distill.json")}
    return files | own


def test_a_bit_that_is_changed_in_a_download_is_noticed_wherever_it_lies(bench: Bench) -> None:
    name = bench.name()
    bench.server.commit(name, bench.pets)
    expected = bench.read(name)
    size = len(bench.pets["data/train-0.parquet"])
    for place in range(0, size, size // 12):
        name = bench.name()
        bench.server.commit(name, bench.pets)
        bench.server.damage("GET", "/resolve/.*/data/train-0.parquet$", "flipped", 2, place)
        answer = bench.read(name)
        bench.server.faults.clear()
        again = bench.read(name)
        assert again == expected, (place, again)
        if "error" in answer:
            told(answer, place)
        else:
            assert answer == expected, place


@pytest.mark.parametrize("times", [1, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_source_is_read_as_it_is_or_refused(bench: Bench, fault: int | str, times: int) -> None:
    name = bench.name()
    bench.server.commit(name, bench.pets)
    first = len(bench.server.requests)
    expected = bench.read(name)
    assert expected["labels"] == [[0, 1, 0, 1], [0, 1]]
    routes = bench.routes(first)
    assert len(routes) >= 4
    for method, pattern in routes:
        name = bench.name()
        bench.server.commit(name, bench.pets)
        bench.inject(method, pattern, fault, times)
        answer = bench.read(name)
        bench.server.faults.clear()
        if "error" in answer:
            told(answer, (method, pattern, fault, times))
        else:
            assert answer == expected, (method, pattern, fault, times)
