"""Sounds, videos and volumes made on the fly, four classes of each.

Where the extras of the package are not installed, a test that asks for a file is skipped.

As a program it writes the folders that the recipes of `recipes/domains` were measured on:
`python tests/support/other_kinds.py audio FOLDER`, 150 files of each class to train on, 50 to test.
"""

import gzip
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

RATE = 16_000
KINDS = {"audio": "wav", "video": "mp4", "nifti": "nii.gz"}
CLASSES = {
    "audio": ("falling", "rising", "steady", "trembling"),
    "video": ("down", "left", "right", "up"),
    "nifti": ("ball", "cross", "cube", "ring"),
}


def wav(sound: np.ndarray, rate: int = RATE) -> bytes:
    """Samples in [-1, 1] as a file."""
    soundfile, _ = map(pytest.importorskip, ("soundfile", "torchaudio"))
    buffer = io.BytesIO()
    soundfile.write(buffer, sound, rate, format="WAV")
    return buffer.getvalue()


def sound(label: int, rng: np.random.Generator) -> bytes:
    """Up to a second of a tone that falls, rises, stays or trembles, in noise."""
    time = np.arange(int(RATE * rng.uniform(0.7, 1.0))) / RATE
    depth = rng.uniform(0.7, 1.5)
    tremor = 0.4 * np.sin(2 * np.pi * rng.uniform(5, 9) * time)
    octaves = (-depth * time, depth * time, 0 * time, tremor)[label]
    hz = rng.uniform(500, 1500) * 2**octaves
    tone = np.sin(2 * np.pi * np.cumsum(hz) / RATE + rng.uniform(0, 6))
    noise = rng.uniform(0.02, 0.15) * rng.standard_normal(len(time))
    return wav(np.clip(0.3 * tone + noise, -1, 1))


def mp4(frames: list[np.ndarray]) -> bytes:
    """Gray frames (H, W) of even sides as a file."""
    av = pytest.importorskip("av")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width = frames[0].shape
        stream.pix_fmt, stream.bit_rate = "yuv420p", 1_000_000
        for frame in frames:
            shown = av.VideoFrame.from_ndarray(np.repeat(frame[..., None], 3, 2), format="rgb24")
            container.mux(stream.encode(shown))
        container.mux(stream.encode())
    return buffer.getvalue()


def video(label: int, rng: np.random.Generator) -> bytes:
    """Nine frames in which a bright square goes down, left, right or up, in noise."""
    side, frames = int(rng.integers(4, 7)), []
    y, x = rng.uniform(6, 12, 2)
    step = rng.uniform(0.6, 1.3)
    down, right = ((1, 0), (0, -1), (0, 1), (-1, 0))[label]
    for place in range(-4, 5):
        frame = rng.integers(0, 120, (24, 24), dtype=np.uint8)
        top, left = int(y + down * step * place), int(x + right * step * place)
        frame[max(0, top) : top + side, max(0, left) : left + side] += 100
        frames.append(frame)
    return mp4(frames)


def nii(values: np.ndarray, affine: np.ndarray | None = None) -> bytes:
    """Voxels as a compressed file; without an affine in the orientation RAS+."""
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine)
    return gzip.compress(image.to_bytes(), mtime=0)


def volume(label: int, rng: np.random.Generator) -> bytes:
    """A bright ball, cross, cube or ring near the middle of 20 voxels each way, in noise."""
    shifts = rng.uniform(-3, 3, 3)
    x, y, z = (np.abs(axis - 9.5 - shift) for axis, shift in zip(np.ogrid[:20, :20, :20], shifts))  # noqa: B905
    size = rng.uniform(3.5, 5.5)
    far, flat = x**2 + y**2 + z**2 < size**2, np.sqrt(x**2 + y**2)
    inside = (
        far,
        ((x < 1.5) | (y < 1.5)) & (np.maximum(x, y) < size) & (z < size),
        np.maximum(np.maximum(x, y), z) < 0.8 * size,
        (np.abs(flat - size) < 1.2) & (z < size),
    )[label]
    return nii((rng.normal(300, 70, inside.shape) + 200 * inside).astype(np.int16))


def file_of(kind: str, label: int, rng: np.random.Generator) -> bytes:
    """A file of a kind, a key of `KINDS`."""
    return {"audio": sound, "video": video, "nifti": volume}[kind](label, rng)


def folder_of(kind: str, folder: Path, per_class: dict[str, int], classes: int = 4) -> Path:
    """Files in a folder for each split, and below for each class."""
    rng = np.random.default_rng(0)
    for split, count in per_class.items():
        for label, name in enumerate(CLASSES[kind][:classes]):
            own = folder / split / name
            own.mkdir(parents=True)
            for place in range(count):
                (own / f"{place}.{KINDS[kind]}").write_bytes(file_of(kind, label, rng))
    return folder


if __name__ == "__main__":
    folder_of(sys.argv[1], Path(sys.argv[2]), {"train": 150, "test": 50})
