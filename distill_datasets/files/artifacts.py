"""Stage folders: fingerprints, atomic writes, checksums, and the file that says a stage is done.

Nothing here ever deletes or overwrites a finished folder. A folder's name carries a fingerprint of
everything that decides its content, so another recipe is another folder.

What a later run reads back carries a crc32, which finds every flipped bit and costs a third of a
second per gigabyte: a record (JSON) has it as a key of its own, a safetensors file in its header,
an array of rows behind its last row, where `numpy.load` does not look. A damaged file is set aside
under another name and made anew.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import logging
import os
import re
import struct
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import numpy as np
import safetensors
import safetensors.torch
import torch

from distill_datasets.errors import ArtifactError, DamagedError, cut

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

logger = logging.getLogger("distill_datasets")

DONE = "DONE.json"
CHECKSUM = "crc32"
"""The key of a record that holds its checksum."""
NOTE, CHECKED_NOTE = "note", "crc32+note"
"""The one key of a safetensors file's header: with two their order would change from run to run."""
PIECE_BYTES = 1 << 24
"""An array of rows has a checksum for every so many bytes, so that processes can share the look."""
SEAL = b"crc32/24"
"""Behind the checksums of an array of rows: says that there are some."""
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What the system says when a disk, a quota or the largest size of a file is reached."""


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


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
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
        f"{path.parent}: cannot write {path.name} here ({error.strerror or error}); "
        "free space or choose a writable folder with --runs or --output. What was finished before "
        "is kept, and the same command goes on from there"
    )


@contextlib.contextmanager
def told_when_full() -> Iterator[None]:
    """Say plainly that a disk is full, whichever library was writing, and wherever.

    Raises:
        ArtifactError: no space is left.
    """
    try:
        yield
    finally:
        # libraries wrap what the system says in errors of their own, of any kind
        error = cause = sys.exc_info()[1]
        while cause is not None:
            if isinstance(cause, OSError) and cause.errno in NO_SPACE:
                where = cause.filename or tempfile.gettempdir()
                raise ArtifactError(
                    f"{where}: cannot write ({os.strerror(cause.errno or 0)}); free space there, "
                    "or set TMPDIR, HF_HOME or --runs to a folder with more. What was finished "
                    "before is kept, and the same command goes on from there"
                ) from error
            cause = cause.__cause__ or cause.__context__


def intact(path: Path, read: Callable[[Path], T]) -> T | None:
    """What `read` makes of a file that an earlier run has left.

    Returns:
        None where there is no such file, or a damaged one: that is said, and it is set aside.
    """
    if not path.exists():
        return None
    try:
        return read(path)
    except FileNotFoundError:  # another process of this run has set it aside
        return None
    except DamagedError as error:
        set_aside(path, error.what)
        return None


def set_aside(path: Path, why: str) -> None:
    """Keep a file or folder of ours that cannot be used under another name, and say so."""
    names = (f"{path.name}.damaged{number or ''}" for number in itertools.count())
    free = next(path.with_name(name) for name in names if not path.with_name(name).exists())
    try:
        path.rename(free)
    except FileNotFoundError:  # another process of this run was first
        return
    except OSError as error:
        raise _unwritable(path, error) from error
    logger.warning("%s; it is kept as %s and made anew", why, free.name)


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
        raise ArtifactError(f"{cut(str(path))}: cannot read this ({error.strerror})") from error
    except (ValueError, RecursionError) as error:  # not JSON or not UTF-8, or nested without end
        raise ArtifactError(f"{path}: not JSON ({error})") from error


def write_record(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object with its checksum, atomically; `read_record` reads it.

    Unlike `write_json` it takes NaN, which labels of a source may be.
    """
    plain = json.loads(json.dumps(content))
    text = json.dumps({**plain, CHECKSUM: _record_checksum(plain)}, indent=2, ensure_ascii=False)
    write_text(path, text + "\n")


def read_record(path: Path) -> dict[str, Any]:
    """Read what `write_record` wrote, without its checksum.

    Raises:
        ArtifactError: the file is missing or cannot be read.
        DamagedError: it is not what was written.
    """
    try:
        content = read_json(path)
    except ArtifactError as error:
        if isinstance(error.__cause__, ValueError):
            raise DamagedError(str(error)) from error
        raise
    if not isinstance(content, dict) or CHECKSUM not in content:
        raise DamagedError(f"{path}: has no checksum")
    expected = content.pop(CHECKSUM)
    got = _record_checksum(content)
    if got != expected:
        raise DamagedError(f"{path}: its checksum is {got}, expected {expected}")
    return content


def _record_checksum(content: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"


def write_tensors(
    path: Path, tensors: dict[str, Tensor], note: object = None, *, checksum: bool = True
) -> None:
    """Write named tensors and a JSON note as one safetensors file, atomically.

    Args:
        path: the file to make.
        tensors: what to store; copied to the CPU.
        note: anything JSON can hold; lies in the file's header, so both change together.
        checksum: False for a published file, whose hash lies in the manifest.

    Raises:
        ArtifactError: the file cannot be written.
    """
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = canonical_json(note)
    metadata = {NOTE: text}
    if checksum:
        pairs = ((name, on_cpu[name]) for name in sorted(on_cpu))
        metadata = {CHECKED_NOTE: f"{_tensors_checksum(pairs, text)}{text}"}

    def write(temporary: Path) -> None:
        try:
            safetensors.torch.save_file(on_cpu, temporary, metadata)
        except safetensors.SafetensorError as error:
            # tells of a full disk in words of its own: "I/O error: ... (os error 28)", in
            # older releases "IoError(Os { code: 28, ..."
            number = re.search(r"(?:os error |\bOs { code: )(\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error

    write_atomically(path, write)


def _tensors_checksum(tensors: Iterable[tuple[str, Tensor]], note: str) -> str:
    crc = zlib.crc32(note.encode())
    for name, tensor in tensors:
        described = canonical_json([name, str(tensor.dtype), list(tensor.shape)])
        crc = zlib.crc32(described.encode(), crc)
        crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


def read_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Read what `write_tensors` wrote.

    Returns:
        The tensors, on the CPU, and the note.

    Raises:
        ArtifactError: the file is missing.
        DamagedError: it is not what was written.
    """
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
        return tensors, json.loads(_checked(path, file, tensors.items()))


def holds_tensors(path: Path) -> bool:
    """Whether a file of `write_tensors` lies there whole; a damaged one is set aside.

    One tensor after the other is read, so that a file may be larger than the memory.
    """

    def look(path: Path) -> bool:
        with _opened(path) as file:
            _checked(path, file, ((name, file.get_tensor(name)) for name in sorted(file.keys())))
        return True

    return intact(path, look) is not None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: no such file") from error
    except safetensors.SafetensorError as error:
        raise DamagedError(f"{path}: not a readable safetensors file ({error})") from error


def _checked(path: Path, file: Any, tensors: Iterable[tuple[str, Tensor]]) -> str:  # noqa: ANN401
    """The note of a file, as text, once the checksum is found right; published files have none."""
    expected, note = _header(path, file)
    if expected is None:
        return note
    got = _tensors_checksum(tensors, note)
    if got != expected:
        raise DamagedError(f"{path}: its checksum is {got}, expected {expected}")
    return note


def _header(path: Path, file: Any) -> tuple[str | None, str]:  # noqa: ANN401
    """The checksum of a file, where it has one, and its note as text."""
    match file.metadata():
        case {"crc32+note": str(both)}:
            return both[:8], both[8:]
        case {"note": str(note)}:
            return None, note
    raise DamagedError(f"{path}: has no note")


def read_note(path: Path) -> Any:  # noqa: ANN401
    """The note of a file of `write_tensors`, without its tensors and unchecked.

    Raises:
        ArtifactError: the file is missing.
        DamagedError: its header is not what was written.
    """
    with _opened(path) as file:
        return json.loads(_header(path, file)[1])


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
        rows, sums = 0, _PieceSums()
        with temporary.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, _rows_header(shape, dtype))
            for chunk in chunks:
                if tuple(chunk.shape[1:]) != shape[1:] or chunk.dtype != dtype:
                    raise ArtifactError(
                        f"{path.name}: got rows of {tuple(chunk.shape[1:])} {chunk.dtype}, "
                        f"expected {shape[1:]} {dtype}"
                    )
                rows += len(chunk)
                content = chunk.detach().cpu().contiguous().numpy().data
                file.write(content)
                sums.take(content)
            file.write(sums.seal())
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
    try:
        with path.open("r+b") as file:
            # an .npy file is a header and then the rows, each at a place known beforehand:
            # processes write different bytes of the one file and need no lock
            start, _ = _extent(file)
            file.seek(start + first * whole[0].numel() * whole.element_size())
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _unwritable(path, error) from error


def seal_rows(path: Path) -> None:
    """Write the checksums behind an array that `create_rows` made, once all rows are filled in.

    Raises:
        ArtifactError: the file cannot be written to.
    """
    try:
        with path.open("r+b") as file:
            start, size = _extent(file)
            sums = _PieceSums()
            for content in _pieces(file, size):
                sums.take(memoryview(content))
            file.seek(start + size)
            file.write(sums.seal())
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _unwritable(path, error) from error


def holds_rows(path: Path, index: int = 0, processes: int = 1) -> bool:
    """Whether an array of rows lies there whole; a damaged one is set aside.

    Args:
        path: the file.
        index: which of several processes this is; each looks at pieces of its own.
        processes: how many of them look.
    """

    def look(path: Path) -> bool:
        _check_rows(path, index, processes)
        return True

    return intact(path, look) is not None


def _check_rows(path: Path, index: int, processes: int) -> None:
    rows = open_rows(path)
    with path.open("rb") as file:
        start, size = _extent(file)
        count = -(-size // PIECE_BYTES)
        file.seek(start + size)
        seal = file.read()
        if not seal.endswith(SEAL):
            return
        expected = struct.unpack_from(f"<{count}I", seal)
        for piece in range(index, count, processes):
            file.seek(start + piece * PIECE_BYTES)
            content = file.read(min(PIECE_BYTES, size - piece * PIECE_BYTES))
            if zlib.crc32(content) != expected[piece]:
                row_bytes = max(1, size // max(1, len(rows)))
                first, last = ((piece + at) * PIECE_BYTES // row_bytes for at in (0, 1))
                raise DamagedError(
                    f"{path}: the checksum of rows {first} to {min(last, len(rows) - 1)} differs"
                )


class _PieceSums:
    """The checksums of bytes that come in any lengths, one for each piece of the same length."""

    def __init__(self) -> None:
        self._done, self._crc, self._length = list[int](), 0, 0

    def take(self, content: memoryview) -> None:
        """Take in the next bytes."""
        content = content.cast("B") if content.nbytes else memoryview(b"")
        while content.nbytes:
            now, content = (
                content[: PIECE_BYTES - self._length],
                content[PIECE_BYTES - self._length :],
            )
            self._crc, self._length = zlib.crc32(now, self._crc), self._length + now.nbytes
            if self._length == PIECE_BYTES:
                self._end_piece()

    def seal(self) -> bytes:
        """What stands behind the last row."""
        if self._length:
            self._end_piece()
        return struct.pack(f"<{len(self._done)}I", *self._done) + SEAL

    def _end_piece(self) -> None:
        self._done.append(self._crc)
        self._crc, self._length = 0, 0


def _extent(file: BinaryIO) -> tuple[int, int]:
    """Where the rows of an .npy file start, and their bytes; the file is left at their start."""
    file.seek(0)
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return file.tell(), torch.Size(shape).numel() * dtype.itemsize


def _pieces(file: BinaryIO, size: int) -> Iterator[bytes]:
    for first in range(0, size, PIECE_BYTES):
        yield file.read(min(PIECE_BYTES, size - first))


def _rows_header(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Any]:
    descr = np.lib.format.dtype_to_descr(torch.empty(0, dtype=dtype).numpy().dtype)
    return {"descr": descr, "fortran_order": False, "shape": shape}


def open_rows(path: Path) -> Tensor:
    """The array that `write_rows` wrote, memory-mapped: pages are read when they are looked at.

    The tensor is read-only; writing into it kills the process.

    Raises:
        ArtifactError: the file is missing.
        DamagedError: it is cut short, or no plain array of rows.
    """
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: no such file") from error
    except OSError as error:
        raise ArtifactError(f"{path}: cannot read this ({error.strerror})") from error
    # a flipped bit of the header may make of it much that NumPy and Python cannot parse
    except (ValueError, EOFError, TypeError, SyntaxError, TokenError) as error:
        raise DamagedError(f"{path}: not a readable array of rows ({error})") from error
    behind = path.stat().st_size - rows.offset - rows.nbytes
    if behind not in (0, 4 * -(-rows.nbytes // PIECE_BYTES) + len(SEAL)):
        raise DamagedError(f"{path}: {behind} bytes stand behind {rows.shape} {rows.dtype}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(rows)


def done(folder: Path) -> dict[str, Any] | None:
    """What the stage that owns this folder said when it had finished; None where it has not."""
    return intact(folder / DONE, read_record)


def mark_done(folder: Path, content: dict[str, Any]) -> None:
    """Say that the stage that owns this folder has finished, with a few facts about it."""
    write_record(folder / DONE, content)
