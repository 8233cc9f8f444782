"""The verbs report and compare, through the command line."""

from pathlib import Path

from support.sample_content import RESULTS, sample
from support.toy_runs import command

from distill_datasets.export.folder import write_dataset


def written(folder: Path) -> Path:
    write_dataset(folder, sample(), RESULTS)
    return folder


def test_report_writes_a_page_and_says_where(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    answer = command("report", written(tmp_path / "a"), "--output", page, "--runs", tmp_path)
    sentence, said = answer.out.splitlines()
    assert answer.code == 0 and sentence.startswith("With the published labels these images beat")
    assert said.split() == ["page", str(page)]
    assert "quickstart" in page.read_text(encoding="utf-8")


def test_compare_prints_the_difference_and_writes_a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    sets = written(tmp_path / "a"), written(tmp_path / "b")
    answer = command("compare", *sets, "--output", page, "--runs", tmp_path)
    assert answer.code == 0
    assert "A quickstart" in answer.out and "B quickstart" in answer.out
    assert "+0.0 \u00b1 5.4, undecided; independent students" in answer.out
    assert "side by side" in page.read_text(encoding="utf-8")


def test_compare_of_one_names_the_verb_for_it(tmp_path: Path) -> None:
    answer = command("compare", written(tmp_path / "a"), "--runs", tmp_path)
    assert answer.code == 2 and "distill-datasets report" in answer.err


def test_a_page_that_is_there_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("mine", encoding="utf-8")
    answer = command("report", tmp_path / "nothing", "--output", page, "--runs", tmp_path)
    assert answer.code == 2 and "nothing is overwritten" in answer.err
    assert page.read_text(encoding="utf-8") == "mine"
