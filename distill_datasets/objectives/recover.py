"""Images that trained networks recognize and whose BatchNorm statistics look like real data's.

The recovery of SRe2L and its successors: cross-entropy, and before every BatchNorm layer the
distance of a batch's mean and variance from those that the teacher has seen. What is in such a
batch decides what its statistics can be, so the recipe says it, and no number of processes does.

Shape suffixes: B images of a block, C channels, H W pixels, K classes, T channels of all layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator

from distill_datasets.errors import RecipeError, refuse
from distill_datasets.models.architecture import Architecture, last_linear
from distill_datasets.models.flops import IMAGE_GRADIENT
from distill_datasets.networks.network import TeacherNetwork, Teachers
from distill_datasets.networks.pairing import pair_loss, partners
from distill_datasets.networks.teachers import BatchNormProbe, Moments
from distill_datasets.objectives.objective import (
    Block,
    Composition,
    Context,
    Estimate,
    Needs,
    Objective,
    match_blocks,
    match_problems,
)
from distill_datasets.runtime.draws import LaneDraw
from distill_datasets.runtime.precision import (
    WHERE_FAST,
    WORTH_STEPS,
    Compile,
    Precision,
    is_compiled,
)
from distill_datasets.runtime.vector_jacobian import vector_jacobian
from distill_datasets.types import Shape
from distill_datasets.views.crops import Curriculum, RandomCrop, draw_view, smallest_area

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.real import RealData
    from distill_datasets.distilled import Distilled

Standard = Literal["global", "class", "both"]
MOST_GRAPHS = 64
"""Architectures of teachers that are compiled."""


class Terms(NamedTuple):
    """The two parts of a teacher's loss."""

    cross_entropy: Tensor
    bn_loss: Tensor


def matching_terms(
    probe: BatchNormProbe,
    images_BCHW: Tensor,
    targets_BK: Tensor,
    wanted: list[list[Moments]],
    first_weight: float,
    precision: Precision,
) -> Terms:
    """Cross-entropy, and how far a batch's statistics are from the wanted ones.

    Before layer l the batch has the mean mu and the biased variance s of every channel; it adds
    |v - s| + |m - mu|, Euclidean norms, times `first_weight` for the layer registered first.

    Args:
        probe: a teacher.
        images_BCHW: in the student's input space; the result is differentiable in them.
        targets_BK: their labels.
        wanted: m and v of every layer, by one or more standards that count alike.
        first_weight: see above.
        precision: of the network; statistics and losses are float32 in any case.

    Source: SRe2L (arXiv:2306.13092), equations 5 and 6 with the weights of its program.
    """
    forward = probe(images_BCHW, precision)
    total = images_BCHW.new_zeros(())
    for standard in wanted:
        for layer, (ours, theirs) in enumerate(zip(forward.moments, standard, strict=True)):
            if ours is None:
                continue
            # |v - s| + |m - mu|
            distance = torch.linalg.vector_norm(theirs.var_C - ours.var_C)
            distance = distance + torch.linalg.vector_norm(theirs.mean_C - ours.mean_C)
            total = total + (distance if layer else first_weight * distance)
    return Terms(F.cross_entropy(forward.logits_BK, targets_BK), total / len(wanted))


class Matched:
    """A teacher that one thread matches batches to, and what they are to look like."""

    def __init__(self, teacher: TeacherNetwork, standard: Standard, channels_last: bool) -> None:
        self.probe = BatchNormProbe(teacher, channels_last=channels_last)
        self._standard = standard
        self._sizes = [len(target.mean_C) for target in self.probe.targets]
        self._class_KT: Moments | None = None
        if standard != "global":
            if teacher.class_mean is None or teacher.class_var is None:
                raise RecipeError(
                    f"distill.objective.targets: {standard!r} needs teachers with "
                    "statistics of every class; use distill.networks: teachers"
                )
            # the channels of all layers side by side: one lookup by class for every layer
            self._class_KT = Moments(
                torch.cat(teacher.class_mean, dim=1), torch.cat(teacher.class_var, dim=1)
            )

    @cached_property
    def compiled(self) -> Callable[..., Terms]:
        """`matching_terms` through torch's compiler; networks of one architecture share a graph."""
        # tells the compiler too, which is not imported before it is needed
        torch.use_deterministic_algorithms(torch.are_deterministic_algorithms_enabled())
        return torch.compile(matching_terms, dynamic=False)

    def wanted(self, targets_BK: Tensor) -> list[list[Moments]]:
        """What a batch with these labels is to look like, by every standard of the settings."""
        standards = []
        if self._standard != "class":
            standards.append(self.probe.targets)
        if self._class_KT is not None:
            standards.append(self._of_classes(self._class_KT, targets_BK.argmax(dim=1)))
        return standards

    def _of_classes(self, class_KT: Moments, label_B: Tensor) -> list[Moments]:
        """Moments of real images of these classes put together: one image of each label.

        The variance is that within the classes and that between their means.
        """
        # law of total variance: Var = E[Var of a class] + Var of the classes' means
        mean_BT = class_KT.mean_C[label_B]
        mean_T = mean_BT.mean(dim=0)
        var_T = class_KT.var_C[label_B].mean(dim=0) + (mean_BT - mean_T).square().mean(dim=0)
        pieces = zip(*(torch.split(all_T, self._sizes) for all_T in (mean_T, var_T)), strict=True)
        return [Moments(mean_C, var_C) for mean_C, var_C in pieces]


def _scaled(side: int, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a view whose shorter side has so many pixels, as an image is formed."""
    height, width = size
    return round(side * height / min(size)), round(side * width / min(size))


def _sizes(network: Architecture, shape: Shape) -> list[torch.Size]:
    """The sizes of all weights of a network for such images."""
    return [weight.shape for weight in network.on_meta(shape).parameters()]


class Recover(Objective):
    """Cross-entropy and BatchNorm statistics of trained networks (SRe2L and its successors)."""

    paper: ClassVar[str] = (
        "SRe2L, arXiv:2306.13092; CDA, arXiv:2311.18838; LPLD, arXiv:2410.15919; "
        "G-VBSM, arXiv:2311.17950; EDC, arXiv:2404.13733; CV-DD, arXiv:2501.07575; "
        "FADRM, arXiv:2506.24125"
    )
    separable: ClassVar[bool] = True
    name: Literal["recover"] = "recover"
    bn_weight: float | list[float] = Field(
        default=0.01, description="of the statistics beside cross-entropy; or one per teacher"
    )
    first_bn_weight: float = Field(
        default=10.0, ge=0, description="of the BatchNorm layer registered first; others have 1"
    )
    match_batch: int | None = Field(
        default=None,
        gt=0,
        description="images solved together, which share their statistics; null: one of every "
        "class, or all of one class",
    )
    classes: Composition = Field(
        default="across",
        description="of a match batch: each class at most once or equally often (SRe2L), one class "
        "alone (LPLD), or class after class (G-VBSM, EDC)",
    )
    targets: Standard = Field(
        default="global",
        description="statistics of all real images, of those of the batch's classes (LPLD), or "
        "half of each (EDC)",
    )
    crop: RandomCrop | None = Field(
        default=RandomCrop(), description="one for the whole batch at every step; null: none"
    )
    curriculum: Curriculum = Field(
        default="none",
        description="how the smallest crop falls from the largest on the way (CDA: cosine)",
    )
    milestone: float = Field(
        default=1.0, gt=0, le=1, description="share of the steps that the curriculum takes"
    )
    flip: bool = Field(default=True, description="mirror the whole batch, half of the time")
    roll: int = Field(
        default=4, ge=0, description="roll the whole batch by 0 to so many pixels (32 at 224 px)"
    )
    pair_weight: float = Field(
        default=0.0,
        ge=0,
        description="of the squared distance of an image's features from those of a real image of "
        "its class in the same view, drawn once for a block (CIM)",
    )
    sides: list[int] = Field(
        default=[],
        description="shorter side of the view in equal parts of the steps, in pixels (FADRM at 224 "
        "px: [200, 224, 200, 224]); []: that of the images",
    )
    teachers: Literal["all", "in_turn", "drawn"] = Field(
        default="all",
        description="asked at a step: all, one after the other (G-VBSM, EDC), or those that were "
        "drawn for the block (CV-DD)",
    )
    drawn: int = Field(default=2, gt=0, description="teachers that a block draws")
    weights: list[float] | None = Field(
        default=None, description="of the teachers asked together, divided by their sum; null: 1"
    )
    precision: Precision = Field(
        default="float32",
        description=f"of the networks; statistics are float32 in any case; {WHERE_FAST}",
    )
    channels_last: bool = Field(default=False, description="order of a layer's values in memory")
    compile: Compile = Field(
        default=False,
        description="use torch's compiler: needs a C++ compiler on a CPU, and time before the "
        f"first step; auto: where it is there, on a CPU from {WORTH_STEPS} steps of a block on",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.curriculum != "none" and self.crop is None:
            raise ValueError(
                f"curriculum: {self.curriculum!r} changes the crop, and crop is null; set crop, or "
                "curriculum: none"
            )
        if min(self.sides, default=1) < 1:
            raise ValueError(f"sides: got {self.sides}, expected pixels, 1 or more each")
        listed = self.bn_weight if isinstance(self.bn_weight, list) else [self.bn_weight]
        if min(listed, default=0) < 0:
            raise ValueError(f"bn_weight: got {self.bn_weight}, expected no value below 0")
        if self.weights is not None and min(self.weights, default=0) <= 0:
            raise ValueError(f"weights: got {self.weights}, expected values above 0")
        if self.weights is not None and self.teachers == "in_turn":
            raise ValueError(
                f"weights: got {self.weights} with teachers: in_turn, which asks one teacher at a "
                "step, whose share is 1 whatever its weight; expected null; leave weights out, or "
                "set teachers: all or drawn"
            )
        return self

    @property
    def needs(self) -> Needs:
        asked = {"all": None, "in_turn": 1, "drawn": self.drawn}[self.teachers]
        return Needs(
            networks="teachers",
            asked=asked,
            class_statistics=self.targets != "global",
        )

    def cited(self) -> list[str]:
        sre2l, cda, lpld, gvbsm, edc, cvdd, fadrm = self.paper.split("; ")
        also = {
            cda: self.curriculum != "none",
            lpld: self.targets == "class",
            gvbsm: self.teachers == "in_turn",
            edc: self.targets == "both",
            cvdd: self.teachers == "drawn",
            fadrm: bool(self.sides),
        }
        return [sre2l, *(paper for paper, used in also.items() if used)]

    def problems(self, context: Context) -> Iterator[str]:
        teachers, shape, examples = context.teachers, context.shape, context.examples
        if shape is not None and context.network is not None:
            yield from self._unseen(context.network, shape)
            if self.pair_weight and last_linear(context.network.on_meta(shape)) is None:
                yield (
                    f"distill.objective.pair_weight: {context.network.name} has no linear layer, "
                    "whose inputs are the features that pairs compare; set pair_weight: 0"
                )
        if teachers is not None:
            for field, values in (("weights", self.weights), ("bn_weight", self.bn_weight)):
                if isinstance(values, list) and len(values) != teachers:
                    yield (
                        f"distill.objective.{field}: got {len(values)} values, expected one for "
                        f"each of the {teachers} networks of the squeeze stage"
                    )
            if self.teachers == "drawn" and self.drawn > teachers:
                yield (
                    f"distill.objective.drawn: got {self.drawn}, expected at most {teachers}, the "
                    "networks of the squeeze stage"
                )
        if shape is not None and examples is not None:
            per_class = examples // shape.k
            yield from match_problems(self.classes, self.match_batch, shape.k, per_class)

    def _unseen(self, network: Architecture, shape: Shape) -> Iterator[str]:
        """The sides that a network cannot see with the weights it has for whole images."""
        weights = _sizes(network, shape)
        for side in dict.fromkeys(self.sides):
            high, wide = _scaled(side, (shape.h, shape.w))
            try:
                fits = _sizes(network, dataclasses.replace(shape, h=high, w=wide)) == weights
            except RecipeError:
                fits = False
            if not fits:
                yield (
                    f"distill.objective.sides: got {side}, and {network.name} has other weights "
                    f"for {high} x {wide} px than for the {shape.h} x {shape.w} px of the images; "
                    "choose a squeeze.network that averages over places, such as {name: resnet}, "
                    "or leave sides out"
                )

    def blocks(self, classes: int, per_class: int) -> list[Block]:
        return match_blocks(self.classes, self.match_batch, classes, per_class)

    def work(self, flops_per_image: float, examples: int, classes: int) -> float:
        """See `Objective.work`: one step of every block.

        `flops_per_image` is a forward pass of all teachers that are asked at a step.
        """
        looks = 2 * IMAGE_GRADIENT + 1 if self.pair_weight else IMAGE_GRADIENT
        return looks * flops_per_image * examples

    def estimate(
        self, distilled: Distilled, networks: Teachers, real: RealData, draw: LaneDraw
    ) -> Estimate:
        """The loss of the whole block in one shared view, and its gradient in the pixels.

        The real images themselves are needed for pairs alone.

        Source: SRe2L (arXiv:2306.13092), equation 4; several teachers as in CV-DD.
        """
        names, parameters = zip(*distilled.parameters.items(), strict=True)
        images_BCHW, targets_BK = distilled(self._every(distilled))
        crop = self.crop
        if crop is not None:
            least = smallest_area(crop, self.curriculum, self.milestone, draw.progress)
            crop = crop.model_copy(update={"smallest": least})
        size = (images_BCHW.shape[2], images_BCHW.shape[3])
        view = draw_view(crop, self.flip, self.roll, size, draw("view"))
        if self.sides:
            part = min(int(draw.progress * len(self.sides)), len(self.sides) - 1)
            view = view._replace(size=_scaled(self.sides[part], size))
        viewed_BCHW, asked = view(images_BCHW), self._asked(networks, draw)
        # in two parts: the networks back to the view, where they are compiled, then the view back
        leaf_BCHW = viewed_BCHW.detach().requires_grad_()
        compiled = is_compiled(self.compile, leaf_BCHW.device, draw.steps)
        with self._one_compiles(networks, asked) if compiled else nullcontext():
            loss, terms = self._loss(leaf_BCHW, targets_BK, networks, asked, compiled=compiled)
            if self.pair_weight:
                paired_BCHW = view(partners(real, targets_BK, draw.always("pairs")))
                loss = loss + self.pair_weight * self._pairing(
                    leaf_BCHW, paired_BCHW, networks, asked
                )
            loss.backward()  # type: ignore[no-untyped-call]
        assert leaf_BCHW.grad is not None, "the loss was differentiated"
        grads = vector_jacobian([viewed_BCHW], parameters, [leaf_BCHW.grad])
        number, *parts = torch.stack([loss, *terms]).tolist()  # waits for the device once
        metrics = dict(zip(Terms._fields, parts, strict=True))
        return Estimate(number, dict(zip(names, grads, strict=True)), metrics)

    def facts(self, distilled: Distilled, networks: Teachers) -> dict[str, float]:
        """Loss, cross-entropy and statistics by all teachers, of the images as they are."""
        with torch.no_grad():
            images_BCHW, targets_BK = distilled(self._every(distilled))
            everyone = list(range(len(networks.members)))
            loss, terms = self._loss(images_BCHW, targets_BK, networks, everyone)
            numbers = torch.stack([loss, *terms]).tolist()
            return dict(zip(["loss", *Terms._fields], numbers, strict=True))

    def _every(self, distilled: Distilled) -> Tensor:
        return torch.arange(distilled.count, device=distilled.device)

    def _asked(self, teachers: Teachers, draw: LaneDraw) -> list[int]:
        """The teachers of this step; `drawn` ones are the same at every step of a block."""
        count = len(teachers.members)
        if self.teachers == "in_turn":
            return [draw.step % count]
        if self.teachers == "drawn":
            order = torch.randperm(count, generator=draw.always("teachers"))
            return sorted(order[: self.drawn].tolist())
        return list(range(count))

    def _loss(
        self,
        images_BCHW: Tensor,
        targets_BK: Tensor,
        teachers: Teachers,
        asked: list[int],
        *,
        compiled: bool = False,
    ) -> tuple[Tensor, Terms]:
        """The loss sum_t w_t (CE_t + b_t BN_t) / sum_t w_t, and the means of CE and BN alike."""
        refuse(self.problems(Context(teachers=len(teachers.members))))
        weights = [1.0 if self.weights is None else self.weights[place] for place in asked]
        matched = self._matched(teachers)
        loss = images_BCHW.new_zeros(())
        parts = Terms(loss, loss)
        for place, weight in zip(asked, weights, strict=True):
            one = matched[place]
            terms = one.compiled if compiled else matching_terms
            cross_entropy, bn_loss = terms(
                one.probe,
                images_BCHW,
                targets_BK,
                one.wanted(targets_BK),
                self.first_bn_weight,
                self.precision,
            )
            share = weight / sum(weights)
            factor = self.bn_weight[place] if isinstance(self.bn_weight, list) else self.bn_weight
            loss = loss + share * (cross_entropy + factor * bn_loss)
            parts = Terms(
                parts.cross_entropy + share * cross_entropy, parts.bn_loss + share * bn_loss
            )
        return loss, parts

    def _pairing(
        self, images_BCHW: Tensor, partners_BCHW: Tensor, teachers: Teachers, asked: list[int]
    ) -> Tensor:
        """The mean of `pair_loss` over the teachers that are asked, by their weights."""
        weights = [1.0 if self.weights is None else self.weights[place] for place in asked]
        matched = self._matched(teachers)
        losses = [
            weight * pair_loss(matched[place].probe, images_BCHW, partners_BCHW, self.precision)
            for place, weight in zip(asked, weights, strict=True)
        ]
        return torch.stack(losses).sum() / sum(weights)

    @contextmanager
    def _one_compiles(self, teachers: Teachers, asked: list[int]) -> Iterator[None]:
        """Let a thread wait at its first step for another's graphs, which it then finds and uses.

        Beyond so many graphs of one function torch would go on without compiling, to other bits.
        """
        # `kept` is of this thread alone; the lock is shared, and held for a first step only
        known: set[int] = teachers.kept.__dict__.setdefault("compiled", set())
        if known.issuperset(asked):
            yield
            return
        with teachers.compiling, torch._dynamo.config.patch(recompile_limit=MOST_GRAPHS):
            yield
        known.update(asked)

    def _matched(self, teachers: Teachers) -> list[Matched]:
        """The teachers as this thread asks them, made once."""
        kept: dict[object, list[Matched]] = teachers.kept.__dict__.setdefault("matched", {})
        key = (self.targets, self.channels_last)
        if key not in kept:
            kept[key] = [Matched(teacher, *key) for teacher in teachers.members]
        return kept[key]
