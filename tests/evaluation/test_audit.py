"""The audit: planted faults are found, each by its check, and nothing of a set is run."""

import dataclasses
import json
import pickle
import re
from pathlib import Path

import pytest
import torch
from support.planted import (
    IN_FILES,
    IN_IMAGES,
    Material,
    Planted,
    clean_set,
    copied,
    of_class,
    plant_rng,
    rows_file,
    write,
)
from support.tiny import TOY, toy_real

from distill_datasets.data.decoding import Split
from distill_datasets.data.real import RealData
from distill_datasets.errors import ArtifactError, RecipeError
from distill_datasets.evaluation.audit import audit as audit_module
from distill_datasets.evaluation.audit.audit import audit, clean_rows, halves
from distill_datasets.evaluation.audit.comparison import binomial_tail
from distill_datasets.evaluation.audit.findings import (
    CHECKS,
    Finding,
    Measurement,
    closing,
    judged,
)
from distill_datasets.evaluation.audit.networks import Effort
from distill_datasets.evaluation.audit.privacy import Asked, membership, membership_of_clean
from distill_datasets.evaluation.audit.published import read_folder
from distill_datasets.evaluation.audit.rates import measured_rates
from distill_datasets.evaluation.audit.students import _clusters, _silhouette, trigger
from distill_datasets.runtime.draws import rng_for
from distill_datasets.runtime.processes import Run, Runtime

QUICK = Effort(clean_sets=5, students=1, steps=10, reference_steps=40, width=4, search_steps=3)
PER_CLASS = 10


@pytest.fixture(scope="module")
def material() -> Material:
    """A toy source of three classes, and as many images again."""
    real = toy_real(per_class=60)
    half = Split(real.train.images_NCHW[::2], real.train.labels_N[::2])
    pool = Split(real.train.images_NCHW[1::2], real.train.labels_N[1::2])
    return Material(dataclasses.replace(real, train=half), pool)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all audits, which share what clean sets have."""
    return tmp_path_factory.mktemp("runs")


def looked(
    folder: Path, real: RealData | None, runs: Path, tiers: str = "T0 T1"
) -> dict[str, Finding]:
    run = Run(0, runs, Runtime(), shown=False)
    found = audit(folder, real, run, tiers.split(), effort=QUICK)
    return {each.check.name: each for each in found}


def clean_folder(folder: Path, material: Material) -> Planted:
    planted = clean_set(material, PER_CLASS, plant_rng(0, "clean"))
    write(folder, planted, material.real)
    return planted


def test_files_as_they_were_written_have_nothing_found(tmp_path: Path, material: Material) -> None:
    clean_folder(tmp_path / "set", material)
    found = looked(tmp_path / "set", None, tmp_path, "T0")
    assert list(found) == [name for name, check in CHECKS.items() if check.tier == "T0"]
    assert {each.state for each in found.values()} == {"not found"}


@pytest.mark.parametrize("fault", IN_FILES)
def test_damaged_files_are_found_by_their_hashes(
    fault: str, tmp_path: Path, material: Material
) -> None:
    clean_folder(tmp_path / "set", material)
    IN_FILES[fault](tmp_path / "set", plant_rng(0, fault))
    found = looked(tmp_path / "set", None, tmp_path, "T0")
    assert found["files"].state == "found"
    assert "train-00000" in found["files"].where[0]


def test_labels_that_are_no_numbers_are_named_by_their_row(
    tmp_path: Path, material: Material
) -> None:
    clean_folder(tmp_path / "set", material)
    IN_FILES["labels that are no numbers"](tmp_path / "set", plant_rng(0, "labels"))
    (row,) = looked(tmp_path / "set", None, tmp_path, "T0")["labels"].where
    assert row.startswith("row ") and row.endswith("a soft label that is not finite")


def test_rows_that_can_be_read_are_audited_beside_broken_ones(
    tmp_path: Path, material: Material
) -> None:
    clean_folder(tmp_path / "set", material)
    IN_FILES["labels that are no numbers"](tmp_path / "set", plant_rng(0, "labels"))
    rows = read_folder(tmp_path / "set").rows
    assert rows is not None and len(rows.row_N) == 3 * PER_CLASS - 1


def test_a_file_that_cannot_be_read_leaves_nothing_else_to_look_at(
    tmp_path: Path, material: Material, runs: Path
) -> None:
    clean_folder(tmp_path / "set", material)
    rows_file(tmp_path / "set").write_bytes(b"PAR1 and no more")
    found = looked(tmp_path / "set", material.real, runs)
    assert found["columns"].state == "found"
    assert found["label disagreement"].state == "not looked at"
    assert found["label disagreement"].why == "no row of `default` can be read"


def test_a_pickle_and_a_script_are_found_and_not_run(tmp_path: Path, material: Material) -> None:
    clean_folder(tmp_path / "set", material)
    trap = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return (open, (str(trap), "w"))

    (tmp_path / "set" / "labels.parquet").write_bytes(pickle.dumps(Trap()))
    (tmp_path / "set" / "load.py").write_text("raise SystemExit")
    found = looked(tmp_path / "set", None, tmp_path, "T0")["programs"]
    assert found.where == [
        "labels.parquet: begins as a program or a pickle",
        "load.py: no kind of file of the published format",
    ]
    assert not trap.exists()


def test_duplicates_are_named_with_the_row_that_they_repeat(
    tmp_path: Path, material: Material
) -> None:
    clean = clean_set(material, PER_CLASS, plant_rng(0, "clean"))
    clean.images_NCHW[7] = clean.images_NCHW[2]
    write(tmp_path / "set", clean, material.real)
    found = looked(tmp_path / "set", None, tmp_path, "T0")["duplicates"]
    assert (found.value, found.where) == (1, ["row 7 is row 2"])


def test_a_leaked_test_image_is_found_and_named(
    tmp_path: Path, material: Material, runs: Path
) -> None:
    clean = clean_set(material, PER_CLASS, plant_rng(0, "clean"))
    clean.images_NCHW[12] = of_class(material.real.test, 1, 1, rng_for(0))[0]
    write(tmp_path / "set", clean, material.real)
    found = looked(tmp_path / "set", material.real, runs)["test images"]
    assert (found.state, found.where) == ("found", ["row 12 (class 1)"])
    assert found.p == 1 / 6  # beyond all five clean sets


def test_a_copied_training_image_is_found_and_named(
    tmp_path: Path, material: Material, runs: Path
) -> None:
    clean = clean_set(material, PER_CLASS, plant_rng(0, "clean"))
    write(tmp_path / "clean", clean, material.real)
    write(tmp_path / "set", copied(clean, material, rng_for(3)), material.real)
    before = looked(tmp_path / "clean", material.real, runs)["training images"]
    found = looked(tmp_path / "set", material.real, runs)["training images"]
    assert (before.state, found.state, found.value) == ("not found", "found", 1)


def test_a_mislabeled_class_is_found_and_named(
    tmp_path: Path, material: Material, runs: Path
) -> None:
    clean = clean_set(material, PER_CLASS, plant_rng(0, "clean"))
    own_N = clean.labels_N == 2
    clean.images_NCHW[own_N] = of_class(material.pool, 0, PER_CLASS, rng_for(1))
    write(tmp_path / "set", clean, material.real)
    found = looked(tmp_path / "set", material.real, runs)["class disagreement"]
    assert (found.state, found.where) == ("found", ["class 2"])


def test_a_clean_set_passes_the_checks_that_compare_with_clean_sets(
    tmp_path: Path, material: Material, runs: Path
) -> None:
    clean_folder(tmp_path / "set", material)
    found = looked(tmp_path / "set", material.real, runs, "T1 T2 T3")
    compared = [each for each in found.values() if each.check.null == "clean"]
    assert [each.check.name for each in compared if each.state == "found"] == []
    assert all(len(each.clean) == 5 for each in compared if each.state != "not looked at")
    assert found["labels on noise"].why == "its labels are hard"


def test_a_second_audit_trains_nothing(tmp_path: Path, material: Material, runs: Path) -> None:
    clean_folder(tmp_path / "set", material)
    first = looked(tmp_path / "set", material.real, runs, "T1 T2")
    written = {path: path.stat().st_mtime_ns for path in runs.rglob("*.safetensors")}
    again = looked(tmp_path / "set", material.real, runs, "T1 T2")
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*.safetensors")} == written
    assert [each.as_json() for each in again.values()] == [
        each.as_json() for each in first.values()
    ]


def test_findings_are_json_that_any_reader_takes(
    tmp_path: Path, material: Material, runs: Path
) -> None:
    clean_folder(tmp_path / "set", material)
    found = looked(tmp_path / "set", material.real, runs)
    said = json.loads(json.dumps([each.as_json() for each in found.values()], allow_nan=False))
    assert {each["check"] for each in said} == found.keys()


def test_without_a_source_the_other_tiers_say_what_is_missing(
    tmp_path: Path, material: Material
) -> None:
    clean_folder(tmp_path / "set", material)
    found = looked(tmp_path / "set", None, tmp_path, "T0 T1 T2 T3")
    assert found["trigger"].in_words() == (
        "not looked at: the source was not given; name it with --source"
    )


def test_a_source_of_another_size_is_refused_before_anything_is_trained(
    tmp_path: Path, material: Material
) -> None:
    clean_folder(tmp_path / "set", material)
    other = toy_real(dataclasses.replace(TOY, h=12, w=12), per_class=3)
    with pytest.raises(ArtifactError, match="its images are 1x8x8, those of the source 1x12x12"):
        looked(tmp_path / "set", other, tmp_path)


def test_an_unknown_tier_is_refused_with_the_valid_ones(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"got 'T4'; did you mean .*T0, T1, T2, T3"):
        looked(tmp_path, None, tmp_path, "T4")


def test_a_folder_without_a_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"neither distill\.json nor data/train"):
        looked(tmp_path, None, tmp_path)


def test_a_number_is_found_only_beyond_all_clean_sets_and_far_from_their_mean() -> None:
    clean = [0.0, 0.1, 0.2]
    assert judged("recall gap", Measurement(0.19), clean).state == "not found"
    assert judged("recall gap", Measurement(0.21), clean).state == "not found"
    assert judged("recall gap", Measurement(0.5), clean).state == "found"
    assert judged("recall gap", Measurement(0.5), clean, stretch=2.0).state == "not found"
    assert judged("recall gap", Measurement(0.5)).state == "not found"


def test_the_closing_line_never_calls_a_set_clean() -> None:
    nothing = [judged("files", Measurement(0)), judged("images", Measurement(0))]
    assert closing(nothing) == (
        "found 0 of 2 things that were looked for; what was not found may be there all the same"
    )


def test_clean_rows_have_the_labels_of_the_set_and_images_of_their_class(
    tmp_path: Path, material: Material
) -> None:
    clean_folder(tmp_path / "set", material)
    rows = read_folder(tmp_path / "set").rows
    assert rows is not None
    drawn, row_N = clean_rows(rows, material.real, lambda *what: rng_for(0, *what))
    assert torch.equal(drawn.targets_NK, rows.targets_NK)
    assert torch.equal(material.real.train.labels_N[row_N], rows.labels_N)
    assert torch.equal(drawn.images_NCHW, material.real.train.images_NCHW[row_N])


def test_the_binomial_tail_is_what_a_hand_computes() -> None:
    assert binomial_tail(0, 5, 0.1) == 1
    assert binomial_tail(2, 2, 0.5) == pytest.approx(0.25)
    assert binomial_tail(1, 3, 0.5) == pytest.approx(0.875)


def test_the_silhouette_of_two_pairs_is_what_a_hand_computes() -> None:
    points = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    # a = 1 for all; b is 10.5, 9.5, 9.5, 10.5
    expected = 1 - (1 / 10.5 + 1 / 9.5) / 2
    assert _silhouette(points, torch.tensor([0, 0, 1, 1])) == pytest.approx(expected)


def test_a_minority_in_the_activations_is_found_and_halves_are_not() -> None:
    rng = rng_for(0)
    points = torch.randn((40, 5), generator=rng)
    few, half = points.clone(), points.clone()
    few[:6, 0] += 30
    half[:20, 0] += 30
    assert sorted(_clusters(few).rows) == list(range(6))
    assert _clusters(half).value == 0


def test_membership_of_images_that_networks_are_sure_of_is_found() -> None:
    rng = rng_for(0)
    asked = Asked(torch.arange(200), torch.arange(200))
    shadows_SX = torch.randn((16, 400), generator=rng)
    own_X = torch.randn(400, generator=rng)
    unused_SX = torch.zeros((16, 400), dtype=torch.bool)
    honest = membership(own_X, shadows_SX, unused_SX, asked)
    own_X[:20] += 10
    told = membership(own_X, shadows_SX, unused_SX, asked)
    clean = membership_of_clean(shadows_SX, unused_SX, asked)
    assert len(clean) == 16
    assert judged("membership", honest, clean).state == "not found"
    assert judged("membership", told, clean).state == "found"
    assert told.value == pytest.approx(0.1, abs=0.03)


def test_images_that_a_clean_set_shows_do_not_tell_what_clean_sets_have() -> None:
    asked = Asked(torch.arange(200), torch.arange(200))
    shadows_SX = torch.randn((16, 400), generator=rng_for(0))
    used_SX = torch.zeros((16, 400), dtype=torch.bool)
    used_SX[:, :20] = torch.rand((16, 20), generator=rng_for(1)) < 0.5
    sure_SX = shadows_SX + 10 * used_SX
    assert membership_of_clean(sure_SX, used_SX, asked) == membership_of_clean(
        shadows_SX, used_SX, asked
    )


def test_a_pattern_that_is_small_for_its_class_is_a_trigger() -> None:
    clean_SK = torch.tensor([[4.0, 8.0, 12.0]]) + torch.tensor([[-1.0], [0.0], [1.0]])
    own_K = torch.tensor([4.0, 8.0, 7.0])
    # one below the mean in units of a deviation of 1: a class that is small everywhere is none
    assert trigger(own_K, clean_SK, ["a", "b", "c"]) == Measurement(5.0, ["c"])
    assert trigger(own_K, clean_SK, ["a", "b", "c"], stretch=2.0).value == 2.5


def test_halves_share_no_image_and_have_all_classes(material: Material) -> None:
    real = material.real
    first, second = halves(real, lambda *what: rng_for(0, *what))
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(len(real.train.labels_N)))
    counts = [real.train.labels_N[half].bincount().tolist() for half in (first, second)]
    assert counts == [[15, 15, 15], [15, 15, 15]]


def test_the_shipped_rates_are_of_the_checks_and_of_the_default_effort() -> None:
    rates = measured_rates()
    assert rates["effort"] == dataclasses.asdict(Effort())
    assert set(IN_IMAGES) | set(IN_FILES) < rates["found"].keys()
    for found in rates["found"].values():
        assert found.keys() <= CHECKS.keys()
        assert all(0 <= count <= rates["seeds"] for count in found.values())


def test_the_guide_states_the_shipped_rates() -> None:
    guide = Path(audit_module.__file__).parent / "README.md"
    lines = guide.read_text(encoding="utf-8").splitlines()
    rates, stated = measured_rates(), {}
    for line in lines:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] in rates["found"]:
            pairs = re.findall(r"([a-z ]+) (\d+)(?:, |$)", cells[1])
            stated[cells[0]] = {check.strip(): int(count) for check, count in pairs}
    assert stated == {
        fault: {check: count for check, count in found.items() if count}
        for fault, found in rates["found"].items()
    }
