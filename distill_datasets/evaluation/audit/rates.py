"""How often each check finds planted faults, as measured once and shipped with the package."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from distill_datasets.files.artifacts import read_json

TABLE = Path(__file__).parents[2] / "assets" / "audit" / "rates.json"


@cache
def measured_rates() -> dict[str, Any]:
    """The table that `python -m tests.benchmarks.audit` measured, and on what."""
    rates: dict[str, Any] = read_json(TABLE)
    return rates


def power_of(check: str) -> dict[str, str]:
    """Every planted fault that a check found, and the clean sets that it accused, in words."""
    rates = measured_rates()
    return {
        fault: f"{found[check]} of {rates['seeds']}"
        for fault, found in rates["found"].items()
        if found.get(check) or fault == rates["clean"]
        if check in found
    }
