"""Students that see views of images with a teacher's labels: SL-R and SL+KD.

SL-R reads the views and labels that were published. Real images beside them are seen in views drawn
alike, labeled by networks of this evaluation, since a published folder holds labels and no teacher.
SL+KD labels views of every pass while a student trains, by the same networks for every row.

Shape suffixes: B a batch, C channels, H W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distill_datasets.evaluation.baselines import published_labels, published_pictures
from distill_datasets.evaluation.references import MakeStored, once
from distill_datasets.export.folder import recipe_of
from distill_datasets.export.reading import published_records
from distill_datasets.media.image import to_bytes
from distill_datasets.soft_labels.codes import code_of
from distill_datasets.soft_labels.ensemble import TeacherEnsemble
from distill_datasets.soft_labels.replay import Pictures, SoftLabelExamples, TeacherStream
from distill_datasets.training.losses import TeacherLoss
from distill_datasets.views.relabel import Relabel, ViewSettings

if TYPE_CHECKING:
    from pathlib import Path

    from distill_datasets.data.real import RealData
    from distill_datasets.evaluation.proxies import Consulted
    from distill_datasets.runtime.draws import Draw
    from distill_datasets.training.examples import Examples, Stored

EPOCHS = 100_000
"""Passes after which views of SL+KD begin anew; no student trains as long."""
SHIFTED = 8
"""Views of SL+KD are shifted by up to the side's share of one in so many."""
MakeTaught = Callable[["Draw"], "Examples"]


@dataclass(frozen=True)
class Teaching:
    """Networks that have learned the source, and the views that they label.

    Attributes:
        networks: the teachers, whose logits are averaged.
        views: how views are drawn.
        draw: the randomness of the views, the same for every row.
    """

    networks: Consulted
    views: Relabel
    draw: Draw

    @property
    def bytes(self) -> int:
        """Of the teachers' weights, as float32."""
        return self.networks.bytes

    def of(self, make: MakeStored, real: RealData) -> MakeTaught:
        """Views of other images with the teachers' labels."""
        shape, device = real.shape, real.train.labels_N.device
        ensemble = once(
            lambda: TeacherEnsemble(
                self.networks.modules, self.views, shape, device, features=False
            )
        )
        code = code_of(None, shape.k, None)

        def examples(draw: Draw) -> Examples:
            pictures = pictures_of(make(draw), real)
            stream = TeacherStream(self.views, pictures, self.draw, ensemble(), code.encode)
            return SoftLabelExamples(pictures, stream, code, TeacherLoss())

        return examples


def views_at_training(side: int, batch: int) -> Relabel:
    """Views of SL+KD: shifted, and mixed by CutMix; nothing is mirrored, as it may be a class."""
    shift = max(1, side // SHIFTED)
    return Relabel(epochs=EPOCHS, batch=batch, crop=None, pad=shift, flip=False, mix="cutmix")


def views_of(folder: Path) -> Relabel | None:
    """How the published views were drawn; None where there are none or nobody says how."""
    section = recipe_of(folder).get("relabel")
    return None if section is None else Relabel.model_validate(section)


def drawn_alike(relabel: Relabel) -> Relabel:
    """The same views, labeled by any networks: without batch statistics, features or weights."""
    kept = {name: getattr(relabel, name) for name in ViewSettings.model_fields}
    return Relabel(**kept)


def recorded(folder: Path, relabel: Relabel, real: RealData) -> MakeTaught:
    """The published views with the published labels."""
    device = real.train.labels_N.device
    pictures = once(lambda: published_pictures(folder, real.shape, device))
    records = once(lambda: published_records(folder, pictures().count))
    return lambda draw: published_labels(relabel, folder, pictures(), records(), TeacherLoss())


def pictures_of(stored: Stored, real: RealData) -> Pictures:
    """Examples as 8-bit images with the likeliest class of each."""
    images_NCHW, labels_N = stored.images_NCHW, stored.targets_NK.argmax(dim=1)
    space = real.normalization.input_space.to(labels_N.device)
    if images_NCHW.is_floating_point():
        seen = stored.input_space is None
        pixels_NCHW = space.to_pixels(images_NCHW) if seen else images_NCHW
        images_NCHW = to_bytes(pixels_NCHW.clamp(0, 1).cpu()).to(labels_N.device)
    return Pictures(images_NCHW, labels_N, space, real.shape.k)
