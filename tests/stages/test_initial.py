"""Initial images made class by class: the same whoever makes them, and in which order."""

from pathlib import Path
from typing import ClassVar, Literal

import pytest
import torch
from support.tiny import TOY, toy_real
from torch import Tensor

from distill_datasets.canvases.pixels import Pixels
from distill_datasets.data.real import RealData
from distill_datasets.media.image import to_bytes
from distill_datasets.runtime.draws import rng_for
from distill_datasets.runtime.processes import Run, Runtime
from distill_datasets.selection.coresets import ClassMean, Correct, Herding, KCenter
from distill_datasets.selection.random import Noise, Real
from distill_datasets.selection.rded import Rded
from distill_datasets.selection.selection import Selection, Teacher
from distill_datasets.stages.blocks import InitialImages

REAL = toy_real(TOY, per_class=9)


def mean_of_rows(images_BCHW: Tensor) -> Tensor:
    """Logits (1, B, K): a teacher that looks at the brightness of three rows."""
    return images_BCHW.mean(dim=(1, 3))[None, :, :3]


@pytest.mark.parametrize(
    "selection", [ClassMean(), Correct(), Herding(), KCenter(), Rded(factor=1, crops=2)]
)
def test_all_classes_are_the_classes_one_by_one(selection: Selection) -> None:
    rng = rng_for(0)
    each = [selection.of_class(REAL, label, 2, rng, mean_of_rows) for label in range(3)]
    together = selection.images(REAL, 2, rng_for(0), mean_of_rows)
    assert torch.equal(torch.cat(each), together)


def test_random_images_of_a_class_are_its_own_and_differ() -> None:
    rows = REAL.rows_of_class[1]
    drawn = Real().of_class(REAL, 1, 9, rng_for(0))
    own = REAL.displayable(rows)
    places = [(own - image).abs().sum(dim=(1, 2, 3)).argmin().item() for image in drawn]
    assert sorted(places) == list(range(9)) != places
    assert all(
        (own[place] - image).abs().max() == 0 for place, image in zip(places, drawn, strict=True)
    )


def test_a_class_with_few_images_repeats_them() -> None:
    drawn = Real().of_class(REAL, 0, 12, rng_for(0))
    assert len(drawn.unique(dim=0)) == 9 and torch.equal(drawn[:3], drawn[9:])


@pytest.mark.parametrize("selection", [Noise(std=0.2), Real(), Herding()])
def test_any_places_are_those_of_all(tmp_path: Path, selection: Selection) -> None:
    initial = InitialImages(selection, REAL, 4, 7, None)
    initial.prepare(tmp_path, range(3), Run(0, tmp_path, Runtime(), shown=False))
    every = initial.at(tmp_path, range(12))
    assert torch.equal(initial.at(tmp_path, [11, 0, 5, 1]), every[[11, 0, 5, 1]])
    assert len(every.unique(dim=0)) == 12


def test_classes_that_are_worked_out_are_kept_as_8_bit_images(tmp_path: Path) -> None:
    initial = InitialImages(Herding(), REAL, 4, 7, None)
    initial.prepare(tmp_path, [2], Run(0, tmp_path, Runtime(), shown=False))
    assert [path.name for path in (tmp_path / "initial").iterdir()] == ["class-00002.npy"]
    exact = Herding().of_class(REAL, 2, 4, rng_for(0))
    assert torch.equal(to_bytes(initial.at(tmp_path, range(8, 12))), to_bytes(exact))


class Counted(Selection):
    """Images from outside: every class has its own gray."""

    paper: ClassVar[str] = "none"
    outside: ClassVar[bool] = True
    name: Literal["counted"] = "counted"
    gray: float

    def of_class(
        self,
        real: RealData,
        label: int,
        per_class: int,
        rng: torch.Generator,
        teacher: Teacher | None = None,
    ) -> Tensor:
        shape = real.shape
        return torch.full((per_class, shape.c, shape.h, shape.w), self.gray + label / 10)


def test_images_from_outside_are_part_of_the_identity(tmp_path: Path) -> None:
    some, others = (InitialImages(Counted(gray=gray), REAL, 2, 0, None) for gray in (0.1, 0.2))
    assert some.identity() != others.identity()
    assert InitialImages(Herding(), REAL, 2, 0, None).identity() == []
    some.prepare(tmp_path, range(3), Run(0, tmp_path, Runtime(), shown=False))
    assert some.at(tmp_path, [5, 0])[:, 0, 0, 0].tolist() == pytest.approx([0.3, 0.1])
    assert not list(tmp_path.iterdir())


def test_a_canvas_names_the_papers_of_what_is_worked_out() -> None:
    assert any("RDED" in paper for paper in Pixels(ipc=1, init=Rded()).papers())
    assert Pixels(ipc=1, init=Noise()).papers() == Pixels(ipc=1, init=Real()).papers()
