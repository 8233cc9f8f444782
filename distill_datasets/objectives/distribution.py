"""Distribution matching: what a network makes of distilled images and of real ones, on average.

Class by class, a mean over distilled examples is pulled toward the mean over real images: of
embeddings (DM), of where the network looks (DataDAM), or of waves in the space of embeddings, which
tell whole distributions apart (NCFM). Networks are not trained and get no gradient.

Shape suffixes: B examples of a batch, N the examples of a step, K classes, D values of a feature,
C channels, H W pixels, P all weights of a network.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import nn

from distill_datasets.config import Section
from distill_datasets.models.architecture import last_linear
from distill_datasets.models.flops import IMAGE_GRADIENT
from distill_datasets.networks.network import Layers, NetworkSource, Sampled
from distill_datasets.objectives.objective import Context, Estimate, Objective, added, through_batch
from distill_datasets.runtime.draws import LaneDraw
from distill_datasets.runtime.memory import to_device
from distill_datasets.runtime.precision import WHERE_FAST, Precision, computing_in
from distill_datasets.runtime.vector_jacobian import vector_jacobian
from distill_datasets.types import Batch, Shape
from distill_datasets.views.augment import Augment

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.real import RealData
    from distill_datasets.distilled import Distilled

Features = Callable[[Layers, "torch.dtype"], list["Tensor"]]
"""Tables (B, D), one row per image, whose class means are compared."""


class Statistic(Section, ABC):
    """What is averaged over the images of a class, and how far apart two averages are."""

    @abstractmethod
    def features(self, draw: LaneDraw) -> Features:
        """What is averaged in this lane of this step."""

    @abstractmethod
    def distances_K(self, ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
        """How far apart the means of every class are, (K,), given tables (K, D) of them."""


class Mean(Statistic):
    """Squared distance of mean embeddings: DM (arXiv:2110.04181), algorithm 1."""

    def features(self, draw: LaneDraw) -> Features:
        return lambda layers, dtype: [layers.embedding_BD.to(dtype)]

    def distances_K(self, ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
        return (ours[0] - theirs[0]).square().sum(dim=1)


class Attention(Statistic):
    """Where the network looks: mean attention maps of all its layers but the last, and its output.

    An image's attention is the sum over channels of a map's values to a power, at unit length.

    Source: DataDAM (arXiv:2310.00093), spatial attention matching; the output is that of the
    authors' program, the logits.
    """

    power: float = Field(
        default=4.0, ge=1, description="of the values that are summed (the authors' program: 1)"
    )
    output_weight: float = Field(default=0.01, ge=0, description="of the term of the mean logits")
    scale: float = Field(default=100.0, gt=0, description="factor on the loss")

    def features(self, draw: LaneDraw) -> Features:
        def looked_at(layers: Layers, dtype: torch.dtype) -> list[Tensor]:
            maps = [map_BCHW for map_BCHW in layers.maps if map_BCHW.dim() == 4]
            tables = [
                F.normalize(map_BCHW.to(dtype).pow(self.power).sum(dim=1).flatten(1), dim=1)
                for map_BCHW in maps[:-1]
            ]
            return [*tables, layers.logits_BK.to(dtype)]

        return looked_at

    def distances_K(self, ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
        *looked_K, output_K = (
            (own - other).square().sum(dim=1) for own, other in zip(ours, theirs, strict=True)
        )
        return self.scale * (sum(looked_K) + self.output_weight * output_K)


class Characteristic(Statistic):
    """Distance of characteristic functions at random frequencies, drawn anew for every lane.

    Embeddings have unit length; a class's function at a frequency is the mean of one complex wave.
    This is NCFM without its adversary, as all settings that the authors published have it.

    Source: NCFM (arXiv:2502.20653), neural characteristic function discrepancy.
    """

    frequencies: int = Field(default=1024, gt=0, le=1_000_000, description="how many are drawn")
    amplitude: float = Field(
        default=0.5, ge=0, description="weight of the difference of amplitudes (alpha: diversity)"
    )
    phase: float = Field(
        default=0.5, ge=0, description="weight of the difference of phases (beta: realism)"
    )
    scale: float = Field(default=300.0, gt=0, description="factor on the loss")

    def features(self, draw: LaneDraw) -> Features:
        @functools.cache
        def frequencies_DT(width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
            drawn_DT = torch.randn(width, self.frequencies, generator=draw("frequencies"))
            return drawn_DT.to(device, dtype)

        def waves(layers: Layers, dtype: torch.dtype) -> list[Tensor]:
            unit_BD = F.normalize(layers.embedding_BD.to(dtype), dim=1)
            angles_BT = unit_BD @ frequencies_DT(unit_BD.shape[1], dtype, unit_BD.device)
            return [angles_BT.cos(), angles_BT.sin()]

        return waves

    def distances_K(self, ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
        # The mean waves of a class are z of ours and y of theirs, as pairs of cosine and sine. At a
        # frequency they are apart by the root of
        #   amplitude (|z| - |y|)^2 + 2 phase (|z||y| - Re(z y*)),
        # which is |z - y|^2 where both weights are 1.
        own_2KT, other_2KT = torch.stack(ours), torch.stack(theirs)
        # a norm whose gradient is zero at zero
        own_KT = torch.linalg.vector_norm(own_2KT, dim=0)
        other_KT = torch.linalg.vector_norm(other_2KT, dim=0)
        turned_KT = own_KT * other_KT - (own_2KT * other_2KT).sum(dim=0)
        squared_KT = self.amplitude * (own_KT - other_KT).square() + 2 * self.phase * turned_KT
        # below is rounding, whose root would have a gradient of any size
        apart_KT = squared_KT > 1e-12
        roots_KT = torch.where(apart_KT, squared_KT, 1).sqrt()
        return self.scale * torch.where(apart_KT, roots_KT, 0).mean(dim=1)


class Group(NamedTuple):
    """Classes that share one draw of the augmentation, and the words of that draw."""

    words: tuple[str | int, ...]
    classes: list[int]


class View(NamedTuple):
    """What a lane looks at images with."""

    network: Sampled
    features: Features
    draw: LaneDraw


class Distribution(Objective):
    """Distance of class means over distilled and over real images (DM, DataDAM, NCFM)."""

    paper: ClassVar[str] = (
        "DM, arXiv:2110.04181; IDM, arXiv:2307.09742; DataDAM, arXiv:2310.00093; "
        "NCFM, arXiv:2502.20653"
    )
    name: Literal["distribution"] = "distribution"
    statistic: Literal["mean", "attention", "characteristic"] = Field(
        default="mean",
        description="what is averaged: embeddings (DM), attention maps (DataDAM), or waves over "
        "embeddings (NCFM without its adversary)",
    )
    attention: Attention | None = Field(
        default=None, description="settings of that statistic; null takes their defaults"
    )
    characteristic: Characteristic | None = Field(
        default=None, description="settings of that statistic; null takes their defaults"
    )
    real_batch: int = Field(
        default=256, gt=0, description="real images of a class; one with fewer gives each once"
    )
    classes_per_step: int | None = Field(
        default=None,
        gt=0,
        description="random classes that a lane sums over, the sum is not scaled up; null takes "
        "all",
    )
    augment: Augment = Field(
        default=Augment(),
        description="one draw moves real and distilled images alike: one for each class if labels "
        "are hard, one for all classes otherwise",
    )
    cross_entropy_weight: float = Field(
        default=0.0,
        ge=0,
        description="of the network's mean loss on each class's distilled examples (IDM, NCFM); "
        "only trained networks have something to say",
    )
    chunk: int | None = Field(
        default=None,
        gt=0,
        description="real images embedded at once; null: 16 on a CPU, whose cache they stay in, "
        "and all of a class elsewhere",
    )
    distilled_chunk: int = Field(
        default=128,
        gt=0,
        description="distilled examples differentiated at once; where one draw is of more, each "
        "chunk is embedded twice and memory stays that of one",
    )
    real_precision: Precision = Field(
        default="float32",
        description="of the network on real images, whose means in bfloat16 are wrong by about a "
        f"thousandth; {WHERE_FAST}",
    )

    @model_validator(mode="after")
    def _settings_of_the_statistic(self) -> Self:
        for name in ("attention", "characteristic"):
            if getattr(self, name) is not None and self.statistic != name:
                raise ValueError(
                    f"{name}: these settings are for statistic: {name}, and statistic is "
                    f"{self.statistic}; leave them out, or change statistic"
                )
        return self

    def cited(self) -> list[str]:
        dm, idm, datadam, ncfm = self.paper.split("; ")
        own = {"mean": dm, "attention": datadam, "characteristic": ncfm}[self.statistic]
        return [own, idm] if self.cross_entropy_weight else [own]

    def problems(self, context: Context) -> Iterator[str]:
        shape, network = context.shape, context.network
        if shape is None:
            return
        if self.classes_per_step is not None and self.classes_per_step > shape.k:
            yield (
                f"distill.objective.classes_per_step: got {self.classes_per_step}, and the source "
                f"has {shape.k} classes; lower it, or leave it out to take all"
            )
        if network is None:
            return
        module = network.on_meta(shape)
        if last_linear(module) is None:
            yield (
                f"distill.networks: the network ({network}) has no Linear layer, expected one "
                f"as its classifier, whose input the objective {self.name!r} takes for the "
                "embedding; choose another network, for example {name: convnet}"
            )
        if self.statistic == "attention" and (maps := _maps(module, shape)) < 2:
            yield (
                f"distill.networks: the network ({network}) has {maps} ReLU layers after "
                "which there are maps, expected at least two: distill.objective.statistic: "
                "'attention' matches all of them but the last; choose a network with more, for "
                "example {name: convnet, depth: 2}, or another statistic: mean or characteristic"
            )

    def work(self, flops_per_image: float, examples: int, classes: int) -> float:
        """See `Objective.work`; every example is taken to belong to one class.

        The waves of `characteristic` are not counted: 2 * frequencies * D more for every image.
        """
        chosen = min(self.classes_per_step or classes, classes)
        matched = examples * chosen / classes
        # chunks of a class are embedded once for their sum and again to be differentiated
        again = matched / chosen > self.distilled_chunk
        return flops_per_image * (self.real_batch * chosen + (IMAGE_GRADIENT + again) * matched)

    def estimate(
        self, distilled: Distilled, networks: NetworkSource, real: RealData, draw: LaneDraw
    ) -> Estimate:
        """Sum over classes of the distance of means, and its gradient.

        Distilled examples count in the mean of a class with their label's share of it: with hard
        labels this is the papers' mean over the class's own images. Then every class has its own
        draw of the augmentation; with soft or learned labels one draw is for all classes, so that
        every example is embedded once. A class that no example has a share of is left out.

        Source: DM (arXiv:2110.04181), algorithm 1.
        """
        view = View(networks.sample(draw), self._statistic().features(draw), draw)
        names, parameters = zip(*distilled.parameters.items(), strict=True)
        index_N = torch.arange(distilled.count, device=distilled.device)
        targets_NK = distilled.targets(index_N)
        known_NK = targets_NK.detach().cpu()  # waits for the device once
        groups = self._groups(known_NK, targets_NK.requires_grad, draw)
        chosen = [label for group in groups for label in group.classes]
        # what these classes need is decoded once, and differentiated as pixels until the end
        own_N = known_NK[:, chosen].sum(dim=1).nonzero().flatten()
        batch = distilled(own_N)
        leaves = Batch(*(tensor.detach() for tensor in batch))
        pulls = Batch(*(torch.zeros_like(tensor) for tensor in leaves))
        losses = list[torch.Tensor]()
        for group in groups:
            means = [self._real_means(view, real, label, group) for label in group.classes]
            theirs = [torch.stack(means_D) for means_D in zip(*means, strict=True)]
            place_B = known_NK[own_N][:, group.classes].sum(dim=1).nonzero().flatten()
            losses.append(self._pull(view, leaves, pulls, theirs, group, place_B))
        grads = through_batch(batch, pulls, parameters)
        loss = added(losses)
        return Estimate(loss, dict(zip(names, grads, strict=True)), {})

    def _statistic(self) -> Statistic:
        if self.statistic == "attention":
            return self.attention or Attention()
        if self.statistic == "characteristic":
            return self.characteristic or Characteristic()
        return Mean()

    def _groups(self, targets_NK: Tensor, learned: bool, draw: LaneDraw) -> list[Group]:
        """The classes of this lane, in order, by the draw of the augmentation that they share."""
        classes = targets_NK.shape[1]
        chosen = list(range(classes))
        if self.classes_per_step is not None:
            drawn = torch.randperm(classes, generator=draw("classes"))[: self.classes_per_step]
            chosen = sorted(drawn.tolist())
        present = (targets_NK > 0).any(dim=0).tolist()
        chosen = [label for label in chosen if present[label]]
        if learned or bool(((targets_NK != 0) & (targets_NK != 1)).any()):
            return [Group(("augment",), chosen)] if chosen else []
        return [Group(("augment", label), [label]) for label in chosen]

    def _real_means(self, view: View, real: RealData, label: int, group: Group) -> list[Tensor]:
        """Mean features (D,) of real images of a class; sums of chunks, divided once."""
        with torch.no_grad():
            count = min(self.real_batch, len(real.rows_of_class[label]))
            images_BCHW = real.class_images(view.draw("real", label), label, count)
            images_BCHW = self.augment(images_BCHW, view.draw(*group.words), shared=True)
            summed: list[Tensor] = []
            on_cpu = images_BCHW.device.type == "cpu"
            for images in torch.split(images_BCHW, self.chunk or (16 if on_cpu else count)):
                with computing_in(self.real_precision, images.device):
                    layers = view.network.layers(view.network.weights_P, images)
                more = [table_BD.sum(dim=0) for table_BD in view.features(layers, images.dtype)]
                summed = (
                    [old + new for old, new in zip(summed, more, strict=True)] if summed else more
                )
            return [sum_D / count for sum_D in summed]

    def _pull(
        self,
        view: View,
        leaves: Batch,
        pulls: Batch,
        theirs: list[Tensor],
        group: Group,
        place_B: Tensor,
    ) -> Tensor:
        """The loss of a group of classes; writes its gradient in the examples into `pulls`.

        `place_B` are the examples that have a share of these classes.

        The loss is a function d(S_1, S_2, ...) of sums S_k = sum_i s_ik f(x_i) over examples, s_ik
        their shares of class k. So dd/dS_k, worked out once, is all that it takes to differentiate
        the examples chunk by chunk: chunk i gets sum_k dd/dS_k s_ik f'(x_i).
        """

        def sums(batch: Batch) -> list[Tensor]:
            """Sums by the classes' shares, (K, D) each: features, losses, the shares themselves."""
            moved_BCHW = self.augment(batch.images_BCHW, view.draw(*group.words), shared=True)
            layers = view.network.layers(view.network.weights_P.detach(), moved_BCHW)
            losses_B = F.cross_entropy(layers.logits_BK, batch.targets_BK, reduction="none")
            shares_BK = batch.targets_BK[:, group.classes]
            # the last table is of ones: its sum is the mass of a class, which the others divide by
            ends = [losses_B[:, None], torch.ones_like(losses_B)[:, None]]
            tables = [*view.features(layers, moved_BCHW.dtype), *ends]
            return [shares_BK.T @ table_BD for table_BD in tables]

        chunks = [
            (index_B, Batch(*(tensor[index_B].requires_grad_() for tensor in leaves)))
            for index_B in torch.split(
                to_device(place_B, leaves.images_BCHW.device), self.distilled_chunk
            )
        ]
        with torch.set_grad_enabled(len(chunks) == 1):
            parts = [sums(batch) for _, batch in chunks]
        totals = [
            torch.stack(terms).sum(dim=0).detach().requires_grad_()
            for terms in zip(*parts, strict=True)
        ]
        *summed, mass_K1 = totals
        *ours, losses_K1 = (sum_KD / mass_K1 for sum_KD in summed)
        loss = self._statistic().distances_K(ours, theirs).sum()
        loss = loss + self.cross_entropy_weight * losses_K1.sum()
        back = torch.autograd.grad(loss, totals)
        for index_B, batch in chunks:
            again = parts[0] if len(chunks) == 1 else sums(batch)
            for pull, share in zip(pulls, vector_jacobian(again, batch, back), strict=True):
                pull[index_B] = share
        return loss.detach()


def _maps(module: nn.Module, shape: Shape) -> int:
    """How many maps a network on the meta device shows after its ReLU layers (see `Layers`)."""
    dims = list[int]()
    for layer in module.eval().modules():
        if isinstance(layer, nn.ReLU):
            layer.register_forward_hook(lambda _, inputs, output: dims.append(output.dim()))
    with torch.no_grad():
        module(torch.empty(1, shape.c, shape.h, shape.w, device="meta"))
    return dims.count(4)
