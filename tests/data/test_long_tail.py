"""Long-tailed sources: how many images are left, how they are drawn, and what is said of classes.

Shape suffixes: N rows, B a batch, K classes.
"""

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from support.image_sets import dataset, draw
from support.tiny import CPU, TOY, toy_real
from support.toy_runs import command, toy_file, toy_recipe
from torch import Tensor, nn

from distill_datasets.data.decoding import Split
from distill_datasets.data.real import RealData
from distill_datasets.data.rows import Row, imbalanced, long_tail
from distill_datasets.data.source import Source, open_source
from distill_datasets.evaluation.protocol import Evaluate
from distill_datasets.evaluation.references import chosen_real
from distill_datasets.evaluation.results import by_class
from distill_datasets.files.artifacts import read_json
from distill_datasets.models.convnets import ConvNet
from distill_datasets.objectives.unrolled import Unrolled
from distill_datasets.optimizers import Sgd
from distill_datasets.planning.costs import baseline_rows
from distill_datasets.runtime.draws import draws, rng_for
from distill_datasets.runtime.processes import Run, Runtime
from distill_datasets.selection.coresets import ClassMean, Herding, KCenter
from distill_datasets.stages.source import load_source
from distill_datasets.training.examples import Examples, Stored, Whole
from distill_datasets.training.metrics import score
from distill_datasets.training.student import train_student
from distill_datasets.types import Batch


def tailed(*counts: int, **fields: Any) -> RealData:  # noqa: ANN401
    """The toy images with this many training rows of each class, mixed."""
    real = toy_real(per_class=max(counts))
    rows_N = torch.cat([real.rows_of_class[label][:n] for label, n in enumerate(counts)])
    rows_N = rows_N[torch.randperm(len(rows_N), generator=rng_for(0, "mixed"))]
    train = Split(real.train.images_NCHW[rows_N], real.train.labels_N[rows_N])
    return RealData(train, real.test, real.class_names, real.normalization, real.shape, **fields)


def labels_of(real: RealData, batch: Batch) -> list[int]:
    return batch.targets_BK.sum(dim=0).int().tolist()


def test_counts_are_those_of_the_long_tailed_benchmarks() -> None:
    assert long_tail(500, 0.01, 10) == [500, 299, 179, 107, 64, 38, 23, 13, 8, 5]
    assert long_tail(5000, 0.01, 10) == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert long_tail(100, 0.1, 3) == [100, 31, 10]
    # the fifth root of 0.00032 is 0.2, and a float just below it
    assert long_tail(1000, 0.00032, 6) == [1000, 200, 40, 8, 1, 1]
    assert long_tail(70, 1.0, 4) == [70] * 4
    assert long_tail(10, 0.001, 2) == [10, 1]
    assert long_tail(10, 0.1, 1) == [10]


def test_the_tail_is_cut_from_training_rows_alone_and_starts_at_the_smallest_class() -> None:
    splits = datasets.DatasetDict(
        train=dataset([0, 1] * 20 + [0] * 7), test=dataset([0, 1] * 6, first_value=100)
    )
    source = Source(dataset="ignored", imbalance=0.25)
    decoded = open_source(source, splits).read(draw)
    assert decoded.counts_K == [20, 5]
    assert decoded.test.labels_N.bincount().tolist() == [6, 6]
    values = decoded.train.images_NCHW[:, 0, 0, 0].tolist()
    assert values == sorted(set(values)) and values != list(range(25))
    whole = Source(dataset="ignored")
    assert open_source(whole, splits).read(draw).counts_K == [27, 20]


def test_rows_are_drawn_by_the_seed_and_unusable_ones_stay() -> None:
    rows = [Row(number, number % 2) for number in range(40)] + [Row(40, "no label")]
    first, again, other = (imbalanced(rows, 0.5, 2, draws(seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert Counter(row.label for row in first) == {0: 20, 1: 10, "no label": 1}


@pytest.mark.parametrize("value", [0.0, 1.5, -0.1])
def test_an_imbalance_outside_its_range_is_refused(value: float) -> None:
    with pytest.raises(ValidationError, match="imbalance"):
        Source(dataset="ignored", imbalance=value)


def test_balanced_batches_have_every_class_equally_often() -> None:
    real = tailed(40, 9, 3, sampling="balanced")
    drawn: Counter[int] = Counter()
    for turn in range(300):
        counts = labels_of(real, real.batch(rng_for(0, turn), 10))
        assert sorted(counts) == [3, 3, 4]
        drawn.update(dict(enumerate(counts)))
    assert all(abs(drawn[label] / 1000 - 1) < 0.05 for label in range(3))
    uniform = tailed(40, 9, 3)
    assert labels_of(uniform, uniform.batch(rng_for(0), 52)) == [40, 9, 3]


def test_a_balanced_pass_repeats_rows_of_small_classes_only_when_all_were_drawn() -> None:
    real = tailed(40, 9, 3, sampling="balanced")
    order_N = real.order(rng_for(0))
    assert len(order_N) == 52
    labels_N = real.train.labels_N[order_N]
    for start in range(0, 51, 3):  # every three in a row are of three classes
        assert set(labels_N[start : start + 3].tolist()) == {0, 1, 2}
    times = [Counter(order_N[labels_N == label].tolist()).values() for label in range(3)]
    assert set(times[0]) == {1}
    assert set(times[1]) <= {1, 2} and len(times[1]) == 9
    assert set(times[2]) <= {5, 6} and len(times[2]) == 3


def test_a_uniform_pass_is_a_permutation() -> None:
    order_N = tailed(5, 4, 3).order(rng_for(0))
    assert sorted(order_N.tolist()) == list(range(12)) != order_N.tolist()


def test_calibration_changes_nothing_where_classes_are_equal() -> None:
    plain, calibrated = tailed(7, 7, 7), tailed(7, 7, 7, calibrate=True)
    logits_BK = torch.randn(20, 3, generator=rng_for(0))
    targets_BK = torch.softmax(torch.randn(20, 3, generator=rng_for(1)), dim=1)
    for reduction in ("mean", "sum"):
        losses = [real.loss(logits_BK, targets_BK, reduction) for real in (plain, calibrated)]
        assert losses[0] == F.cross_entropy(logits_BK, targets_BK, reduction=reduction)
        assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-6)


def test_calibrated_logits_get_the_log_of_the_counts() -> None:
    real = tailed(8, 4, 1, calibrate=True)
    logits_BK = torch.tensor([[0.3, -1.0, 2.0]], dtype=torch.float64)
    # -log of exp(2) * 1 / (exp(0.3) * 8 + exp(-1) * 4 + exp(2) * 1)
    shares = torch.tensor([8, 4, 1]) * logits_BK[0].exp()
    expected = -torch.log(shares[2] / shares.sum())
    found = real.loss(logits_BK, torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64))
    assert found.dtype == torch.float64 and found.item() == pytest.approx(
        expected.item(), rel=1e-12
    )


def test_the_unrolled_objective_judges_with_the_calibrated_loss() -> None:
    class Constant:
        """A network without an opinion."""

        def __call__(self, weights_P: Tensor, images_BCHW: Tensor) -> Tensor:
            return weights_P.expand(len(images_BCHW), 3)

    objective = Unrolled(inner_steps=1, window=1, real_batch=13)
    losses = [
        objective._judge(Constant(), torch.zeros(3), tailed(8, 4, 1, calibrate=calibrate), draw)[0]
        for calibrate in (False, True)
    ]
    shares = torch.tensor([8, 4, 1]) / 13
    assert losses[0] == pytest.approx(torch.log(torch.tensor(3.0)).item())
    assert losses[1] == pytest.approx(-(shares * shares.log()).sum().item())


class Counting(Examples):
    """The whole source, counting the classes it is asked for."""

    def __init__(self, whole: Whole) -> None:
        self._whole = whole
        self.seen: list[list[int]] = []

    @property
    def count(self) -> int:
        return self._whole.count

    def __call__(self, index_B: Tensor) -> Batch:
        batch = self._whole(index_B)
        self.seen.append(batch.targets_BK.sum(dim=0).int().tolist())
        return batch

    def order(self, rng: torch.Generator, batch: int, turn: int) -> Tensor:
        return self._whole.order(rng, batch, turn)

    def loss(self, logits_BK: Tensor, targets_BK: Tensor) -> Tensor:
        return self._whole.loss(logits_BK, targets_BK)


STUDENT = Evaluate(
    network=ConvNet(depth=1, width=4), steps=40, batch=6, optimizer=Sgd(lr=0.1, momentum=0.9)
)


def trained(real: RealData, settings: Evaluate = STUDENT) -> tuple[nn.Module, list[list[int]]]:
    examples = Counting(Whole(real))
    module = train_student(settings, settings.steps or 0, examples, TOY, draws(0), CPU)
    return module, examples.seen


@pytest.mark.parametrize("batch", [6, 100])
def test_training_on_the_source_draws_balanced_batches(batch: int) -> None:
    settings = STUDENT.model_copy(update={"batch": batch, "steps": 12})
    _, seen = trained(tailed(20, 6, 2, sampling="balanced"), settings)
    assert all(max(counts) - min(counts) <= 1 for counts in seen)
    _, seen = trained(tailed(20, 6, 2), settings)
    assert max(counts[0] - counts[2] for counts in seen) > 3


@pytest.mark.parametrize("fields", [{"sampling": "balanced"}, {"calibrate": True}])
def test_balance_and_calibration_help_the_tail(fields: dict[str, Any]) -> None:
    def tail(**fields: Any) -> float:  # noqa: ANN401
        # the toy images are told apart at once, so the noise is raised until they are not
        real = toy_real(noise=150.0, per_class=100)
        few_N = torch.cat([real.rows_of_class[0], real.rows_of_class[1], real.rows_of_class[2][:8]])
        train = Split(real.train.images_NCHW[few_N], real.train.labels_N[few_N])
        data = RealData(
            train, real.test, real.class_names, real.normalization, real.shape, **fields
        )
        found = score(trained(data)[0], data.test_batches(100)).per_class[2]
        assert found is not None
        return found

    assert tail(**fields) > tail() + 0.1


def test_every_class_is_scored_in_one_pass_and_one_without_images_has_no_score() -> None:
    logits_BK = torch.tensor([[3.0, 0, 0, 0], [0, 3, 0, 0], [0, 3, 0, 0], [0, 0, 3, 0]])
    targets_BK = F.one_hot(torch.tensor([0, 0, 1, 0]), 4).float()
    batches = [Batch(logits_BK[:3], targets_BK[:3]), Batch(logits_BK[3:], targets_BK[3:])]
    assert score(nn.Identity(), iter(batches)) == (0.5, [1 / 3, 1.0, None, None])


def test_a_row_tells_the_mean_of_every_class_and_of_the_thirds() -> None:
    runs = [[0.9, 0.5, None, 0.1, 0.2, 0.3], [0.7, 0.7, None, 0.3, 0.0, 0.3]]
    said = by_class(runs, [3, 30, 20, 10, 2, 5])
    assert said["per_class"] == [pytest.approx(0.8), 0.6, None, 0.2, 0.1, 0.3]
    assert said["balanced_accuracy"]["mean"] == pytest.approx(0.4)
    assert said["balanced_accuracy"]["std"] == pytest.approx(0.0)
    # by training images: 1, 2 | 3, 5 | 0, 4
    thirds = {name: value["mean"] for name, value in said["thirds"].items()}
    assert thirds == pytest.approx({"head": 0.6, "middle": 0.25, "tail": 0.45})
    assert said["thirds"]["head"]["std"] == pytest.approx(0.2 / 2**0.5)
    assert "thirds" not in by_class(runs, [5, 6, 7, 8, 9, 9])


@pytest.mark.parametrize("selection", [Herding(), KCenter(), ClassMean()])
@pytest.mark.parametrize(("images", "spread"), [(1, [0, 0, 1]), (5, [1, 2, 2]), (6, [2, 2, 2])])
def test_references_are_as_many_images_spread_over_the_classes(
    selection: Any,  # noqa: ANN401
    images: int,
    spread: list[int],
) -> None:
    real = toy_real()
    make = chosen_real(real, images, selection, 0)
    all_labels = []
    for student in range(8):
        examples = make(draws(0, "evaluate", selection.name, student))
        assert isinstance(examples, Stored) and examples.count == images
        seen_BCHW, targets_BK = examples(torch.arange(images))
        assert sorted(targets_BK.sum(dim=0).tolist()) == spread
        for label in range(3):
            own = targets_BK[:, label] == 1
            expected = selection.images(
                real,
                max(1, int(own.sum())),
                draws(0, "evaluate", selection.name)("select", max(1, int(own.sum()))),
            ).view(3, -1, 1, 8, 8)[label][: int(own.sum())]
            mean, std = real.normalization.display_mean_C, real.normalization.display_std_C
            torch.testing.assert_close(seen_BCHW[own], (expected - mean) / std)
        all_labels.append(tuple(targets_BK.argmax(dim=1).tolist()))
    assert (len(set(all_labels)) > 1) == (images % 3 != 0)


def test_a_class_with_three_images_gives_ten_and_is_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    real = tailed(40, 20, 3)
    with caplog.at_level(logging.WARNING, logger="distill_datasets"):
        images_NCHW = real.examples(rng_for(0), 10)
    assert images_NCHW.shape == (30, 1, 8, 8)
    assert len({tuple(image.flatten().tolist()) for image in images_NCHW[20:]}) == 3
    assert "10 images of every class were asked for; these have fewer" in caplog.text
    assert "class 2 (3)" in caplog.text


def test_a_class_that_repeats_images_for_an_objective_is_reported_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    real = tailed(40, 20, 3)
    with caplog.at_level(logging.WARNING, logger="distill_datasets"):
        for label in (0, 1):
            real.class_images(rng_for(0), label, 20)
        assert not caplog.records
        for step in range(3):
            assert len(real.class_images(rng_for(step), 2, 4)) == 4
    (record,) = caplog.records
    assert "4 images of every class were asked for; these have fewer" in record.getMessage()
    assert "class 2 (3)" in record.getMessage()


def test_a_long_tailed_run_from_the_command_line(tmp_path: Path) -> None:
    short = [
        "distill.steps=1", "evaluate.students=1", "evaluate.steps=2", "evaluate.full_epochs=1",
        "evaluate.full_students=1", "evaluate.batch=16", "source.limit=600",
        "source.imbalance=0.1", "source.sampling=balanced",
        "distill.canvas={name: pixels, ipc: 10, init: real}", "distill.labels=area",
        "evaluate.references=[random_real, herding, k_center, class_mean, full]",
    ]  # fmt: skip
    file, runs = toy_file(tmp_path), tmp_path / "runs"
    answer = command("run", file, *short, "--runs", runs)
    assert answer.code == 0, answer.err
    assert "these have fewer and repeat them" in answer.err
    (dataset_folder,) = runs.glob("toy/dataset-*")
    rows = {row["from"]: row for row in read_json(dataset_folder / "results.json")}
    equal = ["default", "exact", "random_real", "herding", "k_center", "class_mean"]
    assert list(rows) == [*equal, "full"]
    assert {rows[name]["images"] for name in equal} == {100}
    assert {rows[name]["pixels"] for name in equal} == {6400}
    for row in rows.values():
        assert len(row["per_class"]) == 10 and set(row["thirds"]) == {"head", "middle", "tail"}
        assert row["per_class"] == row["runs"][0]["per_class"]
        mean = sum(row["per_class"]) / 10
        assert row["balanced_accuracy"]["mean"] == pytest.approx(mean)
    (source,) = runs.glob("source-*")
    counts = read_json(source / "DONE.json")["train_per_class"]
    assert counts == long_tail(counts[0], 0.1, 10) and counts[9] < 10
    plan = command("plan", file, *short)
    for name in equal:
        assert name in plan.out

    # other draws share what was read, and nothing that was trained
    answer = command("run", file, *short, "source.sampling=uniform", "source.calibrate=true",
                     "--runs", runs)  # fmt: skip
    assert answer.code == 0, answer.err
    assert len(list(runs.glob("source-*"))) == 1
    assert len(list(runs.glob("toy/distill-*"))) == 2


def test_the_plan_counts_the_students_of_every_reference() -> None:
    given = toy_recipe("evaluate.references=[herding, class_mean, full]")
    assert baseline_rows(given) == ["default", "exact", "herding", "class_mean"]


def test_a_loaded_source_draws_and_judges_as_the_recipe_says(tmp_path: Path) -> None:
    for sampling, calibrate in (("balanced", False), ("uniform", True)):
        source = Source(
            dataset="embedded:uci-digits", limit=60, sampling=sampling, calibrate=calibrate
        )
        loaded = load_source(open_source(source), Run(0, tmp_path, Runtime(), shown=False))
        assert (loaded.real.sampling, loaded.real.calibrate) == (sampling, calibrate)


def test_results_of_classes_can_be_written_as_json() -> None:
    said = by_class([[0.5, None, 1.0]], [9, 1, 1])
    assert json.loads(json.dumps(said, allow_nan=False)) == said
    assert said["thirds"]["middle"] == {"mean": None, "std": None}
    assert said["thirds"]["tail"] == {"mean": 1.0, "std": None}
