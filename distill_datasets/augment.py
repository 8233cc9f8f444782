"""Differentiable augmentation: the images of a batch are moved by small random motions.

All randomness comes from the generator that is passed in, so a draw can be replayed exactly.

Shape suffixes: B images of a batch, C channels, H W pixels.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from distill_datasets.types import Section

Operation = Literal["flip", "rotate", "shift", "scale"]


class Augment(Section):
    """Random motions of a batch; `flip_rotate` of RaT-BPTT is `[flip, rotate]` with choose one."""

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
    scale_factor: float = Field(default=1.2, gt=1, description="largest zoom in or out")

    def __call__(self, images_BCHW: Tensor, rng: torch.Generator) -> Tensor:
        """Move every image by its own draw.

        Pixels that come from outside are zero, the mean of the student's input space.

        Args:
            images_BCHW: images in the student's input space.
            rng: a generator on the CPU; decides everything.

        Returns:
            Images of the same shape; differentiable in `images_BCHW`.

        Source: RaT-BPTT (arXiv:2311.07025), the authors' `flip_rotate`; DSA (arXiv:2102.08259).
        """
        chosen = list(self.operations)
        if chosen and self.choose == "one":
            chosen = [chosen[int(torch.randint(len(chosen), (), generator=rng))]]
        if "flip" in chosen:
            flipped_B = (torch.rand(len(images_BCHW), generator=rng) < 0.5).to(images_BCHW.device)
            images_BCHW = torch.where(
                flipped_B[:, None, None, None], images_BCHW.flip(-1), images_BCHW
            )
        if set(chosen) - {"flip"}:
            images_BCHW = self._warp(images_BCHW, chosen, rng)
        return images_BCHW

    def _warp(self, images_BCHW: Tensor, chosen: list[Operation], rng: torch.Generator) -> Tensor:
        """Rotation, scale and shift in one bilinear resampling."""
        count = len(images_BCHW)

        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(count, generator=rng, dtype=torch.float64)

        angle_B = torch.zeros(count, dtype=torch.float64)
        zoom_B = torch.ones_like(angle_B)
        shift_B2 = torch.zeros(count, 2, dtype=torch.float64)
        if "rotate" in chosen:
            angle_B = uniform(-self.rotate_degrees, self.rotate_degrees) * (math.pi / 180)
        if "scale" in chosen:
            zoom_B = uniform(-1, 1).mul(math.log(self.scale_factor)).exp()
        if "shift" in chosen:
            # affine_grid measures in half sides, hence the factor of two
            shift_B2 = 2 * torch.stack(
                [uniform(-self.shift_fraction, self.shift_fraction) for _ in range(2)], dim=1
            )
        cosine_B, sine_B = angle_B.cos() / zoom_B, angle_B.sin() / zoom_B
        # for the same reason an oblong image would be sheared instead of turned
        oblong = images_BCHW.shape[-2] / images_BCHW.shape[-1]
        motion_B23 = torch.stack(
            [
                torch.stack([cosine_B, -sine_B * oblong, shift_B2[:, 0]], dim=1),
                torch.stack([sine_B / oblong, cosine_B, shift_B2[:, 1]], dim=1),
            ],
            dim=1,
        ).to(images_BCHW.device, images_BCHW.dtype)
        grid = F.affine_grid(motion_B23, list(images_BCHW.shape), align_corners=False)
        return F.grid_sample(
            images_BCHW, grid, mode="bilinear", padding_mode="zeros", align_corners=False
        )
