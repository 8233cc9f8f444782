"""How often each check finds planted faults, as measured once and shipped with the package."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from distill_datasets.files.artifacts import read_json

MOST_NAMED = 3
TABLE = Path(__file__).parents[2] / "assets" / "audit" / "rates.json"


@cache
def measured_rates() -> dict[str, Any]:
    """The table that `python -m tests.benchmarks.audit` measured, and on what."""
    rates: dict[str, Any] = read_json(TABLE)
    return rates


def power_of(check: str) -> dict[str, str]:
    """How often a check found the faults that it finds best, and accused clean sets, in words."""
    rates = measured_rates()
    counts = {fault: found[check] for fault, found in rates["found"].items() if found.get(check)}
    alarms = counts.pop(rates["clean"], 0)
    best = sorted(counts, key=lambda fault: -counts[fault])[:MOST_NAMED]
    said = {fault: f"{counts[fault]} of {rates['seeds']}" for fault in best}
    if not best:  # nothing that it looks for was planted, or it has found none of it
        return {}
    return said | {rates["clean"]: f"{alarms} of {rates['seeds']}"}
