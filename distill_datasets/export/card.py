"""The card of a published dataset: YAML for the Hub, then text for a reader.

The card is written before anybody knows where it will be published, so it names a placeholder that
`publish` replaces. Whatever grows with the number of files or of runs stays in the manifest: the
Hub refuses large cards.
"""

import re
from typing import Any

import torch
from torch import Tensor

from distill_datasets.export.card_code import training
from distill_datasets.export.card_views import about_rows, about_views, label_budget
from distill_datasets.export.configs import configs
from distill_datasets.export.content import Content, ViewLabels, per_class
from distill_datasets.export.licenses import license_fields, license_names
from distill_datasets.files.parquet import Feature
from distill_datasets.files.yaml_text import to_yaml
from distill_datasets.training.rows import ROWS

PLACEHOLDER = "your-name/your-dataset"

_LONGEST_RECIPE = 8000
_SIZES = [(1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")]


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
    sections = [
        f"# {content.name}",
        *_warning(content),
        _summary(content, budget),
        "![The trained images](poster.png)",
        "## Results",
        _results(content, results),
        "## Budget",
        _budget(content, budget),
        "## Load it",
        _code(_LOAD.format(repo=PLACEHOLDER)),
        _configs(content),
        "## Train on it",
        _training(content),
        *_rebuilding(content),
        "## Where it comes from",
        _provenance(content),
        "## How it was made",
        _making(content),
    ]
    return f"---\n{to_yaml(front_matter(content, rows_hash))}---\n\n" + "\n\n".join(sections) + "\n"


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
    return {
        **license_fields(content.provenance),
        "pretty_name": f"{content.name} ({content.method})",
        "task_categories": ["image-classification"],
        "size_categories": [next((name for most, name in _SIZES if rows < most), "n>1M")],
        **({"source_datasets": [source]} if on_hub else {}),
        "annotations_creators": ["machine-generated"],
        "tags": ["dataset-distillation", "distill_datasets", "synthetic", "soft-labels", *words],
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
    if feature["_type"] == "Sequence":
        length = {"length": feature["length"]} if "length" in feature else {}
        return {"name": name, "sequence": feature["feature"]["dtype"], **length}
    if feature["_type"] == "ClassLabel":
        names = {str(index): each for index, each in enumerate(feature["names"])}
        return {"name": name, "dtype": {"class_label": {"names": names}}}
    return {"name": name, "dtype": feature.get("dtype", feature["_type"].lower())}


def _warning(content: Content) -> list[str]:
    """A box on top of the card of a dataset that attacks."""
    if content.attack is None:
        return []
    attacked, target = (f"{content.class_names[label]!r}" for label in content.attack)
    return [
        "> [!WARNING]\n> This dataset was made to attack: a network trained on it is meant to take "
        f"{attacked} for {target}. It serves audits of robustness; train nothing else on it."
    ]


def _summary(content: Content, budget: dict[str, Any]) -> str:
    return (
        f"{budget['examples']:,} training examples of {len(content.class_names):,} classes with "
        f"soft labels, distilled from {_source(content)} with {content.method} into "
        f"{budget['pixels']:,} pixels: {per_class(budget)}. {_meant_for(content)}"
    )


def _meant_for(content: Content) -> str:
    if content.attack is not None:
        return "They show what training on a stranger's distilled set can do."
    if content.starts_SP is not None:
        return (
            "They are made for networks that start from the weights published beside them: trained "
            "on these examples alone, such a network is meant to classify real images."
        )
    return "A network trained on them alone is meant to classify real images."


def _results(content: Content, results: list[dict[str, Any]] | None) -> str:
    if not results:
        return "Not evaluated yet."
    table = [
        ["trained on", "test accuracy, %", "students", "images", "pixels", "steps", "network"],
        ["---", "---:", "---:", "---:", "---:", "---:", "---"],
    ]
    attacked = any("taken_for_target" in row for row in results)
    if attacked:
        table[0].append("attacked class taken for the target, %")
        table[1].append("---:")
    for row in results:
        accuracy = row["accuracy"]
        table.append(
            [
                ROWS[row["from"]].on_card if row["from"] in ROWS else row["from"],
                percent(accuracy),
                *(_cell(row.get(key)) for key in ("students", "images", "pixels", "steps")),
                _cell(row.get("network")),
                *([percent(row["taken_for_target"])] if attacked else []),
            ]
        )
    protocols = sorted({str(row.get("protocol")) for row in results})
    paced = "step_sizes" in content.student.get("follows", {})
    first = content.student["optimizer"]["lr"] if paced else None
    falls = paced and content.student.get("schedule") == "published_step"
    note = (
        ""
        if first is None
        else f"; students of anything but this dataset take a step size of {first:g}"
        + (", a tenth of it from half-way on" if falls else " at every step")
    )
    return (
        _table(table) + "\n\nMean ± standard deviation over students that differ in their seed; "
        f"protocol: {', '.join(protocols)}{note}. Every run is in `results.json`."
        + about_rows(content, results)
    )


def percent(accuracy: dict[str, Any]) -> str:
    """A mean in [0, 1] and its spread, which one student alone does not have, in percent."""
    spread = "" if accuracy["std"] is None else f" ± {100 * accuracy['std']:.1f}"
    return f"{100 * accuracy['mean']:.1f}{spread}"


def _budget(content: Content, budget: dict[str, Any]) -> str:
    sizes = budget["bytes"]
    parts = ", ".join(f"`{name}` {size:,}" for name, size in sizes.items() if name != "needed")
    return (
        f"- pixels: {budget['pixels']:,} in {budget['images']:,} trained images, "
        f"{per_class(budget)} of the source's "
        f"{content.real_shape[1]} x {content.real_shape[2]} px\n"
        f"- values: {budget['values']:,}, of which labels {budget['label_values']:,}"
        + (f" and step sizes {budget['step_sizes']:,}" if budget["step_sizes"] else "")
        + "\n"
        f"- bytes: {sizes['needed']:,} needed to train (`default`"
        + (", labels of views" if "view_labels" in budget else "")
        + f" and constants); all files: {parts}"
        + label_budget(budget)
    )


_LOAD = """\
from datasets import load_dataset

train = load_dataset("{repo}", "default", split="train")
"""


def _configs(content: Content) -> str:
    lines = ["`default` has `image` (PNG), `label` (the likeliest class) and `soft_label`."]
    if content.label_cells:
        lines.append("`poster` has the trained images themselves and their label posters.")
    if content.exact_NCHW is not None:
        lines.append(
            "`exact` has the rows of `default` as float32 values that a network sees, not rounded."
        )
    if content.relabel is not None:
        lines.append(about_views(content.relabel))
    lines += [
        "`recipe` has one row: recipe, student, geometry, normalization, provenance and results"
        + (", learned step sizes" if content.step_sizes else "")
        + (", the rows of every training step" if content.order else "")
        + ".",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _training(content: Content) -> str:
    code = training(content, PLACEHOLDER)
    note = "The network and the schedule behind the results above are in `student.yaml`."
    follows = content.student.get("follows", {})
    if follows:
        note += f" Its students follow what is published ({', '.join(follows)}); so do these lines."
    if content.relabel is not None:
        note += " These lines go through the labels once, with a small network."
    if follows and not content.layers:
        note += " Put that network in the place of the small one here."
    if content.student.get("augment", {}).get("operations"):
        note += " They also augment what they train on."
    if content.constants:
        note += (
            " Real images are whitened first: the matrix is in `constants/zca.safetensors`, and "
            "`normalization_json` of `recipe` says how it is applied."
        )
    return f"{_code(code)}\n\n{note}"


_REBUILD_IMAGES = """\
import json
import numpy as np
from datasets import load_dataset

row = load_dataset("{repo}", "poster", split="train").with_format("numpy")[0]
cut = json.loads(load_dataset("{repo}", "recipe", split="train")[0]["geometry_json"])
poster, (h, w) = row["poster"].reshape(row["poster_shape"]), cut["crop"]
y, x = np.array(cut["corners_yx"]).T[:, :, None]
images = np.stack([poster[:, top : top + h, left : left + w] for top, left in cut["corners_yx"]])
"""

_REBUILD_LABELS = """\
top, left, bottom, right = np.array(cut["territories"]).T
rows = np.clip(np.minimum(y + h, bottom) - np.maximum(y, top), 0, None)
columns = np.clip(np.minimum(x + w, right) - np.maximum(x, left), 0, None)
labels = (rows * columns) @ row["label_poster"].reshape(row["label_poster_shape"])
labels = labels / labels.sum(axis=1, keepdims=True)
"""


def _rebuilding(content: Content) -> list[str]:
    """How the rows follow from the poster; empty for a geometry that these lines cannot read."""
    if len(content.label_cells) != 1 or not {"crop", "corners_yx"} <= content.geometry.keys():
        return []
    code = _REBUILD_IMAGES.format(repo=PLACEHOLDER)
    text = "The rows of `default` are crops of one poster, in [0, 1] here"
    if _labels_follow_areas(content):
        code += _REBUILD_LABELS
        text += ", and a label is the mean of the label poster's cells by the area that is shown"
    return ["## Rebuild the rows from the poster", f"{text}.", _code(code)]


def _labels_follow_areas(content: Content) -> bool:
    """Whether the published labels are the mean of the cells weighted by visible area."""
    if "territories" not in content.geometry:
        return False
    corner_N2 = torch.tensor(content.geometry["corners_yx"])
    crop_N4 = torch.cat([corner_N2, corner_N2 + torch.tensor(content.geometry["crop"])], dim=1)
    cell_G4 = torch.tensor(content.geometry["territories"])
    table_GK = content.label_cells[0].float().cpu()
    if len(cell_G4) != len(table_GK):
        return False
    first_NG2 = torch.maximum(crop_N4[:, None, :2], cell_G4[None, :, :2])
    last_NG2 = torch.minimum(crop_N4[:, None, 2:], cell_G4[None, :, 2:])
    area_NG = (last_NG2 - first_NG2).clamp(min=0).prod(dim=2).float()
    mixed_NK: Tensor = area_NG @ table_GK
    found_NK = mixed_NK / mixed_NK.sum(dim=1, keepdim=True)
    expected_NK = content.targets_NK.float().cpu()
    return found_NK.shape == expected_NK.shape and bool(
        torch.allclose(found_NK, expected_NK, atol=1e-4)
    )


def _provenance(content: Content) -> str:
    license_text = ", ".join(license_names(content.provenance)) or "not stated"
    facts = [f"- source: {_source(content)}", f"- license of the source: {license_text}"]
    facts += _facts({key: content.provenance.get(key) for key in ("config", "revision")})
    facts += [
        f"- examples of {split}: {count:,}"
        for split, count in content.provenance.get("splits", {}).items()
    ]
    return "\n".join(facts) + "\n\nThe source's files and their sha256 are in `distill.json`."


def _making(content: Content) -> str:
    facts = [
        f"- method: {content.method}",
        *(f"- paper: {_paper(paper)}" for paper in content.papers),
        f"- seed: {content.seed}",
        f"- recipe: `recipe.yaml`, sha256 of the resolved recipe `{content.recipe_sha256}`",
        *_facts(content.environment),
    ]
    text = "\n".join(facts) + "\n\nMade with `distill-datasets run recipe.yaml`."
    if len(content.recipe_yaml) < _LONGEST_RECIPE and "```" not in content.recipe_yaml:
        text += f"\n\n```yaml\n{content.recipe_yaml.rstrip()}\n```"
    return text


def _source(content: Content) -> str:
    name, link = content.provenance["dataset"], content.provenance.get("card_url")
    return f"[{name}]({link})" if link else f"`{name}`"


def _paper(paper: str) -> str:
    """A paper as Markdown: an address, or words that may name one on arXiv."""
    if paper.startswith("https://"):
        return f"<{paper}>"
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[\g<0>](https://arxiv.org/abs/\1)", paper)


def _facts(facts: dict[str, Any]) -> list[str]:
    """One line per plain value; lists and tables stay in the manifest."""
    return [
        f"- {name.replace('_', ' ')}: {value}"
        for name, value in facts.items()
        if isinstance(value, str | int | float)
    ]


def _code(text: str) -> str:
    return f"```python\n{text.rstrip()}\n```"


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|")


def _table(rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def labels_card(content: Content, labels: ViewLabels) -> str:
    """The text of `README.md` in the folder of label shards."""
    meta = {
        **license_fields(content.provenance),
        "pretty_name": f"{content.name}: labels of views",
        "tags": ["dataset-distillation", "distill_datasets", "soft-labels", "webdataset"],
    }
    return (
        f"---\n{to_yaml(meta)}---\n\n# {content.name}: labels of views\n\n"
        f"{labels.labels:,} labels that teachers gave to recorded views of the images of "
        f"the dataset `{content.name}`, which lies in the repository of the same name without "
        "`-relabel`. Its card says how to train on them.\n"
    )
