"""Students see the published folder and nothing else, and what they score is counted honestly.

Shape suffixes: N examples, K classes, C channels, H W pixels.
"""

import io
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from support.sample_content import MEAN, STD, sample
from support.tiny import toy_real
from torch import Tensor, nn

from distill_datasets.evaluation import baselines as compared
from distill_datasets.evaluation import evaluate
from distill_datasets.evaluation.baselines import baselines
from distill_datasets.evaluation.evaluate import run_evaluate
from distill_datasets.evaluation.protocol import Evaluate
from distill_datasets.evaluation.references import random_real
from distill_datasets.export import reading
from distill_datasets.export.folder import write_dataset
from distill_datasets.export.reading import load_rows, read_published
from distill_datasets.files.artifacts import read_tensors
from distill_datasets.models.convnets import ConvNet
from distill_datasets.models.initialization import initialize
from distill_datasets.optimizers import Adam
from distill_datasets.runtime.draws import Draw, draws
from distill_datasets.runtime.processes import Run, Runtime
from distill_datasets.training.examples import Examples
from distill_datasets.training.loop import SupervisedTraining
from distill_datasets.training.metrics import Score
from distill_datasets.training.rows import Reference
from distill_datasets.types import Shape

REFERENCES = list(get_args(Reference))
PIXELS = 168  # of the sample's poster, 12 x 14
REAL = toy_real()
SETTINGS = Evaluate(
    network=ConvNet(depth=1, width=4),
    students=2,
    steps=6,
    batch=4,
    optimizer=Adam(lr=0.01),
    beyond=None,
)
DEFAULT = "data/train-00000-of-00001.parquet"


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "exported", sample(channels=1), None)
    return tmp_path / "exported"


def changed(**fields: Any) -> Evaluate:  # noqa: ANN401
    return SETTINGS.model_copy(update=fields)


def measure(settings: Evaluate, exported: Path, identity: str = "") -> dict[str, dict[str, Any]]:
    """Evaluate, one student after the other; a result row for each baseline."""
    runtime = Runtime()
    runtime.cores = 1
    rows = run_evaluate(
        settings,
        exported,
        REAL,
        identity=identity,
        pixels=PIXELS,
        run=Run(3, exported.parent / "runs", runtime, shown=False),
    )
    return {row["from"]: row for row in rows}


def accuracies(row: dict[str, Any]) -> list[float]:
    return [run["accuracy"] for run in row["runs"]]


def repaint(exported: Path, paint: int) -> None:
    """Replace the published images by flat ones of one value each, from `paint` on."""
    table = pq.read_table(exported / DEFAULT)
    images = []
    for row in range(len(table)):
        with io.BytesIO() as buffer:
            Image.new("L", (8, 8), paint + row).save(buffer, format="PNG")
            images.append({"bytes": buffer.getvalue(), "path": None})
    column = pa.array(images, table.schema.field("image").type)
    pq.write_table(table.set_column(0, table.schema.field("image"), column), exported / DEFAULT)


class Trained:
    """Stands in for training: remembers what every student was given."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.examples: list[Examples] = []
        self.networks: list[int] = []

    def __call__(
        self,
        settings: Evaluate,
        steps: int,
        examples: Examples,
        shape: Shape,
        draw: Draw,
        device: torch.device,
        **followed: Any,  # noqa: ANN401
    ) -> nn.Module:
        self.steps.append(steps)
        self.examples.append(examples)
        self.networks.append(draw("network").initial_seed())
        return nn.Identity()


@pytest.fixture
def trained() -> Iterator[Trained]:
    trained = Trained()
    with (
        mock.patch.object(evaluate, "train_student", trained),
        mock.patch.object(evaluate, "measure", lambda *_: Score(0.5, [0.5] * 3)._asdict()),
    ):
        yield trained


def seen(examples: Examples) -> tuple[Tensor, Tensor]:
    """All images and targets that a student is given."""
    images_NCHW, targets_NK = examples(torch.arange(examples.count))
    return images_NCHW, targets_NK


def test_students_are_given_what_load_dataset_returns(exported: Path, trained: Trained) -> None:
    measure(changed(exact=False), exported)
    images_NCHW, targets_NK = seen(trained.examples[0])
    content = sample(channels=1)
    expected_NCHW = (content.images_NCHW.float() / 255 - MEAN[0]) / STD[0]
    torch.testing.assert_close(images_NCHW, expected_NCHW)
    assert torch.equal(targets_NK, content.targets_NK)


def test_other_published_bytes_are_other_examples(exported: Path, trained: Trained) -> None:
    repaint(exported, paint=100)
    measure(changed(exact=False), exported)
    images_NCHW, _ = seen(trained.examples[0])
    for row, image_CHW in enumerate(images_NCHW):
        value = ((100 + row) / 255 - MEAN[0]) / STD[0]
        torch.testing.assert_close(image_CHW, torch.full((1, 8, 8), value))


def test_other_published_bytes_are_another_accuracy_and_the_exact_one_stays(
    exported: Path,
) -> None:
    before = measure(SETTINGS, exported, "before")
    repaint(exported, paint=100)
    after = measure(SETTINGS, exported, "after")
    assert accuracies(before["default"]) != accuracies(after["default"])
    assert accuracies(before["exact"]) == accuracies(after["exact"])


def test_the_exact_configuration_is_measured_without_rounding(
    exported: Path, trained: Trained
) -> None:
    measure(SETTINGS, exported)
    exact_NCHW, _ = seen(trained.examples[2])
    assert torch.equal(exact_NCHW, sample(channels=1).exact_NCHW)
    assert not torch.equal(exact_NCHW, seen(trained.examples[0])[0])


def test_color_images_keep_their_channels(tmp_path: Path) -> None:
    write_dataset(tmp_path / "color", sample(channels=3), None)
    stored = read_published(tmp_path / "color", "default", Shape(3, 8, 8, 3))
    assert torch.equal(stored.images_NCHW, sample(channels=3).images_NCHW)
    assert stored.input_space is not None
    assert stored.input_space.mean_C.tolist() == pytest.approx(MEAN)


@pytest.mark.parametrize("channels", [1, 3])
def test_rows_that_are_read_a_few_at_a_time_are_those_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int
) -> None:
    write_dataset(tmp_path / "out", sample(channels=channels), None)
    shape = Shape(channels, 8, 8, 3)
    for config in ("default", "exact"):
        whole = read_published(tmp_path / "out", config, shape)
        monkeypatch.setattr(reading, "ROWS_AT_ONCE", 4)  # of six rows
        parts = read_published(tmp_path / "out", config, shape)
        monkeypatch.undo()
        assert parts.images_NCHW.is_contiguous() and len(parts.images_NCHW) == 6
        assert torch.equal(parts.images_NCHW, whole.images_NCHW)
        assert torch.equal(parts.targets_NK, whole.targets_NK)


def test_published_rows_are_read_once_and_only_for_students_that_are_left(
    exported: Path, trained: Trained
) -> None:
    settings = changed(students=3, exact=False)
    with mock.patch.object(compared, "read_published", wraps=read_published) as reads:
        before = measure(settings, exported)
        assert [call.args[1] for call in reads.call_args_list] == ["default"]
        assert measure(settings, exported) == before
        assert reads.call_count == 1


def test_two_folders_of_one_name_are_two_datasets(tmp_path: Path) -> None:
    for number, channels in ((1, 1), (2, 3)):
        write_dataset(tmp_path / str(number) / "same", sample(channels=channels), None)
    images = [
        load_rows(tmp_path / str(number) / "same", "default")[0]["image"] for number in (1, 2)
    ]
    assert [image.mode for image in images] == ["L", "RGB"]


def test_reading_a_folder_leaves_nothing_in_it(exported: Path) -> None:
    before = sorted(exported.rglob("*"))
    load_rows(exported, "default")
    assert sorted(exported.rglob("*")) == before


def test_the_spread_is_the_sample_standard_deviation(exported: Path) -> None:
    scores = iter([0.25, 0.5, 0.75, 0.5])
    with mock.patch.object(
        evaluate, "measure", lambda *_: Score(next(scores), [0.5] * 3)._asdict()
    ):
        row = measure(changed(students=4, exact=False), exported)["default"]
    assert row["accuracy"]["mean"] == 0.5
    assert row["accuracy"]["std"] == pytest.approx(math.sqrt(2 * 0.25**2 / 3))
    assert sorted(accuracies(row)) == [0.25, 0.5, 0.5, 0.75]
    assert [run["seed"] for run in row["runs"]] == [0, 1, 2, 3]


def test_one_student_has_no_spread(exported: Path) -> None:
    row = measure(changed(students=1, exact=False), exported)["default"]
    assert row["accuracy"] == {"mean": accuracies(row)[0], "std": None}


def test_accuracy_is_the_share_of_the_test_images(exported: Path) -> None:
    def always_one(*_: object, **__: object) -> nn.Module:
        module = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
        with torch.no_grad():
            module[1].weight.zero_()
            module[1].bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
        return module

    with mock.patch.object(evaluate, "train_student", always_one):
        row = measure(changed(exact=False), exported)["default"]
    assert accuracies(row) == [1 / 3, 1 / 3]  # 40 of 120 test images are of class 1


def test_students_differ_in_their_seed_and_every_reference_has_its_own(
    exported: Path, trained: Trained
) -> None:
    measure(changed(references=["random_real"]), exported)
    assert len(set(trained.networks)) == 4 and len(trained.networks) == 6


def test_a_row_says_what_was_trained_how_long_on_what(exported: Path) -> None:
    row = measure(changed(exact=False), exported)["default"]
    assert {key: row[key] for key in ("protocol", "students", "steps", "images", "pixels")} == {
        "protocol": "last-step",
        "students": 2,
        "steps": 6,
        "images": 6,
        "pixels": PIXELS,
    }
    assert row["network"].startswith("convnet(depth=1, width=4")


def test_images_of_every_class_are_shrunk_until_they_fit_in_the_pixels(exported: Path) -> None:
    settings = changed(references=REFERENCES)
    field = {one.row.name: one for one in baselines(settings, exported, REAL, PIXELS, 0)}
    for name in (
        "random_real",
        "herding",
        "k_center",
        "class_mean",
    ):  # 168 // 3 is 7 x 7 and 7 more
        assert (field[name].images, field[name].pixels, field[name].size) == (3, 147, (7, 7))
    assert (field["k_means"].images, field["k_means"].pixels) == (6, 150)
    for name in ("random_real", "herding", "k_center", "class_mean", "k_means"):
        images_NCHW, targets_NK = seen(field[name].examples(draws(0, "evaluate", name, 0)))
        assert images_NCHW.shape[1:] == (1, 8, 8)
        assert targets_NK.sum(dim=0).tolist() == [field[name].images / 3] * 3


def test_from_one_image_per_class_on_images_are_as_large_as_the_sources(exported: Path) -> None:
    settings = changed(references=["random_real", "class_mean"])
    for pixels, images in ((191, 3), (192, 3), (300, 4)):
        field = {one.row.name: one for one in baselines(settings, exported, REAL, pixels, 0)}
        assert field["class_mean"].images == images
        assert field["random_real"].size == ((8, 8) if pixels >= 192 else (7, 7))


def test_before_rounding_students_are_those_of_the_published_rows(exported: Path) -> None:
    """Identical pixels score identically."""
    rows = pq.read_table(exported / "exact" / DEFAULT.partition("/")[2])
    stored = read_published(exported, "default", REAL.shape)
    images_NCHW = stored(torch.arange(stored.count)).images_BCHW
    field = rows.schema.field("pixel_values")
    values = pa.array(images_NCHW.flatten(1).tolist(), field.type)
    place = rows.schema.get_field_index("pixel_values")
    pq.write_table(rows.set_column(place, field, values), exported / "exact" / Path(DEFAULT).name)
    measured = measure(SETTINGS, exported)
    assert accuracies(measured["exact"]) == accuracies(measured["default"])


@pytest.mark.parametrize(("images", "spread"), [(2, [0, 1, 1]), (3, [1, 1, 1]), (7, [2, 2, 3])])
def test_random_real_images_are_spread_evenly_over_the_classes(
    images: int, spread: list[int]
) -> None:
    images_NCHW, targets_NK = seen(random_real(REAL, images, draws(0, "x")))
    assert len(images_NCHW) == images
    assert sorted(targets_NK.sum(dim=0).tolist()) == spread
    assert set(targets_NK.flatten().tolist()) <= {0.0, 1.0}
    assert len({tuple(image.flatten().tolist()) for image in images_NCHW}) == images


def test_random_real_images_are_training_images_as_students_see_test_images() -> None:
    images_NCHW, targets_NK = seen(random_real(REAL, 9, draws(0, "x")))
    real_NCHW, real_NK = REAL.select(torch.arange(len(REAL.train.labels_N)))
    for image_CHW, target_K in zip(images_NCHW, targets_NK, strict=True):
        (row,) = (real_NCHW == image_CHW).all(dim=(1, 2, 3)).nonzero().flatten().tolist()
        assert torch.equal(real_NK[row], target_K)


def test_every_student_of_random_images_gets_others_and_other_classes_first() -> None:
    drawn = [seen(random_real(REAL, 1, draws(seed, "x"))) for seed in range(12)]
    assert len({tuple(images.flatten().tolist()) for images, _ in drawn}) > 1
    labels = Counter(int(targets.argmax()) for _, targets in drawn)
    assert len(labels) == 3


def test_the_full_reference_trains_for_its_own_epochs_with_its_own_students(
    exported: Path, trained: Trained
) -> None:
    settings = changed(references=["full"], full_epochs=3, full_students=1, batch=50, exact=False)
    row = measure(settings, exported)["full"]
    assert (row["students"], row["steps"]) == (1, 3 * 2)  # 120 rows: two batches of 50 a pass
    assert (row["images"], row["pixels"]) == (120, 120 * 64)
    assert trained.steps == [6, 6, 6]
    (whole,) = [examples for examples in trained.examples if examples.count == 120]
    images_NCHW, targets_NK = seen(whole)
    expected = REAL.select(torch.arange(120))
    assert torch.equal(images_NCHW, expected.images_BCHW)
    assert torch.equal(targets_NK, expected.targets_BK)


def test_long_students_start_first(exported: Path, trained: Trained) -> None:
    settings = changed(references=["full"], full_epochs=9, full_students=1)
    measure(settings, exported)
    assert trained.steps[0] == 9 * (120 // 4)


def test_rows_come_in_the_order_of_the_recipe(exported: Path) -> None:
    settings = changed(references=["full", "random_real"], full_epochs=1, students=1, steps=1)
    assert list(measure(settings, exported)) == ["default", "exact", "random_real", "full"]


def test_students_that_are_found_are_not_trained_again(exported: Path) -> None:
    first = measure(SETTINGS, exported)
    files = {path: path.stat().st_mtime_ns for path in exported.parent.glob("runs/*/*.json")}
    assert len(files) == 4
    with mock.patch.object(evaluate, "train_student", side_effect=AssertionError):
        assert measure(SETTINGS, exported) == first
    assert {path: path.stat().st_mtime_ns for path in files} == files


def test_only_the_student_that_is_missing_is_trained(exported: Path) -> None:
    first = measure(SETTINGS, exported)
    (lost,) = exported.parent.glob("runs/*/exact-001.json")
    lost.unlink()
    with mock.patch.object(evaluate, "train_student", wraps=evaluate.train_student) as training:
        assert measure(SETTINGS, exported) == first
    assert training.call_count == 1


def test_a_killed_student_goes_on_from_its_last_pass(exported: Path) -> None:
    settings = changed(students=1, exact=False, checkpoint_seconds=0.0)
    whole = measure(settings, exported, "undisturbed")
    with (
        mock.patch.object(evaluate, "measure", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        measure(settings, exported, "killed")
    (left,) = exported.parent.glob("runs/*/*.safetensors")
    assert read_tensors(left)[1] == {"steps": 5}
    with mock.patch("distill_datasets.training.student.initialize", wraps=initialize) as drawing:
        found = measure(settings, exported, "killed")
    assert drawing.call_count == 1 and accuracies(found["default"]) == accuracies(whole["default"])
    assert not left.exists()


@pytest.mark.parametrize("change", [{"steps": 7}, {"network": ConvNet(depth=1, width=5)}])
def test_students_of_other_settings_are_others(exported: Path, change: dict[str, Any]) -> None:
    measure(changed(students=1, exact=False), exported)
    with mock.patch.object(evaluate, "train_student", wraps=evaluate.train_student) as training:
        measure(changed(students=1, exact=False, **change), exported)
    assert training.call_count == 1


def test_students_of_another_distilled_set_are_others(exported: Path) -> None:
    measure(changed(exact=False), exported, "one")
    measure(changed(exact=False), exported, "two")
    assert len(list(exported.parent.glob("runs/evaluate-*"))) == 2


def test_results_can_be_written_as_json(exported: Path) -> None:
    rows = list(measure(SETTINGS, exported).values())
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_a_reference_is_trained_for_as_many_steps_as_what_it_is_compared_with(
    exported: Path,
) -> None:
    """Counted where a step is made: a result row may say another number than was trained for."""
    done = list[int]()
    train = SupervisedTraining.train

    def counted(self: SupervisedTraining, *given: Any, **named: Any) -> torch.Tensor:  # noqa: ANN401
        moved, step = 0, self._optimizer.step

        def moving() -> None:
            nonlocal moved
            moved += 1
            step()

        with mock.patch.object(self._optimizer, "step", moving):
            loss = train(self, *given, **named)
        done.append(moved)
        return loss

    asked = changed(
        references=["random_real", "herding", "class_mean", "full"],
        students=1, steps=9, epochs=None, full_students=1, full_epochs=2, beyond=None,
    )  # fmt: skip
    with mock.patch.object(SupervisedTraining, "train", counted):
        rows = measure(asked, exported)
    of_all = 2 * (len(REAL.train.labels_N) // asked.batch or 1)
    equal = [name for name in rows if name != "full"]
    assert {"random_real", "herding", "class_mean", "default"} <= set(equal)
    assert sorted(done) == sorted([9] * len(equal) + [of_all])
    assert {name: row["steps"] for name, row in rows.items()} == {
        **dict.fromkeys(equal, 9),
        "full": of_all,
    }
