"""The outer loop: clipping, schedules, saved states, pictures on the way, and that it learns."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from support.outer_loop_problem import Counting, Scattered, fresh, run, same_bits, settings
from support.tiny import CPU, NET, TOY, distilled_of, flat_real, toy_real, values
from torch import Tensor

from distill_datasets.canvases.pixels import Pixels
from distill_datasets.canvases.poster import Poster
from distill_datasets.data.real import RealData
from distill_datasets.distilled import Distilled
from distill_datasets.errors import DistillError
from distill_datasets.evaluation.protocol import Evaluate
from distill_datasets.files.artifacts import read_tensors
from distill_datasets.labels.learned import Learned
from distill_datasets.models.convnets import ConvNet
from distill_datasets.networks.network import Fresh, FreshSource, NetworkSource
from distill_datasets.objectives.objective import Estimate
from distill_datasets.objectives.unrolled import Unrolled
from distill_datasets.optimizers import Adam, Sgd
from distill_datasets.runtime.draws import LaneDraw, draws
from distill_datasets.selection.random import Noise
from distill_datasets.stages.distill import STATE, schedule
from distill_datasets.stages.outer_state import OuterState, Residual
from distill_datasets.training.examples import Examples, shuffled
from distill_datasets.training.metrics import accuracy
from distill_datasets.training.student import train_student
from distill_datasets.types import Batch

PIXELS, CELLS = "canvas.trained_NCHW", "labels.cells_GK"


class Steady(Scattered):
    """A gradient of one everywhere, at every step; not a number from the step `until` on."""

    until: int = 1000

    def estimate(
        self, distilled: Distilled, networks: NetworkSource, real: RealData, draw: LaneDraw
    ) -> Estimate:
        grads = {
            name: torch.ones_like(parameter) for name, parameter in distilled.parameters.items()
        }
        return Estimate(math.nan if draw.step == self.until else 1.5, grads, {})


class Choosy(Steady):
    """A gradient of one, which counts in the first `of` lanes of every second step only."""

    of: int

    def estimate(
        self, distilled: Distilled, networks: NetworkSource, real: RealData, draw: LaneDraw
    ) -> Estimate:
        estimate = super().estimate(distilled, networks, real, draw)
        counts = draw.lane < self.of and draw.step % 2 == 0
        return estimate._replace(counts=counts, loss=math.nan if not counts else 1.5)


class Fixed(Examples):
    """Examples that are trained no more."""

    def __init__(self, distilled: Distilled) -> None:
        with torch.no_grad():
            self._batch = distilled(torch.arange(distilled.count))

    @property
    def count(self) -> int:
        return len(self._batch.images_BCHW)

    def __call__(self, index_B: Tensor) -> Batch:
        return Batch(*(part[index_B] for part in self._batch))

    def order(self, rng: torch.Generator, batch: int, turn: int) -> Tensor:
        return shuffled(self.count, rng, batch)

    def loss(self, logits_BK: Tensor, targets_BK: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(logits_BK, targets_BK)


def outer_of(distilled: Distilled, **fields: Any) -> OuterState:  # noqa: ANN401
    """A state of six steps of Adam."""
    return OuterState(distilled, {"canvas": Adam(lr=0.1), "labels": Adam(lr=0.1)}, 6, **fields)


@pytest.fixture
def outer() -> OuterState:
    """Two canvas values and one label, none of which has moved."""
    real = flat_real([0, 0], side=1)
    return outer_of(distilled_of(real, Pixels(ipc=1), Learned()))


def clipped(outer: OuterState, norm: float, limit: float | None = 2.0) -> float:
    """The norm that clipping leaves of a canvas gradient, after which a step has passed."""
    grads = {PIXELS: norm * torch.tensor([0.6, 0.8]).view(2, 1, 1, 1), CELLS: torch.ones(2, 2)}
    outer.clip(grads, limit)
    outer.step += 1
    assert grads[CELLS].tolist() == [[1, 1], [1, 1]]
    return round(float(grads[PIXELS].norm()), 4)


def test_gradients_are_clipped_at_twice_the_moving_average_of_their_norm(
    outer: OuterState,
) -> None:
    # averages 1, then 0.9 * 1 + 0.1 * 10 = 1.9, then 0.9 * 1.9 + 0.1 * 10 = 2.71, then 2.639
    assert [clipped(outer, norm) for norm in (1, 10, 10, 2)] == [1, 3.8, 5.42, 2]
    assert outer.mean_norm == pytest.approx(2.639)


def test_the_first_gradient_is_never_clipped(outer: OuterState) -> None:
    assert clipped(outer, 1000) == 1000


def test_a_gradient_of_zero_is_left_at_zero_and_starts_no_average(
    outer: OuterState,
) -> None:
    assert [clipped(outer, norm) for norm in (0, 0, 3)] == pytest.approx([0, 0, 3])


def test_without_a_limit_nothing_is_clipped(outer: OuterState) -> None:
    assert [clipped(outer, norm, None) for norm in (1, 1000)] == [1, 1000]


def phased() -> OuterState:
    real = flat_real([0, 0], side=1)
    return outer_of(distilled_of(real, Pixels(ipc=1), Learned()), residual=Residual(every=2))


def moved(outer: OuterState, until: int) -> None:
    """Steps of which each moves every value of the canvas by -0.1."""
    while outer.step < until:
        outer.move({name: torch.ones_like(value) for name, value in outer.parameters.items()}, 1)
        outer.step += 1
        outer.mix_start()


def test_the_start_is_mixed_back_between_phases_and_not_after_the_last() -> None:
    outer = phased()
    start = outer.parameters[PIXELS].detach().clone()
    for until, away in ((1, 0.1), (2, 0.1), (3, 0.2), (4, 0.15), (6, 0.35)):
        moved(outer, until)
        assert (start - outer.parameters[PIXELS]).flatten().tolist() == pytest.approx([away] * 2)


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_a_state_saved_within_a_phase_goes_on_to_the_same_bits(tmp_path: Path, stop: int) -> None:
    whole, first, second = phased(), phased(), phased()
    moved(whole, 6)
    moved(first, stop)
    first.save(tmp_path / STATE)
    assert second.restore(tmp_path / STATE)
    moved(second, 6)
    for name, value in whole.parameters.items():
        assert torch.equal(value, second.parameters[name])


def test_cosine_falls_from_one_to_zero() -> None:
    cosine = settings(schedule="cosine", steps=4)
    expected = [1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5, 0]
    assert [schedule(cosine, step) for step in range(5)] == pytest.approx(expected)


def test_constant_schedule_is_one() -> None:
    assert {schedule(settings(), step) for step in range(6)} == {1}


@pytest.mark.parametrize(("kind", "steps_worth"), [("constant", 6), ("cosine", 3.5)])
def test_canvas_and_labels_move_by_their_own_rates_times_the_schedule(
    tmp_path: Path, kind: str, steps_worth: float
) -> None:
    # the factors of the cosine at six steps sum to (6 + 1) / 2
    given = settings(
        objective=Steady(),
        schedule=kind,
        optimizer=Sgd(lr=0.5, momentum=0.0),
        label_optimizer=Sgd(lr=0.01, momentum=0.0),
        clip=None,
    )
    before, after = fresh(given, toy_real()), run(given, tmp_path)
    moved = before.parameters[PIXELS] - after.parameters[PIXELS]
    assert values(moved) == pytest.approx([0.5 * steps_worth] * moved.numel())
    moved_diagonal = (before.parameters[CELLS] - after.parameters[CELLS]).diag()
    assert values(moved_diagonal) == pytest.approx([0.01 * steps_worth] * 3, abs=1e-5)


def test_outer_adam_counts_its_steps(tmp_path: Path) -> None:
    # a gradient that stays the same moves Adam by its rate in every step, also after a resumption
    given = settings(objective=Steady(), optimizer=Adam(lr=0.01), clip=None)
    with pytest.raises(KeyboardInterrupt):
        run(given, tmp_path, bar=Counting(4))
    before, after = fresh(given, toy_real()), run(given, tmp_path)
    moved = (before.parameters[PIXELS] - after.parameters[PIXELS]).flatten().tolist()
    assert moved == pytest.approx([0.06] * len(moved), abs=1e-5)


def test_a_step_follows_the_mean_of_its_lanes(tmp_path: Path) -> None:
    given = settings(steps=1, lanes=3, optimizer=Sgd(lr=1.0, momentum=0.0), clip=None)
    distilled = fresh(given, toy_real())
    networks = FreshSource(NET, TOY, CPU)
    lanes = [
        given.objective.estimate(distilled, networks, toy_real(), LaneDraw(0, 0, lane))
        for lane in range(3)
    ]
    mean = torch.stack([lane.grads[PIXELS] for lane in lanes]).mean(dim=0)
    bar = Counting()
    after = run(given, tmp_path, bar=bar)
    torch.testing.assert_close(
        after.parameters[PIXELS].detach(), distilled.parameters[PIXELS].detach() - mean
    )
    assert bar.losses == pytest.approx([sum(lane.loss for lane in lanes) / 3])
    assert len({lane.loss for lane in lanes}) == 3


def test_labels_are_projected_after_every_step(tmp_path: Path) -> None:
    given = settings(
        objective=Steady(), label_optimizer=Sgd(lr=10.0), labels=Learned(floor=0.01), steps=1
    )
    assert values(run(given, tmp_path).parameters[CELLS]) == [0.01] * 9


def test_the_moving_average_is_what_is_published(tmp_path: Path) -> None:
    # every step moves by a half; with decays 0, 1/2, 1/2 averages are 0.5, 0.75, 1.125
    given = settings(
        objective=Steady(), steps=3, optimizer=Sgd(lr=0.5, momentum=0.0), clip=None, ema=0.5
    )
    before, after = fresh(given, toy_real()), run(given, tmp_path)
    moved = before.parameters[PIXELS] - after.parameters[PIXELS]
    assert values(moved) == pytest.approx([1.125] * moved.numel())
    # the loop itself goes on from its own values
    assert values(before.parameters[PIXELS] - read_tensors(tmp_path / STATE)[0][PIXELS]) == (
        pytest.approx([1.5] * moved.numel())
    )


def test_the_first_steps_count_alike_in_a_long_moving_average(tmp_path: Path) -> None:
    given = settings(
        objective=Steady(), steps=4, optimizer=Sgd(lr=0.5, momentum=0.0), clip=None, ema=0.99
    )
    moved = fresh(given, toy_real()).parameters[PIXELS] - run(given, tmp_path).parameters[PIXELS]
    assert values(moved) == pytest.approx([(0.5 + 1 + 1.5 + 2) / 4] * moved.numel())


@pytest.mark.parametrize("stop_after", [1, 4, 6])
def test_a_stopped_run_ends_with_the_bits_of_the_moving_average_too(
    tmp_path: Path, stop_after: int
) -> None:
    given = settings(schedule="cosine", ema=0.9)
    through = run(given, tmp_path / "through")
    with pytest.raises(KeyboardInterrupt):
        run(given, tmp_path / "stopped", bar=Counting(stop_after))
    assert same_bits(through, run(given, tmp_path / "stopped"))
    assert not same_bits(through, run(settings(schedule="cosine"), tmp_path / "plain"))
    # a finished one says the same when it is asked again
    assert same_bits(through, run(given, tmp_path / "through"))


@pytest.mark.parametrize("stop_after", range(1, 7))
def test_a_run_stopped_at_any_step_ends_with_the_bits_of_one_that_was_not(
    tmp_path: Path, stop_after: int
) -> None:
    # the forces differ by a factor of fifty, so that clipping takes part
    given = settings(schedule="cosine")
    through = run(given, tmp_path / "through")
    with pytest.raises(KeyboardInterrupt):
        run(given, tmp_path / "stopped", bar=Counting(stop_after))
    bar = Counting()
    resumed = run(given, tmp_path / "stopped", bar=bar)
    assert same_bits(through, resumed)
    assert bar.done == 6
    # the state of the step that was stopped before it was saved is the only one lost
    assert len(bar.losses) == 6 - (stop_after - 1)


def test_a_run_stopped_while_a_picture_is_drawn_goes_on_behind_it(tmp_path: Path) -> None:
    given = settings(previews=3)

    def stop(step: int) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(given, tmp_path / "stopped", preview=stop)
    bar = Counting()
    assert same_bits(run(given, tmp_path / "through"), run(given, tmp_path / "stopped", bar=bar))
    assert len(bar.losses) == 2


def test_a_meta_gradient_run_resumes_with_the_same_bits(tmp_path: Path) -> None:
    given = settings(
        objective=Unrolled(inner_steps=4, window=2, real_batch=16), canvas=Poster(ipc=0.9, crops=6)
    )
    through = run(given, tmp_path / "through")
    with pytest.raises(KeyboardInterrupt):
        run(given, tmp_path / "stopped", bar=Counting(3))
    assert same_bits(through, run(given, tmp_path / "stopped"))


def test_a_run_stopped_before_its_first_saved_state_starts_over(tmp_path: Path) -> None:
    given = settings(checkpoint_seconds=1000.0)
    with pytest.raises(KeyboardInterrupt):
        run(given, tmp_path / "stopped", bar=Counting(4))
    assert not (tmp_path / "stopped" / STATE).exists()
    assert same_bits(run(given, tmp_path / "through"), run(given, tmp_path / "stopped"))


def test_the_last_state_is_saved_whatever_the_time(tmp_path: Path) -> None:
    distilled = run(settings(checkpoint_seconds=1000.0), tmp_path)
    tensors, note = read_tensors(tmp_path / STATE)
    assert note["step"] == 6
    assert torch.equal(tensors[PIXELS], distilled.parameters[PIXELS])


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    finished = run(settings(), tmp_path)
    bar = Counting()
    assert same_bits(finished, run(settings(), tmp_path, bar=bar))
    assert bar.done == 6 and bar.losses == []


def test_neither_cores_nor_threads_change_a_bit(tmp_path: Path) -> None:
    given = settings(objective=Unrolled(inner_steps=3, window=2, real_batch=16), steps=2)
    runs = [run(given, tmp_path / str(cores), cores=cores) for cores in (1, 2)]
    assert same_bits(*runs)


def test_a_loss_that_is_not_a_number_stops_with_the_step_and_keeps_the_state_before_it(
    tmp_path: Path,
) -> None:
    given = settings(objective=Steady(until=3))
    with pytest.raises(DistillError, match=r"not finite at outer step 3 \(loss nan\); lower"):
        run(given, tmp_path / "lost")
    tensors, note = read_tensors(tmp_path / "lost" / STATE)
    assert note["step"] == 3
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())


def test_a_gradient_that_is_not_finite_stops_as_well(tmp_path: Path) -> None:
    class Infinite(Steady):
        def estimate(self, *what: Any) -> Estimate:  # noqa: ANN401
            estimate = super().estimate(*what)
            estimate.grads[PIXELS][0, 0, 0, 0] = math.inf
            return estimate

    with pytest.raises(DistillError, match="not finite at outer step 0"):
        run(settings(objective=Infinite()), tmp_path)


@pytest.mark.parametrize(
    ("steps", "previews", "drawn"),
    [(6, 3, [2, 4, 6]), (6, 0, []), (2, 10, [1, 2]), (6, 1, [6])],
)
def test_pictures_are_drawn_evenly_up_to_the_last_step(
    tmp_path: Path, steps: int, previews: int, drawn: list[int]
) -> None:
    asked: list[int] = []
    run(settings(steps=steps, previews=previews), tmp_path, preview=asked.append)
    assert asked == drawn


def test_outer_steps_make_a_poster_that_teaches_what_an_untrained_one_does_not(
    tmp_path: Path,
) -> None:
    real, network = toy_real(), ConvNet(depth=2, width=8)
    given = settings(
        objective=Unrolled(inner_steps=10, window=10, real_batch=60, optimizer=Adam(lr=0.02)),
        canvas=Poster(ipc=0.5, crops=8, init=Noise(std=0.1)),
        networks=Fresh(network=network),
        lanes=4,
        optimizer=Adam(lr=0.1),
        label_optimizer=Adam(lr=0.05),
        steps=30,
        checkpoint_seconds=1000.0,
    )
    untrained, bar = fresh(given, real), Counting()
    trained = run(given, tmp_path, bar=bar)
    student = Evaluate(network=network, steps=10, optimizer=Adam(lr=0.02))

    def mean_accuracy(distilled: Distilled) -> float:
        modules = [
            train_student(student, 10, Fixed(distilled), TOY, draws(seed), CPU) for seed in range(4)
        ]
        return sum(accuracy(module, real.test_batches(64)) for module in modules) / 4

    assert sum(bar.losses[-5:]) < 0.92 * sum(bar.losses[:5])
    # measured 0.70 and 0.34, where chance is 0.33 and students differ by 0.04
    assert mean_accuracy(trained) > mean_accuracy(untrained) + 0.2


def test_lanes_that_do_not_count_leave_the_mean_and_the_momentum_alone(tmp_path: Path) -> None:
    rule = Sgd(lr=0.1, momentum=0.5)
    common = {"optimizer": rule, "clip": None, "canvas": Pixels(ipc=1), "labels": Learned()}
    bar = Counting()
    choosy = run(settings(objective=Choosy(of=1), steps=5, **common), tmp_path / "a", bar=bar)
    steady = run(settings(objective=Steady(), steps=3, **common), tmp_path / "b")
    assert torch.equal(choosy.parameters[PIXELS], steady.parameters[PIXELS])
    assert bar.done == 5 and bar.losses == [1.5] * 3


def test_a_run_in_which_no_lane_counts_is_not_taken_for_a_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = settings(objective=Choosy(of=0), steps=4)
    with pytest.raises(DistillError, match="no lane counted in 4 outer steps up to step 4: each"):
        run(few, tmp_path / "few")
    assert read_tensors(tmp_path / "few" / STATE)[1]["idle"] == 3
    with pytest.raises(DistillError, match="no lane counted in 4 outer steps up to step 4: each"):
        run(few, tmp_path / "few")  # it goes on where it stopped, and stops again
    monkeypatch.setattr("distill_datasets.stages.distill.MOST_IDLE", 5)
    with pytest.raises(DistillError, match="no lane counted in 5 outer steps up to step 5: each"):
        run(settings(objective=Choosy(of=0), steps=9), tmp_path / "many")


def test_trackers_are_told_the_loss_and_what_lane_zero_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Telling(Steady):
        def estimate(
            self, distilled: Distilled, networks: NetworkSource, real: RealData, draw: LaneDraw
        ) -> Estimate:
            metrics = {"place": float(10 * draw.step + draw.lane)}
            return super().estimate(distilled, networks, real, draw)._replace(metrics=metrics)

    logged: list[tuple[dict[str, float], int]] = []
    monkeypatch.setattr(
        "accelerate.Accelerator.log", lambda self, values, step: logged.append((values, step))
    )
    run(settings(objective=Telling(), steps=2), tmp_path)
    assert logged == [
        ({"distill/loss": 1.5, "distill/place": 0.0}, 0),
        ({"distill/loss": 1.5, "distill/place": 10.0}, 1),
    ]
