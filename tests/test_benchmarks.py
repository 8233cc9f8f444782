"""The benchmarks: both sides compute the same numbers, and what is measured is printed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.toy_runs import toy_file
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.benchmarks import __main__ as program
from tests.benchmarks import (
    curves,
    milestones,
    minutes,
    official,
    outer_steps,
    precisions,
    profiles,
    students,
    table,
    work,
    worker,
    works,
)
from tests.benchmarks.plain import convnet, set_weights

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")


@pytest.mark.parametrize("name", works.WORKS)
def test_sides_compute_the_same_numbers(name: str) -> None:
    found = works.WORKS[name].check()
    assert found.keys() == works.WORKS[name].bounds.keys()
    assert all(found[what] <= works.WORKS[name].bounds[what] for what in found), found


def test_a_reference_that_forgets_the_curvature_would_be_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    true_grad = torch.autograd.grad

    def first_order(*args: object, create_graph: bool = False, **kwargs: object) -> object:
        found = true_grad(*args, create_graph=create_graph, **kwargs)  # type: ignore[arg-type]
        return tuple(0.9 * grad for grad in found) if create_graph else found

    window = outer_steps.TINY
    problem = window.problem(CPU).double()
    _, expected = window.reference(problem)()
    monkeypatch.setattr(torch.autograd, "grad", first_order)
    _, wrong = window.reference(problem)()
    assert work.relative_error(wrong, expected) > 1e-3


def test_the_reference_has_the_papers_biases_and_starts_them_at_zero() -> None:
    module = convnet((3, 32, 32), 10, 128)
    assert sum(parameter.numel() for parameter in module.parameters()) == 320_010
    own_P = torch.arange(320_010 - 3 * 128, dtype=torch.float32)
    set_weights(module, own_P)
    biases = [layer.bias for layer in module if isinstance(layer, nn.Conv2d)]
    assert all(bool((bias == 0).all()) for bias in biases)
    kept = [p for p in module.parameters() if all(p is not bias for bias in biases)]
    assert torch.equal(torch.cat([parameter.flatten() for parameter in kept]), own_P)


def test_all_students_are_trained_and_differ() -> None:
    trained = students.STUDENTS_LENET.sides["library"]("tiny", CPU)()
    assert isinstance(trained, list) and len(trained) == 8
    firsts = [next(module.parameters()) for module in trained]
    assert not any(torch.equal(firsts[0], other) for other in firsts[1:])


@pytest.mark.timeout(180)  # three processes import torch
def test_one_command_measures_prints_and_writes(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    command = [
        sys.executable, "-m", "tests.benchmarks", "--size", "tiny", "--only", "students-lenet",
        "--json", str(file),
    ]  # fmt: skip
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "8 students" in done.stdout
    result = json.loads(file.read_text())
    assert {"date", "torch", "device", "threads"} <= result["environment"].keys()
    rows = {row["side"]: row for row in result["works"][0]["rows"]}
    assert rows.keys() == {"reference", "library"}
    assert rows["reference"]["ratio"] == 1 and rows["reference"]["flops"] > 1e9
    for row in rows.values():
        assert row["seconds"] > 0 and row["processor_seconds"] > 0
        assert 0 <= row["own_mib"] < row["peak_mib"]
    text = table.markdown(result)
    header, _, *body = text.split("\n\n")[0].splitlines()
    assert len(body) == 2 and all(line.count("|") == header.count("|") for line in body)


def test_recomputing_counts_the_window_twice_and_every_operation_moves_bytes() -> None:
    counts = {
        side: worker.counted(prepare("tiny", CPU), CPU)
        for side, prepare in outer_steps.UNROLLED_32.sides.items()
    }
    assert counts["recompute"]["flops"] > 1.1 * counts["graph"]["flops"]
    assert counts["reference"]["bytes"] > 1e8


def test_a_profile_holds_the_operators_of_all_threads_and_their_shares(tmp_path: Path) -> None:
    file = tmp_path / "profile.md"
    profiles.main(["--size", "tiny", "--only", "students-lenet", "--output", str(file)])
    text = file.read_text(encoding="utf-8")
    assert text.count("\n## ") == 1 and "8 students" in text  # the library's side alone
    assert "`aten::mkldnn_convolution`" in text or "`aten::convolution`" in text
    found = profiles.operators(lambda: torch.ones(64, 64) @ torch.ones(64, 64))
    assert {"aten::mm", "aten::fill_"} <= {each.name for each in found}
    assert sum(each.share for each in found) == pytest.approx(1)
    assert [each.share for each in found] == sorted((each.share for each in found), reverse=True)


def test_a_folder_that_is_no_known_checkout_is_refused_before_anything_runs(
    tmp_path: Path,
) -> None:
    (tmp_path / "networks.py").touch()  # two repositories have one: all of the files decide
    (tmp_path / "utils.py").touch()
    with pytest.raises(SystemExit, match=r"expected the checkout of one of: .*AsafShul/PoDD"):
        program.main(["--official", str(tmp_path)])
    (tmp_path / "main_DM.py").touch()
    assert official.checkout_in(tmp_path).name == "VICO-UoE/DatasetCondensation"
    assert all(each.drivers.keys() <= works.WORKS.keys() for each in official.CHECKOUTS)


def test_the_help_names_the_layouts_of_checkouts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    for each in official.CHECKOUTS:
        assert all(name in said for name in each.files)


def test_a_module_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "asks_for_more.py").write_text("import nobody_has_this\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit, match="imports 'nobody_has_this', which is not installed"):
        official.imported("asks_for_more")


def test_bytes_are_those_that_an_operation_reads_and_writes() -> None:
    one_NN = torch.ones(10, 10)
    counter = worker.BytesCounter()
    with counter:
        one_NN.T + 2 * one_NN  # a product and a sum; transposing moves nothing
    assert counter.total == 4 * 100 * (2 + 3)


def test_sides_that_differ_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    true = works.WORKS["batches"]
    broken = work.Work(
        true.name,
        true.text,
        true.sides,
        true.target,
        lambda: {"pixels": float("nan")},
        {"pixels": 1},
    )
    monkeypatch.setitem(works.WORKS, "batches", broken)
    with pytest.raises(SystemExit, match="the sides differ"):
        program.measured("batches", "tiny", 1, 1)


def test_curves_are_drawn_where_the_numbers_say(tmp_path: Path) -> None:
    file, picture = tmp_path / "curve.json", tmp_path / "curve.png"
    file.write_text(
        json.dumps({"name": "ours", "minutes": [0, 5, 10], "accuracy": [0.1, 0.3, 0.4]})
    )
    curves.main([str(file), "--output", str(picture)])
    drawn = Image.open(picture).convert("RGB")
    assert drawn.size == curves.SIZE
    x, y = curves.place_of(10, 0.4, 10, 0.1, 0.4)
    assert drawn.getpixel((round(x), round(y))) == (0x1F, 0x5F, 0xB4)
    assert drawn.getpixel((round(x) - 20, curves.SIZE[1] - curves.BOTTOM - 20)) == (255, 255, 255)


def test_settings_are_compared_at_equal_minutes(tmp_path: Path) -> None:
    output = tmp_path / "minutes"
    asked = [
        toy_file(tmp_path), "--minutes", "0.0005", "0.002", "--seeds", "0", "1",
        "--output", str(output), "--set", "distill.lanes=1",
        "--side", "as-it-is", "--side", "constant", "distill.schedule=constant",
    ]  # fmt: skip
    minutes.main(asked)
    for side in ("as-it-is", "constant"):
        curve = curves.read(output / f"{side}.json")
        assert [point["seed"] for point in curve["points"]] == [0, 1, 0, 1]
        (few, _, many, _) = (point["steps"] for point in curve["points"])
        assert 1 <= few < many
        assert all(point["seconds"] > 0 for point in curve["points"])
        first = [point["accuracy"] for point in curve["points"][:2]]
        assert curve["accuracy"][0] == pytest.approx(sum(first) / 2)
    with Image.open(output / "minutes.png") as picture:
        assert picture.size == curves.SIZE
    with pytest.raises(SystemExit, match=r"already holds as-it-is\.json"):
        minutes.main(asked)


def test_float32_has_the_gradient_of_float64_and_bfloat16_nearly(tmp_path: Path) -> None:
    table, source = tmp_path / "table.md", "embedded:uci-digits"
    asked = [source, "--width", "4", "--runs", str(tmp_path), "--output", str(table)]
    precisions.main(asked)
    head, _, *lines = [line.strip("| ").split(" | ") for line in table.read_text().splitlines()]
    assert head[1:] == ["float32", "bfloat16"] and len(lines) == len(precisions.ASKED)
    for _, *cells in lines:
        cosines = [float(cell.split(",")[0]) for cell in cells]
        assert cosines[0] > 0.99 and 0.5 < cosines[1] < 1
    with pytest.raises(FileExistsError):
        precisions.main(asked)


def test_a_comparison_leaves_no_stage_out(tmp_path: Path) -> None:
    asked = [toy_file(tmp_path), "--minutes", "1", "--output", str(tmp_path / "minutes")]
    squeezed = ["squeeze={network: {name: convnet}, epochs: 1}", "distill.labels=logits"]
    with pytest.raises(SystemExit, match="without squeeze"):
        minutes.main([*asked, "--side", "a", *squeezed, "distill.labels.init=squeezed"])
    with pytest.raises(SystemExit, match="got 'A B'"):
        minutes.main([*asked, "--side", "A B"])


def test_a_run_is_measured_on_the_way_and_goes_on_where_it_was_cut_short(tmp_path: Path) -> None:
    asked = [toy_file(tmp_path), "--output", str(tmp_path / "way"), "--marks", "1", "3"]
    milestones.main([*asked, "--seconds", "0"])
    assert not (tmp_path / "way" / milestones.FILE).exists()
    milestones.main(asked[:-1])
    milestones.main(asked)
    whole = tmp_path / "whole"
    milestones.main([*asked[:2], str(whole), *asked[3:]])
    cut, at_once = (
        json.loads((folder / milestones.FILE).read_text())["points"]
        for folder in (tmp_path / "way", whole)
    )
    assert [point["steps"] for point in cut] == [1, 3]
    assert [p["accuracies"] for p in cut] == [p["accuracies"] for p in at_once]
    assert len(cut[0]["accuracies"]) == 2 and all(point["seconds"] > 0 for point in cut)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_script_for_a_card_runs_from_end_to_end_at_toy_size(tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(0)
    for split, images in (("train", 6), ("test", 2)):
        for label in range(10):
            folder = tmp_path / "data" / "cifar10" / split / f"class {label}"
            folder.mkdir(parents=True)
            for place in range(images):
                values = torch.randint(256, (32, 32, 3), generator=rng, dtype=torch.uint8)
                Image.fromarray(values.numpy()).save(folder / f"{place}.png")
    out = tmp_path / "out"
    done = subprocess.run(
        ["bash", "tests/benchmarks/gpu.sh", str(tmp_path / "data"), str(out), "tiny"],
        cwd=ROOT, env=os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    parts = [line.split()[:2] for line in (out / "parts.txt").read_text().splitlines()]
    assert parts == [
        ["tests", "0"], ["benchmark-unrolled-96", "0"], ["benchmark-students-lenet", "0"],
        ["podd", "0"],
    ]  # fmt: skip
    assert " passed" in (out / "tests.log").read_text()
    assert json.loads((out / "benchmark-unrolled-96.json").read_text())["size"] == "tiny"
    points = json.loads((out / "podd" / milestones.FILE).read_text())["points"]
    assert [point["steps"] for point in points] == [1, 2]
    assert (out / "podd" / "state.safetensors").exists()
    assert sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) < 16e6


@pytest.mark.parametrize(
    ("top", "expected"), [(10, [0, 2, 4, 6, 8, 10]), (0.4, [0, 0.1, 0.2, 0.3, 0.4]), (61, None)]
)
def test_ticks_are_round_and_reach_the_top(top: float, expected: list[float] | None) -> None:
    found = curves.ticks(top)
    assert found[0] == 0 and found[-1] >= top and len(found) <= 7
    assert expected is None or found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("bottom", "top", "expected"),
    [(0.837, 0.888, [0.82, 0.84, 0.86, 0.88, 0.9]), (0.4, 0.4, [0.4, 0.5])],
)
def test_ticks_begin_near_the_smallest(bottom: float, top: float, expected: list[float]) -> None:
    assert curves.ticks(top, bottom) == pytest.approx(expected)


@pytest.mark.parametrize(
    "wrong", [{"minutes": [1], "accuracy": []}, {"minutes": [1], "accuracy": [40.0]}]
)
def test_curves_that_make_no_sense_are_refused(tmp_path: Path, wrong: dict[str, object]) -> None:
    file = tmp_path / "curve.json"
    file.write_text(json.dumps({"name": "wrong"} | wrong))
    with pytest.raises(ValueError, match="expected"):
        curves.read(file)
