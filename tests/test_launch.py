"""How many processes a command becomes, and which of them prints."""

import pytest

from distill_datasets.errors import RecipeError
from distill_datasets.launch import RANKS, SIZES, is_main_process, processes_to_start


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*RANKS, *SIZES, "ACCELERATE_USE_CPU", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)


def test_one_process_stays_one_unless_more_are_asked_for() -> None:
    assert processes_to_start(None) == 1
    assert processes_to_start(3) == 3


@pytest.mark.parametrize("name", SIZES)
def test_a_process_that_a_launcher_started_starts_no_others(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "2")
    assert processes_to_start(2) == 1


def test_fewer_processes_than_one_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"--processes: got 0, expected at least 1"):
        processes_to_start(0)


def test_a_launcher_of_one_process_on_the_cpu_is_taken_at_its_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert processes_to_start(None) == 1
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")  # but `accelerate launch` is not the parent
    assert processes_to_start(None) == 1


@pytest.mark.parametrize("name", RANKS)
def test_only_the_first_rank_of_any_launcher_prints(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert is_main_process()
    monkeypatch.setenv(name, "0")
    assert is_main_process()
    monkeypatch.setenv(name, "1")
    assert not is_main_process()
