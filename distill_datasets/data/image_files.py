"""Which files a row may name in place of an image's bytes: those of its dataset, and no others.

A dataset is somebody else's text. A row that names `/etc/passwd`, `../keys.png`, an address or a
device would otherwise have it opened, decoded and, in the end, published.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from distill_datasets.data.columns import shortened
from distill_datasets.media.image import UnusableImage

MOST_BYTES = 2**30


@dataclass(frozen=True)
class ImageFiles:
    """The files that rows may name.

    Attributes:
        base: what relative paths start from; None where there are none.
        roots: folders that the files lie in.
        remote: what an address that is read begins with; None reads none.
    """

    base: Path | None = None
    roots: tuple[Path, ...] = ()
    remote: str | None = None

    def read(self, named: str) -> bytes:
        """The bytes of a file.

        Raises:
            UnusableImage: it may not be opened, is no file, or cannot be read.
        """
        try:
            if "://" in named:
                return self._fetched(named)
            path = self._inside(named)
            # a device or a pipe would be waited for, maybe for ever
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):
                raise UnusableImage(f"{shortened(named)} is no regular file, and is not opened")
            if found.st_size > MOST_BYTES:
                raise UnusableImage(
                    f"{shortened(named)} has {found.st_size:,} bytes, more than an image file of "
                    f"{MOST_BYTES:,}"
                )
            return path.read_bytes()
        except UnusableImage:
            raise
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise UnusableImage(
                f"the image file cannot be read ({reason}: {shortened(named)})"
            ) from error

    def _inside(self, named: str) -> Path:
        path = Path(named)
        if ".." in path.parts:
            raise UnusableImage(f"{shortened(named)} leads out of a folder, and is not opened")
        if not path.is_absolute():
            if self.base is None:
                raise UnusableImage(
                    f"the file {shortened(named)} is named without its bytes, and only a folder "
                    "has files"
                )
            return self.base / path
        if not any(path.is_relative_to(root) for root in self.roots):
            raise UnusableImage(
                f"{shortened(named)} lies outside of the dataset, and is not opened; keep images "
                "in the dataset, as bytes or as files below its folder"
            )
        return path

    def _fetched(self, named: str) -> bytes:
        """What lies behind an address of the dataset's own, a member of an archive included."""
        outer = named.rpartition("::")[2]
        archived = named.startswith("zip://") and outer != named
        if archived and "://" not in outer:
            self._inside(outer)
        elif self.remote is None or not outer.startswith(self.remote):
            raise UnusableImage(f"{shortened(named)} is an address, and is not opened")
        import fsspec  # type: ignore[import-untyped]

        with fsspec.open(named, "rb") as file:
            content: bytes = file.read(MOST_BYTES)
        return content


ANYWHERE = ImageFiles(Path(os.curdir), (Path(os.sep),), "hf://")
"""What a dataset object may name: whoever made it in Python has opened files already.

Paths of a user's own table cannot be told from those of a stranger's, so that all are read, and
`provenance.of_memory` says where they lie.
"""
