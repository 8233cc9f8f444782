"""Nothing is minimized: the images that a selection gives are the distilled set.

The methods that choose or assemble real images (RDED, herding, random real images) need no more
than this objective, no steps, and the selection as initial images of the canvas.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from distill_datasets.objectives.objective import Block, Estimate, Needs, Objective, match_blocks
from distill_datasets.runtime.draws import LaneDraw

if TYPE_CHECKING:
    from distill_datasets.data.real import RealData
    from distill_datasets.distilled import Distilled


class Selected(Objective):
    """The initial images as they are; every class is a piece of work of its own."""

    paper: ClassVar[str] = "RDED, arXiv:2312.03526"
    separable: ClassVar[bool] = True
    minimizes: ClassVar[bool] = False
    name: Literal["selected"] = "selected"

    @property
    def needs(self) -> Needs:
        return Needs(networks=None)

    def cited(self) -> list[str]:
        # the selection names its own
        return []

    def blocks(self, classes: int, per_class: int) -> list[Block]:
        return match_blocks("within", None, classes, per_class)

    def work(self, flops_per_image: float, examples: int, classes: int) -> float:
        return 0.0

    def estimate(
        self, distilled: Distilled, networks: object, real: RealData, draw: LaneDraw
    ) -> Estimate:
        raise AssertionError("an objective that minimizes nothing is asked for no gradient")
