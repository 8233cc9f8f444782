"""The examples of the guides work: each is a package of its own that a recipe names."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from distill_datasets.files.artifacts import read_json
from distill_datasets.files.yaml_text import from_yaml

ROOT = Path(__file__).parent.parent
GUIDES = {
    axis: ROOT / "distill_datasets" / axis / "README.md" for axis in ("objectives", "canvases")
}
LONGEST = 40
"""Most lines of an example."""


def blocks(axis: str) -> dict[str, str]:
    """The fenced blocks of a guide by their language, which has one block each."""
    fenced = re.findall(r"^```(\w+)\n(.*?)^```$", GUIDES[axis].read_text("utf-8"), re.M | re.S)
    assert [language for language, _ in fenced] == ["python", "toml", "yaml"]
    return dict(fenced)


def install(folder: Path, axis: str) -> str:
    """Put the example into a folder as pip does, and its recipe beside it; returns its name."""
    example = blocks(axis)
    ((group, entries),) = tomllib.loads(example["toml"])["project"]["entry-points"].items()
    ((name, target),) = entries.items()
    module = target.partition(":")[0]
    (folder / f"{module}.py").write_text(example["python"], encoding="utf-8")
    metadata = folder / f"{module}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{name} = {target}\n")
    (folder / "recipe.yaml").write_text(example["yaml"], encoding="utf-8")
    return name


def command(folder: Path, *arguments: str) -> str:
    """What `distill-datasets` prints in a process of its own that finds what lies in the folder."""
    path = os.pathsep.join([str(folder), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "distill_datasets", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("axis", GUIDES)
def test_the_example_of_a_guide_runs_as_a_package_of_its_own(axis: str, tmp_path: Path) -> None:
    name = install(tmp_path, axis)
    assert "valid, sha256" in command(tmp_path, "check", "recipe.yaml")
    where = ("--runs", "runs", "--output", "out", "--quiet")
    command(tmp_path, "run", "recipe.yaml", "evaluate.beyond=null", *where)
    manifest = read_json(tmp_path / "out" / "distill.json")
    assert manifest["results"]
    resolved = from_yaml((tmp_path / "out" / "recipe.yaml").read_text("utf-8"))
    assert isinstance(resolved, dict)
    assert name in {resolved["distill"][axis]["name"] for axis in ("objective", "canvas")}


@pytest.mark.parametrize("axis", GUIDES)
def test_an_example_is_short(axis: str) -> None:
    lines = [line for line in blocks(axis)["python"].splitlines() if line.strip()]
    assert len(lines) <= LONGEST
