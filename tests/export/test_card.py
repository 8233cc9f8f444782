"""The card: what the Hub and `datasets` read of it, and that its examples run as they stand."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from datasets import Features
from support.sample_content import RESULTS, pixels_sample, sample

from distill_datasets.export.card import PLACEHOLDER, card, front_matter
from distill_datasets.export.configs import configs
from distill_datasets.export.content import Content, budget
from distill_datasets.export.folder import write_dataset
from distill_datasets.export.licenses import license_fields, why_restricted
from distill_datasets.files.yaml_text import to_yaml

# Runs every example by itself, as if pasted, then a check of what they left behind.
RUN = """
import json, sys, warnings
warnings.simplefilter("error")
*examples, check = json.load(sys.stdin)
scopes = [{} for _ in examples]
for code, scope in zip(examples, scopes):
    exec(code, scope)
exec(check, {"scopes": scopes})
"""
CHECK = """
load, train, rebuild = scopes
assert len(load["train"]) == 6
assert train["loss"].item() < 1.0986  # below a guess among three classes
images = load["train"].with_format("torch")[:]["image"].numpy()
assert abs(rebuild["images"] * 255 - images).max() <= 0.51
assert abs(rebuild["labels"] - load["train"].with_format("numpy")[:]["soft_label"]).max() < 1e-5
"""


def text_of(content: Content, results: list[dict[str, Any]] | None = RESULTS) -> str:
    spent = {**budget(content), "bytes": {"default": 4321, "constants": 0, "needed": 4321}}
    return card(content, results, spent, "0123abcd")


def parsed(text: str) -> dict[str, Any]:
    content = yaml.safe_load(text.split("---\n")[1])
    assert isinstance(content, dict)
    return content


def examples(folder: Path) -> list[str]:
    text = (folder / "README.md").read_text(encoding="utf-8").replace(PLACEHOLDER, str(folder))
    return re.findall(r"```python\n(.*?)\n```", text, flags=re.DOTALL)


def run(codes: list[str], home: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", RUN],
        input=json.dumps(codes).encode(),
        check=True,
        env={"HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        timeout=50,
    )


def test_front_matter_is_yaml_that_says_what_was_meant() -> None:
    meta = parsed(text_of(sample()))
    assert meta == front_matter(sample(), "0123abcd")
    assert meta["license"] == "mit" and meta["size_categories"] == ["n<1K"]
    assert meta["source_datasets"] == ["uoft-cs/cifar10"]
    assert [each["config_name"] for each in meta["configs"] if each.get("default")] == ["default"]


def test_features_of_the_card_are_those_of_the_files(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", sample(), None)
    meta = parsed((tmp_path / "data" / "README.md").read_text(encoding="utf-8"))
    for info in meta["dataset_info"]:
        name = info["config_name"]
        (path,) = (tmp_path / "data").glob(f"{'data' if name == 'default' else name}/*.parquet")
        stored = json.loads(pq.read_schema(path).metadata[b"huggingface"])["info"]["features"]
        assert Features._from_yaml_list(info["features"]) == Features.from_dict(stored)


def test_every_example_of_the_card_runs_as_it_stands(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", sample(), RESULTS)
    run([*examples(tmp_path / "data"), CHECK], tmp_path)


def test_the_labels_of_crops_are_read_as_they_are(tmp_path: Path) -> None:
    own_NK = torch.rand(6, 3, generator=torch.Generator().manual_seed(1)).softmax(dim=1)
    content = sample(label_cells=[own_NK], targets_NK=own_NK)
    write_dataset(tmp_path / "data", content, RESULTS)
    pieces = examples(tmp_path / "data")
    assert "territories" not in pieces[-1]
    run([*pieces, CHECK], tmp_path)


def test_examples_of_gray_separate_images_run(tmp_path: Path) -> None:
    gray = sample(channels=1)
    content = dataclasses.replace(
        gray, label_cells=[], originals=list(gray.exact_NCHW), geometry={"canvas": "pixels"}
    )
    write_dataset(tmp_path / "data", content, None)
    pieces = examples(tmp_path / "data")
    assert len(pieces) == 2  # nothing to rebuild
    run([*pieces, "assert len(scopes[0]['train']) == 6"], tmp_path)


def test_labels_that_do_not_follow_from_areas_are_not_said_to() -> None:
    hard = torch.nn.functional.one_hot(sample().targets_NK.argmax(dim=1), 3).float()
    assert "label_poster" in text_of(sample())
    text = text_of(sample(targets_NK=hard))
    assert "corners_yx" in text and 'row["label_poster"]' not in text


def test_results_stand_in_percent_with_their_spread() -> None:
    text = text_of(sample())
    assert "| 87.5 ± 1.2 | 2 | 6 | 168 | 600 | convnet 3 x 32 |" in text
    assert "| random real images, no more pixels | 50.0 ± 1.2 |" in text
    assert "protocol: last-step" in text


def test_a_dataset_without_results_says_so() -> None:
    assert "Not evaluated yet." in text_of(sample(), None)


def test_budget_is_stated_in_pixels_values_and_bytes() -> None:
    text = text_of(pixels_sample())
    assert "pixels: 384 in 6 trained images, 2 images per class" in text
    assert "values: 1,158, of which labels 6" in text
    assert "bytes: 4,321 needed to train" in text


def test_a_thousand_classes_make_a_small_card() -> None:
    count = 1000
    content = sample(
        class_names=[f"class number {index}" for index in range(count)],
        targets_NK=torch.eye(count)[:6],
        label_cells=[torch.eye(count)],
        provenance={"dataset": "mine", "files": [{"path": "x" * 100}] * 5000},
        recipe_yaml="# long\n" * 10_000,
    )
    assert len(text_of(content).encode()) < 100_000


@pytest.mark.parametrize(
    ("stated", "fields", "reason"),
    [
        ("apache-2.0", {"license": "apache-2.0"}, None),
        ("mit, cc-by-4.0", {"license": ["mit", "cc-by-4.0"]}, None),
        ("cc-by-nc-4.0", {"license": "cc-by-nc-4.0"}, "the source's license is cc-by-nc-4.0"),
        (None, {"license": "other", "license_name": "unknown"}, "the source states no license"),
        ("My Own", {"license": "other", "license_name": "my-own"}, "license is my own"),
        ("unknown", {"license": "other", "license_name": "unknown"}, "license is unknown"),
    ],
)
def test_the_license_of_the_source_goes_with_the_data(
    stated: object, fields: dict[str, Any], reason: str | None
) -> None:
    source = {"dataset": "images", "license": stated}
    assert license_fields(source) == fields
    why = why_restricted(source)
    assert why == reason or (reason is not None and reason in str(why))


def test_an_unclear_license_links_to_the_source() -> None:
    link = "https://huggingface.co/datasets/uoft-cs/cifar10"
    fields = license_fields({"dataset": "uoft-cs/cifar10", "license": "unknown", "card_url": link})
    assert fields["license_link"] == link


def test_source_and_papers_are_linked() -> None:
    text = text_of(sample())
    assert "[uoft-cs/cifar10](https://huggingface.co/datasets/uoft-cs/cifar10)" in text
    assert "PoDD, [arXiv:2403.12040](https://arxiv.org/abs/2403.12040), fixed labels" in text
    assert "<https://example.org/paper>" in text and "- examples of train: 300" in text


def test_yaml_text_survives_a_yaml_reader() -> None:
    content = {
        "no": "yes",
        "tiny": 1e-05,
        "huge": 1e300,
        "text": ["1e-3", "", "a: b", "'\"", "\u2028 \x85 \U0001f600", "~", "- x", "n<1K"],
        "empty": [{}, [], {"a": []}],
        "deep": [{"a": {"b": [1, [2, {"c": None}]]}}, True, -1.5],
    }
    assert yaml.safe_load(to_yaml(content)) == content


def test_configs_of_a_card_need_no_results() -> None:
    assert [each.name for each in configs(sample(), "", None)] == [
        "default",
        "poster",
        "exact",
        "recipe",
    ]


def test_the_card_has_the_words_citation_and_license_of_its_publisher() -> None:
    own = "@misc{mine, title = {Mine}}"
    text = text_of(sample(notes="Read *this* first.", citation=own, license="cc-by-4.0"))
    assert parsed(text)["license"] == "cc-by-4.0"
    assert text.index("Read *this* first.") < text.index("## Results")
    cited = text[text.index("## Citation") :]
    assert cited.index(own) < cited.index("@misc{arxiv-2403.12040,")
    assert "title = {uoft-cs/cifar10}" in cited and "license of the source: mit" in text


def test_the_recipe_on_the_card_is_what_its_user_wrote() -> None:
    written = {"name": "mine", "distill": {"steps": 7}}
    assert "```yaml\nname: mine\ndistill:\n  steps: 7\n```" in text_of(sample(written=written))


def test_faces_of_real_photos_are_said_to_stay_recognizable() -> None:
    text = text_of(sample(privacy="images start from real ones and may show them"))
    assert "may show them. Faces, text and places in real photos stay recognizable" in text
