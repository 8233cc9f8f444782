"""Stage folders: fingerprints, atomic writes, and the file that says a stage is done.

Nothing here ever deletes or overwrites a finished folder. A folder's name carries a fingerprint of
everything that decides its content, so another recipe is another folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from distill_datasets.errors import ArtifactError

if TYPE_CHECKING:
    from torch import Tensor

DONE = "DONE.json"


def canonical_json(content: object) -> str:
    """One spelling for equal content: sorted keys, no spaces, no NaN."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256_text(text: str) -> str:
    """The sha256 of a text's UTF-8 bytes, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def fingerprint(content: object) -> str:
    """First 12 hexadecimal digits of the sha256 of the canonical JSON of `content`."""
    return sha256_text(canonical_json(content))[:12]


def sha256_tensors(tensors: Iterable[Tensor]) -> str:
    """The sha256 of all values, one tensor after the other, in hexadecimal."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it into place.

    A reader sees the old file or the new one, never half of one, whenever the process is killed.

    Args:
        path: the file to make; its folder is created.
        write: called with the temporary path.

    Raises:
        ArtifactError: the folder cannot be created or written to, or is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # in the same folder, since a rename is atomic only within one file system; with a name of
        # its own, since other processes may write the same file
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            temporary.chmod(0o644)  # mkstemp lets nobody else read
            # first the bytes, then the name: a machine that loses power in between must not leave
            # the name on an empty file
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> ArtifactError:
    return ArtifactError(
        f"{path.parent}: cannot write here ({error.strerror}); "
        "free space or choose a writable folder with --runs or --output"
    )


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""

    def write(temporary: Path) -> None:
        temporary.write_bytes(text.encode())

    write_atomically(path, write)


def write_json(path: Path, content: object) -> None:
    """Write indented JSON atomically, keys in the order given."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:  # noqa: ANN401
    """Read a JSON file.

    Raises:
        ArtifactError: the file is missing, cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: no such file") from error
    except NotADirectoryError as error:
        raise ArtifactError(
            f"{path.parent}: got a file, expected a folder that holds {path.name}"
        ) from error
    except OSError as error:
        raise ArtifactError(f"{path}: cannot read this ({error.strerror})") from error
    except ValueError as error:  # not JSON, or not even UTF-8
        raise ArtifactError(f"{path}: not JSON ({error})") from error


def write_tensors(path: Path, tensors: dict[str, Tensor], note: object = None) -> None:
    """Write named tensors and a JSON note as one safetensors file, atomically.

    Args:
        path: the file to make.
        tensors: what to store; copied to the CPU.
        note: anything JSON can hold; lies in the file's header, so both change together.
    """
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"note": canonical_json(note)}
    write_atomically(
        path, lambda temporary: safetensors.torch.save_file(on_cpu, temporary, metadata)
    )


def read_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Read what `write_tensors` wrote.

    Returns:
        The tensors, on the CPU, and the note.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            note = json.loads((file.metadata() or {}).get("note", "null"))
            return {name: file.get_tensor(name) for name in file.keys()}, note  # noqa: SIM118
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: no such file") from error
    except safetensors.SafetensorError as error:
        raise ArtifactError(
            f"{path}: not a readable safetensors file ({error}); move it away and run again"
        ) from error


def write_rows(
    path: Path,
    shape: tuple[int, ...],
    chunks: Iterable[Tensor],
    dtype: torch.dtype | None = None,
) -> None:
    """Write an array of many rows as one .npy file, atomically, holding one chunk at a time.

    Args:
        path: the file to make; `open_rows` and `numpy.load` read it.
        shape: the shape of the whole array, rows first.
        chunks: consecutive rows, each (rows of the chunk, *shape[1:]); taken as they are written.
        dtype: what every chunk has and the file holds; None: torch.uint8.

    Raises:
        ArtifactError: a chunk has another shape or dtype, or there are too few or too many rows.
    """
    dtype = dtype or torch.uint8

    def write(temporary: Path) -> None:
        rows = 0
        with temporary.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, _rows_header(shape, dtype))
            for chunk in chunks:
                if tuple(chunk.shape[1:]) != shape[1:] or chunk.dtype != dtype:
                    raise ArtifactError(
                        f"{path.name}: got rows of {tuple(chunk.shape[1:])} {chunk.dtype}, "
                        f"expected {shape[1:]} {dtype}"
                    )
                rows += len(chunk)
                file.write(chunk.detach().cpu().contiguous().numpy().data)
        if rows != shape[0]:
            raise ArtifactError(f"{path.name}: got {rows} rows, expected {shape[0]}")

    write_atomically(path, write)


def create_rows(path: Path, shape: tuple[int, ...]) -> None:
    """Make the file of `write_rows` with nothing but zeros, for `fill_rows` to write into.

    Where the file system can, zeros take no space until they are written over.
    """

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, _rows_header(shape, torch.uint8))
            file.truncate(file.tell() + torch.Size(shape).numel())

    write_atomically(path, write)


def fill_rows(path: Path, first: int, rows: Tensor) -> None:
    """Write consecutive rows into an array that `create_rows` made, safe on disk on return.

    Processes may write other rows of the same file meanwhile.

    Args:
        path: the file.
        first: the place of the first of them.
        rows: of the shape and dtype of the array's.

    Raises:
        ArtifactError: the file cannot be written to.
    """
    whole = open_rows(path)
    if rows.shape[1:] != whole.shape[1:] or rows.dtype != whole.dtype:
        raise ArtifactError(f"{path.name}: got rows {tuple(rows.shape)} {rows.dtype}")
    content = rows.detach().cpu().contiguous().numpy().data
    # an .npy file is a header and then the rows, each at a place known beforehand: processes write
    # different bytes of the one file and need no lock
    header = path.stat().st_size - whole.numel() * whole.element_size()
    try:
        with path.open("r+b") as file:
            file.seek(header + first * whole[0].numel() * whole.element_size())
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _unwritable(path, error) from error


def _rows_header(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Any]:
    descr = np.lib.format.dtype_to_descr(torch.empty(0, dtype=dtype).numpy().dtype)
    return {"descr": descr, "fortran_order": False, "shape": shape}


def open_rows(path: Path) -> Tensor:
    """The array that `write_rows` wrote, memory-mapped: pages are read when they are looked at.

    The tensor is read-only; writing into it kills the process.

    Raises:
        ArtifactError: the file is missing, cut short, or no plain array of rows.
    """
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: no such file") from error
    except (ValueError, EOFError) as error:
        raise ArtifactError(
            f"{path}: not a readable array of rows ({error}); move it away and run again"
        ) from error
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(rows)


def is_done(folder: Path) -> bool:
    """True when the stage that owns this folder has finished."""
    return (folder / DONE).is_file()


def mark_done(folder: Path, content: dict[str, Any]) -> None:
    """Say that the stage that owns this folder has finished, with a few facts about it."""
    write_json(folder / DONE, content)
