"""The features stage: computed once, shard by shard, and refused when its files are others."""

from pathlib import Path
from unittest import mock

import pytest
import torch
from support.probe_problem import SHAPE, seen, tiny_backbone
from support.tiny import toy_real

from distill_datasets.data.real import RealData
from distill_datasets.errors import DataError
from distill_datasets.models.frozen import FrozenBackbone
from distill_datasets.runtime.processes import Run, Runtime
from distill_datasets.stages import features
from distill_datasets.stages.features import run_features
from distill_datasets.stages.source import LoadedSource


def computed(folder: Path) -> tuple[RealData, Path]:
    """The toy source with the features of the tiny backbone, in shards of five images."""
    real, runtime = toy_real(SHAPE, per_class=8), Runtime()
    source = LoadedSource(real, None, "toy")  # type: ignore[arg-type]
    with mock.patch.object(features, "SHARD", 5), runtime.reproducible():
        run_features([tiny_backbone(folder)], source, Run(0, folder / "runs", runtime, shown=False))
    (stage,) = (folder / "runs").iterdir()
    return real, stage


def test_features_are_those_of_the_backbone_and_their_moments(tmp_path: Path) -> None:
    real, stage = computed(tmp_path)
    backbone = tiny_backbone(tmp_path)
    found, wanted = real.features_of(backbone), seen(toy_real(SHAPE, 8), backbone)
    torch.testing.assert_close(found.train_ND, wanted.features_of(backbone).train_ND)
    torch.testing.assert_close(found.test_ND, wanted.features_of(backbone).test_ND)
    scaled_ND = found.moments.scaled(found.train_ND)
    torch.testing.assert_close(scaled_ND.mean(dim=0), torch.zeros(24), atol=1e-5, rtol=0)
    assert float(found.moments.covariance_DD.diagonal().mean()) == pytest.approx(1, abs=1e-5)
    for label in range(4):
        own_ND = scaled_ND[real.train.labels_N == label]
        torch.testing.assert_close(
            found.moments.centers_KD[label], own_ND.mean(dim=0), atol=1e-5, rtol=1e-4
        )
    assert sorted(path.name for path in stage.glob("*.npy")) == ["test.npy", "train.npy"]


def test_discriminants_solve_the_ridge_problem(tmp_path: Path) -> None:
    real, _ = computed(tmp_path)
    found = real.features_of(tiny_backbone(tmp_path))
    z_ND = found.moments.scaled(found.train_ND).double()
    metric_DD = z_ND.T @ z_ND / len(z_ND) + 0.5 * torch.eye(24)
    torch.testing.assert_close(
        (found.discriminants(0.5).double() @ metric_DD).float(),
        found.moments.centers_KD, atol=1e-4, rtol=1e-3,
    )  # fmt: skip


def test_a_run_that_was_killed_skips_the_shards_it_finds(tmp_path: Path) -> None:
    wanted = [path.read_bytes() for path in sorted(computed(tmp_path)[1].glob("*.npy"))]
    other = tmp_path / "other"
    other.mkdir()
    asked, written = list[int](), 0
    forward = FrozenBackbone.forward
    write_rows = features.write_rows

    def counted(self: FrozenBackbone, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        asked.append(len(pixels_BCHW))
        return forward(self, pixels_BCHW)

    def killing(path: Path, *args: object) -> None:
        nonlocal written
        if written == 3:
            raise KeyboardInterrupt
        written += 1
        write_rows(path, *args)  # type: ignore[arg-type]

    with mock.patch.object(FrozenBackbone, "forward", counted):
        with (
            mock.patch.object(features, "write_rows", killing),
            pytest.raises(KeyboardInterrupt),
        ):
            computed(other)
        asked.clear()
        _, stage = computed(other)
    assert sum(asked) == 2 * 32 - 3 * 5
    assert [path.read_bytes() for path in sorted(stage.glob("*.npy"))] == wanted


def test_what_is_there_is_not_asked_for_again(tmp_path: Path) -> None:
    computed(tmp_path)
    with mock.patch.object(FrozenBackbone, "forward", side_effect=AssertionError):
        computed(tmp_path)


def test_another_size_is_another_folder(tmp_path: Path) -> None:
    sizes = {tiny_backbone(tmp_path, size=8).load(torch.device("cpu")).fingerprint}
    sizes.add(tiny_backbone(tmp_path, size=8, crop=0.5).load(torch.device("cpu")).fingerprint)
    assert len(sizes) == 2


def test_other_bytes_are_kept_aside_and_computed_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, stage = computed(tmp_path)
    whole = (stage / "train.npy").read_bytes()
    damaged = bytearray(whole)
    damaged[200] ^= 1
    (stage / "train.npy").unlink()  # the features are still mapped
    (stage / "train.npy").write_bytes(damaged)
    computed(tmp_path)
    assert "train.npy: the checksum of rows" in caplog.text
    assert (stage / "train.npy").read_bytes() == whole
    assert (stage / "train.npy.damaged").read_bytes() == damaged


def test_features_that_nobody_computed_are_asked_for_by_the_name_of_the_backbone(
    tmp_path: Path,
) -> None:
    with pytest.raises(DataError, match="squeezed/member are not there"):
        toy_real(SHAPE).features_of(tiny_backbone(tmp_path))
