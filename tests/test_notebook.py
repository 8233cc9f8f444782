"""A notebook shows the work and the result, in a kernel of its own."""

import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.timeout(240)  # a kernel imports torch and datasets
CELL = """
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Picture

from distill_datasets import distill

features = Features({"image": Image(), "label": ClassLabel(names=["<b>dark</b>", "light"])})
rows = {
    "image": [Picture.new("L", (8, 8), 9 * row % 100 + 150 * (row % 2)) for row in range(24)],
    "label": [row % 2 for row in range(24)],
}
small = ["distill.steps=3", "distill.networks.network={name: convnet, depth: 1, width: 4}"]
small += ["distill.objective.real_batch=8", "distill.canvas.init=real", "evaluate.beyond=null"]
small += ["evaluate.network={name: convnet, depth: 1, width: 4}", "evaluate.steps=3"]
distilled = distill(Dataset.from_dict(rows, features=features), "dm", overrides=small)
distilled
"""


def test_a_notebook_shows_bars_and_the_result_with_its_picture(tmp_path: Path) -> None:
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    kernel = {"name": "python3", "display_name": "Python", "language": "python"}
    book.metadata["kernelspec"] = kernel
    where = {"metadata": {"path": str(tmp_path)}}
    done = NotebookClient(book, timeout=200, kernel_name="python3", resources=where).execute()
    outputs = done.cells[0].outputs
    drawn = "".join(each.get("text", "") for each in outputs if each["output_type"] == "stream")
    assert "distill: 100%" in drawn and "evaluate: 100%" in drawn
    (result,) = (each["data"] for each in outputs if each["output_type"] == "execute_result")
    assert result["text/plain"].startswith("Distillation('runs/dm/dataset-")
    page = result["text/html"]
    assert "data:image/png;base64," in page and "distilled, as published" in page
    assert "load_dataset(" in page and "random real images" in page
    assert sys.prefix not in page
