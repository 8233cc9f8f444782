"""A volume as an image: slices of a NIfTI file, one above the other as channels.

Shape suffixes: X Y Z voxels to the right, to the front and upwards; C channels, H W pixels.
"""

from __future__ import annotations

import gzip
import io
import zlib
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator

from distill_datasets.media.image import UnusableImage
from distill_datasets.media.view import FileView

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

AXES = ("sagittal", "coronal", "axial")
"""In the order of the axes of a volume in the orientation RAS+."""
GZIP = b"\x1f\x8b"
MOST_BYTES = 2**31
FAINT, BRIGHT = 1, 99
"""The percentiles of a volume that are black and white where no window says so."""


class Slices(FileView):
    """Slices of a volume, stacked as channels."""

    paper: ClassVar[str] = "slices of a volume as channels, by NiBabel"
    reads: ClassVar[str] = "Nifti"
    endings: ClassVar[tuple[str, ...]] = (".nii", ".nii.gz")
    packages: ClassVar[tuple[str, ...]] = ("nibabel",)
    pip: ClassVar[str] = "nifti"
    name: Literal["slices"] = "slices"
    axis: Literal["sagittal", "coronal", "axial"] = Field(
        default="axial",
        description="what is cut across: right to left, front to back, or bottom to top; volumes "
        "are turned to the orientation RAS+ first",
    )
    count: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="slices, in the middles of equal parts of the volume; of 1 the middle one",
    )
    index: int | None = Field(
        default=None, ge=0, description="the slice instead, from 0: right, back or bottom"
    )
    volume: int = Field(default=0, ge=0, description="which one, of files that hold several")
    window: list[float] | None = Field(
        default=None,
        min_length=2,
        max_length=2,
        description="values that are black and white, as in [-160, 240]; null: the 1st and the "
        "99th percentile of each volume",
    )

    @field_validator("window")
    @classmethod
    def _window_rises(cls, window: list[float] | None) -> list[float] | None:
        if window is not None and not window[0] < window[1]:
            raise ValueError(f"got {window}, expected the lower value first")
        return window

    @model_validator(mode="after")
    def _index_is_of_one(self) -> Self:
        if self.index is not None and self.count != 1:
            raise ValueError(
                f"index: names one slice, got count: {self.count}; leave one of them out"
            )
        return self

    def pixels(self, encoded: bytes) -> Tensor:
        values_XYZ = self._values(encoded)
        axis = AXES.index(self.axis)
        length = values_XYZ.shape[axis]
        places = [int((i + 0.5) * length / self.count) for i in range(self.count)]
        if self.index is not None:
            places = [self.index]
            if self.index >= length:
                raise UnusableImage(f"{length} {self.axis} slices, expected more than {self.index}")
        low, high = self._window(values_XYZ)
        cut_CHW = np.stack(
            # the second axis that is left points up or to the front: it becomes the rows
            [np.rot90(np.take(values_XYZ, place, axis=axis)) for place in places]
        )
        scaled_CHW = (np.nan_to_num(cut_CHW, nan=low, posinf=high, neginf=low) - low) / (high - low)
        return torch.from_numpy((scaled_CHW.clip(0, 1) * 255).round().astype(np.uint8))

    def _window(self, values_XYZ: NDArray[np.float64]) -> tuple[float, float]:
        if self.window is not None:
            return self.window[0], self.window[1]
        finite = values_XYZ[np.isfinite(values_XYZ)]
        if not finite.size:
            raise UnusableImage("the volume has no finite value")
        low, high = (float(each) for each in np.percentile(finite, (FAINT, BRIGHT)))
        if low == high:
            low, high = float(finite.min()), float(finite.max())
        if low == high:
            raise UnusableImage(f"the volume is {low:g} everywhere; set source.view.window")
        return low, high

    def _values(self, encoded: bytes) -> NDArray[np.float64]:
        """The voxels in the orientation RAS+.

        Raises:
            UnusableImage: these are no NIfTI file, or it holds no such volume.
        """
        try:
            image = _opened(encoded)
            import nibabel

            turned: Any = nibabel.as_closest_canonical(image)
            values = np.asarray(turned.dataobj, dtype=np.float64)
        except UnusableImage:
            raise
        except (ValueError, OSError, EOFError, zlib.error, TypeError) as error:
            raise UnusableImage(f"the volume cannot be decoded ({error})") from error
        volumes = values.reshape(*values.shape[:3], -1) if values.ndim >= 3 else values
        if volumes.ndim != 4 or 0 in volumes.shape:
            raise UnusableImage(f"an array of shape {values.shape}, expected three axes or more")
        if self.volume >= volumes.shape[3]:
            raise UnusableImage(f"{volumes.shape[3]} volumes, expected more than {self.volume}")
        chosen: NDArray[np.float64] = volumes[..., self.volume]
        return chosen


def _opened(encoded: bytes) -> Any:  # noqa: ANN401
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError
    from nibabel.wrapstruct import WrapStructError

    if encoded.startswith(GZIP):
        with gzip.open(io.BytesIO(encoded)) as file:
            encoded = file.read(MOST_BYTES + 1)
        if len(encoded) > MOST_BYTES:
            raise UnusableImage(f"a volume of more than {MOST_BYTES:,} bytes; shrink it first")
    for kind in (nibabel.Nifti1Image, nibabel.Nifti2Image):
        try:
            return kind.from_bytes(encoded)
        except (ImageFileError, HeaderDataError, WrapStructError):
            continue
    raise UnusableImage(f"{len(encoded)} bytes that are no NIfTI file")
