"""Networks trained on the way: when they are fresh, what trains them, and that runs resume.

Shape suffixes: B a batch, N all examples, K classes, C channels, H W pixels, P all weights.
"""

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.outer_loop_problem import Counting, run, same_bits, settings
from support.tiny import CPU, NET, TOY, distilled_of, flops, toy_real, values
from support.toy_runs import CONVNET, command, toy_sections
from torch import Tensor, nn

from distill_datasets.canvases.mosaic import Mosaic
from distill_datasets.canvases.pixels import Pixels
from distill_datasets.data.real import RealData
from distill_datasets.distilled import Distilled
from distill_datasets.export.folder import verify
from distill_datasets.files.artifacts import read_tensors
from distill_datasets.files.yaml_text import to_yaml
from distill_datasets.labels.fixed import Area
from distill_datasets.models.convnets import ConvNet
from distill_datasets.networks.network import CarryingSource, FreshSource
from distill_datasets.networks.online import Trained, TrainedOnDistilled, TrainedOnReal, cut_and_mix
from distill_datasets.objectives.gradient import Gradient
from distill_datasets.optimizers import Adam, Optimizer, Sgd
from distill_datasets.runtime.draws import LaneDraw, rng_for
from distill_datasets.stages.distill import STATE
from distill_datasets.types import Batch
from distill_datasets.views.augment import Augment

REAL = toy_real()
WIDE = ConvNet(depth=2, width=32)
MOMENTUM = Sgd(lr=0.1, momentum=0.9, weight_decay=0.01)


def on_distilled(**fields: object) -> TrainedOnDistilled:
    return TrainedOnDistilled.model_validate({"network": NET, "outer": 3, **fields})


def on_real(**fields: object) -> TrainedOnReal:
    given = {"network": NET, "every": 3, "real_images": 20, "batch": 8, "cutmix": False}
    return TrainedOnReal.model_validate(given | fields)


def source(settings: Trained) -> CarryingSource:
    networks = settings.build(TOY, CPU)
    assert isinstance(networks, CarryingSource)
    return networks


class Recorder(Distilled):
    """Remembers what it showed, as (images, targets)."""

    def __init__(self, own: Distilled) -> None:
        vars(self).update(vars(own))
        self.shown: list[Batch] = []
        self.asked: list[list[int]] = []

    def __call__(self, index_B: Tensor) -> Batch:
        batch = super().__call__(index_B)
        self.shown.append(batch)
        self.asked.append(index_B.tolist())
        return batch


class RecordedReal(RealData):
    """Toy images that remember which rows were asked for."""

    def __init__(self) -> None:
        super().__init__(**vars(toy_real()))
        self.asked: list[list[int]] = []
        self.shown: list[Batch] = []

    def select(self, index_B: Tensor) -> Batch:
        batch = super().select(index_B)
        self.asked.append(index_B.tolist())
        self.shown.append(batch)
        return batch


@pytest.fixture
def distilled() -> Recorder:
    """Nine images of three classes."""
    return Recorder(distilled_of(REAL, Pixels(ipc=3), Area(), rng_for(1, "canvas")))


@pytest.fixture
def real() -> RecordedReal:
    return RecordedReal()


def together(lists: list[list[int]]) -> list[int]:
    return list(chain.from_iterable(lists))


def by_hand(batches: list[Batch], rule: Optimizer, start_P: Tensor) -> Tensor:
    """Weights after training on these batches with torch's own modules and optimizer."""
    module = NET.build(TOY)
    nn.utils.vector_to_parameters(start_P.clone(), module.parameters())
    optimizer = rule.torch_optimizer(module.parameters())
    for images_BCHW, targets_BK in batches:
        optimizer.zero_grad()
        F.cross_entropy(module(images_BCHW), targets_BK).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return nn.utils.parameters_to_vector(module.parameters()).detach()


def start_of(step: int, lane: int = 0) -> Tensor:
    return FreshSource(NET, TOY, CPU).sample(LaneDraw(0, step, lane)).weights_P


def follow(networks: CarryingSource, steps: range, distilled: Distilled, real: RealData) -> Tensor:
    """Take one lane through some outer steps, as the loop does; the weights after the last."""
    for step in steps:
        networks.carry(0, networks.advance(distilled, real, LaneDraw(0, step, 0)))
    return networks.sample(LaneDraw(0, steps.stop, 0)).weights_P


@pytest.mark.parametrize("settings", [on_distilled(), on_real()])
def test_networks_are_fresh_exactly_where_a_cycle_starts(
    settings: Trained, distilled: Recorder, real: RealData
) -> None:
    networks = source(settings)
    seen = []
    for step in range(7):
        draw = LaneDraw(0, step, 0)
        weights_P = networks.sample(draw).weights_P
        assert torch.equal(weights_P, start_of(step)) == (step in (0, 3, 6))
        seen.append(weights_P)
        networks.carry(0, networks.advance(distilled, real, draw))
    assert all(not torch.equal(seen[one], seen[two]) for one in range(7) for two in range(one))


def test_a_cycle_of_one_step_carries_nothing() -> None:
    for once in (on_distilled(outer=1), on_real(every=1)):
        assert not isinstance(once.build(TOY, CPU), CarryingSource)
    weights = len(start_of(0))
    assert source(on_distilled()).carried_values == 2 * weights
    assert source(on_distilled(optimizer=Adam(lr=0.1))).carried_values == 3 * weights


def test_the_last_step_of_a_cycle_does_not_train(distilled: Recorder, real: RealData) -> None:
    networks = source(on_distilled())
    follow(networks, range(2), distilled, real)
    shown = len(distilled.asked)
    networks.advance(distilled, real, LaneDraw(0, 2, 0))
    assert len(distilled.asked) == shown


@pytest.mark.parametrize("batch", [256, 4])
def test_networks_are_trained_on_the_distilled_set_as_torch_would(
    distilled: Recorder, real: RealData, batch: int
) -> None:
    settings = on_distilled(epochs=3, batch=batch, optimizer=Sgd(lr=0.5, momentum=0.0))
    got = follow(source(settings), range(1), distilled, real)
    expected = by_hand(distilled.shown, settings.optimizer, start_of(0))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
    assert float((expected - start_of(0)).abs().max()) > 0.01
    # every epoch takes every example once, in an order of its own; the last batch is short
    assert [len(asked) for asked in distilled.asked] == 3 * ([9] if batch == 256 else [4, 4, 1])
    each = len(distilled.asked) // 3
    orders = [together(distilled.asked[each * epoch : each * (epoch + 1)]) for epoch in range(3)]
    assert all(sorted(order) == list(range(9)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


def test_dc_trains_without_momentum_at_a_hundredth() -> None:
    assert on_distilled().optimizer == Sgd(lr=0.01, momentum=0.0, weight_decay=0.0)
    assert on_distilled().batch == 256
    assert on_real().optimizer == Sgd(lr=0.01, momentum=0.9, weight_decay=0.0005)


@pytest.mark.parametrize("rule", [MOMENTUM, Adam(lr=0.01)])
def test_the_optimizer_goes_on_where_the_step_before_left_it(
    distilled: Recorder, real: RecordedReal, rule: Optimizer
) -> None:
    got = follow(source(on_real(optimizer=rule, every=5)), range(3), distilled, real)
    torch.testing.assert_close(got, by_hand(real.shown, rule, start_of(0)), rtol=1e-3, atol=1e-5)
    one = follow(source(on_distilled(optimizer=rule, outer=5)), range(3), distilled, real)
    torch.testing.assert_close(
        one, by_hand(distilled.shown, rule, start_of(0)), rtol=1e-3, atol=1e-5
    )


def test_every_step_passes_other_real_images_once(distilled: Recorder, real: RecordedReal) -> None:
    follow(source(on_real()), range(2), distilled, real)
    assert [len(asked) for asked in real.asked] == [8, 8, 4] * 2
    first, second = together(real.asked[:3]), together(real.asked[3:])
    assert len(set(first)) == len(set(second)) == 20 and set(first) != set(second)


def test_more_real_images_than_there_are_means_all_of_them(
    distilled: Recorder, real: RecordedReal
) -> None:
    follow(source(on_real(real_images=10_000, batch=50)), range(1), distilled, real)
    assert sorted(together(real.asked)) == list(range(120))


@pytest.mark.parametrize("make", [on_distilled, on_real])
def test_training_images_are_augmented(make: Any, distilled: Recorder, real: RealData) -> None:  # noqa: ANN401
    moved = make(augment=Augment(operations=["rotate"]))
    plain, rotated = (follow(source(each), range(1), distilled, real) for each in (make(), moved))
    assert not torch.equal(plain, rotated)


@pytest.mark.parametrize("settings", [on_distilled(), on_real(cutmix=True)])
def test_advancing_is_a_pure_function_of_what_was_carried(
    settings: Trained, distilled: Recorder, real: RealData
) -> None:
    networks, draw = source(settings), LaneDraw(0, 1, 0)
    follow(networks, range(1), distilled, real)
    before = networks.sample(draw).weights_P.clone()
    first, second = (networks.advance(distilled, real, draw) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(networks.sample(draw).weights_P, before)
    assert not first.requires_grad and len(first) == networks.carried_values


def test_lanes_have_networks_of_their_own(distilled: Recorder, real: RealData) -> None:
    networks = source(on_distilled())
    for lane in range(2):
        networks.carry(lane, networks.advance(distilled, real, LaneDraw(0, 0, lane)))
    one, two = (networks.sample(LaneDraw(0, 1, lane)).weights_P for lane in range(2))
    assert not torch.equal(one, two)
    assert torch.equal(one, follow(source(on_distilled()), range(1), distilled, real))


@pytest.mark.parametrize("settings", [on_distilled(epochs=2, network=WIDE), on_real(network=WIDE)])
def test_work_is_what_the_counter_of_torch_counts_in_a_cycle(
    settings: Trained, distilled: Recorder, real: RealData
) -> None:
    networks = source(settings)
    sampled = networks.sample(LaneDraw(0, 0, 0))
    per_image = flops(lambda: sampled(sampled.weights_P, torch.zeros(1, 1, 8, 8)))
    spent = flops(lambda: follow(networks, range(3), distilled, real))
    assert 3 * settings.work(per_image, 9) == pytest.approx(spent, rel=0.1)


def test_boxes_are_pasted_and_targets_mixed_by_their_area() -> None:
    grays_B = torch.arange(6.0)
    images_BCHW = grays_B[:, None, None, None].expand(-1, 2, 8, 10)
    areas = set()
    for seed in range(20):
        mixed_BCHW, targets_BK = cut_and_mix(Batch(images_BCHW, torch.eye(6)), rng_for(seed))
        changed_HW = (mixed_BCHW != images_BCHW)[:, 0].any(dim=0)
        rows, columns = (changed_HW.any(dim=dim).nonzero().flatten() for dim in (1, 0))
        assert int(changed_HW.sum()) == len(rows) * len(columns)  # one box, the same in all
        assert torch.equal(mixed_BCHW[:, 0], mixed_BCHW[:, 1])
        # the mean gray is the mean of the targets' grays
        torch.testing.assert_close(mixed_BCHW.mean(dim=(1, 2, 3)), targets_BK @ grays_B)
        assert values(targets_BK.sum(dim=1)) == [1] * 6
        assert values(targets_BK.sum(dim=0)) == [1] * 6
        areas.add(int(changed_HW.sum()))
    assert len(areas) > 10 and max(areas) <= 80


def test_about_half_of_the_batches_are_mixed(distilled: Recorder, real: RealData) -> None:
    batches = list(
        on_real(cutmix=True, batch=4, real_images=120).examples(distilled, real, LaneDraw(0, 0, 0))
    )
    mixed = sum(bool(((batch.targets_BK > 0) & (batch.targets_BK < 1)).any()) for batch in batches)
    # some boxes are empty, and some pairs are of one class
    assert len(batches) == 30 and 7 < mixed < 22
    plain = list(on_real().examples(distilled, real, LaneDraw(0, 0, 0)))
    assert all(set(values(batch.targets_BK)) == {0, 1} for batch in plain)


def matching(networks: Trained, **fields: object) -> Any:  # noqa: ANN401
    """Seven outer steps of two lanes of gradient matching, through more than two cycles."""
    given: dict[str, object] = {
        "objective": Gradient(real_batch=6, augment=Augment(operations=["flip", "color"])),
        "canvas": Mosaic(ipc=1),
        "labels": Area(),
        "networks": networks,
        "optimizer": Sgd(lr=0.1, momentum=0.5),
        "steps": 7,
    }
    return settings(**given | fields)


@pytest.mark.parametrize("stop_after", [1, 3, 5])
@pytest.mark.parametrize("networks", [on_distilled(), on_real(cutmix=True)])
def test_a_run_stopped_at_any_step_ends_with_the_bits_of_one_that_was_not(
    tmp_path: Path, networks: Trained, stop_after: int
) -> None:
    given = matching(networks)
    through = run(given, tmp_path / "through")
    with pytest.raises(KeyboardInterrupt):
        run(given, tmp_path / "stopped", bar=Counting(stop_after))
    resumed = run(given, tmp_path / "stopped")
    assert same_bits(through, resumed)
    ends = [read_tensors(tmp_path / name / STATE)[0] for name in ("through", "stopped")]
    assert {"carried/0", "carried/1"} <= ends[0].keys()
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


@pytest.mark.parametrize("networks", [on_distilled(), on_real()])
def test_neither_cores_nor_threads_change_a_bit(tmp_path: Path, networks: Trained) -> None:
    given = matching(networks, steps=4)
    assert same_bits(*(run(given, tmp_path / str(cores), cores=cores) for cores in (1, 2)))


def test_the_training_between_the_steps_changes_what_is_distilled(tmp_path: Path) -> None:
    idle, busy = (
        run(matching(on_distilled(epochs=epochs, optimizer=Sgd(lr=0.1))), tmp_path / str(epochs))
        for epochs in (1, 5)
    )
    assert not same_bits(idle, busy)


def test_a_run_of_dsa_publishes_what_it_says(tmp_path: Path) -> None:
    sections = toy_sections()
    moves = {"operations": ["color", "crop", "cutout", "scale", "rotate"]}
    sections["distill"] |= {
        "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.5},
        "objective": {"name": "gradient", "real_batch": 8, "augment": moves},
        "canvas": {"name": "pixels", "ipc": 1, "init": "real", "bounds": "clip"},
        "labels": "area",
        "networks": {
            "name": "trained_on_distilled",
            "network": CONVNET,
            "outer": 3,
            "epochs": 2,
            "augment": moves,
        },
    }
    recipe = tmp_path / "dsa.yaml"
    recipe.write_text(to_yaml(sections), encoding="utf-8")
    folder = tmp_path / "published"
    answer = command("run", recipe, "--runs", tmp_path / "runs", "--output", folder, "--quiet")
    assert answer.code == 0, answer.err
    assert verify(folder) == []
