"""Sources read from the test Hub by the real clients, in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from support import TESTS

# Publishes four training and two test rows as lab/pets, then reads them by name.
SCRIPT = """
import dataclasses, io, json, sys
from huggingface_hub import CommitOperationAdd, HfApi
from distill_datasets.data.source import Source, open_source
from distill_datasets.errors import DataError
from support.image_sets import both, draw, values

def publish():
    api = HfApi(token="hf_writer")
    api.create_repo("lab/pets", repo_type="dataset", private=True)
    operations = [CommitOperationAdd("README.md", b"---\\nlicense: mit\\n---\\n")]
    for split, rows in both().items():
        buffer = io.BytesIO()
        rows.to_parquet(buffer)
        operations.append(CommitOperationAdd(f"data/{split}-0.parquet", buffer.getvalue()))
    parent = api.dataset_info("lab/pets").sha
    api.create_commit(
        "lab/pets", operations, commit_message="pets", repo_type="dataset", parent_commit=parent
    )

def answer(**fields):
    source = Source(**fields)
    try:
        found = open_source(source)
        shape, names = found.peek()
        decoded = found.read(draw)
    except DataError as error:
        return {"error": str(error)}
    return {
        "shape": dataclasses.asdict(shape),
        "names": names,
        "train": values(decoded.train.images_NCHW),
        "test": values(decoded.test.images_NCHW),
        "provenance": decoded.provenance.as_json(),
        "account": None if found.account is None else found.account.as_json(),
        "counts": {role: count.classes for role, count in (found.counts(draw) or {}).items()},
    }

if sys.argv[1] == "publish":
    publish()
answers = [answer(**fields) for fields in json.loads(sys.argv[2])]
sys.__stdout__.write(json.dumps(answers))
"""


def environment_of(url: str, home: Path) -> dict[str, str]:
    """What a process with its own home sees of this server."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return kept | {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]),
    }


def ask(url: str, home: Path, verb: str, *sources: dict[str, Any], **environment: str) -> Any:  # noqa: ANN401
    """What a process with its own home finds out about each source."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, verb, json.dumps(sources)],
        env=environment_of(url, home) | environment,
        capture_output=True,
        text=True,
        timeout=140,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
