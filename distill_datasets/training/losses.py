"""What students lower: the loss section, and the losses against a teacher.

Shape suffixes: B examples, K classes.
"""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator

from distill_datasets.config import Section

if TYPE_CHECKING:
    from torch import Tensor

Loss = Literal["soft", "kl", "mse"]


@dataclass(frozen=True)
class TeacherLoss:
    """A mean over examples of how far a student's logits are from a teacher's.

    soft: cross-entropy with the teacher's probabilities.
    kl: KL(softmax(teacher / T) || softmax(student / T)), times T^2 where `scaled`.
    mse: mean square of the logits' differences, plus `hard_weight` times the cross-entropy with the
        class of the image (of a mixed view: the own one).

    Source: SRe2L (arXiv:2306.13092) for kl without the factor; Hinton et al. (arXiv:1503.02531) for
        the factor; G-VBSM (arXiv:2311.17950), equation 10, and EDC (arXiv:2404.13733) for mse.
    """

    kind: Loss = "soft"
    temperature: float = 1.0
    scaled: bool = False
    hard_weight: float = 0.0

    def targets(self, teacher_BK: Tensor, label_B: Tensor) -> Tensor:
        """What the student is compared with.

        Args:
            teacher_BK: logits of the teacher.
            label_B: the class of every image.

        Returns:
            The teacher's probabilities (B, K); for mse its logits, and with `hard_weight` (B, 2, K)
            the logits and the classes.
        """
        if self.kind != "mse":
            return (teacher_BK / self.temperature).softmax(dim=1)
        if not self.hard_weight:
            return teacher_BK
        hard_BK = F.one_hot(label_B, teacher_BK.shape[1]).to(teacher_BK)
        return torch.stack([teacher_BK, hard_BK], dim=1)

    def __call__(self, logits_BK: Tensor, targets: Tensor) -> Tensor:
        """The loss of a student's logits, given what `targets` returned."""
        if self.kind == "soft":
            return F.cross_entropy(logits_BK, targets)
        if self.kind == "kl":
            log_student_BK = (logits_BK / self.temperature).log_softmax(dim=1)
            loss = F.kl_div(log_student_BK, targets, reduction="batchmean")
            return loss * self.temperature**2 if self.scaled else loss
        if not self.hard_weight:
            return F.mse_loss(logits_BK, targets)
        teacher_BK, hard_BK = targets.unbind(dim=1)
        hard_loss = F.cross_entropy(logits_BK, hard_BK)
        return F.mse_loss(logits_BK, teacher_BK) + self.hard_weight * hard_loss


class HardPasses(Section):
    """Passes in the middle of a training whose labels are classes: they mend what views drift to.

    Source: HALD (arXiv:2512.15647), soft labels before and after, hard ones for half of the passes.
    """

    first: int = Field(ge=0, description="pass that begins them, counted from 0")
    until: int = Field(gt=0, description="pass that ends them, itself no more one of them")
    label_smoothing: float = Field(
        default=0.8, ge=0, lt=1, description="share of every such label that all classes divide"
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.first >= self.until:
            raise ValueError(f"until: got {self.until}, expected more than first: {self.first}")
        return self

    def takes(self, turn: int) -> bool:
        """Whether this pass is one of them."""
        return self.first <= turn < self.until


class StudentLoss(Section, ABC):
    """What a student lowers."""

    loss: Loss = Field(
        default="soft",
        description="cross-entropy with the labels as probabilities; or, with relabel, kl of "
        "teacher and student at a temperature, or mse of their logits",
    )
    temperature: float = Field(
        default=1.0, gt=0, description="that logits are divided by in kl (SRe2L: 20)"
    )
    scale_by_temperature: bool = Field(
        default=False, description="multiply kl by the temperature squared"
    )
    hard_weight: float = Field(
        default=0.0,
        ge=0,
        description="of the cross-entropy with the images' classes beside mse (G-VBSM: 0.1, EDC: "
        "0.025)",
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="share of every label that all classes divide"
    )
    hard_passes: HardPasses | None = Field(
        default=None,
        description="with relabel: passes that take classes, mixed as new views are, in place of "
        "the teachers' labels; null: none",
    )

    @model_validator(mode="after")
    def _loss_knows_its_settings(self) -> Self:
        at_defaults = TeacherLoss()
        wrong = [
            f"{name}: for loss: {kind}, got it with loss: {self.loss}"
            for name, kind, value, default in (
                ("temperature", "kl", self.temperature, at_defaults.temperature),
                ("scale_by_temperature", "kl", self.scale_by_temperature, at_defaults.scaled),
                ("hard_weight", "mse", self.hard_weight, at_defaults.hard_weight),
            )
            if value != default and self.loss != kind
        ]
        if self.loss == "mse" and self.label_smoothing:
            wrong.append("label_smoothing: mse compares logits, which have none; leave it out")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    @property
    def teacher_loss(self) -> TeacherLoss:
        """What students of a teacher's logits lower."""
        return TeacherLoss(self.loss, self.temperature, self.scale_by_temperature, self.hard_weight)


def smoothed(targets_BK: Tensor, share: float) -> Tensor:
    """Targets of which a share is spread evenly over all classes; the same tensor for none."""
    return targets_BK if share == 0 else (1 - share) * targets_BK + share / targets_BK.shape[1]
