"""Labels of views: they belong to exactly the recorded pixels, whoever made or reads them."""

import io
import signal
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from support import TESTS
from support.launch import launch
from support.relabel_problem import MEAN_C, SHAPE, SPACE, STD_C, Store, images, relabel, several
from support.toy_runs import times
from torch import Tensor
from webdataset.tariterators import group_by_keys, tar_file_iterator

from distill_datasets.data.normalization import InputSpace
from distill_datasets.errors import ArtifactError, RecipeError
from distill_datasets.files.artifacts import read_json, sha256_of
from distill_datasets.files.parquet import write_parquet
from distill_datasets.models.convnets import ConvNet
from distill_datasets.runtime.draws import draws
from distill_datasets.runtime.processes import Runtime
from distill_datasets.soft_labels.codes import published_code
from distill_datasets.soft_labels.ensemble import ensemble_problems
from distill_datasets.soft_labels.records import Records, open_shards, open_table
from distill_datasets.stages import relabel as stage
from distill_datasets.stages.relabel import Layout, RelabelFolder
from distill_datasets.types import Shape
from distill_datasets.views.recorded import Views, draw_views, replay
from distill_datasets.views.relabel import Relabel

pytestmark = pytest.mark.timeout(120)

HALF = 2**-11


def published(made: RelabelFolder, folder: Path, shards: bool) -> Records:
    """The labels read back from what is published."""
    if shards:
        made.shards(folder)
        return open_shards(folder, 40)
    config = made.config()
    (path,) = config.paths
    (folder / path).parent.mkdir(parents=True)
    write_parquet(folder / path, config, 0, config.rows)
    return open_table(pq.read_table(folder / path), 40)


def decoded(made: RelabelFolder, columns: dict[str, Tensor], classes: int = SHAPE.k) -> Tensor:
    lengths = {name: values.shape[1] for name, values in columns.items() if values.ndim == 2}
    return published_code(lengths, classes, made.constants).decode(columns)


def everything(records: Records) -> tuple[Views, dict[str, Tensor]]:
    return records.rows(0, records.count)


def asked(store: Store, views: Views) -> Tensor:
    """What the first teacher says of rendered views in eval mode."""
    rendered = replay(images(store.shape), views, SPACE)
    logits_BK: Tensor = store.module(0)(rendered)
    return logits_BK


def close(found: Tensor, expected: Tensor, slack: float = 1.0) -> bool:
    """Equal up to the rounding to float16."""
    bound = slack * HALF * float(expected.abs().max())
    return float((found - expected).abs().max()) <= bound * (1 + 1e-3)


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("settings", [{}, {"mix": "mixup", "tiles": 2}, {"crop": None, "pad": 2}])
def test_labels_of_rendered_records_are_the_stored_ones_in_any_batch(
    tmp_path: Path, settings: dict[str, Any], shards: bool
) -> None:
    made = relabel(tmp_path, **settings)
    assert made.labels == 80 and len(made.units) == 6
    records = published(made, tmp_path / "out", shards)
    assert (records.count, records.epochs) == (80, 2)
    views, columns = everything(records)
    stored = decoded(made, columns)
    order_B = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    for rows_B in torch.split(order_B, 10):
        assert close(stored[rows_B], asked(Store(), views.at(rows_B)))
    # the labels of other views are others
    assert not close(stored, asked(Store(), views.at(order_B)), slack=50)


def test_epochs_and_batches_are_those_that_are_drawn(tmp_path: Path) -> None:
    made = relabel(tmp_path)
    records = published(made, tmp_path / "out", shards=True)
    for epoch in (0, 1):
        drawn = draw_views(made.layout.settings, epoch, 40, (8, 12), draws(3, "relabel"))
        views, columns = records.epoch(epoch)
        assert all(torch.equal(own, other) for own, other in zip(views[:9], drawn[:9], strict=True))
        assert columns["epoch"].tolist() == [epoch] * 40
        assert columns["batch"].tolist() == [0] * 16 + [1] * 16 + [2] * 8


def test_batch_statistics_are_those_of_the_recorded_group(tmp_path: Path) -> None:
    made = relabel(tmp_path, batch_norm="batch", groups=2)
    views, columns = published(made, tmp_path / "out", False).epoch(1)
    stored = decoded(made, columns)
    assert views.group_B.tolist() == [0] * 8 + [1] * 8 + [2] * 8 + [3] * 8 + [4] * 4 + [5] * 4
    module = Store().module(0)
    for layer in module.modules():
        layer.train(isinstance(layer, torch.nn.BatchNorm2d))
    rendered = replay(images(), views, SPACE)
    for group in range(6):
        rows_B = torch.nonzero(views.group_B == group).flatten().flip(0)
        assert close(stored[rows_B], module(rendered[rows_B]))
    assert not close(stored[:16], module(rendered[:16]), slack=20)
    assert not close(stored, asked(Store(), views), slack=20)


def test_statistics_of_the_teacher_are_not_moved(tmp_path: Path) -> None:
    kept = Store().module(0)

    class Same(Store):
        def module(self, member: int) -> torch.nn.Module:
            return kept

    relabel(tmp_path, store=Same(), batch_norm="batch")
    expected = Store().module(0).state_dict()
    assert all(torch.equal(kept.state_dict()[name], value) for name, value in expected.items())
    assert not any(layer.training for layer in kept.modules())


def test_batch_statistics_need_batch_norm(tmp_path: Path) -> None:
    class Bare(Store):
        def module(self, member: int) -> torch.nn.Module:
            return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(288, 5))

    with pytest.raises(RecipeError, match="set batch_norm: eval"):
        relabel(tmp_path, store=Bare(), batch_norm="batch")


def test_what_the_networks_cannot_do_is_refused_before_they_are_trained() -> None:
    batched, grouped = (ConvNet(depth=1, width=4, norm=norm) for norm in ("batch", "instance"))
    batch, features = Relabel(batch_norm="batch"), Relabel(store="features")
    weighted = Relabel(batch_norm="batch", weights=[1.0, 0.0])
    assert not list(ensemble_problems(batch, [batched, batched], SHAPE))
    assert not list(ensemble_problems(features, [grouped], SHAPE))
    assert not list(ensemble_problems(weighted, [batched, grouped], SHAPE))
    (problem,) = ensemble_problems(batch, [batched, grouped], SHAPE)
    assert "set batch_norm: eval" in problem
    (problem,) = ensemble_problems(features, [batched, batched], SHAPE)
    assert "one teacher, got 2" in problem


@pytest.mark.parametrize("shards", [False, True])
def test_features_with_the_classifier_give_the_logits(tmp_path: Path, shards: bool) -> None:
    made = relabel(tmp_path, store_as="features")
    assert made.code.label_bytes == 48 and sorted(made.constants) == ["bias_K", "weight_KD"]
    views, columns = everything(published(made, tmp_path / "out", shards))
    module = Store().module(0)
    *body, last = module
    rendered = replay(images(), views, SPACE)
    features_BD = torch.nn.Sequential(*body)(rendered)
    expected = F.linear(features_BD.half().float(), last.weight, last.bias)
    assert torch.allclose(decoded(made, columns), expected, rtol=1e-5, atol=1e-5)
    assert close(decoded(made, columns), asked(Store(), views), slack=4)


def test_features_of_several_teachers_are_refused_unless_one_has_the_weight(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="one teacher, got 2"):
        relabel(tmp_path, store=several(), store_as="features")
    with pytest.raises(RecipeError, match="one for each network"):
        relabel(tmp_path, store=several(), weights=[1.0, 0.0, 0.0])
    made = relabel(tmp_path, store=several(), weights=[0.0, 2.0], store_as="features")
    only = several().module(1)[-1]
    assert torch.equal(made.constants["weight_KD"], only.weight)


def test_features_of_a_network_that_goes_on_after_its_last_linear_layer_are_refused(
    tmp_path: Path,
) -> None:
    class Doubled(Store):
        def module(self, member: int) -> torch.nn.Module:
            module = super().module(member)
            assert isinstance(module, torch.nn.Sequential)
            return module.append(torch.nn.Softplus())

    with pytest.raises(RecipeError, match="set store: logits"):
        relabel(tmp_path, store=Doubled(), store_as="features")


def test_the_largest_logits_are_kept(tmp_path: Path) -> None:
    full = relabel(tmp_path)
    made = relabel(tmp_path, store_as="top_k", top_k=2)
    assert made.folder != full.folder and made.code.label_bytes == 8
    for number, shards in enumerate((False, True)):
        _, columns = everything(published(made, tmp_path / f"out{number}", shards))
        stored = decoded(made, columns)
        whole = torch.from_numpy(full.read(0, 80)["logits"]).float()
        values, indices = whole.topk(2, dim=1)
        assert torch.equal(stored.gather(1, indices), values)
        assert bool((stored.isinf().sum(dim=1) == 3).all())
        # at any temperature all of the probability lies on the kept ones
        shares = torch.softmax(stored / 20, dim=1)
        assert torch.allclose(shares.gather(1, indices), torch.softmax(values / 20, dim=1))


def test_several_teachers_are_averaged_by_their_weights(tmp_path: Path) -> None:
    store = several(3)
    made = relabel(tmp_path, store=store, weights=[1.0, 0.0, 3.0])
    columns = made.read(0, 40)
    views = draw_views(made.layout.settings, 0, 40, (8, 12), draws(3, "relabel"))
    rendered = replay(images(), views, SPACE)
    first, third = store.module(0)(rendered), store.module(2)(rendered)
    found = torch.from_numpy(columns["logits"]).float()
    assert close(found, (first + 3 * third) / 4)
    alike = relabel(tmp_path, store=store, weights=[1.0, 0.0, 3.0], teachers="rescaled")
    found = torch.from_numpy(alike.read(0, 40)["logits"]).float()
    lengths = [logits.norm(dim=1, keepdim=True) for logits in (first, third)]
    mean = (lengths[0] + lengths[1]) / 2
    assert close(found, mean * (first / lengths[0] + 3 * third / lengths[1]) / 4)


def test_only_a_share_of_the_batches_is_labeled(tmp_path: Path) -> None:
    made = relabel(tmp_path, keep=0.6)
    assert made.layout.units == 4 and made.labels == 40 + 16
    full = relabel(tmp_path)
    records = published(made, tmp_path / "out", True)
    assert (records.count, records.epochs) == (56, 2)
    assert np.array_equal(records.epoch(1)[1]["logits"], full.read(40, 56)["logits"])
    assert made.facts["labels"] == 56 and made.facts["units"] == 4


def test_more_than_a_thousand_classes_of_gray_images(tmp_path: Path) -> None:
    store = replace(Store(), shape=Shape(1, 6, 5, 1100))
    made = relabel(tmp_path, store=store, store_as="top_k", top_k=7)
    views, columns = everything(published(made, tmp_path / "out", True))
    assert int(columns["indices"].max()) > 1000 and columns["indices"].dtype == torch.int16
    rendered = replay(images(store.shape), views, InputSpace(MEAN_C[:1], STD_C[:1]))
    logits = store.module(0)(rendered)
    stored = decoded(made, columns, 1100)
    kept = stored.isfinite()
    assert close(stored[kept], logits[kept])
    assert bool((logits.masked_fill(kept, -9e9).amax(1) <= logits.topk(7)[0][:, -1] + 0.02).all())


def test_datasets_opens_the_configuration(tmp_path: Path) -> None:
    made = relabel(tmp_path, tiles=2)
    published(made, tmp_path / "out", shards=False)
    file = str(tmp_path / "out" / "relabel" / "train-00000-of-00001.parquet")
    rows = datasets.load_dataset(
        "parquet", data_files=file, split="train", cache_dir=str(tmp_path / "cache")
    )
    assert rows.column_names == [
        "epoch", "batch", "image", "crop", "flip", "partner", "partner_crop", "partner_flip",
        "box", "share", "group", "tiles", "partner_tiles", "logits",
    ]  # fmt: skip
    columns = made.read(0, 80)
    found = rows.with_format("numpy")[:]
    for name, values in columns.items():
        assert np.array_equal(found[name], values), name
        stored = rows.features[name]
        inner = stored.feature if values.ndim == 2 else stored
        assert inner.dtype == str(values.dtype), name


def test_a_tar_is_a_webdataset_of_large_arrays(tmp_path: Path, monkeypatch: Any) -> None:  # noqa: ANN401
    monkeypatch.setattr(stage, "BLOCK_RECORDS", 32)
    monkeypatch.setattr(stage, "SHARD_BYTES", 4000)
    made = relabel(tmp_path)
    paths = made.shards(tmp_path / "out")
    assert [path.name for path in paths] == [
        "relabel-00000.tar", "relabel-00001.tar", "index.json",
    ]  # fmt: skip
    index = read_json(paths[-1])
    blocks = [block for shard in index["shards"] for block in shard["blocks"]]
    assert [block["batches"] for block in blocks] == [[0, 2], [2, 3], [0, 2], [2, 3]]
    assert [block["records"] for block in blocks] == [[0, 32], [32, 40], [40, 72], [72, 80]]
    for shard in index["shards"]:
        path = tmp_path / "out" / shard["path"]
        assert (shard["bytes"], shard["sha256"]) == (path.stat().st_size, sha256_of(path))
        with tarfile.open(path) as tar:
            for member in tar:
                assert (member.mtime, member.mode, member.uname) == (0, 0o644, "root")
    samples = list[dict[str, Any]]()
    for path in paths[:-1]:
        with path.open("rb") as file:
            samples += group_by_keys({"__url__": "", **one} for one in tar_file_iterator(file))
    expected = made.read(0, 80)
    for name in expected:
        members = [np.load(io.BytesIO(sample[f"{name}.npy"])) for sample in samples]
        found = np.concatenate(members)
        assert np.array_equal(found, expected[name])
    # rows across blocks and shards
    _, columns = open_shards(tmp_path / "out", 40).rows(30, 75)
    assert np.array_equal(columns["logits"].numpy(), expected["logits"][30:75])


def test_a_damaged_shard_is_told(tmp_path: Path) -> None:
    made = relabel(tmp_path)
    path, _ = made.shards(tmp_path / "out")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ArtifactError, match="ends too early"):
        open_shards(tmp_path / "out", 40).epoch(1)


def bits(folder: Path) -> dict[str, bytes]:
    """The files of the stage, and the shards and the Parquet file made of them."""
    (own,) = folder.iterdir()
    return {path.name: path.read_bytes() for path in own.iterdir()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one undisturbed process makes."""
    folder = tmp_path_factory.mktemp("alone")
    relabel(folder, batch_norm="batch", groups=2)
    made = bits(folder)
    assert len(made) == 7  # six files, and what says that they are all there
    return made


def start(folder: Path, processes: int, killed_at: int = 0) -> int:
    """Run the toy problem in some processes; returns how they ended."""
    program = TESTS / "support" / "relabel_problem.py"
    finished = launch(program, folder, killed_at, processes=processes)
    assert finished.returncode == 0 or killed_at, finished.stderr
    return finished.returncode


@pytest.mark.gloo
@pytest.mark.parametrize("processes", [2, 4])
def test_labels_and_shards_have_the_same_bytes_from_one_two_and_four_processes(
    tmp_path: Path, alone: dict[str, bytes], processes: int
) -> None:
    if processes == 4:  # two die on the way, four go on
        assert start(tmp_path / "runs", 2, killed_at=2) != 0
    start(tmp_path / "runs", processes)
    found = bits(tmp_path / "runs")
    assert {name: content for name, content in found.items() if name[0] != "."} == alone
    again = relabel(tmp_path / "runs", batch_norm="batch", groups=2)
    other = relabel(tmp_path / "other", batch_norm="batch", groups=2)
    for made, folder in ((again, "a"), (other, "b")):
        published(made, tmp_path / folder / "shards", shards=True)
        published(made, tmp_path / folder / "rows", shards=False)
    files = [path for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert len(files) == 3
    for path in files:
        twin = tmp_path / "b" / path.relative_to(tmp_path / "a")
        assert path.read_bytes() == twin.read_bytes()


def test_a_killed_process_leaves_what_another_number_of_threads_finishes(
    tmp_path: Path, alone: dict[str, bytes]
) -> None:
    assert start(tmp_path, 1, killed_at=4) == -signal.SIGKILL
    (folder,) = tmp_path.iterdir()
    assert not (folder / "DONE.json").exists()
    kept = {name: at for name, at in times(tmp_path).items() if name.endswith(".safetensors")}
    assert 0 < len(kept) < 6
    runtime = Runtime()
    runtime.cores = 3
    relabel(tmp_path, runtime, batch_norm="batch", groups=2)
    whole = {name: content for name, content in bits(tmp_path).items() if name[0] != "."}
    assert whole == alone
    assert all(times(tmp_path)[path] == at for path, at in kept.items())


def test_no_process_waits_for_another_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[int] = []
    runtime = Runtime()

    def noted() -> None:
        waits.append(len(list(tmp_path.rglob("labels-*"))))

    monkeypatch.setattr(runtime.accelerator, "wait_for_everyone", noted)
    monkeypatch.setattr(runtime.accelerator, "gather", None)
    relabel(tmp_path, runtime)
    assert set(waits) == {6}


def test_other_images_or_settings_are_other_labels(tmp_path: Path) -> None:
    first = relabel(tmp_path)
    assert relabel(tmp_path, parquet_below_bytes=0).folder == first.folder
    assert relabel(tmp_path, flip=False).folder != first.folder
    other = replace(Store(), fingerprint="trained otherwise")
    assert relabel(tmp_path, store=other).folder != first.folder


def test_labels_in_bfloat16_are_nearly_those_in_float32_and_lie_elsewhere(tmp_path: Path) -> None:
    exact, lower = relabel(tmp_path), relabel(tmp_path, precision="bfloat16")
    assert exact.folder != lower.folder
    ours, theirs = (torch.from_numpy(each.read(0, 80)["logits"]).float() for each in (exact, lower))
    assert not torch.equal(ours, theirs)
    assert float((ours - theirs).norm() / ours.norm()) < 0.02


def test_the_recipe_says_where_labels_go_and_what_they_take(tmp_path: Path) -> None:
    made = relabel(tmp_path)
    # two int32 for epoch and batch, image, crop, flip, twice; box, share and group
    record = 2 * 4 + 2 * (4 + 16 + 1) + 16 + 4 + 4
    assert made.facts["bytes_per_view"] == record and made.facts["bytes_per_label"] == 10
    assert made.bytes == 80 * (record + 10)
    few = made.published()
    assert few.config is not None and few.config.rows == 80 and few.shards is None
    many = relabel(tmp_path, parquet_below_bytes=made.bytes - 1).published()
    assert many.config is None and many.shards is not None
    assert (few.labels, few.bytes, few.constants) == (80, made.bytes, {})
    views = draw_views(made.layout.settings, 0, 40, (8, 12), draws(3, "relabel"))
    right = 0
    for epoch in (0, 1):
        views = draw_views(made.layout.settings, epoch, 40, (8, 12), draws(3, "relabel"))
        right += int((asked(Store(), views).argmax(1) == views.image_B % 5).sum())
    assert made.facts["teacher_agrees"] == right / 80


def test_imagenet_is_cut_into_files_of_some_megabytes() -> None:
    layout = Layout(Relabel(batch=1024), 50_000, 2074)
    assert layout.units == 300 * 49 and layout.records == 15_000_000
    assert len(layout.files) == 2100 and layout.files[1] == (7, 14)
    assert layout.file_starts[8] == 50_000 + 7 * 1024
    small = Layout(Relabel(), 100, 94)
    assert len(small.files) == 60 and small.records == 30_000
