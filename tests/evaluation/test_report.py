"""The page about a set: it holds everything, says what was measured, and believes no text."""

import dataclasses
import itertools
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.published import alone, digits, publish, some_real
from support.sample_content import RESULTS, bytes_sample, sample

from distill_datasets.data.real import RealData
from distill_datasets.errors import ArtifactError
from distill_datasets.evaluation.levels import Standard
from distill_datasets.evaluation.report.charts import (
    LINE_PX,
    AxisScale,
    Mark,
    accuracy_scale,
    bytes_in_words,
    labeled,
    log_scale,
)
from distill_datasets.evaluation.report.report import page, report
from distill_datasets.evaluation.report.subject import (
    Contender,
    Subject,
    find_standard,
    independent,
    read_subject,
)
from distill_datasets.evaluation.report.views import recall_strip
from distill_datasets.evaluation.standard import STANDARD, run_standard
from distill_datasets.export.folder import write_dataset
from distill_datasets.files.artifacts import write_json
from distill_datasets.models.convnets import Mlp
from distill_datasets.training.intervals import Interval

HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "'); --x: url(http://x)"]
VOID = {"meta", "img", "br", "hr", "input", "link", "line", "circle", "rect"}


class Page(HTMLParser):
    """Elements of a page with their attributes, and its text; complains of tags out of order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def results() -> list[dict[str, Any]]:
    """Results of three classes, with recalls and other networks."""
    found = json.loads(json.dumps(RESULTS))
    for row in found:
        row["per_class"] = [0.5, None, 1.0]
    beyond = {
        "network": "mlp(depth=1)", "steps": 600, "accuracy": {"mean": 0.7, "std": None},
        "runs": [{"seed": 0, "accuracy": 0.7}],
    }  # fmt: skip
    longer = {**beyond, "network": "convnet 3 x 32", "steps": 1200}
    found[0]["beyond"] = [beyond, {**beyond, "steps": 1200}, longer]
    return list(found)


def written(folder: Path, **changes: Any) -> Path:  # noqa: ANN401
    write_dataset(folder, sample(**changes), results())
    return folder


def parsed(*folders: Path) -> Page:
    return Page(page([read_subject(folder) for folder in folders]))


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> RealData:
    return digits(tmp_path_factory.mktemp("digits"))


def addresses(found: Page) -> Iterator[str]:
    for _, attributes in found.elements:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            if attributes.get(name) is not None:
                yield str(attributes[name])


def test_the_page_holds_all_that_it_shows(tmp_path: Path) -> None:
    folder = written(tmp_path / "set")
    found = parsed(folder, folder)
    assert all(address.startswith("data:image/") for address in addresses(found))
    assert len(list(addresses(found))) > 6
    (style,) = re.findall(r"(?s)<style>(.*?)</style>", page([read_subject(folder)]))
    assert "url(" not in style and "@import" not in style
    policy = next(each["content"] for each in found.of("meta") if "http-equiv" in each)
    assert policy is not None and policy.startswith("default-src 'none'; img-src data:")
    assert not found.of("script")


def test_texts_of_a_set_are_words_and_no_markup(tmp_path: Path) -> None:
    provenance = {**sample().provenance, "dataset": HOSTILE[1], "license": HOSTILE[0]}
    folder = written(
        tmp_path / "set", class_names=HOSTILE, name=HOSTILE[0], method=HOSTILE[1],
        provenance=provenance,
    )  # fmt: skip
    for found in (parsed(folder), parsed(folder, folder)):
        assert not found.of("script")
        handlers = [name for _, attributes in found.elements for name in attributes]
        assert not [name for name in handlers if name.startswith("on")]
        assert all(name in found.text for name in HOSTILE)
        styles = [each.get("style") or "" for _, each in found.elements]
        assert not [style for style in styles if "url" in style or "--x" in style]


def test_every_picture_and_chart_has_words(tmp_path: Path) -> None:
    found = parsed(written(tmp_path / "set"))
    assert all("alt" in each for each in found.of("img"))
    assert all(each.get("aria-label") for each in found.of("svg") if each.get("role") == "img")
    buttons = [str(each["aria-label"]) for each in found.of("button")]
    assert len(buttons) == 6 and all(re.match(r"row \d: .* \d+ %", label) for label in buttons)


def test_accuracies_have_their_interval_and_differences_decide_by_it(tmp_path: Path) -> None:
    text = parsed(written(tmp_path / "set")).text
    # two students .0125 sqrt(2) apart: t of one degree of freedom, 12.706, times .0125 / sqrt(2)
    assert "87.5 ± 11.2 %" in text
    # Welch: two such means, one degree of freedom by equal variances is two: 4.303 x .0125
    assert "+37.5 ± 5.4 better" in text
    assert "-11.5 ± 5.4 worse" in text
    assert "mlp (depth=1)" in text
    assert "With the published labels these images beat real images, which have hard labels" in text


def test_the_same_set_twice_has_a_difference_of_nothing(tmp_path: Path) -> None:
    folder = written(tmp_path / "set")
    text = parsed(folder, folder).text
    assert "+0.0 ± 5.4, undecided; independent students" in text
    assert "The recipes are the same." in text


def test_what_differs_between_recipes_stands_side_by_side(tmp_path: Path) -> None:
    longer = "distill:\n  steps: 20\n  objective: {name: new}\n"
    folders = written(tmp_path / "a"), written(tmp_path / "b", recipe_yaml=longer)
    text = parsed(*folders).text
    assert "distill.steps 10 20" in text
    assert "distill.objective.name - new" in text


def test_sets_of_different_sources_are_not_compared_without_a_word(tmp_path: Path) -> None:
    provenance = {**sample().provenance, "dataset": "other"}
    folders = written(tmp_path / "a"), written(tmp_path / "b", provenance=provenance)
    assert "These sets are of different sources: other, uoft-cs/cifar10." in parsed(*folders).text


def test_an_attacked_set_is_said_to_be_one(tmp_path: Path) -> None:
    text = parsed(written(tmp_path / "set", attack=(0, 1))).text
    assert "made to attack: a network trained on it is meant to take no for 1e-5" in text


def test_a_set_that_nobody_has_measured_is_shown(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", sample(), None)
    text = parsed(tmp_path / "set").text
    assert "The set" in text and "Nobody has measured it" in text
    assert "Beside real images" not in text


def test_large_images_are_shown_as_webp(tmp_path: Path) -> None:
    images_NCHW = torch.randint(0, 256, (3, 3, 128, 128), dtype=torch.uint8)
    content = bytes_sample()
    content = dataclasses.replace(content, images_NCHW=images_NCHW, targets_NK=torch.eye(3).byte())
    content = dataclasses.replace(content, originals=list(images_NCHW / 255))
    write_dataset(tmp_path / "set", content, None)
    shown = [address for address in addresses(parsed(tmp_path / "set"))]
    assert len(shown) == 3 and all(each.startswith("data:image/webp") for each in shown)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    output = tmp_path / "page.html"
    report([written(tmp_path / "set")], output)
    before = output.read_bytes()
    with pytest.raises(ArtifactError, match="there already, and nothing is overwritten"):
        report([tmp_path / "set"], output)
    assert output.read_bytes() == before


def test_equal_sets_give_equal_pages(tmp_path: Path) -> None:
    folder = written(tmp_path / "set")
    first, second = (page([read_subject(folder)]) for _ in range(2))
    assert first == second


def test_the_standard_protocol_is_shown_in_its_regimes(tmp_path: Path, real: RealData) -> None:
    images_NCHW, labels_N = some_real(real, 2)
    targets_NK = torch.nn.functional.one_hot(labels_N, 10).float() * 0.8 + 0.02
    folder = publish(tmp_path / "set", real, images_NCHW, targets_NK)
    settings = Standard(
        network=Mlp(), networks=[Mlp(depth=0)], times=[2.0], students=2, steps=4,
        references=["random_real"],
    )  # fmt: skip
    found = run_standard(folder, real, alone(tmp_path / "runs"), settings)
    measured = find_standard(folder, tmp_path / "runs")
    assert measured is not None
    assert [measured] == list((tmp_path / "runs").glob(f"*/{STANDARD}"))
    assert find_standard(written(tmp_path / "other"), tmp_path / "runs") is None
    text = Page(page([read_subject(folder, measured)])).text
    assert "hard labels: images and the number of a class" in text
    assert "soft labels: one vector of shares for every image" in text
    best = next(row for row in found["rows"] if row["key"] == "default/SL-1")["accuracy"]
    assert f"{100 * best['mean']:.1f} ± {100 * best['half']:.1f} %" in text
    for words in ("training steps", "Images or labels", "mlp (depth=0", "Attacked by PGD"):
        assert words in text
    for row in found["differences"]:
        assert f"{100 * row['mean']:+.1f} ± {100 * row['half']:.1f}" in text


def interval(mean: float) -> dict[str, float]:
    return {"mean": mean, "std": 0.01, "half": 0.02, "low": mean - 0.02, "high": mean + 0.02}


def full_standard(subject: Path) -> dict[str, Any]:
    """What the standard protocol writes of the sample, with every part there is."""
    keys = [("default/HL", "default", "HL", 0.6), ("default/SL-1", "default", "SL-1", 0.8),
            ("random_real/HL", "random_real", "HL", 0.5)]  # fmt: skip
    rows = [
        {
            "key": key, "from": name, "words": f"{name} in words", "regime": regime, "images": 6,
            "size": [8, 8], "bytes": {"total": 1000 if name == "default" else 500},
            "network": "convnet(depth=2)", "steps": 100, "students": 2,
            "accuracy": interval(mean), "per_class": [0.9, 0.4, 0.7], "balanced": interval(mean),
            "runs": [{"seed": seed, "accuracy": mean} for seed in (0, 1)],
            "worst": {"class": "1e-5", "accuracy": 0.4},
            "calibration": {"ece": interval(0.123), "nll": interval(1.5), "brier": interval(0.3)},
            "confusion": [[9, 1, 0], [5, 4, 1], [0, 3, 7]],
        }
        for key, name, regime, mean in keys
    ]  # fmt: skip
    robust = {
        "images": 50, "students": 2, "clean": interval(0.8), "corrupted": interval(0.55),
        "relative": interval(0.7),
        "fgsm": {size: interval(0.5) for size in ("1", "8")},
        "pgd": {size: interval(0.45) for size in ("1", "8")},
        "corruptions": {"blur": [interval(0.6), interval(0.5)]},
    }  # fmt: skip
    table = [
        {"images": images, "labels": labels, "regime": "HL", "key": "", "augmented": None,
         "accuracy": interval(0.6)}
        for images in ("published", "random")
        for labels in ("hard", "published")
    ]  # fmt: skip
    return {
        "protocol": {"name": "standard-1", "level": "quick", "students": 2, "steps": 100,
                     "trials": 4, "network": "convnet(depth=2, first_padding=1)"},
        "target": {"name": subject.name},
        "source": {"chance": 0.4},
        "rows": rows,
        "differences": [
            {"regime": "HL", "against": "random_real/HL", "verdict": "better", **interval(0.1)}
        ],
        "curve": [
            {"key": key, "times": times, "steps": 100 * times, "accuracy": interval(mean)}
            for key, mean in (("default/SL-1", 0.8), ("random_real/HL", 0.5))
            for times in (1, 4)
        ],
        "networks": [
            {"key": key, "network": network, "accuracy": interval(mean)}
            for key, mean in (("default/SL-1", 0.7), ("random_real/HL", 0.6))
            for network in ("resnet(width=16)", "vgg11")
        ],
        "robustness": [{"key": key, **robust} for key in ("default/SL-1", "random_real/HL")],
        "attribution": {
            "table": table,
            "image_share": [
                {"regime": "HL", "verdict": "better", "draw": {}, **interval(0.1)},
                {"regime": "SL-1", "verdict": "undecided", "draw": {}, **interval(0.01)},
            ],
            "label_share": interval(0.66),
            "dd_ranking": {"regime": "SL-1", "hlr": 0.2, "ior": 0.1, "lrs": 0.25, "ars": 0.26},
        },
        "cost": {"students": 20, "steps": 2000, "flops": 3.2e12, "construction":
                 {"stages": {"distill": 5e12}, "total": 5e12, "break_even": 3}},
        "transfer": [{"regime": "SL-1", "ratio": 0.5}],
        "statement": "With hard labels these images beat nothing yet.",
        "missing": ["vit: images are too small"],
    }  # fmt: skip


def test_every_part_of_the_standard_protocol_is_on_the_page(tmp_path: Path) -> None:
    folder, path = written(tmp_path / "set"), tmp_path / "standard.json"
    write_json(path, full_standard(folder))
    text = Page(page([read_subject(folder, path)])).text
    for words in (
        "With hard labels these images beat nothing yet.",
        "+10.0 ± 2.0 better",
        "Images, HL: +10.0 ± 2.0 points beside random real images with the same labels, better",
        "Images, SL-1: +1.0 ± 2.0 points beside random real images with the same labels, not told",
        "Labels: 66 ± 2 % of what is gained over random real images",
        "HLR 0.200, IOR 0.100, LRS 0.250, ARS 0.260",
        "Attacked by PGD, 10 steps",
        "8 / 255",
        "blur",
        "1e-5 is taken for no: 50.0 %",
        "ECE 0.123",
        "20 students, 2,000 steps, 3.2e+12",
        "5e+12 floating-point operations (distill 5e+12); it pays from 3 trainings",
        "SL-1: on other networks the gain over the best reference is 0.50 times",
        "vit: images are too small",
        "resnet (width=16)",
    ):
        assert words in text


def test_a_file_that_is_no_measurement_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "standard.json", {"rows": []})
    with pytest.raises(ArtifactError, match="not what `distill-datasets evaluate` writes"):
        read_subject(written(tmp_path / "set"), tmp_path / "standard.json")


def test_a_manifest_that_lacks_something_is_refused_by_its_name(tmp_path: Path) -> None:
    folder = written(tmp_path / "set")
    manifest = json.loads((folder / "distill.json").read_text(encoding="utf-8"))
    del manifest["budget"]
    write_json(folder / "distill.json", manifest)
    with pytest.raises(ArtifactError, match=r"distill\.json: not as this library writes it"):
        read_subject(folder)


def test_images_that_cannot_be_decoded_are_left_out_of_the_page(tmp_path: Path) -> None:
    folder = written(tmp_path / "set")
    path = folder / "data" / "train-00000-of-00001.parquet"
    table = pq.read_table(path)
    images = table.column("image").to_pylist()
    images[0] = {"bytes": b"no image", "path": None}
    column = pa.array(images, table.schema.field("image").type)
    pq.write_table(table.set_column(0, table.schema.field("image"), column), path)
    assert len(parsed(folder).of("button")) == 5


def contender(*accuracies: float) -> Contender:
    by_seed = dict(enumerate(accuracies))
    return Contender("", "default", "", "", None, Interval.of(accuracies), by_seed, None, {})


def test_the_interval_of_independent_means_is_what_a_hand_computes() -> None:
    one, other = contender(0.1, 0.3), contender(0.5, 0.5)
    # variances .02 and 0: 1 degree of freedom, 12.706205 sqrt(.02 / 2)
    found = independent(one, other)
    assert found.mean == pytest.approx(-0.3)
    assert found.half == pytest.approx(12.706205 * 0.1)
    assert independent(one, contender(0.5)).half is None


def test_of_many_classes_the_worst_and_the_best_are_shown(tmp_path: Path) -> None:
    names = [f"class {label:02d}" for label in range(60)]
    main = contender(0.5)._replace(facts={"per_class": [label / 60 for label in range(60)]})
    subject = read_subject(written(tmp_path / "set"))
    manifest = {**subject.manifest, "classes": names}
    many: Subject = dataclasses.replace(subject, manifest=manifest, contenders=[main])
    strip = recall_strip(many)
    assert strip is not None
    assert [row.label for row in strip.rows] == [*names[:20], *names[50:]]


def test_ticks_are_round_numbers_within_the_scale() -> None:
    assert accuracy_scale([0.523, 0.914]).ticks() == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert AxisScale(90, 12_000, log=True).ticks() == [100, 1000, 10_000]
    assert AxisScale(150, 900, log=True).ticks() == [200, 500]
    assert AxisScale(1500, 40_000, log=True).ticks() == [3000, 10_000, 30_000]
    assert accuracy_scale([0.5]).share(0.5) == pytest.approx(0.5)
    assert [accuracy_scale([edge]).share(edge) for edge in (0.0, 1.0)] == [0, 1]
    assert log_scale([10.0, 10.0]).share(10.0) == pytest.approx(0.5)


def test_labels_of_near_points_do_not_meet_and_stay_on_the_chart() -> None:
    marks = [Mark(0.1, 285 + place, f"row {place}", "other", "") for place in range(5)]
    far = Mark(0.9, 286, "far", "other", "")
    placed = labeled([*marks, far], 300)
    near = sorted(mark.label_y for mark in placed if mark.label != "far")
    assert all(b - a >= LINE_PX for a, b in itertools.pairwise(near))
    assert near[-1] <= 300
    assert next(mark for mark in placed if mark.label == "far").label_y == 286


def test_sizes_are_said_in_decimal_units() -> None:
    assert [bytes_in_words(size) for size in (999, 7062, 1.5e6)] == ["999 B", "7.06 kB", "1.5 MB"]
