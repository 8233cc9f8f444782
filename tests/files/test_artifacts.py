"""Files of a stage: whole or not there, and named by what decides them."""

import contextlib
import hashlib
import json
import logging
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from distill_datasets.errors import ArtifactError
from distill_datasets.files import artifacts
from distill_datasets.files.artifacts import (
    canonical_json,
    create_rows,
    done,
    fill_rows,
    fingerprint,
    holds_rows,
    holds_tensors,
    intact,
    mark_done,
    open_rows,
    read_json,
    read_record,
    read_tensors,
    seal_rows,
    sha256_of,
    told_when_full,
    write_atomically,
    write_json,
    write_record,
    write_rows,
    write_tensors,
    write_text,
)


def breaks_off(path: Path) -> None:
    """Write half of a file and fail."""
    path.write_text("half of")
    raise KeyError("in the middle")


def test_a_file_appears_with_its_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "note.txt"
    write_text(path, "né\n")
    assert path.read_bytes() == "né\n".encode()
    assert [file.name for file in path.parent.iterdir()] == ["note.txt"]


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    write_text(path, "old")
    with pytest.raises(KeyError, match="in the middle"):
        write_atomically(path, breaks_off)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_that_fails_leaves_no_new_file(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        write_atomically(tmp_path / "note.txt", breaks_off)
    assert list(tmp_path.iterdir()) == []


def test_readers_see_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    write_text(path, "old")

    def write(temporary: Path) -> None:
        temporary.write_text("new")
        assert path.read_text() == "old" and temporary.parent == tmp_path

    write_atomically(path, write)
    assert path.read_text() == "new"


def test_others_may_read_what_was_written(tmp_path: Path) -> None:
    write_text(tmp_path / "note.txt", "public")
    assert (tmp_path / "note.txt").stat().st_mode & 0o777 == 0o644


def test_a_folder_that_cannot_be_made_is_refused_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(
        ArtifactError, match=r"runs: cannot write note.txt here \(.*--runs or --output"
    ):
        write_text(tmp_path / "runs" / "note.txt", "text")
    with pytest.raises(ArtifactError, match=r"cannot write note\.txt here"):
        write_text(tmp_path / "runs" / "deep" / "note.txt", "text")


def test_a_full_disk_is_refused_with_a_remedy(tmp_path: Path) -> None:
    def write(temporary: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(ArtifactError, match=r"\(No space left on device\); free space or choose"):
        write_atomically(tmp_path / "note.txt", write)
    assert list(tmp_path.iterdir()) == []


def test_tensors_and_note_come_back_bit_for_bit(tmp_path: Path) -> None:
    tensors = {
        "float": torch.tensor([0.1, float("-0.0"), 1e-42]),
        "bytes": torch.arange(6, dtype=torch.uint8).view(2, 3).T,
        "trained": torch.nn.Parameter(torch.ones(2)),
        "empty": torch.zeros(0, 3),
    }
    note = {"step": 3, "norm": (0.1).hex(), "names": ["é", None]}
    write_tensors(tmp_path / "state.safetensors", tensors, note)
    stored, stored_note = read_tensors(tmp_path / "state.safetensors")
    assert stored_note == note and stored.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert stored[name].dtype == tensor.dtype and torch.equal(stored[name], tensor.data)
    assert torch.signbit(stored["float"][1])


def test_equal_tensors_are_equal_files(tmp_path: Path) -> None:
    one, two = torch.ones(2), torch.zeros(3)
    write_tensors(tmp_path / "a", {"one": one, "two": two}, {"x": 1, "y": 2})
    write_tensors(tmp_path / "b", {"two": two, "one": one}, {"y": 2, "x": 1})
    assert sha256_of(tmp_path / "a") == sha256_of(tmp_path / "b")


@pytest.mark.parametrize("keep", [0, 5, 40, -1])
def test_a_damaged_file_of_tensors_is_refused_with_a_remedy(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "state.safetensors"
    write_tensors(path, {"values": torch.arange(100.0)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match=r"state\.safetensors: not a readable.*move it away"):
        read_tensors(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"state\.safetensors: no such file"):
        read_tensors(tmp_path / "state.safetensors")
    with pytest.raises(ArtifactError, match=r"DONE\.json: no such file"):
        read_json(tmp_path / "DONE.json")


def test_a_file_in_the_place_of_a_folder_and_a_folder_in_that_of_a_file_are_named(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.yaml").touch()
    with pytest.raises(ArtifactError, match=r"a\.yaml: got a file, expected a folder that holds D"):
        read_json(tmp_path / "a.yaml" / "DONE.json")
    with pytest.raises(ArtifactError, match=r"cannot read this \(Is a directory\)"):
        read_json(tmp_path)


@pytest.mark.parametrize("content", [b"", b'{"half": ', b"\xff\xfe\x00"])
def test_what_is_not_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "note.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"note\.json: not JSON"):
        read_json(tmp_path / "note.json")


def test_json_comes_back_and_is_readable_by_people(tmp_path: Path) -> None:
    write_json(tmp_path / "note.json", {"b": [1, 0.5], "a": "é"})
    assert read_json(tmp_path / "note.json") == {"b": [1, 0.5], "a": "é"}
    assert (tmp_path / "note.json").read_text(encoding="utf-8").startswith('{\n  "b": [\n')


def test_json_that_other_readers_refuse_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "note.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_fingerprint_does_not_depend_on_the_order_of_keys() -> None:
    assert fingerprint({"a": 1, "b": [2, 3]}) == fingerprint({"b": [2, 3], "a": 1})
    assert fingerprint({"a": 1, "b": [2, 3]}) != fingerprint({"a": 1, "b": [3, 2]})


def test_a_fingerprint_tells_kinds_of_values_apart() -> None:
    contents: list[object] = [1, 1.5, "1", True, None, [1], {"1": 1}, "true", []]
    assert len({fingerprint(content) for content in contents}) == len(contents)


def test_a_fingerprint_is_the_start_of_a_sha256_that_other_programs_can_compute() -> None:
    assert canonical_json({"b": 1, "a": [0.5, "é"]}) == '{"a":[0.5,"\\u00e9"],"b":1}'
    spelled = json.dumps({"a": 1}, separators=(",", ":")).encode()
    assert fingerprint({"a": 1}) == hashlib.sha256(spelled).hexdigest()[:12]


def test_there_is_no_fingerprint_of_a_value_that_equals_nothing() -> None:
    with pytest.raises(ValueError, match="JSON"):
        fingerprint([float("nan")])


def test_a_stage_is_done_when_it_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "distill-0123456789ab"
    assert done(folder) is None
    mark_done(folder, {"steps": 4})
    assert done(folder) == read_record(folder / "DONE.json") == {"steps": 4}


def test_rows_come_back_memory_mapped_as_they_were_streamed(tmp_path: Path) -> None:
    rows_NHW = torch.randint(0, 256, (7, 2, 3), dtype=torch.uint8)
    path = tmp_path / "rows.npy"
    write_rows(path, (7, 2, 3), iter(rows_NHW.transpose(1, 2).transpose(1, 2).split(3)))
    assert torch.equal(open_rows(path), rows_NHW)
    assert np.array_equal(np.load(path), rows_NHW.numpy())
    again = tmp_path / "again.npy"
    write_rows(again, (7, 2, 3), iter(rows_NHW.split(2)))
    assert path.read_bytes() == again.read_bytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.int64, torch.bool])
def test_rows_keep_their_type(tmp_path: Path, dtype: torch.dtype) -> None:
    rows = torch.tensor([[0, 1], [1, 1]]).to(dtype)
    write_rows(tmp_path / "rows.npy", (2, 2), [rows], dtype)
    got = open_rows(tmp_path / "rows.npy")
    assert got.dtype == dtype and torch.equal(got, rows)


def test_no_rows_at_all_are_an_empty_array(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.npy", (0, 3, 4, 4), [])
    assert open_rows(tmp_path / "rows.npy").shape == (0, 3, 4, 4)


@pytest.mark.parametrize(
    ("chunks", "problem"),
    [
        ([torch.zeros(2, 3, dtype=torch.uint8)], "got 2 rows, expected 4"),
        ([torch.zeros(5, 3, dtype=torch.uint8)], "got 5 rows, expected 4"),
        ([torch.zeros(4, 2, dtype=torch.uint8)], "got rows of"),
        ([torch.zeros(4, 3)], "float32"),
    ],
)
def test_rows_that_do_not_fit_leave_no_file(
    tmp_path: Path, chunks: list[torch.Tensor], problem: str
) -> None:
    with pytest.raises(ArtifactError, match=problem):
        write_rows(tmp_path / "rows.npy", (4, 3), chunks)
    assert list(tmp_path.iterdir()) == []


def test_damaged_rows_say_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    with pytest.raises(ArtifactError, match="no such file"):
        open_rows(path)
    write_rows(path, (400, 3), [torch.zeros(400, 3, dtype=torch.uint8)])
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:20], b"", b"not an array"):
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError, match="move it away"):
            open_rows(path)
    np.save(path, np.array([{"a": 1}], dtype=object))
    with pytest.raises(ArtifactError, match="move it away"):
        open_rows(path)


ROWS = torch.arange(24, dtype=torch.uint8).view(6, 4)
RECORD = {"accuracy": 0.8125, "per_class": [0.75, None], "seed": 3}
TENSORS = {"rows": ROWS, "state": torch.tensor([0.5, -2.0, 1e-42], dtype=torch.float32)}


def sealed_rows(path: Path) -> None:
    """An array that is filled piece by piece, as the decoded source is."""
    create_rows(path, (6, 4))
    for first in (0, 4):
        fill_rows(path, first, ROWS[first : first + 4])
    seal_rows(path)


KINDS: dict[str, tuple[Callable[[Path], None], Callable[[Path], object]]] = {
    "a record": (
        lambda path: write_record(path, RECORD),
        lambda path: intact(path, read_record),
    ),
    "tensors": (
        lambda path: write_tensors(path, TENSORS, {"step": 7}),
        lambda path: read_tensors(path) if holds_tensors(path) else None,
    ),
    "streamed rows": (
        lambda path: write_rows(path, (6, 4), [ROWS]),
        lambda path: open_rows(path) if holds_rows(path) else None,
    ),
    "filled rows": (
        sealed_rows,
        lambda path: open_rows(path) if holds_rows(path) else None,
    ),
}


def same(got: object, expected: object) -> bool:
    """Whether two things that were read are equal, tensors bit for bit."""
    if isinstance(expected, torch.Tensor):
        return isinstance(got, torch.Tensor) and torch.equal(got, expected)
    if isinstance(expected, dict):
        return (
            isinstance(got, dict)
            and got.keys() == expected.keys()
            and all(same(got[key], expected[key]) for key in expected)
        )
    if isinstance(expected, tuple):
        return isinstance(got, tuple) and all(map(same, got, expected))
    return got == expected


@pytest.mark.parametrize("kind", KINDS)
def test_every_flipped_bit_is_noticed_or_changes_nothing(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "PIECE_BYTES", 7)  # several pieces, the last one shorter
    write, read = KINDS[kind]
    path = tmp_path / "kept"
    write(path)
    whole, expected = path.read_bytes(), read(path)
    path.unlink()
    assert expected is not None
    noticed = 0
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        flipped = tmp_path / f"{bit}"  # a new name: the last one may still be mapped
        flipped.write_bytes(damaged)
        got = read(flipped)
        noticed += got is None
        assert got is None or same(got, expected), f"bit {bit} of {len(whole)} bytes"
        assert flipped.with_name(f"{bit}.damaged").exists() == (got is None)
    assert noticed > 7 * len(whole) // 2, "most bits are content"


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_cut_short_or_empty_is_noticed(tmp_path: Path, kind: str) -> None:
    write, read = KINDS[kind]
    path = tmp_path / "kept"
    write(path)
    whole = path.read_bytes()
    for length in {*range(0, len(whole) - 1, 5), len(whole) - 2}:
        cut = tmp_path / f"{length}"
        cut.write_bytes(whole[:length])
        got = read(cut)
        # a file of rows that ends with its last row was never sealed
        assert got is None or (length < len(whole) - 8 and same(got, read(path)))


def test_a_damaged_file_is_kept_and_told_with_its_new_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "default-000.json"
    for name in ("default-000.json.damaged", "default-000.json.damaged1"):
        write_record(path, RECORD)
        path.write_text(path.read_text().replace("0.8125", "0.9125"))
        with caplog.at_level(logging.WARNING):
            assert intact(path, read_record) is None
        assert not path.exists() and "0.9125" in (tmp_path / name).read_text()
        assert f"{path}: its checksum is" in caplog.text
        assert f"it is kept as {name} and made anew" in caplog.text


def test_processes_that_share_the_look_see_every_piece_between_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "PIECE_BYTES", 4)
    for row in range(6):
        path = tmp_path / f"{row}.npy"
        write_rows(path, (6, 4), [ROWS])
        content = bytearray(path.read_bytes())
        content[128 + 4 * row] ^= 1
        seen = []
        for index in range(4):
            path.write_bytes(content)
            seen.append(not holds_rows(path, index, 4))
        assert seen == [row % 4 == index for index in range(4)]


def test_a_file_is_safe_on_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "note.txt"
    write_text(path, "old")
    synced, fsync = list[tuple[bytes, bytes]](), os.fsync

    def noted(handle: int) -> None:
        fsync(handle)
        synced.append((os.pread(handle, 100, 0), path.read_bytes()))

    monkeypatch.setattr(os, "fsync", noted)
    write_text(path, "new")
    # what is made safe is all of the new file, at a time when the name is still the old one's
    assert synced == [(b"new", b"old")] and path.read_bytes() == b"new"


@contextlib.contextmanager
def files_below(most: int) -> Iterator[None]:
    """No file may become larger: what a full disk does, without one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


MANY = torch.arange(40_000).to(torch.uint8).view(100, 400)


@pytest.mark.parametrize("most", [0, 100, 8192, 30_000])
@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_tensors(path, {"many": MANY}),
        lambda path: write_rows(path, (100, 400), [MANY]),
        lambda path: write_record(path, {"many": MANY.tolist()}),
    ],
    ids=["tensors", "rows", "a record"],
)
def test_a_disk_that_is_full_leaves_the_old_file_and_says_what_to_do(
    tmp_path: Path, write: Callable[[Path], None], most: int
) -> None:
    path = tmp_path / "kept"
    write(path)
    before = path.read_bytes()
    told = r"cannot write kept here \(File too large\); free space or choose.*before is kept"
    with files_below(most), pytest.raises(ArtifactError, match=told):
        write(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_rows_that_are_filled_in_on_a_full_disk_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.unfinished.npy"
    create_rows(path, tuple(MANY.shape))
    with files_below(20_000):
        fill_rows(path, 0, MANY[:40])
        with pytest.raises(ArtifactError, match=r"train\.unfinished\.npy here \(File too large\)"):
            fill_rows(path, 40, MANY[40:])


def test_a_full_disk_is_told_whichever_library_was_writing() -> None:
    with (
        pytest.raises(ArtifactError, match=r"big\.arrow: cannot write \(No space left"),
        told_when_full(),
    ):
        try:
            raise OSError(28, "No space left on device", "big.arrow")
        except OSError as error:
            raise ValueError("An error occurred while generating the dataset") from error
    with pytest.raises(ValueError, match="something else"), told_when_full():
        raise ValueError("something else")
