"""How a row of another kind becomes an image: sound, video, volumes.

A view is a section of the recipe, `source.view`. It reads the bytes of one file, and what it sees
is 8-bit pixels of any number of channels; from there on they are images like all others.

Shape suffixes: C channels, H W pixels.
"""

from __future__ import annotations

from abc import abstractmethod
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import SerializeAsAny

from distill_datasets.config import Part, load, names, part
from distill_datasets.media.image import Seen, UnusableImage, square

if TYPE_CHECKING:
    from torch import Tensor


class FileView(Part):
    """How the bytes of a file that is no image become one.

    Attributes:
        reads: the feature of `datasets` whose columns it reads: Audio, Video, Nifti or Pdf.
        endings: of the files in folders that are rows, in lower case.
        packages: what has to be installed.
        pip: the extra of this package that brings them.
    """

    reads: ClassVar[str]
    endings: ClassVar[tuple[str, ...]]
    packages: ClassVar[tuple[str, ...]]
    pip: ClassVar[str]

    @abstractmethod
    def pixels(self, encoded: bytes) -> Tensor:
        """What is seen of a file, (C, H, W) of uint8.

        Args:
            encoded: the whole file.

        Raises:
            UnusableImage: the file is damaged, or of another kind.
        """

    def seen(self, encoded: bytes, resolution: int | None) -> Seen:
        """The pixels of a file, brought to a square of `resolution` pixels where one is given.

        Raises:
            UnusableImage: see `pixels`.
        """
        if not encoded:
            raise UnusableImage("the file has no bytes")
        pixels_CHW = self.pixels(encoded)
        c, h, w = pixels_CHW.shape
        return Seen(pixels_CHW if resolution is None else square(pixels_CHW, resolution), c, h * w)

    def absent(self) -> str | None:
        """Why the view cannot be used on this machine; None where it can."""
        missing = [package for package in self.packages if find_spec(package) is None]
        if not missing:
            return None
        return (
            f"source.view: {self.name!r} needs {' and '.join(missing)}; run `pip install "
            f"'distill_datasets[{self.pip}]'`"
        )

    @classmethod
    def is_row(cls, file_name: str) -> bool:
        """Whether a file in a folder is one of the rows, by its ending."""
        return file_name.lower().endswith(cls.endings)


ViewField = Annotated[SerializeAsAny[FileView], part("views")]


def views_of(feature: str) -> list[str]:
    """The names of the views that read columns of a feature of `datasets`."""
    kinds = {name: load("views", name, FileView) for name in sorted(names("views"))}
    return [
        name for name, kind in kinds.items() if issubclass(kind, FileView) and kind.reads == feature
    ]
