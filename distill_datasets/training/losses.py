"""What a student that learns from a teacher lowers.

Shape suffixes: B examples, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F

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


def smoothed(targets_BK: Tensor, share: float) -> Tensor:
    """Targets of which a share is spread evenly over all classes; the same tensor for none."""
    return targets_BK if share == 0 else (1 - share) * targets_BK + share / targets_BK.shape[1]
