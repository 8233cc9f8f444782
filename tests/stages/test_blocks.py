"""Blocks: the same bits whoever solves them, whenever they are killed."""

import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from support import TESTS
from support.blocks_problem import RECOVER, SELECTED, SHAPE, run, settings
from support.launch import launch
from support.recover_problem import residual
from support.tiny import toy_real
from support.toy_runs import times

from distill_datasets.distilled import DistilledImages
from distill_datasets.errors import ArtifactError
from distill_datasets.files.artifacts import read_tensors
from distill_datasets.media.image import to_bytes
from distill_datasets.objectives.recover import Recover
from distill_datasets.runtime.draws import rng_for
from distill_datasets.runtime.processes import Runtime
from distill_datasets.selection.coresets import Herding
from distill_datasets.stages import blocks
from distill_datasets.stages.blocks import InitialImages
from distill_datasets.stages.distill import OuterLoop

pytestmark = pytest.mark.timeout(120)


def bits(folder: Path) -> dict[str, bytes]:
    """What a finished stage left that others read."""
    names = ["images.npy", "blocks.json"]
    (stage,) = folder.iterdir()
    files = [*stage.glob("block-*"), *(stage / name for name in names)]
    return {path.name: path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """The files of one undisturbed process, for both objectives."""
    made = {}
    for objective in (RECOVER, SELECTED):
        folder = tmp_path_factory.mktemp("alone")
        run(settings(objective), folder)
        made[str(objective["name"])] = bits(folder)
    return made


def start(folder: Path, processes: int, objective: str, killed_at: int = 0) -> int:
    """Run the toy problem in some processes; returns how they ended."""
    program = TESTS / "support" / "blocks_problem.py"
    finished = launch(program, folder, objective, killed_at, processes=processes)
    assert finished.returncode == 0 or killed_at, finished.stderr
    return finished.returncode


def test_every_image_is_in_its_place(tmp_path: Path) -> None:
    found = run(settings(RECOVER), tmp_path)
    assert isinstance(found, DistilledImages)
    assert found.images_NCHW.shape == (12, 3, 8, 8) and found.images_NCHW.dtype == torch.uint8
    assert found.classes_N.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    whole = Recover(match_batch=4).blocks(4, 3)
    for number, block in enumerate(whole):
        own, facts = read_tensors(found.folder / f"block-{number:05d}.safetensors")
        assert torch.equal(own["images"], found.images_NCHW[list(block.places_N)])
        assert facts == found.facts[number]
        assert facts["loss"] == pytest.approx(facts["cross_entropy"] + 0.05 * facts["bn_loss"])
    assert not list((found.folder / "solving").rglob("*.safetensors"))
    pictures = sorted(path.name for path in (found.folder / "previews").iterdir())
    assert pictures == ["images.png", "step-0000003.png"]


def test_facts_are_those_of_the_8_bit_images(tmp_path: Path) -> None:
    found = run(settings(RECOVER), tmp_path)
    real = toy_real(SHAPE, per_class=8).normalization
    rows = [list(block.places_N) for block in Recover(match_batch=4).blocks(4, 3)][1]
    images = (found.images_NCHW[rows].float() / 255 - real.display_mean_C[:, None, None]) / (
        real.display_std_C[:, None, None]
    )
    entropies = [
        float(torch.nn.functional.cross_entropy(residual(seed)(images), found.classes_N[rows]))
        for seed in (0, 1)
    ]
    assert found.facts[1]["cross_entropy"] == pytest.approx(sum(entropies) / 2, rel=1e-5)


def test_steps_lower_the_loss(tmp_path: Path) -> None:
    still = run(settings(RECOVER, steps=0), tmp_path)
    moved = run(settings(RECOVER, steps=30), tmp_path)
    for before, after in zip(still.facts, moved.facts, strict=True):
        assert after["loss"] < before["loss"] and after["bn_loss"] < before["bn_loss"]


def test_without_steps_the_images_are_the_initial_ones(tmp_path: Path) -> None:
    found = run(settings(SELECTED), tmp_path)
    chosen = Herding().images(toy_real(SHAPE, per_class=8), 3, rng_for(0))
    assert torch.equal(found.images_NCHW, to_bytes(chosen))
    assert found.facts == [{}] * 4


@pytest.mark.parametrize("init", ["noise", "real", "herding"])
def test_initial_images_do_not_depend_on_the_blocks(tmp_path: Path, init: str) -> None:
    still = [
        run(settings(objective, init, steps=0), tmp_path).images_NCHW
        for objective in (RECOVER, RECOVER | {"match_batch": 12}, SELECTED)
    ]
    assert torch.equal(still[0], still[1]) and torch.equal(still[0], still[2])
    assert len(still[0].unique(dim=0)) == 12


def test_a_finished_stage_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(settings(RECOVER), tmp_path)
    before = times(tmp_path)
    monkeypatch.setattr(OuterLoop, "run", None)
    run(settings(RECOVER), tmp_path)
    assert times(tmp_path) == before


def test_another_seed_or_setting_is_another_folder(tmp_path: Path) -> None:
    run(settings(RECOVER), tmp_path)
    run(settings(RECOVER, "noise"), tmp_path)
    run(settings(RECOVER, previews=3), tmp_path)  # changes no image
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("cores", [2, 3, 4])
def test_blocks_that_are_solved_side_by_side_are_the_same_bits(
    tmp_path: Path, alone: dict[str, dict[str, bytes]], cores: int
) -> None:
    runtime = Runtime()
    runtime.cores = cores
    run(settings(RECOVER), tmp_path, runtime)
    assert bits(tmp_path) == alone["recover"]


def rank(index: int, processes: int) -> Runtime:
    """One of several processes; the others are tried one after the other, so nobody waits."""
    runtime = Runtime()
    runtime.accelerator = SimpleNamespace(
        num_processes=processes,
        process_index=index,
        is_main_process=index == 0,
        device=torch.device("cpu"),
        wait_for_everyone=lambda: None,
        log=lambda numbers, step: None,
    )
    return runtime


@pytest.mark.parametrize("world", [2, 3, 4])
def test_shares_of_processes_make_the_set_together(
    tmp_path: Path, alone: dict[str, dict[str, bytes]], world: int
) -> None:
    made = 0
    for index in reversed(range(1, world)):
        with pytest.raises(ArtifactError, match=r"images\.npy"):  # nobody has put them together yet
            run(settings(RECOVER), tmp_path, rank(index, world))
        made += len(range(index, 3, world))
        assert len(list(tmp_path.rglob("block-*.safetensors"))) == made
    run(settings(RECOVER), tmp_path, rank(0, world))
    assert bits(tmp_path) == alone["recover"]


@pytest.mark.parametrize("killed_at", [1, 5, 7, 13])
def test_a_run_that_dies_at_any_file_goes_on_to_the_same_bits(
    tmp_path: Path,
    alone: dict[str, dict[str, bytes]],
    killed_at: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In this process: the files lie as a killed one leaves them, half-written ones included."""
    synced, fsync = 0, os.fsync

    class Killed(BaseException):
        pass

    def counted(file: int) -> None:
        nonlocal synced
        synced += 1
        if synced == killed_at:
            raise Killed
        fsync(file)

    runtime = Runtime()
    runtime.cores = 1
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", counted)
        with pytest.raises(Killed):
            run(settings(RECOVER), tmp_path, runtime)
    kept = times(tmp_path)
    done = [path for path in kept if "block-" in Path(path).name]
    run(settings(RECOVER), tmp_path)
    assert bits(tmp_path) == alone["recover"]
    assert all(kept[path] == times(tmp_path)[path] for path in done)


def test_a_killed_process_leaves_what_another_finishes(
    tmp_path: Path, alone: dict[str, dict[str, bytes]]
) -> None:
    assert start(tmp_path, 1, "selected", killed_at=6) == -signal.SIGKILL
    assert list(tmp_path.rglob("*.npy")) and not list(tmp_path.rglob("images.npy"))
    run(settings(SELECTED), tmp_path)
    assert bits(tmp_path) == alone["selected"]


@pytest.mark.gloo
def test_two_processes_that_die_and_two_that_go_on_make_the_same_bits(
    tmp_path: Path, alone: dict[str, dict[str, bytes]]
) -> None:
    assert start(tmp_path, 2, "recover", killed_at=6) != 0
    assert list(tmp_path.rglob("state.safetensors")) and not list(tmp_path.rglob("images.npy"))
    start(tmp_path, 2, "recover")
    assert bits(tmp_path) == alone["recover"]


def test_a_block_goes_on_inside_from_its_own_state(
    tmp_path: Path, alone: dict[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    def second_step(objective: Recover, *arguments: Any) -> Any:  # noqa: ANN401
        if arguments[-1].step == 2:
            raise Killed
        return estimate(objective, *arguments)

    estimate = Recover.estimate
    with monkeypatch.context() as patch:
        patch.setattr(Recover, "estimate", second_step)
        with pytest.raises(Killed):
            run(settings(RECOVER), tmp_path)
    steps = []

    def noted(objective: Recover, *arguments: Any) -> Any:  # noqa: ANN401
        steps.append(arguments[-1].step)
        return estimate(objective, *arguments)

    monkeypatch.setattr(Recover, "estimate", noted)
    run(settings(RECOVER), tmp_path)
    assert len(steps) < 9 and 2 in steps
    assert bits(tmp_path) == alone["recover"]


def test_one_thread_at_a_time_reads_initial_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CPython 3.11 raises a SystemError when two threads parse the headers of files."""
    reading, at = threading.Lock(), InitialImages.at

    def noted(*arguments: Any) -> torch.Tensor:  # noqa: ANN401
        assert reading.acquire(blocking=False), "another thread reads"
        time.sleep(0.05)
        found = at(*arguments)
        reading.release()
        return found

    monkeypatch.setattr(InitialImages, "at", noted)
    runtime = Runtime()
    runtime.cores = 3
    run(settings(RECOVER), tmp_path, runtime)


def test_no_collective_is_called_while_blocks_are_solved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[int] = []
    runtime = Runtime()

    def noted() -> None:
        waits.append(len(list(tmp_path.rglob("block-*.safetensors"))))

    monkeypatch.setattr(runtime.accelerator, "wait_for_everyone", noted)
    monkeypatch.setattr(runtime.accelerator, "gather", None)
    run(settings(RECOVER), tmp_path, runtime)
    assert set(waits) == {3}


def test_a_failing_block_stops_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def failing(loop: OuterLoop, *arguments: Any) -> bool:  # noqa: ANN401
        seen.append(loop.folder.name)
        if loop.folder.name == "block-00001":
            raise RuntimeError("disk")
        return run_loop(loop, *arguments)

    run_loop = OuterLoop.run
    monkeypatch.setattr(OuterLoop, "run", failing)
    runtime = Runtime()
    runtime.cores = 1
    with pytest.raises(RuntimeError, match="disk"):
        run(settings(RECOVER), tmp_path, runtime)
    assert seen == ["block-00000", "block-00001"]


def test_classes_are_worked_out_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    of_class = Herding.of_class

    def noted(selection: Herding, real: Any, label: int, *rest: Any) -> Any:  # noqa: ANN401
        asked.append(label)
        return of_class(selection, real, label, *rest)

    monkeypatch.setattr(Herding, "of_class", noted)
    run(settings(RECOVER), tmp_path)
    assert sorted(asked) == [0, 1, 2, 3]


def test_images_never_lie_in_memory_all_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "ROWS_AT_ONCE", 5)
    sizes: list[int] = []
    write_rows = blocks.write_rows

    def noted(path: Path, shape: tuple[int, ...], chunks: Any) -> None:  # noqa: ANN401
        def each() -> Any:  # noqa: ANN401
            for chunk in chunks:
                if path.name == "images.npy":
                    sizes.append(len(chunk))
                yield chunk

        write_rows(path, shape, each())

    monkeypatch.setattr(blocks, "write_rows", noted)
    found = run(settings(RECOVER), tmp_path)
    assert sizes == [5, 5, 2]
    monkeypatch.undo()
    again = run(settings(RECOVER), tmp_path / "other")
    assert torch.equal(found.images_NCHW, again.images_NCHW)


def test_a_damaged_block_is_kept_aside_named_and_solved_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = run(settings(RECOVER), tmp_path)
    before = bits(tmp_path)
    (found.folder / "DONE.json").unlink()
    (found.folder / "block-00001.safetensors").write_bytes(b"half")
    run(settings(RECOVER), tmp_path)
    assert "block-00001.safetensors: not a readable safetensors file" in caplog.text
    kept = found.folder / "block-00001.safetensors.damaged"
    assert kept.read_bytes() == b"half"
    kept.unlink()
    assert bits(tmp_path) == before


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "poster": ({"canvas": {"name": "poster", "ipc": 3, "crops": 4}}, "canvas: 'poster'"),
    "count": ({"canvas": {"name": "pixels", "count": 3}}, "canvas: 'pixels'"),
    "learned": ({"labels": "learned"}, "labels: 'learned'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_no_block_can_be_made_of_is_refused(what: str) -> None:
    changed, expected = REFUSED[what]
    with pytest.raises(ValidationError, match=expected):
        settings(RECOVER, **changed)


def test_selected_images_are_not_moved() -> None:
    with pytest.raises(ValidationError, match="steps: got 3, expected 0"):
        settings(SELECTED, steps=3)
    with pytest.raises(ValidationError, match=r"canvas\.bounds: got 'sigmoid'"):
        settings(SELECTED, canvas={"name": "pixels", "ipc": 3})


@pytest.mark.slow
def test_threads_use_one_compiled_loss_and_make_the_bits_of_one_thread(tmp_path: Path) -> None:
    from torch._dynamo.utils import counters

    counters.clear()
    found = []
    for cores in (3, 1):
        runtime = Runtime()
        runtime.cores = cores
        section = settings(RECOVER | {"compile": True})
        found.append(run(section, tmp_path / str(cores), runtime).images_NCHW)
    assert torch.equal(*found) and counters["stats"]["unique_graphs"] == 1
