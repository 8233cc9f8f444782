"""Uses of a distilled set: a memory for classes that come in tasks, and a search of networks."""

import json
from pathlib import Path

import pytest
import torch
from support.outside_sets import DIGITS, digits
from support.toy_runs import command, times

from distill_datasets.errors import ArtifactError
from distill_datasets.evaluation.contestants import read_target
from distill_datasets.evaluation.uses.replay import run_replay, tasks_of
from distill_datasets.evaluation.uses.search import kendall, networks, ranks, run_search, spearman
from distill_datasets.evaluation.uses.units import kept_bytes, real_per_class
from distill_datasets.layouts.importing import Told, import_set
from distill_datasets.pipeline.judging import judging


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two real digits of every class, as a distilled set."""
    images_NCHW, labels_N = digits(2)
    torch.save({"data": [[images_NCHW, labels_N]]}, tmp_path / "x.pt")
    import_set(str(tmp_path / "x.pt"), tmp_path / "set", told=Told(source=DIGITS))
    return tmp_path / "set"


def test_the_bytes_of_images_with_classes_hold_as_many_real_images(
    folder: Path, tmp_path: Path
) -> None:
    with judging(str(folder), tmp_path / "runs", quiet=True) as judged:
        target = read_target(folder, judged.real)
        # 20 images of 64 values and a byte for the class each
        assert kept_bytes(target) == 20 * 65
        assert real_per_class(target, judged.real) == 2


def test_what_no_memory_forgets_a_memory_keeps(folder: Path, tmp_path: Path) -> None:
    with judging(str(folder), tmp_path / "runs", quiet=True) as judged:
        found = run_replay(judged.folder, judged.real, judged.run, tasks=2, steps=40, students=2)

    final = {row["memory"]: row["final"]["mean"] for row in found["rows"]}
    # five classes of ten are all that a network without a memory still names
    assert final["none"] <= 0.5 < min(final["all"], final["published"])
    assert [len(row["after"]) for row in found["rows"]] == [2] * 5
    # before anything can be forgotten all memories are the same
    first = {json.dumps(row["after"][0]) for row in found["rows"]}
    assert len(first) == 1


def test_classes_are_dealt_to_tasks_in_their_order() -> None:
    assert tasks_of(10, 5) == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert tasks_of(3, 2) == [[0, 1], [2]]


def test_more_tasks_than_classes_are_refused(folder: Path, tmp_path: Path) -> None:
    with (
        judging(str(folder), tmp_path / "runs", quiet=True) as judged,
        pytest.raises(ArtifactError, match="10 classes cannot come in 11 tasks"),
    ):
        run_replay(judged.folder, judged.real, judged.run, tasks=11)


def test_correlations_of_orders_by_hand() -> None:
    assert ranks([0.5, 0.1, 0.5]) == [2.5, 1, 2.5]
    assert kendall([1, 2, 3], [1, 2, 3]) == 1
    assert kendall([1, 2, 3], [1, 3, 2]) == pytest.approx(1 / 3)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 3], [1, 3, 2]) == pytest.approx(0.5)
    # tau-b: of three pairs one is tied on the left
    assert kendall([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / (2 * 3) ** 0.5)
    assert kendall([1, 1], [1, 2]) == 0


def test_a_search_orders_24_networks_by_every_proxy(folder: Path, tmp_path: Path) -> None:
    with judging(str(folder), tmp_path / "runs", quiet=True) as judged:
        found = run_search(
            judged.folder, judged.real, judged.run, steps=2, whole_steps=3, students=1
        )
        again = times(judged.run.folder)
        run_search(judged.folder, judged.real, judged.run, steps=2, whole_steps=3, students=1)

    assert len({(each["depth"], each["width"], each["norm"]) for each in found["networks"]}) == 24
    assert len(networks()) == 24
    assert [row["proxy"] for row in found["rows"]] == ["published", "random_real", "epoch"]
    assert all(0 <= row["regret_of_three"] <= row["regret"] for row in found["rows"])
    done = {path: at for path, at in again.items() if not path.endswith("search.json")}
    assert done.items() <= times(judged.run.folder).items()


def test_a_use_is_asked_for_on_the_command_line(folder: Path, tmp_path: Path) -> None:
    arguments = ("evaluate", folder, "--runs", tmp_path / "runs", "--use")
    answer = command(*arguments, "replay", "--steps", "2", "--students", "1", "--quiet")
    assert answer.code == 0, answer.err
    assert "herded real images of the same bytes" in answer.out
    assert "1,300 bytes; 2 real images of each class" in answer.out

    answer = command(*arguments, "repla")
    assert answer.code == 2 and "did you mean 'replay'" in answer.err
    answer = command(*arguments, "search", "--level", "full")
    assert answer.code == 2 and "leave --level" in answer.err
