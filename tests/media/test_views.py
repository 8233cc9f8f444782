"""Sounds, videos and volumes as images: what is seen of them, checked by hand."""

import gzip
import math
from importlib.util import find_spec
from unittest import mock

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from support.other_kinds import mp4, nii, wav
from support.toy_runs import command

from distill_datasets.config import load, names
from distill_datasets.media.frames import Frames
from distill_datasets.media.image import UnusableImage
from distill_datasets.media.mel import Mel
from distill_datasets.media.slices import Slices
from distill_datasets.media.view import FileView, views_of

RATE = 8000


def tone(hz: float, seconds: float = 1.0, rate: int = RATE) -> np.ndarray:
    return np.sin(2 * math.pi * hz * np.arange(round(seconds * rate)) / rate)


MEL = Mel(sample_rate=RATE, seconds=0.5, n_fft=256, hop=125, mels=32)


def loudest_row(sound: np.ndarray, rate: int = RATE) -> int:
    pixels_CHW = MEL.pixels(wav(sound, rate))
    assert pixels_CHW.dtype == torch.uint8 and pixels_CHW.shape == (1, 32, 32)
    return int(pixels_CHW[0].float().mean(dim=1).argmax())


def test_a_tone_lights_the_band_that_holds_it_and_low_ones_lie_below() -> None:
    step = 2595 * math.log10(1 + 4000 / 700) / 33
    for hz in (400.0, 1000.0, 2500.0):
        band = round(2595 * math.log10(1 + hz / 700) / step) - 1
        assert abs(31 - loudest_row(tone(hz)) - band) <= 1
    # the same tone at another rate is the same row, and two channels are averaged
    assert loudest_row(tone(1000, rate=22050), 22050) == loudest_row(tone(1000))
    assert loudest_row(np.stack([tone(1000), tone(1000)], axis=1)) == loudest_row(tone(1000))


def test_sounds_are_cut_or_followed_by_silence() -> None:
    ends_loud = np.concatenate([np.zeros(RATE // 2), tone(1000, 0.5), np.zeros(RATE // 2)])
    middle = MEL.model_copy(update={"cut": "middle"})
    assert int(MEL.pixels(wav(ends_loud, RATE)).max()) == 0
    assert int(middle.pixels(wav(ends_loud, RATE))[:, :, 14:18].max()) == 255
    short = MEL.pixels(wav(tone(1000, 0.25), RATE))
    assert int(short[:, :, :14].max()) == 255 and int(short[:, :, 20:].max()) == 0


def test_white_is_the_peak_or_a_sine_of_full_scale() -> None:
    absolute = MEL.model_copy(update={"white": "full_scale"})
    loud, faint = wav(tone(1000), RATE), wav(0.01 * tone(1000), RATE)
    assert int(MEL.pixels(faint).max()) == int(MEL.pixels(loud).max()) == 255
    fallen = int(absolute.pixels(loud).max()) - int(absolute.pixels(faint).max())
    assert abs(fallen - 40 / 80 * 255) <= 1  # a hundredth of the amplitude is 40 dB
    assert int(absolute.pixels(loud).max()) >= 255 - 3 / 80 * 255


def test_frames_are_stacked_evenly_or_by_stride() -> None:
    film = mp4([np.full((16, 32), 20 * place, np.uint8) for place in range(12)])
    for view, places in (
        (Frames(count=3), [2, 6, 10]),
        (Frames(count=1), [6]),
        (Frames(count=2, start=8), [9, 11]),
        (Frames(count=3, start=1, stride=4), [1, 5, 9]),
    ):
        pixels_CHW = view.pixels(film)
        assert pixels_CHW.shape == (view.count, 16, 32)
        seen = pixels_CHW.float().mean(dim=(1, 2)).tolist()
        assert seen == pytest.approx([20 * place for place in places], abs=3)
    assert Frames(count=2, gray=False).pixels(film).shape == (6, 16, 32)
    for view in (Frames(count=3, stride=6), Frames(start=12)):
        with pytest.raises(UnusableImage, match="12 frames, of which those from"):
            view.pixels(film)


def test_slices_are_cut_in_one_orientation_whatever_that_of_the_file_is() -> None:
    values_XYZ = np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)
    window = [0.0, 119.0]
    axial = Slices(window=window).pixels(nii(values_XYZ))
    expected = np.round(values_XYZ[:, :, 3].T[::-1] / 119 * 255)  # front is up, left is left
    assert axial.shape == (1, 5, 4) and np.array_equal(axial[0].numpy(), expected)
    mirrored = nii(values_XYZ[::-1].copy(), np.diag([-1.0, 1, 1, 1]))
    assert torch.equal(Slices(window=window).pixels(mirrored), axial)
    assert torch.equal(Slices(window=window).pixels(gzip.decompress(nii(values_XYZ))), axial)
    assert Slices(axis="sagittal", count=2).pixels(nii(values_XYZ)).shape == (2, 6, 5)
    first = Slices(axis="coronal", index=0, window=window).pixels(nii(values_XYZ))
    assert np.array_equal(first[0].numpy(), np.round(values_XYZ[:, 0].T[::-1] / 119 * 255))
    whole = Slices(count=6).pixels(nii(values_XYZ))
    assert int(whole.min()) == 0 and int(whole.max()) == 255


@pytest.mark.parametrize(
    ("view", "encoded", "words"),
    [
        (MEL, b"no sound", "the sound cannot be decoded"),
        (Frames(), b"no video", "the video cannot be decoded"),
        (Slices(), b"no volume", "9 bytes that are no NIfTI file"),
        (Slices(), b"\x1f\x8b cut", "the volume cannot be decoded"),
        (Slices(index=9), nii(np.ones((2, 2, 2), np.float32)), "2 axial slices, expected more"),
        (Slices(volume=1), nii(np.ones((2, 2, 2), np.float32)), "1 volumes, expected more than 1"),
        (Slices(), nii(np.ones((2, 2, 2), np.float32)), "1 everywhere; set source.view.window"),
    ],
    ids=["sound", "video", "volume", "cut", "index", "time", "window"],
)
def test_files_that_are_damaged_or_too_short_say_so(
    view: FileView, encoded: bytes, words: str
) -> None:
    with pytest.raises(UnusableImage, match=words):
        view.pixels(encoded)


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        (Mel, {"mels": 256}, r"mels: \d+ of 256 bands hold no frequency .* lower mels or raise"),
        (Mel, {"high_hz": 9000.0}, "at most half the sample rate, 8000"),
        (Mel, {"seconds": 0.01}, "lower it to at most 160"),
        (Frames, {"count": 1, "stride": 2}, "stride: got 2 with one frame"),
        (Slices, {"window": [2.0, 1.0]}, "expected the lower value first"),
        (Slices, {"index": 1, "count": 2}, "index: names one slice, got count: 2"),
    ],
)
def test_settings_that_see_nothing_are_refused(
    kind: type[FileView], settings: dict[str, object], words: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        kind.model_validate(settings)


def test_a_view_without_its_packages_says_what_to_install() -> None:
    missing = {"soundfile", "nibabel"}
    with mock.patch(
        "distill_datasets.media.view.find_spec",
        lambda name: None if name in missing else find_spec(name),
    ):
        assert MEL.absent() == (
            "source.view: 'mel' needs soundfile; run `pip install 'distill_datasets[audio]'`"
        )
        assert "distill_datasets[nifti]" in str(Slices().absent())
        assert Frames().absent() is None
        for verb in ("check", "plan"):
            answer = command(verb, "domains/audio", "source.dataset=.")
            assert answer.code == 2 and "pip install 'distill_datasets[audio]'" in answer.err


def test_every_view_is_found_by_what_it_reads() -> None:
    for name in names("views"):
        kind = load("views", name, FileView)
        assert issubclass(kind, FileView) and name in views_of(kind.reads)
    assert views_of("Image") == []
