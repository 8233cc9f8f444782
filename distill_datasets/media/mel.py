"""Sound as an image: the log-mel spectrogram of a stretch of fixed length.

Shape suffixes: T samples, S channels of the sound, M mel bands, F frames, C channels of the image.
"""

from __future__ import annotations

import io
import math
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator

from distill_datasets.media.image import UnusableImage
from distill_datasets.media.view import FileView

if TYPE_CHECKING:
    from torch import Tensor

SILENCE = 1e-10
"""The least power that has a logarithm here."""


class Mel(FileView):
    """Log-mel spectrogram in gray: time to the right, low tones at the bottom."""

    paper: ClassVar[str] = "mel bands as in HTK, by torchaudio"
    reads: ClassVar[str] = "Audio"
    endings: ClassVar[tuple[str, ...]] = (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aiff")
    packages: ClassVar[tuple[str, ...]] = ("soundfile", "torchaudio")
    pip: ClassVar[str] = "audio"
    name: Literal["mel"] = "mel"
    sample_rate: int = Field(
        default=16_000, ge=1000, le=200_000, description="that all sounds are brought to, in Hz"
    )
    seconds: float = Field(
        default=1.0,
        gt=0,
        le=600,
        description="length that is seen; shorter sounds are followed by silence",
    )
    cut: Literal["start", "middle"] = Field(
        default="start", description="the part of longer sounds that is kept"
    )
    n_fft: int = Field(default=512, ge=16, le=65536, description="samples of a Fourier transform")
    hop: int = Field(default=250, ge=1, le=65536, description="samples from one column to the next")
    mels: int = Field(default=64, ge=2, le=1024, description="bands, which are rows of the image")
    low_hz: float = Field(default=0.0, ge=0, description="where the lowest band begins")
    high_hz: float | None = Field(
        default=None, gt=0, description="where the highest band ends; null: half the sample rate"
    )
    decibels: float = Field(
        default=80.0, gt=0, le=200, description="range that is seen, from black to white"
    )
    white: Literal["peak", "full_scale"] = Field(
        default="peak",
        description="what is white: the loudest point of each sound, whose loudness is then lost; "
        "or a band that holds the power of a sine of full scale",
    )

    @model_validator(mode="after")
    def _bands_hold_frequencies(self) -> Self:
        half = self.sample_rate / 2
        high = self.high_hz or half
        if not self.low_hz < high <= half:
            raise ValueError(
                f"high_hz: got bands from {self.low_hz:g} to {high:g} Hz, expected them to rise "
                f"to at most half the sample rate, {half:g}"
            )
        if self.columns < 1:
            raise ValueError(
                f"hop: {self.hop} samples are more than the {self.seconds:g} seconds that are "
                f"seen; lower it to at most {self.samples}"
            )
        low_mel, high_mel = (2595 * math.log10(1 + hz / 700) for hz in (self.low_hz, high))
        step = (high_mel - low_mel) / (self.mels + 1)
        edges = [700 * (10 ** ((low_mel + step * i) / 2595) - 1) for i in range(self.mels + 2)]
        width = self.sample_rate / self.n_fft
        empty = sum(
            math.floor(start / width) + 1 >= end / width
            for start, end in zip(edges, edges[2:], strict=False)
        )
        if empty:
            raise ValueError(
                f"mels: {empty} of {self.mels} bands hold no frequency of a transform of "
                f"{self.n_fft} samples; lower mels or raise n_fft"
            )
        return self

    @property
    def samples(self) -> int:
        """Samples that are seen."""
        return round(self.seconds * self.sample_rate)

    @property
    def columns(self) -> int:
        """The width of the image in pixels."""
        return self.samples // self.hop

    def pixels(self, encoded: bytes) -> Tensor:
        sound_T = torch.zeros(self.samples)
        read_T = self._read(encoded)[: self.samples]
        sound_T[: len(read_T)] = read_T
        power_MF: Tensor = _transform(
            self.sample_rate, self.n_fft, self.hop, self.mels, self.low_hz, self.high_hz
        )(sound_T)[:, : self.columns]
        # a sine of full scale has the power (sum of the Hann window / 2)^2, which is (n_fft / 4)^2
        white = power_MF.max() if self.white == "peak" else torch.tensor((self.n_fft / 4.0) ** 2)
        decibels_MF = 10 * (power_MF.clamp(min=SILENCE) / white.clamp(min=SILENCE)).log10()
        gray_MF = (1 + decibels_MF / self.decibels).clamp(0, 1) * 255
        if not float(power_MF.max()) > SILENCE:
            gray_MF = torch.zeros_like(gray_MF)  # silence is black, and not its own peak
        return gray_MF.round().byte().flip(0)[None]

    def _read(self, encoded: bytes) -> Tensor:
        """The part that is seen, in one channel, at the sample rate.

        Raises:
            UnusableImage: libsndfile cannot read it, or a value is not finite.
        """
        import soundfile
        from torchaudio.functional import resample

        try:
            with soundfile.SoundFile(io.BytesIO(encoded)) as file:
                rate: int = file.samplerate
                length = math.ceil(self.seconds * rate)
                if self.cut == "middle":
                    file.seek(max(0, (file.frames - length) // 2))
                sound_TS = torch.from_numpy(file.read(length, dtype="float32", always_2d=True))
        except (soundfile.LibsndfileError, ValueError) as error:
            raise UnusableImage(f"the sound cannot be decoded ({error})") from error
        sound_T = sound_TS.mean(dim=1)
        if not len(sound_T) or not bool(torch.isfinite(sound_T).all()):
            raise UnusableImage("a sound without samples, or with samples that are not finite")
        resampled_T: Tensor = resample(sound_T, rate, self.sample_rate)
        return resampled_T


@cache
def _transform(
    rate: int, n_fft: int, hop: int, mels: int, low_hz: float, high_hz: float | None
) -> Any:  # noqa: ANN401
    """torchaudio's transform of a sound to power in mel bands."""
    from torchaudio.transforms import MelSpectrogram

    return MelSpectrogram(
        rate, n_fft=n_fft, hop_length=hop, n_mels=mels, f_min=low_hz, f_max=high_hz
    )
