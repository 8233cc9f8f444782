"""Randomness as a pure function, and results that do not depend on who computes them."""

import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from support.tiny import double_distilled, double_networks, double_real
from torch import Tensor

from distill_datasets.objectives.unrolled import Unrolled
from distill_datasets.runtime import precision
from distill_datasets.runtime.draws import LaneDraw, draws, rng_for
from distill_datasets.runtime.memory import images_at_once
from distill_datasets.runtime.processes import Runtime
from distill_datasets.types import Shape


@pytest.fixture
def runtime() -> Runtime:
    """One process on the CPU that believes in four cores."""
    made = Runtime()
    made.cores = 4
    return made


def first_draws(generator: torch.Generator) -> list[float]:
    return torch.rand(4, generator=generator).tolist()


def test_the_same_words_give_the_same_stream() -> None:
    assert first_draws(rng_for(0, "a", 1)) == first_draws(rng_for(0, "a", 1))


def test_streams_do_not_depend_on_what_was_drawn_before() -> None:
    expected = first_draws(rng_for(0, "a"))
    torch.rand(100, generator=rng_for(0, "a"))
    torch.rand(100)
    assert first_draws(rng_for(0, "a")) == expected


def test_every_word_its_kind_and_its_place_change_the_stream() -> None:
    asked: list[tuple[str | int, ...]] = [
        (),
        (0,),
        (1,),
        ("1",),
        (-1,),
        ("a",),
        ("b",),
        ("a", "b"),
        ("b", "a"),
        ("ab",),
        ("a", 12),
        ("a1", 2),
        ("a", 1, 2),
        ("a", "12"),
        ("a", 1, "2"),
        (2**70,),
    ]
    seeds = {rng_for(seed, *what).initial_seed() for seed in (0, 1) for what in asked}
    assert len(seeds) == 2 * len(asked)


def test_streams_are_those_of_earlier_versions() -> None:
    # a change of this number changes every result that was ever published
    assert rng_for(0, "distill", 3).initial_seed() == 1275521502417635465


def test_draws_begin_with_their_prefix() -> None:
    draw = draws(5, "distill", 2)
    assert first_draws(draw("inner", 7)) == first_draws(rng_for(5, "distill", 2, "inner", 7))


def test_asking_for_a_stream_leaves_global_randomness_alone() -> None:
    before = torch.get_rng_state()
    rng_for(0, "a")
    assert torch.equal(before, torch.get_rng_state())


def test_pool_answers_in_the_order_of_the_units(runtime: Runtime) -> None:
    def slow_first(unit: int) -> int:
        time.sleep(0.05 if unit == 0 else 0)
        return 10 * unit

    with runtime.pool(3) as run_units:
        assert run_units(slow_first, [0, 2, 1]) == [0, 20, 10]


def test_pool_works_on_as_many_units_at_once_as_there_are_cores_for_them(runtime: Runtime) -> None:
    together = threading.Barrier(4, timeout=10)  # breaks unless all four wait at the same time
    with runtime.pool(4) as run_units:
        run_units(lambda _: together.wait(), [0, 1, 2, 3])


@pytest.mark.parametrize(("units", "threads"), [(1, 4), (2, 2), (3, 1), (4, 1), (9, 1)])
def test_cores_are_dealt_to_units_alike(runtime: Runtime, units: int, threads: int) -> None:
    with runtime.pool(units) as run_units:
        given = run_units(lambda _: torch.get_num_threads(), list(range(units)))
    assert given == [threads] * units


@pytest.mark.parametrize(
    ("processes", "here", "side_by_side"),
    [(1, None, 4), (1, "4", 4), (8, "1", 4), (8, None, 1), (2, "2", 2), (8, "4", 1), (8, "8", 1)],
)
def test_cores_are_shared_by_the_processes_of_this_host_alone(
    runtime: Runtime,
    monkeypatch: pytest.MonkeyPatch,
    processes: int,
    here: str | None,
    side_by_side: int,
) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if here is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
    runtime.accelerator = SimpleNamespace(
        num_processes=processes, process_index=0, device=torch.device("cpu")
    )
    units = 8 * processes
    together, running, most = threading.Lock(), 0, 0

    def work(_: int) -> int:
        nonlocal running, most
        with together:
            running += 1
            most = max(most, running)
        time.sleep(0.05)
        with together:
            running -= 1
        return torch.get_num_threads()

    with runtime.pool(units) as run_units:
        threads = run_units(work, runtime.mine(units))
    assert most == side_by_side
    assert threads == [1] * 8  # of the number of units alone


def test_the_number_of_workers_does_not_change_a_bit(runtime: Runtime) -> None:
    real, networks = double_real(), double_networks()
    distilled = double_distilled(real)
    objective = Unrolled(inner_steps=4, window=2, real_batch=8)

    def loss_and_gradient(unit: int) -> list[Tensor]:
        estimate = objective.estimate(distilled, networks, real, LaneDraw(0, unit, 0))
        return [torch.tensor(estimate.loss), *estimate.grads.values()]

    results = []
    for cores in (1, 2, 4):
        runtime.cores = cores
        with runtime.pool(4) as run_units:
            results.append(run_units(loss_and_gradient, [0, 1, 2, 3]))
    for other in results[1:]:
        for expected, got in zip(results[0], other, strict=True):
            assert all(torch.equal(left, right) for left, right in zip(expected, got, strict=True))


@pytest.mark.parametrize("fails", [False, True])
def test_pool_gives_the_threads_back(runtime: Runtime, fails: bool) -> None:
    def work(unit: int) -> None:
        if fails:
            raise ValueError(f"unit {unit}")

    torch.set_num_threads(3)
    try:
        with runtime.pool(2) as run_units:
            run_units(work, [0, 1])
    except ValueError as error:
        assert fails and str(error) == "unit 0"
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("deterministic", [False, True])
def test_reproducible_sets_and_restores_threads_and_determinism(
    runtime: Runtime, deterministic: bool
) -> None:
    torch.set_num_threads(3)
    torch.use_deterministic_algorithms(deterministic)
    try:
        with pytest.raises(ValueError, match="on purpose"), runtime.reproducible():
            assert torch.get_num_threads() == 4
            assert torch.are_deterministic_algorithms_enabled()
            assert not torch.utils.deterministic.fill_uninitialized_memory
            assert torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
            raise ValueError("on purpose")
        assert torch.utils.deterministic.fill_uninitialized_memory
        assert torch.get_num_threads() == 3
        assert torch.are_deterministic_algorithms_enabled() == deterministic
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_run_comes_to_its_first_gradient_without_the_compiler_of_torch() -> None:
    program = """
import sys
import torch
from distill_datasets.models.convnets import ConvNet
from distill_datasets.networks.network import fresh_weights, skeleton_of
from distill_datasets.pipeline import run
from distill_datasets.networks.inner_steps import pulled_back
from distill_datasets.networks.network import FlatNetwork
from distill_datasets.runtime.processes import Runtime
from distill_datasets.types import Batch, Shape

with Runtime().reproducible():
    skeleton = skeleton_of(ConvNet(depth=1, width=2), Shape(1, 4, 4, 2))
    weights_P = fresh_weights(skeleton, torch.Generator(), torch.device("cpu")).requires_grad_()
    batch = Batch(torch.rand(2, 1, 4, 4), torch.eye(2))
    back = pulled_back(FlatNetwork(skeleton, weights_P), weights_P, batch, weights_P.detach(), None)
    assert back.weights_P.abs().sum() > 0
slow = ("torch._inductor", "torch._dynamo", "torchvision", "sympy")
print([name for name in slow if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_a_mixed_precision_that_nothing_follows_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert Runtime().accelerator.mixed_precision == "no"
    assert "--mixed_precision: got 'bf16'" in caplog.text


@pytest.mark.parametrize(("fast", "lower"), [(True, True), (False, False)])
def test_auto_is_bfloat16_where_the_cpu_multiplies_it_fast(
    fast: bool, lower: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(precision, "cpu_is_fast", lambda: fast)
    assert precision.is_lower("auto", cpu) == lower
    assert precision.is_lower("bfloat16", cpu) and not precision.is_lower("float32", cpu)
    assert precision.is_lower("auto", torch.device("meta"))
    for asked, kind in (("auto", torch.bfloat16 if lower else torch.float32), ("float32", None)):
        with precision.computing_in(asked, cpu):
            found = torch.ones(2, 2) @ torch.ones(2, 2)
        assert found.dtype == (kind or torch.float32)


def test_auto_compiles_where_a_compiler_is_and_a_cpu_has_enough_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu, other = torch.device("cpu"), torch.device("meta")
    for there in (True, False):
        monkeypatch.setattr(precision, "has_compiler", lambda kind, there=there: there)
        asked = [(cpu, 999), (cpu, 1000), (cpu, None), (other, 1)]
        found = [precision.is_compiled("auto", device, steps) for device, steps in asked]
        assert found == ([False, True, False, True] if there else [False] * 4)
        assert precision.is_compiled(True, cpu, 1) and not precision.is_compiled(False, cpu, 5000)


def test_one_process_works_on_all_units(runtime: Runtime) -> None:
    assert runtime.mine(3) == [0, 1, 2] and runtime.is_main


def test_sums_are_taken_in_the_order_of_the_units(runtime: Runtime) -> None:
    # in single precision (1e8 + 1) - 1e8 is 0 and (1e8 - 1e8) + 1 is 1
    parts = {2: torch.tensor([-1e8]), 0: torch.tensor([1e8]), 1: torch.tensor([1.0])}
    assert runtime.sum_in_order(parts, 3, torch.zeros(1)).tolist() == [0]
    assert parts[0].tolist() == [1e8]


@pytest.mark.parametrize("units", [1, 2, 5])
@pytest.mark.parametrize("processes", [2, 3])
def test_the_number_of_processes_does_not_change_a_bit_of_a_sum(units: int, processes: int) -> None:
    parts = {
        unit: torch.randn(6, generator=rng_for(0, unit)) * 10.0 ** (3 * unit)
        for unit in range(units)
    }
    alone = Runtime().sum_in_order(parts, units, torch.zeros(6))
    sent: dict[int, Tensor] = {}
    met = threading.Barrier(processes, timeout=10)
    sums: dict[int, Tensor] = {}

    def process(index: int) -> None:
        def gather(own: Tensor) -> Tensor:
            sent[index] = own
            met.wait()
            return torch.cat([sent[other] for other in range(processes)])

        runtime = Runtime()
        runtime.accelerator = SimpleNamespace(
            num_processes=processes, process_index=index, gather=gather
        )
        own = {unit: parts[unit] for unit in runtime.mine(units)}
        sums[index] = runtime.sum_in_order(own, units, torch.zeros(6))

    threads = [threading.Thread(target=process, args=(index,)) for index in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(sums[index], alone) for index in range(processes))


STEPS_AND_THEIR_FAULTS = """
import resource, torch
from distill_datasets.runtime.processes import Runtime

Runtime()

def step():
    [torch.ones(2**20) for _ in range(32)]  # 4 MiB each, all alive together: 32,768 pages

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(8):
    step()
before = faults()
for _ in range(10):
    step()
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="speaks of glibc")
def test_memory_that_is_freed_is_there_for_the_next_step() -> None:
    """In a process of its own: what else a process holds decides which hole a tensor gets."""
    program = [sys.executable, "-c", STEPS_AND_THEIR_FAULTS]
    faults = int(subprocess.run(program, check=True, capture_output=True, text=True).stdout)
    assert faults < 32_768  # glibc's own setting gives the memory back, ten times as many


@pytest.mark.parametrize("side", [8, 28, 32, 55])
def test_a_wide_layer_of_the_images_asked_at_once_is_a_block_that_is_kept(side: int) -> None:
    asked = images_at_once(Shape(3, side, side, 10), torch.device("cpu"))
    assert 0.5 * 2**25 < 4 * 128 * side * side * asked < 2**25


def test_large_images_are_asked_some_at_a_time_and_an_accelerator_gets_many() -> None:
    large = Shape(3, 224, 224, 1000)
    assert images_at_once(large, torch.device("cpu")) == 16
    assert images_at_once(large, torch.device("meta")) == 256
