"""Initial images of blocks, made class by class, by whoever needs them.

A selection that only draws is asked again for every block. One that works something out (RDED,
herding) is asked once per class: its 8-bit images lie in a file that appears when it is whole, so a
run that was killed skips it, and so does every other process.

Shape suffixes: N distilled examples, B a block, C channels, H W pixels.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from distill_datasets.artifacts import open_rows, sha256_tensors, write_rows
from distill_datasets.data.source import RealData
from distill_datasets.pictures import to_bytes
from distill_datasets.progress import progress_bar
from distill_datasets.runtime import Runtime, rng_for
from distill_datasets.types import Selection, Teacher


class InitialImages:
    """What a selection gives for any places of the class-major distilled set."""

    def __init__(
        self,
        selection: Selection,
        real: RealData,
        per_class: int,
        seed: int,
        teacher: Teacher | None,
    ) -> None:
        self._selection = selection
        self._real = real
        self._per_class = per_class
        self._seed = seed
        self._teacher = teacher
        self._all_NCHW: Tensor | None = None
        if selection.outside:
            rng = rng_for(seed, "initial")
            self._all_NCHW = selection.images(real, per_class, rng, teacher)

    def identity(self) -> list[str]:
        """What decides them beside the recipe, the source and the squeezed networks."""
        return [] if self._all_NCHW is None else [sha256_tensors([self._all_NCHW])]

    def prepare(self, folder: Path, labels: Iterable[int], runtime: Runtime, quiet: bool) -> None:
        """Work out the classes that no process has worked out, this process's own ones first.

        Waits for nobody: a class that two processes find missing is made twice, to the same bits.
        The threads that a class gets depend on the number of classes alone.
        """
        if self._selection.effort != "file" or self._all_NCHW is not None:
            return
        classes = self._real.shape.k
        own = set(runtime.mine(classes))
        missing = [label for label in labels if not self._file(folder, label).exists()]
        order = sorted(missing, key=lambda label: (label not in own, label))

        def make(label: int) -> None:
            path = self._file(folder, label)
            if not path.exists():
                made_BCHW = to_bytes(self._of_class(label))
                write_rows(path, tuple(made_BCHW.shape), [made_BCHW])
            bar.advance(1)

        shown = runtime.is_main and not quiet and bool(order)
        with (
            progress_bar("initial images", len(order), shown=shown) as bar,
            runtime.pool(classes) as run_units,
        ):
            run_units(make, order)

    def at(self, folder: Path, places: Iterable[int]) -> Tensor:
        """The images at these places, (B, C, H, W) in [0, 1] on the CPU, once prepared."""
        if self._all_NCHW is not None:
            return self._all_NCHW[list(places)]
        turns: dict[int, list[int]] = {}
        order = [divmod(place, self._per_class) for place in places]
        for label, turn in order:
            turns.setdefault(label, []).append(turn)
        found = {
            (label, turn): image_CHW
            for label, own in turns.items()
            for turn, image_CHW in zip(own, self._some(folder, label, own), strict=True)
        }
        return torch.stack([found[where] for where in order])

    def _some(self, folder: Path, label: int, turns: list[int]) -> list[Tensor]:
        """Images of one class."""
        if self._selection.effort == "image":
            return [
                self._selection.of_class(
                    self._real, label, 1, rng_for(self._seed, "initial", label, turn)
                )[0]
                for turn in turns
            ]
        if self._selection.effort == "class":
            return list(self._of_class(label)[turns])
        return list(open_rows(self._file(folder, label))[turns].float() / 255)

    def _of_class(self, label: int) -> Tensor:
        rng = rng_for(self._seed, "initial", label)
        return self._selection.of_class(self._real, label, self._per_class, rng, self._teacher)

    def _file(self, folder: Path, label: int) -> Path:
        return folder / "initial" / f"class-{label:05d}.npy"
