"""The loss of recover: statistics computed by hand, and a gradient written from the formulas."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as tv
from pydantic import ValidationError
from support.recover_problem import Residual, block, residual, teachers
from support.tiny import flops, toy_real
from torch import Tensor, nn

from distill_datasets.data.normalization import InputSpace
from distill_datasets.distilled import Distilled
from distill_datasets.errors import RecipeError
from distill_datasets.models.convnets import ConvNet
from distill_datasets.models.vision import ResNet
from distill_datasets.networks.network import TeacherNetwork, Teachers
from distill_datasets.networks.pairing import partners
from distill_datasets.networks.teachers import BatchNormProbe
from distill_datasets.objectives.objective import Context
from distill_datasets.objectives.recover import Recover, matching_terms
from distill_datasets.optimizers import Adam
from distill_datasets.recipe import recipe_from
from distill_datasets.runtime.draws import LaneDraw
from distill_datasets.stages.distill import schedule
from distill_datasets.types import Shape
from distill_datasets.views.crops import RandomCrop, draw_view

REAL = toy_real(Shape(3, 8, 8, 4), per_class=5)
DRAW = LaneDraw(3, 2, 0, 10)
CLASSES = [0, 1, 2, 3, 0, 1]
PIXELS = "canvas.trained_NCHW"


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def plain_gradient(net: Residual, distilled: Distilled, settings: Recover) -> Tensor:
    """The gradient in the pixels, written from the paper's formulas."""
    kept: list[tuple[nn.BatchNorm2d, Tensor]] = []
    net = copy.deepcopy(net)
    for layer in (net.norm1, net.norm2, net.norm3):
        layer.register_forward_hook(lambda layer, inputs, _: kept.append((layer, inputs[0])))
    trained = distilled.parameters[PIXELS].detach().requires_grad_()
    pixels = 0.5 + trained / 4
    images = distilled.space.to_student(pixels)
    view = draw_view(settings.crop, settings.flip, settings.roll, (8, 8), DRAW("view"))
    box = (view.top, view.left, view.height, view.width)
    seen = tv.resized_crop(images, *box, size=[8, 8], antialias=False)
    seen = seen.flip(3) if view.flip else seen
    seen = seen.roll((view.down, view.right), (2, 3))
    logits = net(seen)
    total = -logits.log_softmax(1)[range(len(CLASSES)), CLASSES].mean()
    for layer, inputs in kept:
        channels = inputs.transpose(0, 1).flatten(1)
        mean = channels.mean(1)
        var = ((channels - mean[:, None]) ** 2).mean(1)
        off = ((layer.running_var - var) ** 2).sum().sqrt()
        off = off + ((layer.running_mean - mean) ** 2).sum().sqrt()
        total = total + settings.bn_weight * (10 if layer is net.norm1 else 1) * off
    (grad,) = torch.autograd.grad(total, trained)
    return grad


def gradient(settings: Recover, distilled: Distilled, networks: Teachers) -> Tensor:
    (grad,) = settings.estimate(distilled, networks, REAL, DRAW).grads.values()
    return grad


def test_the_statistics_of_two_flat_images() -> None:
    identity = nn.Conv2d(3, 3, 1, bias=False)
    with torch.no_grad():
        identity.weight.copy_(torch.eye(3)[:, :, None, None])
    net = nn.Sequential(identity, nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2)).eval()
    probe = BatchNormProbe(TeacherNetwork(net))
    images = torch.tensor([0.0, 2.0])[:, None, None, None].expand(2, 3, 2, 2)
    terms = matching_terms(probe, images, torch.eye(2), [probe.targets], 10.0, "float32")
    # mean 1 instead of 0, biased variance 1 as kept: ten times the root of three
    assert float(terms.bn_loss) == pytest.approx(17.3205, abs=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        Recover(bn_weight=0.1, roll=3),
        Recover(bn_weight=2.0, crop=None, flip=False, roll=0),
        Recover(bn_weight=0.0),
    ],
)
def test_the_gradient_is_that_of_the_formulas(settings: Recover) -> None:
    net, distilled = residual(), block(CLASSES)
    found = gradient(settings, distilled, teachers(net))
    assert relative(found, plain_gradient(net, distilled, settings)) < 1e-5


def test_a_later_step_has_another_view_and_the_same_step_the_same() -> None:
    net, distilled = residual(), block(CLASSES)
    losses = [
        Recover().estimate(distilled, teachers(net), REAL, LaneDraw(3, step, 0, 10)).loss
        for step in (0, 1, 0)
    ]
    assert losses[0] == losses[2] != losses[1]


def test_the_curriculum_begins_with_whole_images_and_ends_with_crops() -> None:
    networks, distilled = teachers(residual()), block(CLASSES)

    def loss(settings: Recover, step: int) -> float:
        return settings.estimate(distilled, networks, REAL, LaneDraw(0, step, 0, 1000)).loss

    still: dict[str, Any] = {"flip": False, "roll": 0}
    whole, cropped = Recover(crop=None, **still), Recover(**still)
    falling = Recover(curriculum="cosine", milestone=0.5, **still)
    assert loss(falling, 0) == loss(whole, 0) != loss(cropped, 0)
    assert loss(falling, 500) == loss(cropped, 500) != loss(whole, 500)


def test_pairs_add_the_distance_of_features_from_those_of_one_real_image_each() -> None:
    net, distilled = residual(), block(CLASSES)
    still: dict[str, Any] = {"crop": None, "flip": False, "roll": 0}
    plain = Recover(**still).estimate(distilled, teachers(net), REAL, DRAW)
    paired = Recover(pair_weight=0.5, **still).estimate(distilled, teachers(net), REAL, DRAW)
    chosen = partners(REAL, torch.eye(4)[CLASSES], DRAW.always("pairs"))
    rows_N = REAL.select(torch.arange(REAL.train.labels_N.numel())).images_BCHW
    for image, label in zip(chosen, CLASSES, strict=True):
        same = (rows_N == image).flatten(1).all(dim=1)
        assert label in REAL.train.labels_N[same].tolist()
    kept = list[Tensor]()
    net.head.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    images = distilled(torch.arange(len(CLASSES))).images_BCHW
    net(images)
    net(chosen)
    distance = ((kept[0] - kept[1].detach()) ** 2).sum(dim=1).mean()
    assert paired.loss == pytest.approx(plain.loss + 0.5 * distance.item(), rel=1e-5)
    (pull,) = torch.autograd.grad(0.5 * distance, [distilled.parameters[PIXELS]])
    (there,), (here,) = paired.grads.values(), plain.grads.values()
    assert relative(there - here, pull) < 1e-4


def test_the_view_has_the_side_of_its_part_of_the_steps() -> None:
    networks, distilled = teachers(residual()), block(CLASSES)
    seen = list[torch.Size]()
    networks.members[0].module.register_forward_pre_hook(
        lambda _, images: seen.append(images[0].shape)
    )
    for step in range(6):
        draw = LaneDraw(0, step, 0, 6)
        Recover(sides=[6, 8, 5]).estimate(distilled, networks, REAL, draw)
    assert [tuple(size[2:]) for size in seen] == [(side, side) for side in (6, 6, 8, 8, 5, 5)]


def test_sides_that_a_network_cannot_see_are_refused() -> None:
    shape, objective = Shape(3, 32, 32, 10), Recover(sides=[33, 32, 16])
    (problem,) = objective.problems(
        Context(shape=shape, network=ConvNet(norm="batch"), examples=10)
    )
    assert "got 16" in problem and "{name: resnet}" in problem
    assert not list(objective.problems(Context(shape=shape, network=ResNet(), examples=10)))


def test_images_that_are_equal_have_equal_gradients() -> None:
    distilled = block([0, 0, 0])
    with torch.no_grad():
        first = distilled.parameters[PIXELS]
        first.copy_(first[:1].expand_as(first))
    grad = gradient(Recover(), distilled, teachers(residual()))
    torch.testing.assert_close(grad, grad[:1].expand_as(grad), atol=1e-7, rtol=1e-5)
    assert grad.abs().max() > 0


def test_the_teacher_is_asked_in_eval_mode_and_left_as_it_is() -> None:
    net = residual().train().requires_grad_(True)
    before, distilled = copy.deepcopy(net.state_dict()), block(CLASSES)
    stream = torch.get_rng_state()
    trained = gradient(Recover(), distilled, teachers(net))
    assert torch.equal(stream, torch.get_rng_state())
    assert torch.equal(trained, gradient(Recover(), distilled, teachers(residual())))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(weight.grad is None for weight in net.parameters()) and net.training
    assert not any(layer._forward_pre_hooks for layer in net.modules())


def test_adam_and_its_schedule_are_those_of_the_papers() -> None:
    rule = Adam(lr=0.25, beta1=0.5, beta2=0.9)
    value, places = torch.zeros(1), []
    state = rule.start(value)
    for step, sign in enumerate((1.0, -1.0, 1.0), start=1):
        value, state = rule.step(value, state, torch.tensor([sign]), step)
        places.append(float(value))
    assert places == pytest.approx([-0.25, -0.16667, -0.27381], abs=1e-5)

    class Four:
        schedule, steps = "cosine", 4

    rates = [0.25 * schedule(Four, step) for step in range(4)]  # type: ignore[arg-type]
    assert rates == pytest.approx([0.25, 0.2134, 0.125, 0.0366], abs=1e-4)


def test_images_are_kept_displayable() -> None:
    distilled = block([0, 1])
    mean_C, std_C = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    distilled.space = InputSpace(mean_C, std_C)
    bounds = []
    for far in (-100.0, 100.0):
        with torch.no_grad():
            distilled.parameters[PIXELS].fill_(far)
        distilled.project()
        bounds.append(distilled(torch.tensor([0])).images_BCHW[0, :, 0, 0].tolist())
    assert bounds[0] == pytest.approx([-2.1179, -2.0357, -1.8044], abs=1e-4)
    assert bounds[1] == pytest.approx([2.2489, 2.4286, 2.6400], abs=1e-4)


def moments_by_class(net: Residual, images: Tensor, labels: Tensor) -> TeacherNetwork:
    """The network, and what the inputs of its BatchNorm layers look like for every class."""
    kept: list[Tensor] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
        for layer in (net.norm1, net.norm2, net.norm3)
    ]
    with torch.no_grad():
        net(images)
    for hook in hooks:
        hook.remove()

    mean = [torch.zeros(4, 6) for _ in kept]
    var = [torch.zeros(4, 6) for _ in kept]
    for layer, seen in enumerate(kept):
        for label in labels.unique().tolist():
            own = seen[labels == label]
            mean[layer][label] = own.mean((0, 2, 3))
            var[layer][label] = own.var((0, 2, 3), correction=0)
    return TeacherNetwork(net, mean, var)


@pytest.mark.parametrize("classes", [[2] * 3, [0, 1, 2, 3] * 2, [0, 0, 3, 3]])
def test_real_images_have_the_statistics_of_their_classes(classes: list[int]) -> None:
    distilled = block(classes)
    images = distilled(torch.arange(len(classes))).images_BCHW
    labels = torch.tensor(classes)
    teacher = moments_by_class(residual(), images.detach(), labels)
    by_class = Recover(targets="class").facts(distilled, Teachers([teacher]))
    assert by_class["bn_loss"] < 1e-4
    both = Recover(targets="both").facts(distilled, Teachers([teacher]))
    of_all = Recover().facts(distilled, Teachers([teacher]))
    assert of_all["bn_loss"] > 1
    assert both["bn_loss"] == pytest.approx(of_all["bn_loss"] / 2, rel=1e-3)
    assert by_class["loss"] == pytest.approx(by_class["cross_entropy"], abs=1e-5)
    assert Recover(targets="class").needs.class_statistics
    assert not Recover().needs.class_statistics


def test_statistics_of_classes_that_are_not_there_are_asked_for() -> None:
    with pytest.raises(RecipeError, match="statistics of every class"):
        gradient(Recover(targets="class"), block(CLASSES), teachers(residual()))


def test_several_teachers_are_weighed() -> None:
    nets, distilled = [residual(seed) for seed in range(3)], block(CLASSES)
    alone = [gradient(Recover(), distilled, teachers(net)) for net in nets]
    weighed = gradient(Recover(weights=[1.0, 2.0, 1.0]), distilled, teachers(*nets))
    assert relative(weighed, (alone[0] + 2 * alone[1] + alone[2]) / 4) < 1e-5
    equal = gradient(Recover(), distilled, teachers(*nets))
    assert relative(equal, sum(alone, torch.zeros(())) / 3) < 1e-5


def test_every_teacher_may_have_its_own_weight_of_the_statistics() -> None:
    nets, distilled = [residual(seed) for seed in range(2)], block(CLASSES)
    alone = [
        gradient(Recover(bn_weight=weight), distilled, teachers(net))
        for weight, net in zip((0.1, 0.7), nets, strict=True)
    ]
    found = gradient(Recover(bn_weight=[0.1, 0.7]), distilled, teachers(*nets))
    assert relative(found, (alone[0] + alone[1]) / 2) < 1e-5


def test_teachers_take_turns_step_by_step() -> None:
    nets, distilled = [residual(seed) for seed in range(3)], block(CLASSES)
    for step in range(4):
        draw = LaneDraw(0, step, 0, 4)
        found = Recover(teachers="in_turn").estimate(distilled, teachers(*nets), REAL, draw)
        assert (
            found.loss == Recover().estimate(distilled, teachers(nets[step % 3]), REAL, draw).loss
        )


def test_a_block_draws_its_teachers_once() -> None:
    nets, distilled = [residual(seed) for seed in range(4)], block(CLASSES)
    settings, pairs = Recover(teachers="drawn", drawn=2), set()
    for seed in range(12):
        asked = [settings._asked(teachers(*nets), LaneDraw(seed, step, 0, 5)) for step in range(5)]
        assert asked == [asked[0]] * 5 and len(set(asked[0])) == 2
        pairs.add(tuple(asked[0]))
    assert len(pairs) > 2
    draw = LaneDraw(0, 1, 0, 5)
    own = [nets[place] for place in settings._asked(teachers(*nets), draw)]
    expected = Recover().estimate(distilled, teachers(*own), REAL, draw).loss
    assert settings.estimate(distilled, teachers(*nets), REAL, draw).loss == expected


def test_bfloat16_changes_the_gradient_a_little_and_the_statistics_hardly() -> None:
    net, distilled = residual(), block(CLASSES)
    exact = Recover(bn_weight=0.1).estimate(distilled, teachers(net), REAL, DRAW)
    lower = Recover(bn_weight=0.1, precision="bfloat16").estimate(
        distilled, teachers(net), REAL, DRAW
    )
    (ours,), (theirs,) = exact.grads.values(), lower.grads.values()
    assert relative(theirs, ours) > 1e-5
    assert float(F.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0)) > 0.98
    assert lower.metrics["bn_loss"] == pytest.approx(exact.metrics["bn_loss"], rel=0.01)


def test_statistics_in_bfloat16_survive_a_large_mean() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2)).eval()
    images = 100 + torch.arange(8.0).view(2, 1, 2, 2).expand(2, 3, 2, 2)
    seen = BatchNormProbe(TeacherNetwork(net))(images, "bfloat16")
    assert seen.moments[0] is not None
    assert seen.moments[0].var_C.tolist() == pytest.approx([5.25] * 3)


def test_the_order_of_values_in_memory_changes_nothing_that_matters() -> None:
    net, distilled = residual(), block(CLASSES)
    plain = gradient(Recover(), distilled, teachers(net))
    assert relative(gradient(Recover(channels_last=True), distilled, teachers(net)), plain) < 1e-5


@pytest.mark.slow
def test_the_compiled_loss_has_the_same_gradient_and_is_compiled_once() -> None:
    from torch._dynamo.utils import counters

    distilled = block(CLASSES)
    nets = teachers(residual(0), residual(1))
    counters.clear()
    found = gradient(Recover(compile=True), distilled, nets)
    assert relative(found, gradient(Recover(), distilled, nets)) < 5e-3
    gradient(Recover(compile=True), block(CLASSES, seed=1), nets)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


def test_facts_are_of_the_images_as_they_are() -> None:
    net, distilled = residual(), block(CLASSES)
    still = Recover(crop=None, flip=False, roll=0)
    expected = still.estimate(distilled, teachers(net), REAL, DRAW)
    facts = Recover().facts(distilled, teachers(net))
    assert facts["loss"] == pytest.approx(expected.loss, rel=1e-6)
    assert facts["loss"] == pytest.approx(facts["cross_entropy"] + 0.01 * facts["bn_loss"])


def test_work_is_what_torch_counts() -> None:
    net, distilled = residual(), block(CLASSES)
    per_image = flops(lambda: net(torch.zeros(1, 3, 8, 8)))
    still = Recover(crop=None, flip=False, roll=0)
    networks = teachers(net)
    spent = flops(lambda: still.estimate(distilled, networks, REAL, DRAW))
    spent -= 4 * 2 * 6 * 3 * 8**3  # the view: two products, and as much back
    assert still.work(per_image, 6, 4) == pytest.approx(spent, rel=0.02)


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValidationError, match="curriculum: 'cosine' changes the crop"):
        Recover(crop=None, curriculum="cosine")
    with pytest.raises(ValidationError, match="bn_weight"):
        Recover(bn_weight=[0.1, -1.0])
    with pytest.raises(ValidationError, match="weights"):
        Recover(weights=[0.0, 1.0])
    with pytest.raises(ValidationError, match="teachers: in_turn, which asks one teacher at a"):
        Recover(teachers="in_turn", weights=[1.0, 2.0])
    assert not list(Recover(crop=RandomCrop(smallest=0.5)).problems(Context(teachers=1)))
    (problem,) = Recover(weights=[1.0, 2.0]).problems(Context(teachers=3))
    assert "expected one for each of the 3" in problem
    (problem,) = Recover(teachers="drawn", drawn=3).problems(Context(teachers=2))
    assert "at most 2" in problem
    with pytest.raises(RecipeError, match="expected one for each of the 1"):
        gradient(Recover(bn_weight=[0.1, 0.2]), block(CLASSES), teachers(residual()))


def test_a_batch_that_does_not_fit_the_source_is_refused() -> None:
    context = Context(shape=Shape(3, 8, 8, 4), examples=8)
    assert not list(Recover(match_batch=4).problems(context))
    (problem,) = Recover(match_batch=3).problems(context)
    assert problem.startswith("distill.objective.match_batch: got 3")


def test_a_network_without_statistics_is_refused() -> None:
    with pytest.raises(RecipeError, match="without a BatchNorm layer"):
        BatchNormProbe(TeacherNetwork(nn.Sequential(nn.Flatten(), nn.Linear(192, 4))))


@pytest.mark.parametrize(
    ("settings", "also"),
    [
        (Recover(), None),
        (Recover(curriculum="cosine"), "CDA"),
        (Recover(targets="class"), "LPLD"),
        (Recover(targets="both"), "EDC"),
        (Recover(teachers="in_turn"), "G-VBSM"),
        (Recover(teachers="drawn"), "CV-DD"),
    ],
)
def test_the_papers_are_those_of_the_settings(settings: Recover, also: str | None) -> None:
    names = [paper.partition(",")[0] for paper in settings.papers()]
    assert names == ["SRe2L", *([also] if also else [])]


def sections(**objective: Any) -> dict[str, Any]:  # noqa: ANN401
    """A recipe that squeezes two networks and recovers from them."""
    network = {"name": "convnet", "depth": 2, "width": 4, "norm": "batch"}
    return {
        "name": "toy",
        "source": {"dataset": "embedded:uci-digits"},
        "squeeze": {"network": network, "members": 2, "epochs": 1},
        "distill": {
            "steps": 2,
            "objective": {"name": "recover", **objective},
            "canvas": {"name": "pixels", "ipc": 1, "bounds": "clip"},
            "labels": "area",
            "networks": "teachers",
        },
        "evaluate": {"network": network, "students": 1, "steps": 1},
    }


def test_recipes_that_cannot_work_are_refused_before_the_source_is_read() -> None:
    recipe_from(sections(weights=[1.0, 2.0]))
    with pytest.raises(RecipeError, match=r"distill\.objective\.weights: got 3 values"):
        recipe_from(sections(weights=[1.0, 2.0, 3.0]))
    drawn = sections()
    drawn["distill"]["networks"] = {"name": "pretrained"}
    with pytest.raises(RecipeError, match="does not offer batch_norm"):
        recipe_from(drawn)
