"""Published folders in the releases of `datasets` that people have: each in a venv of its own.

Needs a package index, and minutes: `python -m pytest -m slow tests/export/test_clients.py`.
"""

import json
import subprocess
import venv
from pathlib import Path
from typing import Any

import pytest
from support.sample_content import RESULTS, bytes_sample, sample, views_of

from distill_datasets.export.content import Numbers
from distill_datasets.export.folder import write_dataset
from distill_datasets.export.reading import load_rows

RELEASES = {
    "3.0.0": ["huggingface_hub==0.30.2"],
    "3.6.0": ["huggingface_hub==0.36.2"],
    "4.0.0": ["huggingface_hub==0.36.2"],
    "4.8.5": ["huggingface_hub==1.33.0"],
    "5.2.0": ["huggingface_hub==2.4.0"],
}
"""By the release of `datasets`, what else was measured with it."""
READ = """
import json, sys, tempfile
from datasets import load_dataset
from PIL import Image
found = {}
for folder, configs in json.load(sys.stdin).items():
    for config in configs:
        with tempfile.TemporaryDirectory() as cache:
            rows = load_dataset(folder, config, split="train", cache_dir=cache)
            found[f"{folder}:{config}"] = [
                {
                    name: [value.mode, list(value.size), value.tobytes().hex()]
                    if isinstance(value, Image.Image)
                    else value
                    for name, value in row.items()
                }
                for row in rows
            ]
            for row in load_dataset(folder, config, split="train", streaming=True).take(1):
                assert set(row) == set(rows.column_names)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """A poster, drawn numbers and 8-bit images with labels of views, and their configurations."""
    import torch

    place, folders = tmp_path_factory.mktemp("sets"), dict[str, list[str]]()
    bases = Numbers(torch.arange(12, dtype=torch.uint8).view(3, 4), torch.ones(2, 4))
    contents = {
        "poster": sample(),
        "drawn": sample(label_cells=[], numbers={"bases": bases}, decoder="images = bases"),
        "views": bytes_sample(relabel=views_of("config")),
    }
    for name, content in contents.items():
        manifest = write_dataset(place / name, content, RESULTS)
        folders[str(place / name)] = list(manifest["configs"])
    return folders


def plain(value: Any) -> Any:  # noqa: ANN401
    """A value as JSON of another process has it."""
    if hasattr(value, "tobytes"):
        return [value.mode, list(value.size), value.tobytes().hex()]
    return json.loads(json.dumps(value))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("release", RELEASES)
def test_every_release_reads_every_configuration_to_the_same_values(
    release: str, folders: dict[str, list[str]], tmp_path: Path
) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    wanted = [f"datasets=={release}", *RELEASES[release], "pillow"]
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted]
    subprocess.run(pip, check=True)

    done = subprocess.run(
        [python, "-c", READ],
        input=json.dumps(folders),
        capture_output=True,
        text=True,
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin"},
    )

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for folder, configs in folders.items():
        for config in configs:
            here = [
                {name: plain(value) for name, value in row.items()}
                for row in load_rows(Path(folder), config)
            ]
            assert found[f"{folder}:{config}"] == here, (release, folder, config)
