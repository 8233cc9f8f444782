"""TARGET on the Hub: one commit is downloaded, compared with its manifest, and measured."""

import io
import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import datasets
import pytest
from support.hub_client import Client
from support.hub_server import HubServer
from support.hub_state import User
from support.outside_sets import DIGITS, MEAN, STD, digits, save_dm
from support.sample_content import RESULTS, as_a_run_leaves, sample
from support.toy_runs import Answer

from distill_datasets.export.folder import write_dataset
from distill_datasets.layouts.importing import Told, import_set
from distill_datasets.layouts.values import MeanStd

pytestmark = pytest.mark.timeout(120)  # a process imports torch and datasets


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    with HubServer({"hf_writer": User("ann", "write")}) as server:
        yield server
        assert server.violations == []


@pytest.fixture(scope="module")
def client(server: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    client = Client(server.url, tmp_path_factory.mktemp("home") / "hf")
    yield client
    client.close()


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("set") / "set"
    write_dataset(folder, sample(), RESULTS)
    return files_of(folder)


def call(client: Client, *arguments: str | Path) -> Answer:
    return Answer(*client.ask("command", *map(str, arguments)))


def test_a_dataset_of_the_hub_is_verified_at_its_commit(
    server: HubServer, client: Client, files: dict[str, bytes], tmp_path: Path
) -> None:
    commit = server.commit("ann/good", files)

    answer = call(client, "verify", "ann/good", "--runs", tmp_path)

    assert answer.code == 0, answer.err
    assert "ok     files: 10 files" in answer.out
    (folder,) = (tmp_path / "downloads").iterdir()
    assert folder.name == f"ann--good-{commit.oid[:12]}"


def test_a_revision_is_the_one_that_is_looked_at(
    server: HubServer, client: Client, files: dict[str, bytes], tmp_path: Path
) -> None:
    first = server.commit("ann/moving", files)
    card = files["README.md"].replace(b"87.5", b"99.5")
    server.commit("ann/moving", {"README.md": card})

    assert call(client, "verify", "ann/moving", "--runs", tmp_path).code == 1
    assert call(client, "verify", f"ann/moving@{first.oid}", "--runs", tmp_path).code == 0


def test_a_dataset_that_contradicts_its_manifest_is_not_measured(
    server: HubServer, client: Client, files: dict[str, bytes], tmp_path: Path
) -> None:
    server.commit("ann/changed", files | {"poster.png": b"another picture"})

    answer = call(client, "evaluate", "ann/changed", "--runs", tmp_path, "--source", DIGITS)

    assert answer.code == 2
    assert "is not what its manifest says: poster.png: 15 bytes, expected" in answer.err


def test_a_set_of_images_and_labels_on_the_hub_is_imported_and_measured(
    server: HubServer, client: Client, tmp_path: Path
) -> None:
    images_NCHW, labels_N = digits()
    names = [str(label) for label in range(10)]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    )
    rows = datasets.Dataset.from_dict(
        {"image": list(images_NCHW[:, 0].numpy()), "label": labels_N.tolist()}, features=features
    )
    buffer = io.BytesIO()
    rows.to_parquet(buffer)
    server.commit(
        "ann/theirs",
        {
            "data/train-0.parquet": buffer.getvalue(),
            "README.md": b"---\nlicense: mit\n---\n",
        },
    )

    answer = call(
        client,
        *("evaluate", "ann/theirs", "--source", DIGITS, "--runs", tmp_path, "--json"),
        *("--students", "2", "--steps", "2", "standard.references=[random_real]"),
    )

    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["rows"][0]["images"] == 20
    (folder,) = (tmp_path / "imports").iterdir()
    imported = json.loads((folder / "distill.json").read_text())["imported"]
    assert (imported["layout"], imported["dataset"]) == ("hub", "ann/theirs")
    assert len(imported["revision"]) == 40


def test_an_imported_set_is_published_as_it_was_imported_and_verified_there(
    server: HubServer, client: Client, tmp_path: Path
) -> None:
    space = MeanStd([MEAN], [STD])
    import_set(str(save_dm(tmp_path)), tmp_path / "set", told=Told(source=DIGITS), space=space)
    server.commit("ann/imported", files_of(tmp_path / "set"))

    answer = call(client, "verify", "ann/imported", "--runs", tmp_path / "runs")

    assert answer.code == 0, answer.err


def test_a_measured_import_is_published_with_its_results_and_the_same_rows(
    server: HubServer, client: Client, tmp_path: Path
) -> None:
    space = MeanStd([MEAN], [STD])
    told = Told(source=DIGITS, license="mit")
    first = import_set(str(save_dm(tmp_path)), tmp_path / "set", told=told, space=space)

    measured = call(
        client,
        *("evaluate", tmp_path / "set", "--to", tmp_path / "measured", "--runs", tmp_path / "runs"),
        *("--students", "2", "--steps", "2", "standard.references=[random_real]", "--quiet"),
    )
    assert measured.code == 0, measured.err
    answer = client.ask("publish", str(tmp_path / "measured"), "ann/measured", token="hf_writer")
    assert "error" not in answer, answer
    assert call(client, "verify", "ann/measured", "--runs", tmp_path / "runs").code == 0

    second = json.loads((tmp_path / "measured" / "distill.json").read_text())
    rows = [row["from"] for row in second["results"]]
    assert rows[0] == "default" and "random_real" in rows
    same = {file["path"]: file["sha256"] for file in first["files"]}
    assert all(
        same[file["path"]] == file["sha256"]
        for file in second["files"]
        if file["path"].startswith(("data/", "exact/"))
    )
    refused = call(client, "evaluate", tmp_path / "set", "--to", tmp_path / "measured")
    assert refused.code == 2 and "nothing in it will be overwritten" in refused.err


def test_a_card_that_was_edited_on_the_hub_is_read_and_written_anew(
    server: HubServer, client: Client, tmp_path: Path
) -> None:
    folder = tmp_path / "set"
    write_dataset(folder, as_a_run_leaves(sample()), RESULTS)
    client.ask("publish", str(folder), "ann/words", token="hf_writer")
    text = server.repos["ann/words"].head.files["README.md"].data
    edited = text.replace(b"## Budget", b"Ours.\n\n## Budget")
    server.commit("ann/words", {"README.md": edited})

    looked = call(client, "verify", "ann/words", "--runs", tmp_path / "runs")
    assert looked.code == 0 and "but for README.md, which was edited" in looked.out
    pulled = call(client, "pull", "ann/words", "--to", tmp_path / "mine", "--runs", tmp_path)
    assert pulled.code == 0 and (tmp_path / "mine" / "README.md").read_bytes() == edited

    server.commit("ann/words", {"README.md": edited.replace(b"87.5", b"99.5")})
    refused = call(client, "card", "ann/words", "--runs", tmp_path / "runs")
    assert refused.code == 1 and "no Hugging Face token" in refused.err
    answer = client.ask(
        "signed", "hf_writer", "card", "ann/words", "--runs", str(tmp_path / "runs")
    )
    assert answer[0] == 0 and "kept     Ours." in answer[1], answer

    head = server.repos["ann/words"].head
    assert head.files["README.md"].data == edited
    manifest = head.files["distill.json"].data
    assert server.repos["ann/words"].tags[f"v{sha256(manifest).hexdigest()[:12]}"] == head.oid
    commits = len(server.repos["ann/words"].commits)
    again = client.ask("signed", "hf_writer", "card", "ann/words", "--runs", str(tmp_path / "runs"))
    assert again[0] == 0 and "nothing to write" in again[1], again
    assert len(server.repos["ann/words"].commits) == commits


def test_what_is_not_on_the_hub_says_so(client: Client, tmp_path: Path) -> None:
    answer = call(client, "verify", "ann/nothing", "--runs", tmp_path)

    assert answer.code == 2
    assert "no file or folder 'ann/nothing', and as a dataset on the Hub: " in answer.err
