"""Students: plain supervised training, step by step, and the share of images they get right."""

import math
from itertools import chain, combinations
from typing import ClassVar, Literal

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from support.student_problem import OneLayer, Rows, rows, settings, weights
from support.tiny import CPU, NET, TOY, toy_real
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from distill_datasets.data.normalization import InputSpace
from distill_datasets.errors import DistillError
from distill_datasets.evaluation.protocol import Evaluate
from distill_datasets.models.architecture import Architecture
from distill_datasets.models.initialization import initialize
from distill_datasets.optimizers import Adam, Sgd
from distill_datasets.runtime.draws import draws
from distill_datasets.training.examples import Stored
from distill_datasets.training.loop import rate, steps_of
from distill_datasets.training.metrics import accuracy, answers
from distill_datasets.training.student import train_student
from distill_datasets.types import Batch, Shape
from distill_datasets.views.augment import Augment


def train(settings: Evaluate, examples: Rows, steps: int = 6, seed: int = 0) -> nn.Module:
    return train_student(settings, steps, examples, TOY, draws(seed), CPU)


def by_hand(examples: Rows, steps: int, rates: list[float]) -> tuple[Tensor, list[float]]:
    """Weights after gradient descent with momentum on all examples, and the loss of every step."""
    module = OneLayer().build(TOY)
    initialize(module, draws(0)("network"))
    images_BCHW, targets_BK = examples(torch.arange(examples.count))
    velocity = [torch.zeros_like(parameter) for parameter in module.parameters()]
    losses = []
    for size in rates[:steps]:
        loss = -(targets_BK * F.log_softmax(module(images_BCHW), dim=1)).sum(dim=1).mean()
        losses.append(loss.item())
        grads = torch.autograd.grad(loss, list(module.parameters()))
        with torch.no_grad():
            for parameter, moving, grad in zip(module.parameters(), velocity, grads, strict=True):
                moving.mul_(0.9).add_(grad)
                parameter -= size * moving
    return weights(module), losses


def test_student_is_what_so_many_steps_of_descent_give() -> None:
    expected_P, _ = by_hand(rows(), 6, [0.05] * 6)
    examples = rows()
    torch.testing.assert_close(weights(train(settings(), examples)), expected_P)
    assert len(examples.asked) == 6


def test_student_is_returned_as_it_is_after_the_last_step_even_if_it_was_better_before() -> None:
    images_BCHW, targets_BK = toy_real().select(torch.arange(9))
    ambiguous = Batch(images_BCHW, 0.5 * targets_BK + 0.5 / 3)  # its loss cannot vanish
    expected_P, losses = by_hand(Rows(ambiguous), 4, [0.3] * 4)
    assert losses[-1] > min(losses) + 0.1
    module = train(settings(optimizer=Sgd(lr=0.3)), Rows(ambiguous), steps=4)
    torch.testing.assert_close(weights(module), expected_P)


def test_cosine_schedule_lets_the_rate_fall_to_zero() -> None:
    rates = [0.05 * (1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)]
    expected_P, _ = by_hand(rows(), 6, rates)
    module = train(settings(schedule="cosine"), rows())
    torch.testing.assert_close(weights(module), expected_P)


def test_a_pass_visits_every_example_once_in_an_order_of_its_own() -> None:
    examples = rows(9)
    train(settings(batch=3), examples, steps=9)
    passes = [list(chain(*examples.asked[start : start + 3])) for start in (0, 3, 6)]
    assert all(sorted(visited) == list(range(9)) for visited in passes)
    assert len({tuple(visited) for visited in passes}) == 3


def test_the_rest_of_a_pass_that_fills_no_batch_is_dropped() -> None:
    examples = rows(10)
    train(settings(batch=4), examples, steps=4)
    assert [len(asked) for asked in examples.asked] == [4, 4, 4, 4]
    for start in (0, 2):
        visited = list(chain(*examples.asked[start : start + 2]))
        assert len(set(visited)) == 8
    assert sorted(examples.asked[0]) != sorted(examples.asked[2])


def test_a_batch_as_large_as_the_set_takes_all_examples_every_step() -> None:
    for batch in (9, 256):
        examples = rows(9)
        train(settings(batch=batch), examples, steps=3)
        assert examples.asked == [list(range(9))] * 3


def test_soft_targets_are_learned_as_they_are() -> None:
    target_K = torch.tensor([0.7, 0.2, 0.1])
    examples = Rows(Batch(torch.ones(1, 1, 8, 8), target_K[None]))
    module = train(settings(optimizer=Sgd(lr=0.02, momentum=0.0)), examples, steps=60)
    probability_K = module(torch.ones(1, 1, 8, 8)).softmax(dim=1)[0].detach()
    torch.testing.assert_close(probability_K, target_K, atol=0.001, rtol=0)


def test_augmentation_moves_what_a_student_sees() -> None:
    plain = train(settings(), rows())
    moved = train(settings(augment=Augment(operations=["shift"])), rows())
    assert not torch.equal(weights(plain), weights(moved))


class Onlooker(nn.Module):
    """Passes images on and keeps them."""

    def __init__(self, seen: list[Tensor]) -> None:
        super().__init__()
        self._seen = seen

    def forward(self, images_BCHW: Tensor) -> Tensor:
        self._seen.append(images_BCHW.detach().clone())
        return images_BCHW


class Watched(Architecture):
    """A linear classifier that keeps what it is shown."""

    paper: ClassVar[str] = "none"
    name: Literal["watched"] = "watched"
    seen: ClassVar[list[Tensor]] = []

    def build(self, shape: Shape) -> nn.Module:
        linear = nn.Linear(shape.c * shape.h * shape.w, shape.k)
        return nn.Sequential(Onlooker(self.seen), nn.Flatten(), linear)


def test_every_step_augments_anew() -> None:
    Watched.seen.clear()
    train(settings(network=Watched(), augment=Augment(operations=["shift", "rotate"])), rows())
    assert len(Watched.seen) == 6  # all nine examples in every step
    for first, second in combinations(Watched.seen, 2):
        assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("steps", "full"), [(6, 3), (5, 3), (2, 1), (1, 1)], ids=["even", "odd", "two", "one"]
)
def test_the_rate_falls_to_a_tenth_at_the_first_step_of_the_second_half(
    steps: int, full: int
) -> None:
    expected = [1.0] * full + [0.1] * (steps - full)
    for schedule in ("step", "published_step"):
        assert [rate(schedule, step, steps) for step in range(steps)] == expected


@pytest.mark.parametrize("optimizer", [Sgd(lr=0.05), Adam(lr=0.01)])
def test_the_seed_alone_decides_a_student(optimizer: Sgd | Adam) -> None:
    given = settings(
        network=NET, batch=4, optimizer=optimizer, augment=Augment(operations=["flip", "rotate"])
    )
    before = torch.get_rng_state()
    first = weights(train(given, rows(), seed=1))
    torch.rand(3)
    second, other = weights(train(given, rows(), seed=1)), weights(train(given, rows(), seed=2))
    torch.set_rng_state(before)
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_a_loss_that_is_not_finite_stops_with_a_remedy() -> None:
    with pytest.raises(DistillError, match=r"loss is (nan|inf) at step 5; lower .*lr"):
        train(settings(optimizer=Sgd(lr=1e38)), rows())


def test_accuracy_is_the_share_of_images_and_not_of_batches() -> None:
    def batch(logits: list[list[float]], classes: list[int]) -> Batch:
        return Batch(torch.tensor(logits), F.one_hot(torch.tensor(classes), 3).float())

    right, wrong = [0.1, 0.7, 0.2], [0.9, 0.7, 0.2]
    batches = [batch([right, wrong, wrong], [1, 1, 2]), batch([wrong], [0])]
    assert accuracy(nn.Identity(), batches) == 0.5


def test_accuracy_is_measured_without_the_noise_of_training() -> None:
    # in training mode this layer sets all logits to zero, which would be class 0
    batch = Batch(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0]]))
    assert accuracy(nn.Dropout(1.0), [batch]) == 1


@pytest.mark.parametrize(
    ("epochs", "count", "batch", "steps"),
    [(2, 10, 5, 4), (2, 10, 3, 6), (2, 10, 10, 2), (3, 4, 256, 3)],
)
def test_epochs_are_counted_in_full_batches(
    epochs: int, count: int, batch: int, steps: int
) -> None:
    assert steps_of(epochs, count, batch) == steps
    assert settings(steps=None, epochs=epochs, batch=batch).duration(count) == steps
    assert settings(steps=7, batch=batch).duration(count) == 7


@pytest.mark.parametrize("fields", [{"steps": None}, {"steps": 3, "epochs": 1}])
def test_either_steps_or_epochs_are_expected(fields: dict[str, int | None]) -> None:
    with pytest.raises(ValidationError, match="expected either steps or epochs"):
        settings(**fields)


def test_a_reference_named_twice_is_refused() -> None:
    with pytest.raises(ValidationError, match="references: expected no repeats"):
        settings(references=["full", "full"])


@pytest.mark.parametrize(
    "images_NCHW",
    [
        torch.tensor([51, 204], dtype=torch.uint8).view(2, 1, 1, 1),
        torch.tensor([0.2, 0.8]).view(2, 1, 1, 1),
    ],
)
def test_stored_pixels_go_into_the_input_space_of_the_student(
    images_NCHW: Tensor,
) -> None:
    targets_NK = torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    stored = Stored(images_NCHW, targets_NK, InputSpace(torch.tensor([0.4]), torch.tensor([0.2])))
    images_BCHW, targets_BK = stored(torch.tensor([1, 0]))
    torch.testing.assert_close(images_BCHW.flatten(), torch.tensor([2.0, -1.0]))
    assert targets_BK.tolist() == [[0.25, 0.75], [1, 0]]
    assert stored.count == 2


class Normed(Architecture):
    """A network that looks at the batch as a whole, or at every image by itself."""

    paper: ClassVar[str] = "none"
    name: Literal["normed"] = "normed"
    batch_norm: bool

    def build(self, shape: Shape) -> nn.Module:
        norm = nn.BatchNorm2d(shape.c) if self.batch_norm else nn.GroupNorm(1, shape.c)
        return nn.Sequential(Seen(), norm, nn.Flatten(), nn.Linear(shape.c * shape.h * shape.w, 3))


class Seen(nn.Module):
    """Passes images on and remembers how many came at once."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, images_BCHW: Tensor) -> Tensor:
        self.sizes.append(len(images_BCHW))
        return images_BCHW


@pytest.mark.parametrize(("batch_norm", "sizes"), [(False, [4, 4, 1]), (True, [9])])
def test_a_batch_is_taken_in_chunks_unless_the_network_looks_at_all_of_it(
    monkeypatch: pytest.MonkeyPatch, batch_norm: bool, sizes: list[int]
) -> None:
    monkeypatch.setattr("distill_datasets.training.student.CPU_CHUNK", 4)
    monkeypatch.setattr("distill_datasets.training.student.initialize", lambda module, rng: None)
    module = train(settings(network=Normed(batch_norm=batch_norm)), rows(), steps=2)
    seen = module[0]
    assert isinstance(seen, Seen) and seen.sizes == 2 * sizes


def test_chunks_of_unequal_size_train_the_student_of_whole_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = train(settings(), rows())
    monkeypatch.setattr("distill_datasets.training.student.CPU_CHUNK", 4)
    chunked = train(settings(), rows())
    torch.testing.assert_close(
        parameters_to_vector(chunked.parameters()),
        parameters_to_vector(whole.parameters()),
        rtol=1e-5,
        atol=1e-6,
    )


def test_a_student_in_bfloat16_is_nearly_that_of_float32_and_its_weights_are_float32() -> None:
    real, trained = toy_real(), {}
    examples = Stored(real.train.images_NCHW, real.select(torch.arange(120)).targets_BK, None)
    for precision in ("float32", "bfloat16"):
        asked = settings(network=NET, steps=20, batch=40, precision=precision)
        module = train_student(asked, 20, examples, real.shape, draws(0), CPU)
        trained[precision] = answers(module, real.test_batches(60), precision)
        assert weights(module).dtype == torch.float32
    full, low = trained["float32"].logits_NK, trained["bfloat16"].logits_NK
    assert low.dtype == torch.float32
    assert 1e-4 < float((low - full).norm() / full.norm()) < 0.1
    assert abs(trained["float32"].score().accuracy - trained["bfloat16"].score().accuracy) < 0.1
