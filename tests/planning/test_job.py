"""Jobs: the script that is written, what it would cost, and that it runs, is kept and goes on."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from support import TESTS
from support.hub_server import HubServer
from support.hub_state import User
from support.toy_runs import command, toy_file

from distill_datasets.hub import jobs
from distill_datasets.hub.jobs import Flavor
from distill_datasets.planning import job
from distill_datasets.planning.job import installed_from

KEPT = "ann/toy-run"
MACHINES = {"cpu-basic": Flavor("cpu-basic", 0.0001), "h200": Flavor("h200", 0.0833)}
QUIET = {"HF_HUB_DISABLE_UPDATE_CHECK": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


@pytest.fixture(autouse=True)
def machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub's answer about its machines; the real one costs a request."""
    monkeypatch.setattr(job, "flavors", lambda: MACHINES)


def written(tmp_path: Path, *arguments: str) -> Path:
    """The script of a job for the toy recipe."""
    answer = command(
        "job",
        *(toy_file(tmp_path), "--flavor", "cpu-basic", "--keep", KEPT, "--package", "anything"),
        *("--runs", tmp_path / "runs", "--json", *arguments),
    )
    assert answer.code == 0, answer.err
    return Path(json.loads(answer.out)["script"])


def test_a_job_says_what_it_costs_and_submits_nothing(tmp_path: Path) -> None:
    arguments = [toy_file(tmp_path), "--flavor", "h200", "--keep", KEPT, "--package", "anything"]
    answer = command("job", *arguments, "--minutes", "90", "--runs", tmp_path / "runs")
    assert answer.code == 0, answer.err
    assert "about 1.5 h: $7.50" in answer.out and "3 h, at most: $14.99" in answer.out
    assert "nothing was submitted" in answer.out
    short = command("job", *arguments, "--minutes", "2", "--runs", tmp_path / "runs", "--json")
    assert json.loads(short.out)["timeout_minutes"] == 60  # the Hub's own would be 30
    (first, second) = sorted((tmp_path / "runs" / "jobs").iterdir())
    assert first.suffix == second.suffix == ".py"


def test_the_hub_client_reads_the_script_as_it_is_meant(tmp_path: Path) -> None:
    script = written(tmp_path, "--minutes", "90")
    done = subprocess.run(
        [sys.executable, "-m", "huggingface_hub.cli.hf", "jobs", "uv", "run", "--dry-run", script],
        env=os.environ | QUIET | {"HF_TOKEN": "hf_secret", "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    if "No such option" in done.stderr:
        pytest.skip("this release of the Hub's client has no dry run")
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert "flavor   cpu-basic (from script)" in said and "timeout  180m (from script)" in said
    assert "secrets  HF_TOKEN=" in said and "hf_secret" not in said
    assert "Job not submitted" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--flavor", "h20"], "no machine 'h20'; did you mean 'h200'?"),
        (["--keep", "nobody"], "--keep: got 'nobody', expected owner/name"),
        (["source.dataset=photos"], "source.dataset: 'photos' lies on this machine"),
    ],
)
def test_what_no_job_could_do_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    given = ["--flavor", "h200", "--keep", KEPT, "--package", "anything", *arguments]
    answer = command("job", toy_file(tmp_path), *given)
    assert answer.code == 2 and words in answer.err
    assert not (tmp_path / "runs").exists()


def test_the_hubs_machines_have_names_without_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi.list_jobs_hardware", _unreachable, raising=False)
    known = jobs.flavors()
    assert all(each.dollars_a_minute is None for each in known.values())


def _unreachable(api: object) -> None:
    raise ConnectionError


def test_a_package_of_this_machine_is_not_what_a_job_can_install() -> None:
    try:
        found = installed_from()
    except Exception as error:
        assert "--package" in str(error)
    else:
        assert found.startswith("distill_datasets")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    store = tmp_path_factory.mktemp("store")
    with HubServer({"hf_writer": User("ann", "write")}, store=store) as server:
        yield server
        assert server.violations == []


def environment(server: HubServer, home: Path) -> dict[str, str]:
    """What a process sees that is logged in to this server."""
    mine = {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(home),
        "HF_TOKEN": "hf_writer",
        "HF_HUB_DISABLE_XET": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]),
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return kept | QUIET | mine


def started(script: Path, server: HubServer, place: Path) -> subprocess.Popen[str]:
    """The script as a job runs it, in a folder of its own."""
    place.mkdir()
    return subprocess.Popen(
        [sys.executable, script.resolve()],
        cwd=place,
        env=environment(server, place / "home"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


NO_BUCKETS = pytest.mark.skipif(
    not hasattr(HfApi, "sync_bucket"), reason="this release of the Hub's client has no buckets"
)


@NO_BUCKETS
@pytest.mark.timeout(120)
def test_yes_submits_the_script_with_its_machine_and_the_name_of_its_secret(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "hf"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m huggingface_hub.cli.hf "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    for name, value in environment(server, tmp_path / "home").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")

    script = written(tmp_path, "--yes", "--minutes", "90")

    assert server.buckets is not None
    (job,) = server.buckets.jobs
    assert (job["flavor"], job["timeoutSeconds"]) == ("cpu-basic", 180 * 60)
    assert job["secrets"] == {"HF_TOKEN": "hf_writer"}
    assert "hf_writer" not in json.dumps({**job, "secrets": {}})
    assert job["command"][:2] == ["uv", "run"] and job["command"][-1].endswith(script.name)
    (volume,) = job["volumes"]
    api = HfApi(server.url, "hf_writer")
    (file,) = api.list_bucket_tree(volume["source"], recursive=True)
    assert file.path == f"{volume['path']}/{script.name}"
    api.download_bucket_files(volume["source"], [(file, tmp_path / "there.py")])
    assert (tmp_path / "there.py").read_bytes() == script.read_bytes()


@NO_BUCKETS
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_that_was_stopped_goes_on_from_a_bucket(server: HubServer, tmp_path: Path) -> None:
    kept = "hf://buckets/ann/toy"
    script = written(tmp_path, "--keep", kept, "distill.steps=150")
    first = started(script, server, tmp_path / "first")
    while not list((tmp_path / "first").glob("runs/toy/distill-*/*")):
        time.sleep(0.1)
    first.send_signal(signal.SIGTERM)
    said, _ = first.communicate(timeout=300)
    assert first.returncode != 0, said
    assert server.buckets is not None
    files = server.buckets.files["ann/toy"]
    (before,) = {path.split("/")[1] for path in files if path.startswith("toy/distill-")}
    assert not [path for path in files if "source-" in path]

    second = started(script, server, tmp_path / "second")
    said, _ = second.communicate(timeout=600)
    assert second.returncode == 0, said
    assert "resum" in said or "goes on" in said, said
    (folder,) = (tmp_path / "second" / "runs" / "toy").glob("distill-*")
    assert folder.name == before
    files = server.buckets.files["ann/toy"]
    assert [path for path in files if path.endswith("/distill.json")]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_that_was_stopped_goes_on_from_what_was_kept_and_publishes(
    server: HubServer, tmp_path: Path
) -> None:
    script = written(tmp_path, "publish.repo=ann/toy", "distill.steps=150")
    first = started(script, server, tmp_path / "first")
    while not list((tmp_path / "first").glob("runs/toy/distill-*/*")):
        time.sleep(0.1)
    first.send_signal(signal.SIGTERM)
    said, _ = first.communicate(timeout=300)
    assert first.returncode != 0, said
    kept = {path.partition("/")[0] for path in server.repos[KEPT].head.files}
    assert "toy" in kept and not any(name.startswith("source-") for name in kept)

    second = started(script, server, tmp_path / "second")
    said, _ = second.communicate(timeout=600)
    assert second.returncode == 0, said
    assert "distill.json" in server.repos["ann/toy"].head.files
    (folder,) = (tmp_path / "second" / "runs" / "toy").glob("distill-*")
    assert folder.name in {
        path.split("/")[1] for path in server.repos[KEPT].head.files if "/" in path
    }


def test_the_hub_client_starts_the_command_line_as_an_extension(tmp_path: Path) -> None:
    home = tmp_path / "home" / ".local" / "share" / "hf" / "extensions" / "hf-distill"
    program = home / "hf-distill"
    home.mkdir(parents=True)
    program.write_text(
        f"#!{sys.executable}\nfrom distill_datasets.cli import main\nmain()\n", encoding="utf-8"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    said = {
        "owner": "org",
        "repo": "hf-distill",
        "repo_id": "org/hf-distill",
        "short_name": "distill",
        "executable_path": str(program),
        "type": "python",
        "installed_at": "2026-11-28T00:00:00+00:00",
    }
    (home / "manifest.json").write_text(json.dumps(said))
    env = os.environ | QUIET | {"HOME": str(tmp_path / "home"), "NO_COLOR": "1", "COLUMNS": "120"}
    env |= {"PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "huggingface_hub.cli.hf", "distill", "--help"],
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Usage: hf distill " in done.stdout
