"""The student recipe of the decoupled family: step sizes, losses, decay, averages, checkpoints."""

import copy
import math
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError
from support.student_problem import OneLayer, Rows, rows, weights
from support.tiny import CPU, TOY, toy_real
from torch import Tensor, nn

from distill_datasets.evaluation.protocol import Evaluate
from distill_datasets.models.architecture import Architecture
from distill_datasets.models.convnets import ConvNet
from distill_datasets.objectives.unrolled import Unrolled
from distill_datasets.optimizers import Adam, AdamW, Sgd
from distill_datasets.runtime.draws import draws
from distill_datasets.training.checkpoint import TrainingCheckpoint
from distill_datasets.training.losses import TeacherLoss, smoothed
from distill_datasets.training.metrics import accuracy
from distill_datasets.training.student import pace, train_student
from distill_datasets.types import Batch, Shape
from distill_datasets.views.relabel import Relabel

NORMED = ConvNet(depth=1, width=4, norm="batch")


class Shifted(Architecture):
    """A linear classifier behind a norm of the batch."""

    paper: ClassVar[str] = "none"
    name: Literal["shifted"] = "shifted"

    def build(self, shape: Shape) -> nn.Module:
        side = shape.c * shape.h * shape.w
        return nn.Sequential(nn.BatchNorm2d(shape.c), nn.Flatten(), nn.Linear(side, shape.k))


def settings(**fields: Any) -> Evaluate:  # noqa: ANN401
    return Evaluate(**{"network": OneLayer(), "epochs": 300, "optimizer": Sgd(lr=0.05)} | fields)


def train(given: Evaluate, steps: int = 6, **kept: Any) -> nn.Module:  # noqa: ANN401
    return train_student(given, steps, rows(), TOY, draws(0), CPU, **kept)


@pytest.mark.parametrize(
    ("eta", "expected"), [(1.0, [1, 0.5, 2.7416e-5]), (2.0, [1, 0.853553, 0.502618])]
)
def test_smoothed_cosine_at_the_first_the_middle_and_the_last_epoch(
    eta: float, expected: list[float]
) -> None:
    given = settings(schedule="cosine", smoothing=eta)
    found = [pace(given, 7 * epoch, 300 * 7, 7) for epoch in (0, 150, 299)]
    assert found == pytest.approx(expected, rel=1e-4)
    within = {pace(given, 7 * 150 + step, 300 * 7, 7) for step in range(7)}
    assert len(within) == 1  # once per epoch


def test_without_smoothing_the_cosine_falls_with_every_step() -> None:
    given = settings(schedule="cosine")
    expected = [0.5 * (1 + math.cos(math.pi * step / 12)) for step in range(12)]
    assert [pace(given, step, 12, 4) for step in range(12)] == expected


def test_warm_up_rises_from_a_hundredth_and_the_cosine_begins_after_it() -> None:
    given = settings(schedule="cosine", smoothing=1.0, warmup_epochs=5)
    per_epoch = [pace(given, 2 * epoch, 200, 2) for epoch in range(100)]
    assert per_epoch[:6] == pytest.approx([0.01, 0.208, 0.406, 0.604, 0.802, 1.0])
    assert per_epoch[99] == pytest.approx(0.5 * (1 + math.cos(math.pi * 94 / 95)))


def test_a_student_takes_the_step_sizes_of_its_epochs() -> None:
    seen = list[float]()

    class Watched(Sgd):
        def torch_optimizer(self, parameters: Any) -> torch.optim.Optimizer:  # noqa: ANN401
            optimizer = super().torch_optimizer(parameters)
            optimizer.register_step_pre_hook(
                lambda optimizer, *_: seen.append(optimizer.param_groups[0]["lr"])
            )
            return optimizer

    given = settings(
        schedule="cosine", smoothing=2.0, batch=3, epochs=4, optimizer=Watched(lr=0.05)
    )
    train(given, 12)
    expected = [0.025 * (1 + math.cos(math.pi * (step // 3) / 8)) for step in range(12)]
    assert seen == pytest.approx(expected)


@pytest.mark.parametrize("scaled", [False, True])
def test_gradient_of_softened_divergence(scaled: bool) -> None:
    rng = torch.Generator().manual_seed(0)
    student = (5 * torch.randn(6, 4, generator=rng, dtype=torch.float64)).requires_grad_()
    teacher = 5 * torch.randn(6, 4, generator=rng, dtype=torch.float64)
    loss = TeacherLoss("kl", 20.0, scaled)
    (found,) = torch.autograd.grad(loss(student, loss.targets(teacher, torch.zeros(6))), student)
    expected = ((student / 20).softmax(dim=1) - (teacher / 20).softmax(dim=1)) / (20 * 6)
    torch.testing.assert_close(found, expected * (400 if scaled else 1))


def test_a_student_that_agrees_has_no_divergence_at_any_temperature() -> None:
    logits = torch.tensor([[1.0, -2.0, 3.0]])
    for loss in (TeacherLoss("kl", 20.0, True), TeacherLoss("kl"), TeacherLoss("mse")):
        assert loss(logits, loss.targets(logits, torch.tensor([0]))).item() == pytest.approx(
            0, abs=1e-4
        )


def test_classes_that_were_not_kept_cost_nothing_and_give_no_nan() -> None:
    student = torch.tensor([[1.0, 2.0, 0.5]], requires_grad=True)
    loss = TeacherLoss("kl", 2.0)
    value = loss(student, loss.targets(torch.tensor([[3.0, 1.0, -torch.inf]]), torch.tensor([0])))
    (grad,) = torch.autograd.grad(value, student)
    assert bool(value.isfinite()) and bool(grad.isfinite().all())


def test_squared_error_is_a_mean_over_logits_and_adds_the_class_of_the_image() -> None:
    student, teacher = torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 1.0]])
    plain, both = TeacherLoss("mse"), TeacherLoss("mse", hard_weight=0.1)
    label_B = torch.tensor([0])  # not the teacher's choice of either
    assert plain(student, plain.targets(teacher, label_B)).item() == pytest.approx((1 + 4) / 2)
    hard = math.log(1 + math.exp(2))
    assert both(student, both.targets(teacher, label_B)).item() == pytest.approx(2.5 + 0.1 * hard)


def test_smoothing_of_labels_is_that_of_torch() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 1.0]])
    label_B = torch.tensor([2, 0])
    mine = F.cross_entropy(logits, smoothed(F.one_hot(label_B, 3).float(), 0.2))
    torch.testing.assert_close(mine, F.cross_entropy(logits, label_B, label_smoothing=0.2))
    given = settings(label_smoothing=0.2)
    assert not torch.equal(weights(train(given)), weights(train(settings())))


def test_norms_and_biases_do_not_decay() -> None:
    module = NORMED.build(TOY)
    optimizer = AdamW(lr=0.1, weight_decay=0.3).torch_optimizer(module.parameters())
    decaying = [
        weight
        for group in optimizer.param_groups
        for weight in group["params"]
        if group["weight_decay"]
    ]
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.3, 0.0}
    assert [weight.ndim for weight in decaying] == [4, 2]
    together = sum(len(group["params"]) for group in optimizer.param_groups)
    assert together == len(list(module.parameters()))


def test_decay_is_decoupled_from_the_gradient() -> None:
    plate, bias = torch.ones(1, 1, requires_grad=True), torch.ones(1, requires_grad=True)
    optimizer = AdamW(lr=0.1, weight_decay=0.5).torch_optimizer([plate, bias])
    plate.grad, bias.grad = torch.zeros(1, 1), torch.zeros(1)
    optimizer.step()
    assert (plate.item(), bias.item()) == (pytest.approx(0.95), 1.0)


def test_adamw_is_for_training_and_not_for_loops_that_are_differentiated() -> None:
    given = TypeAdapter(Evaluate).validate_python(
        {"epochs": 1, "optimizer": {"name": "adamw", "lr": 0.001}}
    )
    assert isinstance(given.optimizer, AdamW)
    with pytest.raises(ValidationError, match=r"not one that serves here.* here: adam, sgd"):
        Unrolled.model_validate(
            {"name": "unrolled", "inner_steps": 2, "window": 2, "real_batch": 5}
            | {"optimizer": {"name": "adamw", "lr": 0.001}}
        )


def test_averaged_weights_are_measured_and_buffers_are_the_last() -> None:
    given = settings(network=Shifted(), ema=0.75)
    average: list[Tensor] | None = None
    for steps in range(4):
        live = train(given.model_copy(update={"ema": None}), steps)
        now = [weight.detach().clone() for weight in live.parameters()]
        if average is None:
            average = now
        else:
            average = [0.75 * old + 0.25 * new for old, new in zip(average, now, strict=True)]
    found = train(given, 3)
    assert average is not None
    for weight, expected in zip(found.parameters(), average, strict=True):
        torch.testing.assert_close(weight.detach(), expected)
    for name, buffer in found.named_buffers():
        assert torch.equal(buffer, dict(live.named_buffers())[name])


def test_batch_norm_trains_on_the_batch_and_is_measured_on_what_it_remembers() -> None:
    module = train(settings(network=Shifted()), 2)
    norm = next(layer for layer in module if isinstance(layer, nn.BatchNorm2d))
    assert norm.num_batches_tracked is not None and int(norm.num_batches_tracked) == 2
    images_BCHW, targets_BK = toy_real().select(torch.arange(9))
    mean = images_BCHW.mean()
    assert norm.running_mean is not None
    assert norm.running_mean.item() == pytest.approx((0.1 + 0.09) * mean.item(), abs=1e-6)
    before = copy.deepcopy(module.state_dict())
    together = accuracy(module, [Batch(images_BCHW, targets_BK)])
    alone = [
        accuracy(module, [Batch(images_BCHW[row : row + 1], targets_BK[row : row + 1])])
        for row in range(9)
    ]
    assert together == pytest.approx(sum(alone) / 9)  # of no other image of the batch
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize(
    "optimizer", [AdamW(lr=0.01), Sgd(lr=0.05), Sgd(lr=0.05, momentum=0.0), Adam(lr=0.01)]
)
def test_a_killed_student_goes_on_to_the_same_bits(
    tmp_path: Path, optimizer: AdamW | Sgd | Adam, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = settings(
        network=NORMED, optimizer=optimizer, ema=0.9, batch=4, schedule="cosine", smoothing=2.0
    )
    whole = train(given, 10)

    class Killed(BaseException):
        """The process dies."""

    class Dying(Rows):
        def __call__(self, index_B: Tensor) -> Batch:
            if len(self.asked) == 7:
                raise Killed
            return super().__call__(index_B)

    path = tmp_path / "student.safetensors"
    real = toy_real().select(torch.arange(9))
    with pytest.raises(Killed):
        train_student(
            given, 10, Dying(real), TOY, draws(0), CPU, checkpoint=TrainingCheckpoint(path, 0)
        )
    again = Rows(real)
    found = train_student(
        given, 10, again, TOY, draws(0), CPU, checkpoint=TrainingCheckpoint(path, 0)
    )
    assert len(again.asked) == 4  # from the end of the third pass of two steps
    for name, value in found.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name


def test_checkpoints_are_not_written_more_often_than_asked(tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    train(settings(batch=3), 9, checkpoint=TrainingCheckpoint(path, 60))
    assert not path.exists()


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"smoothing": 2.0}, "smoothing: got 2.0 with schedule: constant"),
        ({"temperature": 4.0}, "temperature: for loss: kl"),
        ({"loss": "kl", "hard_weight": 0.1}, "hard_weight: for loss: mse"),
        ({"loss": "mse", "label_smoothing": 0.1}, "label_smoothing: mse"),
        ({"epochs": 5, "warmup_epochs": 5}, "warmup_epochs: got 5 of 5"),
        ({"hard_passes": {"first": 3, "until": 3}}, "until: got 3, expected more than first: 3"),
        ({"epochs": 5, "hard_passes": {"first": 3, "until": 6}}, "until: got 6 of 5 epochs"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        settings(**fields)


@pytest.mark.parametrize(
    ("fields", "relabel", "why"),
    [
        ({"loss": "kl"}, None, "evaluate.loss: kl compares with a teacher's logits"),
        ({"hard_passes": {"first": 0, "until": 1}}, None, "evaluate.hard_passes: stand between"),
        ({"hard_passes": {"first": 0, "until": 1}}, {}, None),
        ({"loss": "mse"}, {"store": "top_k", "top_k": 2}, "mse compares all logits"),
        ({"augment": {"operations": ["flip"]}}, {}, "the very pixels"),
        ({"order": "published"}, {}, "evaluate.order: published"),
        ({"start": "distilled"}, {}, "evaluate.start: distilled"),
        ({"loss": "kl"}, {"store": "top_k", "top_k": 2}, None),
        ({"augment": {"operations": ["flip"]}}, None, None),
    ],
)
def test_students_that_do_not_fit_the_labels_are_refused(
    fields: dict[str, Any], relabel: dict[str, Any] | None, why: str | None
) -> None:
    section = None if relabel is None else Relabel.model_validate(relabel)
    found = list(Evaluate.model_validate({"epochs": 2, **fields}).problems(section))
    assert found == [] if why is None else [why in problem for problem in found] == [True]


def test_a_student_of_plain_settings_asks_for_none_of_this() -> None:
    given = settings()
    assert (given.ema, given.smoothing, given.warmup_epochs, given.loss) == (None, None, 0, "soft")
    assert smoothed(targets := torch.ones(2, 3), 0.0) is targets
