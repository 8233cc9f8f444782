"""What is said when a dataset is not where its name points: on this machine or on the Hub."""

import hashlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import datasets
import pytest
from huggingface_hub import HfApi, constants, errors
from huggingface_hub.hf_api import RepoFile
from support.image_sets import dataset, draw, gray
from support.toy_runs import toy_recipe

from distill_datasets.data import opening
from distill_datasets.data.provenance import of_memory, of_path
from distill_datasets.data.source import Source, open_source
from distill_datasets.errors import DataError
from distill_datasets.pipeline.run import run
from distill_datasets.planning.plan import plan
from distill_datasets.runtime import memory

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Let the Hub answer every question with an error."""

    def fail(*_: Any, **__: Any) -> Any:  # noqa: ANN401
        raise error

    monkeypatch.setattr(HfApi, "dataset_info", fail)
    monkeypatch.setattr(HfApi, "list_datasets", fail)


def answer(kind: type[errors.HfHubHTTPError], status: int) -> errors.HfHubHTTPError:
    """An error as the Hub's client raises it."""
    response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
    return kind("the server's words", response=response)


def test_a_misspelled_folder_is_answered_with_its_siblings(tmp_path: Path) -> None:
    (tmp_path / "sets" / "cifar10").mkdir(parents=True)
    with pytest.raises(DataError, match=r"did you mean '.*sets/cifar10'\? '.*sets' holds: cifar10"):
        open_source(Source(dataset=str(tmp_path / "sets" / "cifar11")))
    with pytest.raises(DataError, match=r"no file or folder './set/cifar10', and a Hub id is "):
        open_source(Source(dataset="./set/cifar10"))


def test_a_name_without_an_owner_is_neither_folder_nor_hub_id() -> None:
    with pytest.raises(DataError, match=r"'cifar10', and a Hub id is written 'owner/name'"):
        open_source(Source(dataset="cifar10"))


def test_a_misspelled_embedded_name_is_answered_with_the_valid_one() -> None:
    with pytest.raises(
        DataError, match=r"ships with this package; did you mean 'embedded:uci-digits"
    ):
        open_source(Source(dataset="embedded:uci-digit"))


def test_a_folder_without_data_says_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no file that can be read; expected Parquet files"):
        open_source(Source(dataset=str(tmp_path / "empty"))).peek()


def test_a_file_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pets.npz").write_bytes(b"x")
    with pytest.raises(
        DataError, match=r"'pets.npz' is a file of an unknown kind; expected one of"
    ):
        open_source(Source(dataset=str(tmp_path / "pets.npz"))).peek()


def test_a_damaged_parquet_file_is_refused_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "pets").mkdir()
    (tmp_path / "pets" / "train.parquet").write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(DataError, match=r"pets' cannot be read: "):
        open_source(Source(dataset=str(tmp_path / "pets"))).peek()


def test_a_folder_has_no_revision(tmp_path: Path) -> None:
    dataset([0, 1]).save_to_disk(tmp_path / "pets")
    with pytest.raises(DataError, match=r"source.revision: .* has no revisions; leave it out"):
        open_source(Source(dataset=str(tmp_path / "pets"), revision="v1")).peek()
    with pytest.raises(DataError, match=r"source.config: what save_to_disk wrote has no configs"):
        open_source(Source(dataset=str(tmp_path / "pets"), config="small")).peek()


def test_a_loading_script_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "pets").mkdir()
    (tmp_path / "pets" / "pets.py").write_text("")

    with pytest.raises(DataError, match=r"is a loading script, which `datasets` no longer runs"):
        open_source(Source(dataset=str(tmp_path / "pets"))).peek()


@pytest.mark.parametrize(
    ("kind", "status", "message"),
    [
        (errors.GatedRepoError, 403, r"'o/n' is gated; accept its conditions on .*/datasets/o/n"),
        (
            errors.RepositoryNotFoundError,
            404,
            r"no dataset 'o/n', or it is private .*hf auth login",
        ),
        (errors.RevisionNotFoundError, 404, r"source.revision: 'o/n' has no branch, .* 'v1'"),
        (errors.HfHubHTTPError, 401, r"the Hub answered 401 for 'o/n'; log in again"),
        (errors.HfHubHTTPError, 503, r"the Hub answered 503 for 'o/n'; try again later"),
    ],
)
def test_each_refusal_of_the_hub_is_explained(
    monkeypatch: pytest.MonkeyPatch,
    kind: type[errors.HfHubHTTPError],
    status: int,
    message: str,
) -> None:
    failing(monkeypatch, answer(kind, status))
    with pytest.raises(DataError, match=message):
        open_source(Source(dataset="o/n", revision="v1"))


@pytest.mark.parametrize("error", [errors.OfflineModeIsEnabled("x"), ConnectionError("no route")])
def test_no_connection_is_explained(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    failing(monkeypatch, error)
    with pytest.raises(
        DataError, match=r"'o/n' cannot be fetched and is not in the cache .*HF_HUB_O"
    ):
        open_source(Source(dataset="o/n"))


def test_a_hub_id_that_fails_inside_a_local_folder_mentions_the_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "data" / "mnist").mkdir(parents=True)
    failing(monkeypatch, ConnectionError("no route"))
    with pytest.raises(DataError, match=r"if a folder was meant: did you mean '.*data/mnist'"):
        open_source(Source(dataset="data/mnst"))


def test_a_misspelled_hub_id_is_answered_with_the_owner_s_datasets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failing(monkeypatch, answer(errors.RepositoryNotFoundError, 404))
    found = [SimpleNamespace(id="lab/cifar10"), SimpleNamespace(id="lab/mnist")]
    monkeypatch.setattr(HfApi, "list_datasets", lambda *_, **__: iter(found))
    with pytest.raises(
        DataError, match=r"did you mean 'lab/cifar10'\? valid names: lab/cifar10, la"
    ):
        open_source(Source(dataset="lab/cifar1O"))


def test_a_hub_dataset_is_pinned_to_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    info = SimpleNamespace(sha=COMMIT, card_data={"license": ["mit", "other"]})
    asked: list[Any] = []

    def dataset_info(_: HfApi, name: str, revision: str | None) -> Any:  # noqa: ANN401
        asked.append((name, revision))
        return info

    tree = [
        RepoFile(
            path="data/train.parquet",
            size=12,
            oid="b" * 40,
            lfs={"oid": "a" * 64, "size": 12, "pointerSize": 130},
        ),
        RepoFile(path="README.md", size=3, oid="c" * 40),
    ]
    monkeypatch.setattr(HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr(HfApi, "list_repo_tree", lambda *_, **__: iter(tree))
    provenance = open_source(
        Source(dataset="lab/cifar10", revision="v2", config="plain")
    ).provenance
    assert asked == [("lab/cifar10", "v2")]
    assert provenance.revision == COMMIT
    assert provenance.license == "mit, other"
    assert provenance.card_url == f"{constants.ENDPOINT}/datasets/lab/cifar10"
    assert [tuple(file) for file in provenance.files] == [
        ("README.md", "c" * 40, 3),
        ("data/train.parquet", "a" * 64, 12),
    ]
    assert provenance.identity() == {
        "dataset": "lab/cifar10",
        "config": "plain",
        "revision": COMMIT,
    }


def test_without_a_connection_the_cached_commit_is_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "hub" / "datasets--lab--cifar10"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "snapshots" / COMMIT).mkdir(parents=True)
    (folder / "snapshots" / COMMIT / "README.md").write_text("---\nlicense: mit\n---\n")
    failing(monkeypatch, ConnectionError("no route"))
    for revision in (None, COMMIT):
        provenance = open_source(Source(dataset="lab/cifar10", revision=revision)).provenance
        assert provenance.revision == COMMIT
        assert provenance.license == "mit"
    assert "using the cached commit 0123456789ab" in caplog.text


def test_without_a_connection_a_lone_cached_commit_is_used_and_two_are_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    snapshots = tmp_path / "hub" / "datasets--lab--cifar10" / "snapshots"
    (snapshots / COMMIT).mkdir(parents=True)
    failing(monkeypatch, ConnectionError("no route"))
    assert open_source(Source(dataset="lab/cifar10")).provenance.revision == COMMIT
    with pytest.raises(DataError, match=r"set source.revision to a commit that was downloaded"):
        open_source(Source(dataset="lab/cifar10", revision="v2"))
    (snapshots / COMMIT[::-1]).mkdir()
    with pytest.raises(DataError, match=r"set source.revision to a commit that was downloaded"):
        open_source(Source(dataset="lab/cifar10"))


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: mit\n---\n", "mit"),
        ("---\nlicense: 'cc-by-4.0'\n---\n", "cc-by-4.0"),
        ("---\nlicense:\n- mit\n- other\ntags: [x]\n---\n", "mit, other"),
        ("---\nlicense: [mit, other]\n---\n", "mit, other"),
        ("---\ntags: [x]\n---\nlicense: mit\n", None),
        ("no front matter", None),
    ],
)
def test_the_license_of_a_folder_is_taken_from_its_card(
    tmp_path: Path, card: str, expected: str | None
) -> None:
    dataset([0, 1]).save_to_disk(tmp_path / "pets")
    (tmp_path / "pets" / "README.md").write_text(card)
    assert open_source(Source(dataset=str(tmp_path / "pets"))).provenance.license == expected


def test_free_memory_is_some_of_the_machine_s() -> None:
    assert 0 < memory.available_bytes() < 2**50


def test_a_file_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "0.png").write_bytes(b"pixels")
    opened = Path.open

    def refused(path: Path, *mode: str) -> Any:  # noqa: ANN401
        if path.name == "0.png":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *mode)

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(DataError, match=r"cat/0.png cannot be read \(Permission denied\)"):
        of_path(tmp_path, None)


def test_a_class_whose_folder_may_not_be_listed_is_not_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
    listed = os.scandir

    def refused(path: str) -> Any:  # noqa: ANN401
        if Path(path).name == "cat":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(DataError, match=r"cat cannot be read \(Permission denied\); let this user"):
        of_path(tmp_path, None)


def test_files_that_a_dataset_in_memory_only_names_are_part_of_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "0.png"
    gray(1).save(path)
    rows = datasets.Dataset.from_dict({"image": [str(path)], "label": [0]}).cast_column(
        "image", datasets.Image()
    )
    before = of_memory({"train": rows})
    assert of_memory({"train": rows}) == before
    gray(2, 4, 4).save(path)
    assert of_memory({"train": rows}).files != before.files
    held = dataset([0, 1])
    assert of_memory({"train": held}).files[0].sha256 == held._fingerprint


def test_where_files_lie_that_rows_of_a_dataset_in_memory_name_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [tmp_path / "photos" / f"{row}.png" for row in range(4)]
    paths[0].parent.mkdir()
    for row, path in enumerate(paths):
        gray(row).save(path)
    content = {"image": list(map(str, paths)), "label": [0, 1, 0, 1]}
    rows = datasets.Dataset.from_dict(content).cast_column("image", datasets.Image())
    of_memory({"train": rows, "test": dataset([0, 1])})
    assert caplog.messages == [
        f"rows of the split 'train' name 4 files in place of bytes, in {tmp_path}/photos: they are "
        "read, and what is distilled may show them; where others made this dataset, see that they "
        "belong to it"
    ]


def test_a_transform_is_not_applied_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    rows = dataset([0, 1])
    of_memory({"train": rows, "test": rows.with_format("torch")})
    assert not caplog.records
    of_memory({"train": rows, "test": rows.with_transform(lambda batch: batch)})
    assert caplog.messages == [
        "the transform of the split 'test' (set_transform, with_transform) is not applied: rows "
        "are read as they are kept; .map() makes a transform part of them"
    ]


def test_files_are_hashed_for_a_run_and_not_for_a_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset([0, 1, 0, 1]).to_parquet(tmp_path / "pets" / "train-0.parquet")
    monkeypatch.setattr(hashlib, "file_digest", None)
    network = "{name: convnet, depth: 1, width: 2}"
    recipe = toy_recipe(
        f"source.dataset={tmp_path / 'pets'}",
        "distill.canvas={name: pixels, ipc: 1}",
        f"distill.networks.network={network}",
        f"evaluate.network={network}",
    )
    assert dict(plan(recipe).stages)["source"] == "read pets; 2 classes"
    with pytest.raises(TypeError):
        run(recipe, runs=tmp_path / "runs", quiet=True)


def test_the_files_of_a_folder_are_listed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset([0, 1, 0, 1]).to_parquet(tmp_path / "pets" / "train-0.parquet")
    listed = mock.Mock(side_effect=opening.local_files)
    monkeypatch.setattr(opening, "local_files", listed)
    opened = open_source(Source(dataset=str(tmp_path / "pets")))
    opened.peek()
    opened.read(draw)
    assert listed.call_count == 1
