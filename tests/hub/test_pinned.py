"""Reading from a Hub with the real clients, in a process of their own."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.hub_reading import ask, environment_of
from support.hub_server import HubServer
from support.hub_state import User
from support.image_sets import gray, png
from support.other_kinds import sound
from support.toy_runs import toy_file

from distill_datasets.data import opening


@pytest.fixture(scope="module")
def server() -> Any:  # noqa: ANN401
    with HubServer({"hf_writer": User("ann", "write", ("lab",))}) as server:
        yield server


def test_a_private_dataset_is_read_pinned_and_found_again_offline(
    server: HubServer, tmp_path: Path
) -> None:
    pets = {"dataset": "lab/pets"}
    online, wrong = ask(
        server.url,
        tmp_path / "home",
        "publish",
        pets,
        {"dataset": "lab/pets", "config": "small"},
        HF_TOKEN="hf_writer",
    )
    assert online["shape"] == {"c": 1, "h": 2, "w": 2, "k": 2, "task": "classes"}
    assert online["names"] == ["cat", "dog"]
    assert online["train"] == [0, 1, 2, 3]
    assert online["test"] == [100, 101]
    assert len(online["provenance"]["revision"]) == 40
    files = {file["path"]: file["sha256"] for file in online["provenance"]["files"]}
    assert len(files["data/train-0.parquet"]) == 64
    assert "no config 'small'; valid names: default" in wrong["error"]
    (offline,) = ask(server.url, tmp_path / "home", "read", pets, HF_HUB_OFFLINE="1")
    assert offline["train"] == online["train"]
    assert offline["provenance"]["revision"] == online["provenance"]["revision"]
    stranger, lost = ask(
        server.url, tmp_path / "other", "read", pets, {"dataset": "lab/pets", "revision": "v9"}
    )
    assert "'lab/pets', or it is private" in stranger["error"]
    assert "'lab/pets', or it is private" in lost["error"]
    assert server.violations == []


def asked_without_commit(server: HubServer, home: Path, *words: str) -> list[str]:
    """The requests of a command that do not say which commit they mean."""
    server.requests.clear()
    done = subprocess.run(
        [sys.executable, "-m", "distill_datasets", *words],
        env=environment_of(server.url, home),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return [line for line in server.requests if not re.search(r"/[0-9a-f]{40}\b", line)]


@pytest.mark.timeout(180)  # two processes import torch and datasets
def test_a_name_becomes_a_commit_once_in_a_plan_and_once_in_a_run(
    server: HubServer, tmp_path: Path
) -> None:
    digits = {"data/train-0.parquet": opening.EMBEDDED["embedded:uci-digits"].read_bytes()}
    first = server.commit("lab/digits", digits)
    server.commit("lab/more", digits)
    recipe, home = toy_file(tmp_path), tmp_path / "home"
    network = "network: {name: convnet, depth: 2, width: 4}"
    squeeze = f"squeeze={{epochs: 1, members: 1, {network}, source: {{dataset: lab/more}}}}"
    named = ["source.dataset=lab/digits", squeeze, "distill.networks=pretrained"]
    assert asked_without_commit(server, home, "plan", recipe, *named) == [
        "GET /api/datasets/lab/digits 200",
        "GET /api/datasets/lab/more 200",
    ]
    # the branch moves as soon as the run has asked where it points
    server.before("GET", "/lab/digits/tree/", lambda: server.commit("lab/digits", {"new": b"x"}))
    runs = ["--runs", str(tmp_path / "runs"), "--output", str(tmp_path / "out")]
    asked = asked_without_commit(server, home, "run", recipe, named[0], *runs)
    assert asked == ["GET /api/datasets/lab/digits 200"]
    manifest = json.loads((tmp_path / "out" / "distill.json").read_text())
    assert manifest["source"]["revision"] == first.oid


@pytest.mark.timeout(120)
def test_a_folder_of_images_on_the_hub_is_read_as_one_on_disk(
    server: HubServer, tmp_path: Path
) -> None:
    files = {f"{name}/{row}.png": png(gray(row)) for name in ("cat", "dog") for row in range(4)}
    server.commit("lab/night", files | {"cat/night train 1.png": png(gray(9))})
    rng = np.random.default_rng(0)
    sounds = {
        f"{split}/{name}/{row}.wav": sound(label, rng)
        for split, count in (("train", 3), ("test", 1))
        for label, name in enumerate(("falling", "rising"))
        for row in range(count)
    }
    server.commit("lab/sounds", sounds)
    seen = {"dataset": "lab/sounds", "view": {"name": "mel", "hop": 500}}
    answer, heard = ask(server.url, tmp_path, "read", {"dataset": "lab/night"}, seen)
    assert heard["shape"] == {"c": 1, "h": 64, "w": 32, "k": 2, "task": "classes"}
    assert heard["names"] == ["falling", "rising"]
    assert (len(heard["train"]), len(heard["test"])) == (6, 2)
    assert sorted(answer["train"] + answer["test"]) == [0, 0, 1, 1, 2, 2, 3, 3, 9]
    assert answer["names"] == ["cat", "dog"] and len(answer["provenance"]["revision"]) == 40
