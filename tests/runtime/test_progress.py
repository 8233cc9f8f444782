"""Progress: a bar for a person, a few lines for a log file, nothing where nobody reads."""

import logging
import sys

import pytest

from distill_datasets.runtime.progress import progress_bar


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@pytest.fixture(autouse=True)
def everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "distill_datasets")


def test_a_log_gets_about_ten_lines_however_many_steps_there_are(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with progress_bar("distill", 1000, shown=True) as bar:
        for _ in range(1000):
            bar.advance(1, loss=0.5)
    lines = told(caplog)
    assert len(lines) == 10
    assert lines[0] == "distill: 100 of 1000, loss 0.5"
    assert lines[-1] == "distill: 1000 of 1000, loss 0.5"


def test_a_log_of_few_steps_gets_a_line_for_each(caplog: pytest.LogCaptureFixture) -> None:
    with progress_bar("evaluate", 3, shown=True) as bar:
        for _ in range(3):
            bar.advance(1)
    assert told(caplog) == ["evaluate: 1 of 3", "evaluate: 2 of 3", "evaluate: 3 of 3"]


def test_a_resumed_stage_starts_where_it_stopped(caplog: pytest.LogCaptureFixture) -> None:
    with progress_bar("distill", 10, shown=True) as bar:
        bar.advance(7)
        bar.advance(1)
    assert told(caplog) == ["distill: 7 of 10", "distill: 8 of 10"]


def test_a_total_may_show_only_after_the_start(caplog: pytest.LogCaptureFixture) -> None:
    with progress_bar("source", 1, shown=True) as bar:
        bar.expect(400)
        bar.advance(40)
    assert told(caplog) == ["source: 40 of 400"]


def test_nothing_to_do_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    with progress_bar("source", 1, shown=True) as bar:
        bar.expect(0)
        bar.advance(0)
    assert told(caplog) == []


def test_other_processes_and_quiet_runs_show_nothing(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with progress_bar("distill", 2, shown=False) as bar:
        bar.expect(3)
        bar.advance(3, loss=0.5)
    assert told(caplog) == [] and capfd.readouterr() == ("", "")


def test_a_terminal_gets_a_bar_on_the_error_stream(
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress_bar("distill", 4, shown=True) as bar:
        bar.advance(3, loss=0.25)
    out, err = capsys.readouterr()
    assert out == "" and told(caplog) == []
    assert "distill" in err and "3/4" in err and "loss 0.25" in err and "/s" in err


def test_a_terminal_of_a_quiet_run_gets_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress_bar("distill", 4, shown=False) as bar:
        bar.advance(4, loss=0.25)
    assert capsys.readouterr() == ("", "")
