"""The card of a published dataset: YAML for the Hub, text for a reader, and programs that run.

What is said stands in `templates/`, what is computed here. The card is written before anybody knows
where it will be published, so it names a placeholder that `publish` replaces. Whatever grows with
the number of files or of runs stays in the manifest: the Hub refuses large cards.

`DatasetCard` of `huggingface_hub` renders templates too, but dumps the front matter in another
layout, which would change the bytes of cards that are published, and knows no template that
includes another: so jinja2 is called here, and the front matter is `to_yaml`'s.

Shape suffixes: N examples, G cells of a label poster, K classes.
"""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import jinja2
import torch
from torch import Tensor

from distill_datasets.export.configs import configs
from distill_datasets.export.content import (
    CLASSIFIER,
    SIBLING,
    STARTS,
    Content,
    ViewLabels,
    per_class,
)
from distill_datasets.export.licenses import license_fields, license_names
from distill_datasets.export.summary import (
    at_chance,
    further,
    heading,
    percent,
    statement,
    transfer,
    tuned,
    wider,
    worst,
)
from distill_datasets.files.parquet import Feature
from distill_datasets.files.yaml_text import to_yaml
from distill_datasets.media.image import png, to_bytes
from distill_datasets.training.linear_probe import START_STD
from distill_datasets.training.loop import WARMUP_START, steps_of
from distill_datasets.training.rows import ROWS
from distill_datasets.types import Task
from distill_datasets.views.augment import WARPS

PLACEHOLDER = "your-name/your-dataset"

_TEMPLATES = Path(__file__).parent / "templates"
_LONGEST_RECIPE = 8000
_SIZES = [(1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")]
_CATEGORIES: dict[Task, str] = {
    "classes": "image-classification",
    "labels": "image-classification",
    "values": "image-feature-extraction",
}
_XAVIER = ("lenet",)  # networks whose fresh weights are not torch's own


def card(
    content: Content,
    results: list[dict[str, Any]] | None,
    budget: dict[str, Any],
    rows_hash: str,
) -> str:
    """The text of `README.md`.

    Args:
        content: what is published.
        results: one row per evaluation, or None before the first.
        budget: pixels, values and bytes, as in the manifest.
        rows_hash: of the files of all configurations.
    """
    provenance, recipe = content.provenance, to_yaml(content.written or content.recipe)
    short = len(recipe) < _LONGEST_RECIPE and "```" not in recipe
    return _rendered(
        "card.md",
        content=content,
        budget=budget,
        per_class=per_class(budget, content.task),
        front_matter=to_yaml(front_matter(content, rows_hash)),
        attack=[repr(content.class_names[label]) for label in content.attack or ()],
        source=_source(provenance),
        license=", ".join(license_names(provenance)) or "not stated",
        where={key: provenance.get(key) for key in ("config", "revision")},
        recipe=recipe.rstrip() if short else None,
        own=next((row for row in results or [] if row["from"] == "default"), None),
        citations=list(_citations(content)),
        training=training(content, PLACEHOLDER).rstrip() if content.student else None,
        repo=PLACEHOLDER,
        follows=content.student.get("follows", {}),
        draws=_draws(content),
        statement=statement(results, hard=_has_hard_labels(content)) if results else None,
        as_png=sum(len(png(to_bytes(image))) for image in content.originals)
        if content.label_cells
        else None,
        rebuilds=_is_cut_from_one_poster(content),
        labels_follow=_how_labels_follow(content),
        sibling=SIBLING,
        classifier=CLASSIFIER,
        **_results(content, results or []),
    )


def _has_hard_labels(content: Content) -> bool:
    """Whether every label is a class alone."""
    return bool((content.targets_NK.max(dim=1).values >= 1).all())


def labels_card(content: Content, labels: ViewLabels) -> str:
    """The text of `README.md` in the folder of label shards."""
    meta = {
        **license_fields(content.provenance),
        "pretty_name": f"{content.name}: labels of views",
        "tags": ["dataset-distillation", "distill_datasets", "soft-labels", "webdataset"],
    }
    return _rendered("labels.md", content=content, labels=labels.labels, front_matter=to_yaml(meta))


def training(content: Content, repo: str) -> str:
    """Python that trains a network as the students that were measured.

    Args:
        content: what is published.
        repo: what `load_dataset` is given.
    """
    student, layers = content.student, content.layers
    follows, moves = student.get("follows", {}), student.get("augment", {})
    count, batch = len(content.images_NCHW), student["batch"]
    shared = {
        "repo": repo,
        "channels": content.images_NCHW.shape[1],
        "size": list(content.images_NCHW.shape[2:]),
        "classes": len(content.class_names),
    }
    if content.relabel is not None:
        return _rendered(
            "views.py", **shared, layers=[], **_training_on_views(content, content.relabel)
        )
    per_pass = steps_of(1, count, batch)
    steps = student["steps"] or student["epochs"] * per_pass
    operations = moves.get("operations", [])
    return _rendered(
        "train.py",
        **shared,
        layers=layers,
        backbone=student["network"].get("backbone"),
        start_std=START_STD,
        mean=_floats(content.mean),
        std=_floats(content.std),
        follows=follows,
        xavier=student["network"]["name"] in _XAVIER and "start" not in follows,
        starts=STARTS if "start" in follows and layers else None,
        rule=student["optimizer"],
        steps=steps,
        batch=batch,
        per_pass=per_pass,
        examples=count,
        pace=pace_in_python(student, steps, per_pass),
        smoothing=student.get("label_smoothing"),
        task=content.task,
        scale=content.provenance.get("targets"),
        ema=student.get("ema"),
        moves=moves,
        operations=operations,
        warps=[name for name in operations if name in WARPS],
    )


def pace_in_python(student: dict[str, Any], steps: int, per_pass: int) -> str | None:
    """The factor on the step size as an expression of `step`; None where it is always one."""
    schedule, eta = student.get("schedule"), student.get("smoothing")
    rising = student.get("warmup_epochs", 0) * per_pass
    at = f"(step - step % {per_pass})" if eta is not None else "step"
    since, left = (f"({at} - {rising})" if rising else at), steps - rising
    factor = "1"
    if schedule == "cosine":
        factor = f"(1 + math.cos(math.pi * {since} / {(eta or 1) * left:g})) / 2"
    elif schedule in ("step", "published_step"):
        factor = f"(0.1 if 2 * {since} >= {left} else 1)"
    if rising:
        up = f"{WARMUP_START} + {1 - WARMUP_START} * {at} / {rising}"
        return f"({up} if {at} < {rising} else {factor})"
    return None if factor == "1" else factor


def _training_on_views(content: Content, labels: ViewLabels) -> dict[str, Any]:
    """What `views.py` reads: it trains a network once through all labels of views."""
    facts, student = labels.facts, content.student
    pooled = facts.get("keep", 1.0) < 1
    batch = min(student.get("batch", 100), len(content.images_NCHW))
    return {
        "views": labels,
        "facts": facts,
        "student": student,
        "mean": content.mean,
        "std": content.std,
        "sibling": SIBLING,
        "classifier": CLASSIFIER,
        "pooled": pooled,
        "rule": student.get("optimizer", {"name": "sgd", "lr": 0.01, "momentum": 0.9}),
        "cosine": student.get("schedule") == "cosine",
        "batch": batch,
        # students leave out what is left of a pass; a pool has whole batches
        "least": min(2, batch) if pooled else batch,
    }


def result_lines(
    results: list[dict[str, Any]], student: dict[str, Any], relabel: object
) -> list[str]:
    """The lines of the tables that a card states results in."""
    content: Any = SimpleNamespace(student=student, relabel=relabel)
    text = _rendered("results.md", content=content, **_results(content, results))
    return [line for line in text.splitlines() if line.startswith("|")]


def _results(content: Content, results: list[dict[str, Any]]) -> dict[str, Any]:
    """What the table of results and the note below it read."""
    student, names = content.student, {row["from"] for row in results}
    paced = "step_sizes" in student.get("follows", {})
    return {
        "results": results,
        "metric": heading(results),
        "further": further(results),
        "at_chance": at_chance(results),
        "tuned": any("tuned" in row for row in results),
        "grouped": any("worst_group" in row for row in results),
        "transfer": transfer(results),
        "wider": wider(results),
        "worst": [(ROWS[row["from"]].on_card, worst(row)) for row in results if "worst" in row],
        "trained_on": {name: ROWS[name].on_card for name in names & ROWS.keys()},
        "attacked": any("taken_for_target" in row for row in results),
        "protocols": sorted({str(row.get("protocol")) for row in results}),
        "paced": paced,
        "falls": paced and student.get("schedule") == "published_step",
        "unlabeled": any(ROWS[name].classes_alone for name in names & ROWS.keys()),
    }


def front_matter(content: Content, rows_hash: str) -> dict[str, Any]:
    """What the Hub and `datasets` read: license, tags, configurations and their features.

    `datasets` keeps one copy of all local folders of one name whose configurations are alike: the
    hash of the rows in their description tells them apart.
    """
    parts = configs(content, "", None)
    rows = len(content.images_NCHW)
    source = content.provenance["dataset"]
    on_hub = content.provenance.get("card_url") and "/" in source
    words = [re.sub(r"[^a-z0-9]+", "-", word) for word in content.method.lower().split(", ")]
    stated = {"license": content.license} if content.license else {}
    return {
        **(stated or license_fields(content.provenance)),
        "pretty_name": f"{content.name} ({content.method})",
        "task_categories": [_CATEGORIES[content.task]],
        "size_categories": [next((name for most, name in _SIZES if rows < most), "n>1M")],
        **({"source_datasets": [source]} if on_hub else {}),
        "annotations_creators": ["machine-generated"],
        "tags": ["dataset-distillation", "distill_datasets", "synthetic", "soft-labels", *words],
        **({"task_ids": ["multi-label-image-classification"]} if content.task == "labels" else {}),
        "configs": [
            {
                "config_name": part.name,
                "data_files": [{"split": "train", "path": f"{part.folder}/train-*"}],
                **({"default": True} if part.name == "default" else {}),
                "description": f"rows {rows_hash}",
            }
            for part in parts
        ],
        "dataset_info": [
            {
                "config_name": part.name,
                "features": [_yaml_feature(name, each) for name, each in part.features.items()],
            }
            for part in parts
        ],
    }


def _yaml_feature(name: str, feature: Feature) -> dict[str, Any]:
    """A feature as cards spell it; `sequence`, which unlike `list` every version reads."""
    if feature["_type"] == "Sequence" and feature["feature"]["_type"] == "ClassLabel":
        return {"name": name, "sequence": _yaml_feature(name, feature["feature"])["dtype"]}
    if feature["_type"] == "Sequence":
        length = {"length": feature["length"]} if "length" in feature else {}
        return {"name": name, "sequence": feature["feature"]["dtype"], **length}
    if feature["_type"] == "ClassLabel":
        names = {str(index): each for index, each in enumerate(feature["names"])}
        return {"name": name, "dtype": {"class_label": {"names": names}}}
    return {"name": name, "dtype": feature.get("dtype", feature["_type"].lower())}


def _draws(content: Content) -> dict[str, str]:
    """How the lines of `draw.py` read each of the numbers that the examples are drawn from."""
    lines = {}
    for name, of in content.numbers.items():
        kind = "uint8" if of.values.dtype == torch.uint8 else "float16"
        lines[name] = f'rows["{name}"]["{kind}"].reshape(rows["{name}"]["shape"])'
        if of.scales_2D is not None:
            lines[name] += "".join(
                f' {sign} rows["{name}"]["scales"].reshape(2, -1)[{place}]'
                for place, sign in enumerate("*+")
            )
        elif kind == "uint8":
            lines[name] += " / 255"
    return lines


def _is_cut_from_one_poster(content: Content) -> bool:
    """Whether the lines of `rebuild.py` can read how the rows follow from the poster."""
    cut = {"crop", "corners_yx"} <= content.geometry.keys()
    return len(content.label_cells) == 1 and cut


def _how_labels_follow(content: Content) -> Literal["rows", "areas"] | None:
    """How the published labels follow from the label poster, in the lines of `rebuild.py`.

    It has a row for each crop, or for each cell, and a label is the mean of the cells weighted by
    visible area; None where neither gives the labels.
    """
    if not _is_cut_from_one_poster(content):
        return None
    table_GK, labels_NK = content.label_cells[0].float().cpu(), content.targets_NK.float().cpu()
    if _close(table_GK, labels_NK):
        return "rows"
    if len(content.geometry.get("territories", [])) != len(table_GK):
        return None
    corner_N2 = torch.tensor(content.geometry["corners_yx"])
    crop_N4 = torch.cat([corner_N2, corner_N2 + torch.tensor(content.geometry["crop"])], dim=1)
    cell_G4 = torch.tensor(content.geometry["territories"])
    first_NG2 = torch.maximum(crop_N4[:, None, :2], cell_G4[None, :, :2])
    last_NG2 = torch.minimum(crop_N4[:, None, 2:], cell_G4[None, :, 2:])
    area_NG = (last_NG2 - first_NG2).clamp(min=0).prod(dim=2).float()
    mixed_NK: Tensor = area_NG @ table_GK
    return "areas" if _close(mixed_NK / mixed_NK.sum(dim=1, keepdim=True), labels_NK) else None


def _close(found_NK: Tensor, wanted_NK: Tensor) -> bool:
    same = found_NK.shape == wanted_NK.shape
    return same and bool(torch.allclose(found_NK, wanted_NK, atol=1e-4))


def _source(provenance: dict[str, Any]) -> str:
    name, link = provenance["dataset"], provenance.get("card_url")
    return f"[{name}]({link})" if link else f"`{name}`"


def _linked(paper: str) -> str:
    """A paper as Markdown: an address, or words that may name one on arXiv."""
    if paper.startswith("https://"):
        return f"<{paper}>"
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[\g<0>](https://arxiv.org/abs/\1)", paper)


def _citations(content: Content) -> Iterator[tuple[str, dict[str, str]]]:
    """BibTeX of the method's papers and of the source: a key and its fields each."""
    seen = set[str]()
    for paper in content.papers:
        found = re.search(r"arXiv:(\d{4}\.\d{4,5})", paper)
        if found is None or found[1] in seen:
            continue
        seen.add(found[1])
        yield (
            f"arxiv-{found[1]}",
            {
                "title": _plain(paper.partition(",")[0]),
                "eprint": found[1],
                "archivePrefix": "arXiv",
                "url": f"https://arxiv.org/abs/{found[1]}",
            },
        )
    source = content.provenance
    if source.get("card_url"):
        revision = {"note": f"revision {source['revision']}"} if source.get("revision") else {}
        address = {"title": _plain(source["dataset"]), "url": source["card_url"]}
        yield "source", address | revision


def _plain(words: str) -> str:
    """Words without what has a meaning in BibTeX."""
    return re.sub(r"[{}\\\s]+", " ", words).strip()


def _facts(facts: dict[str, Any]) -> list[tuple[str, Any]]:
    """The plain values in words; lists and tables stay in the manifest."""
    return [
        (name.replace("_", " "), value)
        for name, value in facts.items()
        if isinstance(value, str | int | float)
    ]


def _cell(value: object) -> str:
    """A value in a table."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|")


def _floats(values: list[float]) -> str:
    return "[" + ", ".join(f"{value:.9g}" for value in values) + "]"


@cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES, encoding="utf-8"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,  # a line of nothing but tags is no line of the card
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "grouped": lambda number: f"{number:,}",
        "percent": percent,
        "tuned": tuned,
        "cell": _cell,
        "facts": _facts,
        "linked": _linked,
    }
    return environment


def _rendered(name: str, **values: Any) -> str:  # noqa: ANN401
    return _templates().get_template(f"{name}.jinja").render(**values)
