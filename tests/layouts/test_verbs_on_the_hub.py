"""The verbs for finished sets, of sets on the Hub, by the real clients."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.hub_client import Client
from support.hub_server import HubServer
from support.hub_state import User
from support.sample_content import RESULTS, as_a_run_leaves, bytes_sample, pixels_sample, views_of
from support.toy_runs import CONVNET, Answer, command
from test_derivation import SMALL

from distill_datasets.export.agreement import problems
from distill_datasets.export.folder import read_manifest, verify, write_dataset
from distill_datasets.export.reading import load_rows
from distill_datasets.files.yaml_text import to_yaml

pytestmark = pytest.mark.timeout(120)  # a process imports torch and datasets
NAMES = ["cat", "dog", "eel"]


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    with HubServer({"hf_writer": User("ann", "write", ("lab",))}) as server:
        yield server
        assert server.violations == []


@pytest.fixture(scope="module")
def client(server: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    client = Client(server.url, tmp_path_factory.mktemp("home") / "hf")
    yield client
    client.close()


@pytest.fixture(scope="module")
def sets(client: Client, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What lab/north, lab/south and lab/views are: two rows of each of three classes."""
    folder = tmp_path_factory.mktemp("sets")
    student = pixels_sample().student | {"network": CONVNET}
    contents = {
        "north": pixels_sample(class_names=NAMES, student=student),
        "south": dataclasses.replace(
            bytes_sample(class_names=["dog", "eel", "fox"], student=student), name="south"
        ),
        "views": bytes_sample(relabel=views_of("shards"), name="views"),
    }
    for name, content in contents.items():
        write_dataset(folder / name, as_a_run_leaves(content), RESULTS)
        answer = client.ask("publish", str(folder / name), f"lab/{name}", token="hf_writer")
        assert "error" not in answer, answer
    return folder


@pytest.fixture
def call(client: Client, sets: Path, tmp_path: Path) -> "Call":
    return Call(client, tmp_path / "runs")


class Call:
    """A verb of the command line, in the client's process; without a token."""

    def __init__(self, client: Client, runs: Path) -> None:
        self.client, self.runs = client, runs

    def __call__(self, *words: str | Path, code: int = 0) -> Answer:
        runs = [] if words[0] == "gallery" else ["--runs", self.runs]
        said = self.client.ask("command", *map(str, [*words, *runs]))
        assert "error" not in said, said
        answer = Answer(*said)
        assert answer.code == code, answer
        return answer


def pixels(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(row["image"]) for row in load_rows(folder, "default")])


def test_a_set_is_shown_and_compared_with_another(call: Call, tmp_path: Path) -> None:
    shown = json.loads(call("show", "lab/north", "--png", tmp_path / "it.png", "--json").out)
    assert shown["manifest"]["classes"] == NAMES and (tmp_path / "it.png").stat().st_size > 0
    assert "distilled, as published" in call("show", "lab/north").out
    assert call("diff", "lab/north", "lab/north").out == "no difference\n"
    found = json.loads(call("diff", "lab/north", "lab/south", "--json", code=1).out)
    assert "name" in {line["what"] for line in found["differences"]}


def test_a_set_is_pulled_with_its_labels_of_views(call: Call, sets: Path, tmp_path: Path) -> None:
    call("pull", "lab/views", "--to", tmp_path / "mine")
    assert verify(tmp_path / "mine") == [] and verify(tmp_path / "mine-relabel") == []
    tars = {path.name for path in (tmp_path / "mine-relabel").glob("labels/*.tar")}
    assert tars == {"epoch-0.tar", "epoch-1.tar"}
    assert np.array_equal(pixels(tmp_path / "mine"), pixels(sets / "views"))
    assert command("verify", tmp_path / "mine").code == 0


def test_a_set_is_loaded_from_python(client: Client, sets: Path, tmp_path: Path) -> None:
    rows = client.ask("rows", "lab/north", str(tmp_path))
    assert rows == client.ask("load", str(sets / "north"), "default")
    exact = client.ask("rows", "lab/north", str(tmp_path), "exact")
    assert exact == client.ask("load", str(sets / "north"), "exact")


def test_a_set_is_shrunk_without_its_source(call: Call, sets: Path, tmp_path: Path) -> None:
    few = ["--networks", "1", "--passes", "2", "--json"]
    call("shrink", "lab/north", "ipc=1", "--output", tmp_path / "less", *few)
    (part,) = read_manifest(tmp_path / "less")["derived"]["of"]
    assert part["target"] == "lab/north" and problems(tmp_path / "less") == []
    assert np.array_equal(pixels(tmp_path / "less"), pixels(sets / "north")[part["rows"]])


def test_sets_are_merged(call: Call, sets: Path, tmp_path: Path) -> None:
    call("merge", "lab/north", "lab/south", "--output", tmp_path / "both")
    manifest = read_manifest(tmp_path / "both")
    assert manifest["classes"] == ["cat", "dog", "eel", "fox"]
    assert [part["target"] for part in manifest["derived"]["of"]] == ["lab/north", "lab/south"]
    whole = np.concatenate([pixels(sets / "north"), pixels(sets / "south")])
    assert np.array_equal(pixels(tmp_path / "both"), whole)
    assert problems(tmp_path / "both") == []


def test_a_set_is_extended_by_classes_of_a_local_source(
    call: Call, client: Client, tmp_path: Path
) -> None:
    (tmp_path / "five.yaml").write_text(to_yaml(SMALL))
    made = command("run", tmp_path / "five.yaml", "--runs", tmp_path, "--output", tmp_path / "five")
    assert made.code == 0, made.err
    client.ask("publish", str(tmp_path / "five"), "lab/five", token="hf_writer")
    source = ["--source", "embedded:uci-digits", "distill.steps=1", "--quiet"]
    call("extend", "lab/five", *source, "--output", tmp_path / "ten")
    manifest = read_manifest(tmp_path / "ten")
    assert manifest["classes"] == ["4", "3", "2", "1", "0", "5", "6", "7", "8", "9"]
    assert manifest["derived"]["of"][0]["target"] == "lab/five"
    assert np.array_equal(pixels(tmp_path / "ten")[:10], pixels(tmp_path / "five"))


def test_the_rows_of_a_set_are_written_for_other_programs(
    call: Call, sets: Path, tmp_path: Path
) -> None:
    call("export", "lab/north", "--layout", "npz", "--to", tmp_path / "out")
    with np.load(tmp_path / "out" / "rows.npz") as arrays:
        assert np.array_equal(arrays["images"], pixels(sets / "north"))
    info = json.loads((tmp_path / "out" / "info.json").read_text(encoding="utf-8"))
    assert info["classes"] == NAMES


def test_a_gallery_of_an_organization_reads_two_small_files_of_each_set(
    call: Call, server: HubServer, tmp_path: Path
) -> None:
    for number in range(5):  # more than a page of the list
        server.commit(f"lab/other-{number}", {"README.md": b"---\ntags:\n- cats\n---\n"})
    before = len(server.requests)
    page = tmp_path / "gallery.html"
    found = json.loads(call("gallery", "lab", "--output", page, "--json").out)
    # labels of views are no set; what is not tagged as ours is not looked at
    assert {"lab/north", "lab/south", "lab/views"} <= set(found["sets"]) <= set(server.repos)
    assert not [name for name in found["sets"] if "other" in name or "relabel" in name]
    asked = [each for each in server.requests[before:] if "/resolve/" in each]
    read = {each.split()[1].rpartition("/")[2] for each in asked}
    assert read <= {"distill.json", "classes.png"}
    text = page.read_text(encoding="utf-8")
    assert f"{server.url}/datasets/lab/north" in text and "87.5" in text
    refused = call("gallery", "nobody", "--output", tmp_path / "no.html", code=2)
    assert "lists no dataset of this user or organization" in refused.err
