"""Images to start from that another run has distilled and published.

Shape suffixes: N published rows, K classes, C channels, H W pixels.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, StringConstraints

from distill_datasets.data.opening import open_splits
from distill_datasets.errors import DataError
from distill_datasets.selection.selection import Selection, Teacher, repeated
from distill_datasets.types import Shape

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.real import RealData

Name = Annotated[str, StringConstraints(min_length=1)]

_OF_SOURCE = re.compile(r"\bsource\.(?=(?:dataset|config|revision)\b)")


class Published(Selection):
    """The rows of a distilled dataset, of each class the first ones with their largest label there.

    They are taken as displayable pixels, so the other run has to have had the same kind of
    normalization.
    """

    paper: ClassVar[str] = "Dataset Distillation, arXiv:1811.10959, initialization"
    shows_real: ClassVar[bool] = False
    outside: ClassVar[bool] = True
    name: Literal["published"] = "published"
    dataset: Name = Field(description="folder that a run wrote, or Hub id")
    revision: Name | None = Field(default=None, description="Hub branch, tag or commit")

    def problems(self, shape: Shape) -> Iterator[str]:
        """Looks at the `recipe` config, which is small and which every run writes."""
        try:
            self._columns("recipe", "normalization_json")
        except DataError as error:
            yield str(error)

    def of_class(
        self,
        real: RealData,
        label: int,
        per_class: int,
        rng: torch.Generator,
        teacher: Teacher | None = None,
    ) -> Tensor:
        return self.together(real, per_class, rng, teacher)[label * per_class :][:per_class]

    def together(
        self, real: RealData, per_class: int, rng: torch.Generator, teacher: Teacher | None
    ) -> Tensor:
        """Displayable images (K * per_class, C, H, W), resized where the published size differs.

        Raises:
            DataError: there is no such dataset, it was not written by a run, or its channels,
                classes or normalization are others.
        """
        shape = real.shape
        self._check_normalization(real.normalization.kind)
        images_NCHW, labels_N = self._rows(shape)
        rows = []
        for label, name in enumerate(real.class_names):
            own = (labels_N == label).nonzero().flatten().tolist()
            if not own:
                raise DataError(
                    f"distill.canvas.init.dataset: {self.dataset!r} has no row whose largest "
                    f"label is class {label} ({name}); start from a dataset with rows of "
                    "every class"
                )
            rows += repeated(own, per_class)
        chosen_NCHW = images_NCHW[rows].float() / 255
        if chosen_NCHW.shape[2:] == (shape.h, shape.w):
            return chosen_NCHW
        resized_NCHW = F.interpolate(
            chosen_NCHW, (shape.h, shape.w), mode="bilinear", antialias=True
        )
        return resized_NCHW.clamp(0, 1)

    def _rows(self, shape: Shape) -> tuple[Tensor, Tensor]:
        """Published images (N, C, H, W) in 0..255 and the class of each, (N,)."""
        columns = self._columns("default", "image", "soft_label")
        labels_NK = torch.tensor(np.stack(columns["soft_label"]))
        images = torch.tensor(np.stack(columns["image"]))
        images_NCHW = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
        got = (images_NCHW.shape[1], labels_NK.shape[1])
        if got != (shape.c, shape.k):
            raise DataError(
                f"distill.canvas.init.dataset: {self.dataset!r} has images of {got[0]} channels "
                f"in {got[1]} classes, expected {shape.c} channels in {shape.k} classes as in "
                "source; start from a dataset that was distilled from the same kind of images"
            )
        return images_NCHW, labels_NK.argmax(dim=1)

    def _check_normalization(self, expected: str) -> None:
        (described,) = self._columns("recipe", "normalization_json")["normalization_json"]
        got = json.loads(str(described))["kind"]
        if got != expected:
            raise DataError(
                f"distill.canvas.init.dataset: {self.dataset!r} was distilled with normalization "
                f"{got}, and source.normalization is {expected}, whose pixels mean something "
                f"else; start from a dataset that was distilled with {expected}"
            )

    def _columns(self, config: str, *names: str) -> dict[str, Any]:
        try:
            splits = open_splits(self.dataset, config, self.revision)
        except DataError as error:
            why = _OF_SOURCE.sub("distill.canvas.init.", str(error))
            why = why.removeprefix("distill.canvas.init.dataset: ")
            why = why.removeprefix("distill.canvas.init.config: ")  # which nobody can set
            raise DataError(
                f"distill.canvas.init.dataset: cannot read {self.dataset!r} as what a run writes: "
                f"{why}"
            ) from error
        rows = splits.get("train")
        if rows is None or not set(names) <= set(rows.column_names):
            raise DataError(
                f"distill.canvas.init.dataset: {self.dataset!r} is not what a run writes: "
                f"expected a config {config} with a split train and the columns "
                f"{', '.join(names)}; name the folder of a finished dataset"
            )
        columns: dict[str, Any] = rows.with_format("numpy")[:]
        return columns
