"""The table of how often the audit finds planted faults, at a small scale: minutes."""

import json
import sys
from pathlib import Path

import pytest
from support.planted import BLENDED, CLEAN, IN_FILES, IN_IMAGES

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.audit import COPY, MEMBERS, main


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_plain_faults_are_found_in_every_set_and_clean_sets_are_not_accused_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (
        f"--dataset embedded:uci-digits --train 700 --test 200 --pool 700 --per-class 30 --seeds 2 "
        f"--folder {tmp_path / 'runs'} --output {tmp_path / 'rates.json'}"
    )
    main(arguments.split())
    rates = json.loads((tmp_path / "rates.json").read_text(encoding="utf-8"))
    found = rates["found"]
    assert found.keys() == {CLEAN, BLENDED, COPY, MEMBERS, *IN_FILES, *IN_IMAGES}
    plain = {
        "5 % test images": "test images",
        "one class mislabeled": "class disagreement",
        COPY: "training images",
        MEMBERS: "training images",
        "truncated file": "files",
        "replaced image": "files",
        "labels that are no numbers": "labels",
    }
    assert {fault: found[fault][check] for fault, check in plain.items()} == dict.fromkeys(plain, 2)
    assert all(found[clean][check] == 0 for clean in (CLEAN, BLENDED) for check in plain.values())
    assert "one class mislabeled" in capsys.readouterr().out
