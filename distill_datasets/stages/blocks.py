"""The stage that distills block by block: what separable objectives have instead of lanes.

A block is solved by the one outer loop in a process that is alone for that long, and appears as one
file of 8-bit images when it is done. Blocks are dealt to processes and found ones are skipped, so a
run may be killed at any time and taken up by any number of processes. At last all blocks are put
together, class by class, into one file that is mapped into memory and never held there whole.

Initial images are made class by class, by whoever needs them. A selection that only draws is asked
again for every block. One that works something out (RDED, herding) is asked once per class: its
8-bit images lie in a file that appears when it is whole, so a run that was killed skips it, and so
does every other process.

Shape suffixes: N distilled examples, B a block, C channels, H W pixels, K classes.
"""

import logging
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from distill_datasets.canvases.canvas import Alone
from distill_datasets.data.real import RealData
from distill_datasets.distilled import Distilled, DistilledImages
from distill_datasets.errors import ArtifactError
from distill_datasets.files.artifacts import (
    done,
    fingerprint,
    holds_rows,
    holds_tensors,
    intact,
    mark_done,
    open_rows,
    read_note,
    read_record,
    sha256_tensors,
    write_record,
    write_rows,
    write_tensors,
)
from distill_datasets.media.image import to_bytes
from distill_datasets.networks.network import NetworkSource, Teachers
from distill_datasets.objectives.objective import Block
from distill_datasets.runtime.draws import rng_for
from distill_datasets.runtime.processes import Run
from distill_datasets.runtime.progress import Bar, progress_bar
from distill_datasets.selection.selection import Selection, Teacher
from distill_datasets.stages.distill import STATE, Distill, OuterLoop, draw_pictures
from distill_datasets.stages.source import LoadedSource
from distill_datasets.stages.squeeze import SqueezedFolder
from distill_datasets.types import Shape


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

    def prepare(self, folder: Path, labels: Iterable[int], run: Run) -> None:
        """Work out the classes that no process has worked out, this process's own ones first.

        Waits for nobody: a class that two processes find missing is made twice, to the same bits.
        The threads that a class gets depend on the number of classes alone.
        """
        if self._selection.effort != "file" or self._all_NCHW is not None:
            return
        classes = self._real.shape.k
        own = set(run.runtime.mine(classes))
        missing = [label for label in labels if not holds_rows(self._file(folder, label))]
        order = sorted(missing, key=lambda label: (label not in own, label))

        def make(label: int) -> None:
            path = self._file(folder, label)
            if not path.exists():
                made_BCHW = to_bytes(self._of_class(label))
                write_rows(path, tuple(made_BCHW.shape), [made_BCHW])
            bar.advance(1)

        shown = run.runtime.is_main and run.shown and bool(order)
        with (
            progress_bar("initial images", len(order), shown=shown) as bar,
            run.runtime.pool(classes) as run_units,
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


logger = logging.getLogger("distill_datasets")


VERSION = 1


ROWS_AT_ONCE = 4096


SHEET = 400
"""Images on the contact sheet of the finished set."""


class BlockBar:
    """A block's part of the stage's bar, which counts images moved by a step, from any thread."""

    def __init__(self, bar: Bar, images: int, lock: threading.Lock) -> None:
        self._bar, self._images, self._lock = bar, images, lock

    def advance(self, steps: int, **numbers: float) -> None:
        with self._lock:
            self._bar.advance(steps * self._images, **numbers)

    def expect(self, total: int) -> None:
        """The stage knows how many there are."""


class BlockSolver:
    """Solves blocks in any number of threads; where one fails, the others stop."""

    def __init__(
        self,
        settings: Distill,
        real: RealData,
        run: Run,
        folder: Path,
        initial: InitialImages,
        networks: NetworkSource | Teachers,
        bar: Bar,
    ) -> None:
        self._settings, self._real, self._run, self._folder = settings, real, run, folder
        self._initial, self._networks, self._bar = initial, networks, bar
        self._alone = alone_of(settings)
        # of the bar, the trackers and the headers of files
        self._lock = threading.Lock()
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Let no block begin, and end those that are being solved at their next step."""
        self._stopping.set()

    def solve(self, number: int, block: Block) -> None:
        """Solve a block and write its 8-bit images, unless the solver is stopped before."""
        if self._stopping.is_set():
            return
        ended = False
        try:
            self._solve(number, block)
            ended = True
        finally:
            if not ended:
                self.stop()

    def _solve(self, number: int, block: Block) -> None:
        run, settings = self._run, self._settings
        if run.runtime.device.type == "cpu":
            # values that no pixel shows slow a CPU down fourfold; of this thread, which the pool
            # ends, and of those that it starts
            torch.set_flush_denormal(True)
        classes_B = torch.tensor(block.places_N) // self._alone.per_class
        with self._lock:  # NumPy parses a header, which CPython 3.11 cannot do in two threads
            initial_BCHW = self._initial.at(self._folder, block.places_N)
        distilled = self._distilled(initial_BCHW, classes_B)

        def preview(step: int) -> None:
            if number == 0:
                path = self._folder / "previews" / f"step-{step:07d}.png"
                draw_pictures(path, distilled.preview())

        bar = BlockBar(self._bar, len(block.places_N), self._lock)
        loop = OuterLoop(
            settings,
            distilled,
            self._networks,
            self._real,
            seed=rng_for(run.seed, "block", number).initial_seed(),
            folder=_state(self._folder, number),
            runtime=run.runtime.alone(),
            bar=bar,
            preview=preview,
            saves_end=False,
        )
        if not loop.run(self._stopping.is_set):
            logger.info("distill: block %d stops before its last step", number)
            return
        saved_BCHW = torch.stack([to_bytes(image) for image in distilled.stored()]).cpu()
        shown = self._distilled(saved_BCHW.float() / 255, classes_B)
        facts = settings.objective.facts(shown, self._networks)
        write_tensors(_file(self._folder, number), {"images": saved_BCHW}, facts)
        _state(self._folder, number).joinpath(STATE).unlink(missing_ok=True)
        if settings.steps == 0:
            bar.advance(1)
        with self._lock:
            run.runtime.log({f"distill/block/{name}": facts[name] for name in facts}, number)

    def _distilled(self, pixels_BCHW: Tensor, classes_B: Tensor) -> Distilled:
        """Images of these classes on the device, as the canvas and the labels start from them."""
        images = self._alone.start(pixels_BCHW, classes_B)
        targets = self._settings.labels.start(images.cells, self._real.shape.k)
        space, device = self._real.normalization.input_space, self._run.runtime.device
        return Distilled(self._settings.canvas, self._settings.labels, space, images, targets).to(
            device
        )


def alone_of(settings: Distill) -> Alone:
    """How the images of a separable recipe begin."""
    alone = settings.canvas.alone()
    assert alone is not None, "the recipe was checked"
    return alone


def run_blocks(
    settings: Distill,
    source: LoadedSource,
    run: Run,
    *,
    squeezed: SqueezedFolder | None = None,
) -> DistilledImages:
    """Distill with a separable objective, or take up where an earlier run stopped.

    Args:
        settings: the `distill` section; its steps and optimizer are those of a block.
        source: what is distilled.
        run: seed, folder, processes and device.
        squeezed: the networks of the squeeze stage, when the recipe has one.

    Returns:
        The 8-bit images, mapped from `images.npy` of the stage's folder.

    Raises:
        RecipeError: the objective does not fit the source or the networks.
        DistillError: the loss of a block is not finite.
    """
    alone, real = alone_of(settings), source.real
    blocks = settings.objective.blocks(real.shape.k, alone.per_class)
    teacher = None
    if settings.canvas.needs_squeezed and squeezed is not None:
        teacher = squeezed.on(run.runtime.device)
    initial = InitialImages(alone.init, real, alone.per_class, run.seed, teacher)
    deciding = settings.model_dump(mode="json", exclude={"previews", "checkpoint_seconds"})
    identity = [VERSION, "blocks", deciding, source.fingerprint, run.seed, *initial.identity()]
    if squeezed is not None:
        identity.append(squeezed.fingerprint)
    if real.generator is not None:
        identity.append(real.generator.fingerprint)
    folder = run.folder / f"distill-{fingerprint(identity)}"
    facts, images = folder / "blocks.json", folder / "images.npy"
    whole = [done(folder) is not None, holds_rows(images), intact(facts, read_record) is not None]
    if not all(whole):
        _solve_mine(settings, real, run, blocks, initial, folder, squeezed)
        run.runtime.wait()
        if run.runtime.is_main:
            _gather(folder, blocks, real.shape)
        run.runtime.wait()
    return DistilledImages(
        open_rows(images),
        torch.arange(real.shape.k).repeat_interleave(alone.per_class),
        folder,
        read_record(facts)["blocks"],
    )


def _solve_mine(
    settings: Distill,
    real: RealData,
    run: Run,
    blocks: list[Block],
    initial: InitialImages,
    folder: Path,
    squeezed: SqueezedFolder | None,
) -> None:
    """Solve this process's blocks, without a word to any other process."""
    mine = run.runtime.mine(len(blocks))
    left = [number for number in mine if not holds_tensors(_file(folder, number))]
    if len(left) < len(mine):
        logger.info("distill: %d of %d blocks are there", len(mine) - len(left), len(mine))
    for number in set(mine) - set(left):
        _state(folder, number).joinpath(STATE).unlink(missing_ok=True)
    per_class = alone_of(settings).per_class
    labels = sorted({place // per_class for number in left for place in blocks[number].places_N})
    initial.prepare(folder, labels, run)
    if not left:
        return
    networks = settings.networks.build(real.shape, run.runtime.device, squeezed)
    images = sum(len(blocks[number].places_N) for number in left)
    with (
        run.bar("distill", max(1, settings.steps) * images) as bar,
        run.runtime.pool(len(blocks)) as run_units,
    ):
        solver = BlockSolver(settings, real, run, folder, initial, networks, bar)
        try:
            run_units(lambda number: solver.solve(number, blocks[number]), left)
        finally:
            solver.stop()  # an interrupted run waits for its threads


def _gather(folder: Path, blocks: list[Block], shape: Shape) -> None:
    """Put the blocks together in the order of the classes, and what is known of them."""
    total = sum(len(block.places_N) for block in blocks)
    size = (total, shape.c, shape.h, shape.w)
    write_rows(folder / "images.npy", size, _in_order(folder, blocks, total))
    facts = [read_note(_file(folder, number)) for number in range(len(blocks))]
    write_record(folder / "blocks.json", {"blocks": facts})
    images_NCHW = open_rows(folder / "images.npy")
    spaced = torch.linspace(0, total - 1, min(total, SHEET)).round().long()
    draw_pictures(folder / "previews" / "images.png", list(images_NCHW[spaced].float() / 255))
    for name in facts[0] if facts else []:
        mean = sum(fact[name] for fact in facts) / len(facts)
        logger.info("distill: mean %s of the blocks' images %.4g", name, mean)
    mark_done(folder, {"blocks": len(blocks), "images": total, "torch": torch.__version__})


def _in_order(folder: Path, blocks: list[Block], total: int) -> Iterator[Tensor]:
    """The images of all blocks in the order of their places, some thousand at a time."""
    block_N, row_N = torch.empty(total, dtype=torch.long), torch.empty(total, dtype=torch.long)
    for number, block in enumerate(blocks):
        places_B = torch.tensor(block.places_N)
        block_N[places_B] = number
        row_N[places_B] = torch.arange(len(places_B))
    chunks = (torch.split(column_N, ROWS_AT_ONCE) for column_N in (block_N, row_N))
    for block_n, row_n in zip(*chunks, strict=True):
        rows: Tensor | None = None
        for number in block_n.unique().tolist():
            here = (block_n == number).nonzero().flatten()
            found = _rows(_file(folder, number), row_n[here])
            if rows is None:
                rows = torch.empty(len(block_n), *found.shape[1:], dtype=torch.uint8)
            rows[here] = found
        assert rows is not None
        yield rows


def _rows(path: Path, row_B: Tensor) -> Tensor:
    """Some images of a block, read without the rest where they lie together."""
    first, last = int(row_B.min()), int(row_B.max())
    with _opened(path) as file:
        together: Tensor = file.get_slice("images")[first : last + 1]
        return together[row_B - first]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (FileNotFoundError, SafetensorError) as error:
        raise ArtifactError(
            f"{path}: cannot read this block ({error}); move the file away and run again, it is "
            "then solved again"
        ) from error


def _file(folder: Path, number: int) -> Path:
    return folder / f"block-{number:05d}.safetensors"


def _state(folder: Path, number: int) -> Path:
    """Where a block that is being solved keeps its state."""
    return folder / "solving" / f"block-{number:05d}"
