"""What holds on every device: the CPU here, and an accelerator with `-m gpu`.

The bodies are the same: what is compared on an accelerator is known to be right on the CPU.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import REPOSITORY
from support.devices import DRAW, PROBLEMS, on_device, unrolled
from support.outer_loop_problem import Counting, same_bits, settings
from support.tiny import NET, POSTER, distilled_of, toy_real
from support.toy_runs import toy_file

from distill_datasets.canvases.pixels import Pixels
from distill_datasets.distilled import Distilled
from distill_datasets.files.artifacts import read_tensors
from distill_datasets.labels.fixed import Area
from distill_datasets.labels.learned import Learned
from distill_datasets.models.convnets import ConvNet
from distill_datasets.networks.network import Fresh, FreshSource
from distill_datasets.objectives.distribution import Distribution
from distill_datasets.objectives.objective import Objective
from distill_datasets.runtime.processes import Runtime
from distill_datasets.selection.random import Real
from distill_datasets.stages.distill import OuterLoop
from distill_datasets.types import Shape
from distill_datasets.views.augment import Augment

CPU = torch.device("cpu")
DEVICES = ["cpu", pytest.param("accelerator", marks=pytest.mark.gpu)]
BOUNDS = {"float64": 1e-9, "float32": 1e-4, "bfloat16": 0.1}


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, or the accelerator, whose convolutions are to be whole float32."""
    if request.param == "cpu":
        return CPU
    found = torch.accelerator.current_accelerator(check_available=True)
    assert found is not None, "-m gpu asks for an accelerator, and there is none"
    torch.backends.cudnn.allow_tf32 = False
    return found


def error(name: str, device: torch.device, double: bool, folder: Path) -> float:
    """How far a gradient is from that of the CPU in double precision, as a share of it."""
    plain = name.removesuffix(", bfloat16")
    expected = PROBLEMS[plain](CPU, plain != "linear", folder).gradient()
    got = PROBLEMS[name](device, double, folder).gradient()
    return float((got - expected).norm() / expected.norm())


@pytest.mark.parametrize("device", DEVICES, indirect=True)
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_gradient_of_every_objective_is_that_of_the_cpu(
    name: str, device: torch.device, tmp_path: Path
) -> None:
    kind = "bfloat16" if name.endswith("bfloat16") else "float32"
    found = error(name, device, False, tmp_path)
    assert found < BOUNDS[kind]
    if kind == "bfloat16":
        assert found > BOUNDS["float32"]  # it is not float32 in disguise


@pytest.mark.parametrize("device", DEVICES, indirect=True)
@pytest.mark.parametrize(
    "name", [name for name in PROBLEMS if not name.endswith("bfloat16") and name != "linear"]
)
def test_in_double_precision_it_is_that_to_nine_digits(
    name: str, device: torch.device, tmp_path: Path
) -> None:
    assert error(name, device, True, tmp_path) < BOUNDS["float64"]


def kept(device: torch.device, differentiate: str, window: int) -> int:
    """Bytes that an estimate needs at most beyond what was there: counted by the device.

    On the CPU, which does not count, those that autograd saves and that are alive at once.
    """
    shape = Shape(3, 16, 16, 4)
    real = on_device(toy_real(shape), device)
    distilled = distilled_of(real, POSTER.model_copy(update={"height": 20, "width": 28}), Learned())
    distilled = distilled.to(device)
    networks = FreshSource(ConvNet(depth=2, width=4), shape, device)
    objective = unrolled(
        inner_steps=16, window=window, batch=None, differentiate=differentiate, chunk=None
    )
    if device.type != "cpu":
        objective.estimate(distilled, networks, real, DRAW)  # handles and workspaces of libraries
        torch.accelerator.reset_peak_memory_stats(device)
        before = torch.accelerator.memory_allocated(device)
        objective.estimate(distilled, networks, real, DRAW)
        return torch.accelerator.max_memory_allocated(device) - before
    alive, most = 0, 0

    class Saved:
        """One tensor that autograd keeps."""

        def __init__(self, tensor: torch.Tensor) -> None:
            nonlocal alive, most
            self.tensor, self.bytes = tensor, tensor.numel() * tensor.element_size()
            alive += self.bytes
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= self.bytes

    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        objective.estimate(distilled, networks, real, DRAW)
    return most


@pytest.mark.parametrize("device", DEVICES, indirect=True)
def test_memory_is_flat_in_the_window_where_steps_are_recomputed(device: torch.device) -> None:
    short, long = (kept(device, "recompute", window) for window in (4, 16))
    weights = sum(weight.numel() for weight in ConvNet(depth=2, width=4).on_meta(
        Shape(3, 16, 16, 4)).parameters())  # fmt: skip
    # a vector of weights, its gradient and two moments for each of twelve more steps
    assert long - short <= 12 * 4 * 4 * weights + 0.1 * short
    assert kept(device, "graph", 16) > 2.5 * kept(device, "graph", 4)


def distilled_by(
    objective: Objective, device: torch.device, folder: Path, stop_after: int | None = None
) -> Distilled:
    """A call of the program that distills for six steps on a device."""
    section = settings(
        objective=objective,
        canvas=Pixels(ipc=1, init=Real()),
        labels=Area(),
        networks=Fresh(network=NET),
    )
    real = on_device(toy_real(), device)
    distilled = distilled_of(real, section.canvas, section.labels).to(device)
    loop = OuterLoop(
        section,
        distilled,
        section.networks.build(real.shape, device),
        real,
        seed=0,
        folder=folder,
        runtime=Runtime(),
        bar=Counting(stop_after),
        preview=lambda step: None,
    )
    if stop_after is None:
        loop.run()
        return distilled
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    return distilled


@pytest.mark.parametrize("device", DEVICES, indirect=True)
@pytest.mark.parametrize(
    "objective",
    [
        Distribution(real_batch=8, augment=Augment(operations=["flip", "crop"])),
        unrolled(batch=None, augment=Augment(operations=["flip"])),
    ],
    ids=["distribution", "unrolled"],
)
def test_a_run_that_is_resumed_has_the_bits_of_one_that_never_stopped(
    objective: Objective, device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    whole = distilled_by(objective, device, tmp_path / "whole")
    distilled_by(objective, device, tmp_path / "parts", stop_after=3)
    assert (tmp_path / "parts" / "state.safetensors").exists()
    parts = distilled_by(objective, device, tmp_path / "parts")
    assert same_bits(whole, parts)
    assert not torch.equal(
        next(iter(whole.parameters.values())).cpu(),
        next(
            iter(distilled_of(toy_real(), Pixels(ipc=1, init=Real()), Area()).parameters.values())
        ),
    )


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "device",
    [pytest.param("cpu", marks=pytest.mark.gloo), pytest.param("one card", marks=pytest.mark.gpu)],
)
def test_two_processes_on_one_device_distill_what_one_does(device: str, tmp_path: Path) -> None:
    recipe, found = toy_file(tmp_path), []
    visible = {"CUDA_VISIBLE_DEVICES": "" if device == "cpu" else "0"}
    asked = [
        "distill.steps=2", "distill.clip=null", "distill.optimizer={name: sgd, lr: 100.0}",
        "distill.label_optimizer={name: sgd, lr: 1.0}", "evaluate.students=1", "evaluate.steps=1",
    ]  # fmt: skip
    for processes in (1, 2):
        runs = tmp_path / f"runs-{processes}"
        command = [
            *(sys.executable, "-m", "distill_datasets", "run", recipe, *asked),
            *("--runs", str(runs), "--quiet", "--processes", str(processes)),
        ]
        settings = os.environ | visible | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=settings, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        (state,) = runs.glob("toy/distill-*/state.safetensors")
        found.append(read_tensors(state)[0])
    one, two = found
    exact = {"rtol": 0.0, "atol": 0.0} if device == "cpu" else {"rtol": 1e-3, "atol": 1e-5}
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, **exact)
