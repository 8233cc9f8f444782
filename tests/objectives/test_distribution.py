"""Distribution matching: the distances by hand, gradients against finite differences, who is seen.

Shape suffixes: B a batch, N all examples, K classes, D values of a feature, P all weights.
"""

import copy
import math
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from support.tiny import (
    AS_IS,
    CPU,
    LEARNED,
    POSTER,
    TOY,
    DoubleReal,
    assert_pure,
    distilled_of,
    double_distilled,
    double_networks,
    spent_and_counted,
    toy_real,
)
from support.toy_runs import command, toy_sections
from torch import Tensor, nn

from distill_datasets.canvases.canvas import Canvas, CanvasSize, CanvasStart, Cells, Tensors
from distill_datasets.canvases.pixels import Pixels
from distill_datasets.data.real import RealData
from distill_datasets.distilled import Distilled
from distill_datasets.files.yaml_text import to_yaml
from distill_datasets.labels.fixed import Area
from distill_datasets.labels.labels import Labels, LabelStart
from distill_datasets.models.architecture import Architecture
from distill_datasets.models.convnets import ConvNet, LeNet
from distill_datasets.networks.network import FreshSource, Layers, Sampled
from distill_datasets.objectives.distribution import Attention, Characteristic, Distribution, Mean
from distill_datasets.objectives.objective import Context, Estimate
from distill_datasets.runtime.draws import LaneDraw, rng_for
from distill_datasets.selection.random import Noise
from distill_datasets.types import Shape
from distill_datasets.views.augment import Augment

DRAW = LaneDraw(3, 5, 0)
MOVING = Augment(operations=["flip", "rotate", "color", "cutout"], choose="all")
TWO_EACH = Pixels(ipc=2, init=Noise(std=0.2))
SMOOTH: list[dict[str, object]] = [
    {"statistic": "mean"},
    {"statistic": "attention", "attention": {"power": 2.0, "output_weight": 0.5}},
    {"statistic": "characteristic", "characteristic": {"frequencies": 7, "amplitude": 0.3}},
]
STATISTICS = pytest.mark.parametrize("fields", SMOOTH, ids=lambda fields: str(fields["statistic"]))


class DoubleClasses(DoubleReal):
    """Real images whose classes are in double precision."""

    def class_images(self, rng: torch.Generator, label: int, size: int) -> Tensor:
        return super().class_images(rng, label, size).double()


def double_real(shape: Shape = TOY, per_class: int = 12) -> DoubleClasses:
    return DoubleClasses(**vars(toy_real(shape, per_class)))


REAL = double_real()


def distribution(**changes: object) -> Distribution:
    return Distribution.model_validate({"real_batch": 6, "chunk": 4, **changes})


def estimate(
    objective: Distribution,
    distilled: Distilled,
    draw: LaneDraw = DRAW,
    real: RealData = REAL,
) -> Estimate:
    return objective.estimate(distilled, double_networks(), real, draw)


class AsTheyAre(Canvas):
    """Images in the student's input space, which no bounds keep displayable."""

    paper: ClassVar[str] = "none"
    name: Literal["as_they_are"] = "as_they_are"

    def size(self, shape: Shape) -> CanvasSize:
        raise AssertionError

    def start(self, *what: object) -> CanvasStart:
        raise AssertionError

    def decode(self, tensors: Tensors, index_B: Tensor) -> Tensor:
        return tensors["trained_NCHW"][index_B]

    def stored(self, tensors: Tensors) -> list[Tensor]:
        return list(tensors["trained_NCHW"])


def showing(images_NCHW: Tensor, targets_NK: Tensor, real: RealData = REAL) -> Distilled:
    """A distilled set that shows these images, given in the student's input space."""
    cells = Cells(torch.arange(len(targets_NK)), targets_NK.argmax(dim=1))
    images = CanvasStart({"trained_NCHW": images_NCHW.double()}, {}, cells)
    targets = LabelStart({}, {"targets_NK": targets_NK.double()})
    return Distilled(AsTheyAre(), Area(), AS_IS, images, targets)


def all_real(real: RealData = REAL, shift: float = 0.0) -> Distilled:
    """The real training images as the distilled set."""
    labels_N = real.train.labels_N
    images_NCHW = real.select(torch.arange(len(labels_N))).images_BCHW
    return showing(images_NCHW + shift, F.one_hot(labels_N, real.shape.k), real)


def embedding(images_BCHW: Tensor) -> Tensor:
    network = double_networks().sample(DRAW)
    return network.layers(network.weights_P, images_BCHW).embedding_BD


def layers(embedding_BD: Tensor, maps: list[Tensor], logits_BK: Tensor) -> Layers:
    return Layers(maps, embedding_BD, logits_BK)


def test_the_mean_statistic_is_the_squared_distance_that_a_hand_computes() -> None:
    rows_BD = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    (table_BD,) = Mean().features(DRAW)(layers(rows_BD, [], rows_BD), torch.float64)
    assert table_BD.tolist() == rows_BD.tolist() and table_BD.dtype == torch.float64
    theirs_KD = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    # (2 - 1)^2 + (4 - 1)^2, and the other class has no distance
    ours_KD = torch.stack([rows_BD.mean(dim=0), torch.zeros(2)])
    assert Mean().distances_K([ours_KD], [theirs_KD]).tolist() == [10, 0]


def test_attention_is_what_a_hand_computes() -> None:
    # two channels of 1 x 2 px: squares sum to 9 + 0 = 9 on the left and 0 + 12 on the right
    map_BCHW = torch.tensor([[[[3.0, 2.0]], [[0.0, math.sqrt(8)]]]])
    flat_BD = torch.ones(1, 5)
    logits_BK = torch.tensor([[2.0, 0.0]])
    statistic = Attention(power=2.0, output_weight=0.25, scale=10.0)
    tables = statistic.features(DRAW)(
        layers(flat_BD, [map_BCHW, 7 * map_BCHW, flat_BD], logits_BK), torch.float32
    )
    # the last map and what has no places are left out
    assert len(tables) == 2
    assert tables[0].tolist() == [pytest.approx([9 / 15, 12 / 15])]
    assert tables[1].tolist() == logits_BK.tolist()
    theirs = [torch.tensor([[0.0, 0.8]]), torch.tensor([[0.0, 1.0]])]
    expected = 10 * (0.6**2 + 0.25 * (4 + 1))
    assert float(statistic.distances_K(tables, theirs)) == pytest.approx(expected)


def test_the_distance_of_characteristic_functions_is_what_a_hand_computes() -> None:
    # at two frequencies: waves of amplitude 1 a right angle apart; amplitudes 0.6 and 0.2 in phase
    ours = [torch.tensor([[1.0, 0.6]]), torch.tensor([[0.0, 0.0]])]
    theirs = [torch.tensor([[0.0, 0.2]]), torch.tensor([[1.0, 0.0]])]
    statistic = Characteristic(frequencies=2, amplitude=0.3, phase=0.7, scale=10.0)
    expected = 10 * (math.sqrt(0.7 * 2) + math.sqrt(0.3 * 0.16)) / 2
    assert float(statistic.distances_K(ours, theirs)) == pytest.approx(expected)
    assert float(statistic.distances_K(theirs, ours)) == pytest.approx(expected)
    assert float(statistic.distances_K(ours, ours)) == 0


def test_waves_are_of_unit_embeddings_at_frequencies_of_the_lane() -> None:
    rows_BD = torch.randn(3, 4, generator=rng_for(0), dtype=torch.float64)
    seen = layers(rows_BD, [], rows_BD)
    statistic = Characteristic(frequencies=5)
    cosine_BT, sine_BT = statistic.features(DRAW)(seen, torch.float64)
    frequencies_DT = torch.randn(4, 5, generator=DRAW("frequencies")).double()
    angles_BT = (rows_BD / rows_BD.norm(dim=1, keepdim=True)) @ frequencies_DT
    torch.testing.assert_close(cosine_BT, angles_BT.cos())
    torch.testing.assert_close(sine_BT, angles_BT.sin())
    scaled = statistic.features(DRAW)(layers(9 * rows_BD, [], rows_BD), torch.float64)
    torch.testing.assert_close(scaled[0], cosine_BT)
    other = statistic.features(LaneDraw(3, 6, 0))(seen, torch.float64)
    assert not torch.allclose(other[0], cosine_BT)


def test_the_loss_of_dm_is_that_of_means_over_the_images_of_each_class() -> None:
    distilled = double_distilled(REAL, TWO_EACH, Area())
    got = estimate(distribution(), distilled)
    expected = torch.zeros(()).double()
    for label in range(3):
        theirs_D = embedding(REAL.class_images(DRAW("real", label), label, 6)).mean(dim=0)
        ours_D = embedding(distilled(torch.tensor([2 * label, 2 * label + 1]))[0]).mean(dim=0)
        expected = expected + (ours_D - theirs_D).square().sum()
    assert got.loss == pytest.approx(expected.item(), rel=1e-12)
    (grad,) = torch.autograd.grad(expected, list(distilled.parameters.values()))
    torch.testing.assert_close(got.grads["canvas.trained_NCHW"], grad, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("augment", [Augment(), MOVING], ids=["still", "moving"])
@STATISTICS
def test_the_real_images_themselves_have_no_distance_under_a_shared_draw(
    fields: dict[str, object], augment: Augment
) -> None:
    objective = distribution(real_batch=12, augment=augment, **fields)
    same, moved = (estimate(objective, all_real(shift=shift)) for shift in (0.0, 0.1))
    assert same.loss < 1e-10 < 1e-4 < moved.loss
    for name in same.grads:
        assert float(same.grads[name].abs().max()) < 1e-8
    assert float(moved.grads["canvas.trained_NCHW"].abs().max()) > 1e-5


@STATISTICS
def test_a_draw_of_its_own_for_the_distilled_side_would_be_seen(fields: dict[str, object]) -> None:
    class Apart(Augment):
        """The mistake: whoever asks next gets another draw."""

        def __call__(
            self, images_BCHW: Tensor, rng: torch.Generator, *, shared: bool = False
        ) -> Tensor:
            asked.append(len(images_BCHW))
            return super().__call__(images_BCHW, rng_for(len(asked)), shared=shared)

    asked: list[int] = []
    objective = distribution(real_batch=12, **fields)
    wrong = objective.model_copy(update={"augment": Apart(**MOVING.model_dump())})
    assert estimate(wrong, all_real()).loss > 1e-3


@pytest.mark.parametrize("more", [{}, {"cross_entropy_weight": 0.7, "distilled_chunk": 5}])
@pytest.mark.parametrize("canvas", [POSTER, TWO_EACH], ids=["poster", "pixels"])
@STATISTICS
def test_gradients_of_pixels_and_labels_are_those_of_finite_differences(
    fields: dict[str, object], canvas: Canvas, more: dict[str, object]
) -> None:
    objective = distribution(augment=MOVING, **fields, **more)
    distilled = double_distilled(REAL, canvas, LEARNED)
    grads = estimate(objective, distilled).grads
    assert len(grads) == 2
    for name, grad in grads.items():
        direction = torch.randn(grad.shape, generator=rng_for(1, "direction"), dtype=torch.float64)
        losses = []
        for size in (1e-6, -1e-6):
            moved = copy.deepcopy(distilled)
            with torch.no_grad():
                moved.parameters[name].add_(direction, alpha=size)
            losses.append(estimate(objective, moved).loss)
        derivative = (losses[0] - losses[1]) / 2e-6
        assert float((grad * direction).sum()) == pytest.approx(derivative, rel=1e-5)
        assert abs(derivative) > 1e-4


def test_gradients_under_hard_labels_are_those_of_finite_differences() -> None:
    objective = distribution(augment=MOVING, distilled_chunk=1, cross_entropy_weight=0.3)
    distilled = double_distilled(REAL, TWO_EACH, Area())
    (grad,) = estimate(objective, distilled).grads.values()
    direction = torch.randn(grad.shape, generator=rng_for(1, "direction"), dtype=torch.float64)
    losses = []
    for size in (1e-6, -1e-6):
        moved = copy.deepcopy(distilled)
        with torch.no_grad():
            moved.parameters["canvas.trained_NCHW"].add_(direction, alpha=size)
        losses.append(estimate(objective, moved).loss)
    derivative = (losses[0] - losses[1]) / 2e-6
    assert float((grad * direction).sum()) == pytest.approx(derivative, rel=1e-5)


@STATISTICS
def test_soft_labels_that_are_nearly_hard_give_nearly_the_loss_of_hard_ones(
    fields: dict[str, object],
) -> None:
    objective = distribution(cross_entropy_weight=0.5, **fields)
    targets_NK = F.one_hot(REAL.train.labels_N[::5], 3).double()
    images_NCHW = REAL.select(torch.arange(36)[::5]).images_BCHW
    hard = estimate(objective, showing(images_NCHW, targets_NK))
    soft = estimate(objective, showing(images_NCHW, (1 - 1e-9) * targets_NK + 1e-9 / 3))
    assert soft.loss == pytest.approx(hard.loss, rel=1e-6)
    (hard_grad,), (soft_grad,) = hard.grads.values(), soft.grads.values()
    torch.testing.assert_close(soft_grad, hard_grad, rtol=1e-5, atol=1e-7)


def test_a_label_weighs_an_example_in_the_mean_of_every_class() -> None:
    images_NCHW = REAL.select(torch.tensor([0, 13, 25])).images_BCHW
    targets_NK = torch.tensor([[0.75, 0.25, 0], [0.5, 0.5, 0], [0, 0, 1.0]])
    rows_ND = embedding(images_NCHW.double())
    means_KD = torch.stack(
        [
            (0.75 * rows_ND[0] + 0.5 * rows_ND[1]) / 1.25,
            (0.25 * rows_ND[0] + 0.5 * rows_ND[1]) / 0.75,
            rows_ND[2],
        ]
    )
    expected = 0.0
    for label in range(3):
        theirs_D = embedding(REAL.class_images(DRAW("real", label), label, 6)).mean(dim=0)
        expected += float((means_KD[label] - theirs_D).square().sum())
    got = estimate(distribution(), showing(images_NCHW, targets_NK))
    assert got.loss == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("labels", [Area(rule="one_hot"), LEARNED], ids=["hard", "learned"])
@STATISTICS
def test_chunks_change_only_the_memory(fields: dict[str, object], labels: Labels) -> None:
    distilled = double_distilled(REAL, POSTER, labels)
    whole, chunked = (
        estimate(
            distribution(augment=MOVING, cross_entropy_weight=0.2, **sizes, **fields), distilled
        )
        for sizes in ({"chunk": 6, "distilled_chunk": 20}, {"chunk": 4, "distilled_chunk": 3})
    )
    assert chunked.loss == pytest.approx(whole.loss, rel=1e-10)
    for name, grad in whole.grads.items():
        torch.testing.assert_close(chunked.grads[name], grad, rtol=1e-7, atol=1e-10)


def test_the_term_of_the_network_is_its_mean_loss_on_each_class() -> None:
    distilled = double_distilled(REAL, TWO_EACH, Area())
    without, with_term = (
        estimate(distribution(cross_entropy_weight=weight), distilled).loss for weight in (0.0, 0.5)
    )
    network = double_networks().sample(DRAW)
    images_BCHW, targets_BK = distilled(torch.arange(6))
    # three classes of two examples each: the sum over classes of means
    mean = F.cross_entropy(network(network.weights_P, images_BCHW), targets_BK).item()
    assert with_term - without == pytest.approx(0.5 * 3 * mean, rel=1e-9)


words: list[tuple[str | int, ...]] = []


class Asked(LaneDraw):
    """Remembers the words that were drawn."""

    def __call__(self, *what: str | int) -> torch.Generator:
        words.append(what)
        return super().__call__(*what)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [(Area(rule="one_hot"), {("augment", label) for label in range(3)}), (LEARNED, {("augment",)})],
    ids=["hard", "learned"],
)
def test_a_class_has_its_own_draw_under_hard_labels_and_all_share_one_otherwise(
    labels: Labels, expected: set[tuple[str | int, ...]]
) -> None:
    words.clear()
    distilled = double_distilled(REAL, TWO_EACH, labels)
    with torch.no_grad():  # learned labels may pass through hard ones, and still need gradients
        for name, parameter in distilled.parameters.items():
            if name.startswith("labels."):
                parameter.copy_(torch.eye(3).repeat_interleave(2, dim=0))
    assert distilled.targets(torch.arange(6)).detach().tolist()[0] == [1, 0, 0]
    estimate(distribution(augment=MOVING), distilled, Asked(0, 0, 0))
    assert {what for what in words if what[0] == "augment"} == expected
    assert {what for what in words if what[0] == "real"} == {("real", label) for label in range(3)}


def test_a_step_may_see_some_of_the_classes_and_others_later() -> None:
    distilled = double_distilled(REAL, TWO_EACH, Area())
    objective = distribution(classes_per_step=2)
    moved = set()
    for step in range(8):
        grad = estimate(objective, distilled, LaneDraw(0, step, 0)).grads["canvas.trained_NCHW"]
        moved.add(tuple(grad.flatten(1).abs().amax(dim=1).gt(0).tolist()))
    # both images of two classes move, those of the third get a gradient of zero
    assert {sum(kept) for kept in moved} == {4}
    assert len(moved) == 3


def test_more_classes_than_there_are_is_refused() -> None:
    (problem,) = distribution(classes_per_step=4).problems(Context(shape=TOY))
    assert "classes_per_step: got 4, and the source has 3 classes" in problem
    assert not list(distribution(classes_per_step=3).problems(Context(shape=TOY)))


class Chain(Architecture):
    """Convolutions with one ReLU module for all of them, some of its uses on flat features."""

    paper: ClassVar[str] = "none"
    name: Literal["chain"] = "chain"
    maps: int
    flat: int = 0
    linear: bool = True

    def build(self, shape: Shape) -> nn.Module:
        relu = nn.ReLU()
        maps = [layer for _ in range(self.maps) for layer in (nn.Conv2d(shape.c, shape.c, 1), relu)]
        flat = [nn.Flatten(), *[relu] * self.flat]
        end = nn.Linear(shape.c * shape.h * shape.w, shape.k) if self.linear else nn.Identity()
        return nn.Sequential(*maps, *flat, end)


@pytest.mark.parametrize("statistic", ["mean", "attention", "characteristic"])
def test_a_network_without_a_linear_classifier_is_refused_by_its_name(statistic: str) -> None:
    objective = distribution(statistic=statistic)
    problems = list(objective.problems(Context(shape=TOY, network=Chain(maps=3, linear=False))))
    assert problems[0] == (
        "distill.networks: the network (name='chain' maps=3 flat=0 linear=False) has no Linear "
        "layer, expected one as its classifier, whose input the objective 'distribution' takes for "
        "the embedding; choose another network, for example {name: convnet}"
    )
    assert not list(objective.problems(Context(shape=TOY, network=Chain(maps=3))))


@pytest.mark.parametrize(("maps", "flat"), [(0, 0), (1, 0), (1, 3)])
def test_attention_without_two_maps_is_refused(maps: int, flat: int) -> None:
    context = Context(shape=TOY, network=Chain(maps=maps, flat=flat))
    (problem,) = distribution(statistic="attention").problems(context)
    assert problem == (
        f"distill.networks: the network (name='chain' maps={maps} flat={flat} linear=True) has "
        f"{maps} ReLU layers after which there are maps, expected at least two: "
        "distill.objective.statistic: 'attention' matches all of them but the last; choose a "
        "network with more, for example {name: convnet, depth: 2}, or another statistic: mean or "
        "characteristic"
    )
    assert not list(distribution(statistic="mean").problems(context))


@pytest.mark.parametrize("network", [ConvNet(depth=2), LeNet(), Chain(maps=2)])
def test_attention_with_two_maps_is_accepted(network: Architecture) -> None:
    context = Context(shape=Shape(1, 28, 28, 3), network=network)
    assert not list(distribution(statistic="attention").problems(context))


def test_settings_of_another_statistic_are_refused() -> None:
    with pytest.raises(ValidationError, match="attention: these settings are for statistic: atten"):
        distribution(attention={"power": 2.0})


def test_settings_are_read_back_as_they_were_written() -> None:
    for fields in SMOOTH:
        objective = distribution(**fields)
        assert Distribution.model_validate_json(objective.model_dump_json()) == objective


def test_a_class_with_fewer_images_than_the_batch_gives_each_of_them_once() -> None:
    distilled = double_distilled(REAL, TWO_EACH, Area())
    few, many = (estimate(distribution(real_batch=size), distilled) for size in (12, 500))
    assert many.loss == few.loss


def test_a_class_that_no_example_shows_is_left_out() -> None:
    images_NCHW = REAL.select(torch.tensor([0, 1, 30])).images_BCHW
    targets_NK = torch.eye(3)[[0, 0, 2]]
    words.clear()
    got = estimate(distribution(), showing(images_NCHW, targets_NK), Asked(0, 0, 0))
    assert math.isfinite(got.loss)
    assert [what for what in words if what[0] == "real"] == [("real", 0), ("real", 2)]


def test_bfloat16_is_used_for_the_real_side_alone_and_changes_little() -> None:
    shape = Shape(1, 16, 16, 3)
    real = toy_real(shape, 12)
    distilled = distilled_of(real, TWO_EACH, Area())
    networks = FreshSource(ConvNet(depth=2, width=16), shape, CPU)
    exact, rough = (
        distribution(real_precision=precision).estimate(distilled, networks, real, DRAW)
        for precision in ("float32", "bfloat16")
    )
    assert rough.loss != exact.loss
    assert rough.loss == pytest.approx(exact.loss, rel=0.02)
    grad = rough.grads["canvas.trained_NCHW"]
    assert grad.dtype == torch.float32
    cosine = F.cosine_similarity(
        grad.flatten(), exact.grads["canvas.trained_NCHW"].flatten(), dim=0
    )
    assert float(cosine) > 0.999


def test_step_sizes_that_the_objective_does_not_use_get_a_gradient_of_zero() -> None:
    distilled = double_distilled(REAL, TWO_EACH, Area(), step_sizes=[0.1, 0.2])
    assert estimate(distribution(), distilled).grads["step_sizes.raw_T"].tolist() == [0, 0]


@STATISTICS
def test_estimate_is_a_pure_function(fields: dict[str, object]) -> None:
    objective = distribution(augment=MOVING, **fields)
    distilled = double_distilled(REAL, POSTER, LEARNED)
    assert_pure(lambda given: estimate(objective, given), distilled)


def test_the_network_gets_no_gradient() -> None:
    class Trained:
        def sample(self, draw: LaneDraw) -> Sampled:
            network = double_networks().sample(draw)
            network.weights_P.requires_grad_()
            sampled.append(network)
            return network

    sampled: list[Sampled] = []
    distilled = double_distilled(REAL, TWO_EACH, Area())
    distribution().estimate(distilled, Trained(), REAL, DRAW)  # type: ignore[arg-type]
    assert sampled[0].weights_P.grad is None


@pytest.mark.parametrize(
    "changes", [{}, {"distilled_chunk": 2}, {"classes_per_step": 2, "statistic": "attention"}]
)
def test_work_is_what_the_counter_of_torch_counts(changes: dict[str, object]) -> None:
    # the counter cannot follow leaves into a network; flipped, they are none
    flipped = Augment(operations=["flip"])
    spent, counted = spent_and_counted(distribution(augment=flipped, **changes))
    assert counted == pytest.approx(spent, rel=0.05)


@STATISTICS
def test_descent_lowers_the_loss_on_draws_that_it_never_saw(fields: dict[str, object]) -> None:
    distilled = double_distilled(REAL, Pixels(ipc=1), Area())
    objective = distribution(real_batch=12, **fields)

    def held_out() -> float:
        return sum(estimate(objective, distilled, LaneDraw(9, step, 0)).loss for step in range(5))

    before = held_out()
    (parameter,) = distilled.parameters.values()
    descent = torch.optim.Adam([parameter], lr=0.1)
    for step in range(30):
        (parameter.grad,) = estimate(objective, distilled, LaneDraw(0, step, 0)).grads.values()
        descent.step()
    assert held_out() < 0.8 * before


def test_a_whole_run_teaches_more_than_as_many_real_images(tmp_path: Path) -> None:
    sections = toy_sections()
    network = {"name": "convnet", "depth": 2, "width": 8}
    sections["distill"] |= {
        "steps": 40,
        "lanes": 1,
        "objective": {"name": "distribution", "real_batch": 16, "real_precision": "bfloat16"},
        "canvas": {"name": "pixels", "ipc": 1, "init": "real", "bounds": "clip"},
        "labels": "area",
        "optimizer": {"name": "adam", "lr": 0.03},
        "networks": {"name": "fresh", "network": network},
    }
    sections["evaluate"] |= {
        "network": {"name": "convnet", "depth": 2, "width": 16},
        "students": 3,
        "steps": 40,
        "references": ["random_real"],
    }
    file = tmp_path / "dm.yaml"
    file.write_text(to_yaml(sections), encoding="utf-8")
    answer = command("run", file, "--runs", tmp_path / "runs")
    assert answer.code == 0, answer.err
    accuracy = {
        row[: row.index("  ")].strip(): float(row.split("±")[0].split()[-1])
        for row in answer.out.splitlines()
        if "±" in row and "  " in row  # a row of the table, not the sentence below it
    }
    print(accuracy)
    distilled = accuracy["distilled, as published"]
    assert distilled > accuracy["random real images, no more pixels"] + 4, answer.out
