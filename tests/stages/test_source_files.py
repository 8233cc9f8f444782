"""The source in files: written in pieces by any number of processes, over a kill, in little memory.

Processes are threads here, with a barrier; tests of whole runs start real ones.
"""

import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import datasets
import pytest
import torch
from pydantic import ValidationError
from support.image_sets import draw, features, gray, png, values

from distill_datasets.data import decoding as reading
from distill_datasets.data import real as decoded_module
from distill_datasets.data import stores as row_files
from distill_datasets.data.real import Decoded, resident
from distill_datasets.data.source import Source, SourceDataset, open_source
from distill_datasets.data.stores import RowFiles
from distill_datasets.errors import DataError
from distill_datasets.files.artifacts import fill_rows, open_rows
from distill_datasets.runtime.draws import draws
from distill_datasets.runtime.processes import Run, Runtime
from distill_datasets.stages import source
from distill_datasets.stages.source import load_source


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write_shards(folder: Path, shards: int, rows: int, broken: tuple[int, ...] = ()) -> Source:
    """`shards` tars of `rows` gray rows; the value and the class of a row follow its number."""
    folder.mkdir()
    for shard in range(shards):
        with tarfile.open(folder / f"train-{shard:03d}.tar", "w") as tar:
            for number in range(shard * rows, (shard + 1) * rows):
                image = b"broken" if number in broken else png(gray(number))
                for suffix, data in (("png", image), ("cls", str(number % 3).encode())):
                    member = tarfile.TarInfo(f"{number:04d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return Source(dataset=str(folder), skip_bad_rows=bool(broken), channels="gray")


def read_by(processes: int, source: Source, folder: Path) -> tuple[list[Decoded], Counter[str]]:
    """What every process reads, and how often each row was decoded."""
    folder.mkdir(exist_ok=True)
    barrier = threading.Barrier(processes)
    found: list[Decoded | None] = [None] * processes
    seen: Counter[str] = Counter()
    looked_at, lock = reading.Agreement.seen, threading.Lock()

    def counted(agreement: reading.Agreement, where: str, encoded: bytes) -> Any:  # noqa: ANN401
        with lock:
            seen[where] += 1
        return looked_at(agreement, where, encoded)

    def process(rank: int) -> None:
        runtime = SimpleNamespace(
            is_main=rank == 0,
            wait=barrier.wait,
            mine=lambda units: list(range(rank, units, processes)),
        )
        store = RowFiles(folder, cast(Runtime, runtime))
        try:
            found[rank] = open_source(source).read(draw, store=store)
        except BaseException:
            barrier.abort()
            raise

    with mock.patch.object(reading.Agreement, "seen", counted):
        threads = [threading.Thread(target=process, args=(rank,)) for rank in range(1, processes)]
        for thread in threads:
            thread.start()
        process(0)
        for thread in threads:
            thread.join()
    return [each for each in found if each is not None], seen


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_shards_are_read_once_whoever_reads_them(tmp_path: Path, processes: int) -> None:
    source = write_shards(tmp_path / "pets", 5, 6)
    ours = open_source(source).read(draw)
    everywhere, seen = read_by(processes, source, tmp_path / "store")
    assert len(everywhere) == processes
    for theirs in everywhere:
        assert torch.equal(theirs.train.images_NCHW, ours.train.images_NCHW)
        assert torch.equal(theirs.test.images_NCHW, ours.test.images_NCHW)
        assert torch.equal(theirs.train.labels_N, ours.train.labels_N)
    # the first image that can be used is looked at by every process, to agree on sizes
    first, count = seen.most_common(1)[0]
    assert (first, count) == ("train row 0", processes + 1) or processes == 1
    assert all(count == 1 for where, count in seen.items() if where != first)
    assert len(seen) == 30


def test_shards_give_the_rows_of_a_table_in_the_same_order(tmp_path: Path) -> None:
    source = write_shards(tmp_path / "pets", 4, 6)
    rows = datasets.Dataset.from_dict(
        {
            "image": [gray(number) for number in range(24)],
            "label": [number % 3 for number in range(24)],
        },
        features=features(datasets.Value("int64")),
    )
    for fields in ({}, {"limit": 7}, {"classes": ["2", "0"]}, {"imbalance": 0.5}):
        asked = source.model_copy(update=fields)
        streamed = open_source(asked).read(draw)
        table = open_source(asked, rows).read(draw)
        assert values(streamed.train.images_NCHW) == values(table.train.images_NCHW)
        assert values(streamed.test.images_NCHW) == values(table.test.images_NCHW)
        assert torch.equal(streamed.train.labels_N, table.train.labels_N)


def test_tars_are_not_copied_into_a_cache(tmp_path: Path) -> None:
    source = write_shards(tmp_path / "pets", 2, 6)
    open_source(source).read(draw)
    assert not list((tmp_path / "cache").rglob("*.arrow"))


def test_labels_of_tars_are_gone_through_once(tmp_path: Path) -> None:
    source = write_shards(tmp_path / "pets", 3, 6)
    shape, names = open_source(source).peek()
    with mock.patch.object(reading.Table, "_read_cells", side_effect=AssertionError):
        assert open_source(source).peek() == (shape, names)
        assert open_source(source).read(draw).class_names == names == ["0", "1", "2"]
    # other tars at the same place have other labels
    (tmp_path / "pets").rename(tmp_path / "before")
    write_shards(tmp_path / "pets", 2, 2)
    with (
        pytest.raises(AssertionError),
        mock.patch.object(reading.Table, "_read_cells", side_effect=AssertionError),
    ):
        open_source(source).peek()


@pytest.mark.parametrize("processes", [1, 3])
def test_broken_rows_leave_no_gap(tmp_path: Path, processes: int) -> None:
    source = write_shards(tmp_path / "pets", 4, 6, broken=(0, 7, 13, 23))
    ours = open_source(source).read(draw)
    theirs = read_by(processes, source, tmp_path / "store")[0][-1]
    everything = [*values(theirs.train.images_NCHW), *values(theirs.test.images_NCHW)]
    assert sorted(everything) == [n for n in range(24) if n not in (0, 7, 13, 23)]
    assert values(theirs.train.images_NCHW) == values(ours.train.images_NCHW)
    assert [value % 3 for value in values(theirs.train.images_NCHW)] == (
        theirs.train.labels_N.tolist()
    )
    assert theirs.skipped == ours.skipped and len(ours.skipped) == 4
    assert sorted(path.name for path in (tmp_path / "store").glob("*.npy")) == [
        "test-prints.npy",
        "test.npy",
        "train-prints.npy",
        "train.npy",
    ]


def test_what_was_decoded_before_a_kill_is_not_decoded_again(tmp_path: Path) -> None:
    source = write_shards(tmp_path / "pets", 5, 6)
    whole = tmp_path / "whole"
    read_by(1, source, whole)
    calls = 0

    def killed(path: Path, *arguments: Any) -> None:  # noqa: ANN401
        nonlocal calls
        calls += path.name.startswith("train.")
        if calls == 4:
            raise KeyboardInterrupt
        fill_rows(path, *arguments)

    with (
        mock.patch.object(row_files, "fill_rows", killed),
        pytest.raises(KeyboardInterrupt),
    ):
        read_by(1, source, tmp_path / "store")
    _, seen = read_by(1, source, tmp_path / "store")
    done = {f"train row {number}" for number in range(1, 18)}
    assert {where for where in seen if where in done} <= done_for_test(source)
    for name in ("train.npy", "test.npy"):
        assert (tmp_path / "store" / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize("broken", [(), (1, 8)])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_killed_between_the_splits_decodes_no_training_row_again(
    tmp_path: Path, broken: tuple[int, ...], processes: int
) -> None:
    source = write_shards(tmp_path / "pets", 5, 6, broken)
    read_by(1, source, tmp_path / "whole")

    def killed(path: Path, *arguments: Any) -> None:  # noqa: ANN401
        if path.name.startswith("test"):
            raise KeyboardInterrupt
        fill_rows(path, *arguments)

    store = tmp_path / "store"
    with mock.patch.object(row_files, "fill_rows", killed), pytest.raises(KeyboardInterrupt):
        read_by(1, source, store)
    assert (store / "train.npy").exists() and not (store / "train.unfinished.npy").exists()
    _, seen = read_by(processes, source, store)
    # and the first image that can be used, which all sizes are compared with
    assert set(seen) - {"train row 0"} <= done_for_test(source)
    for name in ("train.npy", "test.npy"):
        assert (store / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def done_for_test(source: Source) -> set[str]:
    """The rows cut off for test, which are decoded after those for training."""
    cut = open_source(source).read(draw).test
    return {f"train row {value}" for value in values(cut.images_NCHW)}


def test_a_disk_that_is_too_small_is_noticed_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_shards(tmp_path / "pets", 2, 6)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=15))
    with pytest.raises(DataError, match=r"0.0 GiB are free where .* lies; set source.limit"):
        read_by(1, source, tmp_path / "store")


def test_a_damaged_tar_is_named(tmp_path: Path) -> None:
    source = write_shards(tmp_path / "pets", 2, 6)
    path = tmp_path / "pets" / "train-001.tar"
    path.write_bytes(path.read_bytes()[:520])
    with pytest.raises(DataError, match=r"'train-001.tar' is no tar that can be read to its end"):
        open_source(source).read(draw)


def test_the_stage_reads_once_and_keeps_nothing_but_the_result(tmp_path: Path) -> None:
    settings = write_shards(tmp_path / "pets", 3, 8)
    runtime = Runtime()

    def load() -> source.LoadedSource:
        return load_source(open_source(settings), Run(0, tmp_path, runtime, shown=False))

    first = load()
    with mock.patch.object(SourceDataset, "read", side_effect=AssertionError):
        again = load()
    assert torch.equal(first.real.train.images_NCHW, again.real.train.images_NCHW)
    (folder,) = tmp_path.glob("source-*")
    names = sorted(path.name for path in folder.iterdir())
    assert [name for name in names if not name.startswith("normalization-")] == [
        ".lock", "DONE.json", "data.safetensors", "test.npy", "train.npy",
    ]  # fmt: skip
    (folder / "train.npy").unlink()
    before = (folder / "test.npy").read_bytes()
    assert torch.equal(load().real.train.images_NCHW, first.real.train.images_NCHW)
    assert (folder / "test.npy").read_bytes() == before


def test_images_stay_off_a_device_that_has_no_room_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = torch.device("meta")
    assert resident(10**18, torch.device("cpu"))
    told = SimpleNamespace(mem_get_info=lambda _: (1000, 4000))
    monkeypatch.setattr(torch, "get_device_module", lambda _: told)
    assert resident(500, device) and not resident(501, device)
    monkeypatch.setattr(torch, "get_device_module", lambda _: SimpleNamespace())
    monkeypatch.setattr(decoded_module, "available_bytes", lambda: 100)
    assert resident(50, device) and not resident(51, device)


# Loads a source when the file `go` is there, and says which rows it decoded.
TOGETHER = """
import json, logging, sys, time
from pathlib import Path
from distill_datasets.data import decoding as reading
from distill_datasets.data.source import Source, SourceDataset, open_source
from distill_datasets.runtime.processes import Run, Runtime
from distill_datasets.stages.source import load_source

logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
seen, looked_at = [], reading.Agreement.seen

def counted(agreement, where, encoded):
    seen.append(where)
    time.sleep(0.05)
    return looked_at(agreement, where, encoded)

reading.Agreement.seen = counted
root, runtime = Path(sys.argv[1]), Runtime()
source = Source(dataset=str(root / "pets"), channels="gray")
opened = open_source(source)
(root / f"ready-{sys.argv[2]}").touch()
while not (root / "go").exists():
    time.sleep(0.01)
real = load_source(opened, Run(0, root / "runs", runtime, shown=False)).real
print(json.dumps({"seen": seen, "sum": int(real.train.images_NCHW.sum())}))
"""


def started(root: Path, name: str) -> subprocess.Popen[str]:
    """A process that loads the tars of `root` as soon as it may."""
    settings = {"HF_HOME": str(root / "home"), "ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen(
        [sys.executable, "-c", TOGETHER, str(root), name],
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(*paths: Path) -> None:
    while not all(path.exists() for path in paths):
        time.sleep(0.01)


@pytest.mark.timeout(120)
def test_of_two_runs_that_read_one_source_one_reads_and_the_other_waits(tmp_path: Path) -> None:
    source = write_shards(tmp_path / "pets", 5, 6)
    alone = open_source(source).read(draws(0))
    runs = [started(tmp_path, name) for name in ("first", "second")]
    wait_for(tmp_path / "ready-first", tmp_path / "ready-second")
    (tmp_path / "go").touch()
    (printed, told), (other_printed, other_told) = (run.communicate() for run in runs)
    assert [run.returncode for run in runs] == [0, 0], told + other_told
    said = [json.loads(text) for text in (printed, other_printed)]
    assert sorted(len(each["seen"]) for each in said) == [0, 31]  # the first image is seen twice
    assert said[0]["sum"] == said[1]["sum"]
    (folder,) = (tmp_path / "runs").iterdir()
    for name, split in (("train.npy", alone.train), ("test.npy", alone.test)):
        assert torch.equal(open_rows(folder / name), split.images_NCHW)
    texts = [told, other_told]
    waited = [place for place, text in enumerate(texts) if "this run waits for it" in text]
    assert len(waited) == 1 and texts[waited[0]].count("source: another run") == 1
    assert str(folder / ".lock") in texts[waited[0]]
    assert not (folder / ".lock.json").exists()  # who held it is of no use any more


@pytest.mark.timeout(120)
def test_a_killed_run_leaves_no_lock(tmp_path: Path) -> None:
    write_shards(tmp_path / "pets", 5, 6)
    (tmp_path / "go").touch()
    killed = started(tmp_path, "killed")
    wait_for(tmp_path / "ready-killed")
    while not list((tmp_path / "runs").glob("source-*/train.unfinished.npy")):
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    after = started(tmp_path, "after")
    printed, told = after.communicate()
    assert after.returncode == 0 and "another run" not in told, told
    assert len(json.loads(printed)["seen"]) > 0


MEASURED = """
import io, json, sys, tarfile, threading, time
from pathlib import Path
import torch
from PIL import Image
from distill_datasets.data.source import Source, SourceDataset, open_source
from distill_datasets.runtime.processes import Run, Runtime
from distill_datasets.stages.source import load_source

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024

def load(name, count, shards):
    folder = root / name
    folder.mkdir()
    for shard in range(shards):
        with tarfile.open(folder / f"train-{shard:03d}.tar", "w") as tar:
            for number in range(count // shards):
                content = io.BytesIO()
                Image.new("RGB", (256, 256), (number % 256, shard, 7)).save(content, "PNG")
                for suffix, data in (("png", content.getvalue()), ("cls", b"01"[number % 2:][:1])):
                    member = tarfile.TarInfo(f"{shard:03d}-{number:04d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    source = Source(dataset=str(folder))
    return load_source(
            open_source(source), Run(0, root, runtime, shown=False)
    ).real

root, runtime = Path(sys.argv[1]), Runtime()
load("warm", 40, 2)
before, peak, running = anonymous(), 0, True
def watch():
    global peak
    while running:
        peak = max(peak, anonymous())
        time.sleep(0.002)
watcher = threading.Thread(target=watch)
watcher.start()
real = load("large", 2100, 6)
real.batch(torch.Generator().manual_seed(0), 20)
running = False
watcher.join()
pixels = real.train.images_NCHW.numel() + real.test.images_NCHW.numel()
print(json.dumps({"pixels": pixels, "grown": peak - before}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_reading_takes_less_memory_than_the_images(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["pixels"] == 2100 * 3 * 256 * 256
    assert said["grown"] < said["pixels"] / 2, said


def test_given_statistics_stand_for_those_of_the_images(tmp_path: Path) -> None:
    asked = write_shards(tmp_path / "tars", 2, 8)
    runtime = Runtime()

    def load(**changes: Any) -> source.LoadedSource:  # noqa: ANN401
        changed = Source.model_validate(asked.model_dump() | changes)
        return load_source(open_source(changed), Run(0, tmp_path / "runs", runtime, shown=False))

    fitted, given = load(), load(mean=[0.25], std=[0.5])
    pixels = given.real.train.images_NCHW[:3].float() / 255
    seen = given.real.select(torch.arange(3)).images_BCHW
    assert torch.allclose(seen, (pixels - 0.25) / 0.5)
    assert given.fingerprint != fitted.fingerprint
    assert len(list((tmp_path / "runs").glob("source-*"))) == 1  # decoded once
    with pytest.raises(DataError, match="got 3 numbers for images of 1 channels"):
        load(mean=[0.5] * 3, std=[0.2] * 3)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"mean": [0.5]}, "expected one number of each for every channel"),
        ({"mean": [0.5], "std": [0.0]}, "std above 0"),
        ({"mean": [0.5], "std": [0.2], "normalization": "zca"}, "which fits its own"),
    ],
)
def test_statistics_that_do_not_fit_together_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Source(dataset="somewhere", **fields)
