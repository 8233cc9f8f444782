"""The same bytes from one process, from two, and from a run that was killed and started again.

Everything goes through the command line, at toy scale.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.toy_runs import command, hashes, times, toy_file

from distill_datasets.files.artifacts import read_json

# Kills itself, as a machine that loses power would, right after one of the calls of a function.
KILLED = """
import importlib, os, signal, sys
from distill_datasets.cli import main

module, name, last = importlib.import_module(sys.argv[1]), sys.argv[2], int(sys.argv[3])
original, calls = getattr(module, name), 0

def counted(*arguments, **options):
    global calls
    calls += 1
    mine = calls
    result = original(*arguments, **options)
    if mine == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(module, name, counted)
sys.argv[1:] = sys.argv[4:]
main()
"""
# Writes down which lanes and students a process draws random numbers for.
RECORDED = """
import os, sys
from distill_datasets.stages import distill as optimize
from distill_datasets.cli import main
from distill_datasets.evaluation import evaluate

record = open(sys.argv[1] + os.environ["RANK"], "a")

def recorded(draws, *first):
    def draw(seed, *what):
        print(*first, *what, file=record, flush=True)
        return draws(seed, *what)
    return draw

optimize.LaneDraw = recorded(optimize.LaneDraw, "distill")
evaluate.draws = recorded(evaluate.draws)
sys.argv[1:] = sys.argv[2:]
main()
"""
# Every process says that it runs on another host.
MIXED = """
import os, sys
from distill_datasets.pipeline import content as contents
from distill_datasets.cli import main

contents.environment = lambda device: {"device": "host " + os.environ["RANK"]}
main()
"""
# On the import path of every process that a command starts: writes down that it was there.
PRESENT = """
import atexit, os, pathlib
there = f"rank-{os.environ.get('RANK')}-of-{os.environ.get('WORLD_SIZE')}"
atexit.register((pathlib.Path(__file__).parent / there).touch)
"""
BEYOND = [
    "evaluate.beyond={students: 1, longer: [2], networks: [mlp], tuned_steps: 20}",
    "evaluate.references=[class_mean]",
]
KILLS = {
    "in a lane of the second outer step": ("distill_datasets.stages.distill", "LaneDraw", 5),
    # before it: twenty files of the splits and their prints, three of the source, the first state
    # and its picture
    "while the second state is written": ("os", "fsync", 26),
    "when one student is done": ("distill_datasets.evaluation.evaluate", "write_record", 1),
    "while the dataset is written": ("distill_datasets.export.folder", "card", 2),
}
pytestmark = pytest.mark.timeout(120)


def arguments(folder: Path, lanes: int) -> list[str]:
    """The command line of one run, everything below `folder`; one of three lanes measures more."""
    recipe, runs, output = toy_file(folder), str(folder / "runs"), str(folder / "out")
    more = [f"distill.lanes={lanes}", *(BEYOND if lanes == 3 else [])]
    return ["run", recipe, *more, "--runs", runs, "--output", output]


def start(program: list[str], home: Path, modules: str = "") -> subprocess.CompletedProcess[str]:
    """Run a program on the CPU, where it finds no settings of this machine's user."""
    settings = {"HF_HOME": str(home), "ACCELERATE_USE_CPU": "true", "PYTHONPATH": modules}
    return subprocess.run(program, env={**os.environ, **settings}, capture_output=True, text=True)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, str]]:
    """The files that one undisturbed process makes, for a number of lanes."""
    known: dict[int, dict[str, str]] = {}

    def files(lanes: int) -> dict[str, str]:
        if lanes not in known:
            folder = tmp_path_factory.mktemp("alone")
            answer = command(*arguments(folder, lanes))
            assert answer.code == 0, answer.err
            known[lanes] = hashes(folder / "out")
        return known[lanes]

    return files


def test_a_process_started_from_a_shell_makes_the_same_bytes_as_one_that_calls_the_library(
    tmp_path: Path, alone: Callable[[int], dict[str, str]]
) -> None:
    program = [sys.executable, "-m", "distill_datasets", *arguments(tmp_path, 3)]
    finished = start(program, tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert hashes(tmp_path / "out") == alone(3)


@pytest.mark.gloo
def test_two_processes_make_the_same_bytes_when_the_lanes_do_not_divide(
    tmp_path: Path, alone: Callable[[int], dict[str, str]]
) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    finished = start([*launch, "-m", "distill_datasets", *arguments(tmp_path, 3)], tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert hashes(tmp_path / "out") == alone(3)
    assert finished.stdout.count("\nsize ") == 1


@pytest.mark.gloo
def test_processes_of_unlike_hosts_look_in_the_folder_of_the_main_one(tmp_path: Path) -> None:
    (tmp_path / "mixed.py").write_text(MIXED)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    short = ["distill.steps=1", "evaluate.steps=2"]
    program = [*launch, str(tmp_path / "mixed.py"), *arguments(tmp_path, 2), *short]
    finished = start(program, tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert read_json(tmp_path / "out" / "distill.json")["environment"] == {"device": "host 0"}
    assert len(list((tmp_path / "runs" / "toy").glob("export-*"))) == 1


def host(place: Path, port: int, runs: Path) -> subprocess.Popen[bytes]:
    """Start one of two hosts: a launcher of its own, and folders that the other does not see."""
    for name in ("home", "tmp", "work"):
        (place / name).mkdir(parents=True)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
    launcher += ["--nproc_per_node", "1", "--rdzv_backend", "c10d", "--rdzv_id", "toy"]
    launcher += ["--rdzv_endpoint", f"127.0.0.1:{port}", "--local_addr", "127.0.0.1"]
    recipe, shared = toy_file(place / "work"), ["--runs", str(runs)]
    settings = {"HOME": "home", "HF_HOME": "home/hf", "XDG_CACHE_HOME": "home", "TMPDIR": "tmp"}
    own = {name: str(place / folder) for name, folder in settings.items()}
    with (place / "said.txt").open("wb") as said:
        return subprocess.Popen(
            [*launcher, "-m", "distill_datasets", "run", recipe, *shared, "--output", "out"],
            cwd=place / "work",
            env={**os.environ, **own, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
            stdout=said,
            stderr=subprocess.STDOUT,
        )


@pytest.mark.gloo
@pytest.mark.timeout(240)  # two launchers and two workers import torch
def test_two_hosts_that_share_the_runs_folder_alone_make_the_same_bytes(
    tmp_path: Path, alone: Callable[[int], dict[str, str]]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places, runs = [tmp_path / "first", tmp_path / "second"], tmp_path / "runs"
    hosts = [host(place, port, runs) for place in places]
    try:
        codes = [one.wait(200) for one in hosts]
    finally:
        for one in hosts:
            one.kill()
            one.wait()
    said = [(place / "said.txt").read_text(encoding="utf-8") for place in places]
    assert codes == [0, 0], said
    # the host of the main process writes what is asked for, and that one alone
    (output,) = [place / "work" / "out" for place in places if (place / "work" / "out").exists()]
    assert hashes(output) == alone(2)
    assert sum(text.count("\nsize ") for text in said) == 1
    kinds = [path.name.split("-")[0] for path in (runs / "toy").iterdir() if path.is_dir()]
    assert sorted(kinds) == sorted(set(kinds)), "one folder for every stage"


@pytest.mark.gloo
def test_two_processes_share_the_work_and_make_the_same_bytes(
    tmp_path: Path, alone: Callable[[int], dict[str, str]]
) -> None:
    (tmp_path / "recorded.py").write_text(RECORDED)
    record = tmp_path / "rank-"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    launch += ["--num_processes=2", "--num_machines=1", "--main_process_port=0"]
    launch += ["--mixed_precision=no", "--dynamo_backend=no", str(tmp_path / "recorded.py")]
    finished = start([*launch, str(record), *arguments(tmp_path, 2)], tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert hashes(tmp_path / "out") == alone(2)
    by_rank = [
        {tuple(line.split()) for line in Path(f"{record}{rank}").read_text().splitlines()}
        for rank in (0, 1)
    ]
    for rank, drawn in enumerate(by_rank):
        lanes = {what[1:3] for what in drawn if what[0] == "distill"}
        assert lanes == {(str(step), str(rank)) for step in range(4)}
        # before rounding, the students are those of the published rows
        students = {what for what in drawn if what[0] == "evaluate"}
        assert students == {("evaluate", "default", str(rank))}
    assert not by_rank[0] & by_rank[1]


@pytest.mark.gloo
@pytest.mark.parametrize("how", ["torchrun", "--processes"])
def test_two_processes_start_when_they_are_asked_for(
    tmp_path: Path, alone: Callable[[int], dict[str, str]], how: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(PRESENT)
    words = ["-m", "distill_datasets", *arguments(tmp_path, 2)]
    if how == "--processes":
        program = [sys.executable, *words, "--processes", "2"]
    else:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        program = [sys.executable, *launcher, *words]
    finished = start(program, tmp_path, str(tmp_path))
    assert finished.returncode == 0, finished.stderr
    assert hashes(tmp_path / "out") == alone(2)
    assert (tmp_path / "rank-0-of-2").exists()
    assert (tmp_path / "rank-1-of-2").exists()


def test_accelerate_that_starts_one_process_of_two_is_refused(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "accelerate.commands.launch"]
    program += ["--cpu", "--num_processes", "2", "--num_machines=1"]
    program += ["--mixed_precision=no", "--dynamo_backend=no"]
    words = ["-m", "distill_datasets", *arguments(tmp_path, 2)]
    finished = start([*program, *words], tmp_path, str(tmp_path))
    assert finished.returncode != 0 and not (tmp_path / "runs").exists()
    assert "torchrun --nproc_per_node N -m distill_datasets run" in finished.stderr


@pytest.mark.parametrize("when", KILLS)
def test_a_run_that_is_killed_and_started_again_makes_the_same_bytes(
    tmp_path: Path, alone: Callable[[int], dict[str, str]], when: str
) -> None:
    module, name, call = KILLS[when]
    again = arguments(tmp_path, 3)
    killed = start([sys.executable, "-c", KILLED, module, name, str(call), *again], tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "out").exists()
    found = {path.name: path for path in tmp_path.glob("runs/toy/*/*")}
    kept = times(tmp_path)
    answer = command(*again)
    assert answer.code == 0, answer.err
    assert hashes(tmp_path / "out") == alone(3)
    if "student" in when or "dataset" in when:
        students = [path for name, path in found.items() if name.startswith("default-")]
        assert students and all(kept[str(path)] == times(tmp_path)[str(path)] for path in students)
    else:
        assert "distill: resumed after 1 of 4 steps" in answer.err


def test_a_finished_run_that_is_run_again_does_nothing_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = arguments(tmp_path, 2)
    assert command(*again).code == 0
    before = times(tmp_path)
    for place in (
        "data.source.SourceDataset.read",
        "stages.distill.OuterLoop.run",
        "evaluation.evaluate.train_student",
    ):
        monkeypatch.setattr(f"distill_datasets.{place}", None)
    # `toy_file` writes the recipe anew
    answer = command(*again)
    assert answer.code == 0, answer.err
    assert times(tmp_path) == before
