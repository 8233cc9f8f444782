"""The command line: few verbs, plain answers, and input that is refused before any work."""

import os
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import pytest
import torch
import typer
from PIL import Image
from support import REPOSITORY
from support.image_sets import noise
from support.toy_runs import Answer, command, hashes, times, toy_file, until

from distill_datasets import cli
from distill_datasets.config import BUILT_IN, load
from distill_datasets.export.folder import verify
from distill_datasets.runtime.launch import Ended

RECIPES = REPOSITORY / "recipes"
PUBLISHED = {
    "README.md",
    "data/train-00000-of-00001.parquet",
    "distill.json",
    "exact/train-00000-of-00001.parquet",
    "classes.png",
    "poster.png",
    "poster/train-00000-of-00001.parquet",
    "recipe.yaml",
    "recipe/train-00000-of-00001.parquet",
    "results.json",
    "student.yaml",
}
OPTIONS = {
    "": {"--install-completion", "--show-completion", "--version", "--agent-help"},
    "run": {
        "--profile",
        "--method",
        "--runs",
        "--output",
        "--track",
        "--processes",
        "--skip-bad-rows",
        "--dry-run",
        "--quiet",
        "--json",
    },
    "job": {
        *("--profile", "--method", "--flavor", "--image", "--keep", "--minutes", "--timeout"),
        *("--package", "--runs", "--yes", "--json"),
    },
    "shrink": {
        *("--networks", "--passes", "--seed", "--output", "--runs", "--json", "--quiet"),
    },
    "extend": {"--source", "--method", "--output", "--runs", "--json", "--quiet"},
    "merge": {
        *("--name", "--view-labels", "--no-view-labels", "--output", "--runs", "--json"),
        "--quiet",
    },
    "gallery": {"--title", "--output", "--json"},
    "plan": {"--profile", "--method", "--skip-bad-rows", "--flops-per-second", "--probe", "--json"},
    "check": {"--profile", "--skip-bad-rows", "--json"},
    "list": {"--axis", "--keys", "--methods", "--json"},
    "evaluate": {
        *("--source", "--recipe", "--level", "--students", "--steps", "--seed", "--processes"),
        *("--use", "--to", "--runs", "--output", "--json", "--quiet"),
    },
    "audit": {
        *("--source", "--recipe", "--tiers", "--seed", "--processes", "--runs", "--output"),
        *("--json", "--quiet"),
    },
    "report": {"--output", "--runs", "--json"},
    "compare": {"--output", "--runs", "--json"},
    "verify": {"--runs", "--output", "--json"},
    "reproduce": {"--source", "--processes", "--runs", "--output", "--json", "--quiet"},
    "import": {
        *(
            "--labels",
            "--to",
            "--layout",
            "--like",
            "--mean",
            "--std",
            "--classes",
            "--source",
            "--name",
        ),
        *("--method", "--paper", "--license", "--experiment", "--config", "--revision", "--json"),
    },
    "show": {"--png", "--runs", "--output", "--json"},
    "diff": {"--runs", "--output", "--json"},
    "pull": {"--to", "--runs", "--output", "--json"},
    "export": {"--layout", "--to", "--runs", "--output", "--json"},
    "init": {"--for", "--minutes", "--ipc", "--to", "--revision", "--json"},
    "recipes": {"--dataset", "--json", "--markdown"},
    "card": {"--check", "--message", "--runs", "--output", "--json"},
    "publish": {"--private", "--public", "--tag", "--message", "--allow-license", "--json"},
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder beside the toy recipe, and caches of its own."""
    toy_file(tmp_path)
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    """A finished run of the toy recipe: runs/ and out/ in a folder, and what was printed."""
    folder = tmp_path_factory.mktemp("finished")
    answer = command("run", toy_file(folder), "--runs", folder / "runs", "--output", folder / "out")
    assert answer.code == 0, answer.err
    return folder, answer


def refused(answer: Answer, *words: str, code: int = 2) -> None:
    """The answer is an error that a person can read, on the error stream only."""
    assert answer.code == code, answer
    assert answer.out == ""
    assert answer.err.startswith("error: ") and "Traceback" not in answer.err
    for word in words:
        assert word in answer.err


# verbs and options


def test_verbs_and_options_do_not_grow_unnoticed() -> None:
    group = typer.main.get_command(cli.app)
    commands: dict[str, Any] = {"": group, **group.commands}  # type: ignore[attr-defined]
    found = {
        name: {
            option
            for parameter in command.params
            for option in [*parameter.opts, *parameter.secondary_opts]
            if option.startswith("-") and option != "--help"
        }
        for name, command in commands.items()
    }
    assert found == OPTIONS


@pytest.mark.parametrize("verb", OPTIONS)
def test_help_teaches_every_verb(verb: str) -> None:
    answer = command(*filter(None, [verb]), "--help")
    assert answer.code == 0 and answer.err == ""
    for option in OPTIONS[verb]:
        assert option in answer.out
    words = {
        "": [*filter(None, OPTIONS), "distill-datasets run quickstart"],
        "run": ["distill.steps=500", "resume", "accelerate launch -m distill_datasets run RECIPE"],
        "plan": ["distill.steps=500", "trains nothing"],
        "check": ["distill.steps=500", "every problem at once", "Problems between sections"],
        "list": ["paper"],
        "evaluate": ["standard.network=resnet18", "same command goes on", "owner/name@v1"],
        "audit": ["clean sets of its shape", "may be there all the same"],
        "reproduce": ["whether bytes, then accuracies, agree"],
        "report": ["asks for nothing from a network", "side by side"],
        "compare": ["side by side", "95 % interval"],
        "verify": ["a line for each look", "exit code is 1"],
        "import": ["MTT, TESLA and DATM", "images_best.pt --to mtt", "Nothing in a file is run"],
        "show": ["picture in the terminal"],
        "diff": ["size, recipe, results, rows"],
        "pull": ["every hash is compared"],
        "export": ["imagefolder", "npz", "webdataset", "soft_labels.npy"],
        "init": ["probe", "scratch", "poster", "distill-datasets run FILE"],
        "recipes": ["ship with the package", "show"],
        "job": [
            "Nothing is submitted without --yes",
            "srun --nodes 2",
            "share the folder of --runs",
            "submit it again",
        ],
        "shrink": ["learned most easily", "YOCO", "ipc=5"],
        "extend": ["old rows stay what they are", "same command goes on"],
        "merge": ["nobody shares a real image", "classes of one name together"],
        "gallery": ["sorts and filters", "static Space"],
        "card": ["keep what people wrote", "--check"],
        "publish": ["hf auth login", "HF_TOKEN", "ORG/NAME"],
    }
    for word in words[verb]:
        assert word in answer.out


def test_the_recipe_that_help_names_is_found_from_any_folder(here: Path) -> None:
    assert command("check", "quickstart").out.startswith("quickstart: valid")


def test_the_version_is_that_of_the_package() -> None:
    assert command("--version").out.strip() == metadata.version("distill_datasets")


def test_without_a_verb_help_is_printed() -> None:
    answer = command()
    assert answer.code == 2 and "Make a set" in answer.out + answer.err


@pytest.mark.parametrize("wrong", [["frob"], ["run"], ["run", "x.yaml", "--frob"]])
def test_wrong_usage_is_bad_input(wrong: list[str]) -> None:
    answer = command(*wrong)
    assert answer.code == 2 and "Error" in answer.err and answer.out == ""


def test_help_comes_before_torch_is_imported() -> None:
    program = (
        "import sys\n"
        "sys.argv[1:] = ['run', '--help']\n"
        "from distill_datasets.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "slow = {'torch', 'datasets', 'accelerate', 'numpy', 'pyarrow'} & set(sys.modules)\n"
        "sys.exit(f'imported {slow}' if slow else 0)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


SLOW = {
    *("torch", "torchvision", "accelerate", "safetensors", "numpy", "datasets", "pyarrow"),
    *("huggingface_hub", "transformers", "webdataset"),
}
WITHOUT_TORCH = f"""
import sys
from pathlib import Path
from distill_datasets.cli import main

def answer(*arguments):
    sys.argv[1:] = map(str, arguments)
    try:
        main()
    except SystemExit as stop:
        return stop.code

def loaded():
    return {SLOW} & {{name.partition(".")[0] for name in sys.modules}}

folder = Path(sys.argv[1])
recipes = sorted(folder.rglob("*.yaml"))
assert len(recipes) > 50
for recipe in recipes:
    assert answer("check", recipe) == 0
    assert not loaded(), f"{{recipe}}: {{loaded()}}"
quickstart = folder / "quickstart.yaml"
assert answer("check", quickstart, "distill.stepz=1", "source.limit=x") == 2
assert answer("list") == 0
assert not loaded(), loaded()
network = "evaluate.network={{name: torchvision, model: resnet8}}"
assert answer("check", quickstart, network) == 2
assert "torchvision" in loaded()
assert answer("plan", quickstart, "distill.steps=9") == 0
"""


def test_checks_import_no_torch_and_other_verbs_after_them_do() -> None:
    arguments = [sys.executable, "-c", WITHOUT_TORCH, str(RECIPES)]
    ended = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count(": valid, sha256 ") == len(list(RECIPES.rglob("*.yaml")))
    assert "2 problems" in ended.stderr and "did you mean 'steps'?" in ended.stderr
    assert "did you mean 'resnet18'?" in ended.stderr and "Traceback" not in ended.stderr
    assert "9 outer steps" in ended.stdout


# plans and checks


def test_plan_and_dry_run_print_the_same_and_make_no_file(here: Path) -> None:
    before = hashes(here.parent)
    plan, dry = command("plan", "../toy.yaml"), command("run", "../toy.yaml", "--dry-run")
    assert plan == dry and plan.code == 0 and plan.err == ""
    assert hashes(here.parent) == before


def test_a_plan_names_stages_parts_and_sizes(here: Path) -> None:
    out = command("plan", "../toy.yaml").out
    for word in ("source", "distill", "export", "evaluate", "publish"):
        assert f"\n {word} " in out
    assert "distill.canvas: poster" in out and "Poster, distill_datasets/canvases/poster.py" in out
    assert "384 px = 0.6 per class" in out


def test_a_plan_follows_overrides(here: Path) -> None:
    assert "9 outer steps of 2 lanes" in command("plan", "../toy.yaml", "distill.steps=9").out


def test_check_says_that_a_recipe_is_valid_and_reads_no_data(here: Path) -> None:
    before = hashes(here.parent)
    answer = command("check", "../toy.yaml", "source.dataset=no/such-dataset")
    assert answer.code == 0 and answer.out.startswith("../toy.yaml: valid, sha256 ")
    assert hashes(here.parent) == before


def test_check_lists_every_problem(here: Path) -> None:
    answer = command("check", "../toy.yaml", "distill.stepz=1", "source.limit=x")
    refused(answer, "2 problems", "did you mean 'steps'?", "source.limit: got 'x'")


def test_list_shows_every_built_in_part_with_its_paper() -> None:
    lines = command("list", columns=80).out.splitlines()
    assert max(map(len, lines)) <= 80
    out = " ".join(" ".join(lines).split())
    for axis, table in BUILT_IN.items():
        assert axis in lines
        own = " ".join(command("list", "--axis", axis).out.split())
        for name in table:
            for told in (out, own):
                assert f" {name} " in told and load(axis, name).paper.split()[0] in told


def test_the_file_of_all_keys_is_what_is_printed() -> None:
    from distill_datasets.cli.keys import keys_of
    from distill_datasets.recipe import Recipe

    file = REPOSITORY / "distill_datasets" / "cli" / "KEYS.md"
    assert file.read_text(encoding="utf-8") == keys_of(Recipe, BUILT_IN)


def test_list_prints_every_key_with_type_default_and_meaning() -> None:
    out = command("list", "--keys").out
    assert "| `limit` | integer or null, > 0 | `null` | rows drawn from each split |" in out
    assert "| `canvas` | a part of canvases | required |" in out
    for axis, table in BUILT_IN.items():
        assert f"## Axis: {axis}\n" in out
        for name in table:
            assert f"### `{name}`\n" in out


# runs


def test_the_output_folder_is_the_published_layout_and_nothing_else(
    finished: tuple[Path, Answer],
) -> None:
    folder, _ = finished
    assert hashes(folder / "out").keys() == PUBLISHED
    assert verify(folder / "out") == []


def test_a_run_prints_results_sizes_and_how_to_load(finished: tuple[Path, Answer]) -> None:
    folder, answer = finished
    assert "distilled, as published" in answer.out and "before rounding to 8 bits" in answer.out
    assert "384 pixels = 0.6 images per class" in answer.out
    assert f'rows = load_dataset("{folder / "out"}", "default", split="train")' in answer.out


def test_progress_goes_to_the_error_stream(finished: tuple[Path, Answer]) -> None:
    _, answer = finished
    for line in ("source: 200 training and 200 test images", "distill: 4 of 4", "evaluate: 4 of 4"):
        assert line in answer.err
        assert line not in answer.out


def test_what_is_printed_for_loading_loads(finished: tuple[Path, Answer]) -> None:
    folder, answer = finished
    code = answer.out[answer.out.index("from datasets import") :]
    found: dict[str, Any] = {}
    with mock.patch.object(datasets.config, "HF_DATASETS_CACHE", folder / "cache"):
        exec(code, found)
    assert len(found["images"]) == 12 and len(found["soft_labels"][0]) == 10


def test_the_same_command_again_does_nothing_and_says_the_same(
    finished: tuple[Path, Answer],
) -> None:
    folder, first = finished
    before = times(folder)
    with (
        mock.patch("distill_datasets.data.source.SourceDataset.read", side_effect=AssertionError),
        mock.patch("distill_datasets.stages.distill.OuterLoop.run", side_effect=AssertionError),
        mock.patch(
            "distill_datasets.evaluation.evaluate.train_student", side_effect=AssertionError
        ),
    ):
        again = command(
            "run", folder / "toy.yaml", "--runs", folder / "runs", "--output", folder / "out"
        )
    assert (again.code, again.out) == (0, first.out)
    assert times(folder) == before


def test_quiet_prints_only_the_result(finished: tuple[Path, Answer]) -> None:
    folder, loud = finished
    answer = command(
        "run", folder / "toy.yaml", "--runs", folder / "r", "--output", folder / "q", "--quiet"
    )
    assert answer.code == 0 and answer.err == ""
    assert answer.out == loud.out.replace(str(folder / "out"), str(folder / "q"))


def test_an_output_folder_of_something_else_is_refused_before_any_work(here: Path) -> None:
    (here / "out").mkdir()
    (here / "out" / "thesis.tex").write_text("years of work")
    before = hashes(here.parent)
    answer = command("run", "../toy.yaml", "--output", "out")
    refused(answer, "out: not empty", "choose a new folder")
    assert hashes(here.parent) == before


def test_the_finished_output_of_another_recipe_is_refused_before_any_work(
    finished: tuple[Path, Answer], here: Path
) -> None:
    folder, _ = finished
    before = times(folder)
    answer = command("run", "../toy.yaml", "seed=1", "--output", folder / "out")
    refused(answer, "another recipe", "--output")
    assert times(folder) == before and list(here.iterdir()) == []


def test_a_file_in_the_place_of_the_output_is_refused_before_any_work(here: Path) -> None:
    (here / "out").write_text("a file")
    refused(command("run", "../toy.yaml", "--output", "out"), "a file has this name")
    assert [path.name for path in here.iterdir()] == ["out"]


def test_a_runs_folder_that_cannot_be_made_is_refused(here: Path) -> None:
    (here / "runs").write_text("a file")
    refused(command("run", "../toy.yaml"), "runs: cannot write here", "--runs")


def test_the_working_folder_gets_runs_and_nothing_else(here: Path) -> None:
    overrides = ["distill.steps=1", "evaluate.students=1", "evaluate.exact=false"]
    answer = command("run", "../toy.yaml", *overrides)
    assert answer.code == 0, answer.err
    assert [path.name for path in here.iterdir()] == ["runs"]
    kinds = {path.name.rpartition("-")[0] for path in (here / "runs" / "toy").iterdir()}
    assert kinds == {".lock", "distill", "export", "evaluate", "dataset"}


def test_an_unknown_tracker_is_refused_with_what_to_install(here: Path) -> None:
    refused(command("run", "../toy.yaml", "--track", "nope"), "--track", "nope")


def test_a_loss_that_is_not_finite_is_a_failure_with_a_remedy(here: Path) -> None:
    def explode(*_: object) -> object:
        from distill_datasets.objectives.objective import Estimate

        grads = {
            "canvas.trained_CHW": torch.zeros(1, 12, 32),
            "labels.cells_GK": torch.zeros(10, 10),
        }
        return Estimate(float("nan"), grads, {})

    with mock.patch("distill_datasets.objectives.unrolled.Unrolled.estimate", explode):
        answer = command("run", "../toy.yaml", "--quiet")
    refused(answer, "not finite at outer step 0", "lower distill.optimizer.lr", code=1)


def test_an_interrupted_run_says_how_to_go_on(here: Path) -> None:
    with mock.patch("distill_datasets.stages.distill.OuterLoop.run", side_effect=KeyboardInterrupt):
        answer = command("run", "../toy.yaml", "--quiet")
    refused(answer, "interrupted; the same command resumes where it stopped", code=130)


def test_control_c_ends_the_program_without_a_traceback(here: Path) -> None:
    arguments = ["run", "../toy.yaml", "distill.steps=100000"]
    with subprocess.Popen(
        [sys.executable, "-m", "distill_datasets", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # a test run in a shell's background inherits that the signal is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            until(lambda: list(here.glob("runs/toy/distill-*/state.safetensors")))
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "interrupted; the same command resumes where it stopped" in err
    assert "Traceback" not in err


# sources that cannot be used


def folder_of_images(root: Path, classes: dict[str, int], side: int = 8) -> Path:
    """`classes[name]` training and two test images of each class, one folder for each class."""
    for split in ("train", "test"):
        for seed, (name, count) in enumerate(classes.items()):
            (root / split / name).mkdir(parents=True)
            many = count if split == "train" else min(2, count)
            for row, image_CHW in enumerate(noise(many, 1, side, seed)):
                Image.fromarray(image_CHW[0].numpy()).save(root / split / name / f"{row}.png")
    return root


SMALL = [
    "source.limit=null",
    "distill.objective.real_batch=8",
    "distill.steps=1",
    "evaluate.students=1",
    "evaluate.exact=false",
]


def run_on(dataset: Path | str, *more: str) -> Answer:
    return command("run", "../toy.yaml", f"source.dataset={dataset}", *SMALL, *more, "--quiet")


def test_a_folder_of_images_is_distilled(here: Path) -> None:
    source = folder_of_images(here.parent / "pets", {"cat": 6, "dog": 6})
    answer = run_on(source)
    assert (answer.code, answer.err) == (0, "")  # quiet also where `datasets` likes to draw bars
    assert "72 pixels = 0.5625 images per class" in answer.out


def test_a_misspelled_folder_suggests_its_sibling(here: Path) -> None:
    folder_of_images(here.parent / "pets", {"cat": 1, "dog": 1})
    answer = run_on(here.parent / "pest")
    refused(answer, "source.dataset: no file or folder", f"did you mean '{here.parent / 'pets'}'?")


def test_a_wrong_column_lists_the_columns(here: Path) -> None:
    source = folder_of_images(here.parent / "pets", {"cat": 6, "dog": 6})
    answer = run_on(source, "source.label_column=lable")
    refused(answer, "source.label_column: no column 'lable'; did you mean 'label'?", "image")


def test_a_class_without_training_images_is_named(here: Path) -> None:
    source = folder_of_images(here.parent / "pets", {"cat": 6, "dog": 6, "eel": 6})
    for image in (source / "train" / "dog").iterdir():
        image.unlink()
    refused(run_on(source), "no training image of 1 of 3 classes: dog", "source.classes")
    assert not list(here.glob("runs/toy/distill-*"))


def test_a_truncated_image_is_named_and_can_be_skipped(here: Path) -> None:
    source = folder_of_images(here.parent / "pets", {"cat": 6, "dog": 6})
    broken = source / "train" / "dog" / "0.png"
    broken.write_bytes(broken.read_bytes()[:60])
    answer = run_on(source)
    refused(answer, "1 row cannot be used:", "train row 6: ", "--skip-bad-rows")
    assert not list(here.glob("runs/toy/distill-*"))
    skipped = run_on(source, "--skip-bad-rows")
    assert skipped.code == 0
    assert "1 row left out:\n  train row 6: " in skipped.err


def test_a_budget_too_small_for_one_crop_is_refused_before_any_work(here: Path) -> None:
    answer = command("run", "../toy.yaml", "distill.canvas.ipc=0.05")
    refused(answer, "distill.canvas.ipc: 0.05 images per class of 10 classes", "at least 0.1")
    assert list(here.iterdir()) == []


def test_a_network_too_deep_for_the_images_is_refused_before_any_work(here: Path) -> None:
    for network in ("distill.networks.network", "evaluate.network"):
        answer = command("run", "../toy.yaml", f"{network}.depth=4")
        refused(answer, "needs images of at least 16 px, got 8 x 8", "lower depth")
    assert list(here.iterdir()) == []


def test_a_real_batch_larger_than_the_training_split_is_refused_before_distilling(
    here: Path,
) -> None:
    answer = command("run", "../toy.yaml", "distill.objective.real_batch=201", "--quiet")
    refused(answer, "asks for 201 real images", "lower distill.objective.real_batch to at most 200")
    assert not list(here.glob("runs/toy/distill-*"))


def test_what_plan_refuses_is_what_run_refuses(here: Path) -> None:
    for override in ("distill.canvas.ipc=0.05", "evaluate.network.depth=4", "source.dataset=pest"):
        plan, run = (
            command("plan", "../toy.yaml", override),
            command("run", "../toy.yaml", override),
        )
        refused(plan)
        assert plan == run


# publishing


def test_a_folder_that_was_not_evaluated_is_not_published(finished: tuple[Path, Answer]) -> None:
    folder, _ = finished
    (exported,) = (folder / "runs" / "toy").glob("export-*")
    refused(command("publish", exported, "ann/toy"), "evaluat")


def test_a_folder_of_something_else_is_not_published(here: Path) -> None:
    refused(command("publish", ".", "ann/toy"), "distill.json: no such file")


def test_a_folder_is_not_published_nowhere(finished: tuple[Path, Answer]) -> None:
    folder, _ = finished
    refused(command("publish", folder / "out"), "names no repository", "ORG/NAME")


def test_a_file_is_not_published(here: Path) -> None:
    answer = command("publish", "../toy.yaml", "ann/toy")
    refused(answer, "../toy.yaml: got a file, expected a folder that holds distill.json")


# several processes


def test_another_process_than_the_first_says_who_it_is(here: Path) -> None:
    with mock.patch.dict(os.environ, {"RANK": "1"}):
        answer = command("run", "../toy.yaml", "distill.canvas.ipc=0.05")
    assert answer.code == 2 and answer.out == ""
    assert answer.err.startswith("[process 1] error: distill.canvas.ipc: 0.05 images per class")


def test_a_process_that_only_lost_another_says_so_in_one_line(here: Path) -> None:
    lost = RuntimeError("Connection closed by peer [127.0.0.1]:1234")
    with (
        mock.patch.dict(os.environ, {"RANK": "0", "WORLD_SIZE": "2"}),
        mock.patch("distill_datasets.pipeline.run.run", side_effect=lost),
    ):
        answer = command("run", "../toy.yaml")
    refused(answer, "lost the connection to another process of this run", code=1)
    assert len(answer.err.splitlines()) == 1


def test_errors_of_several_processes_are_told_with_their_exit_code(here: Path) -> None:
    ended = Ended(2, {"set steps": 0, "row [9]": 1})
    with mock.patch("distill_datasets.cli.run.start", return_value=ended) as started:
        answer = command("run", "../toy.yaml", "--processes", "2")
    assert answer == Answer(2, "", "error: set steps\n[process 1] error: row [9]\n")
    line = ["run", "../toy.yaml", "--processes", "2"]
    started.assert_called_once_with(2, [sys.executable, "-m", "distill_datasets", *line])


def test_several_processes_that_end_well_print_for_themselves(here: Path) -> None:
    with mock.patch("distill_datasets.cli.run.start", return_value=Ended(0, {})):
        assert command("run", "../toy.yaml", "--processes", "2") == Answer(0, "", "")


def test_several_processes_are_interrupted_with_one_word(here: Path) -> None:
    with mock.patch("distill_datasets.cli.run.start", side_effect=KeyboardInterrupt):
        answer = command("run", "../toy.yaml", "--processes", "2")
    told = "error: interrupted; the same command resumes where it stopped\n"
    assert answer == Answer(130, "", told)
