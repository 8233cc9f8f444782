"""Statistics of every class: exact, and the same bits however many processes there are."""

from pathlib import Path
from unittest import mock

import pytest
import torch
from support.tiny import TOY, toy_real
from support.toy_runs import hashes
from torch import Tensor, nn

from distill_datasets.data.decoding import Split
from distill_datasets.data.normalization import Normalization
from distill_datasets.data.provenance import Provenance
from distill_datasets.data.real import RealData
from distill_datasets.files.artifacts import read_tensors
from distill_datasets.models.convnets import ConvNet
from distill_datasets.networks.teachers import batch_norms
from distill_datasets.optimizers import Sgd
from distill_datasets.runtime.draws import rng_for
from distill_datasets.runtime.processes import Run, Runtime
from distill_datasets.stages import class_statistics as statistics
from distill_datasets.stages.class_statistics import class_ranges, run_statistics, sums_of
from distill_datasets.stages.source import LoadedSource
from distill_datasets.stages.squeeze import SqueezedFolder, run_squeeze
from distill_datasets.stages.teacher_training import Squeeze
from distill_datasets.types import Shape

REAL = toy_real(per_class=30)
BATCHED = ConvNet(depth=2, width=4, norm="batch")


class OneCore(Runtime):
    """Threads that wait for a busy core cost more than they gain here."""

    def __init__(self) -> None:
        super().__init__()
        self.cores = 1


class OneOfTwo(OneCore):
    """The first or the second of two processes that never meet."""

    rank = 0

    def mine(self, units: int) -> list[int]:
        return list(range(self.rank, units, 2))


def loaded(real: RealData = REAL) -> LoadedSource:
    return LoadedSource(real, mock.create_autospec(Provenance, instance=True), "toy")


@pytest.fixture(scope="module")
def squeezed(tmp_path_factory: pytest.TempPathFactory) -> SqueezedFolder:
    settings = Squeeze(
        network=BATCHED, batch=30, epochs=2, members=2, optimizer=Sgd(lr=0.05), least_accuracy=0
    )
    folder = tmp_path_factory.mktemp("squeezed")
    return run_squeeze(settings, loaded(), run=Run(0, folder, OneCore(), shown=False))


def measured(
    squeezed: SqueezedFolder, runs: Path, runtime: Runtime | None = None, real: RealData = REAL
) -> SqueezedFolder:
    return run_statistics(
        squeezed, loaded(real), run=Run(0, runs, runtime or OneCore(), shown=False)
    )


def by_hand(module: nn.Module, real: RealData, label: int) -> list[tuple[Tensor, Tensor]]:
    """Mean and biased variance before every BatchNorm of all images of a class in one batch."""
    inputs = list[Tensor]()
    hooks = [
        layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0].double()))
        for layer in batch_norms(module)
    ]
    module(real.select(real.rows_of_class[label]).images_BCHW)
    for hook in hooks:
        hook.remove()
    return [(seen.mean(dim=(0, 2, 3)), seen.var(dim=(0, 2, 3), correction=0)) for seen in inputs]


def test_they_are_the_moments_of_all_images_of_a_class_together(
    squeezed: SqueezedFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "UNIT_ROWS", 7)  # classes of 30 begin and end inside units
    monkeypatch.setattr(statistics, "images_at_once", lambda shape, device: 3)
    found = measured(squeezed, tmp_path)
    for member in range(2):
        told = found.class_statistics(member)
        assert told is not None
        mean, var = told
        assert [mean_KC.shape for mean_KC in mean] == [(3, 4), (3, 4)]
        for label in range(3):
            expected = by_hand(squeezed.module(member), REAL, label)
            for layer, (mean_C, var_C) in enumerate(expected):
                torch.testing.assert_close(
                    mean[layer][label].double(), mean_C, rtol=1e-5, atol=1e-6
                )
                torch.testing.assert_close(var[layer][label].double(), var_C, rtol=1e-5, atol=1e-7)


def test_images_that_differ_only_among_themselves_have_variance() -> None:
    # two images of constant 0 and 2 of one class: mean 1, variance 1, and none within an image
    images_NCHW = torch.tensor([0, 2, 7, 7], dtype=torch.uint8)[:, None, None, None].expand(
        4, 1, 2, 2
    )
    rows = Split(images_NCHW.contiguous(), torch.tensor([0, 0, 1, 1]))
    as_is = Normalization(torch.zeros(1), torch.full((1,), 1 / 255))
    real = RealData(rows, rows, ["a", "b"], as_is, Shape(1, 2, 2, 2))
    norm = nn.BatchNorm2d(1)
    sums = sums_of(nn.Sequential(norm).eval(), real, class_ranges(real)[0])
    assert sums["count/0"].tolist() == [8, 8]
    assert sums["sum/0"].flatten().tolist() == pytest.approx([8, 56], rel=1e-6)
    assert sums["square/0"].flatten().tolist() == pytest.approx([16, 8 * 49], rel=1e-6)
    assert sums["sum/0"].dtype == torch.float64


def test_small_variance_around_a_large_mean_is_not_lost() -> None:
    # a float32 sum of squares of 10,000 +- 1 would be off by the size of the variance itself
    images_NCHW = torch.randint(0, 3, (40, 1, 4, 4), generator=rng_for(0)).byte()
    rows = Split(images_NCHW, torch.arange(40) % 2)
    shifted = Normalization(torch.full((1,), -10_000.0), torch.full((1,), 1.0))
    real = RealData(rows, rows, ["a", "b"], shifted, Shape(1, 4, 4, 2))
    sums = sums_of(nn.Sequential(nn.BatchNorm2d(1)).eval(), real, class_ranges(real)[0])
    for label in range(2):
        seen = shifted.apply(images_NCHW[label::2]).double()
        count, total, square = (
            sums[f"{kind}/0"][label].item() for kind in ("count", "sum", "square")
        )
        assert square / count - (total / count) ** 2 == pytest.approx(
            float(seen.var(correction=0)), rel=1e-3, abs=1e-7
        )


def test_ranges_are_all_rows_once_with_the_classes_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(statistics, "UNIT_ROWS", 16)
    ranges = class_ranges(REAL)
    rows_N = torch.cat([unit.rows_N for unit in ranges])
    assert sorted(rows_N.tolist()) == list(range(90))
    assert [(unit.first, unit.last) for unit in ranges] == [
        (0, 0), (0, 1), (1, 1), (1, 2), (2, 2), (2, 2)
    ]  # fmt: skip


def test_the_number_of_processes_changes_no_bit(
    squeezed: SqueezedFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "UNIT_ROWS", 16)
    alone = measured(squeezed, tmp_path / "alone")
    first, second = OneOfTwo(), OneOfTwo()
    second.rank = 1
    with mock.patch.object(statistics, "_moments", side_effect=InterruptedError):
        for runtime in (second, first):  # killed before anything is put together
            with pytest.raises(InterruptedError):
                measured(squeezed, tmp_path / "shared", runtime)
    with mock.patch.object(statistics, "sums_of", side_effect=AssertionError):
        shared = measured(squeezed, tmp_path / "shared")
    assert alone.statistics is not None and shared.statistics is not None
    assert hashes(alone.statistics) == hashes(shared.statistics)


def test_what_is_measured_is_not_measured_again(
    squeezed: SqueezedFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "UNIT_ROWS", 40)
    found = measured(squeezed, tmp_path)
    assert found.statistics is not None
    (lost,) = found.statistics.glob("sums-0001-00001*")
    kept = read_tensors(lost)[0]
    lost.unlink()
    (found.statistics / "member-0001.safetensors").unlink()
    with mock.patch.object(statistics, "sums_of", wraps=sums_of) as looked:
        measured(squeezed, tmp_path)
    assert looked.call_count == 1
    again = read_tensors(lost)[0]
    assert all(torch.equal(kept[name], again[name]) for name in kept)
    with mock.patch.object(statistics, "sums_of", side_effect=AssertionError):
        measured(squeezed, tmp_path)


def test_members_have_none_until_somebody_looked(squeezed: SqueezedFolder) -> None:
    assert squeezed.class_statistics(0) is None
    assert squeezed.shape == TOY
