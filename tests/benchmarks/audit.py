"""How often the audit finds planted faults: `python -m tests.benchmarks.audit`.

Sets of random real images, with one fault each and without any, are audited; a table counts in how
many of the seeds each check found something. What is finished is kept in `--folder`, and the same
command goes on from there. The table that is shipped is `distill_datasets/assets/audit/rates.json`.
"""

import argparse
import dataclasses
import datetime
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent))

from support.planted import (
    BLENDED,
    CLEAN,
    IN_FILES,
    IN_IMAGES,
    Material,
    blended_set,
    clean_set,
    copied,
    member_set,
    plant_rng,
    write,
)

from distill_datasets.data.decoding import Split
from distill_datasets.data.normalization import Normalization
from distill_datasets.data.real import RealData
from distill_datasets.data.source import Source, open_source
from distill_datasets.evaluation.audit.audit import audit
from distill_datasets.evaluation.audit.findings import CHECKS, TIERS
from distill_datasets.evaluation.audit.networks import Effort
from distill_datasets.evaluation.audit.rates import TABLE
from distill_datasets.files.artifacts import intact, read_record, write_json, write_record
from distill_datasets.runtime.processes import Run, Runtime
from distill_datasets.runtime.progress import progress_bar
from distill_datasets.stages.source import load_source

COPY, MEMBERS = "one training image among means of two", "random training images"


def material_of(real: RealData, train: int, test: int, pool: int) -> Material:
    """The first images as the audited source, the next ones as the pool."""
    images_NCHW, labels_N = real.train
    rows = Split(images_NCHW[:train], labels_N[:train])
    further = Split(images_NCHW[train : train + pool], labels_N[train : train + pool])
    tested = Split(real.test.images_NCHW[:test], real.test.labels_N[:test])
    normalization = Normalization.fit(rows, "mean_std", 0.1)
    audited = dataclasses.replace(real, train=rows, test=tested, normalization=normalization)
    return Material(audited, further)


def build(folder: Path, fault: str, material: Material, per_class: int, seed: int) -> None:
    """The published folder of a set with a fault, or without one."""
    rng = plant_rng(seed, fault)
    if fault == MEMBERS:
        planted = member_set(material, per_class, rng)
    elif fault in (BLENDED, COPY):
        planted = blended_set(material, per_class, rng)
    else:
        planted = clean_set(material, per_class, rng)
    if fault == COPY:
        planted = copied(planted, material, rng)
    if fault in IN_IMAGES:
        planted = IN_IMAGES[fault](planted, material, rng)
    write(folder, planted, material.real)
    if fault in IN_FILES:
        IN_FILES[fault](folder, rng)


def audited(
    fault: str, material: Material, run: Run, per_class: int, seed: int, effort: Effort
) -> dict[str, Any]:
    """What was found in a set; taken from its file where an earlier run has audited it."""
    folder = run.folder / f"set-{list(FAULTS).index(fault):02d}-{seed:02d}"
    path = folder.with_suffix(".json")
    kept = intact(path, read_record)
    if kept is not None:
        return kept
    if not folder.exists():
        build(folder, fault, material, per_class, seed)
    tiers = ["T0"] if fault in IN_FILES else ["T0", "T1"] if fault in SHALLOW else TIERS
    found = audit(folder, material.real, run, tiers, effort=effort)
    said = {each.check.name: each.as_json() for each in found}
    write_record(path, said)
    return said


SHALLOW = {BLENDED, COPY, *(fault for fault in IN_IMAGES if "test images" in fault)}
"""Faults of pixels alone, on whose sets nothing is trained."""
FAULTS = [CLEAN, BLENDED, *IN_IMAGES, COPY, MEMBERS, *IN_FILES]


def table_of(found: dict[str, dict[str, int]], seeds: int) -> Table:
    """Faults by checks; a check that found nothing anywhere is left out."""
    shown = [check for check in CHECKS if any(counts.get(check) for counts in found.values())]
    table = Table(f"found in, of {seeds}", *shown, box=None, header_style="bold")
    for fault, counts in found.items():
        table.add_row(fault, *(str(counts[check]) if check in counts else "" for check in shown))
    return table


def main(arguments: list[str] | None = None) -> None:
    """Plant, audit, print the table and write it."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.audit", description=__doc__)
    parser.add_argument("--dataset", default="ylecun/mnist", help="a Hub id or a path")
    parser.add_argument("--resolution", type=int, default=8)
    parser.add_argument("--train", type=int, default=5000, help="images of the audited source")
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--pool", type=int, default=10000, help="images that clean sets show")
    parser.add_argument("--per-class", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--calibrations", type=int, default=1, help="seeds of the audit itself")
    parser.add_argument("--folder", type=Path, required=True, help="what is finished is kept here")
    parser.add_argument("--output", type=Path, default=TABLE)
    asked = parser.parse_args(arguments)
    runtime, effort = Runtime(), Effort()
    with runtime.reproducible():
        section = Source(dataset=asked.dataset, resolution=asked.resolution)
        source = load_source(open_source(section), Run(0, asked.folder, runtime))
        material = material_of(source.real, asked.train, asked.test, asked.pool)
        found: dict[str, dict[str, int]] = {fault: {} for fault in FAULTS}
        with progress_bar("audits", asked.seeds * len(FAULTS), shown=True) as bar:
            for seed in range(asked.seeds):
                run = Run(seed % asked.calibrations, asked.folder, runtime, shown=False)
                for fault in FAULTS:
                    said = audited(fault, material, run, asked.per_class, seed, effort)
                    for check, finding in said.items():
                        if finding["state"] != "not looked at":
                            counts = found[fault]
                            counts[check] = counts.get(check, 0) + (finding["state"] == "found")
                    bar.advance(1)
    Console(width=None if sys.stdout.isatty() else 220).print(table_of(found, asked.seeds))
    write_json(
        asked.output,
        {
            "on": f"{asked.dataset}, {asked.resolution} px, {asked.per_class} images per class",
            "date": datetime.date.today().isoformat(),
            "torch": torch.__version__,
            "seeds": asked.seeds,
            "effort": dataclasses.asdict(effort),
            "clean": CLEAN,
            "found": found,
        },
    )


if __name__ == "__main__":
    main()
