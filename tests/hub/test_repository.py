"""What is sent is compared with what the Hub holds afterwards."""

from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.hf_api import RepoFile

from distill_datasets.errors import PublishError
from distill_datasets.hub.repository import Repository, upload

FILES = {"distill.json": upload(b"{}"), "data/train-00000.parquet": upload(b"rows")}


class Hub:
    """A Hub that makes a commit and keeps of it what it is told to."""

    endpoint = "https://hub.example"

    def __init__(self, keeps: dict[str, bytes]) -> None:
        self.keeps, self.commits = keeps, 0

    def dataset_info(self, repo_id: str, revision: str) -> Any:  # noqa: ANN401
        now = f"commit {self.commits}" if revision == "main" else revision
        return SimpleNamespace(sha=now, private=False)

    def list_repo_tree(self, repo_id: str, revision: str, **_: object) -> list[RepoFile]:
        held = {} if revision == "commit 0" else self.keeps
        return [
            RepoFile(path=path, size=len(content), oid=upload(content).blob)
            for path, content in held.items()
        ]

    def create_commit(self, *_: object, **__: object) -> Any:  # noqa: ANN401
        self.commits += 1
        return SimpleNamespace(oid=f"commit {self.commits}")


def repository(hub: Hub) -> Repository:
    made = Repository("ann/set", "hf_token")
    made._api = hub  # type: ignore[assignment]
    return made


def test_a_commit_that_holds_what_was_sent_is_returned() -> None:
    hub = Hub(
        {path: file.content for path, file in FILES.items() if isinstance(file.content, bytes)}
    )
    assert repository(hub).commit(FILES, "all", lambda head: set()) == ("commit 1", False)


@pytest.mark.parametrize(
    "keeps",
    [
        {"distill.json": b"{}"},
        {"distill.json": b"{}", "data/train-00000.parquet": b"rowz"},
        {"distill.json": b"{}", "data/train-00000.parquet": b"row"},
    ],
    ids=["a file is missing", "a byte differs", "a file is shorter"],
)
def test_a_commit_that_lacks_something_of_what_was_sent_is_refused(keeps: dict[str, bytes]) -> None:
    hub = Hub(keeps)
    lost = r"ann/set at commit 1 does not hold what was sent: data/train-00000\.parquet"
    with pytest.raises(PublishError, match=lost):
        repository(hub).commit(FILES, "all", lambda head: set())
    assert hub.commits == 1
