"""Label shards that are too large for the dataset's own folder: a sibling with its own manifest."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from distill_datasets import __version__
from distill_datasets.errors import ArtifactError
from distill_datasets.export.content import Content
from distill_datasets.export.licenses import license_fields
from distill_datasets.files.artifacts import read_json, sha256_of, write_json, write_text
from distill_datasets.files.yaml_text import to_yaml

MANIFEST = "distill.json"


def write_shards(
    folder: Path,
    content: Content,
    shards: Callable[[Path], Iterable[Path]],
    made: Path | None = None,
) -> None:
    """Write the folder of label shards; one that is there for the same recipe is left as it is.

    Args:
        folder: new, or written by this function before.
        content: the dataset that the labels belong to.
        shards: writes the tars into the folder that it is given.
        made: a folder of the same shards; they are linked, or copied where that cannot be.
    """
    check_shards(folder, content.recipe_sha256)
    if (folder / MANIFEST).exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.tmp-"))
    temporary.chmod(0o755)
    try:
        if made is not None and (made / MANIFEST).exists():
            for entry in read_json(made / MANIFEST)["files"]:
                _linked(made / entry["path"], temporary / entry["path"])
        else:
            list(shards(temporary))
            write_text(temporary / "README.md", _card(content))
        write_json(temporary / MANIFEST, _manifest(temporary, content))
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_shards(folder: Path, recipe_sha256: str) -> None:
    """Find out before expensive work whether `write_shards` may make `folder`.

    Raises:
        ArtifactError: it holds something else than the shards of this recipe.
    """
    if (folder / MANIFEST).exists():
        if read_json(folder / MANIFEST).get("labels_of") == recipe_sha256:
            return
    elif not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    raise ArtifactError(
        f"{folder}: the labels of views go here, and something else is there, which will not be "
        "overwritten; move it away or choose another folder with --output"
    )


def _linked(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)


def _manifest(folder: Path, content: Content) -> dict[str, Any]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    assert content.relabel is not None
    return {
        "schema_version": 1,
        "library": {"name": "distill_datasets", "version": __version__},
        "name": content.name,
        "labels_of": content.recipe_sha256,
        "recipe_sha256": content.recipe_sha256,
        "source": content.provenance,
        "relabel": content.relabel.facts,
        "labels": content.relabel.labels,
        "files": [
            {
                "path": path.relative_to(folder).as_posix(),
                "bytes": path.stat().st_size,
                "sha256": sha256_of(path),
            }
            for path in paths
        ],
    }


def _card(content: Content) -> str:
    assert content.relabel is not None
    meta = {
        **license_fields(content.provenance),
        "pretty_name": f"{content.name}: labels of views",
        "tags": ["dataset-distillation", "distill_datasets", "soft-labels", "webdataset"],
    }
    return (
        f"---\n{to_yaml(meta)}---\n\n# {content.name}: labels of views\n\n"
        f"{content.relabel.labels:,} labels that teachers gave to recorded views of the images of "
        f"the dataset `{content.name}`, which lies in the repository of the same name without "
        "`-relabel`. Its card says how to train on them.\n"
    )
