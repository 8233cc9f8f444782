"""Video as an image: some of its frames, one above the other as channels.

Shape suffixes: C channels, H W pixels.
"""

from __future__ import annotations

import io
from collections.abc import Collection
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator

from distill_datasets.media.image import UnusableImage
from distill_datasets.media.view import FileView

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


class Frames(FileView):
    """Frames of a video, stacked as channels."""

    paper: ClassVar[str] = "frames of a video as channels, by PyAV"
    reads: ClassVar[str] = "Video"
    endings: ClassVar[tuple[str, ...]] = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg")
    packages: ClassVar[tuple[str, ...]] = ("av",)
    pip: ClassVar[str] = "video"
    name: Literal["frames"] = "frames"
    count: int = Field(default=3, ge=1, le=1000, description="frames that are seen")
    gray: bool = Field(
        default=True, description="one channel a frame; false: its red, green and blue"
    )
    start: int = Field(default=0, ge=0, description="first frame that may be seen, from 0")
    stride: int | None = Field(
        default=None,
        ge=1,
        description="frames from one to the next; null: evenly spaced, in the middles of equal "
        "parts of what follows start",
    )

    @model_validator(mode="after")
    def _stride_is_between_frames(self) -> Self:
        if self.stride is not None and self.count == 1:
            raise ValueError(
                f"stride: got {self.stride} with one frame, which start alone chooses; leave it "
                "out, or raise count"
            )
        return self

    def pixels(self, encoded: bytes) -> Tensor:
        import av

        try:
            declared = _declared(encoded)
            frames_HWC = self._chosen(encoded, declared) if declared else None
            if frames_HWC is None:  # no length is declared, or a wrong one
                frames_HWC = self._chosen(encoded, _counted(encoded))
        except (av.error.FFmpegError, IndexError, ValueError) as error:
            raise UnusableImage(f"the video cannot be decoded ({error})") from error
        if frames_HWC is None:
            raise UnusableImage(f"{_counted(encoded)} frames, of which {self._words()} are asked")
        if len({frame_HWC.shape for frame_HWC in frames_HWC}) > 1:
            raise UnusableImage("frames of different sizes")
        stacked = torch.from_numpy(np.concatenate(frames_HWC, axis=2))
        return stacked.permute(2, 0, 1).contiguous()

    def _chosen(self, encoded: bytes, length: int) -> list[NDArray[np.uint8]] | None:
        """The frames that are seen of so many; None where some are not there."""
        if self.stride is None:
            left = length - self.start
            if left < 1:
                return None
            places = [self.start + int((i + 0.5) * left / self.count) for i in range(self.count)]
        else:
            places = [self.start + i * self.stride for i in range(self.count)]
        found = _decoded(encoded, set(places), "gray" if self.gray else "rgb24")
        return [found[place] for place in places] if found.keys() >= set(places) else None

    def _words(self) -> str:
        last = self.start + (self.stride or 0) * (self.count - 1)
        return f"those from {self.start} to at least {last}"


def _declared(encoded: bytes) -> int:
    """How many frames the file says it has; 0 where it says nothing."""
    import av

    with av.open(io.BytesIO(encoded)) as container:
        frames: int = container.streams.video[0].frames
        return frames


def _counted(encoded: bytes) -> int:
    """How many frames can be decoded."""
    import av

    with av.open(io.BytesIO(encoded)) as container:
        return sum(1 for _ in container.decode(video=0))


def _decoded(encoded: bytes, places: Collection[int], layout: str) -> dict[int, NDArray[np.uint8]]:
    """The frames at some places, upright, (H, W, C)."""
    import av

    found, last = dict[int, "NDArray[np.uint8]"](), max(places)
    with av.open(io.BytesIO(encoded)) as container:
        for place, frame in enumerate(container.decode(video=0)):
            if place in places:
                turned = np.rot90(frame.to_ndarray(format=layout), round(frame.rotation / 90))
                found[place] = np.ascontiguousarray(np.atleast_3d(turned))
            if place >= last:
                break
    return found
