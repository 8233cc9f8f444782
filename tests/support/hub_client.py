"""The real clients in a process of their own: they read their environment when imported."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from support import TESTS

# Answers one JSON request per line.
CLIENT = """
import base64, dataclasses, io, json, os, sys, time, traceback
from pathlib import Path
from distill_datasets.errors import DistillError
from distill_datasets.export import publish as stage
from distill_datasets.hub import repository

repository._WAITS_SECONDS = (0.01, 0.01, 0.01)

def publish(folder, repo_id, **options):
    try:
        return dataclasses.asdict(stage.publish(Path(folder), repo_id, **options))
    except DistillError as error:
        return {"error": type(error).__name__, "code": error.exit_code, "text": str(error)}

def read(**fields):
    from distill_datasets.data.source import Source, open_source
    from support.image_sets import draw, values
    try:
        found = open_source(Source(**fields))
        shape, names = found.peek()
        rows = found.read(draw)
    except DistillError as error:
        return {"error": type(error).__name__, "code": error.exit_code, "text": str(error)}
    images = [values(split.images_NCHW) for split in (rows.train, rows.test)]
    labels = [split.labels_N.tolist() for split in (rows.train, rows.test)]
    return {"names": names, "images": images, "labels": labels}

def png(value):
    if not hasattr(value, "save"):
        return value
    with io.BytesIO() as buffer:
        value.save(buffer, format="PNG")
        return [list(value.size), value.mode, base64.b64encode(value.tobytes()).decode()]

def load(repo_id, config, **options):
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError
    try:
        rows = load_dataset(repo_id, config, split="train", **options)
    except DatasetNotFoundError as error:
        return {"error": type(error).__name__, "text": str(error)}
    return [{name: png(value) for name, value in row.items()} for row in rows]

def rows(target, runs, config="default"):
    from distill_datasets import load
    found = load(target, config, runs=runs)
    return [{name: png(value) for name, value in row.items()} for row in found]

def snapshot(repo_id, **options):
    from huggingface_hub import snapshot_download
    return snapshot_download(repo_id, repo_type="dataset", **options)

def hurry():
    time.sleep = lambda seconds: None

def command(*arguments):
    from support.toy_runs import command
    return list(command(*arguments))

def signed(token, *arguments):
    os.environ["HF_TOKEN"] = token
    try:
        return command(*arguments)
    finally:
        del os.environ["HF_TOKEN"]

calls = {"publish": publish, "load": load, "snapshot": snapshot, "read": read, "hurry": hurry}
calls |= {"command": command, "signed": signed, "rows": rows}
for line in sys.stdin:
    name, arguments, options = json.loads(line)
    try:
        answer = calls[name](*arguments, **options)
    except Exception:
        answer = {"error": "raw", "text": traceback.format_exc()}
    sys.__stdout__.write(json.dumps(answer) + "\\n")
    sys.__stdout__.flush()
"""


class Client:
    """A process that publishes and loads, with its own home and no token of its own."""

    def __init__(self, url: str, home: Path, **environment: str) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        mine = {
            "HF_ENDPOINT": url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            "HF_HUB_ETAG_TIMEOUT": "5",
            "OMP_NUM_THREADS": "1",
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]),
        }
        self._log = (home.parent / f"{home.name}.log").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLIENT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**kept, **mine, **environment},
        )

    def ask(self, name: str, *arguments: object, **options: object) -> Any:  # noqa: ANN401
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([name, arguments, options]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, Path(self._log.name).read_text()
        return json.loads(line)

    def log(self) -> str:
        return Path(self._log.name).read_text()

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=20)
        self.process.stdout.close()
        self._log.close()
