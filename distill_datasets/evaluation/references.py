"""What references show: real images, drawn, chosen or averaged, of no more pixels than published.

From one image per class on they are as large as they are. Below that every class is shown all the
same: images are shrunk by the mean over areas to 8-bit pixels, and a student sees them enlarged
(bilinear). For zca it is the images themselves that are shrunk, not what whitening makes of them.

Shape suffixes: N images, B a batch, C channels, H W pixels, h w those of a shrunk image, K classes.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
from torch.nn import functional

from distill_datasets.data.normalization import Normalization, count_values
from distill_datasets.media.image import to_bytes
from distill_datasets.runtime.draws import Draw, draws
from distill_datasets.selection.coresets import ClassMean, Herding, KCenter, Measured, Nearest
from distill_datasets.selection.random import Real
from distill_datasets.training.examples import Stored

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.real import RealData
    from distill_datasets.models.backbones import Backbone
    from distill_datasets.types import Shape

MakeStored = Callable[[Draw], Stored]
"""The real images of one student, given its randomness."""

T = TypeVar("T")


class Chooses(Protocol):
    """What chooses images of every class: a selection, or one with the networks that it asks."""

    @property
    def name(self) -> str:
        """What it is called."""

    def images(self, real: RealData, per_class: int, rng: torch.Generator) -> Tensor:
        """Displayable images (K * per_class, C, H, W) of all classes in order."""


CHOSEN: tuple[Measured, ...] = (Herding(), KCenter(), Nearest(), ClassMean())
CENTERS = 2
"""Centers of a class for every image that the others show of it."""


@dataclass(frozen=True)
class Room:
    """How real images share the pixels.

    Attributes:
        images: how many there are.
        size: height and width of each.
        shrunk: whether the source's are larger.
    """

    images: int
    size: tuple[int, int]
    shrunk: bool

    @property
    def pixels(self) -> int:
        """Of all images."""
        return self.images * self.size[0] * self.size[1]


def room_for(shape: Shape, pixels: int, of_one: int = 1) -> Room:
    """As many images as fit; where they are fewer than classes, `of_one` smaller ones of each.

    Args:
        shape: of the source.
        pixels: to share; each class gets one even where there are fewer than classes.
        of_one: shrunk images in the place of one, also where whole ones fit.
    """
    whole = pixels // (shape.h * shape.w)
    if of_one == 1 and whole >= shape.k:
        return Room(whole, (shape.h, shape.w), shrunk=False)
    images = of_one * max(1, whole // shape.k) * shape.k
    # the largest size in the source's proportions
    heights = range(shape.h, 0, -1)
    sizes = [(height, max(1, round(height * shape.w / shape.h))) for height in heights]
    fitting = (size for size in sizes if images * size[0] * size[1] <= pixels)
    return Room(images, next(fitting, (1, 1)), shrunk=True)


def rooms_of(shape: Shape, pixels: int) -> dict[str, Room]:
    """The room of every reference that shows real images of no more pixels, by its row."""
    equal = room_for(shape, pixels)
    names = ("random_real", *(selection.name for selection in CHOSEN))
    return dict.fromkeys(names, equal) | {"k_means": room_for(shape, pixels, CENTERS)}


def stored_references(
    real: RealData, pixels: int, seed: int, space: Backbone | None = None
) -> dict[str, MakeStored]:
    """What students of references train on, by the row; nothing is selected before it is asked for.

    Args:
        real: the source.
        pixels: that no reference exceeds.
        seed: of the run.
        space: the backbone between whose features distances are; None: between pixels.
    """
    chosen = [selection.model_copy(update={"space": space}) for selection in CHOSEN]
    selections = {selection.name: selection for selection in chosen} | {"k_means": ClassMean()}
    made: dict[str, MakeStored] = {}
    for name, room in rooms_of(real.shape, pixels).items():
        if name == "random_real" and room.shrunk:
            made[name] = _Displayed(real).random(room)
        elif name == "random_real":
            made[name] = functools.partial(random_real, real, room.images)
        elif name == "k_means" and room.shrunk:
            draw = draws(seed, "evaluate", name)
            made[name] = _Displayed(real).chosen(room, selections[name], draw)
        else:
            made[name] = chosen_in(real, room, selections[name], seed)
    return made


def chosen_in(real: RealData, room: Room, choice: Chooses, seed: int) -> MakeStored:
    """What students train on of one choice of images, which is made once."""
    if room.shrunk:
        return _Displayed(real).chosen(room, choice, draws(seed, "evaluate", choice.name))
    return chosen_real(real, room.images, choice, seed)


def once(make: Callable[[], T]) -> Callable[[], T]:
    """What is made when the first of several threads asks for it."""
    one_at_a_time, kept = threading.Lock(), functools.cache(make)

    def made() -> T:
        with one_at_a_time:  # a cache alone would let them all work
            return kept()

    return made


def random_rows(real: RealData, images: int, draw: Draw) -> Tensor:
    """Random training rows, as evenly over the classes as their number allows."""
    rng = draw("random_real")
    order_N = torch.randperm(len(real.train.labels_N), generator=rng)
    labels_N = real.train.labels_N.cpu()[order_N]
    classes_K = torch.randperm(real.shape.k, generator=rng)
    # a stable sort: the rows of a class stand together, in the order in which they were drawn
    by_class_N = order_N[labels_N.sort(stable=True).indices]
    count_K = labels_N.bincount(minlength=real.shape.k)
    first_K = count_K.cumsum(0) - count_K
    turn_B = torch.arange(images)
    class_B = classes_K[turn_B % real.shape.k]
    return by_class_N[first_K[class_B] + turn_B // real.shape.k % count_K[class_B]]


def random_real(real: RealData, images: int, draw: Draw) -> Stored:
    """Random real images with hard labels, as evenly over the classes as the number allows."""
    device = real.train.labels_N.device
    images_BCHW, targets_BK = real.select(random_rows(real, images, draw).to(device))
    return Stored(images_BCHW, targets_BK, None, real.shape.task)


def chosen_real(real: RealData, images: int, selection: Chooses, seed: int) -> MakeStored:
    """Images of a selection with hard labels, as evenly over the classes as the number allows.

    The selection is made once. Every student draws for itself which classes have an image more
    than the others.
    """
    classes = real.shape.k
    one_at_a_time = threading.Lock()
    draw_selection = draws(seed, "evaluate", selection.name)

    @functools.cache
    def selected(per_class: int) -> Tensor:
        found_NCHW = selection.images(real, per_class, draw_selection("select", per_class))
        return found_NCHW.view(classes, per_class, *found_NCHW.shape[1:])

    def of_every_class(per_class: int) -> Tensor:
        with one_at_a_time:  # students ask side by side, and a cache would let them all work
            return selected(per_class)

    def examples(draw: Draw) -> Stored:
        each, more = divmod(images, classes)
        order_K = torch.randperm(classes, generator=draw("classes")).tolist()
        of_class = [each + (label in order_K[:more]) for label in range(classes)]
        chosen = [(label, count) for label, count in enumerate(of_class) if count]
        images_NCHW = torch.cat([of_every_class(count)[label] for label, count in chosen])
        labels_N = torch.tensor([label for label, count in chosen for _ in range(count)])
        targets_NK = functional.one_hot(labels_N, classes).float()
        stored = Stored(images_NCHW, targets_NK, real.normalization.input_space)
        return stored.to(real.train.labels_N.device)

    return examples


class _Displayed:
    """A source whose images are as they are displayed, whatever its students see."""

    def __init__(self, real: RealData) -> None:
        self.real = real
        self._source = once(self._as_displayed)

    def _as_displayed(self) -> RealData:
        if self.real.normalization.kind == "mean_std":
            return self.real
        images_NCHW = self.real.train.images_NCHW
        plain = Normalization.of_counts(count_values(images_NCHW), len(images_NCHW))
        plain = plain.to(self.real.train.labels_N.device)
        return dataclasses.replace(self.real, normalization=plain)

    def shrunk(self, selection: Chooses, room: Room, rng: torch.Generator) -> Stored:
        """As many selected images of every class, in order, as a student sees them."""
        classes = self.real.shape.k
        per_class = room.images // classes
        large_NCHW = selection.images(self._source(), per_class, rng)
        labels_N = torch.arange(classes).repeat_interleave(per_class)
        targets_NK = functional.one_hot(labels_N, classes).float()
        return self._seen(large_NCHW, targets_NK, room)

    def _seen(self, large_NCHW: Tensor, targets_NK: Tensor, room: Room) -> Stored:
        real, device = self.real, self.real.train.labels_N.device
        small_NChw = to_bytes(by_area(large_NCHW, room.size)).float()
        seen_NCHW = enlarged(small_NChw, (real.shape.h, real.shape.w))
        seen_NCHW = real.normalization.apply(seen_NCHW.to(device))
        return Stored(seen_NCHW, targets_NK.to(device), None, real.shape.task)

    def random(self, room: Room) -> MakeStored:
        """Random images of every class, shrunk; others for every student."""
        if self.real.shape.task == "classes":
            return lambda draw: self.shrunk(Real(), room, draw("random_real"))

        def with_own_targets(draw: Draw) -> Stored:
            rows_N = random_rows(self.real, room.images, draw)
            targets_NK = self.real.select(rows_N.to(self.real.train.labels_N.device)).targets_BK
            return self._seen(self._source().displayable(rows_N), targets_NK, room)

        return with_own_targets

    def chosen(self, room: Room, selection: Chooses, draw: Draw) -> MakeStored:
        """Images of a selection, which is made once, shrunk."""
        per_class = room.images // self.real.shape.k
        selected = once(lambda: self.shrunk(selection, room, draw("select", per_class)))
        return lambda _: selected()


def by_area(images_NCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Images shrunk to (N, C, h, w): every pixel is the mean of the area that it covers.

    `interpolate` of mode area takes whole pixels even where a part of them is covered.
    """
    down_hH, right_wW = (
        _covered(large, small) for large, small in zip(images_NCHW.shape[2:], size, strict=True)
    )
    return down_hH.to(images_NCHW) @ images_NCHW @ right_wW.to(images_NCHW).T


def _covered(large: int, small: int) -> Tensor:
    """The share of each of `large` pixels in each of `small`, (small, large); rows sum to 1."""
    start_S1 = torch.arange(small, dtype=torch.float64)[:, None] * large / small
    place_L = torch.arange(large, dtype=torch.float64)
    ends = torch.minimum(start_S1 + large / small, place_L + 1)
    return (ends - torch.maximum(start_S1, place_L)).clamp(min=0) * small / large


def enlarged(images_NChw: Tensor, size: tuple[int, int]) -> Tensor:
    """Images enlarged to a student's input, bilinear, as `align_corners=False` has it."""
    return functional.interpolate(images_NChw, size, mode="bilinear", align_corners=False)
