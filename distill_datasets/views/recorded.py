"""Views of images: drawn, recorded, and rendered again bit for bit.

A record says all of its view by itself: crop, flip, and the second view that is mixed in with its
own crop and flip. No label therefore depends on the batch, the order or the seed of a reader.

Rendering is made of gathers and of single additions and multiplications, which are rounded in one
way only: a view has the same bits in every batch and with any number of threads.

Shape suffixes: N images, B views, M mixed views, C channels, H W pixels, S places along a side,
T strips of tiles.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from distill_datasets.data.normalization import InputSpace
from distill_datasets.runtime.draws import Draw
from distill_datasets.views.crops import enlarged, random_crops
from distill_datasets.views.relabel import ViewSettings

if TYPE_CHECKING:
    from torch import Tensor


class Views(NamedTuple):
    """Records of B views, each as large as its image.

    First the tiles change places, then the crop is enlarged to the whole image (bilinear, black
    beyond the image), then it is mirrored. At last the second view is mixed in: it takes the first
    one's place inside of the box, and has the share `1 - share` everywhere.
    """

    image_B: Tensor
    """int32: place of the image."""
    crop_B4: Tensor
    """float32: top, left, height and width, as shares of the image's height and width."""
    flip_B: Tensor
    """bool: mirrored left and right."""
    partner_B: Tensor
    """Image, crop and flip of the view mixed in; the own ones where nothing is."""
    partner_crop_B4: Tensor
    partner_flip_B: Tensor
    box_B4: Tensor
    """int32: top, left, bottom and right of CutMix in pixels; empty where it mixes nothing."""
    share_B: Tensor
    """float32: share of the own view in MixUp; 1 where it mixes nothing."""
    group_B: Tensor
    """int32: views of an epoch with the same number shared BatchNorm statistics; -1: none did."""
    tiles_BT: Tensor | None = None
    """int32 (B, 2 * tiles): which row of tiles stands where, top to bottom, then which column,
    left to right; None where none is moved."""
    partner_tiles_BT: Tensor | None = None

    def at(self, rows: Tensor | slice) -> Views:
        """The records of some rows."""
        return Views._make(None if column is None else column[rows] for column in self)

    def to(self, device: torch.device) -> Views:
        """The same on a device."""
        return Views._make(None if column is None else column.to(device) for column in self)

    def columns(self) -> dict[str, Tensor]:
        """The records as named arrays, one row per view; what is None is left out."""
        fields = self._asdict().items()
        return {_column(field): values for field, values in fields if values is not None}


def _column(field: str) -> str:
    """The name of a field without its shape."""
    return field.rpartition("_")[0]


COLUMNS = [_column(field) for field in Views._fields]
"""Names of the arrays of records, in order."""


def views_of(columns: Mapping[str, Tensor]) -> Views:
    """Records from their named arrays; other arrays are left alone."""
    return Views._make(columns.get(name) for name in COLUMNS)


def concatenated(parts: Sequence[Views]) -> Views:
    """Records one after the other; all with tiles or all without."""
    return Views._make(
        None if columns[0] is None else torch.cat(columns) for columns in zip(*parts, strict=True)
    )


def draw_views(
    settings: ViewSettings,
    epoch: int,
    count: int,
    size: tuple[int, int],
    draw: Draw,
    norm_groups: int = 0,
) -> Views:
    """One view of each of `count` images, in the order of the epoch's batches.

    Args:
        settings: what is drawn.
        epoch: which epoch; each has draws of its own.
        count: number of images.
        size: their height and width, in pixels.
        draw: randomness of the stage.
        norm_groups: parts of a batch with BatchNorm statistics of their own; 0: none has any.

    Source: FKD (arXiv:2112.01528), mixed by the batch as in SRe2L (arXiv:2306.13092); tiles of RDED
        (arXiv:2312.03526).
    """
    rng = draw("views", epoch)
    image_N = torch.randperm(count, generator=rng).int()
    if settings.crop is None:
        crop_N4 = _shifts(settings.pad, count, size, rng)
    else:
        crop_N4 = random_crops(settings.crop, count, size, rng)
    crop_N4 = (crop_N4 / torch.tensor([*size, *size])).float()
    flip_N = torch.rand(count, generator=rng) < (0.5 if settings.flip else 0.0)
    tiles_NT = None if settings.tiles == 1 else _shuffles(settings.tiles, count, rng)
    partner_N = torch.arange(count)
    box_N4 = torch.zeros(count, 4, dtype=torch.int32)
    share_N = torch.ones(count)
    group_N = torch.full((count,), -1, dtype=torch.int32)
    groups = 0
    for start, stop in settings.batches(count):
        here = slice(start, stop)
        if settings.mix != "none":
            partner_N[here] = start + torch.randperm(stop - start, generator=rng)
            own = _beta(settings.mix_alpha, rng)
            if settings.mix == "mixup":
                share_N[here] = own
            else:
                box_N4[here] = _box(own, size, rng)
        if norm_groups:
            # a group has at least two views: one alone has no variance
            parts = max(1, min(norm_groups, (stop - start) // 2))
            for part_G in torch.tensor_split(group_N[here], parts):
                part_G.fill_(groups)
                groups += 1
    return Views(
        image_N,
        crop_N4,
        flip_N,
        image_N[partner_N],
        crop_N4[partner_N],
        flip_N[partner_N],
        box_N4,
        share_N,
        group_N,
        tiles_NT,
        None if tiles_NT is None else tiles_NT[partner_N],
    )


def replay(images_NCHW: Tensor, views: Views, space: InputSpace) -> Tensor:
    """Render recorded views on the device of the images.

    Args:
        images_NCHW: uint8, contiguous; may be memory-mapped: only what is needed is read.
        views: what to render; on any device.
        space: what the students see.

    Returns:
        (B, C, H, W) float32 in the student's input space; every view has the same bits whatever it
        is rendered together with.
    """
    views = views.to(images_NCHW.device)
    pixels_BCHW = _rendered(images_NCHW, views.image_B, views.crop_B4, views.flip_B, views.tiles_BT)
    top_B, left_B, bottom_B, right_B = views.box_B4.unbind(1)
    mixed_B = ((bottom_B > top_B) & (right_B > left_B)) | (views.share_B < 1)
    mixed_M = torch.nonzero(mixed_B).flatten()
    if len(mixed_M):
        some = views.at(mixed_M)
        partner_MCHW = _rendered(
            images_NCHW,
            some.partner_B,
            some.partner_crop_B4,
            some.partner_flip_B,
            some.partner_tiles_BT,
        )
        if len(mixed_M) == len(pixels_BCHW):
            pixels_BCHW = _blended(pixels_BCHW, partner_MCHW, some)
        else:
            pixels_BCHW[mixed_M] = _blended(pixels_BCHW[mixed_M], partner_MCHW, some)
    pixels_BCHW /= 255
    # space.to_student in place: a batch of views is large
    pixels_BCHW -= space.mean_C.to(pixels_BCHW)[:, None, None]
    pixels_BCHW /= space.std_C.to(pixels_BCHW)[:, None, None]
    return pixels_BCHW


def _shifts(pad: int, count: int, size: tuple[int, int], rng: torch.Generator) -> Tensor:
    """Whole images moved by up to `pad` pixels along each side, (N, 4) float64."""
    corner_N2 = torch.randint(-pad, pad + 1, (count, 2), generator=rng)
    return torch.cat([corner_N2, torch.tensor(size).expand(count, 2)], dim=1).double()


def _shuffles(tiles: int, count: int, rng: torch.Generator) -> Tensor:
    """A random order of the rows of tiles and one of the columns, (N, 2 * tiles) int32."""
    return torch.rand(count, 2, tiles, generator=rng).argsort(dim=2).flatten(1).int()


def _beta(alpha: float, rng: torch.Generator) -> float:
    """One draw of Beta(alpha, alpha)."""
    seed = int(torch.randint(2**62, (), generator=rng))
    return float(np.random.default_rng(seed).beta(alpha, alpha))


def _box(own: float, size: tuple[int, int], rng: torch.Generator) -> Tensor:
    """A box of the area `1 - own` about a random center, cut off at the edges (CutMix)."""
    # both sides times sqrt(1 - own): arXiv:1905.04899, equation 2. What is cut off makes the own
    # share of the view larger than `own`; labels go by the box, not by `own`.
    edges = list[int]()
    for side in size:
        length = int(side * math.sqrt(1 - own))
        start = int(torch.randint(side, (), generator=rng)) - length // 2
        edges += [max(0, start), min(side, start + length)]
    top, bottom, left, right = edges
    return torch.tensor([top, left, bottom, right], dtype=torch.int32)


def _rendered(
    images_NCHW: Tensor,
    image_B: Tensor,
    crop_B4: Tensor,
    flip_B: Tensor,
    tiles_BT: Tensor | None,
) -> Tensor:
    """Views before mixing, (B, C, H, W) float32 in [0, 255]."""
    channels, height, width = images_NCHW.shape[1:]
    rows_BT, columns_BT = (None, None) if tiles_BT is None else tiles_BT.chunk(2, dim=1)
    top_B, left_B, high_B, wide_B = crop_B4.unbind(1)
    # Bilinear: first between rows, then between columns. A row lies in one piece in memory, so the
    # rows that are needed are read first: line (n C + c) H + y is row y of channel c of image n.
    lines = images_NCHW.view(-1, width)
    plane_C = torch.arange(channels, device=image_B.device)
    first_BC1 = ((image_B.long() * channels)[:, None] + plane_C)[:, :, None] * height

    def row(place_BS: Tensor, weight_BS: Tensor) -> Tensor:
        line_BCS = first_BC1 + place_BS[:, None]
        picked_BCSW = lines.index_select(0, line_BCS.flatten()).view(*line_BCS.shape, width)
        return picked_BCSW.float().mul_(weight_BS[:, None, :, None])

    near, far = _places(top_B, high_B, torch.zeros_like(flip_B), rows_BT, height)
    high_BCHW = row(*near).add_(row(*far))

    def column(place_BS: Tensor, weight_BS: Tensor) -> Tensor:
        place_BCHW = place_BS[:, None, None].expand(-1, channels, height, -1)
        return high_BCHW.gather(3, place_BCHW).mul_(weight_BS[:, None, None])

    near, far = _places(left_B, wide_B, flip_B, columns_BT, width)
    return column(*near).add_(column(*far))


def _places(
    start_B: Tensor, length_B: Tensor, flip_B: Tensor, strips_BT: Tensor | None, side: int
) -> list[tuple[Tensor, Tensor]]:
    """For every place along a side the two pixels it lies between, each with its weight.

    It is followed backwards: out of the mirror, into the crop, into the tiles.
    """
    # crops are whole pixels; their shares, times the side, are found again exactly by rounding
    start_B1, length_B1 = ((share * side).round()[:, None] for share in (start_B, length_B))
    to_S = torch.arange(side, device=start_B.device, dtype=torch.float32)
    near_BS, far_BS, part_BS = enlarged(to_S, length_B1, side)
    pairs = list[tuple[torch.Tensor, torch.Tensor]]()
    for place_BS, weight_BS in ((near_BS, 1 - part_BS), (far_BS, part_BS)):
        place_BS = (start_B1 + place_BS).long()
        # beyond the image it is black: a weight of zero on any pixel
        weight_BS = weight_BS * ((place_BS >= 0) & (place_BS < side))
        place_BS = place_BS.clamp(0, side - 1)
        if strips_BT is not None:
            # strip t of the shuffled image is strip strips[t] of the image
            strip = side // strips_BT.shape[1]
            moved_BS = strips_BT.long().gather(1, place_BS // strip)
            place_BS = moved_BS * strip + place_BS % strip
        place_BS = torch.where(flip_B[:, None], place_BS.flip(1), place_BS)
        weight_BS = torch.where(flip_B[:, None], weight_BS.flip(1), weight_BS)
        pairs.append((place_BS, weight_BS))
    return pairs


def _blended(own_MCHW: Tensor, partner_MCHW: Tensor, views: Views) -> Tensor:
    """Both views in one: the partner inside of the box, and by its share everywhere."""
    # s (own outside of the box, partner inside) + (1 - s) partner; CutMix has s = 1, and MixUp an
    # empty box
    height, width = own_MCHW.shape[2:]
    row_H1 = torch.arange(height, device=own_MCHW.device)[:, None]
    column_W = torch.arange(width, device=own_MCHW.device)
    top_M11, left_M11, bottom_M11, right_M11 = views.box_B4[:, :, None, None].unbind(1)
    inside_MHW = (row_H1 >= top_M11) & (row_H1 < bottom_M11)
    inside_MHW = inside_MHW & (column_W >= left_M11) & (column_W < right_M11)
    mixed_MCHW = torch.where(inside_MHW[:, None], partner_MCHW, own_MCHW)
    share_M111 = views.share_B[:, None, None, None]
    if bool((share_M111 == 1).all()):  # 1 x + 0 y is x, bit for bit
        return mixed_MCHW
    return mixed_MCHW.mul_(share_M111).add_(partner_MCHW.mul_(1 - share_M111))
