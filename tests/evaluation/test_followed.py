"""Students follow the published step sizes, order and starting weights, and so can anybody.

Shape suffixes: N examples, B a batch, K classes, C channels, H W pixels, P all weights, S starts.
"""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
import yaml
from datasets import load_dataset
from safetensors.torch import load_file
from support.sample_content import sample
from support.student_problem import OneLayer, Rows, rows, settings, weights
from support.tiny import CPU, NET, TOY, toy_real
from support.toy_runs import CONVNET, command, toy_recipe, toy_sections
from torch import Tensor, nn

from distill_datasets.config import BUILT_IN, load
from distill_datasets.errors import ArtifactError, DistillError, RecipeError
from distill_datasets.evaluation import evaluate
from distill_datasets.evaluation.evaluate import read_followed, run_evaluate
from distill_datasets.evaluation.protocol import Evaluate
from distill_datasets.export.card import PLACEHOLDER, card, training
from distill_datasets.export.content import STARTS, Content, budget, check
from distill_datasets.export.folder import read_manifest, write_dataset
from distill_datasets.export.reading import load_rows
from distill_datasets.files.artifacts import open_rows, read_tensors
from distill_datasets.files.yaml_text import to_yaml
from distill_datasets.models.convnets import ConvNet, LeNet
from distill_datasets.models.initialization import initialize
from distill_datasets.models.layers import chain
from distill_datasets.networks.network import Fixed, fresh_weights, skeleton_of
from distill_datasets.optimizers import Sgd
from distill_datasets.runtime.draws import LaneDraw, draws
from distill_datasets.runtime.processes import Run, Runtime
from distill_datasets.training.loop import rate
from distill_datasets.training.metrics import taken_for
from distill_datasets.training.student import train_student
from distill_datasets.types import Batch, Shape

# published by the runs below: ten classes, two examples each, in two batches of a fixed order
DD: dict[str, Any] = {
    "steps": 4,
    "optimizer": {"name": "adam", "lr": 0.05},
    "rate_optimizer": {"name": "adam", "lr": 0.02},
    "canvas": {"name": "pixels", "ipc": 2},
    "labels": "area",
    "objective": {
        "name": "unrolled",
        "inner_steps": 6,
        "window": 6,
        "placement": "end",
        "batch": 10,
        "order": "fixed",
        "learn_step_sizes": True,
        "real_batch": 50,
        "optimizer": {"name": "sgd", "lr": 0.2, "momentum": 0.0},
    },
}
FOLLOWING = {
    "network": CONVNET,
    "students": 2,
    "steps": 6,
    "schedule": "published",
    "order": "published",
    "optimizer": {"name": "sgd", "lr": 0.2, "momentum": 0.0},
    "references": ["random_real"],
    "beyond": None,
}


def sections(**changes: Any) -> dict[str, Any]:  # noqa: ANN401
    """The toy recipe of Dataset Distillation; `changes` replace keys of its sections."""
    made = toy_sections()
    made["distill"] |= DD | changes.pop("distill", {})
    made["evaluate"] = FOLLOWING | changes.pop("evaluate", {})
    return made | changes


class Finished(NamedTuple):
    """A finished folder, and the test images as a student sees them."""

    folder: Path
    results: dict[str, dict[str, Any]]
    test: Batch

    def share(self, net: nn.Module) -> float:
        """Share of the test images that a network gets right."""
        with torch.no_grad():
            predicted_N = net(self.test.images_BCHW).argmax(dim=1)
        return float((predicted_N == self.test.targets_BK).float().mean())


def run(folder: Path, recipe: dict[str, Any]) -> Finished:
    """Finished a recipe through the command line."""
    (folder / "recipe.yaml").write_text(to_yaml(recipe), encoding="utf-8")
    out = folder / f"published-{folder.name}"  # `datasets` caches by name
    answer = command("run", folder / "recipe.yaml", "--runs", folder / "runs", "--output", out)
    assert answer.code == 0, answer.err
    row = load_rows(out, "recipe")[0]
    (decoded,) = (folder / "runs").glob("source-*")
    labels_N = read_tensors(decoded / "data.safetensors")[0]["test_labels"]
    mean_C, std_C = (torch.tensor(row[name])[:, None, None] for name in ("mean", "std"))
    images_NCHW = (open_rows(decoded / "test.npy").float() / 255 - mean_C) / std_C
    results = {each["from"]: each for each in json.loads(row["results_json"])}
    return Finished(out, results, Batch(images_NCHW, labels_N))


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Dataset Distillation for networks of a random initialization."""
    return run(tmp_path_factory.mktemp("fresh"), sections())


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Dataset Distillation for one known initialization, and an attack."""
    networks = {"name": "fixed", "network": CONVNET}
    attack = DD["objective"] | {"attack": {"attacked": 3, "target": 8}}
    changed = sections(
        distill={"networks": networks, "objective": attack}, evaluate={"start": "distilled"}
    )
    return run(tmp_path_factory.mktemp("fixed"), changed)


def by_hand(rates: list[float], order: list[list[int]]) -> Tensor:
    """Weights of one layer after gradient descent with these step sizes on these examples."""
    module = OneLayer().build(TOY)
    initialize(module, draws(0)("network"))
    for size, step in zip(rates, order, strict=True):
        images_BCHW, targets_BK = rows()(torch.tensor(step))
        loss = F.cross_entropy(module(images_BCHW), targets_BK)
        grads = torch.autograd.grad(loss, list(module.parameters()))
        with torch.no_grad():
            for parameter, grad in zip(module.parameters(), grads, strict=True):
                parameter -= size * grad
    return weights(module)


def follow(examples: Rows, **followed: Any) -> nn.Module:  # noqa: ANN401
    given = settings(optimizer=Sgd(lr=0.05, momentum=0.0), batch=4)
    return train_student(given, 4, examples, TOY, draws(0), CPU, **followed)


def test_a_student_follows_step_sizes_and_order() -> None:
    order = [[0, 3, 6], [1, 4, 7], [2, 5, 8, 1], [0]]
    examples = rows()
    module = follow(examples, step_sizes=[0.1, 0.02, 0.3], order=order)
    assert examples.asked == order
    torch.testing.assert_close(weights(module), by_hand([0.1, 0.02, 0.3, 0.1], order))


def test_a_student_starts_where_it_is_told_and_leaves_that_as_it_is() -> None:
    start_P = torch.linspace(-0.1, 0.1, 64 * 3 + 3)
    kept_P = start_P.clone()
    first, second = (follow(rows(), start_P=start_P) for _ in range(2))
    assert torch.equal(start_P, kept_P)
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(follow(rows())))
    given = settings(optimizer=Sgd(lr=0.05))
    still = train_student(given, 0, rows(), TOY, draws(0), CPU, start_P=start_P)
    assert torch.equal(weights(still), start_P)


def test_students_of_several_fixed_starts_take_them_in_turn() -> None:
    source = Fixed(network=NET, count=3).build(TOY, CPU)
    starts = [source.start(student, draws(0, "distill")) for student in range(6)]
    for first, second in itertools.combinations(range(3), 2):
        assert not torch.equal(starts[first], starts[second])
    assert all(torch.equal(starts[student], starts[student + 3]) for student in range(3))
    # those that the outer loop distills with
    drawn = {tuple(source.sample(LaneDraw(0, step, 0)).weights_P.tolist()) for step in range(20)}
    assert drawn == {tuple(start_P.tolist()) for start_P in starts}
    followed = evaluate.Followed([], [], torch.stack(starts[:3]))
    for student in range(6):
        assert torch.equal(followed.start_of(student), starts[student])


def test_a_start_of_another_network_is_refused() -> None:
    with pytest.raises(DistillError, match=r"has 195 weights and the start .* has 7"):
        follow(rows(), start_P=torch.zeros(7))


def test_the_share_of_a_class_that_is_taken_for_another() -> None:
    logits = torch.eye(3)[[0, 2, 2, 1, 2]]
    labels = F.one_hot(torch.tensor([1, 1, 1, 1, 2]), 3)
    batches = [Batch(logits[:2], labels[:2]), Batch(logits[2:], labels[2:])]
    assert taken_for(nn.Identity(), batches, attacked=1, target=2) == 0.5


def test_what_is_followed_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    starts_SP = torch.rand(2, 5)
    order = [[0, 2, 4], [1, 3, 5]]
    sizes = torch.tensor([0.1, 0.7]).tolist()
    content = sample(step_sizes=sizes, order=order, starts_SP=starts_SP)
    manifest = write_dataset(tmp_path / "data", content, None)
    everything = Evaluate(
        steps=2, schedule="published", order="published", start="distilled", optimizer=Sgd(lr=1.0)
    )
    found = read_followed(everything, tmp_path / "data")
    assert (found.step_sizes, found.order) == (sizes, order)
    for student in range(3):
        expected_P, start_P = starts_SP[student % 2], found.start_of(student)
        assert start_P is not None and torch.equal(start_P, expected_P)
    nothing = read_followed(Evaluate(steps=2), tmp_path / "data")
    assert (nothing.step_sizes, nothing.order, nothing.starts_SP) == ([], [], None)
    size = (tmp_path / "data" / STARTS).stat().st_size
    spent = manifest["budget"]
    assert manifest["starts"] == {"file": STARTS, "bytes": size}
    assert spent["bytes"]["needed"] == spent["bytes"]["default"] + size
    assert spent["values"] == 3 * 12 * 14 + 9 + 2 and spent["step_sizes"] == 2


def test_a_folder_without_anything_to_follow_says_so(tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path / "data", sample(), None)
    row = load_rows(tmp_path / "data", "recipe")[0]
    assert row["step_sizes"] == [] and json.loads(row["order_json"]) == []
    assert manifest["starts"] is None and not (tmp_path / "data" / "constants").exists()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"order": [[0, 6]]}, r"order: expected steps of examples 0\.\.5, got \[\[0, 6\]\]"),
        ({"order": [[]]}, "order: expected steps"),
        ({"step_sizes": [0.1, 0.0]}, "step sizes: got .* expected positive ones"),
        ({"step_sizes": [float("inf")]}, "values are not finite"),
        ({"starts_SP": torch.tensor([[float("nan")]])}, "values are not finite"),
    ],
)
def test_what_nobody_can_follow_is_not_published(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ArtifactError, match=why):
        check(sample(**changes))


def told(recipe: dict[str, Any]) -> str:
    with pytest.raises(RecipeError) as caught:
        toy_recipe_of(recipe)
    return str(caught.value)


def toy_recipe_of(recipe: dict[str, Any]) -> None:
    toy_recipe(*(f"{name}={json.dumps(recipe[name])}" for name in ("distill", "evaluate")))


@pytest.mark.parametrize(
    ("objective", "evaluate", "why"),
    [
        ({"learn_step_sizes": False}, {}, "evaluate.schedule: 'published', but distill.objective"),
        ({"order": "shuffled"}, {}, "evaluate.order: 'published', but distill.objective fixes no"),
        ({}, {"steps": 7}, "evaluate.steps: got 7, expected 6, the number of steps whose order"),
        ({}, {"steps": None, "epochs": 2}, "evaluate.steps: got None, expected 6"),
        (
            {},
            {"optimizer": {"name": "adam", "lr": 0.1}},
            "evaluate: schedule: published step sizes are of sgd, got the optimizer 'adam'",
        ),
        (
            {},
            {"start": "distilled"},
            "evaluate.start: 'distilled', but the networks 'fresh' have no start of their own",
        ),
    ],
)
def test_a_recipe_whose_students_cannot_follow_is_refused(
    objective: dict[str, Any], evaluate: dict[str, Any], why: str
) -> None:
    wrong = sections(distill={"objective": DD["objective"] | objective}, evaluate=evaluate)
    toy_recipe_of(sections())
    assert why in told(wrong)


def test_a_start_of_another_network_than_the_student_is_refused() -> None:
    networks = {"networks": {"name": "fixed", "network": CONVNET}}
    toy_recipe_of(sections(distill=networks, evaluate={"start": "distilled"}))
    other = {"start": "distilled", "network": {"name": "convnet", "depth": 1}}
    assert (
        "evaluate.network: students that start from the networks of distill need the same"
        in told(sections(distill=networks, evaluate=other))
    )


@pytest.mark.parametrize("name", sorted(BUILT_IN["networks"]))
def test_networks_that_have_a_start_say_so(name: str) -> None:
    part = load("networks", name)
    assert part.has_start == (name in ("fixed", "pretrained"))


def test_squeezed_networks_have_no_published_step_sizes() -> None:
    with pytest.raises(RecipeError, match=r"squeeze.schedule: got 'published'"):
        toy_recipe('squeeze={"epochs": 1, "schedule": "published"}')


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"distill": {"objective": DD["objective"] | {"attack": {"attacked": 1, "target": 10}}}},
            "attack.target: class 10 of a source with 10 classes",
        ),
        (
            {"distill": {"objective": DD["objective"] | {"batch": 2}}},
            "20 examples make 10 batches of 2, and 6 inner_steps would never see the last",
        ),
    ],
)
def test_a_run_that_cannot_be_followed_stops_before_it_distills(
    tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    (tmp_path / "recipe.yaml").write_text(to_yaml(sections(**changes)), encoding="utf-8")
    answer = command("run", tmp_path / "recipe.yaml", "--runs", tmp_path / "runs")
    assert answer.code == 2 and why in answer.err
    assert not list((tmp_path / "runs").glob("toy/distill-*"))


def published(folder: Path, config: str) -> Any:  # noqa: ANN401
    cache = str(folder.parent / f"cache-{config}")
    return load_dataset(str(folder), config, split="train", cache_dir=cache).with_format("torch")[:]


def test_step_sizes_are_learned_and_published_one_per_step(fresh: Finished) -> None:
    row = load_rows(fresh.folder, "recipe")[0]
    assert len(row["step_sizes"]) == 6 and len(set(row["step_sizes"])) > 1
    assert all(0.1 < size < 0.4 and size != 0.2 for size in row["step_sizes"])
    batches = [list(range(0, 20, 2)), list(range(1, 20, 2))]
    assert json.loads(row["order_json"]) == batches * 3
    assert set(json.loads(row["student_json"])["follows"]) == {"step_sizes", "order"}


def descend(folder: Path, network: nn.Module, config: str = "default") -> None:
    """Train a network in place by hand, from the published files alone."""
    rows, how = published(folder, config), load_rows(folder, "recipe")[0]
    mean_C, std_C = (torch.tensor(how[name])[:, None, None] for name in ("mean", "std"))
    if config == "exact":
        images_NCHW = rows["pixel_values"].view(-1, *how["image_shape"])
    else:
        images_NCHW = (rows["image"].float() / 255 - mean_C) / std_C
    for size, step in zip(how["step_sizes"], json.loads(how["order_json"]), strict=True):
        loss = F.cross_entropy(network(images_NCHW[step]), rows["soft_label"][step])
        grads = torch.autograd.grad(loss, list(network.parameters()))
        with torch.no_grad():
            for parameter, grad in zip(network.parameters(), grads, strict=True):
                parameter -= size * grad


def built() -> nn.Module:
    """The student's network, its weights torch's own draw."""
    return toy_recipe().evaluate.network.build(Shape(1, 8, 8, 10))


@pytest.mark.parametrize("config", ["default", "exact"])
def test_a_loop_over_the_published_files_gives_the_reported_accuracy(
    fresh: Finished, config: str
) -> None:
    for student, reported in enumerate(fresh.results[config]["runs"]):
        network = built()
        # a fresh student's own draw; everything after it comes from the files
        initialize(network, draws(0, "evaluate", "default", student)("network"))
        descend(fresh.folder, network, config)
        assert fresh.share(network) == pytest.approx(reported["accuracy"], abs=1e-3)


def example(folder: Path) -> str:
    """The lines of the card that train a network, as they are pasted."""
    text = (folder / "README.md").read_text(encoding="utf-8").replace(PLACEHOLDER, str(folder))
    (_, code) = re.findall(r"```python\n(.*?)\n```", text, flags=re.DOTALL)
    return str(code)


class Pasted(NamedTuple):
    """What the lines of the cards train."""

    fixed: nn.Module
    fresh: nn.Module


@pytest.fixture(scope="module")
def pasted(fixed: Finished, fresh: Finished, tmp_path_factory: pytest.TempPathFactory) -> Pasted:
    """The lines of both cards, run in a process that knows nothing of this package."""
    home = tmp_path_factory.mktemp("pasted")
    pieces = ["import sys, torch", "from safetensors.torch import save_file"]
    for made in (fixed, fresh):
        saved = f"save_file(net.state_dict(), {str(home / made.folder.name)!r})"
        pieces += ["torch.manual_seed(5)", example(made.folder), saved]
    pieces.append("assert not any(name.startswith('distill_datasets') for name in sys.modules)")
    subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(pieces)],
        check=True,
        env={"HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        timeout=50,
    )
    networks = Pasted(built(), built())
    for made, network in zip((fixed, fresh), networks, strict=True):
        network.load_state_dict(load_file(home / made.folder.name))
    return networks


def test_the_lines_of_the_card_train_the_first_student(fixed: Finished, pasted: Pasted) -> None:
    first, second = fixed.results["default"]["runs"]
    assert fixed.share(pasted.fixed) == pytest.approx(first["accuracy"], abs=1e-3)
    assert first["accuracy"] == second["accuracy"]  # one start, one order: nothing is drawn


def test_the_lines_of_the_card_follow_steps_without_a_start(
    fresh: Finished, pasted: Pasted
) -> None:
    code = example(fresh.folder)
    assert "weights_SP" not in code and "torch.nn.GroupNorm(4, 4, eps=1e-05, affine=True)" in code
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = built()
    descend(fresh.folder, network)
    torch.testing.assert_close(weights(pasted.fresh), weights(network))


def test_one_start_for_all_students_is_published_once(fixed: Finished) -> None:
    starts_SP = load_file(fixed.folder / STARTS)["weights_SP"]
    skeleton = skeleton_of(toy_recipe().evaluate.network, Shape(1, 8, 8, 10))
    expected_P = fresh_weights(skeleton, draws(0, "distill")("network", 0), CPU)
    assert torch.equal(starts_SP, expected_P[None])
    manifest = read_manifest(fixed.folder)
    assert manifest["starts"]["bytes"] == (fixed.folder / STARTS).stat().st_size
    student = yaml.safe_load((fixed.folder / "student.yaml").read_text(encoding="utf-8"))
    assert "weights_SP" in student["follows"]["start"]


def test_references_share_the_start_and_follow_nothing_else(
    fixed: Finished, tmp_path: Path
) -> None:
    """A reference has the starting weights, and else the constant rate and shuffled passes."""
    runtime = Runtime()
    runtime.cores = 1
    given = Evaluate.model_validate(
        FOLLOWING | {"start": "distilled", "network": ConvNet(depth=2, width=4), "students": 1}
        | {"optimizer": Sgd(lr=0.2, momentum=0.0), "batch": 7, "exact": False}
    )  # fmt: skip
    real = toy_real(Shape(1, 8, 8, 10), per_class=4)
    with mock.patch.object(evaluate, "train_student", wraps=train_student) as training:
        results = run_evaluate(
            given,
            fixed.folder,
            real,
            identity="",
            pixels=1280,
            run=Run(0, tmp_path, runtime, shown=False),
        )
    row = load_rows(fixed.folder, "recipe")[0]
    published, reference, start = (call.kwargs for call in training.call_args_list)
    # what the weights can do before any step stands beside what the steps make of them
    assert [result["from"] for result in results] == ["default", "start", "random_real"]
    assert training.call_args_list[2].args[1] == 0
    assert torch.equal(published["start_P"], start["start_P"])
    assert published["step_sizes"] == row["step_sizes"]
    assert published["order"] == json.loads(row["order_json"])
    assert (reference["step_sizes"], reference["order"]) == ([], [])
    assert torch.equal(published["start_P"], reference["start_P"])
    assert rate("published", 3, 6) == 1.0


def test_published_step_sizes_may_fall_to_a_tenth_half_way(
    fresh: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[float] = []
    stepped = torch.optim.SGD.step

    def noted(optimizer: torch.optim.SGD) -> None:
        sizes.append(optimizer.param_groups[0]["lr"])
        stepped(optimizer)

    monkeypatch.setattr(torch.optim.SGD, "step", noted)
    given = Evaluate.model_validate(
        FOLLOWING | {"schedule": "published_step", "order": "shuffled", "start": "fresh"}
        | {"network": ConvNet(depth=2, width=4), "optimizer": Sgd(lr=0.2), "batch": 64, "steps": 6}
        | {"students": 1, "exact": False}
    )  # fmt: skip
    real, runtime = toy_real(Shape(1, 8, 8, 10), per_class=4), Runtime()
    runtime.cores = 1
    run_evaluate(
        given,
        fresh.folder,
        real,
        identity="",
        pixels=1280,
        run=Run(0, tmp_path, runtime, shown=False),
    )
    given_sizes = itertools.cycle(load_rows(fresh.folder, "recipe")[0]["step_sizes"])
    factors = [1, 1, 1, 0.1, 0.1, 0.1]
    assert sizes[:6] == pytest.approx([next(given_sizes) * factor for factor in factors])
    assert sizes[6:] == pytest.approx([0.2] * 3 + [0.02] * 3)  # a reference


def test_an_attack_is_measured_and_the_card_warns_of_it(
    fixed: Finished, fresh: Finished, pasted: Pasted
) -> None:
    text = (fixed.folder / "README.md").read_text(encoding="utf-8").split("---\n")[2]
    before_results = text[: text.index("## Results")]
    assert "> [!WARNING]\n> This dataset was made to attack" in before_results
    assert "'3' for '8'" in before_results
    assert "attacked class taken for the target, %" in text
    assert read_manifest(fixed.folder)["attack"] == [3, 8]
    row = fixed.results["default"]
    with torch.no_grad():
        predicted_N = pasted.fixed(fixed.test.images_BCHW).argmax(dim=1)
    expected = float((predicted_N[fixed.test.targets_BK == 3] == 8).float().mean())
    assert row["runs"][0]["taken_for_target"] == pytest.approx(expected, abs=1e-3)
    assert row["taken_for_target"]["mean"] == pytest.approx(expected, abs=1e-3)
    assert "taken_for_target" not in fresh.results["default"]
    assert "attack" not in (fresh.folder / "README.md").read_text(encoding="utf-8").split("```")[0]


def test_five_images_teach_ten_classes_end_to_end(tmp_path: Path) -> None:
    """SLDD: fewer images than classes, with learned labels and one batch."""
    five = sections(
        distill={
            "canvas": {"name": "pixels", "count": 5},
            "labels": "learned",
            "label_optimizer": {"name": "adam", "lr": 0.05},
            "objective": DD["objective"] | {"batch": None},
        }
    )
    done = run(tmp_path, five)
    rows = published(done.folder, "default")
    assert rows["image"].shape == (5, 1, 8, 8) and rows["soft_label"].shape == (5, 10)
    assert bool((rows["soft_label"][:, 5:] > 0.0005).any())  # labels of classes without an image
    torch.testing.assert_close(rows["soft_label"].sum(dim=1), torch.ones(5))
    spent = read_manifest(done.folder)["budget"]
    assert (spent["ipc_equivalent"], spent["label_values"], spent["step_sizes"]) == (0.5, 50, 6)
    assert "0.5 images per class" in (done.folder / "README.md").read_text(encoding="utf-8")


def follower(network: str = "convnet", **changes: Any) -> Content:  # noqa: ANN401
    """A published set whose students follow step sizes, three rows at a time."""
    student = {"batch": 3, "steps": None, "epochs": 5, "optimizer": {"name": "sgd", "lr": 0.1}}
    student["network"] = {"name": network}
    follows = {"follows": {"step_sizes": "how"}}
    return sample(student=student | follows, step_sizes=[0.1, 0.2], **changes)


def test_lines_for_step_sizes_alone_draw_their_batches_and_import_nothing_else() -> None:
    code = training(follower(), "a/b")
    compile(code, "card", "exec")
    assert "range(10)" in code  # 5 passes of 6 // 3
    assert "if step % 2 == 0:\n        shuffled = torch.randperm(len(images))" in code
    assert "batch = shuffled[step % 2 * 3 :][:3]" in code
    assert 'step_sizes = how["step_sizes"]' in code
    assert not {"json", "os", "safetensors"} & set(re.findall(r"\w+", code))


def test_a_network_that_is_no_chain_is_left_to_the_reader() -> None:
    text = card(follower(), None, budget(follower()) | {"bytes": {"needed": 1, "default": 1}}, "")
    assert "put that of `student.yaml` in its place." in text
    assert chain(nn.Sequential(nn.Sequential(nn.ReLU()))) == []
    assert chain(nn.Linear(2, 3)) == []
    assert chain(nn.Sequential(nn.Flatten(), nn.Linear(2, 3))) == [
        "Flatten(start_dim=1, end_dim=-1)",
        "Linear(in_features=2, out_features=3)",
    ]


def test_the_lines_for_a_lenet_name_its_layers_and_draw_its_first_weights() -> None:
    layers = chain(LeNet().build(Shape(1, 28, 28, 10)))
    assert len(layers) == 12 and layers[0].startswith("Conv2d(1, 6, kernel_size=(5, 5)")
    lines = training(follower("lenet", layers=layers), "a/b")
    scope: dict[str, Any] = {"torch": torch}
    torch.manual_seed(0)
    exec(lines[lines.index("net = ") : lines.index("step_sizes = ")], scope)
    drawn = [layer.weight.detach() for layer in scope["net"] if hasattr(layer, "weight")]
    for weight, fans in zip(drawn, (175, 550, 520, 204, 94), strict=True):
        assert float(weight.std()) == pytest.approx((2 / fans) ** 0.5, rel=0.2)
    assert "xavier" not in training(follower(layers=layers), "a/b")
