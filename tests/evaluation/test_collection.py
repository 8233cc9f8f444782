"""The gallery: what it shows of sets, and that it asks for nothing."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.sample_content import RESULTS, pixels_sample, sample
from support.toy_runs import command

from distill_datasets.evaluation.report.collection import exhibits, gallery_page, tile_of
from distill_datasets.export.folder import write_dataset

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A measured set, one that is not, and what lies beside sets in a folder of runs."""
    folder = tmp_path_factory.mktemp("runs")
    write_dataset(folder / "toy" / "dataset-1", sample(), RESULTS)
    write_dataset(folder / "toy" / "export-1", sample(), None)
    provenance = pixels_sample().provenance | {"dataset": "zoo"}
    hostile = {"name": HOSTILE, "method": HOSTILE, "provenance": provenance}
    write_dataset(folder / "mine", pixels_sample(**hostile), None)
    return folder


def test_a_page_shows_accuracy_beside_real_images_and_the_whole_source(sets: Path) -> None:
    (tile,) = [tile_of(each) for each in exhibits(str(sets)) if each.folder.name == "dataset-1"]
    assert tile.accuracy_words == "87.5 ± 1.2 %" and tile.lead == pytest.approx(0.375)
    assert [(mark.kind, mark.at) for mark in tile.marks] == [
        ("whole", 0.99),
        ("other", 0.5),
        ("own", 0.875),
    ]


def test_what_is_no_finished_set_is_left_out_and_every_text_is_escaped(
    sets: Path, tmp_path: Path
) -> None:
    answer = command("gallery", sets, "--output", tmp_path / "page.html", "--json")
    assert answer.code == 0, answer.err
    assert len(json.loads(answer.out)["sets"]) == 2
    page = (tmp_path / "page.html").read_text()
    assert page.count('<li class="tile"') == 2 and HOSTILE not in page
    assert "not measured yet" in page and "45.1" not in page
    # nothing but pictures in the page itself is loaded, and one script runs
    assert set(re.findall(r'(?:src|href)="([a-z]+:)', page)) == {"data:"}
    assert page.count("<script>") == 1 and "script-src 'sha256-" in page
    again = command("gallery", sets, "--output", tmp_path / "page.html")
    assert again.code == 2 and "nothing is overwritten" in again.err


def test_sets_of_one_source_stand_together_the_most_accurate_first(sets: Path) -> None:
    (one,) = [tile_of(each) for each in exhibits(str(sets / "toy"))]
    found = [
        one._replace(name=name, source=source, accuracy=accuracy)
        for name, source, accuracy in [("a", "y", 0.1), ("b", "x", 0.2), ("c", "y", 0.9)]
    ]
    page = gallery_page(found, "All")
    assert re.findall(r'data-name="(\w)"', page) == ["b", "c", "a"]


def test_a_folder_without_sets_is_refused(tmp_path: Path) -> None:
    answer = command("gallery", tmp_path, "--output", tmp_path / "page.html")
    assert answer.code == 2 and "no finished dataset lies there" in answer.err


CHROMIUM = shutil.which("chromium")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser")
def test_a_browser_sorts_and_filters(sets: Path, tmp_path: Path) -> None:

    tiles: list[Any] = [tile_of(each) for each in exhibits(str(sets))]
    (tmp_path / "page.html").write_text(gallery_page(tiles, "All"))
    assert CHROMIUM is not None

    def shown(asked: str) -> list[str]:
        page = f"file://{tmp_path}/page.html#{asked}"
        done = subprocess.run(
            [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", page],
            capture_output=True,
            text=True,
            timeout=50,
        )
        found = re.findall(r'<li class="tile" ([^>]*)>', done.stdout)
        return [
            re.findall(r'data-source="(\S+)"', each)[0] for each in found if "hidden" not in each
        ]

    assert shown("") == ["uoft-cs/cifar10", "zoo"]
    assert shown("sort=name") == ["zoo", "uoft-cs/cifar10"]
    assert shown("find=zoo") == ["zoo"]
    assert shown("measured=1") == ["uoft-cs/cifar10"]
