"""Images from which a linear classifier on frozen features learns the classes.

The classifier's gradient is a closed formula of the features, so that no second derivative enters a
backbone, and it falls into classes: those of one class never ask about the images of another. Real
features are computed once, before; a class is solved with the few numbers that are known of all.

Of features z, centered and scaled, m_c is the center of class c and S the covariance. Three forms:

- `ridge`: an image's features act as the direction d of its class's classifier. d is best when its
  scores on all real images correlate most with the class, which is where ridge regression ends:
  cos(d, w_c) in the metric of S + r I, with w_c = (S + r I)^-1 m_c.
- `gradient`: for a fresh head W, the gradient (softmax(W z + b) - y) (z, 1)^T of the cross-entropy,
  a mean over the images of the class; the cosine of the synthetic and the real one.
- `flow`: from the center of every other class, the images lie in the direction of their own.

Shape suffixes: B images of a block, V views of each, C channels, H W pixels, D features, K classes,
L classes of a block, R real images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from distill_datasets.models.flops import IMAGE_GRADIENT
from distill_datasets.networks.network import Teachers
from distill_datasets.objectives.objective import (
    Block,
    Estimate,
    Needs,
    Objective,
)
from distill_datasets.runtime.draws import LaneDraw
from distill_datasets.views.crops import RandomCrop, draw_view

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.features import Features
    from distill_datasets.data.real import RealData
    from distill_datasets.distilled import Distilled

TINY = 1e-12


class Linear(Objective):
    """A linear classifier on frozen features is to learn from the images what real ones teach."""

    paper: ClassVar[str] = "Linear Gradient Matching, NeurIPS 2025, arXiv:2511.16674"
    separable: ClassVar[bool] = True
    name: Literal["linear"] = "linear"
    form: Literal["ridge", "gradient", "flow"] = Field(
        default="ridge",
        description="what is matched: where ridge regression ends, the gradient of fresh heads "
        "(Linear Gradient Matching), or the directions between class centers (statistical flow)",
    )
    ridge: float = Field(
        default=3.0,
        gt=0,
        description="of the form ridge: added to the eigenvalues of the covariance (mean: 1)",
    )
    head_std: float = Field(
        default=0.05, gt=0, description="of the form gradient: deviation of a fresh head's weights"
    )
    real_batch: int = Field(
        default=128, gt=0, description="of the form gradient: real images of a class at a step"
    )
    views: int = Field(
        default=1, gt=0, description="random views of every image at a step, drawn for themselves"
    )
    crop: RandomCrop | None = Field(
        default=RandomCrop(smallest=0.5), description="crops that views show; null: whole images"
    )
    flip: bool = Field(default=True, description="mirror half of the views")
    classes_at_once: int = Field(
        default=10,
        gt=0,
        description="classes of a block; they do not change each other's images, and many at once "
        "take less time and more memory",
    )

    def cited(self) -> list[str]:
        found = {
            "ridge": ["closed form, arXiv:2605.07194"],
            "gradient": self.paper.split("; "),
            "flow": ["statistical flow matching, arXiv:2602.05391"],
        }
        return found[self.form]

    @property
    def needs(self) -> Needs:
        return Needs(networks="features", offers=frozenset({"features"}))

    def blocks(self, classes: int, per_class: int) -> list[Block]:
        # images of a class stand together: image i of class c has the place c * per_class + i
        firsts = range(0, classes, self.classes_at_once)
        lasts = [min(classes, first + self.classes_at_once) for first in firsts]
        return [
            Block(tuple(range(first * per_class, last * per_class)))
            for first, last in zip(firsts, lasts, strict=True)
        ]

    def work(self, flops_per_image: float, examples: int, classes: int) -> float:
        """See `Objective.work`: one step of every block, of all backbones together."""
        return IMAGE_GRADIENT * flops_per_image * examples * self.views

    def estimate(
        self, distilled: Distilled, networks: Teachers, real: RealData, draw: LaneDraw
    ) -> Estimate:
        """The mean loss of the classes of the block over all backbones, and its gradient.

        The sum over classes is what is differentiated: the images of a class move alike whatever
        classes are solved beside it.

        Source: Linear Gradient Matching (arXiv:2511.16674), equation 4, class by class.
        """
        names, parameters = zip(*distilled.parameters.items(), strict=True)
        index_B = torch.arange(distilled.count, device=distilled.device)
        pixels_BCHW = distilled.pixels(index_B)
        classes_B = distilled.targets(index_B).argmax(dim=1)
        classes_L = torch.unique(classes_B)  # in order, as the images of the block stand
        seen_BCHW = torch.cat([self._views(pixels_BCHW, draw, view) for view in range(self.views)])
        metrics, total = dict[str, float](), pixels_BCHW.new_zeros(())
        for number, member in enumerate(networks.members):
            known = real.features[member.module.key]  # type: ignore[index]
            scaled_LvD = known.moments.scaled(member.module(seen_BCHW))
            # of a class, all views of all its images
            own_LVD = torch.stack(
                [scaled_LvD[(classes_B == label).repeat(self.views)] for label in classes_L]
            )
            losses_L = self._losses(own_LVD, classes_L, known, real, draw, number)
            metrics[f"cosine_{number}"] = 1 - float(losses_L.detach().mean())
            total = total + losses_L.sum() / len(networks.members)
        grads = torch.autograd.grad(total, parameters)
        loss = float(total.detach()) / len(classes_L)
        return Estimate(loss, dict(zip(names, grads, strict=True)), metrics)

    def _views(self, pixels_BCHW: Tensor, draw: LaneDraw, view: int) -> Tensor:
        """One view of every image."""
        if self.crop is None and not self.flip:
            return pixels_BCHW
        size = (pixels_BCHW.shape[2], pixels_BCHW.shape[3])
        return torch.stack(
            [
                draw_view(self.crop, self.flip, 0, size, draw("view", view, place))(image_CHW)
                for place, image_CHW in enumerate(pixels_BCHW)
            ]
        )

    def _losses(
        self,
        own_LVD: Tensor,
        classes_L: Tensor,
        known: Features,
        real: RealData,
        draw: LaneDraw,
        number: int,
    ) -> Tensor:
        """One minus the cosine that the form asks for, of every class of the block."""
        if self.form == "gradient":
            return self._gradient(own_LVD, classes_L, known, real, draw, number)
        centers_KD = known.moments.centers_KD.to(own_LVD)
        if self.form == "flow":
            return flow_losses(own_LVD.mean(dim=1), centers_KD, classes_L)
        wanted_KD = known.discriminants(self.ridge).to(own_LVD)
        covariance_DD = known.moments.covariance_DD.to(own_LVD)
        return ridge_losses(
            own_LVD.mean(dim=1),
            centers_KD[classes_L],
            wanted_KD[classes_L],
            covariance_DD,
            self.ridge,
        )

    def _gradient(
        self,
        own_LVD: Tensor,
        classes_L: Tensor,
        known: Features,
        real: RealData,
        draw: LaneDraw,
        number: int,
    ) -> Tensor:
        size, classes = own_LVD.shape[2], real.shape.k
        head_KD = self.head_std * torch.randn(classes, size, generator=draw("head", number))
        head_KD = head_KD.to(own_LVD)
        losses = []
        for own_VD, label in zip(own_LVD, classes_L.tolist(), strict=True):
            rows_N = real.rows_of_class[label].cpu()
            rng = draw("real", number, label)
            picked_R = rows_N[torch.randperm(len(rows_N), generator=rng)[: self.real_batch]]
            real_RD = known.moments.scaled(known.train_ND[picked_R].to(own_LVD))
            wanted = head_gradient(real_RD, head_KD, label)
            got = head_gradient(own_VD, head_KD, label)
            losses.append(1 - F.cosine_similarity(got, wanted, dim=0, eps=TINY))
        return torch.stack(losses)


def head_gradient(features_BD: Tensor, head_KD: Tensor, label: int) -> Tensor:
    """The gradient of a linear head's cross-entropy on images of one class, in one vector.

    With logits W z and b = 0: dL/dW = mean (softmax(W z) - y) z^T and dL/db = mean (softmax - y).
    """
    error_BK = torch.softmax(features_BD @ head_KD.T, dim=1)
    error_BK = error_BK - F.one_hot(torch.tensor(label), len(head_KD)).to(error_BK)
    weight_KD = error_BK.T @ features_BD / len(features_BD)
    return torch.cat([weight_KD.flatten(), error_BK.mean(dim=0)])


def ridge_losses(
    direction_LD: Tensor,
    centers_LD: Tensor,
    wanted_LD: Tensor,
    covariance_DD: Tensor,
    ridge: float,
) -> Tensor:
    """1 - cos(d, w) in the metric S + r I, of each class, with w = (S + r I)^-1 m.

    By that w: d^T (S + r I) w = d^T m, and w^T (S + r I) w = w^T m.
    """
    # d^T S d + r d^T d
    squares_L = ((direction_LD @ covariance_DD) * direction_LD).sum(dim=1)
    squares_L = squares_L + ridge * direction_LD.square().sum(dim=1)
    norms_L = (squares_L.clamp(min=TINY) * (wanted_LD * centers_LD).sum(dim=1)).sqrt()
    return 1 - (direction_LD * centers_LD).sum(dim=1) / norms_L


def flow_losses(mean_LD: Tensor, centers_KD: Tensor, classes_L: Tensor) -> Tensor:
    """The mean over all other classes j of 1 - cos(d - m_j, m_c - m_j).

    Source: statistical flow matching (arXiv:2602.05391), as its abstract describes it.
    """
    got_LKD = mean_LD[:, None] - centers_KD
    wanted_LKD = centers_KD[classes_L][:, None] - centers_KD
    cosine_LK = F.cosine_similarity(got_LKD, wanted_LKD, dim=2, eps=TINY)
    others_LK = torch.ones_like(cosine_LK).scatter(1, classes_L[:, None], 0)
    return ((1 - cosine_LK) * others_LK).sum(dim=1) / others_LK.sum(dim=1)
