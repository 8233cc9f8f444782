"""Cards of labels of views: their lines render what was labeled, and train on the labels."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from support import TESTS
from support.relabel_problem import KL, SHAPE, STUDENT, content_of
from test_card import examples, run, text_of

from distill_datasets.export.content import sibling_of
from distill_datasets.export.folder import write_dataset

CHECK = """
import torch
from support.relabel_problem import SPACE, images
from distill_datasets.soft_labels.records import open_shards, open_table
from distill_datasets.export.reading import load_rows
from distill_datasets.soft_labels.codes import published_code
from distill_datasets.views.recorded import replay
train = scopes[1]
block = next(train["blocks"]())
view = {name: torch.as_tensor(column) for name, column in block.items()}
seen = torch.stack([train["picture"]({name: view[name][i] for name in view}) for i in range(9)])
views, columns = RECORDS
if not POOL:
    expected = replay(images(), views.at(slice(0, 9)), SPACE)
    torch.testing.assert_close(seen, expected, atol=2e-5, rtol=1e-4)
lengths = {name: column.shape[1] for name, column in columns.items() if column.ndim == 2}
code = published_code(lengths, 5, train.get("classifier", {}))
assert train["loss"].isfinite() and train["done"] > 0
assert train["teacher"].shape == train["logits"].shape
shown = train["said"]
last = {name: torch.as_tensor(shown[name]) for name in code.columns}
rows = train["batch"]
torch.testing.assert_close(train["teacher"], code.decode(last)[rows], atol=1e-4, rtol=1e-4)
"""


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"parquet_below_bytes": 0, "mix": "mixup"},
        {"store_as": "features", "crop": None, "pad": 2},
        {"store_as": "top_k", "top_k": 2, "tiles": 2},
        {"keep": 0.5, "batch": 10},
    ],
)
def test_lines_of_the_card_render_and_train_as_the_students_that_were_measured(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    content = dataclasses.replace(
        content_of(tmp_path, **fields), student=STUDENT.model_dump(mode="json")
    )
    write_dataset(tmp_path / "data", content, None)
    folder, shards = tmp_path / "data", "parquet_below_bytes" in fields
    opened = (
        f"open_shards(Path({str(sibling_of(folder))!r}), 40).rows(0, 40)"
        if shards
        else f"open_table(load_rows(Path({str(folder)!r}), 'relabel').data.table, 40).rows(0, 20)"
    )
    check = f"import sys; sys.path.insert(0, {str(TESTS)!r})\n"
    check += "from pathlib import Path\n"
    check += CHECK.replace("RECORDS", opened).replace("POOL", str("keep" in fields))
    run([*examples(folder), check], tmp_path)


def test_the_card_says_what_labels_take_and_what_rows_mean(tmp_path: Path) -> None:
    content = content_of(tmp_path)
    runs = [{"seed": seed, "accuracy": 0.49 + 0.02 * seed} for seed in range(2)]
    measured = {"accuracy": {"mean": 0.5, "std": 0.01}, "runs": runs, "protocol": "last-step"}
    measured |= {"students": 2, "network": "convnet(depth=3)", "steps": 12}
    rows = [
        {"from": name, **measured}
        for name in ("default", "hard", "random_real", "random_real_hard", "teacher")
    ]
    write_dataset(tmp_path / "data", content, rows)
    text = (tmp_path / "data" / "README.md").read_text(encoding="utf-8")
    label_bytes = 2 * SHAPE.k
    assert content.relabel is not None
    each = content.relabel.bytes / 80
    assert each > label_bytes
    assert f"labels of views: 80 of {each} bytes each" in text
    for name in ("labels of classes alone", "the teachers as they are", "views are drawn anew"):
        assert name in text
    assert "`exact` has" not in text and "`relabel` has recorded views" in text


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        (KL, "(teacher / 4.0).softmax(1)"),
        ({**KL, "scale_by_temperature": True}, "4.0 ** 2 * F.kl_div"),
        ({"loss": "mse", "hard_weight": 0.1}, "0.1 * F.cross_entropy"),
        ({"loss": "soft"}, "F.cross_entropy(logits, teacher.softmax(1))"),
        ({"optimizer": {"name": "adamw", "lr": 0.002}}, "AdamW"),
        ({"hard_passes": {"first": 0, "until": 1}}, "mixed, label_smoothing=0.8)"),
    ],
)
def test_the_loss_and_the_optimizer_are_the_students(
    tmp_path: Path, fields: dict[str, Any], line: str
) -> None:
    student = type(STUDENT).model_validate(
        {"epochs": 2, "batch": 10, "schedule": "cosine", "smoothing": 2.0, **fields}
    )
    content = dataclasses.replace(content_of(tmp_path), student=student.model_dump(mode="json"))
    text = text_of(content)
    assert line in text and "done / (2.0 * epochs)" in text
