"""Publishing with the real clients against a strict server: one commit, or nothing at all."""

import json
from collections.abc import Iterator
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.hub_client import Client
from support.hub_server import HubServer
from support.hub_state import User
from support.sample_content import RESULTS, sample, views_of

from distill_datasets.errors import RecipeError
from distill_datasets.export.card import PLACEHOLDER
from distill_datasets.export.folder import verify, write_dataset
from distill_datasets.export.publish import publish

TOKENS = {
    "hf_writer": User("ann", "write", ("lab",)),
    "hf_reader": User("ann", "read", ("lab",)),
    "hf_other": User("bob", "write"),
}


def card_errors(text: str) -> list[str]:
    meta = yaml.safe_load(text.split("---\n")[1])
    # shards have no rows that a viewer shows
    tables = () if "webdataset" in meta.get("tags", []) else ("configs", "dataset_info")
    missing = [key for key in ("license", *tables) if key not in meta]
    nameless = [each for each in meta.get("configs", []) if "config_name" not in each]
    return [f"missing {key}" for key in missing] + ["config_name is required" for _ in nameless]


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    with HubServer(TOKENS, card_errors) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    client = Client(server.url, tmp_path_factory.mktemp("home") / "hf")
    yield client
    log = client.log()
    client.close()
    assert not [token for token in TOKENS if token in log]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "quickstart"
    write_dataset(folder, sample(), RESULTS)
    return folder


@pytest.fixture(autouse=True)
def well_behaved(server: HubServer) -> Iterator[None]:
    yield
    assert server.violations == []
    assert server.faults == []


def write(folder: Path, **changes: Any) -> str:  # noqa: ANN401
    write_dataset(folder, sample(**changes), RESULTS)
    return str(folder)


def refused(answer: dict[str, Any], *words: str) -> None:
    assert answer.get("error") == "PublishError" and answer["code"] == 1, answer
    for word in words:
        assert word in answer["text"]
    assert not [token for token in TOKENS if token in answer["text"]]


def test_every_configuration_loads_from_the_hub_as_it_was_exported(
    server: HubServer, client: Client, folder: Path
) -> None:
    answer = client.ask("publish", str(folder), "ann/all", token="hf_writer")
    assert answer["url"] == f"{server.url}/datasets/ann/all" and answer["unchanged"] is False
    assert [commit.title for commit in server.repos["ann/all"].commits] == [
        "initial commit",
        f"Publish {answer['tag']} with distill_datasets",
    ]
    assert server.repos["ann/all"].tags == {answer["tag"]: answer["commit"]}
    for config in ("default", "poster", "exact", "recipe"):
        here = client.ask("load", str(folder), config)
        assert client.ask("load", "ann/all", config) == here
        assert isinstance(here, list) and len(here) == {"poster": 1, "recipe": 1}.get(config, 6)
    here = client.ask("load", str(folder), "default")
    assert client.ask("load", "ann/all", "default", revision=answer["tag"]) == here
    assert client.ask("load", "ann/all", "default", streaming=True) == here


def test_what_is_downloaded_passes_its_own_manifest_and_names_itself(
    client: Client, folder: Path
) -> None:
    client.ask("publish", str(folder), "ann/snapshot", token="hf_writer")
    copy = Path(client.ask("snapshot", "ann/snapshot"))
    assert verify(copy) == []
    text = (copy / "README.md").read_text(encoding="utf-8")
    assert 'load_dataset("ann/snapshot", "default"' in text and "your-name" not in text


def test_the_same_folder_again_is_no_commit(
    server: HubServer, client: Client, folder: Path
) -> None:
    first = client.ask("publish", str(folder), "ann/again", token="hf_writer")
    second = client.ask("publish", str(folder), "ann/again", token="hf_writer")
    assert second == {**first, "unchanged": True}
    assert len(server.repos["ann/again"].commits) == 2


def test_another_version_replaces_what_is_ours_and_keeps_what_is_not(
    server: HubServer, client: Client, folder: Path, tmp_path: Path
) -> None:
    first = client.ask("publish", str(folder), "ann/versions", token="hf_writer")
    server.commit("ann/versions", {"notes.md": b"by hand", "poster/extra.parquet": b"PAR1"})
    other = write(tmp_path / "other", label_cells=[], geometry={"canvas": "pixels"})
    second = client.ask("publish", other, "ann/versions", token="hf_writer")
    repo = server.repos["ann/versions"]
    assert repo.tags == {first["tag"]: first["commit"], second["tag"]: second["commit"]}
    assert repo.head.files.keys() >= {"notes.md", "poster/extra.parquet"}
    assert "poster/train-00000-of-00001.parquet" not in repo.head.files
    assert len(repo.commits) == 4


def test_without_a_token_nothing_is_asked_of_the_server(
    server: HubServer, client: Client, folder: Path
) -> None:
    before = len(server.requests)
    answer = client.ask("publish", str(folder), "ann/anonymous")
    refused(answer, "run `hf auth login` or set HF_TOKEN")
    assert len(server.requests) == before


def test_a_token_that_may_only_read_is_explained(
    server: HubServer, client: Client, folder: Path
) -> None:
    answer = client.ask("publish", str(folder), "ann/read-only", token="hf_reader")
    refused(answer, "the token may only read", "role 'write'")
    assert "ann/read-only" not in server.repos


def test_a_wrong_token_is_explained(client: Client, folder: Path) -> None:
    answer = client.ask("publish", str(folder), "ann/wrong", token="hf_wrong")
    refused(answer, "does not accept the token")


def test_a_namespace_of_others_is_explained(client: Client, folder: Path) -> None:
    answer = client.ask("publish", str(folder), "lab/set", token="hf_other")
    refused(answer, "bob may not write to lab/set", "neither this account nor one of its")


def test_a_private_repository_of_others_is_not_written(
    server: HubServer, client: Client, folder: Path
) -> None:
    server.commit("lab/secret", {"notes.md": b"secret"}, private=True)
    answer = client.ask("publish", str(folder), "lab/secret", token="hf_other")
    refused(answer, "bob may not write to lab/secret")
    assert len(server.repos["lab/secret"].commits) == 2


def test_a_private_dataset_is_read_with_a_token_only(client: Client, folder: Path) -> None:
    client.ask("publish", str(folder), "lab/private", token="hf_writer", private=True)
    for stranger in ({}, {"token": "hf_other"}):
        answer = client.ask("load", "lab/private", "default", **stranger)
        assert answer["error"] == "DatasetNotFoundError"
    rows = client.ask("load", "lab/private", "default", token="hf_reader")
    assert rows == client.ask("load", str(folder), "default")


@pytest.mark.parametrize("repo_id", ["quickstart", "a/b/c", "ann/two words", "ann/-x--y", ""])
def test_a_malformed_id_is_refused(client: Client, folder: Path, repo_id: str) -> None:
    answer = client.ask("publish", str(folder), repo_id, token="hf_writer")
    assert answer.get("error") == "RecipeError" and answer["code"] == 2, answer
    assert "expected <user or organization>/<name>" in answer["text"]


def test_an_unclear_license_makes_the_dataset_private(
    server: HubServer, client: Client, tmp_path: Path
) -> None:
    folder = write(tmp_path / "unclear", provenance={"dataset": "mine", "license": None})
    client.ask("publish", folder, "ann/unclear", token="hf_writer")
    assert server.repos["ann/unclear"].private
    answer = client.ask("publish", folder, "ann/open", token="hf_writer", private=False)
    assert answer["error"] == "ArtifactError" and answer["code"] == 2
    assert "--allow-license" in answer["text"] and "ann/open" not in server.repos
    server.commit("ann/was-public", {"notes.md": b""})
    answer = client.ask("publish", folder, "ann/was-public", token="hf_writer")
    assert "is public and the source states no license" in answer["text"]
    options = {"token": "hf_writer", "private": False, "allow_license": True}
    assert client.ask("publish", folder, "ann/open", **options)["commit"]
    assert not server.repos["ann/open"].private


def test_a_private_publication_never_lands_in_a_public_repository(
    server: HubServer, client: Client, folder: Path
) -> None:
    server.commit("ann/public", {"notes.md": b""})
    answer = client.ask("publish", str(folder), "ann/public", token="hf_writer", private=True)
    refused(answer, "exists and is public")
    assert len(server.repos["ann/public"].commits) == 2


def test_data_of_somebody_else_is_not_overwritten(
    server: HubServer, client: Client, folder: Path
) -> None:
    server.commit("ann/theirs", {"data/train-00000-of-00001.parquet": b"PAR1"})
    answer = client.ask("publish", str(folder), "ann/theirs", token="hf_writer")
    refused(answer, "holds files that this library did not write", "data/train-00000")
    assert len(server.repos["ann/theirs"].commits) == 2


def test_a_gitignore_of_the_repository_leaves_nothing_out(
    server: HubServer, client: Client, folder: Path
) -> None:
    ignored = b"*.parquet\ndistill.json\nREADME.md\nrecipe.*\n"
    for name, files in (("here", {}), ("there", {".gitignore": ignored, "notes.md": b""})):
        server.api.objects.clear()
        server.commit(f"ann/ignored-{name}", files or {"notes.md": b""})
        answer = client.ask("publish", str(folder), f"ann/ignored-{name}", token="hf_writer")
        assert "error" not in answer, answer
    with_rules = server.repos["ann/ignored-there"].head.files
    assert with_rules.keys() - {".gitignore"} == server.repos["ann/ignored-here"].head.files.keys()
    assert with_rules[".gitignore"].data == ignored
    assert len(server.repos["ann/ignored-there"].commits) == 3


def test_a_card_of_somebody_else_is_not_replaced(
    server: HubServer, client: Client, folder: Path
) -> None:
    server.commit("ann/carded", {"README.md": b"# Mine"})
    answer = client.ask("publish", str(folder), "ann/carded", token="hf_writer")
    refused(answer, "ann/carded holds README.md, written or changed by somebody else", "rename or")
    assert server.repos["ann/carded"].head.files["README.md"].data == b"# Mine"
    assert len(server.repos["ann/carded"].commits) == 2


def test_words_that_people_wrote_on_the_hub_are_kept_on_a_new_card(
    server: HubServer, client: Client, folder: Path, tmp_path: Path
) -> None:
    client.ask("publish", str(folder), "ann/edited", token="hf_writer")
    text = server.repos["ann/edited"].head.files["README.md"].data
    added = (b"## Budget", b"A word of mine.\n\n## Budget")
    server.commit("ann/edited", {"README.md": text.replace(*added)})
    other = write(tmp_path / "other", seed=11)
    answer = client.ask("publish", other, "ann/edited", token="hf_writer")
    assert "error" not in answer, answer
    head = server.repos["ann/edited"].head
    new = Path(other, "README.md").read_bytes().replace(PLACEHOLDER.encode(), b"ann/edited")
    assert new != text and head.files["README.md"].data == new.replace(*added)
    assert answer["tag"] == f"v{sha256(head.files['distill.json'].data).hexdigest()[:12]}"
    assert verify(Path(client.ask("snapshot", "ann/edited"))) == []
    again = client.ask("publish", other, "ann/edited", token="hf_writer")
    assert again == {**answer, "unchanged": True}


def test_a_card_that_is_edited_while_we_publish_is_not_replaced(
    server: HubServer, client: Client, folder: Path, tmp_path: Path
) -> None:
    client.ask("publish", str(folder), "ann/raced", token="hf_writer")
    text = server.repos["ann/raced"].head.files["README.md"].data
    server.commit("ann/raced", {"README.md": text + b"\nFirst.\n"})
    last = {"README.md": text + b"\nSecond.\n"}
    server.before("POST", "/ann/raced/commit/", lambda: server.commit("ann/raced", last))
    answer = client.ask("publish", write(tmp_path / "b", seed=12), "ann/raced", token="hf_writer")
    refused(answer, "holds README.md, written or changed by somebody else")
    assert server.repos["ann/raced"].head.files["README.md"].data == last["README.md"]


def test_an_edited_card_whose_manifest_knows_no_parts_is_not_replaced(
    server: HubServer, client: Client, folder: Path, tmp_path: Path
) -> None:
    client.ask("publish", str(folder), "ann/early", token="hf_writer")
    files = server.repos["ann/early"].head.files
    manifest = json.loads(files["distill.json"].data)
    del manifest["card"]
    text = files["README.md"].data + b"\nMine.\n"
    early = {"distill.json": json.dumps(manifest).encode(), "README.md": text}
    server.commit("ann/early", early)
    answer = client.ask("publish", write(tmp_path / "b", seed=13), "ann/early", token="hf_writer")
    refused(answer, "holds README.md, written or changed by somebody else")
    assert server.repos["ann/early"].head.files["README.md"].data == text


@pytest.mark.parametrize(
    "content", [b"{}", b"{", b"[" * 100_000, b"null", b'{"files": [{}]}', b"\xff", b""]
)
def test_a_broken_manifest_is_named_by_its_repository(
    server: HubServer, client: Client, folder: Path, content: bytes
) -> None:
    name = f"ann/broken-{len(server.requests)}"
    server.commit(name, {"distill.json": content})
    answer = client.ask("publish", str(folder), name, token="hf_writer")
    refused(answer, f"{name}: its distill.json is not the manifest")
    assert len(server.repos[name].commits) == 2


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "does not accept the token"),
        (403, "may not write to ann/xet-403 (status 403 when asked to commit)"),
        (404, "does not speak Xet; set HF_HUB_DISABLE_XET=1"),
        (429, "the Hub is busy (status 429 when asked to commit"),
        (500, "the Hub is busy (status 500 when asked to commit"),
    ],
)
def test_a_refusal_of_the_right_to_upload_by_xet_is_told_as_what_it_is(
    server: HubServer, folder: Path, tmp_path: Path, status: int, words: str
) -> None:
    if tuple(map(int, version("huggingface_hub").split(".")[:2])) < (1, 20):
        pytest.skip("older clients ask the server whether it speaks Xet")
    hurried = {
        "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "1",
        "HF_XET_CLIENT_RETRY_BASE_DELAY": "10ms",
    }
    client = Client(server.url, tmp_path / "hf", HF_HUB_DISABLE_XET="0", **hurried)
    server.fail("GET", "xet-write-token", status, times=10_000)
    answer = client.ask("publish", str(folder), f"ann/xet-{status}", token="hf_writer")
    server.faults.clear()
    client.close()
    refused(answer, words)
    assert len(server.repos[f"ann/xet-{status}"].commits) == 1


def test_what_is_waited_for_is_said_while_it_is_waited_for(folder: Path, tmp_path: Path) -> None:
    client = Client("http://127.0.0.1:9", tmp_path / "hf")
    client.ask("publish", str(folder), "ann/nowhere", token="hf_writer")
    log = client.log()
    client.close()
    assert "http://127.0.0.1:9: asked to make the repository, " in log
    assert "trying again in 0.01 s" in log


def test_a_tag_with_other_content_stays_as_it_is(
    server: HubServer, client: Client, folder: Path, tmp_path: Path
) -> None:
    options = {"token": "hf_writer", "tag": "1.0"}
    first = client.ask("publish", str(folder), "ann/tags", **options)
    answer = client.ask("publish", write(tmp_path / "other", seed=8), "ann/tags", **options)
    refused(answer, "has a tag '1.0' with other content")
    assert server.repos["ann/tags"].tags == {"1.0": first["commit"]}
    assert len(server.repos["ann/tags"].commits) == 2


def test_a_folder_that_is_not_finished_is_refused(client: Client, tmp_path: Path) -> None:
    write_dataset(tmp_path / "bare", sample(), None)
    damaged = Path(write(tmp_path / "damaged"))
    (damaged / "recipe.yaml").write_text("changed")
    (tmp_path / "foreign").mkdir()
    for name, words in [
        ("bare", "not evaluated"),
        ("damaged", "differs from its manifest: recipe.yaml"),
        ("foreign", "no such file"),
    ]:
        answer = client.ask("publish", str(tmp_path / name), "ann/unfinished", token="hf_writer")
        assert answer["error"] == "ArtifactError" and answer["code"] == 2
        assert words in answer["text"]


def test_a_commit_of_somebody_else_meanwhile_is_built_upon(
    server: HubServer, client: Client, folder: Path
) -> None:
    server.before(
        "POST",
        "/ann/busy/commit/",
        lambda: server.commit("ann/busy", {f"{len(server.repos['ann/busy'].commits)}.md": b"x"}),
        times=2,
    )
    answer = client.ask("publish", str(folder), "ann/busy", token="hf_writer")
    repo = server.repos["ann/busy"]
    assert answer["commit"] == repo.head.oid and len(repo.commits) == 4
    assert repo.head.files.keys() >= {"1.md", "2.md", "distill.json"}


def test_a_branch_that_never_rests_ends_in_an_error(
    server: HubServer, client: Client, folder: Path
) -> None:
    server.fail("POST", "/ann/restless/commit/", 412, times=4)
    answer = client.ask("publish", str(folder), "ann/restless", token="hf_writer")
    refused(answer, "keeps changing while we publish")
    assert len(server.repos["ann/restless"].commits) == 1


def test_a_commit_whose_answer_is_lost_is_found_and_not_repeated(
    server: HubServer, client: Client, folder: Path
) -> None:
    server.fail("POST", "/ann/lost/commit/", 504, after=True)
    answer = client.ask("publish", str(folder), "ann/lost", token="hf_writer")
    repo = server.repos["ann/lost"]
    assert answer["commit"] == repo.head.oid and answer["unchanged"] is False
    assert len(repo.commits) == 2 and repo.tags == {answer["tag"]: repo.head.oid}


@pytest.mark.parametrize(
    ("method", "pattern", "status"),
    [
        ("POST", "/api/repos/create", 503),
        ("GET", "/api/datasets/ann/faulty-.*/revision/main", 500),
        ("GET", "/api/datasets/ann/faulty-.*/refs", 502),
        ("POST", "/api/validate-yaml", 503),
        ("POST", "/api/datasets/ann/faulty-.*/commit/", 429),
        ("POST", "/api/datasets/ann/faulty-.*/tag/", 503),
    ],
)
def test_a_busy_hub_is_asked_again(
    server: HubServer, client: Client, folder: Path, method: str, pattern: str, status: int
) -> None:
    name = f"ann/faulty-{status}-{len(server.requests)}"
    server.fail(method, pattern, status)
    answer = client.ask("publish", str(folder), name, token="hf_writer")
    repo = server.repos[name]
    assert len(repo.commits) == 2 and repo.tags == {answer["tag"]: repo.head.oid}


def test_a_hub_that_stays_busy_ends_in_an_error(
    server: HubServer, client: Client, folder: Path
) -> None:
    server.fail("POST", "/api/repos/create", 503, times=4)
    answer = client.ask("publish", str(folder), "ann/down", token="hf_writer")
    refused(answer, "the Hub is busy (status 503")


def test_an_upload_that_breaks_off_leaves_main_as_it_was(
    server: HubServer, client: Client, tmp_path: Path
) -> None:
    folder = write(tmp_path / "broken", seed=9, recipe_yaml="distill: {steps: 10}\n")
    server.fail("PUT", "/lfs/", 403)
    refused(client.ask("publish", folder, "ann/broken", token="hf_writer"), "may not write")
    assert [commit.title for commit in server.repos["ann/broken"].commits] == ["initial commit"]
    assert server.repos["ann/broken"].tags == {}
    assert client.ask("publish", folder, "ann/broken", token="hf_writer")["unchanged"] is False
    assert len(server.repos["ann/broken"].commits) == 2


def test_a_card_that_the_hub_refuses_is_explained(
    server: HubServer, client: Client, folder: Path
) -> None:
    server.api.card_errors = lambda text: ["license is not one of ours"]
    try:
        answer = client.ask("publish", str(folder), "ann/card", token="hf_writer")
    finally:
        server.api.card_errors = card_errors
    refused(answer, "license is not one of ours")
    assert len(server.repos["ann/card"].commits) == 1


def test_a_server_without_xet_is_explained(server: HubServer, folder: Path, tmp_path: Path) -> None:
    if tuple(map(int, version("huggingface_hub").split(".")[:2])) < (1, 20):
        pytest.skip("older clients ask the server whether it speaks Xet")
    client = Client(server.url, tmp_path / "hf", HF_HUB_DISABLE_XET="0")
    answer = client.ask("publish", str(folder), "ann/xet", token="hf_writer")
    client.close()
    refused(answer, "HF_HUB_DISABLE_XET=1")
    assert len(server.repos["ann/xet"].commits) == 1


def test_a_server_that_is_not_there_is_explained(folder: Path, tmp_path: Path) -> None:
    client = Client("http://127.0.0.1:9", tmp_path / "hf")
    answer = client.ask("publish", str(folder), "ann/nowhere", token="hf_writer")
    client.close()
    refused(answer, "cannot publish to http://127.0.0.1:9")


def test_a_malformed_tag_is_bad_input(folder: Path) -> None:
    with pytest.raises(RecipeError, match="--tag: 'a b' cannot be a tag"):
        publish(folder, "ann/tagged", tag="a b")


@pytest.mark.parametrize("tag", ["main", "HEAD", "0123456789abcdef0123456789abcdef01234567"])
def test_a_tag_that_means_something_else_on_the_hub_is_refused(folder: Path, tag: str) -> None:
    with pytest.raises(RecipeError, match=f"--tag: '{tag}' names a branch or a commit"):
        publish(folder, "ann/tagged", tag=tag)


def test_label_shards_are_published_first_into_a_repository_of_their_own(
    server: HubServer, client: Client, tmp_path: Path
) -> None:
    folder = write(tmp_path / "views", relabel=views_of("shards"))
    answer = client.ask("publish", folder, "ann/views", token="hf_writer")
    assert "error" not in answer, answer
    assert answer["url"].endswith("datasets/ann/views") and "ann/views" in server.repos
    labels = server.repos["ann/views-relabel"].head.files
    assert labels["labels/epoch-0.tar"].data == b"first" and "distill.json" in labels
    again = client.ask("publish", folder, "ann/views", token="hf_writer")
    assert again["unchanged"] is True
    assert len(server.repos["ann/views-relabel"].commits) == 2
    (tmp_path / "views-relabel").rename(tmp_path / "elsewhere")
    answer = client.ask("publish", folder, "ann/without", token="hf_writer")
    assert answer["error"] == "ArtifactError" and "label shards are expected in" in answer["text"]
    assert "ann/without" not in server.repos
