"""All files below a folder, each put where it belongs: an image, left out, or counted by its kind.

Folders are followed through links; one that leads back to a folder above it, or to one that is
listed already, is left out. A file is an image by its ending, where PIL knows that as a raster
format, else when PIL identifies its first bytes. Only files of unknown endings are opened. Where a
view is given, the files that it reads stand in the place of images, and images are other files.
"""

import mimetypes
import os
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from distill_datasets.data.account import LeftOut
from distill_datasets.errors import DataError
from distill_datasets.media.image import identified, raster_endings
from distill_datasets.media.slices import Slices
from distill_datasets.media.view import FileView

TABLES = {".parquet": "a Parquet file", ".arrow": "an Arrow file", ".tar": "a tar"}
ARCHIVES = frozenset((".zip", ".7z", ".rar", ".gz", ".tgz", ".bz2", ".xz", ".zst"))
PACKAGES = {".heic": "pillow-heif", ".heif": "pillow-heif", ".jxl": "pillow-jxl-plugin"}
# PIL takes some of these for the TIFF of a thumbnail, or asks another program to draw them
UNREAD = {
    **dict.fromkeys(
        (".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf", ".pef"),
        "raw data of a camera; convert it to PNG or TIFF",
    ),
    **dict.fromkeys(
        (".eps", ".ps", ".svg", ".svgz", ".wmf", ".emf"), "a drawing, no pixels; save it as PNG"
    ),
}
VERSION_CONTROL = frozenset((".git", ".svn", ".hg", ".dvc"))
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
MOST_LEVELS = 64


@dataclass(slots=True, eq=False)
class Folder:
    """A folder below the source: its path from there, its images, and what it holds."""

    path: str
    identity: tuple[int, int]
    above: "Folder | None" = None
    hidden: bool = False
    images: list[str] = field(default_factory=list)
    folders: dict[str, "Folder"] = field(default_factory=dict)

    def inner(self, name: str) -> str:
        """The path of something in it."""
        return f"{self.path}/{name}" if self.path else name

    def all_images(self) -> list[str]:
        """The paths of all images in it and below, sorted."""
        found, waiting = list[str](), [self]
        while waiting:
            folder = waiting.pop()
            found += [folder.inner(name) for name in folder.images]
            waiting += folder.folders.values()
        return sorted(found)

    def holders(self) -> Iterator["Folder"]:
        """Itself and the folders above."""
        folder: Folder | None = self
        while folder is not None:
            yield folder
            folder = folder.above


class Listing:
    """One pass over all files: images by folder, what is left out, and the rest by kind.

    Attributes:
        root: where they lie.
        top: the folder at `root`; folders without images are forgotten.
        left_out: what can hold images and is none of these.
        other: how many other files there are of each kind.
        tables: the paths of Parquet and Arrow files and tars.
        metadata: the paths of files called as `METADATA` are.
    """

    def __init__(self, root: Path, view: FileView | None = None) -> None:
        self.root = root
        self._view = view
        self.left_out: list[LeftOut] = []
        self.other: Counter[str] = Counter()
        self.tables: list[str] = []
        self.metadata: list[str] = []
        self._links_to_files: list[str] = []
        status = root.stat()
        self.top = Folder("", (status.st_dev, status.st_ino))
        self._visited = {self.top.identity: self.top}
        self._links: deque[tuple[Folder, str]] = deque()
        self._go_through(self.top)
        # folders reached by links come after all others, so that a link never hides the original
        while self._links:
            self._follow(*self._links.popleft())
        self._leave_out_repeated_files()
        self._prune()

    def _go_through(self, start: Folder) -> None:
        waiting = [start]
        while waiting:
            folder = waiting.pop()
            try:
                with os.scandir(self.root / folder.path) as scanned:
                    entries = sorted(scanned, key=lambda entry: entry.name)
            except OSError as error:
                raise DataError(
                    f"source.dataset: {self.root / folder.path} cannot be read "
                    f"({error.strerror}); let this user read it, or move it away"
                ) from error
            for entry in entries:
                inner = self._sorted_in(folder, entry)
                if inner is not None:
                    waiting.append(inner)

    def _sorted_in(self, folder: Folder, entry: os.DirEntry[str]) -> Folder | None:
        """Put an entry where it belongs; a folder to go through next, or None."""
        path = folder.inner(entry.name)
        try:
            path.encode()
        except UnicodeEncodeError:
            printable = os.fsencode(path).decode("utf-8", "backslashreplace")
            self.left_out.append(LeftOut(printable, "a name that is no UTF-8; rename it"))
            return None
        try:
            if entry.is_dir():
                if entry.name in VERSION_CONTROL:
                    self.other["folders of version control"] += 1
                elif entry.is_symlink():
                    self._links.append((folder, entry.name))
                else:
                    return self._new_folder(folder, entry.name, entry.stat())
                return None
            regular = entry.is_file()
            broken = entry.is_symlink() and not regular and not Path(entry.path).exists()
        except OSError as error:
            self.left_out.append(LeftOut(path, f"cannot be followed ({error.strerror})"))
            return None
        if broken:
            self.left_out.append(LeftOut(path, "a link to nothing; mend or remove it"))
        elif not regular:
            self.left_out.append(LeftOut(path, "a pipe, socket or device; remove it"))
        else:
            self._sort_file(folder, entry, path)
        return None

    def _new_folder(self, above: Folder, name: str, status: os.stat_result) -> Folder:
        hidden = above.hidden or name.startswith(".")
        folder = Folder(above.inner(name), (status.st_dev, status.st_ino), above, hidden)
        if folder.path.count("/") >= MOST_LEVELS:
            raise DataError(
                f"source.dataset: {self.root / folder.path} lies more than {MOST_LEVELS} folders "
                "deep; point source.dataset at the folder that holds the classes"
            )
        above.folders[name] = folder
        self._visited.setdefault(folder.identity, folder)
        return folder

    def _follow(self, above: Folder, name: str) -> None:
        path = above.inner(name)
        try:
            status = (self.root / path).stat()
        except OSError as error:
            self.left_out.append(LeftOut(path, f"cannot be followed ({error.strerror})"))
            return
        identity = (status.st_dev, status.st_ino)
        if any(identity == folder.identity for folder in above.holders()):
            reason = "a link to a folder that it lies in; remove it"
        elif identity in self._visited:
            where = self._visited[identity].path or "the source itself"
            reason = f"the same folder as {where}, which is read; remove one of them"
        else:
            self._go_through(self._new_folder(above, name, status))
            return
        self.left_out.append(LeftOut(f"{path}/", reason))

    def _sort_file(self, folder: Folder, entry: os.DirEntry[str], path: str) -> None:
        ending = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 (a Path costs 10 times that)
        row = self._view is not None and self._view.is_row(entry.name)
        if folder.hidden or entry.name.startswith("."):
            # AppleDouble files end as images do, and none of them is one
            own = row and not entry.name.startswith("._")
            if own or (self._view is None and identified(Path(entry.path))):
                reason = "hidden: its name, or a folder's, begins with a dot; rename or remove it"
                self.left_out.append(LeftOut(path, reason))
            else:
                self.other["hidden"] += 1
        elif entry.name in METADATA:
            self.metadata.append(path)
        elif row:
            self._add_image(folder, entry, path)
        elif ending in TABLES:
            self.tables.append(path)
        elif ending in ARCHIVES and not Slices.is_row(entry.name):
            self.left_out.append(LeftOut(path, "an archive; unpack it, and move it away"))
        elif self._view is not None:
            self.other[ending or "without an ending"] += 1
        elif ending in UNREAD:
            self.left_out.append(LeftOut(path, UNREAD[ending]))
        elif ending in raster_endings() or identified(Path(entry.path)):
            self._add_image(folder, entry, path)
        elif ending in PACKAGES:
            self.left_out.append(
                LeftOut(path, f"an image that needs the package {PACKAGES[ending]}; install it")
            )
        elif (mimetypes.guess_type(entry.name)[0] or "").startswith("image/"):
            reason = f"an image of the kind {ending}, which PIL does not read; convert it to PNG"
            self.left_out.append(LeftOut(path, reason))
        else:
            self.other[ending or "without an ending"] += 1

    def _add_image(self, folder: Folder, entry: os.DirEntry[str], path: str) -> None:
        folder.images.append(entry.name)
        if entry.is_symlink():
            self._links_to_files.append(path)

    def _leave_out_repeated_files(self) -> None:
        """A link to an image that is read by its own name is not a second image."""
        if not self._links_to_files:
            return
        links = set(self._links_to_files)
        originals = {
            os.path.realpath(self.root / path): path
            for path in self.top.all_images()
            if path not in links
        }
        repeated = dict[str, str]()
        for path in self._links_to_files:
            original = originals.get(os.path.realpath(self.root / path))
            if original is not None:
                repeated[path] = original
                reason = f"a link to {original}, which is read; remove it"
                self.left_out.append(LeftOut(path, reason))
        waiting = [self.top] if repeated else []
        while waiting:
            folder = waiting.pop()
            folder.images = [name for name in folder.images if folder.inner(name) not in repeated]
            waiting += folder.folders.values()

    def _prune(self) -> None:
        """Forget folders without images, and sort the others."""
        order, waiting = list[Folder](), [self.top]
        while waiting:
            folder = waiting.pop()
            order.append(folder)
            waiting += folder.folders.values()
        for folder in reversed(order):
            folder.folders = {
                name: inner
                for name, inner in sorted(folder.folders.items())
                if inner.images or inner.folders
            }
