"""`report` and `compare`: one HTML file that shows sets and what was measured of them.

The page asks for nothing: pictures are `data:` addresses, charts are SVG in its text, there is no
script, and its policy lets a browser load nothing else. Every text of a set is escaped.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from distill_datasets import __version__
from distill_datasets.errors import ArtifactError
from distill_datasets.evaluation.report import further, views
from distill_datasets.evaluation.report.charts import bytes_in_words
from distill_datasets.evaluation.report.comparison import comparison_of, titles
from distill_datasets.evaluation.report.gallery import gallery_of
from distill_datasets.evaluation.report.subject import Subject, find_standard, read_subject
from distill_datasets.files.artifacts import write_text

TEMPLATES = Path(__file__).parent / "templates"


def report(
    targets: Sequence[Path],
    output: Path,
    standards: Mapping[Path, Path] | None = None,
    runs: Path | None = None,
) -> Path:
    """Write a page about one set, or about several side by side.

    Args:
        targets: published folders; of several, the first is what the others are compared with.
        output: the HTML file to make; nothing is overwritten.
        standards: what the standard protocol wrote of a folder, where it has measured it.
        runs: the folder of all runs, where that is looked for otherwise; None looks nowhere.

    Returns:
        The file.

    Raises:
        ArtifactError: a folder or a measurement is not what it should be, or the file is there.
    """
    check_free(output)
    return write_page(read_subjects(targets, standards, runs), output)


def check_free(output: Path) -> None:
    """Find out before any work whether a page may be written.

    Raises:
        ArtifactError: the file is there.
    """
    if output.exists():
        raise ArtifactError(
            f"{output}: there already, and nothing is overwritten; choose another file with "
            "--output or move it away"
        )


def read_subjects(
    targets: Sequence[Path],
    standards: Mapping[Path, Path] | None = None,
    runs: Path | None = None,
) -> list[Subject]:
    """What a page says of each set; the arguments are those of `report`.

    Raises:
        ArtifactError: a folder or a measurement is not what it should be, or sets differ in what
            their targets are.
    """
    if not targets:
        raise ArtifactError("report: got no folder, expected at least one published folder")
    measured = dict(standards or {})
    if runs is not None:
        found = {folder: find_standard(folder, runs) for folder in targets}
        measured = {each: path for each, path in found.items() if path is not None} | measured
    subjects = [read_subject(folder, measured.get(folder)) for folder in targets]
    for folder, subject in zip(targets, subjects, strict=True):
        if subject.task != subjects[0].task:
            raise ArtifactError(
                f"{folder}: its targets are {subject.task}, those of {targets[0]} are "
                f"{subjects[0].task}: {subject.metric} and {subjects[0].metric} cannot be "
                "compared; name sets of one task, or one set alone"
            )
    return subjects


def write_page(subjects: Sequence[Subject], output: Path) -> Path:
    """Write the page about sets that were read.

    Raises:
        ArtifactError: the file is there, or cannot be written.
    """
    check_free(output)
    write_text(output, page(subjects))
    return output


def page(subjects: Sequence[Subject]) -> str:
    """The text of the page."""
    several = len(subjects) > 1
    names = titles(subjects) if several else [subjects[0].name]
    return (
        templates()
        .get_template("page.html.jinja")
        .render(
            title=" · ".join(names),
            subjects=[_parts(subject, name) for subject, name in zip(subjects, names, strict=True)],
            comparison=comparison_of(subjects, names) if several else None,
            bytes_chart=views.bytes_chart(subjects, names) if several else None,
            version=__version__,
        )
    )


def _parts(subject: Subject, name: str) -> dict[str, Any]:
    """Everything that the templates read of a set."""
    return {
        "name": name,
        "size": bytes_in_words(subject.manifest["budget"]["bytes"]["needed"]),
        "warning": _warning(subject),
        "subject": subject,
        "main": subject.main,
        "best": subject.best_real,
        "statement": subject.statement,
        "missing": subject.standard.get("missing") or [],
        "facts": views.facts_of(subject),
        "gallery": gallery_of(subject),
        "strips": views.accuracy_strips(subject),
        "differences": [
            strip
            for regime in views.regimes_of(subject)
            if (strip := views.difference_strip(subject, regime)) is not None
        ],
        "bytes_chart": views.bytes_chart([subject]),
        "steps_chart": views.steps_chart(subject),
        "networks": views.networks_strip(subject),
        "recall": views.recall_strip(subject),
        "confusion": views.confusion_of(subject),
        "attribution": further.attribution_of(subject),
        "robustness": further.robustness_of(subject),
        "transfer": further.transfer_of(subject),
        "costs": further.costs_of(subject),
        "recipe": (subject.folder / "recipe.yaml").read_text(encoding="utf-8"),
    }


def _warning(subject: Subject) -> str | None:
    """What has to be said before anything else."""
    attack = subject.manifest.get("attack")
    if not attack:
        return None
    attacked, target = (subject.class_names[label] for label in attack)
    return (
        f"This set was made to attack: a network trained on it is meant to take {attacked} for "
        f"{target}."
    )


@cache
def templates() -> jinja2.Environment:
    """The templates of all pages, with the filters that they use."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES, encoding="utf-8"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": views.percent,
        "interval": views.with_interval,
        "place": _place,
        "grouped": lambda number: f"{number:,}",
        "pairs": lambda points: list(itertools.pairwise(points)),
    }
    return environment


def _place(share: float) -> str:
    """A share of a chart's width as SVG and CSS write it."""
    return f"{100 * share:.2f}%"
