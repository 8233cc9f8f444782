"""Differentiable augmentation: the images of a batch are moved by small random motions.

All randomness comes from the generator that is passed in, so a draw can be replayed exactly.

Shape suffixes: B images of a batch, C channels, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from distill_datasets.config import Section
from distill_datasets.runtime.memory import to_device
from distill_datasets.views.crops import Aspect, SmallestArea, crop_sides

if TYPE_CHECKING:
    from torch import Tensor

Operation = Literal["flip", "rotate", "shift", "scale", "resized_crop", "color", "crop", "cutout"]
Uniform = Callable[[float, float], "Tensor"]
"""Draws one number per image, or one for all."""
WARPS = {"rotate", "shift", "scale", "resized_crop"}


def _whole(pixels: float) -> int:
    """The nearest number of whole pixels; halves are rounded up, as in DSA's program."""
    return int(pixels + 0.5)


class Augment(Section):
    """Random motions of a batch; `flip_rotate` of RaT-BPTT is `[flip, rotate]` with choose one.

    The strategy of DSA is `[color, crop, cutout, flip, scale, rotate]` with choose one, without
    flip for digits.
    """

    operations: list[Operation] = Field(
        default=[], description="what may be drawn; no operation leaves the images alone"
    )
    choose: Literal["one", "all"] = Field(
        default="one", description="one operation for the whole batch (RaT-BPTT), or all at once"
    )
    rotate_degrees: float = Field(default=15.0, gt=0, le=180, description="largest angle")
    shift_fraction: float = Field(
        default=0.125, gt=0, lt=1, description="largest shift, as a share of the side"
    )
    scale_factor: float = Field(
        default=1.2, gt=1, description="each side is stretched by a factor between 1 / it and it"
    )
    crop_area: SmallestArea = 0.08
    crop_aspect: Aspect = 4 / 3
    brightness: float = Field(default=1.0, gt=0, description="width of the range added by color")
    saturation: float = Field(
        default=2.0, gt=0, description="largest factor on a pixel's distance from its gray"
    )
    contrast: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="factors on the distance from the image's mean, 1 +- it",
    )
    crop_fraction: float = Field(
        default=0.125,
        gt=0,
        lt=1,
        description="largest shift of crop, by whole pixels, as a share of the side",
    )
    cutout_fraction: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="side of the square that cutout blanks, as a share of the image's",
    )

    def __call__(
        self, images_BCHW: Tensor, rng: torch.Generator, *, shared: bool = False
    ) -> Tensor:
        """Move every image by its own draw, or all of them by one.

        Pixels that come from outside are zero, the mean of the student's input space.

        Args:
            images_BCHW: images in the student's input space.
            rng: a generator on the CPU; decides everything.
            shared: one draw for all images: equal generators then move real and distilled images
                alike, however many there are (siamese augmentation of DSA).

        Returns:
            Images of the same shape; differentiable in `images_BCHW`.

        Source: RaT-BPTT (arXiv:2311.07025), the authors' `flip_rotate`; DSA (arXiv:2102.08259).
        """
        chosen = list(self.operations)
        if chosen and self.choose == "one":
            chosen = [chosen[int(torch.randint(len(chosen), (), generator=rng))]]
        count = 1 if shared else len(images_BCHW)

        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(count, generator=rng, dtype=torch.float64)

        if "color" in chosen:
            images_BCHW = self._color(images_BCHW, uniform)
        if "crop" in chosen:
            images_BCHW = self._crop(images_BCHW, uniform)
        if "cutout" in chosen:
            images_BCHW = self._cutout(images_BCHW, uniform)
        if "flip" in chosen:
            flipped_B = to_device(torch.rand(count, generator=rng) < 0.5, images_BCHW.device)
            images_BCHW = torch.where(
                flipped_B[:, None, None, None], images_BCHW.flip(-1), images_BCHW
            )
        if WARPS & set(chosen):
            images_BCHW = self._warp(images_BCHW, chosen, uniform)
        return images_BCHW

    def _color(self, images_BCHW: Tensor, uniform: Uniform) -> Tensor:
        """Brightness, then saturation, then contrast."""

        def each(values_B: Tensor) -> Tensor:
            return to_device(values_B, images_BCHW.device, images_BCHW.dtype)[:, None, None, None]

        images_BCHW = images_BCHW + each(uniform(-self.brightness / 2, self.brightness / 2))
        gray_B1HW = images_BCHW.mean(dim=1, keepdim=True)
        images_BCHW = gray_B1HW + (images_BCHW - gray_B1HW) * each(uniform(0, self.saturation))
        mean_B = images_BCHW.mean(dim=(1, 2, 3), keepdim=True)
        return mean_B + (images_BCHW - mean_B) * each(uniform(1 - self.contrast, 1 + self.contrast))

    def _crop(self, images_BCHW: Tensor, uniform: Uniform) -> Tensor:
        """A shift by whole pixels, every one within reach as likely."""
        sides = images_BCHW.shape[-2:]
        for dim, side in zip((-2, -1), sides, strict=True):
            reach = _whole(self.crop_fraction * side)
            # the bound is for draws that rounding carries up to the end of the range
            shift_B1 = uniform(-reach, reach + 1).floor().clamp(max=reach).long()[:, None]
            from_BS = torch.arange(side) + shift_B1
            inside_BS = (from_BS >= 0) & (from_BS < side)
            shape = [len(from_BS), 1, 1, 1]
            shape[dim] = side
            from_here = to_device(from_BS.clamp(0, side - 1).view(shape), images_BCHW.device)
            kept = to_device(inside_BS.view(shape), images_BCHW.device)
            moved = torch.take_along_dim(images_BCHW, from_here, dim)
            images_BCHW = torch.where(kept, moved, moved.new_zeros(()))
        return images_BCHW

    def _cutout(self, images_BCHW: Tensor, uniform: Uniform) -> Tensor:
        """A blank square, cut off at the edges; its center may lie anywhere in the image."""
        blank = torch.ones(1, 1, 1, 1, dtype=torch.bool)
        for dim in (-2, -1):
            side = images_BCHW.shape[dim]
            length = _whole(self.cutout_fraction * side)
            # a square of even length is centered between two pixels
            start_B1 = (uniform(0, side + 1 - length % 2).floor() - length // 2)[:, None]
            place_S = torch.arange(side)
            blank_BS = (place_S >= start_B1) & (place_S < start_B1 + length)
            shape = [len(blank_BS), 1, 1, 1]
            shape[dim] = side
            blank = blank & blank_BS.view(shape)
        blank = to_device(blank, images_BCHW.device)
        return torch.where(blank, images_BCHW.new_zeros(()), images_BCHW)

    def _warp(self, images_BCHW: Tensor, chosen: list[Operation], uniform: Uniform) -> Tensor:
        """Rotation, scale, shift and the enlarged crop in one bilinear resampling."""
        angle_B = torch.zeros(1, dtype=torch.float64)
        zoom_B2 = torch.ones(1, 2, dtype=torch.float64)
        shift_B2 = torch.zeros(1, 2, dtype=torch.float64)
        if "rotate" in chosen:
            angle_B = uniform(-self.rotate_degrees, self.rotate_degrees) * (math.pi / 180)
        if "scale" in chosen:
            low, high = 1 / self.scale_factor, self.scale_factor
            zoom_B2 = torch.stack([uniform(low, high) for _ in range(2)], dim=1)
        if "shift" in chosen:
            # affine_grid measures in half sides, hence the factor of two
            shift_B2 = 2 * torch.stack(
                [uniform(-self.shift_fraction, self.shift_fraction) for _ in range(2)], dim=1
            )
        if "resized_crop" in chosen:
            side_B2 = self._crop_sides(images_BCHW, uniform)
            zoom_B2 = zoom_B2 * side_B2
            # in half sides too: the center may lie so far from the image's
            room = torch.stack([uniform(-1, 1) for _ in range(2)], dim=1)
            shift_B2 = shift_B2 + room * (1 - side_B2)
        # the grid says where a pixel comes from: rotated first, then stretched
        count = max(len(angle_B), len(zoom_B2), len(shift_B2))
        (cosine_B, sine_B), (wide_B, high_B) = (angle_B.cos(), angle_B.sin()), zoom_B2.unbind(1)
        # for the same reason an oblong image would be sheared instead of turned
        oblong = images_BCHW.shape[-2] / images_BCHW.shape[-1]
        numbers = [
            cosine_B * wide_B, -sine_B * oblong * wide_B, shift_B2[:, 0],
            sine_B / oblong * high_B, cosine_B * high_B, shift_B2[:, 1],
        ]  # fmt: skip
        motion_B23 = torch.stack([number.expand(count) for number in numbers], dim=1)
        motion_B23 = to_device(motion_B23.view(count, 2, 3), images_BCHW.device, images_BCHW.dtype)
        motion_B23 = motion_B23.expand(len(images_BCHW), 2, 3)
        grid = F.affine_grid(motion_B23, list(images_BCHW.shape), align_corners=False)
        return F.grid_sample(
            images_BCHW, grid, mode="bilinear", padding_mode="zeros", align_corners=False
        )

    def _crop_sides(self, images_BCHW: Tensor, uniform: Uniform) -> Tensor:
        """Width and height (B, 2) of a crop, as shares; a side that is too long is cut off."""
        area_B, turn = uniform(self.crop_area, 1), math.log(self.crop_aspect)
        # as a share of the image's sides, an aspect in pixels is that times height / width
        aspect_B = uniform(-turn, turn).exp() * (images_BCHW.shape[-2] / images_BCHW.shape[-1])
        high_B, wide_B = crop_sides(area_B, aspect_B)
        return torch.stack([wide_B, high_B], dim=1).clamp(max=1)
