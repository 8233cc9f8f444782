"""Students of recorded views: they see what was labeled, and learn what an on-line teacher says.

Shape suffixes: N images, B a batch, K classes.
"""

from pathlib import Path
from typing import Any, cast
from unittest import mock

import pytest
import torch
from support.relabel_problem import (
    LABELS_N,
    SHAPE,
    SPACE,
    STUDENT,
    Store,
    content_of,
    pictures,
    relabel,
)
from support.tiny import CPU, toy_real
from torch import Tensor, nn

from distill_datasets.data.normalization import InputSpace
from distill_datasets.data.real import RealData
from distill_datasets.evaluation import evaluate
from distill_datasets.evaluation.baselines import Baseline, Labeling, baselines
from distill_datasets.evaluation.evaluate import run_evaluate
from distill_datasets.evaluation.protocol import Evaluate
from distill_datasets.export.folder import write_dataset
from distill_datasets.runtime.draws import Draw, draws, rng_for
from distill_datasets.runtime.processes import Run, Runtime
from distill_datasets.soft_labels import replay as replayed
from distill_datasets.soft_labels.codes import LogitCode
from distill_datasets.soft_labels.ensemble import TeacherEnsemble
from distill_datasets.soft_labels.replay import (
    HardLabelExamples,
    MixedPasses,
    Pictures,
    SoftLabelExamples,
    TeacherStream,
)
from distill_datasets.stages.squeeze import SqueezedFolder
from distill_datasets.training.examples import Examples
from distill_datasets.training.losses import HardPasses, TeacherLoss
from distill_datasets.training.student import train_student
from distill_datasets.types import Shape
from distill_datasets.views.recorded import draw_views, replay
from distill_datasets.views.relabel import Relabel

TEACHERS = cast("SqueezedFolder", Store())
PICTURES = pictures()


def export(folder: Path, **fields: Any) -> tuple[Path, Relabel]:  # noqa: ANN401
    """A published folder of it, and how views were labeled."""
    write_dataset(folder / "exported", content_of(folder, **fields), None)
    return folder / "exported", relabel(folder / "runs", **fields).layout.settings


def field_of(exported: Path, section: Relabel, settings: Evaluate = STUDENT) -> dict[str, Baseline]:
    labeling = Labeling(section, TEACHERS)
    pixels = 40 * SHAPE.h * SHAPE.w
    found = baselines(settings, exported, toy_real(SHAPE), pixels, 3, labeling)
    return {one.row.name: one for one in found}


def published(exported: Path, section: Relabel, settings: Evaluate = STUDENT) -> SoftLabelExamples:
    examples = field_of(exported, section, settings)["default"].examples(draws(0, "any"))
    assert isinstance(examples, SoftLabelExamples)
    return examples


def on_line(section: Relabel, settings: Evaluate = STUDENT) -> SoftLabelExamples:
    """Views drawn live and the teacher asked live, in full precision."""
    teachers = TeacherEnsemble([TEACHERS.module(0)], section, SHAPE, CPU, features=False)
    stream = TeacherStream(
        section, PICTURES, draws(3, "relabel"), teachers, lambda logits_BK: {"logits": logits_BK}
    )
    return SoftLabelExamples(PICTURES, stream, LogitCode(SHAPE.k), settings.teacher_loss)


def train(examples: Examples, settings: Evaluate = STUDENT, steps: int = 12) -> Tensor:
    """All weights and buffers of a student after three epochs: the first is replayed again."""
    module = train_student(settings, steps, examples, SHAPE, draws(0, "student"), CPU)
    return torch.cat([value.flatten().float() for value in module.state_dict().values()])


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"batch_norm": "batch", "groups": 2},
        {"store_as": "features", "mix": "mixup"},
        {"parquet_below_bytes": 0},
        {"tiles": 2, "crop": {"smallest": 0.5}},
        {"keep": 0.5},
    ],
)
def test_a_student_of_replayed_labels_is_the_on_line_teachers(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    exported, section = export(tmp_path, **fields)
    replayed, live = train(published(exported, section)), train(on_line(section))
    torch.testing.assert_close(replayed, live, atol=2e-3, rtol=2e-3)  # float16
    other = train(on_line(section.model_copy(update={"flip": False, "pad": 1, "crop": None})))
    assert (replayed - other).abs().max() > 20 * (replayed - live).abs().max()


def test_references_get_the_labels_that_would_have_been_published(tmp_path: Path) -> None:
    """Relabeled through the same code, the published images give the very same student."""
    exported, section = export(tmp_path, store_as="top_k", top_k=2)
    field = field_of(exported, section, STUDENT.model_copy(update={"references": ["random_real"]}))
    with mock.patch(
        "distill_datasets.evaluation.baselines.random_pictures", lambda *_: lambda draw: PICTURES
    ):
        same = field_of(
            exported, section, STUDENT.model_copy(update={"references": ["random_real"]})
        )
    ours, theirs = (one.examples(draws(0, "x")) for one in (field["default"], same["random_real"]))
    assert torch.equal(train(ours), train(theirs))
    assert not torch.equal(train(ours), train(field["random_real"].examples(draws(0, "x"))))


def test_pass_p_replays_epoch_p_in_an_order_of_the_students_own(tmp_path: Path) -> None:
    exported, section = export(tmp_path)
    made = relabel(tmp_path / "runs")
    columns = made.read(0, 80)
    examples = published(exported, section)
    for turn, epoch in ((0, 0), (1, 1), (2, 0)):
        order_N = examples.order(rng_for(turn, "order"), 10, turn)
        assert sorted(order_N.tolist()) == list(range(40)) and order_N.tolist() != list(range(40))
        rows = torch.arange(40)
        found = examples(rows)
        logits = torch.from_numpy(columns["logits"][40 * epoch : 40 * epoch + 40]).float()
        torch.testing.assert_close(found.targets_BK, (logits / 4.0).softmax(dim=1))
        live = on_line(section)
        live.order(rng_for(turn, "order"), 10, turn)
        assert torch.equal(found.images_BCHW, live(rows).images_BCHW)


def test_passes_in_the_middle_take_the_classes_of_new_views() -> None:
    section = relabel_settings = Relabel(epochs=3, batch=16, store="logits", mix="none")
    hard = HardLabelExamples(relabel_settings, PICTURES, draws(0, "student"))
    mixed = MixedPasses(on_line(section), hard, HardPasses(first=1, until=2, label_smoothing=0.4))
    rows = torch.arange(40)
    for turn in range(3):
        expected: Examples = hard if turn == 1 else on_line(section)
        for one in (mixed, expected):
            one.order(rng_for(turn, "order"), 16, turn)
        found, wanted = mixed(rows), expected(rows)
        assert torch.equal(found.images_BCHW, wanted.images_BCHW)
        targets = wanted.targets_BK
        if turn == 1:
            targets = 0.6 * targets + 0.4 / SHAPE.k
            assert targets.argmax(dim=1).tolist() == LABELS_N[hard._now.image_B.long()].tolist()
        torch.testing.assert_close(found.targets_BK, targets)
        logits = torch.randn(40, SHAPE.k, generator=rng_for(0, "logits"))
        assert mixed.loss(logits, targets) == expected.loss(logits, targets)


def test_a_pool_is_drawn_from_by_batches_with_replacement(tmp_path: Path) -> None:
    exported, section = export(tmp_path, keep=0.5)  # three of six batches: 16, 16, 8 views
    made = relabel(tmp_path / "runs", keep=0.5)
    assert made.labels == 40
    logits = torch.from_numpy(made.read(0, 40)["logits"]).float()
    units = [logits[:16], logits[16:32], logits[32:]]
    examples = published(exported, section)
    firsts, seen = set[int](), set[tuple[int, ...]]()
    for turn in range(12):
        order_N = examples.order(rng_for(turn, "order"), 16, turn)
        assert order_N.tolist() == list(range(40))
        targets = examples(order_N).targets_BK
        at, drawn = 0, list[int]()
        while at < 40:
            (unit,) = [
                number
                for number, own in enumerate(units)
                if torch.allclose(targets[at : at + len(own)], (own / 4).softmax(1)[: 40 - at])
            ]
            drawn.append(unit)
            at += len(units[unit])
        firsts.add(drawn[0])
        seen.add(tuple(drawn))
    assert firsts == {0, 1, 2} and any(len(set(drawn)) < len(drawn) for drawn in seen)


@pytest.mark.parametrize("kept_bytes", [0, 6000, 2**30])  # of one epoch, of two, of all five
def test_a_pool_has_the_same_views_however_many_epochs_are_kept(
    monkeypatch: pytest.MonkeyPatch, kept_bytes: int
) -> None:
    section = Relabel(epochs=10, batch=16, keep=0.5, store="logits")
    live = on_line(section)._stream
    monkeypatch.setattr(replayed, "DRAWN_BYTES", kept_bytes)
    assert live.pool == 15
    order = torch.randperm(15, generator=rng_for(0, "order")).tolist()
    with mock.patch.object(replayed, "draw_views", wraps=draw_views) as drawn:
        found = {number: live.batch(number).views for number in [*order, *order]}
    assert 5 <= drawn.call_count <= 30 and (drawn.call_count == 5) == (kept_bytes == 2**30)
    for number, views in found.items():
        epoch, place = divmod(number, 3)
        whole = draw_views(section, epoch, 40, (SHAPE.h, SHAPE.w), draws(3, "relabel"))
        expected = whole.at(slice(16 * place, min(40, 16 * place + 16)))
        for name, column in expected.columns().items():
            assert torch.equal(views.columns()[name], column)


def test_hard_labels_are_mixed_as_the_pixels_are() -> None:
    """One class is black and one white, so that pixels tell the share of either."""
    pictures = Pictures(
        torch.tensor([0, 255], dtype=torch.uint8)
        .repeat(10)
        .view(-1, 1, 1, 1)
        .expand(-1, 1, 8, 12)
        .contiguous(),
        torch.tensor([0, 1]).repeat(10),
        InputSpace(torch.zeros(1), torch.ones(1)),
        2,
    )
    mixes: list[dict[str, Any]] = [{"mix": "cutmix"}, {"mix": "mixup"}, {"mix": "none"}]
    for mix in mixes:
        section = Relabel.model_validate({"batch": 5, **mix})
        examples = HardLabelExamples(section, pictures, draws(1, "hard"))
        mixed = 0
        for turn in range(4):
            batch = examples(examples.order(rng_for(0, "order"), 5, turn))
            white_B = batch.images_BCHW.mean(dim=(1, 2, 3))
            torch.testing.assert_close(batch.targets_BK[:, 1], white_B, atol=1e-5, rtol=0)
            torch.testing.assert_close(batch.targets_BK.sum(dim=1), torch.ones(20))
            mixed += int(((white_B > 0.01) & (white_B < 0.99)).sum())
        assert (mixed > 10) == (mix["mix"] != "none")


def test_views_of_hard_labels_are_others_in_every_pass_and_for_every_student() -> None:
    def views(student: int, turn: int) -> Tensor:
        examples = HardLabelExamples(Relabel(), PICTURES, draws(student, "hard"))
        examples.order(rng_for(0, "order"), 40, turn)
        return examples(torch.arange(40)).images_BCHW

    assert torch.equal(views(0, 0), views(0, 0))
    assert not torch.equal(views(0, 0), views(0, 1))
    assert not torch.equal(views(0, 0), views(1, 0))


def test_the_full_source_is_drawn_as_balanced_as_it_says() -> None:
    real = toy_real(SHAPE)
    keep = torch.cat([torch.arange(40), torch.arange(40, 200, 8)])  # 40 of class 0, 5 of others
    fewer = RealData(
        type(real.train)(real.train.images_NCHW[keep], real.train.labels_N[keep]),
        real.test,
        real.class_names,
        real.normalization,
        real.shape,
        sampling="balanced",
    )
    pictures = Pictures(fewer.train.images_NCHW, fewer.train.labels_N, SPACE, SHAPE.k)
    examples = HardLabelExamples(Relabel(mix="none"), pictures, draws(0, "full"), fewer)
    order_N = examples.order(rng_for(0, "order"), 10, 0)
    counts = examples(order_N).targets_BK.sum(dim=0)
    assert counts.tolist() == [12] * SHAPE.k


def measure(exported: Path, section: Relabel, settings: Evaluate) -> list[dict[str, Any]]:
    runtime = Runtime()
    runtime.cores = 1
    with runtime.reproducible():
        return run_evaluate(
            settings,
            exported,
            toy_real(SHAPE),
            identity="",
            pixels=40 * SHAPE.h * SHAPE.w,
            run=Run(3, exported.parent / "measured", runtime, shown=False),
            relabel=section,
            squeezed=TEACHERS,
        )


def test_rows_with_teachers_labels_with_classes_and_of_the_teachers(tmp_path: Path) -> None:
    exported, section = export(tmp_path)
    settings = STUDENT.model_copy(
        update={"references": ["full", "random_real", "herding"], "full_epochs": 1}
    )
    rows = measure(exported, section, settings)
    assert [(row["from"], row["students"], row["steps"], row["images"]) for row in rows] == [
        ("default", 2, 8, 40),
        ("hard", 2, 8, 40),
        ("random_real", 2, 8, 40),
        ("random_real_hard", 2, 8, 40),
        ("herding", 2, 8, 40),
        ("full", 2, 20, 200),
        ("teacher", 1, 0, 0),
    ]
    assert rows[-1]["network"].startswith("convnet(")
    with mock.patch.object(evaluate, "train_student", side_effect=AssertionError):
        assert measure(exported, section, settings) == rows
    settings = settings.model_copy(update={"hard": False})
    found = list(field_of(exported, section, settings))
    assert found == ["default", "random_real", "herding", "full", "teacher"]


def test_pairs_of_students_start_alike_and_see_the_same_images(tmp_path: Path) -> None:
    exported, section = export(tmp_path)
    settings = STUDENT.model_copy(update={"references": ["random_real"]})
    given = list[tuple[str, int, Tensor]]()

    def remember(
        settings: Evaluate,
        steps: int,
        examples: Examples,
        shape: Shape,
        draw: Draw,
        *_: object,
        **__: object,
    ) -> nn.Module:
        assert isinstance(examples, SoftLabelExamples | HardLabelExamples)
        seen = examples._pictures.images_NCHW.float().mean(dim=(1, 2, 3))
        given.append((type(examples).__name__, draw("network").initial_seed(), seen))
        return nn.Sequential(nn.Flatten(), nn.Linear(SHAPE.c * SHAPE.h * SHAPE.w, SHAPE.k))

    with mock.patch.object(evaluate, "train_student", remember):
        measure(exported, section, settings)
    kinds = [kind for kind, _, _ in given]
    pair = ["SoftLabelExamples"] * 2 + ["HardLabelExamples"] * 2
    assert kinds == pair * 2
    for soft, hard in ((0, 2), (1, 3), (4, 6), (5, 7)):
        assert given[soft][1] == given[hard][1] and torch.equal(given[soft][2], given[hard][2])
    assert not torch.equal(given[4][2], given[5][2])
    assert len({seed for _, seed, _ in given}) == 4


def test_students_read_the_published_images_and_labels(tmp_path: Path) -> None:
    """Another label in the published file is another student."""
    exported, section = export(tmp_path)
    before = train(published(exported, section))
    (file,) = (exported / "relabel").glob("train-*")
    other, _ = export(tmp_path / "other", mix="none")
    (exported / "relabel" / file.name).write_bytes(
        next((other / "relabel").glob("train-*")).read_bytes()
    )
    assert not torch.equal(before, train(published(exported, section)))


def test_a_view_is_rendered_with_the_published_normalization() -> None:
    live = on_line(Relabel(epochs=2, batch=16))
    live.order(rng_for(0, "order"), 10, 0)
    rows = torch.arange(7)
    assert live._now is not None
    expected = replay(PICTURES.images_NCHW, live._now.views.at(rows), SPACE)
    assert torch.equal(live(rows).images_BCHW, expected)


def test_mse_students_compare_logits_and_the_class_of_the_own_image() -> None:
    settings = STUDENT.model_copy(update={"loss": "mse", "temperature": 1.0, "hard_weight": 0.1})
    assert settings.teacher_loss == TeacherLoss("mse", hard_weight=0.1)
    live = on_line(Relabel(epochs=2, batch=16), settings)
    live.order(rng_for(0, "order"), 10, 0)
    targets = live(torch.arange(40)).targets_BK
    assert live._now is not None and targets.shape == (40, 2, SHAPE.k)
    own = LABELS_N[live._now.views.image_B.long()]
    assert torch.equal(targets[:, 1].argmax(dim=1), own)
