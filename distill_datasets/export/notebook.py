"""A finished dataset as a notebook shows it: picture, results, and the lines that load it."""

import base64
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from distill_datasets.export.folder import read_manifest
from distill_datasets.export.summary import percent
from distill_datasets.training.rows import ROWS


def as_html(folder: Path, results: list[dict[str, Any]]) -> str:
    """One piece of HTML that needs no other file.

    Args:
        folder: a finished dataset.
        results: its rows, as in `results.json`.
    """
    environment = Environment(
        loader=PackageLoader("distill_datasets.export"),
        autoescape=True,
        undefined=StrictUndefined,
    )
    rows = [
        (ROWS[row["from"]].printed, percent(row["accuracy"]), f"{row['pixels']:,}")
        for row in results
    ]
    return environment.get_template("distillation.html.jinja").render(
        title=read_manifest(folder)["name"],
        picture=base64.b64encode((folder / "poster.png").read_bytes()).decode(),
        rows=rows,
        folder=json.dumps(str(folder)),
    )
