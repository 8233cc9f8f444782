"""The built wheel in a fresh environment and an empty folder: what the README says, typed.

Needs a package index, interpreters, and minutes: `python -m pytest -m slow tests/test_wheel.py`.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image
from support.image_sets import noise

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FEW = ["distill.steps=10", "evaluate.students=1", "evaluate.steps=10", "evaluate.beyond=null"]
PYTHON = """
from datasets import load_dataset
import distill_datasets
rows = load_dataset("set", "default", split="train")
images, soft_labels = rows["image"], rows["soft_label"]
assert len(images) == len(soft_labels) == len(distill_datasets.load("set")) > 0
made = distill_datasets.distill("photos", method="dm", ipc=1, overrides=["distill.steps=2",
    "evaluate.students=1", "evaluate.steps=2", "evaluate.references=[random_real]"])
assert len(made.dataset) == 2 and made.results[0]["from"] == "default"
"""


def interpreter(version: str) -> Path:
    """A Python of this version: on the path, or of pyenv."""
    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        return Path(sys.executable).resolve()
    found = shutil.which(f"python{version}")
    others = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    if found is None and not others:
        pytest.skip(f"needs Python {version}")
    return others[-1] if others else Path(str(found))


def lowest(folder: Path) -> list[str]:
    """Constraints that take every dependency at the lower end of its range."""
    pins = [re.sub(r">=", "==", each) for each in PROJECT["dependencies"]]
    assert all(pin.count("==") == 1 for pin in pins)
    (folder / "lowest.txt").write_text("\n".join(pins), encoding="utf-8")
    return ["--constraint", str(folder / "lowest.txt")]


def photos(folder: Path) -> None:
    """Two classes of ten small pictures."""
    for label, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for row, image in enumerate(noise(10, 3, 16, seed=label).numpy()):
            Image.fromarray(image.transpose(1, 2, 0)).save(folder / name / f"{row}.png")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("version", "dependencies"),
    [("3.11", "lowest"), ("3.11", "newest"), ("3.12", "newest"), ("3.13", "newest")],
)
def test_the_commands_of_the_readme_run_from_the_wheel(
    version: str, dependencies: str, tmp_path: Path
) -> None:
    subprocess.run([interpreter(version), "-m", "venv", tmp_path / "venv"], check=True)
    programs = tmp_path / "venv" / "bin"
    pip = [programs / "python", "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path / "wheels", ROOT], check=True
    )
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    wanted = lowest(tmp_path) if dependencies == "lowest" else ["--upgrade"]
    subprocess.run([*pip, "install", *wanted, wheel], check=True)
    type_all(programs, tmp_path)
    shutil.rmtree(tmp_path / "venv")


def type_all(programs: Path, folder: Path) -> None:
    """Every command, in an empty folder below `folder`."""
    place = folder / "empty"
    place.mkdir()
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "NO_PROXY") if name in os.environ}
    env = kept | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}
    env |= {"HF_HOME": str(folder / "home"), "PYTHONWARNINGS": "error::DeprecationWarning:main"}

    def typed(*words: str, program: str = "distill-datasets", code: int = 0) -> str:
        done = subprocess.run(
            [programs / program, *words], cwd=place, env=env, capture_output=True, text=True
        )
        assert done.returncode == code, (words, done.stdout, done.stderr)
        return done.stdout

    assert typed("--version").strip() == PROJECT["version"]
    assert "Make a set" in typed("--help") and "hf distill" in typed("--help", program="hf-distill")
    assert "quickstart" in typed("recipes") and "mnist/podd" in typed("recipes")
    assert "## Share" in typed("--agent-help")
    assert "poster" in typed("list") and "## The recipe" in typed("list", "--keys")
    assert "valid" in typed("check", "quickstart")
    typed("plan", "quickstart")
    typed("plan", "mnist/podd", "--profile", "cpu", "source.dataset=embedded:uci-digits")
    typed("run", "quickstart", *FEW, "--output", "set", "--quiet")
    again = typed("run", "quickstart", *FEW, "--output", "set")
    assert "load_dataset" in again
    for words in (["show", "set"], ["verify", "set"], ["card", "set", "--check"]):
        typed(*words)
    for layout in ("imagefolder", "npz", "pt", "webdataset"):
        typed("export", "set", "--layout", layout, "--to", f"as-{layout}")
    assert "no difference" in typed("diff", "set", "set")
    typed("pull", "set", "--to", "mine")
    typed("shrink", "set", "ipc=1", "--output", "less", "--passes", "1", "--networks", "1", code=2)
    typed("report", "set")
    typed("compare", "set", "mine")
    typed("gallery", "set", "mine")
    assert json.loads(typed("show", "mine", "--json"))["verb"] == "show"
    photos(place / "photos")
    typed("init", "photos", "--minutes", "0.1")
    assert "valid" in typed("check", "photos.yaml")
    typed("plan", "photos.yaml", "--probe")
    typed("run", "photos.yaml", "--quiet")
    once = [
        "squeeze.epochs=1",
        "squeeze.least_accuracy=0",
        "evaluate.students=1",
        "evaluate.epochs=1",
    ]
    typed("run", "photos", "--method", "rded", *once, "--quiet")
    typed("evaluate", "set", "--students", "1", "--steps", "1", "--quiet")
    typed("-c", PYTHON, program="python")
